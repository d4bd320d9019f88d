"""Keeping a request longer, or shorter, than was said when it was posted, and naming it.

An ended request is changed at once. The record of one that runs, or is being redriven, is written by whoever ends it,
from an earlier read: what is asked for then waits beside it, under ``kept/…``, until it has ended.
"""

from __future__ import annotations

import msgspec

from mr.engine import transitions as t
from mr.engine.ops import Commit, Env, Flow, Get, Read
from mr.errors import RequestExpired, RequestNotFound
from mr.model import keys
from mr.model.entities import Request
from mr.model.records import Keep


def keep(env: Env, workflow: str, request_id: str, wish: Keep) -> Flow[Request]:
    """Keeps a request for so many seconds from now on or, while it runs, from its end on; -1: for ever.

    Answers it as it is then, or will be when it ends. May be repeated; the last wish counts.

    :raises RequestNotFound: there is no such request.
    :raises RequestExpired: it is being removed.
    """
    while True:
        request, earlier = yield from _read(workflow, request_id)
        record = request.record
        if record is None:
            raise RequestNotFound("request", request_id)
        if record.state == "expiring":
            raise RequestExpired(f"The request {request_id!r} is being removed: it cannot be kept any more.")
        if wish.name is None and earlier.record is not None:
            wish = msgspec.structs.replace(wish, name=earlier.record.name)
        if record.is_done:
            change = t.keep(request, wish.retention_s, wish.name, env.clock())
        else:
            change = t.keep_later(request, wish)
        if (yield Commit(change)).ok:
            kept = next((write.record for write in change.writes if isinstance(write.record, Request)), record)
            return kept if record.is_done else wish.of(kept)


def keep_ended(workflow: str, request_id: str) -> Flow[None]:
    """Does what was asked for while the request ran, if it has ended."""
    request, wish = yield from _read(workflow, request_id)
    record = request.record
    if record is None or wish.record is None or not record.is_done or record.state == "expiring":
        return
    assert record.ended_timestamp is not None
    yield Commit(t.keep(request, wish.record.retention_s, wish.record.name, record.ended_timestamp))


def _read(workflow: str, request_id: str) -> Flow[tuple[Read[Request], Read[Keep]]]:
    request: Read[Request]
    wish: Read[Keep]
    request, wish = yield Get(((keys.request(workflow, request_id), Request), (keys.kept(workflow, request_id), Keep)))
    return request, wish
