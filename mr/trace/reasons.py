"""Why a request failed, as text for people."""

from __future__ import annotations

import time

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mr.trace.page import Page, one_line, plain
from mr.trace.text import MESSAGE_CHARACTERS, error_text, request_line, traceback_text
from mr.trace.why import Why, look_of


def render(why: Why, width: int | None = None, *, is_colored: bool = False, encoding: str = "utf-8") -> str:
    """All of it: the way to what failed, the error with its line, its traceback, what was printed, and where to look.

    For the rest see Page.
    """
    assert why.failure is not None
    page = Page(width, is_colored=is_colored, encoding=encoding)
    grid = _grid(why)
    grid.add_row("attempt", _attempt(why))
    if why.worker:
        grid.add_row("worker", plain(why.worker))
    grid.add_row("invocation", page.whole(why.path[-1].invocation_id))
    parts: list[RenderableType] = [request_line(why.request, time.time()), grid]
    if why.failure.traceback:
        parts += [Text(), traceback_text(why.failure.traceback)]
    for name, tail in (("output", why.stdout), ("error output", why.stderr)):
        if tail:
            parts += [Text(), Text(f"the end of its {name}:", style="bold"), Text(plain(tail))]
    parts += [Text(), Text("to look further:", style="bold")]
    parts += [Text("  ").append_text(page.whole(command)) for command in why.commands]
    return page.write(parts)


def brief(why: Why, page: Page) -> RenderableType:
    """The way to what failed, the error and its line."""
    grid = _grid(why)
    grid.add_row("more", page.whole(look_of(why.request.request_id)))
    return grid


def nothing(why: Why) -> str:
    """What to say where there is nothing to tell."""
    request = why.request
    if request.state == "failed":
        return f"The request {request.request_id} failed, but the record of what did is gone."
    return f"Nothing failed: the request {request.request_id} is {request.state}. See: {why.commands[0]}"


def _grid(why: Why) -> Table:
    failure, told = why.failure, why.told
    assert failure is not None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("path", Text(" → ".join(map(str, why.path))))
    if told is not None and told != failure:
        grid.add_row("failed", error_text(told))
    name = "tolerated" if why.is_tolerated else "failed" if told == failure else "because"
    grid.add_row(name, error_text(failure))
    if why.place is not None:
        grid.add_row("where", Text(plain(str(why.place)), style="bold"))
        if why.place.source_line:
            grid.add_row("", Text(f"    {one_line(why.place.source_line, MESSAGE_CHARACTERS)}"))
    if why.handler_name:
        grid.add_row("handler", plain(why.handler_name))
    if why.key is not None:
        grid.add_row("key", Text(plain(why.key)))
    return grid


def _attempt(why: Why) -> str:
    last = why.path[-1].attempt
    among = f" of {why.attempts}" if why.attempts else ""
    later = f"; attempt {last} followed" if last > why.attempt else ""
    return f"{why.attempt}{among}{later}"
