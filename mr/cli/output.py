"""What commands print: entities as JSON, lists as tables for people and as plain columns for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import click
import msgspec

from mr.cli.edge import is_terminal
from mr.model import catalog
from mr.model.entities import Record


def entity(kind: str, key: str, record: Record) -> None:
    """``{"entity_name", "primary_key", "data"}``; ``key`` is the entity's name or ID in its workflow."""
    click.echo(catalog.as_json(kind, key, record).decode())


def entities(kind: str, records: Iterable[tuple[str, Record]]) -> None:
    """A JSON list of entities."""
    shown = [{"entity_name": kind, "primary_key": key, "data": msgspec.to_builtins(record)} for key, record in records]
    document(shown)


def document(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """With a heading on a terminal; otherwise a row a line, columns between tabs, without a heading.

    ``whole`` are the columns that are copied from: they are not folded, however narrow the terminal.
    """
    if not is_terminal():
        for row in rows:
            click.echo("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        shown.add_row(*(Text("".join(char if char.isprintable() else " " for char in cell)) for cell in row))
    Console(highlight=False).print(shown)
