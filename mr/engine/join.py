"""Joining: children are counted by the versions of their parent's count keys, and the last one releases it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from mr.engine import transitions as t
from mr.engine.ops import Commit, Env, Flow, Get, Publish, Read, Wake
from mr.engine.transitions import Scene
from mr.model import ids, keys
from mr.model.entities import Failure, Invocation, Record
from mr.model.records import Done, FailedChild, Mark, Seal


def wake(scene: Scene, step_name: str, invocation_id: str, chunk: int = 0, delay: float = 0.0) -> Wake:
    """The message for an invocation, addressed to those who have the capability that its handler requires."""
    step = scene.manifest.steps[step_name]
    is_reduce = ids.is_reduce(invocation_id)
    handler = step.reduce_handler_name if is_reduce else step.map_handler_name
    capability = scene.manifest.capabilities[handler]
    direction = "reduce" if is_reduce else "map"
    return Wake(scene.workflow, scene.id, invocation_id, direction, capability, chunk, delay)


def wake_reduces(scene: Scene, record: Invocation) -> Flow[None]:
    reduces = (ids.reduce_of(record.invocation_id, j) for j in range(record.partitions))
    yield Publish(tuple(wake(scene, record.step_name, one) for one in reduces))


def wake_children(env: Env, scene: Scene, parent_id: str, sealed: Seal, slots: Iterable[int]) -> Flow[None]:
    wakes = []
    for slot in slots:
        child = ids.child_of(parent_id, sealed.nonce, slot)
        wakes.append(wake(scene, sealed.step_name, child, bisect_right(sealed.bounds, slot) - 1))
    for start in range(0, len(wakes), env.settings.page):
        yield Publish(tuple(wakes[start : start + env.settings.page]))


def after_child(
    env: Env, scene: Scene, child_id: str, sealed: Seal, versions: tuple[int, ...], has_failed: bool = False
) -> Flow[None]:
    """A child has ended: the next of its shard is sent, and its parent released if that was the last one.

    ``versions`` are those of the change that ended it, the first being its count's; empty where they are not known.
    """
    parent_id, shard = ids.parent_of(child_id), ids.slot_of(child_id) % sealed.shards
    places = sealed.window // sealed.shards
    if sealed.epoch:
        yield from _wake_next_again(env, scene, child_id, sealed, places)
    elif versions:
        # So many of the shard have ended, and nobody else was told this number: what it sends, nobody else does.
        yield from _wake_shares(env, scene, parent_id, sealed, shard, versions[0] + places - 1, 1)
    else:
        [count] = yield Get(((keys.count(scene.workflow, scene.id, parent_id, sealed.epoch, shard), Mark),))
        yield from _wake_shares(env, scene, parent_id, sealed, shard, count.version, places)
    # While children of one's own shard are missing, somebody else will be the last.
    if versions and not has_failed and versions[0] < sealed.needed(shard):
        return
    yield from release(env, scene, parent_id, sealed.epoch)


def _wake_shares(
    env: Env, scene: Scene, parent_id: str, sealed: Seal, shard: int, first: int, number: int
) -> Flow[None]:
    """So many children of a shard, by their places in it."""
    shares = range(shard, sealed.children, sealed.shards)
    yield from wake_children(env, scene, parent_id, sealed, shares[first : first + number])


def _wake_next_again(env: Env, scene: Scene, child_id: str, sealed: Seal, places: int) -> Flow[None]:
    """After a redrive those have no place that it kept: what ended before this run began is passed over.

    The child that is so many ``places`` behind is sent by nobody else.
    """
    parent_id, slot = ids.parent_of(child_id), ids.slot_of(child_id)
    shares = range(slot + sealed.shards, sealed.children, sealed.shards)
    for start in range(0, len(shares), 100):
        some = shares[start : start + 100]
        wants = tuple((scene.done(ids.child_of(parent_id, sealed.nonce, one)), Mark) for one in some)
        for one, done in zip(some, (yield Get(wants)), strict=True):
            places -= done.record is None or done.created > scene.live
            if places == 0:
                if done.record is None:
                    yield from wake_children(env, scene, parent_id, sealed, [one])
                return


class _Join(NamedTuple):
    """A parent and its children's counts, all of one revision: failures are never older than the count."""

    parent: Read[Invocation]
    sealed: Read[Seal]
    seal_above: Read[Seal] | None
    ended: int
    failed: int
    failures: list[FailedChild]


def read_join(env: Env, scene: Scene, parent_id: str, epoch: int) -> Flow[_Join]:
    workflow, request_id, shards = scene.workflow, scene.id, env.settings.shards
    wants: list[tuple[str, type[Record]]] = [(scene.key(parent_id), Invocation), (scene.seal(parent_id), Seal)]
    wants += [(keys.count(workflow, request_id, parent_id, epoch, shard), Mark) for shard in range(shards)]
    wants += [(keys.failed(workflow, request_id, parent_id, epoch, shard), FailedChild) for shard in range(shards)]
    is_root = ids.is_root(parent_id)
    if not is_root:
        wants.append((scene.seal(ids.parent_of(parent_id)), Seal))
    reads = yield Get(tuple(wants))
    counts, failed = reads[2 : 2 + shards], reads[2 + shards : 2 + 2 * shards]
    return _Join(
        parent=reads[0],
        sealed=reads[1],
        seal_above=None if is_root else reads[-1],
        ended=sum(read.version for read in counts),
        failed=sum(read.version for read in failed),
        failures=[read.record for read in failed if read.record is not None],
    )


def release(env: Env, scene: Scene, parent_id: str, epoch: int) -> Flow[int]:
    """Looks whether a waiting parent's children have all ended, or too many failed, and commits what follows.

    Answers how many have ended.
    """
    join = yield from read_join(env, scene, parent_id, epoch)
    parent, sealed = join.parent.record, join.sealed.record
    if parent is None or sealed is None or parent.state != "waiting" or parent.epoch != epoch:
        return 0
    if join.failed > sealed.tolerated:
        yield from _exceed(env, scene, join)
    elif join.ended == parent.need:
        change, reducing = t.release(scene, join.parent)
        answer = yield Commit(change)
        if answer.ok:
            yield from wake_reduces(scene, reducing)
    return join.ended


def _exceed(env: Env, scene: Scene, join: _Join) -> Flow[None]:
    parent, sealed = join.parent.record, join.sealed.record
    assert parent is not None
    assert sealed is not None
    above = join.seal_above
    if above is not None and (above.record is None or not above.record.open):
        return
    one = join.failures[0]
    failure = Failure(
        exception_type=one.exception_type,
        exception_message=(
            f"{join.failed} of {sealed.children} children failed and {sealed.tolerated} may; "
            f"one is {one.invocation_id}: {one.exception_message}"
        ),
        attempt=parent.attempt,
    )
    change, is_tolerated = t.exceed(scene, join.parent, join.sealed, above, failure, env.nonce(), env.clock())
    answer = yield Commit(change)
    if answer.ok and is_tolerated and above is not None and above.record is not None:
        yield from after_child(env, scene, parent.invocation_id, above.record, answer.versions, has_failed=True)


def completion(env: Env, scene: Scene, map_id: str) -> Flow[None]:
    """Completes a map invocation of several partitions once all of them are reduced."""
    wants: list[tuple[str, type[Record]]] = [(scene.key(map_id), Invocation)]
    is_root = ids.is_root(map_id)
    if not is_root:
        wants.append((scene.seal(ids.parent_of(map_id)), Seal))
    reads = yield Get(tuple(wants))
    map_read: Read[Invocation] = reads[0]
    above: Read[Seal] | None = None if is_root else reads[1]
    record = map_read.record
    if record is None or record.state != "reducing" or record.partitions < 2:
        return
    if above is not None and (above.record is None or not above.record.open):
        return
    parts: tuple[tuple[str, type[Record]], ...] = tuple(
        (scene.done(ids.reduce_of(map_id, j)), Done) for j in range(record.partitions)
    )
    reads = yield Get(parts)
    if not all(read.record is not None and read.record.ok for read in reads):
        return
    done = Done(ok=True, nonce=env.nonce(), partitions=record.partitions)
    answer = yield Commit(t.complete(scene, map_read, above, done, env.clock()))
    if answer.ok and above is not None and above.record is not None:
        yield from after_child(env, scene, map_id, above.record, answer.versions)
