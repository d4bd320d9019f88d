"""``mr_kv_workflow_…``."""

from __future__ import annotations

import click

from mr.cli import output
from mr.cli.edge import Command, say, store
from mr.errors import WorkflowNotFound
from mr.kv.base import Store
from mr.model import catalog, keys
from mr.model.catalog import Draft, Limits
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


@click.command(cls=Command, example='$ mr_kv_workflow_create words "Counts words"')
@click.argument("workflow")
@click.argument("description")
@_OPEN_REQUESTS
@_INVOCATIONS
def create(workflow: str, description: str, max_open_requests: int | None, max_invocations: int | None) -> None:
    """Make an empty workflow."""
    limits = Limits(max_open_requests, max_invocations)
    if not catalog.create_workflow(store(), workflow, description, limits):
        say(f"The workflow {workflow!r} is there already, unchanged.")
    output.entity("workflow", workflow, Workflow(workflow_name=workflow, description=description, **limits._asdict()))


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


@click.command(cls=Command, example="$ mr_kv_workflow_delete words")
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
