"""What commands show of a request's invocations: the tree, the flat list, the drawing, and why it failed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mr.cli import output
from mr.cli.edge import config, is_terminal, prefix, say
from mr.errors import InvalidInput
from mr.kv.base import Store
from mr.model import ids
from mr.model.entities import Request
from mr.model.records import Dataset

if TYPE_CHECKING:
    from mr.fs.base import Files
    from mr.trace.data import ReadDataset


def below_of(request: Request, given: str) -> str | None:
    """The invocation that somebody named in place of the request, if it was one."""
    return given if ids.request_of(given) == request.request_id and given != request.request_id else None


def show_tree(
    opened: Store,
    request: Request,
    below: str | None = None,
    *,
    as_json: bool = False,
    with_data: bool = False,
    is_whole: bool = False,
) -> None:
    from mr.trace import data, document, reasons, text, tree, why

    found = tree.load(
        opened,
        request.workflow_name,
        request.request_id,
        below=below,
        data=with_data,
        cut=data.WHOLE if is_whole else data.PREVIEW,
        read_dataset=_reader(),
    )
    if as_json:
        output.document(document.as_json(found))
        return
    head = None
    if request.state == "failed" and below is None:
        told = why.explain(opened, request, _reader())
        head = partial(reasons.brief, told) if told.failure is not None else None
    width, is_colored, encoding = _paper()
    _echo(text.render(found, width, is_colored=is_colored, encoding=encoding, head=head))


def show_flat(opened: Store, request: Request, below: str | None = None) -> None:
    from mr.trace import flat, page

    encoding = sys.stdout.encoding
    for line in flat.lines(opened, request, below):
        click.echo(page.encodable(line, encoding))


def show_why(opened: Store, request: Request, *, as_json: bool = False) -> bool:
    """Whether there was something to tell."""
    from mr.trace import reasons, why

    told = why.explain(opened, request, _reader())
    told = replace(told, commands=[f"{prefix()}{command}" for command in told.commands])
    if as_json:
        output.document(why.as_json(told))
    elif told.failure is None:
        say(reasons.nothing(told))
    else:
        width, is_colored, encoding = _paper()
        _echo(reasons.render(told, width, is_colored=is_colored, encoding=encoding))
    return told.failure is not None


def draw(opened: Store, request: Request, fmt: Literal["svg", "png", "dot"], path: Path | None) -> None:
    from mr.trace import drawing, graphviz

    if path is None and fmt == "png" and sys.stdout.isatty():
        raise click.UsageError("A PNG is not for a terminal: give -o FILE.")
    source = drawing.dot(drawing.load(opened, request.workflow_name, request.request_id))
    data = source.encode("utf-8", "replace") if fmt == "dot" else graphviz.render(source, fmt)
    if path is None:
        click.echo(data, nl=False)
        return
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}. Choose another file.") from error
    say(f"Wrote {path}, {len(data):,} bytes.")


def _paper() -> tuple[int | None, bool, str]:
    """Width, whether there are colours, and encoding of what is written on."""
    if not is_terminal():
        return None, False, sys.stdout.encoding
    from rich.console import Console

    # Rich knows of NO_COLOR and of terminals that have no colours.
    console = Console()
    return console.width, console.color_system is not None and not console.no_color, sys.stdout.encoding


def _echo(text: str) -> None:
    # The colours were decided on; they are not to be taken out again.
    click.echo(text, nl=False, color=True)


def _reader() -> ReadDataset:
    """Reads datasets; the shared files are opened only if there is something to be read from them."""
    from mr import app

    files: Files | None = None

    def read(dataset: Dataset) -> Iterable[bytes] | None:
        nonlocal files
        if dataset.file is None:
            return [bytes(dataset.pairs)]
        if files is None:
            files = app.open_files(config())
        return files.lines(dataset.file)

    return read
