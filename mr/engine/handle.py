"""What a message leads to: look at the invocation that it names, claim it if it can run, and run it."""

from __future__ import annotations

from mr.engine import transitions as t
from mr.engine.finish import fail_or_retry, failed
from mr.engine.join import release, wake, wake_reduces
from mr.engine.map import run_map
from mr.engine.ops import Commit, Env, Flow, Get, HandBack, LoadManifest, Publish, Read
from mr.engine.reduce import run_reduce
from mr.engine.transitions import Hold, Scene
from mr.errors import CorruptRecord, FilesUnavailable, InvalidTransaction, StoreUnavailable
from mr.kv.base import Compare
from mr.model import ids, keys
from mr.model.entities import Invocation, Record, Request
from mr.model.records import Mark, Owner, Seal


class _Sight:
    """What there is to see around an invocation, all read at one revision."""

    def __init__(self, workflow: str, request_id: str, invocation_id: str) -> None:
        self.workflow, self.request_id, self.id = workflow, request_id, invocation_id
        self.map_id = ids.map_of(invocation_id)
        self.is_reduce = self.map_id != invocation_id
        self.is_child = not ids.is_root(self.map_id)

    def read(self) -> Flow[bool]:
        """False: the request does not run, or the invocation is not one of those that count."""
        workflow, request_id = self.workflow, self.request_id
        wants: list[tuple[str, type[Record]]] = [
            (keys.live(workflow, request_id), Mark),
            (keys.request(workflow, request_id), Request),
            (keys.invocation(workflow, request_id, self.map_id), Invocation),
            (keys.own(workflow, request_id, self.id), Owner),
        ]
        above = ids.ancestors_of(self.map_id)
        wants += [(keys.seal(workflow, request_id, ancestor), Seal) for ancestor in above]
        if self.is_reduce:
            wants.append((keys.invocation(workflow, request_id, self.id), Invocation))
        reads = yield Get(tuple(wants))
        self.live: Read[Mark] = reads[0]
        self.request: Read[Request] = reads[1]
        self.map: Read[Invocation] = reads[2]
        self.own: Read[Owner] = reads[3]
        self.seal: Read[Seal] | None = reads[4] if self.is_child else None
        self.invocation: Read[Invocation] = reads[-1] if self.is_reduce else self.map
        if self.live.record is None or self.request.record is None:
            return False
        if self.seal is None:
            return True
        # Below a parent that failed, and was tolerated, nothing is run any more.
        seals = reads[4 : 4 + len(above)]
        if not all(read.record is not None and read.record.open for read in seals):
            return False
        sealed = self.seal.record
        return (
            sealed is not None
            and sealed.open
            and sealed.nonce == ids.nonce_of(self.map_id)
            and ids.slot_of(self.map_id) < sealed.children
        )


def handle(env: Env, workflow: str, request_id: str, invocation_id: str) -> Flow[None]:
    """Does whatever the invocation needs now, which may be nothing. State decides; the message only woke us."""
    sight = _Sight(workflow, request_id, invocation_id)
    if not (yield from sight.read()):
        return
    request = sight.request.record
    assert request is not None
    manifest = yield LoadManifest(workflow, request.manifest)
    scene = Scene(request, sight.live.created, manifest)
    record = sight.invocation.record
    if sight.is_reduce:
        parent = sight.map.record
        if parent is None or parent.state != "reducing" or ids.partition_of(invocation_id) >= parent.partitions:
            return
        gate = t.gate_of_reduce(sight.map)
        record = record or t.blank(scene, invocation_id, parent.step_name, env.clock())
    else:
        gate = () if sight.seal is None else t.gate_of_child(sight.seal)
        if record is None:
            if sight.seal is None or sight.seal.record is None:
                return
            record = t.blank(scene, invocation_id, sight.seal.record.step_name, env.clock())
        if record.state == "reducing":
            yield from wake_reduces(scene, record)
        elif record.state == "waiting":
            yield from release(env, scene, invocation_id, record.epoch)
    if record.state not in ("ready", "running") or sight.own.record is not None:
        return
    pause = record.retry_timestamp - env.clock()
    if pause > 0:
        yield Publish((wake(scene, record.step_name, invocation_id, delay=pause),))
        return
    hold = yield from _claim(env, scene, sight, record, gate)
    if hold is not None:
        yield from run(env, hold)


def _claim(env: Env, scene: Scene, sight: _Sight, record: Invocation, gate: tuple[Compare, ...]) -> Flow[Hold | None]:
    nonce = env.nonce()
    change, running = t.claim(
        scene, sight.own, sight.invocation, record, gate, nonce, env.worker, env.lease(), env.clock()
    )
    answer = yield Commit(change)
    token = answer.revision
    if not answer.ok:
        # After a doubt, an earlier try of the same claim may have taken effect: only its nonce tells.
        [own] = yield Get(((sight.own.key, Owner),))
        if own.record is None:
            # Nobody has it: the worker's lease may be gone, or things have moved on. Whoever comes next sees.
            raise HandBack
        if not answer.doubtful or own.record.nonce != nonce:
            return None
        token = own.created
    map_read = sight.map if sight.is_reduce else Read(sight.map.key, running, sight.map.created, token)
    return Hold(scene, running, token, nonce, map_read, sight.seal)


def run(env: Env, hold: Hold) -> Flow[None]:
    """Runs a claimed invocation to the commit of its outcome. A claim that comes to nothing is let go."""
    held: Hold | None = hold
    while held is not None:
        try:
            flow = run_reduce(env, held) if held.record.direction == "reduce" else run_map(env, held)
            following: Hold | None = yield from flow
        except (HandBack, StoreUnavailable, FilesUnavailable):
            # Neither the handler's fault nor the end of a worker.
            answer = yield Commit(t.hand_back(held))
            if not answer.ok:
                yield Commit(t.abandon(held.own, held.token))
            raise
        except (CorruptRecord, InvalidTransaction) as error:
            # It would be the same at every other try.
            following = None
            yield from fail_or_retry(env, held, failed(type(error).__name__, str(error)), is_final=True)
        except Exception:
            # The lease of a worker that lives on would keep the invocation from everybody else.
            yield Commit(t.abandon(held.own, held.token))
            raise
        held = following
