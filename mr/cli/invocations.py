"""``mr_kv_invocation_get`` and what shows all invocations of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from mr.cli import output, traces
from mr.cli.edge import Command, store
from mr.cli.requests import find
from mr.errors import InvocationNotFound
from mr.model import ids, keys
from mr.model.entities import Invocation, decode


@click.command(cls=Command, example="$ mr_kv_invocation_get words 1hq8y2nk3xw0c5t9e7.0")
@click.argument("workflow")
@click.argument("invocation_id")
def get(workflow: str, invocation_id: str) -> None:
    """Print an invocation as JSON."""
    opened = store()
    request_id = ids.request_of(invocation_id)
    key = keys.invocation(workflow, request_id, invocation_id)
    [entry] = opened.get([key]) if key.isascii() and key.isprintable() else [None]
    if entry is None:
        request = find(opened, workflow, request_id)
        raise InvocationNotFound(
            "invocation",
            invocation_id,
            f"The request {request.request_id!r} is {request.state}; what nobody has begun has no record yet. "
            f"For those that there are: mr_get_invocation_flat_list {workflow} {request.request_id}",
        )
    output.entity("invocation", invocation_id, decode(Invocation, key, entry.value))


@click.command(cls=Command, example="$ mr_get_invocation_graph words last")
@click.argument("workflow")
@click.argument("request_id")
@click.option("--whole", "is_whole", is_flag=True, help="Cut nothing, however long it is.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def graph(workflow: str, request_id: str, is_whole: bool, as_json: bool) -> None:
    """Print the tree of a request with its data, long data cut; `last` is the newest of the workflow."""
    opened = store()
    request = find(opened, workflow, request_id)
    below = traces.below_of(request, request_id)
    traces.show_tree(opened, request, below, as_json=as_json, with_data=True, is_whole=is_whole)


@click.command(cls=Command, example="$ mr_get_invocation_flat_list words last | grep '  failed  '")
@click.argument("workflow")
@click.argument("request_id")
def flat_list(workflow: str, request_id: str) -> None:
    """Print every invocation of a request, one a line, indented; `last` is the newest of the workflow.

    Columns: ID, step, direction, state, seconds, attempt, children, worker and error; `-` where there is nothing.
    """
    opened = store()
    request = find(opened, workflow, request_id)
    traces.show_flat(opened, request, traces.below_of(request, request_id))


@click.command(cls=Command, example="$ mr_draw_invocation_graph words last --format svg -o request.svg")
@click.argument("workflow")
@click.argument("request_id")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["svg", "png", "dot"]),
    default="svg",
    show_default=True,
    help="svg and png need graphviz; dot is what it draws them from.",
)
@click.option("-o", "--output", "path", metavar="FILE", type=click.Path(path_type=Path), help="Write to that file.")
def draw(workflow: str, request_id: str, fmt: Literal["svg", "png", "dot"], path: Path | None) -> None:
    """Draw the invocations of a request; `last` is the newest of the workflow."""
    opened = store()
    traces.draw(opened, find(opened, workflow, request_id), fmt, path)
