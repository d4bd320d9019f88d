"""``jobx request …`` and ``mr_kv_request_…``."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from mr.cli import output
from mr.cli.edge import Command, Group, config, platform, say, store
from mr.errors import InvalidInput, RequestExpired, RequestNotFound
from mr.kv.base import Store
from mr.model import catalog, ids, keys
from mr.model.entities import Request, decode
from mr.model.keeping import as_kept

if TYPE_CHECKING:
    from mr.engine.shell import Platform
    from mr.web.front import Front

LAST = "last"
STATES = ("running", "done", "failed", "cancelled", "expiring")

_PAGE = 200


# --- finding -----------------------------------------------------------------------------------------------------


def newest(opened: Store, workflow: str) -> Iterator[Request]:
    """A workflow's requests, the newest first, read a page at a time."""
    after, limit = "", 1
    while page := opened.list(keys.requests(workflow), after=after, limit=limit, reverse=True):
        for entry in page:
            yield decode(Request, entry.key, entry.value)
        # Most often it is the newest alone that is asked for.
        after, limit = page[-1].key, _PAGE


def newest_of(opened: Store, workflows: list[str]) -> Iterator[Request]:
    """The requests of several workflows, the newest first."""
    each = (newest(opened, workflow) for workflow in workflows)
    return heapq.merge(*each, key=lambda request: request.request_id, reverse=True)


def workflows_of(opened: Store, workflow: str | None) -> list[str]:
    """That workflow, or all.

    :raises WorkflowNotFound: there is none of that name.
    """
    served = config().workflow_names
    if workflow is None:
        return catalog.workflow_names(opened, served)
    catalog.read(opened, workflow, served)
    return [workflow]


def find(opened: Store, workflow: str | None, request_id: str) -> Request:
    """The request of that ID, or the newest for ``last``; without a workflow, of all.

    An invocation's ID serves as that of its request.

    :raises WorkflowNotFound, RequestNotFound: there never was such a one.
    :raises RequestExpired: it was removed.
    """
    workflows = workflows_of(opened, workflow)
    where = f"The workflow {workflow!r} has none" if workflow else "There is none in any workflow"
    if request_id == LAST:
        found = next(newest_of(opened, workflows), None)
        if found is None:
            raise RequestNotFound("request", LAST, f"{where}. POST to a job, or use mr_kv_request_create.")
        [found] = as_kept(opened, [found])
        return found
    request_id = ids.request_of(request_id)
    entries = opened.get([keys.request(one, request_id) for one in workflows])
    requests = [decode(Request, entry.key, entry.value) for entry in entries if entry is not None]
    if len(requests) > 1:
        names = ", ".join(request.workflow_name for request in requests)
        raise InvalidInput(f"The workflows {names} each have a request {request_id!r}: name the workflow.")
    if requests:
        [request] = as_kept(opened, requests)
        return request
    if any(ids.is_request_id(one, request_id) for one in workflows):
        raise RequestExpired(
            f"The request {request_id!r} is not there any more: it has ended, and its retention is over, or it was "
            "removed. `jobx request list` shows those that there are."
        )
    raise RequestNotFound(
        "request",
        request_id,
        f"That is no ID of a request{f' of {workflow!r}' if workflow else ''}: is it mistyped? Or is it one of another "
        "data directory (--data-dir, MR_DATA_DIR)?",
    )


def find_where(opened: Store, where: tuple[str, ...]) -> Request:
    return find(opened, where[0] if len(where) > 1 else None, where[-1])


def check_where(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) > 2:
        raise click.UsageError("Give a request's ID or `last` and, before it, a workflow at most.", ctx)
    return value


_where = click.argument("where", nargs=-1, required=True, metavar="[WORKFLOW] ID|last", callback=check_where)


# --- showing -----------------------------------------------------------------------------------------------------


def _list(workflow: str | None, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    opened = store()
    found: list[Request] = []
    for request in newest_of(opened, workflows_of(opened, workflow)):
        if not states or request.state in states:
            found.append(request)
            if len(found) >= limit:
                break
    found = as_kept(opened, found)
    if as_json:
        output.entities("request", [(request.request_id, request) for request in found])
        return
    columns = ["request", "workflow", "job", "state", "begun", "took", "name"]
    output.table(columns, map(_row, found), right=["took"], whole=["request", "state"])


def _row(request: Request) -> tuple[str, ...]:
    from mr.trace.text import duration
    from mr.trace.tree import seconds_of

    seconds = seconds_of(request)
    return (
        request.request_id,
        request.workflow_name,
        request.job_name,
        request.state,
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(request.created_timestamp)),
        "" if seconds is None else duration(seconds),
        request.name,
    )


_state_option = click.option(
    "--state", "states", type=click.Choice(STATES), multiple=True, help="Only those in that state; may be repeated."
)
_limit_option = click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="How many at most."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _tell_waiting(opened: Store, request: Request) -> None:
    """Says on standard error what keeps the request, where that is a capability that nobody has."""
    if request.is_done:
        return
    from mr.web import waiting

    manifest = catalog.read_manifest(opened, request.workflow_name, request.manifest)
    if lacks := waiting.waited_for(opened, request, manifest):
        say(waiting.sentence(request.workflow_name, lacks))


@click.group(
    "request", cls=Group, data_dir=True, example="$ jobx request list words --state failed\n$ jobx request tree last"
)
def group() -> None:
    """Look at requests, end them, run them again, keep and remove them."""


@group.command("list", example="$ jobx request list words --state failed --limit 5")
@click.argument("workflow", required=False)
@_state_option
@_limit_option
@_json_option
def list_all(workflow: str | None, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List requests, the newest first: those of a workflow, or all."""
    _list(workflow, states, limit, as_json)


@group.command("get", example="$ jobx request get last")
@_where
def get(where: tuple[str, ...]) -> None:
    """Print a request as JSON; `last` is the newest."""
    opened = store()
    request = find_where(opened, where)
    output.entity("request", request.request_id, request)
    _tell_waiting(opened, request)


@group.command("tree", example="$ jobx request tree last\n$ jobx request tree last --data")
@_where
@click.option("--flat", "is_flat", is_flag=True, help="A line an invocation, none folded.")
@click.option("--data", "with_data", is_flag=True, help="Show what went in and out of each invocation, long data cut.")
@click.option("--whole", "is_whole", is_flag=True, help="With --data: cut nothing.")
@_json_option
def show(where: tuple[str, ...], is_flat: bool, with_data: bool, is_whole: bool, as_json: bool) -> None:
    """Show the invocations of a request as a tree; `last` is the newest.

    More than eight invocations of one parent are folded to one line. Of one that failed it is said first why. The ID of
    an invocation shows that one and what is below it.
    """
    if is_flat and (with_data or as_json):
        raise click.UsageError("--flat has no data, and is no JSON: leave it out, or the others.")
    if is_whole and not with_data:
        raise click.UsageError("--whole says how much of the data is shown: give --data, too.")
    from mr.cli import traces

    opened = store()
    request = find_where(opened, where)
    below = traces.below_of(request, where[-1])
    if is_flat:
        traces.show_flat(opened, request, below)
    else:
        traces.show_tree(opened, request, below, as_json=as_json, with_data=with_data, is_whole=is_whole)
    _tell_waiting(opened, request)


@group.command("why", example="$ jobx request why last")
@_where
@_json_option
def why(where: tuple[str, ...], as_json: bool) -> None:
    """Tell why a request failed: the way to the invocation that did, its error, line, traceback and output.

    `last` is the newest request. Exits with 1 where nothing failed.
    """
    from mr.cli import traces

    opened = store()
    if not traces.show_why(opened, find_where(opened, where), as_json=as_json):
        raise click.exceptions.Exit(1)


@group.command("cancel", example="$ jobx request cancel words last")
@_where
def cancel(where: tuple[str, ...]) -> None:
    """End a running request; its handlers are stopped within a second."""
    opened = platform()
    _cancel(opened, find_where(opened.store, where))


def _cancel(opened: Platform, request: Request) -> None:
    ended = front(opened).cancel(request)
    if request.state != "running" or ended.state != "cancelled":
        say(f"The request {request.request_id} has ended already: it is {ended.state}.")
    output.entity("request", ended.request_id, ended)


# --- the classic names -------------------------------------------------------------------------------------------


@click.command("list", cls=Command, example="$ mr_kv_request_list words --state running")
@click.argument("workflow")
@_state_option
@_limit_option
@_json_option
def classic_list(workflow: str, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List the requests of a workflow, the newest first."""
    _list(workflow, states, limit, as_json)


@click.command("get", cls=Command, example="$ mr_kv_request_get words last")
@click.argument("workflow")
@click.argument("request_id")
def classic_get(workflow: str, request_id: str) -> None:
    """Print a request as JSON; `last` is the newest of the workflow."""
    opened = store()
    request = find(opened, workflow, request_id)
    output.entity("request", request.request_id, request)
    _tell_waiting(opened, request)


@click.command("cancel", cls=Command, example="$ mr_kv_request_cancel words last")
@click.argument("workflow")
@click.argument("request_id")
def classic_cancel(workflow: str, request_id: str) -> None:
    """End a running request; `last` is the newest of the workflow."""
    opened = platform()
    _cancel(opened, find(opened.store, workflow, request_id))


def front(opened: Platform) -> Front:
    """The front end's own ways of accepting and cancelling, without HTTP."""
    from mr import app
    from mr.web.front import Front

    found = config()
    return Front(opened, found, app.make_env(found))
