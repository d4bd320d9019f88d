"""How far a request is, counted from what the engine left in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from trace_requests import Story, failed, put

from mr.kv.base import Put, Txn
from mr.kv.memory import MemoryStore
from mr.model import keys
from mr.model.entities import Job, Request, Step, encode
from mr.model.progress import Counts, Progress
from mr.model.records import Manifest, Mark, Owner
from mr.web import looks
from mr.web.looks import Looker

MANIFEST = Manifest(
    workflow_name="shop",
    jobs={"revenue": Job(job_name="revenue", workflow_name="shop", description="", initial_step_name="all")},
    steps={},
    handlers={},
    capabilities={},
)

STEP = Step(
    step_name="all",
    workflow_name="shop",
    description="",
    map_handler_name="orders",
    combine_handler_name="",
    reduce_handler_name="add",
    timeout_s=0,
    max_attempts=1,
    partitions=1,
    max_failed_children=0,
)


class Watched:
    """A request in a store, which goes on as it is told to."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.story = Story(self.store)
        self.at = (self.story.workflow, self.story.id)
        self.story.records[keys.manifest(self.story.workflow, "0")] = MANIFEST
        self.story.tell()

    def request(self, **changes: Any) -> Request:
        self.story.request(**changes)
        self.story.tell()
        found = self.story.records[keys.request(*self.at)]
        assert isinstance(found, Request)
        return found

    def seal(self, parent: str, step: str, children: int, **changes: Any) -> None:
        self.story.seal(parent, step, children)
        key = keys.seal(*self.at, parent)
        self.story.records[key] = msgspec.structs.replace(self.story.records[key], **changes)
        self.story.tell()

    def end(self, parent: str, shards: Sequence[int], epoch: int = 0, kind: Any = keys.count) -> None:
        """A child of each of these shards ends."""
        for shard in shards:
            self.store.commit([Txn(puts=(Put(kind(*self.at, parent, epoch, shard), encode(Mark())),))])

    def own(self, *invocation_ids: str) -> None:
        put(self.store, {keys.own(*self.at, one): Owner(nonce="n", worker="w") for one in invocation_ids})

    def looker(self) -> Looker:
        return Looker(self.store, self.request(state="running"))

    def look(self) -> Progress:
        return self.looker().look()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def steps_of(progress: Progress) -> dict[str, tuple[int, int, int]]:
    return {step.step_name: (step.sealed, step.ended, step.failed) for step in progress.steps}


def test_before_anything_is_known_there_is_the_root(watched: Watched) -> None:
    found = watched.look()
    assert (found.state, found.has_ended, found.is_whole) == ("running", False, True)
    assert found.counts == Counts(sealed=1, ready=1, running=0, ended=0, failed=0)
    assert steps_of(found) == {"all": (1, 0, 0)}


def test_children_are_counted_by_the_versions_of_their_counters(watched: Watched) -> None:
    root = watched.story.root
    watched.seal(root, "part", 100)
    watched.end(root, [0, 0, 0, 31])
    watched.end(root, [31], kind=keys.failed)
    watched.own(watched.story.child(root, 7), watched.story.child(root, 8))
    found = watched.look()
    # The root waits for its children: it is none of the others.
    assert found.counts == Counts(sealed=101, ready=94, running=2, ended=4, failed=1)
    assert steps_of(found) == {"all": (1, 0, 0), "part": (100, 4, 1)}


def test_a_deep_tree_is_counted_by_step(watched: Watched) -> None:
    root = watched.story.root
    watched.seal(root, "part", 3)
    for slot in range(2):
        watched.seal(watched.story.child(root, slot), "piece", 10)
    watched.end(watched.story.child(root, 0), range(10))
    watched.end(watched.story.child(root, 1), range(4))
    watched.end(root, [0])
    found = watched.look()
    assert steps_of(found) == {"all": (1, 0, 0), "part": (3, 1, 0), "piece": (20, 14, 0)}
    # Root and second part wait, the third part and six pieces are to be begun.
    assert found.counts == Counts(sealed=24, ready=7, running=0, ended=15, failed=0)


def test_of_a_very_deep_tree_the_roots_children_are_counted(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "FAN_OUTS", 2)
    root = watched.story.root
    watched.seal(root, "part", 3)
    for slot in range(2):
        watched.seal(watched.story.child(root, slot), "piece", 10)
        watched.end(watched.story.child(root, slot), range(10))
    watched.end(root, [0, 1])
    found = watched.look()
    assert not found.is_whole
    assert steps_of(found) == {"all": (1, 0, 0), "part": (3, 2, 0)}
    assert found.counts.ended == 2


def test_children_that_a_redrive_kept_have_ended(watched: Watched) -> None:
    root = watched.story.root
    watched.story.invocation(root, "all", "waiting", epoch=1, need=2)
    watched.seal(root, "part", 10, epoch=1)
    watched.end(root, range(10), epoch=0)
    watched.end(root, [4], epoch=1)
    assert steps_of(watched.look())["part"] == (10, 9, 0)


def test_children_of_a_parent_that_failed_are_not_waited_for(watched: Watched) -> None:
    root = watched.story.root
    watched.seal(root, "part", 2)
    watched.seal(watched.story.child(root, 0), "piece", 10, open=False)
    watched.end(watched.story.child(root, 0), range(3))
    watched.end(root, [0])
    watched.end(root, [0], kind=keys.failed)
    found = watched.look()
    assert steps_of(found) == {"all": (1, 0, 0), "part": (2, 1, 1), "piece": (3, 3, 0)}
    assert found.counts.ready == 1


def test_a_failed_request_says_why_and_where(watched: Watched) -> None:
    root = watched.story.root
    child = watched.story.child(root, 0)
    watched.seal(root, "part", 1)
    watched.story.invocation(root, "all", "waiting")
    watched.story.invocation(child, "part", "failed", error=failed("division by zero"))
    found = Looker(watched.store, watched.request(state="failed", failed_invocation_id=child)).look()
    assert (found.state, found.has_ended, found.elapsed_s) == ("failed", True, 2.0)
    assert found.error is not None
    assert found.error.exception_type == "ZeroDivisionError"
    assert (found.error.place, found.error.invocation_id) == ("shop/orders.py:5", child)
    assert found.counts.running == found.counts.ready == 0


def test_what_was_removed_has_ended(watched: Watched) -> None:
    looker = watched.looker()
    before = looker.look()
    watched.store.delete_prefix(keys.request(*watched.at))
    found = looker.look()
    assert (found.state, found.has_ended) == ("expired", True)
    assert found.counts == before.counts


def test_the_rate_is_that_of_late_and_at_the_end_that_of_all(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("mr.web.looks.time.monotonic", lambda: now[0])
    watched.seal(watched.story.root, "part", 100)
    looker = watched.looker()
    assert looker.look().rate is None
    now[0] += 2
    watched.end(watched.story.root, range(10))
    assert looker.look().rate == 5.0
    now[0] += 100
    assert looker.look().rate == 0.0
    ended = Looker(watched.store, watched.request(state="done")).look()
    assert ended.rate == 5.5


def test_looks_come_slower_while_nothing_happens(watched: Watched) -> None:
    watched.seal(watched.story.root, "part", 10)
    looker = watched.looker()
    first = looker.look(), looker.pause_s
    pauses = [(looker.look(), looker.pause_s)[1] for _ in range(20)]
    assert first[1] == looks.FASTEST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == looks.SLOWEST_S
    watched.end(watched.story.root, [0])
    looker.look()
    assert looker.pause_s == looks.FASTEST_S


def test_what_nobody_can_do_is_said(watched: Watched) -> None:
    needy = Manifest(
        workflow_name="shop",
        jobs=MANIFEST.jobs,
        steps={"all": STEP},
        handlers={"orders": "1", "add": "2"},
        capabilities={"orders": "gpu", "add": "general"},
    )
    watched.story.records[keys.manifest("shop", "0")] = needy
    found = watched.look()
    assert [(lack.capability, lack.step, lack.direction) for lack in found.waiting_for] == [("gpu", "all", "map")]
    assert found.detail is not None
    assert "MR_SYSTEM_CAPABILITIES=gpu" in found.detail


def test_two_looks_are_alike_whose_time_alone_differs(watched: Watched) -> None:
    first = watched.look()
    later = msgspec.structs.replace(first, elapsed_s=99.0, rate=3.0)
    assert first.is_like(later)
    assert not first.is_like(msgspec.structs.replace(later, state="done"))
