"""What a worker takes of its queue, and what it begins next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from mr.errors import QueueUnavailable
from mr.queue.base import Delivery, Message
from mr.queue.memory import MemoryQueue
from mr.worker.intake import Intake, Owner
from mr.worker.pace import Pace

TOPIC = "mr.w.map.general"
SHORT_S, LONG_S = 0.0005, 0.05


class Desk:
    """An intake over a queue in memory, with a clock that stands still. It runs nothing: ``busy`` is set by hand."""

    def __init__(self, runners: int, run_s: float) -> None:
        self.now = 100.0
        self.queue = MemoryQueue()
        self.consumer = self.queue.consumer("c", max_in_flight=1000)
        self.consumer.subscribe([TOPIC, "mr.v.map.general"])
        self.pace = Pace(runners)
        for _ in range(100):
            self.pace.ran(run_s)
        self.dropped: list[Delivery] = []
        self.busy: Counter[Owner] = Counter()
        self.intake = Intake(self.consumer, self.pace, runners, lambda: self.now, self.dropped.append)

    def send(self, request: str, count: int = 1, topic: str = TOPIC) -> None:
        body = {"request": request, "invocation": f"{request}.0", "chunk": 0}
        self.queue.publish([Message(topic, json.dumps(body).encode())] * count)

    def begin(self) -> str:
        """The requests that are begun, until nothing is."""
        begun = ""
        while (wanted := self.intake.next(self.busy)) is not None:
            self.busy[wanted.owner] += 1
            begun += wanted.owner[1]
        return begun

    def end(self, request: str, count: int = 1) -> None:
        self.busy[("w", request)] -= count
        self.busy = +self.busy

    def fill(self) -> str:
        self.intake.fill(self.busy)
        return self.begin()

    def left(self) -> int:
        """How many messages wait in the queue."""
        other = self.queue.consumer("c", max_in_flight=1000)
        other.subscribe([TOPIC])
        found = other.receive(1000, 0)
        other.requeue(found)
        other.close()
        return len(found)


@pytest.fixture
def short() -> Iterator[Desk]:
    desk = Desk(2, SHORT_S)
    assert (desk.pace.most, desk.pace.hoard, desk.pace.is_long) == (32, 64, False)
    yield desk
    desk.queue.close()


@pytest.fixture
def long() -> Iterator[Desk]:
    desk = Desk(2, LONG_S)
    assert (desk.pace.most, desk.pace.hoard, desk.pace.is_long) == (2, 2, True)
    yield desk
    desk.queue.close()


def test_of_short_runs_as_many_again_are_at_hand_as_are_worked_on(short: Desk) -> None:
    short.send("a", 100)
    assert short.fill() == 32 * "a"
    assert (len(short.intake), short.left()) == (32, 36)
    assert not short.intake.wants(short.busy), "there is enough at hand"


def test_the_next_is_of_the_request_that_least_is_worked_on_of(short: Desk) -> None:
    short.send("a", 40)
    short.send("b", 5)
    assert Counter(short.fill()) == {"a": 27, "b": 5}
    short.end("a", 2)
    short.send("c", 3)
    short.now += 1
    assert short.fill() == "cc"


def test_among_equals_it_is_the_one_that_waits_longest(short: Desk) -> None:
    short.send("a", 3)
    short.send("b", 3)
    short.send("c", 3)
    assert short.fill() == "abcabcabc"


def test_requests_of_the_same_name_in_two_workflows_are_two(short: Desk) -> None:
    short.send("a", 3)
    short.send("a", 3, "mr.v.map.general")
    short.fill()
    assert short.busy == {("w", "a"): 3, ("v", "a"): 3}


def test_who_has_enough_of_one_request_soon_takes_a_few_more(short: Desk) -> None:
    short.send("a", 64)
    short.fill()
    short.send("b")
    short.end("a", 1)
    assert short.fill() == "a", "not before its time"
    short.end("a", 1)
    short.now += 0.011
    assert short.intake.wants(short.busy)
    assert short.fill() == "b"


def test_that_is_so_though_there_is_no_room(short: Desk) -> None:
    short.send("a", 64)
    short.fill()
    short.send("b")
    short.now += 0.011
    assert (short.fill(), len(short.intake)) == ("", 33)
    short.end("a")
    assert short.begin() == "b"


def test_of_long_runs_nothing_is_at_hand_that_is_not_worked_on(long: Desk) -> None:
    long.send("a", 10)
    assert long.fill() == "aa"
    assert (len(long.intake), long.left(), long.intake.wants(long.busy)) == (0, 8, False)


def test_when_a_long_one_ends_a_newcomer_is_next_though_others_stand_before_it(long: Desk) -> None:
    long.send("a", 12)
    long.fill()
    long.send("b")
    long.end("a")
    long.now += 1
    assert long.fill() == "b"
    assert (len(long.intake), long.left()) == (0, 10), "the others are where other workers find them"


def test_a_newcomer_is_found_while_all_runners_are_busy_and_is_next(long: Desk) -> None:
    long.send("a", 50)
    long.fill()
    long.send("b")
    long.intake.look_far(long.busy)
    assert (len(long.intake), long.left(), long.begin()) == (1, 48, "")
    long.end("a")
    assert long.fill() == "b"


def test_no_more_newcomers_are_kept_than_there_are_runners(long: Desk) -> None:
    long.send("a", 3)
    long.fill()
    for name in "bcdef":
        long.send(name)
    long.intake.look_far(long.busy)
    assert (len(long.intake), long.left()) == (2, 4)


def test_a_newcomer_that_waits_in_vain_is_given_back(long: Desk) -> None:
    long.send("a", 3)
    long.fill()
    long.send("b")
    long.intake.look_far(long.busy)
    for _ in range(9):
        long.now += 0.1
        long.intake.look_far(long.busy)
    assert len(long.intake) == 1
    long.now += 0.2
    long.intake.look_far(long.busy)
    assert (len(long.intake), long.left()) == (0, 2)


def test_where_a_runner_is_free_nobody_looks_far(long: Desk) -> None:
    long.send("a")
    long.fill()
    long.send("a", 5)
    long.intake.look_far(long.busy)
    assert (len(long.intake), long.left()) == (0, 5)


def test_a_message_that_nobody_can_read_is_dropped(short: Desk) -> None:
    short.queue.publish([Message(TOPIC, b"?")])
    short.send("a")
    assert short.fill() == "a"
    assert [delivery.body for delivery in short.dropped] == [b"?"]


def test_a_queue_that_does_not_answer_is_left_alone_for_a_while(short: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def receive(limit: int, timeout: float) -> list[Delivery]:
        raise QueueUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(short.consumer, "receive", receive)
        assert short.fill() == ""
    assert short.intake.is_down
    short.send("a")
    assert (short.fill(), short.intake.wants(short.busy)) == ("", False)
    short.now += 1.1
    assert short.fill() == "a"


def test_what_is_at_hand_is_touched_and_given_back(short: Desk) -> None:
    short.send("a", 40)
    short.fill()
    assert len(short.intake.deliveries()) == 8
    short.intake.give_back()
    assert (len(short.intake), short.left()) == (0, 8)
