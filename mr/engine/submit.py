"""Accepting and cancelling requests."""

from __future__ import annotations

from typing import NamedTuple

from mr.engine import transitions as t
from mr.engine.data import Gathering, file_name
from mr.engine.join import wake
from mr.engine.ops import Commit, Env, Flow, Get, Publish, Read, RemoveFiles
from mr.engine.transitions import Scene
from mr.errors import Conflict, IdempotencyMismatch, RequestNotFound, StoreUnavailable
from mr.model import ids, keys
from mr.model.entities import Request
from mr.model.records import Idempotency, Manifest, Mark


class Key(NamedTuple):
    """An idempotency key: the digest of what the client sent as one, that of the body, and seconds that it holds."""

    digest: str
    body_digest: str
    holds_s: float


class Accepted(NamedTuple):
    """``is_new``: this very call made the request; otherwise an earlier one with the same key did."""

    request_id: str
    is_new: bool


def submit(
    env: Env, request: Request, manifest: Manifest, arguments: bytes, count: int, key: Key | None
) -> Flow[Accepted]:
    """Records a request with its root invocation, then sends the message for it.

    ``arguments`` is JSON text of a list of ``count`` pairs. A lost message is made good by the sweep.

    :raises IdempotencyMismatch: the key was used with another body.
    """
    idempotency = None
    if key is not None:
        earlier = yield from _earlier(request.workflow_name, request.job_name, key)
        if earlier.record is not None and earlier.record.expires_timestamp > env.clock():
            return _twin(earlier, key)
        record = Idempotency(
            request_id=request.request_id,
            body_digest=key.body_digest,
            expires_timestamp=env.clock() + key.holds_s,
        )
        idempotency = (earlier.key, earlier.modified, record)
    scene = Scene(request, 0, manifest)
    root_id = request.invocation_id
    job = manifest.jobs[request.job_name]
    root = t.blank(scene, root_id, job.initial_step_name, env.clock())
    name = file_name(request.workflow_name, request.request_id, root_id, env.nonce(), "arguments")
    gathering = Gathering(env, name)
    yield from gathering.add(arguments, count)
    dataset = yield from gathering.dataset()
    try:
        answer = yield Commit(t.submit(request, root, dataset, idempotency))
        if not answer.ok:
            twin = yield from _after_refusal(request, idempotency, key, answer.doubtful)
            if twin is not None:
                yield RemoveFiles(request.workflow_name, request.request_id)
                return twin
    except (Conflict, IdempotencyMismatch, StoreUnavailable):
        # Nothing refers to what was spilled for it, so no cleanup would ever find it.
        yield RemoveFiles(request.workflow_name, request.request_id)
        raise
    yield Publish((wake(scene, root.step_name, root_id),))
    return Accepted(request.request_id, True)


def accepted_before(env: Env, workflow: str, job_name: str, key: Key) -> Flow[Accepted | None]:
    """What :func:`submit` would answer without making a request; None: it would make one.

    :raises IdempotencyMismatch: the key was used with another body.
    """
    earlier = yield from _earlier(workflow, job_name, key)
    if earlier.record is None or earlier.record.expires_timestamp <= env.clock():
        return None
    return _twin(earlier, key)


def _earlier(workflow: str, job_name: str, key: Key) -> Flow[Read[Idempotency]]:
    earlier: Read[Idempotency]
    [earlier] = yield Get(((keys.idempotency(workflow, job_name, key.digest), Idempotency),))
    return earlier


def _twin(earlier: Read[Idempotency], key: Key) -> Accepted:
    assert earlier.record is not None
    if earlier.record.body_digest != key.body_digest:
        raise IdempotencyMismatch(
            "This Idempotency-Key was used before, with another body. Use a new key for a new request."
        )
    return Accepted(earlier.record.request_id, False)


def _after_refusal(
    request: Request, idempotency: tuple[str, int, Idempotency] | None, key: Key | None, doubtful: bool
) -> Flow[Accepted | None]:
    """None: an earlier try of our own made the request after all, whatever has become of it since."""
    if idempotency is not None and key is not None:
        [winner] = yield Get(((idempotency[0], Idempotency),))
        if winner.record is not None:
            return None if winner.record.request_id == request.request_id else _twin(winner, key)
    elif doubtful:
        return None
    raise Conflict("The request could not be recorded. Try again.")


def cancel(env: Env, workflow: str, request_id: str) -> Flow[Request]:
    """Ends a running request as cancelled; one that has ended stays as it is. Answers the request as it then stands.

    :raises RequestNotFound: there is no such request.
    """
    while True:
        live: Read[Mark]
        stored: Read[Request]
        live, stored = yield Get(
            ((keys.live(workflow, request_id), Mark), (keys.request(workflow, request_id), Request))
        )
        if stored.record is None:
            raise RequestNotFound("request", request_id)
        if stored.record.is_redriving:
            yield Commit(t.cancel_redriving(stored, env.clock()))
        elif live.record is None or stored.record.state != "running":
            return stored.record
        else:
            yield Commit(t.cancel(stored.record, live.created, env.clock()))


def new_request(
    workflow: str,
    job_name: str,
    manifest_version: str,
    now: float,
    retention_s: int,
    is_blocking: bool,
    name: str = "",
    writer: str = "",
    notify: list[str] | None = None,
    **context: object,
) -> Request:
    """A request that is yet to be submitted."""
    request_id = ids.new_request_id(workflow, now)
    return Request(
        request_id=request_id,
        workflow_name=workflow,
        job_name=job_name,
        invocation_id=ids.root_of(request_id),
        context=dict(context),
        is_blocking=is_blocking,
        is_done=False,
        failed_invocation_id=None,
        state="running",
        manifest=manifest_version,
        created_timestamp=now,
        ended_timestamp=None,
        name=name,
        retention_s=retention_s,
        writer=writer,
        notify=notify or [],
    )
