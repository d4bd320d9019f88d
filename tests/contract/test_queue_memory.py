"""What the queue in memory does exactly, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mr.errors import QueueUnavailable
from mr.queue.base import Consumer, Message
from mr.queue.memory import MemoryQueue


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def queue(clock: HandClock) -> MemoryQueue:
    return MemoryQueue(clock)


@pytest.fixture
def consumer(queue: MemoryQueue) -> Iterator[Consumer]:
    consumer = queue.consumer("c", max_in_flight=10, visibility=60.0)
    consumer.subscribe(["t"])
    yield consumer
    consumer.close()


def bodies(consumer: Consumer) -> list[bytes]:
    return [delivery.body for delivery in consumer.receive(16, 0)]


def test_a_topic_is_first_in_first_out(queue: MemoryQueue, consumer: Consumer) -> None:
    queue.publish([Message("t", b"%d" % number) for number in range(5)])
    assert bodies(consumer) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_batch_has_some_of_every_topic(queue: MemoryQueue, consumer: Consumer) -> None:
    consumer.subscribe(["t", "u"])
    # The topic that goes first is drawn by lot: many rounds, so that both do.
    for _ in range(20):
        queue.publish([Message("t", b"big")] * 100 + [Message("u", b"small")] * 3)
        deliveries = consumer.receive(10, 0)
        assert sorted(delivery.body for delivery in deliveries) == [b"big"] * 7 + [b"small"] * 3
        consumer.finish(deliveries)


def test_delays_end_on_the_clock(queue: MemoryQueue, consumer: Consumer, clock: HandClock) -> None:
    queue.publish([Message("t", b"second", 20.0), Message("t", b"first", 10.0)])
    assert bodies(consumer) == []
    assert consumer.idle_for() == 10.0
    clock.now += 10.0
    assert consumer.idle_for() == 0.0
    assert bodies(consumer) == [b"first"]
    clock.now += 9.9
    assert bodies(consumer) == []
    clock.now += 0.1
    assert bodies(consumer) == [b"second"]


def test_visibility_ends_on_the_clock_and_touch_moves_it(
    queue: MemoryQueue, consumer: Consumer, clock: HandClock
) -> None:
    queue.publish([Message("t", b"touched"), Message("t", b"left")])
    touched = consumer.receive(1, 0)
    consumer.receive(1, 0)
    clock.now += 30.0
    consumer.touch(touched)
    assert consumer.idle_for() == 30.0
    clock.now += 30.0
    assert bodies(consumer) == [b"left"]
    clock.now += 30.0
    assert bodies(consumer) == [b"touched"]


def test_what_timed_out_cannot_be_finished(queue: MemoryQueue, consumer: Consumer, clock: HandClock) -> None:
    queue.publish([Message("t", b"late")])
    held = consumer.receive(1, 0)
    clock.now += 60.0
    consumer.finish(held)
    assert bodies(consumer) == [b"late"]


def test_queues_share_nothing(queue: MemoryQueue, consumer: Consumer) -> None:
    MemoryQueue().publish([Message("t", b"elsewhere")])
    assert bodies(consumer) == []


def test_a_closed_queue_and_a_closed_consumer_are_unavailable(queue: MemoryQueue, consumer: Consumer) -> None:
    queue.close()
    consumer.close()
    with pytest.raises(QueueUnavailable):
        queue.publish([Message("t", b"x")])
    with pytest.raises(QueueUnavailable):
        consumer.receive(1, 0)
    with pytest.raises(QueueUnavailable):
        consumer.subscribe(["t"])
