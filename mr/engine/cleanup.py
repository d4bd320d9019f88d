"""Removing what belongs to an ended request, after its retention."""

from __future__ import annotations

from mr.engine import transitions as t
from mr.engine.ops import Commit, Env, Flow, Get, List, Read, RemoveFiles
from mr.model import keys
from mr.model.deliveries import Delivery
from mr.model.entities import Request

_PAGE = 100
"""Keys deleted in one transaction; etcd refuses more than 128 operations."""


def cleanup(env: Env, workflow: str, request_id: str) -> Flow[bool]:
    """Removes a request whose retention is over and that has nothing left to deliver; resumes where one was cut short.

    Answers whether it is gone.
    """
    request: Read[Request]
    [request] = yield Get(((keys.request(workflow, request_id), Request),))
    record = request.record
    if record is None:
        return True
    if record.state != "expiring":
        if not record.is_done or record.expires_timestamp is None or record.expires_timestamp > env.clock():
            return False
        if (yield List(f"{keys.deliveries(workflow)}{request_id}/", None, limit=1)):
            return False
        dead = yield List(f"{keys.deads(workflow)}{request_id}/", Delivery)
        if any(read.record.kind == "result" for read in dead):
            # Nobody has the result yet: it stays as long as it is listed.
            return False
        answer = yield Commit(t.begin_cleanup(request))
        if not answer.ok:
            return False
    for prefix in keys.of_request(workflow, request_id):
        while True:
            page = yield List(prefix, None, limit=_PAGE)
            if not page:
                break
            yield Commit(t.cleanup_page([read.key for read in page]))
    yield Commit(t.cleanup_page([keys.result(workflow, request_id)]))
    yield RemoveFiles(workflow, request_id)
    yield Commit(t.end_cleanup(record))
    return True
