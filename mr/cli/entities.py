"""What commands that create and read entities share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from mr.cli import output
from mr.cli.edge import say, store
from mr.model import catalog
from mr.model.catalog import Draft
from mr.model.entities import Record
from mr.model.names import check_name


def put(workflow: str, kind: str, name: str, record: Record, how_to_change: str) -> None:
    """Stores a handler, step or job and prints it; says so where it was there already.

    :raises AlreadyExists: it is there, with other content; ``how_to_change`` ends the message.
    """
    check_name(kind, name)
    is_new = False

    def edit(draft: Draft) -> None:
        nonlocal is_new
        tables = {"handler": draft.handlers, "step": draft.steps, "job": draft.jobs}
        table = cast("dict[str, Record]", tables[kind])
        is_new = catalog.put_entity(table, kind, name, record, how_to_change)

    catalog.change(store(), workflow, edit)
    if not is_new:
        say(f"The {kind} {name!r} is there already, unchanged.")
    output.entity(kind, name, record)


def known(table: Mapping[str, object]) -> str:
    """What there is, to end a message with."""
    return f"There are: {', '.join(sorted(table))}." if table else "There are none yet."
