"""Running a reducer over the combined pairs of its map, or over the reduced pairs of its map's children."""

from __future__ import annotations

import itertools

from mr.engine import transitions as t
from mr.engine.data import Gathering, file_name, outputs_of, read
from mr.engine.finish import abandon, clip, fail_or_retry, input_is_missing, lost_too_often
from mr.engine.join import after_child, completion
from mr.engine.ops import Commit, Env, Flow, Get, NextEvent, Start
from mr.engine.tell import tell
from mr.engine.transitions import Hold
from mr.handlers.protocol import Failed, Finished, Output, Task, Told
from mr.model import ids, keys
from mr.model.records import Dataset, Done, Seal, Session


def run_reduce(env: Env, hold: Hold) -> Flow[Hold | None]:
    """Runs a claimed reduce invocation to the commit of its outcome."""
    if lost_too_often(env, hold):
        yield from fail_or_retry(env, hold, None)
        return None
    start = yield from _prepare(env, hold)
    if start is None:
        yield from input_is_missing(env, hold)
        return None
    yield start
    scene = hold.scene
    reduced = Gathering(env, file_name(scene.workflow, scene.id, hold.id, hold.nonce, "post_reduce"))
    messages = itertools.count()
    while True:
        event = yield NextEvent()
        if isinstance(event, Output):
            yield from reduced.add(event.pairs, event.count)
        elif isinstance(event, Told):
            yield from tell(env, hold, next(messages), event)
        elif isinstance(event, Failed):
            yield from fail_or_retry(env, hold, event)
            return None
        elif isinstance(event, Finished):
            break
    dataset = yield from reduced.dataset()
    if hold.map.record is not None and hold.map.record.partitions > 1:
        yield from _part(env, hold, dataset, event)
    else:
        yield from _complete(env, hold, dataset, event)
    return None


def _inputs(hold: Hold, map_id: str) -> Flow[tuple[list[bytes] | None, bytes]]:
    """What there is to reduce, in pieces (None: it is not there), and the session of the map."""
    scene = hold.scene
    if hold.carried is not None:
        dataset, values = hold.carried
        return (yield from read(dataset)), values
    sealed, combined, session = yield Get(
        (
            (scene.seal(map_id), Seal),
            (keys.dataset(scene.workflow, scene.id, map_id, "post_combine"), Dataset),
            (keys.session(scene.workflow, scene.id, map_id), Session),
        )
    )
    values = b"{}" if session.record is None else bytes(session.record.values)
    if sealed.record is None:
        return (yield from read(combined.record)), values
    children = [ids.child_of(map_id, sealed.record.nonce, slot) for slot in range(sealed.record.children)]
    return (yield from outputs_of(scene, children, 100)), values


def _prepare(env: Env, hold: Hold) -> Flow[Start | None]:
    scene, record, above = hold.scene, hold.record, hold.map.record
    assert above is not None
    items, session = yield from _inputs(hold, above.invocation_id)
    if items is None:
        return None
    step = scene.step(record)
    version = scene.manifest.handlers[step.reduce_handler_name]
    task = Task(
        task_id=0,
        kind="reduce",
        handler_name=step.reduce_handler_name,
        handler_version=version,
        handler=None,
        workflow_name=scene.workflow,
        request_id=scene.id,
        invocation_id=hold.id,
        attempt=record.attempt,
        session=session,
        partition=ids.partition_of(hold.id),
        partitions=above.partitions,
        wall_s=step.timeout_s,
    )
    return Start(task, (version,), items)


def _part(env: Env, hold: Hold, dataset: Dataset, event: Finished) -> Flow[None]:
    answer = yield Commit(t.part(hold, dataset, clip(env, event), env.clock()))
    if not answer.ok:
        # After a doubtful refusal the part may be there: then the sweep completes.
        yield from abandon(hold)
        return
    yield from completion(env, hold.scene, ids.map_of(hold.id))


def _complete(env: Env, hold: Hold, dataset: Dataset, event: Finished) -> Flow[None]:
    scene = hold.scene
    done = Done(ok=True, nonce=hold.nonce, output=dataset)
    change = t.complete(scene, hold.map, hold.seal, done, env.clock(), hold=hold, output=clip(env, event))
    answer = yield Commit(change)
    map_id = ids.map_of(hold.id)
    if not answer.ok:
        [written] = yield Get(((scene.done(map_id), Done),))
        if not answer.doubtful or written.record is None or written.record.nonce != hold.nonce:
            yield from abandon(hold)
            return
    if hold.seal is not None and hold.seal.record is not None:
        yield from after_child(env, scene, map_id, hold.seal.record, answer.versions)
