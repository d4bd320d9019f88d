"""Redrive: what failed in an ended request, or was never done, is run again, and what is above it reduced again.

It begins by changing the request's record, so that no cleanup and no other redrive act on what the request was. Then it
goes through the invocations from the leaves up, and puts back each that is not done well with everything beneath it.
It ends by giving the request a new live key. Nobody else writes for the request in between, and each page compares the
request's record. A page is the same whoever writes it and however often; so a redrive that was cut short is finished by
the same command given again or, after a while, by the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from mr.engine import transitions as t
from mr.engine.join import wake
from mr.engine.ops import Change, Commit, Env, Flow, Get, List, LoadManifest, Publish, Read, Wake, Write
from mr.engine.transitions import MARK, Scene
from mr.errors import CorruptRecord, NothingToRedrive, RequestExpired, RequestNotFound, RequestRuns, StepsMissing
from mr.kv.base import Compare
from mr.model import ids, keys
from mr.model.deliveries import Delivery
from mr.model.entities import Invocation, Record, Request, encode
from mr.model.records import Done, Manifest, Redrive, Seal

_OPERATIONS = 100
"""Of one page; etcd refuses more than 128."""

_BYTES = 500_000
"""Of one page, about: records hold what handlers printed, and etcd refuses more than 1.5 MB."""

_SIBLINGS = 50
"""Looked at together."""


# --- transitions ------------------------------------------------------------------------------------------------------


def _unchanged(request: Read[Request]) -> Compare:
    return Compare("modified", request.key, request.modified, "request")


def begin(request: Read[Request], manifest: str, owed: Iterable[str], now: float) -> Change:
    """The ended request is taken: from here on it runs for those who ask, though nothing of it does yet.

    Its result goes and, ``owed``, what would have delivered it.
    """
    record = request.record
    assert record is not None
    workflow, request_id = record.workflow_name, record.request_id
    taken = msgspec.structs.replace(
        record,
        state="running",
        is_done=False,
        is_redriving=True,
        redriven_timestamp=now,
        failed_invocation_id=None,
        ended_timestamp=None,
        expires_timestamp=None,
        manifest=manifest,
        epoch=record.epoch + 1,
    )
    deletes = [keys.result(workflow, request_id), *owed]
    if record.expires_timestamp is not None:
        deletes.append(keys.expire(workflow, record.expires_timestamp, request_id))
    return Change(
        "redrive-begin",
        (_unchanged(request), Compare("version", keys.live(workflow, request_id), 0, "live")),
        (Write(request.key, taken), Write(keys.redrive(workflow, request_id), Redrive(begun_timestamp=now))),
        tuple(deletes),
        durable=True,
    )


def page(request: Read[Request], writes: Iterable[Write], deletes: Iterable[str]) -> Change:
    return Change("redrive-page", (_unchanged(request),), tuple(writes), tuple(deletes))


def end(request: Read[Request]) -> Change:
    """Everything is put back: the request runs."""
    record = request.record
    assert record is not None
    workflow, request_id = record.workflow_name, record.request_id
    writes = (
        Write(keys.live(workflow, request_id), MARK),
        Write(request.key, msgspec.structs.replace(record, is_redriving=False)),
    )
    return Change("redrive-end", (_unchanged(request),), writes, (keys.redrive(workflow, request_id),))


def to_ready(record: Invocation) -> Invocation:
    """To be run again, with all the attempts that its step gives. How it failed last stays to be seen until then."""
    return msgspec.structs.replace(
        record,
        state="ready",
        worker=None,
        started_timestamp=None,
        ended_timestamp=None,
        failures=0,
        lost=0,
        retry_timestamp=0.0,
    )


def to_reducing(record: Invocation) -> Invocation:
    """Everything below it is done well: it only reduces again. What failed is told by its reduces."""
    return msgspec.structs.replace(record, state="reducing", ended_timestamp=None, error=None)


def to_waiting(record: Invocation, epoch: int, need: int) -> Invocation:
    """Some of its children end again. Only those are counted, in an epoch that nobody counted in before."""
    return msgspec.structs.replace(record, state="waiting", ended_timestamp=None, error=None, epoch=epoch, need=need)


def to_open(sealed: Seal, epoch: int, needs: list[int], policy: int | str, shielded: bool) -> Seal:
    """The same children; how many of them may fail is what the step says now."""
    tolerated = t.tolerated(policy, sealed.children)
    return msgspec.structs.replace(
        sealed, open=True, epoch=epoch, needs=tuple(needs), tolerated=tolerated, shielded=shielded
    )


# --- flows ------------------------------------------------------------------------------------------------------------


def redrive(env: Env, workflow: str, request_id: str, newest: str | None) -> Flow[Request]:
    """Runs an ended request again, as far as it is not done well; finishes a redrive that was cut short.

    ``newest`` names the manifest to run on; None: the one that it ran on. Answers the request as it then stands.

    :raises RequestNotFound: there is no such request.
    :raises RequestExpired: it is being removed.
    :raises RequestRuns: it has not ended.
    :raises NothingToRedrive: it is done, and so is everything in it.
    :raises StepsMissing: the manifest lacks what it needs.
    """
    epoch = 0
    while True:
        stored: Read[Request]
        [stored] = yield Get(((keys.request(workflow, request_id), Request),))
        record = stored.record
        if record is None:
            raise RequestNotFound("request", request_id)
        if record.is_redriving:
            epoch = record.epoch
            yield from resume(env, workflow, request_id)
            continue
        if epoch and record.epoch >= epoch:
            return record
        if record.state == "expiring":
            raise RequestExpired(f"The request {request_id} has ended, and what belonged to it is being removed.")
        if not record.is_done:
            raise RequestRuns(workflow, request_id)
        version = record.manifest if newest is None else newest
        yield from _check(env, record, version)
        owed = yield from _results_owed(record)
        answer = yield Commit(begin(stored, version, owed, env.clock()))
        # After a doubt it may have begun, and even have ended since.
        epoch = record.epoch + 1 if answer.ok or answer.doubtful else 0


def _results_owed(record: Request) -> Flow[list[str]]:
    """The keys, of now or of any moment, of what delivers the result of the request's last end."""
    workflow, owed = record.workflow_name, {}
    for prefix in (keys.deliveries(workflow), keys.deads(workflow)):
        reads: list[Read[Delivery]] = yield List(f"{prefix}{record.request_id}/{record.epoch}.", Delivery)
        names = [read.key.removeprefix(prefix) for read in reads if read.record and read.record.kind == "result"]
        owed.update(dict.fromkeys(names))
    # It may be given up, or sent again, at any time.
    return [prefix + name for name in owed for prefix in (keys.deliveries(workflow), keys.deads(workflow))]


def _check(env: Env, record: Request, version: str) -> Flow[None]:
    """
    :raises NothingToRedrive, StepsMissing: see :func:`redrive`.
    """
    manifest: Manifest = yield LoadManifest(record.workflow_name, version)
    suspects = yield from _suspects(env, record)
    walk = _Walk(env, Scene(record, 0, manifest), suspects, None)
    if (yield from walk.run()):
        raise NothingToRedrive(
            f"The request {record.request_id} is done, and nothing in it has failed: there is nothing to run again."
        )
    missing = [f"the step {name!r}" for name in sorted(walk.steps) if name not in manifest.steps]
    if record.job_name not in manifest.jobs:
        missing.insert(0, f"the job {record.job_name!r}")
    if missing:
        raise StepsMissing(
            f"What the workflow {record.workflow_name!r} has now lacks {', '.join(missing)}, which the request "
            f"{record.request_id} needs. Put it back, or redrive on the handlers and steps that the request ran on "
            '(--same-manifest, or {"manifest": "same"}).',
            missing,
        )


def resume(env: Env, workflow: str, request_id: str) -> Flow[None]:
    """Prepares a redrive that has begun, to its end; whoever else does so at the same time is in nobody's way."""
    stored: Read[Request]
    [stored] = yield Get(((keys.request(workflow, request_id), Request),))
    record = stored.record
    if record is None or not record.is_redriving:
        return
    manifest: Manifest = yield LoadManifest(workflow, record.manifest)
    suspects = yield from _suspects(env, record)
    walk = _Walk(env, Scene(record, 0, manifest), suspects, stored)
    try:
        if (yield from walk.run()):
            yield from _check_removed(stored)
            return
    except _Overtaken:
        return
    answer = yield Commit(end(stored))
    if answer.ok or answer.doubtful:
        for start in range(0, len(walk.wakes), env.settings.page):
            yield Publish(tuple(walk.wakes[start : start + env.settings.page]))


def _check_removed(stored: Read[Request]) -> Flow[None]:
    """Nothing to put back is only what a straggler finds, when the request has been removed under it.

    :raises CorruptRecord: the request is still there.
    """
    now: Read[Request]
    [now] = yield Get(((stored.key, Request),))
    if now.modified == stored.modified:
        raise CorruptRecord(stored.key, "it is being redriven, though nothing in it has failed: cancel it")


def _suspects(env: Env, record: Request) -> Flow[set[str]]:
    """Those invocations that may have failures beneath them though they are done well: failures that were tolerated.

    There is no need to look at what is beneath any other that is done well.
    """
    prefix = f"failed/{record.workflow_name}/{record.request_id}/"
    found: set[str] = set()
    after = ""
    while some := (yield List(prefix, None, after, env.settings.page)):
        for read in some:
            parent_id = read.key.removeprefix(prefix).partition("/")[0]
            if parent_id not in found:
                found.update((parent_id, *ids.ancestors_of(parent_id)))
        after = some[-1].key
    return found


class _Overtaken(Exception):
    """The request's record changed: somebody else finished the redrive, or cancelled it."""


class _Sight(NamedTuple):
    id: str
    done: Done | None
    record: Invocation | None
    sealed: Seal | None


class _Walk:
    """One way through the invocations of a request that does not run, from the leaves up.

    ``taken`` is the request as its redrive has it: what is not kept is put back. None: it is only looked at.
    """

    def __init__(self, env: Env, scene: Scene, suspects: set[str], taken: Read[Request] | None) -> None:
        self._env, self._scene, self._suspects, self._taken = env, scene, suspects, taken
        self._writes: list[Write] = []
        self._deletes: list[str] = []
        self._bytes = 0
        self.steps: set[str] = set()
        """Those of what is not kept."""
        self.wakes: list[Wake] = []
        """The first to be sent."""

    def run(self) -> Flow[bool]:
        """Whether everything is kept."""
        root_id = self._scene.request.invocation_id
        [done] = yield Get(((self._scene.done(root_id), Done),))
        [sight] = yield from self._see([(root_id, done.record)])
        if sight.record is None:
            return True
        wakes = yield from self._one(sight, "", False)
        self.wakes += wakes or []
        yield from self._flush()
        return wakes is None

    def _see(self, some: list[tuple[str, Done | None]]) -> Flow[list[_Sight]]:
        wants: list[tuple[str, type[Record]]] = []
        for invocation_id, _ in some:
            wants += [(self._scene.key(invocation_id), Invocation), (self._scene.seal(invocation_id), Seal)]
        reads = (yield Get(tuple(wants))) if wants else []
        return [
            _Sight(invocation_id, done, reads[2 * place].record, reads[2 * place + 1].record)
            for place, (invocation_id, done) in enumerate(some)
        ]

    def _one(self, sight: _Sight, step_name: str, shielded: bool) -> Flow[list[Wake] | None]:
        """Looks at one map invocation and everything beneath it. None: all of it is kept; else what to send for it.

        ``shielded``: a step above tolerates failures.
        """
        record, sealed = sight.record, sight.sealed
        step = self._scene.manifest.steps.get(step_name if record is None else record.step_name)
        policy = 0 if step is None else step.max_failed_children
        shielded = shielded or t.is_tolerant(policy)
        needs: list[int] = []
        if sealed is not None:
            needs = yield from self._children(sight.id, sealed, shielded)
        if sight.done is not None and sight.done.ok and not any(needs):
            return None
        self.steps.add(step_name if record is None else record.step_name)
        if self._taken is None:
            return []
        if record is None:
            return [wake(self._scene, step_name, sight.id)]
        if sealed is not None and any(needs):
            yield from self._reduces(record, range(record.partitions))
            epoch = self._scene.request.epoch
            waiting = Write(self._scene.key(sight.id), to_waiting(record, epoch, sum(needs)))
            again = Write(self._scene.seal(sight.id), to_open(sealed, epoch, needs, policy, shielded))
            yield from self._put([waiting, again], [self._scene.done(sight.id)])
            return []
        if record.partitions:
            parts = yield from self._undone(record)
            yield from self._reduces(record, parts)
            reducing = Write(self._scene.key(sight.id), to_reducing(record))
            yield from self._put([reducing], [self._scene.done(sight.id)])
            return [wake(self._scene, record.step_name, ids.reduce_of(sight.id, part)) for part in parts]
        ready = Write(self._scene.key(sight.id), to_ready(record))
        yield from self._put([ready], [self._scene.done(sight.id), self._scene.own(sight.id)])
        return [wake(self._scene, record.step_name, sight.id)]

    def _children(self, parent_id: str, sealed: Seal, shielded: bool) -> Flow[list[int]]:
        """How many are not kept, by shard. The first of each shard are sent at the end, as many as have a place."""
        needs = [0] * sealed.shards
        places = sealed.window // sealed.shards
        for start in range(0, sealed.children, _SIBLINGS):
            slots = range(start, min(start + _SIBLINGS, sealed.children))
            children = [ids.child_of(parent_id, sealed.nonce, slot) for slot in slots]
            reads: list[Read[Done]] = yield Get(tuple((self._scene.done(child), Done) for child in children))
            doubtful = [
                (child, read.record)
                for child, read in zip(children, reads, strict=True)
                if read.record is None or not read.record.ok or child in self._suspects
            ]
            for sight in (yield from self._see(doubtful)):
                wakes = yield from self._one(sight, sealed.step_name, shielded)
                if wakes is not None:
                    shard = ids.slot_of(sight.id) % sealed.shards
                    if needs[shard] < places:
                        self.wakes += wakes
                    needs[shard] += 1
        return needs

    def _undone(self, record: Invocation) -> Flow[list[int]]:
        """The partitions that are not reduced well. A single one has no record of that apart from its map's."""
        if record.partitions == 1:
            return [0]
        reduces = [ids.reduce_of(record.invocation_id, part) for part in range(record.partitions)]
        reads: list[Read[Done]] = yield Get(tuple((self._scene.done(one), Done) for one in reduces))
        return [part for part, read in enumerate(reads) if read.record is None or not read.record.ok]

    def _reduces(self, record: Invocation, parts: Iterable[int]) -> Flow[None]:
        reduces = [ids.reduce_of(record.invocation_id, part) for part in parts]
        if not reduces:
            return
        reads: list[Read[Invocation]] = yield Get(tuple((self._scene.key(one), Invocation) for one in reduces))
        for one, read in zip(reduces, reads, strict=True):
            if read.record is not None:
                ready = Write(read.key, to_ready(read.record))
                yield from self._put([ready], [self._scene.done(one), self._scene.own(one)])

    def _put(self, writes: list[Write], deletes: list[str]) -> Flow[None]:
        """Adds to a page. What belongs to one invocation goes into one page, its reduces before it."""
        operations = len(self._writes) + len(self._deletes) + len(writes) + len(deletes)
        size = sum(len(encode(write.record)) for write in writes)
        if operations > min(_OPERATIONS, self._env.settings.page) or self._bytes + size > _BYTES:
            yield from self._flush()
        self._bytes += size
        self._writes += writes
        self._deletes += deletes

    def _flush(self) -> Flow[None]:
        if self._taken is None or not self._writes:
            return
        writes, deletes, self._writes, self._deletes, self._bytes = self._writes, self._deletes, [], [], 0
        answer = yield Commit(page(self._taken, writes, deletes))
        if not answer.ok:
            raise _Overtaken


def unfinished(env: Env, workflow: str) -> Flow[list[str]]:
    """The requests whose redrive is not prepared yet, though whoever began it has had the time to."""
    latest = env.clock() - env.settings.resend_first_s
    reads: list[Read[Redrive]] = yield List(keys.redrives(workflow), Redrive)
    return [
        read.key.rpartition("/")[2]
        for read in reads
        if read.record is not None and read.record.begun_timestamp <= latest
    ]
