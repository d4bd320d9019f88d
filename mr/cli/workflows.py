"""``mr_kv_workflow_…``."""

from __future__ import annotations

import click

from mr.cli import output
from mr.cli.edge import Command, say, store
from mr.errors import WorkflowNotFound
from mr.kv.base import Store
from mr.model import catalog, keys
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


@click.command(cls=Command, example='$ mr_kv_workflow_create words "Counts words"')
@click.argument("workflow")
@click.argument("description")
def create(workflow: str, description: str) -> None:
    """Make an empty workflow."""
    if not catalog.create_workflow(store(), workflow, description):
        say(f"The workflow {workflow!r} is there already, unchanged.")
    output.entity("workflow", workflow, Workflow(workflow_name=workflow, description=description))


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
