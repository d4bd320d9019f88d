"""``jobx request keep`` and ``cleanup``, and their classic names: how long requests stay, and removing them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mr.cli import output, policies
from mr.cli.edge import Command, config, platform, say
from mr.cli.requests import check_where, find, find_where, newest_of, workflows_of
from mr.errors import InvalidInput, RequestUndelivered
from mr.model import keys
from mr.model.entities import Request
from mr.model.records import Keep
from mr.web.posts import MAX_NAME_CHARS, MIN_RETENTION_S

if TYPE_CHECKING:
    from mr.engine.ops import Flow
    from mr.engine.shell import Platform

# --- keeping -----------------------------------------------------------------------------------------------------


def _keep(opened: Platform, request: Request, retention_s: int | None, name: str | None) -> None:
    from mr import app
    from mr.engine.keep import keep

    if name is not None and len(name) > MAX_NAME_CHARS:
        raise InvalidInput(f"A name has at most {MAX_NAME_CHARS} characters.", "name")
    chosen = -1 if retention_s is None or retention_s < 0 else max(retention_s, MIN_RETENTION_S)
    flow = keep(app.make_env(config()), request.workflow_name, request.request_id, Keep(retention_s=chosen, name=name))
    kept = app.make_shell(opened).run(flow, request.request_id)
    output.entity("request", kept.request_id, kept)
    if not kept.is_done:
        say("It still runs: that holds from its end on.")


_retention_option = policies.retention("For ever, if not given. From now on or, while it runs, from its end on.")
_name_option = click.option("--name", metavar="NAME", help="What it is called from now on where requests are listed.")


@click.command(
    "keep",
    cls=Command,
    example='$ jobx request keep last --name "the good one"\n$ jobx request keep last --retention 3600',
)
@click.argument("where", nargs=-1, required=True, metavar="[WORKFLOW] ID|last", callback=check_where)
@_retention_option
@_name_option
def keep_request(where: tuple[str, ...], retention_s: int | None, name: str | None) -> None:
    """Keep a request longer, or shorter, than was said when it was posted; `last` is the newest."""
    opened = platform()
    _keep(opened, find_where(opened.store, where), retention_s, name)


@click.command("keep", cls=Command, example='$ mr_kv_request_keep words last --name "the good one"')
@click.argument("workflow")
@click.argument("request_id")
@_retention_option
@_name_option
def classic_keep(workflow: str, request_id: str, retention_s: int | None, name: str | None) -> None:
    """Keep a request longer, or shorter, than was said when it was posted; `last` is the newest of the workflow."""
    opened = platform()
    _keep(opened, find(opened.store, workflow, request_id), retention_s, name)


# --- removing ----------------------------------------------------------------------------------------------------


class _Choice(NamedTuple):
    """Which of the ended requests are removed that nobody named."""

    all_ended: bool
    older_than_s: int | None

    def has(self, request: Request, now: float) -> bool:
        if request.state == "expiring":
            return True
        if not request.is_done:
            return False
        if request.expires_timestamp is not None and request.expires_timestamp <= now:
            return True
        if request.is_kept or not self.all_ended:
            return False
        return self.older_than_s is None or (request.ended_timestamp or now) + self.older_than_s <= now


def _cleanup(
    opened: Platform,
    workflow: str | None,
    request_ids: Sequence[str],
    choice: _Choice,
    *,
    is_simulated: bool,
    is_forced: bool,
    as_json: bool,
) -> None:
    if request_ids and choice.all_ended:
        raise click.UsageError("Name requests, or say which: not both.")
    if request_ids:
        found = list(
            {one.request_id: one for one in (find(opened.store, workflow, name) for name in request_ids)}.values()
        )
        # All are looked at before one is removed.
        for request in found:
            _check(opened, request, is_forced)
        wanted: Iterator[Request] = iter(found)
    else:
        now = time.time()
        wanted = (
            request
            for request in newest_of(opened.store, workflows_of(opened.store, workflow))
            if choice.has(request, now)
        )
    gone: list[dict[str, Any]] = []
    left = 0
    for request in wanted:
        try:
            _check(opened, request, is_forced)
            told = _contents(opened, request) if is_simulated else _told(request)
            if not is_simulated:
                _run(opened, request, is_forced)
        except RequestUndelivered:
            left += 1
            continue
        gone.append(told)
    _show(gone, is_simulated, as_json)
    if left:
        say(f"Left are {left} that have something left to deliver. --undelivered removes them, too.")


def _check(opened: Platform, request: Request, is_forced: bool) -> None:
    """
    :raises RequestRuns, RequestUndelivered: it is not removed.
    """
    from mr import app
    from mr.engine.cleanup import check

    flow: Flow[None] = check(request, is_forced=is_forced)
    app.make_shell(opened).run(flow)


def _run(opened: Platform, request: Request, is_forced: bool) -> None:
    from mr import app
    from mr.engine.cleanup import remove

    env = app.make_env(config())
    flow = remove(env, request.workflow_name, request.request_id, is_forced=is_forced)
    app.make_shell(opened).run(flow, request.request_id)


def _told(request: Request) -> dict[str, Any]:
    fields = ("request_id", "workflow_name", "job_name", "state", "name")
    return {field: getattr(request, field) for field in fields}


def _contents(opened: Platform, request: Request) -> dict[str, Any]:
    """With how many keys of each kind there are of it, and how many files."""
    workflow, request_id = request.workflow_name, request.request_id
    kinds: Counter[str] = Counter()
    for prefix in keys.of_request(workflow, request_id):
        kinds[prefix.removesuffix(f"/{workflow}/{request_id}/").rpartition("/")[2]] += opened.store.count(prefix)
    alone = {
        "request": keys.request(workflow, request_id),
        "result": keys.result(workflow, request_id),
        "kept": keys.kept(workflow, request_id),
    }
    if request.expires_timestamp is not None:
        alone["expire"] = keys.expire(workflow, request.expires_timestamp, request_id)
    for kind, entry in zip(alone, opened.store.get(list(alone.values())), strict=True):
        kinds[kind] += entry is not None
    usage = opened.files.usage(f"{workflow}/{request_id}")
    found = {kind: number for kind, number in sorted(kinds.items()) if number}
    return {**_told(request), "keys": found, "files": usage.files, "bytes": usage.bytes}


def _show(gone: list[dict[str, Any]], is_simulated: bool, as_json: bool) -> None:
    if as_json:
        output.document({"is_simulated": is_simulated, "requests": gone})
    elif is_simulated:
        columns = ["request", "workflow", "state", "keys", "files", "bytes", "of these keys"]
        rows = [
            (
                *(one[field] for field in ("request_id", "workflow_name", "state")),
                str(sum(one["keys"].values())),
                str(one["files"]),
                str(one["bytes"]),
                ", ".join(f"{kind} {number}" for kind, number in one["keys"].items()),
            )
            for one in gone
        ]
        output.table(columns, rows, right=["keys", "files", "bytes"], whole=["request"])
    else:
        rows = [tuple(one[field] for field in ("request_id", "workflow_name", "state", "name")) for one in gone]
        output.table(["request", "workflow", "was", "name"], rows, whole=["request"])
    number = f"{len(gone):,} request{'' if len(gone) == 1 else 's'}"
    said = "would be removed; nothing was changed" if is_simulated else "removed"
    say(f"{number} {said}.")


def _cleanup_options(command: Any) -> Any:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--undelivered",
            "is_forced",
            is_flag=True,
            help="Also those with results or notifications that nobody has yet. They are never delivered then.",
        ),
        click.option(
            "--older-than",
            "older_than_s",
            type=click.IntRange(0),
            metavar="S",
            help="All that ended so many seconds ago, whatever their retention, but those that somebody kept.",
        ),
        click.option(
            "--all-ended", is_flag=True, help="All that have ended, whatever their retention, but those somebody kept."
        ),
        click.option(
            "-s",
            "--simulate_only",
            "--simulate-only",
            "is_simulated",
            is_flag=True,
            help="Remove nothing; show what would go: how many keys of each kind, and files.",
        ),
    ):
        command = option(command)
    return command


@click.command(
    "cleanup",
    cls=Command,
    example="$ jobx request cleanup last -s\n$ jobx request cleanup words --older-than 86400\n$ jobx request cleanup",
)
@click.argument("where", nargs=-1, metavar="[WORKFLOW] [ID|last]...")
@_cleanup_options
def cleanup_requests(
    where: tuple[str, ...],
    is_simulated: bool,
    all_ended: bool,
    older_than_s: int | None,
    is_forced: bool,
    as_json: bool,
) -> None:
    """Remove ended requests now, with all that belongs to them.

    Those that are named, or else those whose retention is over, of a workflow or of all. Workers do the latter by
    themselves.
    """
    opened = platform()
    workflow = where[0] if where and where[0] in workflows_of(opened.store, None) else None
    choice = _Choice(all_ended or older_than_s is not None, older_than_s)
    names = where if workflow is None else where[1:]
    _cleanup(opened, workflow, names, choice, is_simulated=is_simulated, is_forced=is_forced, as_json=as_json)


@click.command(
    "cleanup",
    cls=Command,
    example="$ mr_kv_request_cleanup words last -s\n$ mr_kv_request_cleanup words --all-ended\n"
    "$ mr_kv_request_cleanup words",
)
@click.argument("workflow")
@click.argument("request_ids", nargs=-1, metavar="[REQUEST_ID]...")
@_cleanup_options
def classic_cleanup(
    workflow: str,
    request_ids: tuple[str, ...],
    is_simulated: bool,
    all_ended: bool,
    older_than_s: int | None,
    is_forced: bool,
    as_json: bool,
) -> None:
    """Remove ended requests of a workflow now, with all that belongs to them; `last` is the newest.

    Those that are named, or else those whose retention is over. Workers do the latter by themselves.
    """
    choice = _Choice(all_ended or older_than_s is not None, older_than_s)
    _cleanup(platform(), workflow, request_ids, choice, is_simulated=is_simulated, is_forced=is_forced, as_json=as_json)
