"""``mr_kv_workflow_…``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from mr.cli import deliveries, output, policies
from mr.cli.edge import Command, say, store
from mr.errors import WorkflowNotFound
from mr.kv.base import Store
from mr.model import catalog, keys
from mr.model.catalog import NO_POLICIES, Draft, Limits, Policies
from mr.model.entities import Workflow, decode


def read(opened: Store, name: str) -> Workflow:
    """
    :raises WorkflowNotFound: there is none of that name.
    """
    [entry] = opened.get([keys.workflow(name)])
    if entry is None:
        catalog.read(opened, name)
        raise WorkflowNotFound("workflow", name)
    return decode(Workflow, entry.key, entry.value)


_OPEN_REQUESTS = click.option(
    "--max-open-requests",
    type=click.IntRange(0),
    metavar="N",
    help="How many requests may be open; 0: any number.  [default: MR_MAX_OPEN_REQUESTS of the front end]",
)
_INVOCATIONS = click.option(
    "--max-invocations",
    type=click.IntRange(0),
    metavar="N",
    help="How many invocations may be in flight; 0: any number.  [default: MR_MAX_INVOCATIONS of the front end]",
)


_WRITER = policies.writer("the platform's (MR_RESULT_WRITER_FQ_CLASS)")
_NOTIFY = policies.notify("")
_RETENTION = policies.retention("The platform's (MR_RETENTION_S), if not given.")


@click.command(cls=Command, example='$ mr_kv_workflow_create letters "Counts letters" --retention 600')
@click.argument("workflow")
@click.argument("description")
@_OPEN_REQUESTS
@_INVOCATIONS
@_WRITER
@_NOTIFY
@_RETENTION
@policies.outgoing_allow
def create(
    workflow: str,
    description: str,
    max_open_requests: int | None,
    max_invocations: int | None,
    writer: str | None,
    notify: Sequence[str],
    retention_s: int | None,
    outgoing_allow: Sequence[str],
) -> None:
    """Make an empty workflow. What is said of requests holds for its jobs, where these say nothing else."""
    limits = Limits(max_open_requests, max_invocations)
    chosen = Policies(retention_s, writer, tuple(notify), tuple(outgoing_allow))
    if not catalog.create_workflow(store(), workflow, description, limits, chosen):
        say(f"The workflow {workflow!r} is there already, unchanged.")
    output.entity("workflow", workflow, Draft(workflow, description, limits=limits, policies=chosen).workflow())
    if notify:
        deliveries.warn(store(), workflow)


@click.command(
    cls=Command,
    example="$ mr_kv_workflow_set_policies words --retention 86400 --notify failed:mailto:ops@example.com\n"
    "$ mr_kv_workflow_set_policies words --unset notify",
)
@click.argument("workflow")
@_WRITER
@_NOTIFY
@_RETENTION
@policies.outgoing_allow
@click.option(
    "--unset",
    type=click.Choice(["writer", "notify", "retention", "outgoing-allow"]),
    multiple=True,
    help="What is to be as the platform has it again. May be repeated.",
)
def set_policies(
    workflow: str,
    writer: str | None,
    notify: Sequence[str],
    retention_s: int | None,
    outgoing_allow: Sequence[str],
    unset: Sequence[str],
) -> None:
    """Set what becomes of a workflow's requests; what is not given stays as it is. It holds for those that come."""
    given = {"writer": writer, "notify": notify, "retention_s": retention_s, "outgoing_allow": outgoing_allow}
    wanted: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value not in (None, ())
    }
    for name in unset:
        field = {"retention": "retention_s"}.get(name, name.replace("-", "_"))
        if field in wanted:
            raise click.UsageError(f"--{name} is given, and unset, too.")
        wanted[field] = getattr(NO_POLICIES, field)
    if not wanted:
        raise click.UsageError("Say what is to be set, or unset.")

    def edit(draft: Draft) -> None:
        draft.policies = draft.policies._replace(**wanted)

    opened = store()
    if not catalog.change(opened, workflow, edit):
        say(f"The workflow {workflow!r} is like that already.")
    output.entity("workflow", workflow, read(opened, workflow))
    deliveries.warn(opened, workflow)


@click.command(cls=Command, example="$ mr_kv_workflow_set_limits words --max-open-requests 100")
@click.argument("workflow")
@_OPEN_REQUESTS
@_INVOCATIONS
def set_limits(workflow: str, max_open_requests: int | None, max_invocations: int | None) -> None:
    """Set what a workflow takes before posts are turned away; what is not given is the platform's again."""

    def edit(draft: Draft) -> None:
        draft.limits = Limits(max_open_requests, max_invocations)

    if not catalog.change(store(), workflow, edit):
        say(f"The workflow {workflow!r} has these limits already.")
    output.entity("workflow", workflow, read(store(), workflow))


@click.command(cls=Command, example="$ mr_kv_workflow_delete letters")
@click.argument("workflow")
def delete(workflow: str) -> None:
    """Delete a workflow that has nothing in it any more."""
    catalog.delete_workflow(store(), workflow)
    say(f"The workflow {workflow!r} is deleted.")


@click.command(cls=Command, example="$ mr_kv_workflow_get words")
@click.argument("workflow")
def get(workflow: str) -> None:
    """Print a workflow as JSON."""
    output.entity("workflow", workflow, read(store(), workflow))


@click.command("list", cls=Command, example="$ mr_kv_workflow_list --json")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_all(as_json: bool) -> None:
    """List all workflows."""
    opened = store()
    found = [(name, read(opened, name)) for name in catalog.workflow_names(opened)]
    if as_json:
        output.entities("workflow", found)
    else:
        output.table(["workflow", "description"], [(name, one.description) for name, one in found])
