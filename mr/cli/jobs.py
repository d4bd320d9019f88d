"""``mr_kv_job_…``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mr.cli import deliveries, output, policies
from mr.cli.edge import Command, say, store
from mr.cli.entities import known, put
from mr.errors import JobNotFound
from mr.model import catalog
from mr.model.entities import Job


@click.command(
    cls=Command, example='$ mr_kv_job_create words wordcount_kept "Counts words, for a week" count --retention 604800'
)
@click.argument("workflow")
@click.argument("job")
@click.argument("description")
@click.argument("initial_step")
@policies.writer("the workflow's or the platform's")
@policies.notify(", and adds to the workflow's")
@policies.retention("The workflow's or the platform's, if not given.")
def create(
    workflow: str,
    job: str,
    description: str,
    initial_step: str,
    writer: str | None,
    notify: Sequence[str],
    retention_s: int | None,
) -> None:
    """Make a job, which is what clients POST to."""
    record = Job(
        job_name=job,
        workflow_name=workflow,
        description=description,
        initial_step_name=initial_step,
        writer=writer,
        notify=list(notify),
        retention_s=retention_s,
    )
    put(workflow, "job", job, record, f"Delete it first: mr_kv_job_delete {workflow} {job}")
    if notify:
        deliveries.warn(store(), workflow)


@click.command(cls=Command, example="$ mr_kv_job_delete words wordcount_kept")
@click.argument("workflow")
@click.argument("job")
def delete(workflow: str, job: str) -> None:
    """Delete a job. Requests of it that run go on."""
    catalog.change(store(), workflow, lambda draft: draft.delete_job(job))
    say(f"The job {job!r} is deleted.")


@click.command(cls=Command, example="$ mr_kv_job_get words wordcount")
@click.argument("workflow")
@click.argument("job")
def get(workflow: str, job: str) -> None:
    """Print a job as JSON."""
    jobs = catalog.read(store(), workflow).manifest.jobs
    if job not in jobs:
        raise JobNotFound("job", job, known(jobs))
    output.entity("job", job, jobs[job])


@click.command("list", cls=Command, example="$ mr_kv_job_list words")
@click.argument("workflow")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_all(workflow: str, as_json: bool) -> None:
    """List the jobs of a workflow."""
    jobs = sorted(catalog.read(store(), workflow).manifest.jobs.items())
    if as_json:
        output.entities("job", jobs)
    else:
        rows = [(name, job.initial_step_name, job.description) for name, job in jobs]
        output.table(["job", "step", "description"], rows)
