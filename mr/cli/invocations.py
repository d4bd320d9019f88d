"""``mr_kv_invocation_get`` and what shows all invocations of a request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from mr.cli import output
from mr.cli.edge import Command, platform, say, store
from mr.cli.requests import find, show_tree
from mr.errors import InvalidInput, InvocationNotFound
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
def graph(workflow: str, request_id: str) -> None:
    """Print the tree of a request as JSON, with the beginnings of its data; `last` is the newest of the workflow."""
    from mr.trace import tree

    opened = platform()
    request = find(opened.store, workflow, request_id)
    found = tree.load(opened.store, workflow, request.request_id, data=True, read_dataset=opened.read_dataset)
    output.document(tree.as_json(found))


@click.command(cls=Command, example="$ mr_get_invocation_flat_list words last")
@click.argument("workflow")
@click.argument("request_id")
def flat_list(workflow: str, request_id: str) -> None:
    """Print every invocation of a request, indented, one a line; `last` is the newest of the workflow."""
    opened = store()
    show_tree(find(opened, workflow, request_id), opened, as_json=False, is_flat=True)


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
def draw(workflow: str, request_id: str, fmt: str, path: Path | None) -> None:
    """Draw the invocations of a request; `last` is the newest of the workflow."""
    from mr.trace import drawing, tree

    if path is None and fmt == "png" and sys.stdout.isatty():
        raise click.UsageError("A PNG is not for a terminal: give -o FILE.")
    opened = store()
    request = find(opened, workflow, request_id)
    source = drawing.dot(tree.load(opened, workflow, request.request_id))
    data = source.encode("utf-8", "replace")
    if fmt != "dot":
        data = drawing.render(source, cast("drawing.Format", fmt))
    if path is None:
        click.echo(data, nl=False)
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}. Choose another file.") from error
    say(f"Wrote {path}, {len(data):,} bytes.")
