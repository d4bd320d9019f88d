"""Removing what belongs to an ended request, after its retention or on demand."""

from __future__ import annotations

from mr.engine import transitions as t
from mr.engine.keep import keep_ended
from mr.engine.ops import Commit, Env, Flow, Get, List, Read, RemoveFiles
from mr.errors import RequestRuns, RequestUndelivered
from mr.model import keys
from mr.model.deliveries import Delivery
from mr.model.entities import Request
from mr.model.records import Mark

_PAGE = 100
"""Keys deleted in one transaction; etcd refuses more than 128 operations."""


def cleanup(env: Env, workflow: str, request_id: str) -> Flow[bool]:
    """Removes a request whose retention is over and that has nothing left to deliver; resumes where one was cut short.

    Answers whether it is gone.
    """
    request, is_kept = yield from _read(workflow, request_id)
    record = request.record
    if record is None:
        return True
    if record.state != "expiring":
        if not record.is_done or record.expires_timestamp is None or record.expires_timestamp > env.clock():
            return False
        if is_kept:
            yield from keep_ended(workflow, request_id)
            return False
        if (yield from _what_is_owed(workflow, request_id)):
            return False
        if not (yield from _begin(env, request)):
            return False
    yield from _remove(env, workflow, request_id)
    return True


def remove(env: Env, workflow: str, request_id: str, *, is_forced: bool = False) -> Flow[bool]:
    """Removes an ended request now, however long it was to be kept. False: there is none.

    :raises RequestRuns: it has not ended.
    :raises RequestUndelivered: it has something left to deliver, and ``is_forced`` is not set.
    """
    while True:
        request, _ = yield from _read(workflow, request_id)
        record = request.record
        if record is None:
            return False
        if record.state != "expiring":
            yield from check(record, is_forced=is_forced)
            if not (yield from _begin(env, request)):
                continue
        yield from _remove(env, workflow, request_id)
        return True


def check(request: Request, *, is_forced: bool = False) -> Flow[None]:
    """
    :raises RequestRuns, RequestUndelivered: :func:`remove` would not remove it.
    """
    workflow, request_id = request.workflow_name, request.request_id
    if request.state == "expiring":
        return
    if not request.is_done:
        raise RequestRuns(workflow, request_id)
    if not is_forced and (owed := (yield from _what_is_owed(workflow, request_id))):
        raise RequestUndelivered(workflow, request_id, owed)


def _read(workflow: str, request_id: str) -> Flow[tuple[Read[Request], bool]]:
    """With whether it was asked to be kept while it ran: that is not written any more once it has ended."""
    request: Read[Request]
    kept: Read[Mark]
    request, kept = yield Get(((keys.request(workflow, request_id), Request), (keys.kept(workflow, request_id), Mark)))
    return request, kept.record is not None


def _what_is_owed(workflow: str, request_id: str) -> Flow[str]:
    """What of the request is still to be delivered; empty: nothing."""
    if (yield List(f"{keys.deliveries(workflow)}{request_id}/", None, limit=1)):
        return "something that is still being delivered"
    dead: list[Read[Delivery]] = yield List(f"{keys.deads(workflow)}{request_id}/", Delivery)
    if any(read.record is not None and read.record.kind == "result" for read in dead):
        # Nobody has the result yet: it stays as long as it is listed.
        return "a result that could not be delivered"
    # One may have been sent again between the two looks.
    if (yield List(f"{keys.deliveries(workflow)}{request_id}/", None, limit=1)):
        return "something that is still being delivered"
    return ""


def _begin(env: Env, request: Read[Request]) -> Flow[bool]:
    answer = yield Commit(t.begin_cleanup(request, env.clock()))
    ok: bool = answer.ok
    return ok


def _remove(env: Env, workflow: str, request_id: str) -> Flow[None]:
    """Everything of an expiring request; whatever is cut short is found again by its key among those that are due."""
    request, _ = yield from _read(workflow, request_id)
    if request.record is None:
        return
    most = min(_PAGE, env.settings.page)
    pile = [keys.result(workflow, request_id), keys.kept(workflow, request_id)]
    for prefix in keys.of_request(workflow, request_id):
        after = ""
        while True:
            page = yield List(prefix, None, after, most)
            pile += [read.key for read in page]
            while len(pile) >= most:
                yield Commit(t.cleanup_page(pile[:most]))
                pile = pile[most:]
            if len(page) < most:
                break
            after = page[-1].key
    yield RemoveFiles(workflow, request_id)
    yield Commit(t.end_cleanup(request.record, pile))
