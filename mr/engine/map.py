"""Running a mapper: its children are staged as they come and sealed at its end, or its pairs are collected."""

from __future__ import annotations

import difflib
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from mr.engine import transitions as t
from mr.engine.data import Gathering, file_name, join, read
from mr.engine.finish import abandon, clip, fail_or_retry, failed, input_is_missing, lost_too_often
from mr.engine.join import wake_children, wake_reduces
from mr.engine.ops import Change, Commit, Committed, Env, Flow, Get, NextEvent, Read, Start, Stop
from mr.engine.tell import tell
from mr.engine.transitions import Hold
from mr.engine.window import window
from mr.handlers.protocol import Children, Direction, Failed, Finished, Output, Task, Told
from mr.model import ids, keys
from mr.model.entities import Invocation
from mr.model.records import Dataset, Owner, Seal, Session


class _Chunks:
    """The children of one attempt, staged a chunk at a time so that no more than one is held."""

    def __init__(self, env: Env, hold: Hold) -> None:
        self._env, self._hold = env, hold
        self._pairs: list[bytes] = []
        self._size = 0
        self.bounds: list[int] = []
        self.children = 0

    def add(self, pairs: Sequence[bytes]) -> Flow[bool]:
        """False: the claim does not stand any more."""
        settings = self._env.settings
        for pair in pairs:
            self._pairs.append(pair)
            self._size += len(pair)
            if len(self._pairs) >= settings.chunk_items or self._size >= settings.chunk_bytes:
                staged = yield from self.flush()
                if not staged:
                    return False
        return True

    def flush(self) -> Flow[bool]:
        if not self._pairs:
            return True
        hold, number = self._hold, len(self.bounds)
        name = file_name(hold.scene.workflow, hold.scene.id, hold.id, hold.nonce, f"chunk-{number}")
        gathering = Gathering(self._env, name)
        yield from gathering.add(b"[" + b",".join(self._pairs) + b"]", len(self._pairs))
        dataset = yield from gathering.dataset()
        self.bounds.append(self.children)
        self.children += len(self._pairs)
        self._pairs, self._size = [], 0
        answer = yield Commit(t.stage(hold, number, dataset))
        return bool(answer.ok or answer.doubtful)


def run_map(env: Env, hold: Hold) -> Flow[Hold | None]:
    """Runs the mapper of a claimed map invocation. Answers with a hold on its reduce where that was claimed with it."""
    if lost_too_often(env, hold):
        yield from fail_or_retry(env, hold, None)
        return None
    items = yield from _arguments(hold)
    if items is None:
        yield from input_is_missing(env, hold)
        return None
    yield _start(hold, items)
    return (yield from _listen(env, hold))


def _arguments(hold: Hold) -> Flow[list[bytes] | None]:
    scene = hold.scene
    if hold.seal is None or hold.seal.record is None:
        [arguments] = yield Get(((keys.dataset(scene.workflow, scene.id, hold.id, "arguments"), Dataset),))
        return (yield from read(arguments.record))
    sealed, slot = hold.seal.record, ids.slot_of(hold.id)
    number = bisect_right(sealed.bounds, slot) - 1
    parent = ids.parent_of(hold.id)
    [chunk] = yield Get(((keys.chunk(scene.workflow, scene.id, parent, sealed.nonce, number), Dataset),))
    pieces = yield from read(chunk.record)
    if pieces is None:
        return None
    pairs = msgspec.json.decode(join(pieces), type=list[msgspec.Raw])
    return [b"[" + bytes(pairs[slot - sealed.bounds[number]]) + b"]"]


def _start(hold: Hold, items: list[bytes]) -> Start:
    scene, record = hold.scene, hold.record
    step = scene.step(record)
    combiner = step.combine_handler_name
    versions = [scene.manifest.handlers[name] for name in (step.map_handler_name, combiner) if name]
    task = Task(
        task_id=0,
        kind="map",
        handler_name=step.map_handler_name,
        handler_version=versions[0],
        handler=None,
        combiner_version=versions[1] if combiner else "",
        workflow_name=scene.workflow,
        request_id=scene.id,
        invocation_id=hold.id,
        attempt=record.attempt,
        wall_s=step.timeout_s,
    )
    return Start(task, tuple(versions), items)


def _listen(env: Env, hold: Hold) -> Flow[Hold | None]:
    """Takes the events of the running mapper, to the commit of its outcome."""
    scene = hold.scene
    step_name = ""
    chunks = _Chunks(env, hold)
    combined = Gathering(env, file_name(scene.workflow, scene.id, hold.id, hold.nonce, "post_combine"))
    messages = itertools.count()
    while True:
        event = yield NextEvent()
        if isinstance(event, Children):
            if not (yield from chunks.add(event.pairs)):
                yield from _give_up(hold)
                return None
        elif isinstance(event, Output):
            yield from combined.add(event.pairs, event.count)
        elif isinstance(event, Told):
            yield from tell(env, hold, next(messages), event)
        elif isinstance(event, Direction):
            step_name = event.step_name
            problem = _problem(env, hold, step_name)
            if problem is not None:
                yield Stop()
                yield from fail_or_retry(env, hold, problem, is_final=True)
                return None
        elif isinstance(event, Failed):
            yield from fail_or_retry(env, hold, event)
            return None
        else:
            break
    if len(event.session) > env.settings.session_bytes:
        message = f"The session has {len(event.session)} bytes; at most {env.settings.session_bytes} are kept."
        yield from fail_or_retry(env, hold, failed("HandlerContractError", message), is_final=True)
        return None
    if step_name:
        if not (yield from chunks.flush()):
            yield from abandon(hold)
            return None
        return (yield from _seal(env, hold, step_name, chunks, event))
    return (yield from _collect(env, hold, combined, event))


def _give_up(hold: Hold) -> Flow[None]:
    yield Stop()
    yield from abandon(hold)


def _problem(env: Env, hold: Hold, step_name: str) -> Failed | None:
    """Why the mapper must not map to that step, if so."""
    if not step_name:
        return None
    if step_name not in hold.scene.manifest.steps:
        known = sorted(hold.scene.manifest.steps)
        nearest = difflib.get_close_matches(step_name, known, 1)
        guess = f" Did you mean {nearest[0]!r}?" if nearest else ""
        kind = "StepNotFound"
        message = f"There is no step {step_name!r} to map to; the workflow has: {', '.join(known)}.{guess}"
    elif ids.depth_of(hold.id) + 1 >= env.settings.max_depth:
        kind = "HandlerContractError"
        message = (
            f"Steps are nested {env.settings.max_depth} deep already (MR_MAX_DEPTH): does {step_name!r} map to itself?"
        )
    else:
        return None
    return failed(kind, message)


def _session(event: Finished) -> Session | None:
    return None if event.session in (b"", b"{}") else Session(values=msgspec.Raw(event.session))


def _commit(env: Env, hold: Hold, change: Change, after: Invocation) -> Flow[tuple[Committed, Hold | None]]:
    """Commits what makes the reduces runnable, claiming the only one of them with it where this worker may run it."""
    scene = hold.scene
    step = scene.step(after)
    capability = scene.manifest.capabilities[step.reduce_handler_name]
    if after.state != "reducing" or after.partitions != 1 or capability not in env.capabilities:
        answer: Committed = yield Commit(change)
        return answer, None
    nonce = env.nonce()
    fused, running = t.carry_on(change, scene, after, nonce, env.worker, env.lease(), env.clock())
    answer = yield Commit(fused)
    token = answer.revision
    if not answer.ok:
        if not answer.doubtful:
            return answer, None
        [own] = yield Get(((scene.own(running.invocation_id), Owner),))
        if own.record is None or own.record.nonce != nonce:
            return answer, None
        token = own.created
    map_read = Read(scene.key(hold.id), after, 0, token)
    return Committed(True, token, answer.versions), Hold(scene, running, token, nonce, map_read, hold.seal)


def _collect(env: Env, hold: Hold, combined: Gathering, event: Finished) -> Flow[Hold | None]:
    post_combine = yield from combined.dataset()
    change, collected = t.collect(hold, post_combine, _session(event), clip(env, event))
    answer, following = yield from _commit(env, hold, change, collected)
    if following is not None:
        following = replace(following, carried=(post_combine, event.session or b"{}"))
    if not answer.ok:
        # After a doubtful refusal it may have been collected all the same: then the sweep wakes its reduces.
        yield from abandon(hold)
    elif following is None:
        yield from wake_reduces(hold.scene, collected)
    return following


def _seal(env: Env, hold: Hold, step_name: str, chunks: _Chunks, event: Finished) -> Flow[Hold | None]:
    scene = hold.scene
    above = None if hold.seal is None else hold.seal.record
    size, shards = yield from window(env, scene, step_name, chunks.children, above)
    change, mapped, sealed = t.seal(
        hold, step_name, chunks.bounds, chunks.children, shards, size, _session(event), clip(env, event)
    )
    answer, following = yield from _commit(env, hold, change, mapped)
    if not answer.ok:
        # Children are sent only after it is certain that this very seal won.
        [won] = yield Get(((scene.seal(hold.id), Seal),))
        if not answer.doubtful or won.record is None or won.record.nonce != hold.nonce:
            yield from abandon(hold)
            return None
    if chunks.children:
        yield from wake_children(env, scene, hold.id, sealed, range(min(chunks.children, size)))
    elif following is None:
        yield from wake_reduces(scene, mapped)
    return following
