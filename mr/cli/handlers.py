"""``mr_kv_handler_…``."""

from __future__ import annotations

import sys
from collections import defaultdict

import click

from mr.cli import output
from mr.cli.directories import read
from mr.cli.edge import Command, say, store
from mr.cli.entities import known, put
from mr.errors import HandlerNotFound, InvalidInput
from mr.model import catalog
from mr.model.catalog import Draft
from mr.model.entities import Argument, Handler


@click.command(
    cls=Command,
    example='$ mr_kv_handler_create words split_lines "Splits texts" python mapper -a arguments list < words/split.py',
)
@click.argument("workflow")
@click.argument("name")
@click.argument("description")
@click.argument("source_type")
@click.argument("handler_type", type=click.Choice(["mapper", "combiner", "reducer"]))
@click.option(
    "-a",
    "--argument",
    "arguments",
    nargs=2,
    multiple=True,
    metavar="NAME TYPE",
    help="What the source finds its input under, and whether as a list or an iterator.",
)
@click.option(
    "-r", "--required_capability", default="none", metavar="CAPABILITY", help="What a worker needs to run it."
)
def create(
    workflow: str,
    name: str,
    description: str,
    source_type: str,
    handler_type: str,
    arguments: tuple[tuple[str, str], ...],
    required_capability: str,
) -> None:
    """Make a handler of the source on standard input."""
    from mr.handlers.header import make_handler

    try:
        source = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The source on standard input is not UTF-8: {error}.") from None
    if not source.strip():
        raise InvalidInput("There is no source on standard input. Give it as in: … < handler.py")
    spec = [Argument(name=argument, type=kind) for argument, kind in arguments]
    record = make_handler(
        workflow,
        name,
        description,
        handler_type,
        source,
        source_type=source_type,
        argument_spec=spec or None,
        required_capability=required_capability,
    )
    how = f"Store a new version of it from a directory: mr_kv_handler_store {workflow} DIRECTORY"
    put(workflow, "handler", name, record, how)


@click.command(cls=Command, example="$ mr_kv_handler_delete words split_lines")
@click.argument("workflow")
@click.argument("name")
def delete(workflow: str, name: str) -> None:
    """Delete a handler that no step uses."""
    catalog.change(store(), workflow, lambda draft: draft.delete_handler(name))
    say(f"The handler {name!r} is deleted.")


def read_all(workflow: str) -> dict[str, Handler]:
    opened = store()
    return catalog.read_handlers(opened, catalog.read(opened, workflow).manifest)


@click.command(cls=Command, example="$ mr_kv_handler_get words split --source")
@click.argument("workflow")
@click.argument("name")
@click.option("--source", is_flag=True, help="Print its source alone.")
def get(workflow: str, name: str, source: bool) -> None:
    """Print a handler as JSON."""
    handlers = read_all(workflow)
    if name not in handlers:
        raise HandlerNotFound("handler", name, known(handlers))
    if source:
        click.echo(handlers[name].source_code, nl=False)
    else:
        output.entity("handler", name, handlers[name])


@click.command("list", cls=Command, example="$ mr_kv_handler_list words")
@click.argument("workflow")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_all(workflow: str, as_json: bool) -> None:
    """List the handlers of a workflow."""
    handlers = sorted(read_all(workflow).items())
    if as_json:
        output.entities("handler", handlers)
        return
    rows = [
        (name, one.handler_type, one.source_type, one.required_capability, one.version[:12], one.description)
        for name, one in handlers
    ]
    output.table(["handler", "type", "source", "capability", "version", "description"], rows)


@click.command("store", cls=Command, example="$ mr_kv_handler_store words ./words -s")
@click.argument("workflow")
@click.argument("directory")
@click.option("-s", "--simulate_only", is_flag=True, help="Say what would change, and change nothing.")
@click.option("-f", "--force_update", is_flag=True, help="Store also what runs alike already.")
def store_directory(workflow: str, directory: str, simulate_only: bool, force_update: bool) -> None:
    """Make the handlers of a workflow those of a directory.

    A handler without a file is deleted, unless a step refers to it. Nothing is stored where any file has a problem.
    """
    found = read(directory, workflow)
    done: dict[str, list[str]] = defaultdict(list)

    def edit(draft: Draft) -> None:
        done.clear()
        for name, handler in found.handlers.items():
            old = draft.handlers.get(name)
            if old is not None and old.version == handler.version and not force_update:
                done["unchanged"].append(name)
                continue
            done["new" if old is None else "updated"].append(name)
            draft.handlers[name] = handler
        for name in [name for name in draft.handlers if name not in found.handlers]:
            if users := draft.users_of_handler(name):
                done["kept"].append(f"{name} (used by {', '.join(users)})")
            else:
                draft.delete_handler(name)
                done["deleted"].append(name)

    catalog.change(store(), workflow, edit, dry=simulate_only)
    for what in ("new", "updated", "deleted"):
        for name in done[what]:
            click.echo(f"{what} {name}")
    for kept in done["kept"]:
        say(f"There is no file for the handler {kept}: it is kept.")
    for path in found.skipped:
        say(f"Skipped: {path}")
    counts = ", ".join(f"{len(done[what])} {what}" for what in ("new", "updated", "deleted", "unchanged"))
    click.echo(counts + (" (simulated: nothing was changed)" if simulate_only else ""))
