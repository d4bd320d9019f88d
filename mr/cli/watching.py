"""``jobx request watch``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import click
import msgspec

from mr.cli.edge import Command, is_terminal, say, store
from mr.cli.requests import check_where, find_where
from mr.errors import StoreUnavailable
from mr.kv.base import Store
from mr.model.entities import Request
from mr.model.progress import Progress

INTERRUPTED = 130
"""As shells say it of a program that Ctrl-C ended."""

_SLOWEST_S = 0.5
_AWAY_S = 1.0
_REFRESHED = 5

Show = Callable[[Progress], None]


@click.command(
    "watch",
    cls=Command,
    example="$ jobx request watch last\n$ jobx request watch words last --url https://jobx.example.com",
)
@click.argument("where", nargs=-1, required=True, metavar="[WORKFLOW] ID|last", callback=check_where)
@click.option("--url", metavar="URL", help="Ask the server there, not the store; then the workflow has to be named.")
@click.option(
    "--token", envvar="JOBX_TOKEN", show_envvar=True, metavar="TOKEN", help="The API token to show to the server."
)
@click.option("--json", "as_json", is_flag=True, help="Print an event a line, as JSON.")
def watch(where: tuple[str, ...], url: str | None, token: str | None, as_json: bool) -> None:
    """Follow a request until it ends; `last` is the newest.

    The exit code is 0 when it is done, and 1 when it failed or was cancelled. Ctrl-C stops watching, not the request:
    then it is 130.
    """
    if url is None:
        opened = store()
        request = find_where(opened, where)
        seen, request_id, look_at = _looks(opened, request), request.request_id, None
    else:
        if len(where) < 2:
            raise click.UsageError("A server is asked for a request of a workflow: give both, as in `words last`.")
        seen, request_id, look_at = _events(url, token, *where), where[1], url
    try:
        last = _follow(seen, as_json)
    except KeyboardInterrupt:
        say(
            f"Nobody watches any more, but the request goes on. To end it: jobx request cancel {request_id}"
            if look_at is None
            else "Nobody watches any more, but the request goes on."
        )
        raise click.exceptions.Exit(INTERRUPTED) from None
    if last.state != "done":
        say(_ending(last, look_at))
        raise click.exceptions.Exit(1)


# --- where from ---------------------------------------------------------------------------------------------------


def _looks(opened: Store, request: Request) -> Iterator[Progress]:
    from mr.web.looks import Looker

    looker = Looker(opened, request, _SLOWEST_S)
    found, is_away = looker.look(), False
    while True:
        yield found
        if found.has_ended:
            return
        time.sleep(looker.pause_s)
        try:
            found, is_away = looker.look(), False
        except StoreUnavailable as error:
            if not is_away:
                say(f"The store does not answer; it is asked again until it does: {error}")
            is_away = True
            time.sleep(_AWAY_S)


def _events(url: str, token: str | None, workflow: str, request_id: str) -> Iterator[Progress]:
    from mr.client import Client

    with Client(url, token) as client:
        yield from client.watch(workflow, request_id)


# --- what is shown ------------------------------------------------------------------------------------------------


def _follow(seen: Iterator[Progress], as_json: bool) -> Progress:
    last: Progress | None = None
    with _shown(as_json) as show:
        for progress in seen:
            if last is None or not progress.is_like(last):
                show(progress)
            last = progress
    assert last is not None, "there is a first look, or an error"
    return last


def _shown(as_json: bool) -> AbstractContextManager[Show]:
    if as_json:
        return _printed(lambda progress: msgspec.json.encode(progress).decode())
    return _live() if is_terminal() else _printed(line)


@contextmanager
def _printed(text: Callable[[Progress], str]) -> Iterator[Show]:
    yield lambda progress: click.echo(text(progress))


@contextmanager
def _live() -> Iterator[Show]:
    """One line that is written over, in which time goes on between two looks."""
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots")
    newest: list[tuple[float, Progress]] = []

    def rendered() -> RenderableType:
        if not newest:
            return Text("")
        at, progress = newest[-1]
        if progress.has_ended:
            return Text(line(progress))
        now = msgspec.structs.replace(progress, elapsed_s=progress.elapsed_s + time.monotonic() - at)
        spinner.update(text=Text(line(now), no_wrap=True, overflow="ellipsis"))
        return spinner

    with Live(console=Console(highlight=False), get_renderable=rendered, refresh_per_second=_REFRESHED):
        yield lambda progress: newest.append((time.monotonic(), progress))


def line(progress: Progress) -> str:
    """How a request stands, in one line."""
    from mr.trace.text import duration, plain

    counts = progress.counts
    parts = [f"{counts.ended} of {counts.sealed} ended"]
    if len(progress.steps) > 1 and progress.is_whole:
        parts = [", ".join(f"{step.step_name} {step.ended}/{step.sealed}" for step in progress.steps)]
    told = ((counts.failed, "failed"), (counts.running, "running"), (counts.ready, "ready"))
    parts += [f"{number} {name}" for number, name in told if number]
    if progress.rate and not progress.has_ended:
        parts.append(f"{progress.rate:.3g} a second")
    text = f"{progress.workflow_name}/{progress.job_name} {progress.state}, {duration(progress.elapsed_s)}: "
    text += ", ".join(parts)
    if progress.detail and not progress.has_ended:
        text += f". {progress.detail}"
    return " ".join(plain(text).split())


def _ending(progress: Progress, url: str | None) -> str:
    """How a request ended that is not done, and what tells more."""
    from mr.trace.why import look_of

    cause = progress.error
    if cause is None:
        told = {"cancelled": "was cancelled", "expired": "has ended, and what belonged to it was removed"}
        return f"The request {progress.request_id} {told.get(progress.state, progress.state)}."
    place = f" ({cause.place})" if cause.place else ""
    more = look_of(progress.request_id)
    if url is not None:
        more = f"{url.rstrip('/')}/request/{progress.workflow_name}/{progress.request_id}"
    return (
        f"The request {progress.request_id} failed: {cause.exception_type}: {cause.exception_message}{place}\n"
        f"For the whole story: {more}"
    )
