"""How many children of a parent are on their way at once, and that each is sent."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from mr.engine import ops
from mr.engine.join import after_child, wake_children
from mr.engine.transitions import Scene
from mr.engine.window import Window, window
from mr.handlers.turns import Turns
from mr.model import ids
from mr.model.entities import Job, Request, Step
from mr.model.records import Manifest, Mark, Seal
from mr.model.workers import Registration
from mr.worker.durations import Durations
from mr.worker.pace import Pace

STEP = Step(
    step_name="s",
    workflow_name="w",
    description="",
    map_handler_name="map",
    combine_handler_name="",
    reduce_handler_name="reduce",
    timeout_s=0,
    max_attempts=1,
    partitions=1,
    max_failed_children=0,
)
REQUEST = Request(
    request_id="r",
    workflow_name="w",
    job_name="j",
    invocation_id="r.0",
    context={},
    is_blocking=False,
    is_done=False,
    failed_invocation_id=None,
    state="running",
    manifest="m",
    created_timestamp=0,
    ended_timestamp=None,
)


def scene(step: Step = STEP) -> Scene:
    manifest = Manifest(
        workflow_name="w",
        jobs={"j": Job(job_name="j", workflow_name="w", description="", initial_step_name="s")},
        steps={"s": step},
        handlers={"map": "1", "reduce": "2"},
        capabilities={"map": "gpu", "reduce": "general"},
    )
    return Scene(REQUEST, 1, manifest)


def env(**changes: Any) -> ops.Env:
    base = ops.Env(ops.Settings(), lambda: 0.0, lambda: "n", lambda: 0.0, runners=2)
    return replace(base, **changes)


def seal(children: int, size: int, shards: int) -> Seal:
    return Seal(
        nonce="n",
        step_name="s",
        children=children,
        bounds=[0, *range(7, children, 7)],
        epoch=0,
        tolerated=0,
        shielded=False,
        open=True,
        shards=shards,
        window=size,
    )


def worker(name: str, runners: int, *capabilities: str) -> Registration:
    return Registration(
        worker_name=name,
        host="h",
        pid=1,
        version="",
        capabilities=list(capabilities),
        runners=runners,
        channel="c",
        started_timestamp=0,
        registered_timestamp=0,
    )


def opened(
    at_hand: float | None,
    workers: tuple[Registration, ...] = (),
    children: int = 10_000,
    above: Seal | None = None,
    step: Step = STEP,
    **changes: Any,
) -> Window:
    """The window that a flow comes to where these workers are registered."""
    flow = window(env(at_hand=lambda workflow, handlers: at_hand, **changes), scene(step), "s", children, above)
    try:
        op = next(flow)
        assert isinstance(op, ops.List) and op.prefix == "worker/w/"
        flow.send([ops.Read(one.worker_name, one) for one in workers])
    except StopIteration as stop:
        found: Window = stop.value
        return found
    raise AssertionError("it asked for more")


def test_short_children_are_sent_far_ahead_of_the_runners() -> None:
    assert opened(32) == Window(64, 32)


def test_of_long_children_hardly_more_are_sent_than_run() -> None:
    assert opened(1) == Window(3, 1)


def test_all_live_workers_that_have_the_capability_count() -> None:
    workers = (worker("a", 2, "gpu"), worker("b", 20, "general"), worker("c", 8, "general", "gpu"))
    assert opened(1, workers).size == 12
    assert opened(32, workers).size == 320


def test_of_children_that_never_ran_here_fewer_are_sent_than_of_short_ones() -> None:
    assert 2 * 2 < opened(None).size < opened(32).size


def test_children_that_wait_for_their_next_attempt_leave_room_for_others() -> None:
    patient = msgspec.structs.replace(STEP, max_attempts=3)
    assert opened(1, step=patient).size == 8


def test_what_the_window_above_has_room_for_is_shared_by_siblings() -> None:
    assert opened(32, above=seal(4, 64, 32)).size == 20, "16, rounded up to whole shards"
    assert opened(32, above=seal(1000, 64, 32)).size == 3, "not less than keeps the runners busy"


def test_no_window_is_wider_than_the_limit_or_the_parent() -> None:
    assert opened(32, (worker("a", 1000, "gpu"),)).size == 1024, "of 1000, rounded up to whole shards"
    assert opened(32, children=10).size == 12


def test_a_narrow_parent_asks_for_no_workers() -> None:
    with pytest.raises(StopIteration) as stop:
        next(window(env(), scene(), "s", 2, None))
    assert stop.value.value == Window(2, 1)


# --- what is sent ----------------------------------------------------------------------------------------------------


def slots(op: Any) -> list[int]:
    assert isinstance(op, ops.Publish)
    return [ids.slot_of(wake.invocation_id) for wake in op.wakes]


def sent_by(flow: Any, count: int = 0) -> list[int]:
    """The slots that a flow sends; it is told that so many of the shard have ended, and that nothing else is there."""
    found: list[int] = []
    answer: Any = None
    try:
        while True:
            op = flow.send(answer)
            answer = None
            if isinstance(op, ops.Publish):
                found += slots(op)
            elif isinstance(op, ops.Get):
                is_count = len(op.wants) == 1
                answer = [
                    ops.Read(key, Mark() if is_count else None, version=count if is_count else 0) for key, _ in op.wants
                ]
    except StopIteration:
        return found


@pytest.mark.parametrize("children", [1, 2, 5, 63, 64, 65, 700])
@pytest.mark.parametrize(("size", "shards"), [(1, 1), (3, 1), (8, 2), (64, 32), (96, 32)])
def test_every_child_is_sent_once_in_whatever_order_they_end(children: int, size: int, shards: int) -> None:
    rng = random.Random(children * size)
    sealed, around, here = seal(children, size, shards), env(), scene()
    sent = sent_by(wake_children(around, here, "r.0", sealed, range(min(children, size))))
    running, ended, seen = list(sent), Counter[int](), Counter(sent)
    while running:
        assert len(running) <= size
        slot = running.pop(rng.randrange(len(running)))
        ended[slot % shards] += 1
        flow = after_child(around, here, ids.child_of("r.0", "n", slot), sealed, (ended[slot % shards],))
        following = sent_by(flow)
        running += following
        seen.update(following)
    assert seen == Counter(range(children))


def test_a_child_that_never_ends_keeps_its_own_place_only() -> None:
    sealed, around, here = seal(700, 64, 32), env(), scene()
    ended = [ids.child_of("r.0", "n", slot) for slot in range(32, 700, 32)]
    sent = [sent_by(after_child(around, here, child, sealed, (n,))) for n, child in enumerate(ended, start=1)]
    assert [slot for one in sent for slot in one] == list(range(64, 700, 32)), "slot 0 still runs"


def test_where_the_count_was_not_told_all_places_of_the_shard_are_sent_again() -> None:
    flow = after_child(env(), scene(), ids.child_of("r.0", "n", 0), seal(700, 64, 32), ())
    assert sent_by(flow, count=3) == [3 * 32, 4 * 32]


def test_messages_name_the_chunk_of_their_child() -> None:
    flow = wake_children(env(), scene(), "r.0", seal(20, 20, 1), (0, 6, 7, 19))
    assert [wake.chunk for wake in next(flow).wakes] == [0, 0, 1, 2]  # type: ignore[union-attr]


# --- turns and durations ----------------------------------------------------------------------------------------------


def test_a_newcomer_is_next_behind_one_of_each_other() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1"):
        turns.add(item[0], item)
    assert turns.take() == "a1"
    turns.add("c", "c1")
    assert [turns.take() for _ in range(4)] == ["b1", "a2", "c1", "a3"]
    with pytest.raises(IndexError):
        turns.take()


def test_what_waits_can_be_looked_at_and_forgotten() -> None:
    turns: Turns[int] = Turns()
    for number in range(5):
        turns.add(number % 2, number)
    assert (len(turns), sorted(turns)) == (5, [0, 1, 2, 3, 4])
    turns.clear()
    assert (len(turns), list(turns)) == (0, [])


def test_durations_follow_the_newest_runs() -> None:
    durations = Durations()
    assert durations.of("w", ("map", "reduce")) is None
    durations.learn("w", "map", 1.0)
    assert durations.of("w", ("map", "reduce")) == 1.0, "the reducer may never run here"
    durations.learn("w", "reduce", 0.5)
    assert durations.of("w", ("map", "reduce")) == 0.75
    assert durations.of("other", ("map", "reduce")) is None
    for _ in range(50):
        durations.learn("w", "map", 0.001)
    assert durations.of("w", ("map",)) == pytest.approx(0.001, abs=0.0005)


def test_a_worker_has_more_at_hand_the_shorter_runs_are_and_the_longer_what_is_done_around_them() -> None:
    pace = Pace(2)
    assert [pace.at_hand(run_s) for run_s in (0.0005, 0.005, 0.05, 10.0)] == [32, 8, 1, 1]
    for _ in range(100):
        pace.took(0.05)
    assert pace.at_hand(0.05) == pytest.approx(2, abs=0.01)
    assert pace.at_hand(10.0) == 1, "nobody hands back what was claimed too early"
