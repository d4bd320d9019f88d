"""The worker's lease, and the group commit on its loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from mr.engine.ops import Change, Committed, Write
from mr.errors import StoreUnavailable
from mr.kv.base import Compare, Outcome, Put, Txn, Verdict
from mr.kv.memory import MemoryStore
from mr.model.records import Mark
from mr.worker.group import GroupCommit, Outbox
from mr.worker.pace import MOST_PER_RUNNER, Pace
from mr.worker.tenure import Tenure


class Moody(MemoryStore):
    """A store that fails when it is told to. ``moods`` are used up, a commit each."""

    local = True

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.moods: list[Callable[[], list[Outcome]] | None] = []
        self.sizes: list[int] = []

    def commit(self, txns: Sequence[Txn]) -> list[Outcome]:
        self.sizes.append(len(txns))
        mood = self.moods.pop(0) if self.moods else None
        return super().commit(txns) if mood is None else mood()

    def keep_alive(self, lease: int) -> bool:
        if self.is_down:
            raise StoreUnavailable("down")
        return super().keep_alive(lease)

    def grant(self, ttl: float) -> int:
        if self.is_down:
            raise StoreUnavailable("down")
        return super().grant(ttl)


def test_a_lease_that_was_given_up_is_never_renewed_again() -> None:
    now, lost = [0.0], []
    store = Moody()
    tenure = Tenure(store, 10, lambda: now[0], lambda: lost.append(now[0]))
    asyncio.run(tenure.begin())
    first = tenure.lease()
    store.commit([Txn(puts=(Put("own/x", b"", first),))])
    store.is_down = True
    for now[0] in (2.0, 4.0, 6.0, 8.0, 9.0):
        asyncio.run(tenure.renew())
    assert lost == [8.0], "told once, before the lease expires"
    store.is_down = False
    asyncio.run(tenure.renew())
    assert tenure.lease() != first
    assert store.get(["own/x"]) == [None], "nobody knows what was claimed under it"
    asyncio.run(tenure.renew())
    assert lost == [8.0]
    store.close()


def test_a_lease_that_expired_is_replaced() -> None:
    lost = []
    store = Moody()
    tenure = Tenure(store, 10, lambda: 0.0, lambda: lost.append(True))
    asyncio.run(tenure.begin())
    store.revoke(tenure.lease())
    asyncio.run(tenure.renew())
    assert lost == [True]
    assert store.keep_alive(tenure.lease())
    store.close()


def change(name: str) -> Change:
    return Change("test", (Compare("version", name, 0),), (Write(name, Mark()),))


def commit_all(store: Moody, names: Sequence[str]) -> list[Committed | BaseException]:
    async def run() -> list[Committed | BaseException]:
        group = GroupCommit(store, asyncio.get_running_loop(), lambda: False)
        return await asyncio.wait_for(
            asyncio.gather(*(group.commit(change(name)) for name in names), return_exceptions=True), 20
        )

    try:
        return asyncio.run(run())
    finally:
        store.close()


def test_what_is_committed_in_one_turn_goes_together_and_each_learns_its_own() -> None:
    store = Moody()
    answers = commit_all(store, ["a", "b", "a", "c"])
    assert [answer.ok for answer in answers if isinstance(answer, Committed)] == [True, True, False, True]
    assert store.sizes == [4]


def test_an_unknown_outcome_is_repeated_until_it_is_known() -> None:
    store = Moody()
    store.moods = [lambda: [Outcome(Verdict.UNKNOWN)], lambda: [Outcome(Verdict.UNKNOWN)]]
    [answer] = commit_all(store, ["a"])
    assert isinstance(answer, Committed)
    assert (answer.ok, answer.doubtful) == (True, True)


def test_a_store_that_is_away_is_waited_for() -> None:
    def away() -> list[Outcome]:
        raise StoreUnavailable("away")

    store = Moody()
    store.moods = [away, away, away]
    [answer] = commit_all(store, ["a"])
    assert isinstance(answer, Committed)
    assert (answer.ok, answer.doubtful) == (True, False)


def test_an_error_nobody_expected_leaves_nobody_waiting() -> None:
    def broken() -> list[Outcome]:
        raise RuntimeError("bug")

    store = Moody()
    store.moods = [broken, None, broken, None]
    answers = commit_all(store, ["a", "b", "c"])
    assert [type(answer) for answer in answers] == [Committed, RuntimeError, Committed]


@pytest.mark.parametrize("hold_s", [0.0, 0.01])
def test_an_outbox_hands_over_what_was_gathered_in_one_piece(hold_s: float) -> None:
    sent: list[list[int]] = []

    async def run() -> None:
        outbox = Outbox(asyncio.get_running_loop(), sent.append, hold_s)
        outbox.add(1, 2)
        outbox.add(3)
        deadline = asyncio.get_running_loop().time() + 10
        while not sent and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0)
        outbox.flush()

    asyncio.run(run())
    assert sent == [[1, 2, 3]]


# --- pace ---------------------------------------------------------------------------------------------------------


def paced(runners: int, run_s: float, around_s: float) -> Pace:
    pace = Pace(runners)
    for _ in range(100):
        pace.ran(run_s)
        pace.took(around_s)
    return pace


def test_a_worker_begins_with_no_more_than_it_has_runners() -> None:
    assert Pace(4).most == 4
    assert Pace(4).hoard == 4


@pytest.mark.parametrize(
    ("run_s", "around_s", "most"),
    [
        (0.02, 0.02, 16),  # as long around a run as in it: twice as many as runners
        (0.02, 0.0, 8),
        (0.1, 0.05, 12),
        (0.2, 0.002, 8),
        (5.0, 5.0, 8),  # what is claimed ahead would wait too long
        (0.0001, 1.0, 8 * MOST_PER_RUNNER),
    ],
)
def test_more_is_worked_on_than_runs_where_the_store_takes_its_time(run_s: float, around_s: float, most: int) -> None:
    assert paced(8, run_s, around_s).most == most


def test_short_handlers_are_gathered_and_hoarded_for() -> None:
    assert paced(2, 0.001, 0.001).is_short
    assert paced(2, 0.001, 0.001).hoard == 2 * paced(2, 0.001, 0.001).most
    assert not paced(2, 0.1, 0.001).is_short
    assert paced(2, 0.1, 0.001).hoard == 2


def test_an_invocation_that_waited_in_vain_takes_the_worker_back_to_its_runners() -> None:
    pace = paced(2, 0.001, 0.01)
    pace.is_crowded()
    assert (pace.most, pace.is_short) == (2, False)
