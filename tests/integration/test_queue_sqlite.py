"""The embedded queue between processes that are killed at any moment, and what only it has."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mr.errors import QueueUnavailable
from mr.local.clock import Clock
from mr.queue.base import Consumer, Delivery, Message
from mr.queue.sqlite import SqliteQueue

PATIENCE = 30.0
"""Seconds after which something that should have happened has not. Far below the visibility timeout of 60 s, so that
what comes back within it came back because its consumer died."""

TOPIC = "t"

_spawn = multiprocessing.get_context("spawn")
Process = multiprocessing.process.BaseProcess


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
def queue(path: Path) -> Iterator[SqliteQueue]:
    with closing(SqliteQueue(path)) as queue:
        yield queue


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts processes, and kills those that are left in the end."""
    started: list[Process] = []

    def start(target: Callable[..., None], *arguments: object) -> Process:
        process = _spawn.Process(target=target, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        kill(process)


def kill(process: Process) -> None:
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def take(consumer: Consumer, count: int) -> list[Delivery]:
    taken: list[Delivery] = []
    give_up = time.monotonic() + PATIENCE
    while len(taken) < count:
        assert time.monotonic() < give_up, f"{len(taken)} of {count} messages came."
        taken += consumer.receive(count - len(taken), 0.2)
    return taken


def poll_for(consumer: Consumer) -> list[Delivery]:
    """Waits as an event loop does, for as long as the consumer says."""
    give_up = time.monotonic() + PATIENCE
    while True:
        select.select([consumer.fileno()], [], [], min(PATIENCE, consumer.idle_for()))
        assert time.monotonic() < give_up
        if deliveries := consumer.receive(16, 0):
            return deliveries


def consumer_of(queue: SqliteQueue, *topics: str) -> Consumer:
    consumer = queue.consumer("c", max_in_flight=100)
    consumer.subscribe(topics or [TOPIC])
    return consumer


# --- what the other processes do -----------------------------------------------------------------------------


def produce(path: Path, name: str, log: Path) -> None:
    """Publishes batches of ten for ever, and notes each that was taken."""
    with closing(SqliteQueue(path)) as queue, log.open("ab", buffering=0) as acknowledged:
        for batch in itertools.count():
            queue.publish([Message(TOPIC, f"{name}.{batch}.{number}".encode()) for number in range(10)])
            acknowledged.write(f"{name}.{batch}\n".encode())
            # Slower than the consumers, or there would be a backlog and nothing else.
            time.sleep(0.002)


def work(path: Path, log: Path) -> None:
    """Consumes for ever, and notes each message before it finishes it."""
    with (
        closing(SqliteQueue(path)) as queue,
        closing(consumer_of(queue)) as consumer,
        log.open("ab", buffering=0) as delivered,
    ):
        while True:
            deliveries = consumer.receive(16, 60.0)
            delivered.write(b"".join(delivery.body + b"\n" for delivery in deliveries))
            consumer.finish(deliveries)


def hold(path: Path, count: int, held: Connection) -> None:
    """Takes messages and keeps them."""
    queue = SqliteQueue(path)
    take(consumer_of(queue), count)
    held.send("held")
    signal.pause()


def hold_and_fork(path: Path, count: int, held: Connection) -> None:
    """Like ``hold``, with a child that outlives it."""
    queue = SqliteQueue(path)
    consumer = consumer_of(queue)
    take(consumer, count)
    if child := os.fork():
        held.send(child)
    signal.pause()


def publish_when_told(path: Path, told: Connection) -> None:
    with closing(SqliteQueue(path)) as queue:
        told.recv()
        queue.publish([Message(TOPIC, b"ring")])


# --- death ---------------------------------------------------------------------------------------------------


def test_nothing_is_lost_while_producers_and_consumers_are_killed(
    path: Path, tmp_path: Path, start: Callable[..., Process]
) -> None:
    acknowledged, delivered = tmp_path / "acknowledged", tmp_path / "delivered"
    acknowledged.touch()
    delivered.touch()
    producers = [start(produce, path, name, acknowledged) for name in "ab"]
    workers = [start(work, path, delivered) for _ in range(2)]

    def wait_until(condition: Callable[[], bool], what: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < give_up, what
            workers[0].join(random.uniform(0.005, 0.02))

    for _ in range(6):
        before = delivered.stat().st_size
        wait_until(lambda before=before: delivered.stat().st_size > before + 2000, "Nothing more was delivered.")
        kill(workers.pop(0))
        workers.append(start(work, path, delivered))
    for producer in producers:
        kill(producer)
    expected = {f"{batch}.{number}" for batch in acknowledged.read_text().split() for number in range(10)}
    wait_until(lambda: expected <= set(delivered.read_text().split()), "Messages were lost.")
    arrived = delivered.read_text().split()
    # Only what a killed one had in flight may have come twice.
    assert len(arrived) - len(set(arrived)) <= 6 * 16
    assert all(worker.is_alive() for worker in workers)


def test_what_was_published_before_a_kill_is_there_and_no_batch_by_half(
    path: Path, tmp_path: Path, start: Callable[..., Process]
) -> None:
    log = tmp_path / "acknowledged"
    log.touch()
    producer = start(produce, path, "p", log)
    give_up = time.monotonic() + PATIENCE
    while log.read_bytes().count(b"\n") < 50:
        assert time.monotonic() < give_up
        producer.join(0.01)
    kill(producer)
    acknowledged = set(log.read_text().split())
    batches: dict[str, int] = {}
    with closing(SqliteQueue(path)) as queue, closing(consumer_of(queue)) as consumer:
        while deliveries := consumer.receive(100, 0):
            consumer.finish(deliveries)
            for delivery in deliveries:
                batch = delivery.body.decode().rpartition(".")[0]
                batches[batch] = batches.get(batch, 0) + 1
    assert acknowledged <= batches.keys()
    assert set(batches.values()) == {10}


@pytest.mark.parametrize("holder", [hold, hold_and_fork])
def test_what_a_killed_consumer_held_comes_back(
    path: Path, queue: SqliteQueue, start: Callable[..., Process], holder: Callable[..., None]
) -> None:
    queue.publish([Message(TOPIC, b"%d" % number) for number in range(10)])
    here, there = _spawn.Pipe()
    process = start(holder, path, 10, there)
    child = here.recv()
    try:
        with closing(consumer_of(queue)) as consumer:
            assert consumer.receive(16, 0) == []
            kill(process)
            deliveries = take(consumer, 10)
    finally:
        if isinstance(child, int):
            os.kill(child, signal.SIGKILL)
    assert {delivery.body for delivery in deliveries} == {b"%d" % number for number in range(10)}
    assert {delivery.attempts for delivery in deliveries} == {2}
    here.close()
    there.close()


def test_a_consumer_that_only_polls_finds_what_a_killed_one_held(
    path: Path, queue: SqliteQueue, start: Callable[..., Process]
) -> None:
    queue.publish([Message(TOPIC, b"held")])
    here, there = _spawn.Pipe()
    process = start(hold, path, 1, there)
    here.recv()
    with closing(consumer_of(queue)) as consumer:
        assert consumer.receive(16, 0) == []
        kill(process)
        assert [delivery.body for delivery in poll_for(consumer)] == [b"held"]
    here.close()
    there.close()


def test_the_traces_of_dead_consumers_are_removed(
    path: Path, queue: SqliteQueue, start: Callable[..., Process]
) -> None:
    queue.publish([Message(TOPIC, b"held")])
    here, there = _spawn.Pipe()
    process = start(hold, path, 1, there)
    here.recv()
    kill(process)
    locks = path.with_name("queue.db.consumers")
    with closing(consumer_of(queue)) as consumer:
        assert len(list(locks.iterdir())) == 2
        take(consumer, 1)
        assert len(list(locks.iterdir())) == 1
    assert not list(locks.iterdir())
    here.close()
    there.close()


def test_messages_outlive_all_processes(path: Path) -> None:
    with closing(SqliteQueue(path)) as queue:
        queue.publish([Message(TOPIC, b"kept")])
    with closing(SqliteQueue(path)) as queue, closing(consumer_of(queue)) as consumer:
        assert [delivery.body for delivery in take(consumer, 1)] == [b"kept"]


def test_a_reboot_makes_everything_visible_in_its_old_order(path: Path) -> None:
    before = Clock(now=lambda: 5_000_000.0, boot="before")
    with closing(SqliteQueue(path, before)) as queue:
        queue.publish([Message(TOPIC, b"%d" % number) for number in range(5)])
        # Dies holding two of them, as far as the file can tell.
        consumer = queue.consumer("c", max_in_flight=2)
        consumer.subscribe([TOPIC])
        assert len(consumer.receive(2, 0)) == 2
        queue.close()
        consumer.close()
    after = Clock(now=lambda: 7.0, boot="after")
    with closing(SqliteQueue(path, after)) as queue, closing(consumer_of(queue)) as consumer:
        assert [delivery.body for delivery in consumer.receive(16, 0)] == [b"%d" % number for number in range(5)]


# --- waking and sharing --------------------------------------------------------------------------------------


def test_another_process_wakes_an_idle_consumer(path: Path, queue: SqliteQueue, start: Callable[..., Process]) -> None:
    here, there = _spawn.Pipe()
    start(publish_when_told, path, there)
    with closing(consumer_of(queue)) as consumer:
        assert consumer.receive(16, 0) == []
        here.send("go")
        # Its own looks, once a second, would not turn the descriptor readable: this is the bell.
        assert select.select([consumer.fileno()], [], [], PATIENCE)[0]
        assert [delivery.body for delivery in take(consumer, 1)] == [b"ring"]
    here.close()
    there.close()


def test_a_message_whose_ring_was_lost_is_found(path: Path, queue: SqliteQueue) -> None:
    with closing(consumer_of(queue)) as consumer, closing(SqliteQueue(path)) as mute:
        assert consumer.receive(16, 0) == []
        mute._bell.close()
        mute.publish([Message(TOPIC, b"unheard")])
        assert not select.select([consumer.fileno()], [], [], 0.2)[0]
        assert [delivery.body for delivery in poll_for(consumer)] == [b"unheard"]


def test_topics_that_only_begin_alike_do_not_wake(queue: SqliteQueue) -> None:
    with closing(consumer_of(queue, "mr.a")) as consumer:
        assert consumer.receive(16, 0) == []
        queue.publish([Message("mr.a.b", b"for another")])
        assert not select.select([consumer.fileno()], [], [], 0.2)[0]


def test_twenty_thousand_of_one_topic_do_not_starve_five_of_another(queue: SqliteQueue) -> None:
    for _ in range(20):
        queue.publish([Message("big", b"x")] * 1000)
    queue.publish([Message("small", b"x")] * 5)
    with closing(consumer_of(queue, "big", "small")) as consumer:
        seen = [delivery.topic for _ in range(4) for delivery in consumer.receive(16, 0)]
    assert seen.count("small") == 5
    assert seen.count("big") == 4 * 16 - 5


def test_the_oldest_message_of_a_topic_comes_first(queue: SqliteQueue) -> None:
    for number in range(50):
        queue.publish([Message(TOPIC, b"%02d" % number)])
    with closing(consumer_of(queue)) as consumer:
        bodies = [delivery.body for _ in range(5) for delivery in consumer.receive(10, 0)]
    assert bodies == sorted(bodies)
    assert len(bodies) == 50


# --- refusals ------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"something else" * 100)
    with pytest.raises(QueueUnavailable):
        SqliteQueue(path)


def test_a_closed_queue_is_unavailable(path: Path) -> None:
    queue = SqliteQueue(path)
    consumer = consumer_of(queue)
    queue.close()
    queue.close()
    with pytest.raises(QueueUnavailable):
        queue.publish([Message(TOPIC, b"x")])
    with pytest.raises(QueueUnavailable):
        consumer.receive(1, 0)
    consumer.close()
    with pytest.raises(QueueUnavailable):
        consumer.receive(1, 0)


def test_a_failed_transaction_leaves_messages_in_flight(path: Path, queue: SqliteQueue) -> None:
    queue.publish([Message(TOPIC, b"x")])
    with closing(SqliteQueue(path)) as other:
        holder = consumer_of(other)
        held = take(holder, 1)
        other.close()
        for end in (holder.finish, holder.requeue, holder.touch):
            with pytest.raises(QueueUnavailable):
                end(held)
        holder.close()
    # The lock of a consumer that could not give back is free: the next one does it.
    with closing(consumer_of(queue)) as consumer:
        assert [delivery.attempts for delivery in take(consumer, 1)] == [2]
