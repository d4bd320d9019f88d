"""The sweep: what no message will wake any more is found and sent again, and what was left undone is done.

It pages through the requests that run, never through those that have ended, and forgets nothing but its own pace: a
new sweeper begins with an empty memory and loses only time by it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from mr.engine import transitions as t
from mr.engine.cleanup import cleanup
from mr.engine.join import completion, release, wake
from mr.engine.keep import keep_ended
from mr.engine.ops import (
    Change,
    Commit,
    Env,
    Flow,
    Get,
    HandBack,
    List,
    LoadManifest,
    Publish,
    Together,
    Wake,
    Write,
)
from mr.engine.redrive import resume, unfinished
from mr.engine.transitions import Scene
from mr.errors import StoreUnavailable
from mr.model import ids, keys
from mr.model.entities import Invocation, Record, Request
from mr.model.records import Idempotency, Load, Mark, Owner, Seal

_ENDED = ("done", "failed")

_LOOK_AT_DUE_S = 2.0

_EXPIRED = 200
"""How many requests that are due are removed in one round, at most."""

_REAPED = 100
"""How many idempotency keys are looked at in one round."""

log = logging.getLogger(__name__)


class _Pace:
    """When an invocation that nobody runs is sent again: after a first pause, then after doubling ones."""

    __slots__ = ("due", "is_sent", "pause", "seen")

    def __init__(self, now: float, first: float) -> None:
        self.seen = now
        self.due = now + first
        self.pause = first
        self.is_sent = False


@dataclass
class Memory:
    """What one sweeper of one workflow remembers between its rounds."""

    runs: dict[str, int] = field(default_factory=dict)
    """By request, the revision that began the run that the following is about."""
    paces: dict[str, _Pace] = field(default_factory=dict)
    walks: dict[str, float] = field(default_factory=dict)
    """When the children of a waiting parent are looked at next."""
    ended: dict[str, int] = field(default_factory=dict)
    """How many of a parent's children, from the first on, are known to have ended, by parent and epoch."""
    waiting: dict[str, int] = field(default_factory=dict)
    """How many of a waiting parent's children had not ended when it was looked at last."""
    told: tuple[Load, int] | None = None
    """What was said last of how much there is to do, and under which lease; None: nothing yet."""
    broken: set[str] = field(default_factory=set)
    """Requests that could not be swept, each told once."""
    is_hurried: bool = False
    """The next round sends whatever nobody runs."""
    offered: frozenset[str] | None = None
    """What live workers could do at the last round; None: nobody knew."""
    next_expiry: float = 0.0
    expired_to: str = ""
    """The last of the keys of what is due that was looked at, where there are more."""
    next_reaping: float = 0.0
    reaped_to: str = ""

    def hurry(self) -> None:
        """The queue was lost and found: whatever is not run was perhaps lost with it."""
        self.is_hurried = True
        self.walks.clear()

    def forget(self, running: set[str]) -> None:
        """Drops what belongs to requests that do not run any more."""
        self.runs = {key: live for key, live in self.runs.items() if key in running}
        self.paces = {key: pace for key, pace in self.paces.items() if ids.request_of(key) in running}
        self.walks = {key: due for key, due in self.walks.items() if ids.request_of(key) in running}
        self.ended = {key: slots for key, slots in self.ended.items() if ids.request_of(key) in running}
        self.waiting = {key: count for key, count in self.waiting.items() if ids.request_of(key) in running}

    def begins(self, request_id: str, live: int) -> None:
        """Of a request that was redriven since it was looked at last, nothing is true any more."""
        if self.runs.setdefault(request_id, live) != live:
            self.forget(self.runs.keys() - {request_id})
            self.runs[request_id] = live

    def still_waiting(self, parent_id: str, children: set[str]) -> None:
        """Of a parent's children, no others wait for children of their own any more."""
        for key in [key for key in self.waiting if key.startswith(f"{parent_id}.")]:
            child = key[len(parent_id) + 1 :].partition(".")[0]
            if f"{parent_id}.{child}" not in children:
                del self.waiting[key]


class Sweep:
    """One round over one workflow. ``has_room``: workers wait for messages, so that none can be on its way.

    ``offered`` are the capabilities of live workers, None where nobody knows. What takes another one is seldom sent,
    since its messages would pile up; as soon as somebody has it, at once.
    """

    def __init__(
        self, env: Env, workflow: str, memory: Memory, has_room: bool, offered: frozenset[str] | None = None
    ) -> None:
        self._env, self._workflow, self._memory = env, workflow, memory
        self._is_hurried, memory.is_hurried = memory.is_hurried, False
        self._is_idle = has_room
        self._has_room = has_room or self._is_hurried
        self._wakes: list[Wake] = []
        self._offered = offered
        self._arrived: frozenset[str] = frozenset()
        if offered is not None and memory.offered is not None:
            self._arrived = offered - memory.offered
        if self._arrived:
            memory.walks.clear()

    def run(self) -> Flow[None]:
        running: set[str] = set()
        after = ""
        prefix = f"{keys.LIVE}{self._workflow}/"
        while True:
            page = yield List(prefix, None, after, self._env.settings.page)
            for live in page:
                request_id = live.key.removeprefix(prefix)
                running.add(request_id)
                yield from self._guarded(request_id, self._request(request_id))
            if len(page) < self._env.settings.page:
                break
            after = page[-1].key
        self._memory.forget(running)
        for request_id in (yield from unfinished(self._env, self._workflow)):
            yield from self._guarded(request_id, resume(self._env, self._workflow, request_id))
        # Not before: a round that was cut short may have told nobody of what has come.
        self._memory.offered = self._offered
        yield from self._tell(len(running))
        yield from self._ended_requests()

    def _guarded(self, request_id: str, flow: Flow[Any]) -> Flow[None]:
        """What is wrong with one request must not keep the others from being swept."""
        try:
            yield from flow
        except (HandBack, StoreUnavailable):
            raise
        except Exception:
            if request_id not in self._memory.broken:
                self._memory.broken.add(request_id)
                fields = {"workflow": self._workflow, "request": request_id}
                log.exception("request %s of %s cannot be swept", request_id, self._workflow, extra=fields)

    def _tell(self, requests: int) -> Flow[None]:
        """Says how much there is to do, where that is news: by it front ends turn posts away."""
        memory, lease = self._memory, self._env.lease()
        load = Load(requests=requests, invocations=requests + sum(memory.waiting.values()))
        if memory.told == (load, lease):
            return
        key = keys.load(self._workflow)
        writes = (Write(key, load, lease),) if requests else ()
        answer = yield Commit(Change("load", (), writes, () if requests else (key,)))
        memory.told = (load, lease) if answer.ok else None

    # --- running requests -----------------------------------------------------------------------------------------

    def _request(self, request_id: str) -> Flow[None]:
        workflow = self._workflow
        live, request = yield Get(
            ((keys.live(workflow, request_id), Mark), (keys.request(workflow, request_id), Request))
        )
        if live.record is None or request.record is None:
            return
        self._memory.begins(request_id, live.created)
        manifest = yield LoadManifest(workflow, request.record.manifest)
        scene = Scene(request.record, live.created, manifest)
        job = manifest.jobs[request.record.job_name]
        pending = yield from self._look(scene, [request.record.invocation_id], job.initial_step_name)
        while pending:
            record = pending.pop()
            if record.state == "waiting":
                ended = yield from release(self._env, scene, record.invocation_id, record.epoch)
                self._memory.waiting[record.invocation_id] = record.need - ended
                pending += yield from self._children(scene, record)
            else:
                self._memory.waiting.pop(record.invocation_id, None)
                yield from self._reduces(scene, record)
        if self._wakes:
            yield Publish(tuple(self._wakes))
            self._wakes = []

    def _look(self, scene: Scene, invocation_ids: list[str], step_name: str) -> Flow[list[Invocation]]:
        """Sends again what can run and is not run; answers those map invocations that are past their mapper."""
        pending: list[Invocation] = []
        wants: list[tuple[str, type[Record]]] = []
        for invocation_id in invocation_ids:
            wants += [(scene.key(invocation_id), Invocation), (scene.own(invocation_id), Owner)]
        reads = yield Get(tuple(wants))
        for position, invocation_id in enumerate(invocation_ids):
            record: Invocation | None = reads[2 * position].record
            is_owned = reads[2 * position + 1].record is not None
            if record is not None and record.state in ("waiting", "reducing"):
                pending.append(record)
            elif is_owned or (record is not None and record.state in _ENDED):
                self._memory.paces.pop(invocation_id, None)
            else:
                # A redrive may have put another step first than the root's.
                self._resend(scene, step_name if record is None else record.step_name, invocation_id, record)
        return pending

    def _resend(self, scene: Scene, step_name: str, invocation_id: str, record: Invocation | None) -> None:
        settings, now = self._env.settings, self._env.clock()
        if record is not None and record.retry_timestamp > now:
            return
        # Somebody ran it and is gone: its message was taken and is not coming back by itself.
        is_orphan = record is not None and record.state == "running"
        message = wake(scene, step_name, invocation_id)
        is_hurried = self._is_hurried or message.capability in self._arrived
        is_vain = self._offered is not None and message.capability not in self._offered
        first_s = settings.resend_last_s if is_vain else settings.resend_first_s
        last_s = settings.resend_vain_s if is_vain else settings.resend_last_s
        pace = self._memory.paces.get(invocation_id)
        if pace is None or message.capability in self._arrived:
            first = 0.0 if (is_orphan and not is_vain) or is_hurried else first_s
            pace = self._memory.paces[invocation_id] = _Pace(now, first)
        # Where all workers are busy its message may just be waiting its turn; but not for ever.
        is_patient = not self._has_room and not is_orphan and now - pace.seen < settings.resend_last_s
        # This very worker has nothing to do, and would have had the message by now: who should have sent it is gone.
        is_missed = self._is_idle and message.capability in self._env.capabilities and not pace.is_sent
        is_due = now >= pace.due or (is_missed and now - pace.seen >= settings.resend_idle_s)
        if (not is_due or is_patient) and not is_hurried:
            return
        pace.is_sent = True
        pace.pause = min(last_s, max(2 * pace.pause, first_s))
        pace.due = now + pace.pause
        self._wakes.append(message)

    def _children(self, scene: Scene, parent: Invocation) -> Flow[list[Invocation]]:
        """Looks at the first window of children that have not ended. Wide parents are looked at less often."""
        memory, now = self._memory, self._env.clock()
        parent_id = parent.invocation_id
        [read] = yield Get(((scene.seal(parent_id), Seal),))
        sealed = read.record
        if sealed is None or not sealed.open or (memory.walks.get(parent_id, 0.0) > now and not self._is_idle):
            return []
        memory.walks[parent_id] = now + min(self._env.settings.resend_first_s, sealed.children / 500)
        pending: list[Invocation] = []
        run = _run_of(parent_id, sealed.epoch)
        missing, first, are_ended = 0, memory.ended.get(run, 0), True
        for start in range(first, sealed.children, 50):
            slots = range(start, min(start + 50, sealed.children))
            children = [ids.child_of(parent_id, sealed.nonce, slot) for slot in slots]
            reads = yield Get(tuple((scene.done(child), Mark) for child in children))
            open_ones = [child for child, done in zip(children, reads, strict=True) if done.record is None]
            for child in set(children) - set(open_ones):
                memory.paces.pop(child, None)
            missing += len(open_ones)
            are_ended = are_ended and not open_ones
            if are_ended:
                memory.ended[run] = slots.stop
            if open_ones:
                pending += yield from self._look(scene, open_ones, sealed.step_name)
            if missing >= sealed.window:
                break
        memory.still_waiting(parent_id, {record.invocation_id for record in pending if record.state == "waiting"})
        return pending

    def _reduces(self, scene: Scene, record: Invocation) -> Flow[None]:
        reduces = [ids.reduce_of(record.invocation_id, j) for j in range(record.partitions)]
        yield from self._look(scene, reduces, record.step_name)
        yield from completion(self._env, scene, record.invocation_id)

    # --- ended requests ---------------------------------------------------------------------------------------------

    def _ended_requests(self) -> Flow[None]:
        memory, now = self._memory, self._env.clock()
        if now >= memory.next_expiry:
            if not memory.expired_to:
                yield from self._kept()
            yield from self._expired(now)
        if now >= memory.next_reaping:
            yield from self._reap(now)

    def _kept(self) -> Flow[None]:
        """Those that were asked to be kept while they ran, and have ended, are."""
        prefix, after = keys.kept(self._workflow, ""), ""
        while page := (yield List(prefix, None, after, self._env.settings.page)):
            for read in page:
                request_id = read.key.removeprefix(prefix)
                yield from self._guarded(request_id, keep_ended(self._workflow, request_id))
            after = page[-1].key

    def _expired(self, now: float) -> Flow[None]:
        """Removes what is due: those keys stand in that order, so that no more of them is read.

        No longer than a moment at once: those that run wait for the sweep. It goes on in the next round, behind what
        could not be removed yet.
        """
        env, memory = self._env, self._memory
        most = min(_EXPIRED, env.settings.page)
        page = yield List(keys.expiries(self._workflow), None, memory.expired_to, most)
        due = [read.key for read in page if keys.due_of(read.key) <= now]
        for start in range(0, len(due), env.together):
            some = due[start : start + env.together]
            flows = [self._clean(key.rpartition("/")[2]) for key in some]
            if len(flows) > 1:
                yield Together(tuple(flows))
            else:
                yield from flows[0]
            memory.expired_to = some[-1]
            if env.clock() - now >= env.settings.expire_s:
                return
        if len(due) == most:
            return
        memory.expired_to = ""
        memory.next_expiry = now + _LOOK_AT_DUE_S

    def _clean(self, request_id: str) -> Flow[None]:
        return self._guarded(request_id, cleanup(self._env, self._workflow, request_id))

    def _reap(self, now: float) -> Flow[None]:
        """Removes keys that hold no longer, of one page a round."""
        memory = self._memory
        page = yield List(keys.idempotencies(self._workflow), Idempotency, memory.reaped_to, _REAPED)
        for read in page:
            if read.record is not None and read.record.expires_timestamp <= now:
                yield Commit(t.reap(read))
        memory.reaped_to = page[-1].key if len(page) == _REAPED else ""
        if not memory.reaped_to:
            memory.next_reaping = now + self._env.settings.resend_last_s


def _run_of(parent_id: str, epoch: int) -> str:
    """Children that ended stay so within an epoch of their parent, and no longer."""
    return f"{parent_id}/{epoch}"
