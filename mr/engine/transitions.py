"""The transitions of the protocol: pure functions from what was read to what is to be committed.

Each returns a Change: compares, each labelled with the rule that it enforces, writes and deletes. Nothing here reads a
clock or a store. ``Hold`` is what a successful claim gives; a *fence* is the pair of compares that say that the claim
still stands: nobody took the invocation over, and the run of the request that it belongs to is still the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mr.engine.ops import Change, Read, Write
from mr.kv.base import Compare
from mr.model import deliveries, ids, keys
from mr.model.entities import Failure, Invocation, Request, RequestState, Step
from mr.model.records import Dataset, Done, FailedChild, Idempotency, Keep, Manifest, Mark, Owner, Seal, Session

MARK = Mark()


@dataclass(frozen=True)
class Scene:
    """One run of one request: ``live`` is the revision that created its live key, read before anything else."""

    request: Request
    live: int
    manifest: Manifest

    @property
    def workflow(self) -> str:
        return self.request.workflow_name

    @property
    def id(self) -> str:
        return self.request.request_id

    def key(self, invocation_id: str) -> str:
        return keys.invocation(self.workflow, self.id, invocation_id)

    def own(self, invocation_id: str) -> str:
        return keys.own(self.workflow, self.id, invocation_id)

    def seal(self, invocation_id: str) -> str:
        return keys.seal(self.workflow, self.id, invocation_id)

    def done(self, invocation_id: str) -> str:
        return keys.done(self.workflow, self.id, invocation_id)

    def step(self, invocation: Invocation) -> Step:
        return self.manifest.steps[invocation.step_name]

    def still_live(self) -> Compare:
        return Compare("created", keys.live(self.workflow, self.id), self.live, "live")


@dataclass(frozen=True)
class Hold:
    """A claimed invocation. ``token`` is the revision that created its own key, ``record`` it as claimed.

    ``map`` is the map invocation as read (of a map, its own record as claimed), ``seal`` that of its parent, if any.
    ``carried`` is what a reduce that was claimed with its map's end reduces, and its session, where they are at hand.
    """

    scene: Scene
    record: Invocation
    token: int
    nonce: str
    map: Read[Invocation]
    seal: Read[Seal] | None
    carried: tuple[Dataset, bytes] | None = None

    @property
    def id(self) -> str:
        return self.record.invocation_id

    @property
    def own(self) -> str:
        return self.scene.own(self.id)

    def fence(self) -> tuple[Compare, ...]:
        return (Compare("created", self.own, self.token, "own"), self.scene.still_live())


def _unchanged(read: Read[Invocation] | Read[Seal] | Read[Request], rule: str) -> Compare:
    return Compare("modified", read.key, read.modified, rule)


def _parent_open(seal: Read[Seal] | None) -> tuple[Compare, ...]:
    return () if seal is None else (_unchanged(seal, "seal"),)


# --- beginning ------------------------------------------------------------------------------------------------------


def submit(
    request: Request,
    root: Invocation,
    arguments: Dataset,
    idempotency: tuple[str, int, Idempotency] | None,
) -> Change:
    """``idempotency``: key, the revision that last modified it (0: absent) and the new record."""
    workflow, request_id = request.workflow_name, request.request_id
    compares = [Compare("version", keys.request(workflow, request_id), 0, "request")]
    writes = [
        Write(keys.live(workflow, request_id), MARK),
        Write(keys.request(workflow, request_id), request),
        Write(keys.invocation(workflow, request_id, root.invocation_id), root),
        Write(keys.dataset(workflow, request_id, root.invocation_id, "arguments"), arguments),
    ]
    if idempotency is not None:
        key, modified, record = idempotency
        compares.append(Compare("modified", key, modified, "idempotency"))
        writes.append(Write(key, record))
    return Change("submit", tuple(compares), tuple(writes), durable=True)


def blank(scene: Scene, invocation_id: str, step_name: str, now: float) -> Invocation:
    """The record of an invocation that nobody claimed yet."""
    return Invocation(
        invocation_id=invocation_id,
        request_id=scene.id,
        workflow_name=scene.workflow,
        parent_invocation_id=None if ids.is_root(invocation_id) else ids.parent_of(invocation_id),
        step_name=step_name,
        direction="reduce" if ids.is_reduce(invocation_id) else "map",
        state="ready",
        attempt=0,
        mapped_count=None,
        error=None,
        worker=None,
        created_timestamp=now,
        started_timestamp=None,
        ended_timestamp=None,
    )


def _running(record: Invocation, nonce: str, worker: str, now: float) -> Invocation:
    return msgspec.structs.replace(
        record,
        state="running",
        attempt=record.attempt + 1,
        lost=record.lost + (record.state == "running"),
        nonce=nonce,
        worker=worker,
        started_timestamp=now,
    )


def claim(
    scene: Scene,
    own: Read[Owner],
    read: Read[Invocation],
    record: Invocation,
    gate: tuple[Compare, ...],
    nonce: str,
    worker: str,
    lease: int,
    now: float,
) -> tuple[Change, Invocation]:
    """Takes an invocation. ``record`` is what was read, or a blank one; ``gate`` says that it may run at all.

    Answers the change and the record as it then is.
    """
    running = _running(record, nonce, worker, now)
    compares = (
        Compare("version", own.key, 0, "own"),
        _unchanged(read, "invocation"),
        scene.still_live(),
        *gate,
    )
    writes = (Write(own.key, Owner(nonce=nonce, worker=worker), lease), Write(read.key, running))
    return Change("claim", compares, writes), running


def gate_of_child(seal: Read[Seal]) -> tuple[Compare, ...]:
    return (_unchanged(seal, "gate"),)


def gate_of_reduce(map_invocation: Read[Invocation]) -> tuple[Compare, ...]:
    return (_unchanged(map_invocation, "gate"),)


# --- a mapper -------------------------------------------------------------------------------------------------------


def stage(hold: Hold, number: int, children: Dataset) -> Change:
    """A chunk of children, under a name that only this attempt has."""
    key = keys.chunk(hold.scene.workflow, hold.scene.id, hold.id, hold.nonce, number)
    return Change("stage", hold.fence(), (Write(key, children),))


def tolerated(policy: int | str, children: int) -> int:
    """How many of so many children may fail; a percentage is rounded down."""
    if isinstance(policy, int):
        return policy
    return int(float(policy.rstrip("%")) * children // 100)


def is_tolerant(policy: int | str) -> bool:
    return policy not in (0, "0", "0%")


def seal(
    hold: Hold,
    step_name: str,
    bounds: list[int],
    children: int,
    shards: int,
    window: int,
    session: Session | None,
    output: tuple[str, str],
) -> tuple[Change, Invocation, Seal]:
    """The mapper mapped: from now on its children are these. Without any, its reduces are next.

    ``window`` children are sent at once, as many of each of so many ``shards``.
    """
    scene, record = hold.scene, hold.record
    step = scene.step(record)
    sealed = Seal(
        nonce=hold.nonce,
        step_name=step_name,
        children=children,
        bounds=bounds,
        epoch=record.epoch,
        tolerated=tolerated(step.max_failed_children, children),
        shielded=is_tolerant(step.max_failed_children) or _is_shielded(hold.seal),
        open=True,
        shards=shards,
        window=window,
    )
    mapped = msgspec.structs.replace(
        record,
        state="waiting" if children else "reducing",
        mapped_count=children,
        need=children,
        partitions=step.partitions,
        stdout=output[0],
        stderr=output[1],
    )
    writes = [Write(scene.key(hold.id), mapped), Write(scene.seal(hold.id), sealed)]
    if session is not None:
        writes.append(Write(keys.session(scene.workflow, scene.id, hold.id), session))
    return Change("seal", hold.fence(), tuple(writes), (hold.own,)), mapped, sealed


def collect(
    hold: Hold, post_combine: Dataset, session: Session | None, output: tuple[str, str]
) -> tuple[Change, Invocation]:
    """The mapper returned: its combined pairs are kept, and its reduces are next."""
    scene, record = hold.scene, hold.record
    collected = msgspec.structs.replace(
        record,
        state="reducing",
        mapped_count=0,
        partitions=scene.step(record).partitions,
        stdout=output[0],
        stderr=output[1],
    )
    writes = [
        Write(scene.key(hold.id), collected),
        Write(keys.dataset(scene.workflow, scene.id, hold.id, "post_combine"), post_combine),
    ]
    if session is not None:
        writes.append(Write(keys.session(scene.workflow, scene.id, hold.id), session))
    return Change("collect", hold.fence(), tuple(writes), (hold.own,)), collected


def carry_on(
    change: Change, scene: Scene, map_invocation: Invocation, nonce: str, worker: str, lease: int, now: float
) -> tuple[Change, Invocation]:
    """Claims the only reduce of a map in the very change that makes it runnable: one commit and one message less.

    The gate of a claim needs no compare, as the change itself writes what the gate would read.
    """
    reduce_id = ids.reduce_of(map_invocation.invocation_id, 0)
    running = _running(blank(scene, reduce_id, map_invocation.step_name, now), nonce, worker, now)
    compares = (
        Compare("version", scene.own(reduce_id), 0, "reduce-own"),
        Compare("version", scene.key(reduce_id), 0, "reduce-invocation"),
    )
    writes = (
        Write(scene.own(reduce_id), Owner(nonce=nonce, worker=worker), lease),
        Write(scene.key(reduce_id), running),
    )
    fused = Change(change.name + "-claim", change.compares + compares, change.writes + writes, change.deletes)
    return fused, running


# --- a reducer ------------------------------------------------------------------------------------------------------


def _ended(record: Invocation, state: str, now: float, error: Failure | None = None) -> Invocation:
    return msgspec.structs.replace(record, state=state, ended_timestamp=now, error=error or record.error)


def _reduced(hold: Hold, output: tuple[str, str], now: float) -> Invocation:
    return msgspec.structs.replace(_ended(hold.record, "done", now), stdout=output[0], stderr=output[1])


def part(hold: Hold, dataset: Dataset, output: tuple[str, str], now: float) -> Change:
    """One of several partitions is reduced."""
    scene = hold.scene
    writes = (
        Write(scene.key(hold.id), _reduced(hold, output, now)),
        Write(scene.done(hold.id), Done(ok=True, nonce=hold.nonce, output=dataset)),
    )
    return Change("part", hold.fence(), writes, (hold.own,))


def _count(scene: Scene, child_id: str, sealed: Seal, failure: Failure | None = None) -> list[Write]:
    parent, shard = ids.parent_of(child_id), ids.slot_of(child_id) % sealed.shards
    writes = [Write(keys.count(scene.workflow, scene.id, parent, sealed.epoch, shard), MARK)]
    if failure is not None:
        record = FailedChild(
            invocation_id=child_id,
            exception_type=failure.exception_type,
            exception_message=failure.exception_message,
        )
        writes.append(Write(keys.failed(scene.workflow, scene.id, parent, sealed.epoch, shard), record))
    return writes


def _end(request: Request, state: RequestState, now: float, failed: str | None = None) -> tuple[list[Write], str]:
    """The writes, and the key to delete, with which a request ends."""
    workflow, request_id = request.workflow_name, request.request_id
    expires = now + request.retention_s if request.retention_s >= 0 else None
    ended = msgspec.structs.replace(
        request,
        state=state,
        is_done=True,
        failed_invocation_id=failed,
        ended_timestamp=now,
        expires_timestamp=expires,
    )
    writes = [Write(keys.request(workflow, request_id), ended)]
    if expires is not None:
        writes.append(Write(keys.expire(workflow, expires, request_id), MARK))
    writes += [Write(key, record) for key, record in deliveries.of_end(ended)]
    return writes, keys.live(workflow, request_id)


def complete(
    scene: Scene,
    map_invocation: Read[Invocation],
    seal_of_parent: Read[Seal] | None,
    done: Done,
    now: float,
    hold: Hold | None = None,
    output: tuple[str, str] = ("", ""),
) -> Change:
    """A map invocation has its ``post_reduce``. With one partition this is also the end of its reduce, ``hold``.

    A child is counted into its parent, and the count is the first of the writes; the root ends the request.
    """
    record = map_invocation.record
    assert record is not None
    invocation_id = record.invocation_id
    compares = [_unchanged(map_invocation, "invocation"), *_parent_open(seal_of_parent)]
    writes: list[Write] = []
    deletes: list[str] = []
    if seal_of_parent is not None and seal_of_parent.record is not None:
        writes += _count(scene, invocation_id, seal_of_parent.record)
    else:
        ending, live = _end(scene.request, "done", now)
        writes += [*ending, Write(keys.result(scene.workflow, scene.id), done)]
        deletes.append(live)
    writes += [
        Write(scene.done(invocation_id), done),
        Write(scene.key(invocation_id), _ended(record, "done", now)),
    ]
    if hold is None:
        compares.append(scene.still_live())
    else:
        compares += hold.fence()
        writes.append(Write(scene.key(hold.id), _reduced(hold, output, now)))
        deletes.append(hold.own)
    return Change("complete", tuple(compares), tuple(writes), tuple(deletes))


# --- failures -------------------------------------------------------------------------------------------------------


def retry(hold: Hold, failure: Failure, output: tuple[str, str], at: float) -> Change:
    """An attempt failed and another one is due at ``at``."""
    again = msgspec.structs.replace(
        hold.record,
        state="ready",
        failures=hold.record.failures + 1,
        retry_timestamp=at,
        error=failure,
        stdout=output[0],
        stderr=output[1],
    )
    return Change("retry", hold.fence(), (Write(hold.scene.key(hold.id), again),), (hold.own,))


def _failed_map(
    scene: Scene,
    record: Invocation,
    seal_of_parent: Read[Seal] | None,
    failure: Failure,
    nonce: str,
    now: float,
) -> tuple[list[Compare], list[Write], list[str], bool]:
    """What follows when a map invocation has failed for good; the last item says whether that is tolerated."""
    invocation_id = record.invocation_id
    compares = list(_parent_open(seal_of_parent))
    parent = None if seal_of_parent is None else seal_of_parent.record
    is_tolerated = parent is not None and parent.shielded
    writes: list[Write] = []
    deletes: list[str] = []
    if parent is not None and is_tolerated:
        writes += _count(scene, invocation_id, parent, failure)
    else:
        ending, live = _end(scene.request, "failed", now, failed=invocation_id)
        writes += ending
        deletes.append(live)
    writes += [
        Write(scene.done(invocation_id), Done(ok=False, nonce=nonce)),
        Write(scene.key(invocation_id), _ended(record, "failed", now, failure)),
    ]
    return compares, writes, deletes, is_tolerated


def fail(hold: Hold, failure: Failure, output: tuple[str, str], now: float) -> tuple[Change, bool]:
    """An invocation has failed for good. The answer's second item says whether the request goes on."""
    scene, record = hold.scene, hold.record
    failed = msgspec.structs.replace(record, failures=record.failures + 1, stdout=output[0], stderr=output[1])
    map_record = failed
    if record.direction == "reduce":
        assert hold.map.record is not None
        map_record = hold.map.record
    compares, writes, deletes, is_tolerated = _failed_map(scene, map_record, hold.seal, failure, hold.nonce, now)
    compares = [*hold.fence(), *compares]
    if record.direction == "reduce":
        compares.append(_unchanged(hold.map, "invocation"))
        writes.append(Write(scene.key(hold.id), _ended(failed, "failed", now, failure)))
        if map_record.partitions > 1:
            writes.append(Write(scene.done(hold.id), Done(ok=False, nonce=hold.nonce)))
    deletes.append(hold.own)
    name = "fail" if is_tolerated else "fail-request"
    return Change(name, tuple(compares), tuple(writes), tuple(deletes)), is_tolerated


def exceed(
    scene: Scene,
    parent: Read[Invocation],
    sealed: Read[Seal],
    seal_of_grandparent: Read[Seal] | None,
    failure: Failure,
    nonce: str,
    now: float,
) -> tuple[Change, bool]:
    """More children failed than their parent's step tolerates: the parent fails, and takes no more of them."""
    assert parent.record is not None
    assert sealed.record is not None
    compares, writes, deletes, is_tolerated = _failed_map(
        scene, parent.record, seal_of_grandparent, failure, nonce, now
    )
    compares += [_unchanged(parent, "invocation"), scene.still_live()]
    writes.append(Write(sealed.key, msgspec.structs.replace(sealed.record, open=False)))
    name = "exceed" if is_tolerated else "exceed-request"
    return Change(name, tuple(compares), tuple(writes), tuple(deletes)), is_tolerated


def abandon(own: str, token: int) -> Change:
    """Lets go of a claim whose work is not wanted, or cannot be done here."""
    return Change("abandon", (Compare("created", own, token, "own"),), (), (own,))


def hand_back(hold: Hold) -> Change:
    """The worker cannot run, or go on running, what it claimed: it is ready again, as if it had not been claimed."""
    record = msgspec.structs.replace(hold.record, state="ready", worker=None, attempt=hold.record.attempt - 1)
    return Change("hand-back", hold.fence(), (Write(hold.scene.key(hold.id), record),), (hold.own,))


# --- joining and ending -----------------------------------------------------------------------------------------------


def release(scene: Scene, parent: Read[Invocation]) -> tuple[Change, Invocation]:
    """All children have ended, and few enough of them badly: the parent reduces."""
    assert parent.record is not None
    reducing = msgspec.structs.replace(parent.record, state="reducing")
    compares = (_unchanged(parent, "invocation"), scene.still_live())
    return Change("release", compares, (Write(parent.key, reducing),)), reducing


def cancel(request: Request, live: int, now: float) -> Change:
    writes, live_key = _end(request, "cancelled", now)
    return Change("cancel", (Compare("created", live_key, live, "live"),), tuple(writes), (live_key,))


def cancel_redriving(request: Read[Request], now: float) -> Change:
    """Ends a request that is being put back, before anything of it runs."""
    assert request.record is not None
    workflow, request_id = request.record.workflow_name, request.record.request_id
    writes, _ = _end(msgspec.structs.replace(request.record, is_redriving=False), "cancelled", now)
    redrive = keys.redrive(workflow, request_id)
    return Change("cancel-redriving", (_unchanged(request, "request"),), tuple(writes), (redrive,))


def reap(idempotency: Read[Idempotency]) -> Change:
    """An idempotency key does not hold any longer."""
    compare = Compare("modified", idempotency.key, idempotency.modified, "idempotency")
    return Change("reap", (compare,), (), (idempotency.key,))


def _of_ended(request: Read[Request]) -> tuple[Compare, ...]:
    """It is as it was read, ended: neither removed nor run again."""
    assert request.record is not None
    live = keys.live(request.record.workflow_name, request.record.request_id)
    return _unchanged(request, "request"), Compare("version", live, 0, "live")


def _due_at(request: Request, expires: float | None) -> tuple[list[Write], list[str]]:
    """What moves the key by which the request is found when it is due."""
    workflow, request_id = request.workflow_name, request.request_id
    old, new = (
        "" if at is None else keys.expire(workflow, at, request_id) for at in (request.expires_timestamp, expires)
    )
    if old == new:
        return [], []
    return [Write(new, MARK)] if new else [], [old] if old else []


def begin_cleanup(request: Read[Request], now: float) -> Change:
    """From here on nobody writes for the request: late writes compare its live key, a redrive its record.

    One that was not due is due now, so that the removal is resumed, should it be cut short.
    """
    assert request.record is not None
    expires = request.record.expires_timestamp
    if expires is None or expires > now:
        expires = now
    moved, left = _due_at(request.record, expires)
    expiring = msgspec.structs.replace(request.record, state="expiring", expires_timestamp=expires)
    return Change("cleanup-begin", _of_ended(request), (Write(request.key, expiring), *moved), tuple(left))


def keep(request: Read[Request], retention_s: int, name: str | None, since: float) -> Change:
    """An ended request is kept for so many seconds from ``since`` on (-1: for ever), and called so, if not None."""
    assert request.record is not None
    record = request.record
    expires = since + retention_s if retention_s >= 0 else None
    moved, left = _due_at(record, expires)
    kept = msgspec.structs.replace(
        record,
        retention_s=retention_s,
        expires_timestamp=expires,
        is_kept=True,
        name=record.name if name is None else name,
    )
    left.append(keys.kept(record.workflow_name, record.request_id))
    return Change("keep", _of_ended(request), (Write(request.key, kept), *moved), tuple(left))


def keep_later(request: Read[Request], wish: Keep) -> Change:
    """The same for one that runs, once it has ended: until then its record belongs to whoever ends it."""
    assert request.record is not None
    key = keys.kept(request.record.workflow_name, request.record.request_id)
    return Change("keep-later", (_unchanged(request, "request"),), (Write(key, wish),))


def cleanup_page(page: list[str]) -> Change:
    return Change("cleanup-page", (), (), tuple(page))


def end_cleanup(request: Request, rest: list[str]) -> Change:
    """The request and its expiry go last, so that a cleanup that was cut short is found and resumed."""
    workflow, request_id = request.workflow_name, request.request_id
    deletes = [keys.request(workflow, request_id), *rest]
    if request.expires_timestamp is not None:
        deletes.append(keys.expire(workflow, request.expires_timestamp, request_id))
    return Change("cleanup-last", (), (), tuple(deletes))


def _is_shielded(seal_of_parent: Read[Seal] | None) -> bool:
    return seal_of_parent is not None and seal_of_parent.record is not None and seal_of_parent.record.shielded
