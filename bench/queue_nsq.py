"""The queue on NSQ beside the one in a SQLite file: ``python bench/queue_nsq.py [--messages N] [--url nsq://…]``.

Starts an nsqd of its own (see `scripts/servers`) unless a URL is given. Prints, for each of the two in the same run,
how many messages a second are published and consumed, the CPU time that the consuming process takes for each, and how
long one takes to a process that sleeps; the last column is NSQ over SQLite. Bodies have 120 bytes, as those of the
engine do. The last line is what pynsq's Reader does with the same nsqd.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from mr.queue.base import Message, Queue
from mr.queue.nsq import NsqQueue
from mr.queue.sqlite import SqliteQueue

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

BODY = b"x" * 120
THREADS = 16
CHANNEL = "c"
_spawn = multiprocessing.get_context("spawn")


def open_queue(url: str) -> Queue:
    return SqliteQueue(url.removeprefix("sqlite://")) if url.startswith("sqlite") else NsqQueue(url)


def publish(url: str, topic: str, count: int, batch: int, threads: int = 1) -> float:
    """Messages a second."""
    queue = open_queue(url)
    queue.publish([Message(f"{topic}.first", BODY)])
    messages = [Message(topic, BODY)] * batch

    def work() -> None:
        for _ in range(count // batch // threads):
            queue.publish(messages)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    before = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = count // batch // threads * threads * batch / (time.perf_counter() - before)
    queue.close()
    return rate


def consume(url: str, topics: list[str], limit: int, results: Connection) -> None:
    """Consumes until nothing comes for a second; sends how many, the seconds from first to last, and its CPU time."""
    queue = open_queue(url)
    consumer = queue.consumer(CHANNEL, max_in_flight=192)
    results.send("ready")
    results.recv()
    consumer.subscribe(topics)
    count = 0
    deliveries = consumer.receive(limit, 10.0)
    first, cpu_before = time.perf_counter(), time.process_time()
    while deliveries:
        consumer.finish(deliveries)
        count += len(deliveries)
        last, cpu = time.perf_counter(), time.process_time()
        deliveries = consumer.receive(limit, 1.0)
    results.send((count, last - first, cpu - cpu_before))
    consumer.close()
    queue.close()


def consuming(url: str, topics: list[str], limit: int, processes: int = 1) -> tuple[float, float]:
    """Messages a second, and the CPU time of each in microseconds."""
    pipes = []
    for _ in range(processes):
        here, there = _spawn.Pipe()
        _spawn.Process(target=consume, args=(url, topics, limit, there), daemon=True).start()
        here.recv()
        pipes.append(here)
    for pipe in pipes:
        pipe.send("go")
    counts, times, cpu = zip(*(pipe.recv() for pipe in pipes), strict=True)
    return sum(counts) / max(times), sum(cpu) / sum(counts) * 1e6


def consume_with_reader(address: str, topic: str, count: int, results: Connection) -> None:
    """What pynsq's own Reader takes: sends messages a second, and the CPU time of each in microseconds."""
    import nsq

    received = 0
    first = cpu_before = 0.0

    def handle(message: object) -> bool:
        nonlocal received, first, cpu_before
        received += 1
        if received == 1:
            first, cpu_before = time.perf_counter(), time.process_time()
        if received == count:
            results.send((count / (time.perf_counter() - first), (time.process_time() - cpu_before) / count * 1e6))
        return True

    reader = nsq.Reader(topic, CHANNEL, handle, nsqd_tcp_addresses=[address], max_in_flight=192, max_tries=0)
    reader.io_loop.start()


def reader_beside(url: str, messages: int) -> tuple[float, float]:
    publish(url, "reader", messages, 100)
    here, there = _spawn.Pipe()
    address = url.removeprefix("nsq://").partition("?")[0].partition(",")[0]
    process = _spawn.Process(target=consume_with_reader, args=(address, "reader", messages, there), daemon=True)
    process.start()
    rate, cpu = here.recv()
    process.kill()
    process.join()
    return rate, cpu


def echo(url: str, topic: str, results: Connection) -> None:
    """Sends the time since each message was published."""
    queue = open_queue(url)
    consumer = queue.consumer(CHANNEL, max_in_flight=16)
    consumer.subscribe([topic])
    consumer.receive(16, 0.5)
    results.send("ready")
    while True:
        for delivery in consumer.receive(16, 60.0):
            results.send(time.perf_counter() - float(delivery.body))
            consumer.finish([delivery])


def wake_up_times(url: str, topic: str, count: int) -> tuple[float, float]:
    """Milliseconds from before publishing to arrival in another process: median and 99th percentile."""
    here, there = _spawn.Pipe()
    process = _spawn.Process(target=echo, args=(url, topic, there), daemon=True)
    process.start()
    here.recv()
    queue = open_queue(url)
    times = []
    for _ in range(count):
        # So long that the other process sleeps again.
        time.sleep(0.02)
        queue.publish([Message(topic, str(time.perf_counter()).encode())])
        times.append(here.recv())
    process.kill()
    process.join()
    queue.close()
    cuts = statistics.quantiles(times, n=100)
    return cuts[49] * 1e3, cuts[98] * 1e3


def measurements(messages: int) -> Iterator[tuple[str, Callable[[str], list[float]]]]:
    """What each figure is, and what measures it."""
    for batch, count in ((1, messages // 10), (100, messages), (1000, messages)):
        yield f"publish, {batch} at a time: messages/s", lambda url, b=batch, c=count: [publish(url, f"p{b}", c, b)]
    yield (
        f"publish, 1 at a time, {THREADS} threads: messages/s",
        lambda url: [publish(url, "threads", messages // 10, 1, THREADS)],
    )
    for limit in (1, 16, 64):

        def measure(url: str, limit: int = limit) -> list[float]:
            topic = f"c{limit}"
            publish(url, topic, messages // 10 if limit == 1 else messages, 100)
            return list(consuming(url, [topic], limit))

        yield f"consume and finish, {limit} at a time: messages/s, CPU µs each", measure

    def measure_many(url: str) -> list[float]:
        topics = [f"many.{number}" for number in range(20)]
        for topic in topics:
            publish(url, topic, messages // 20, 100)
        return list(consuming(url, topics, 16))

    yield "consume and finish, 20 topics, 16 at a time: messages/s, CPU µs each", measure_many

    def measure_two(url: str) -> list[float]:
        publish(url, "two", messages, 100)
        return list(consuming(url, ["two"], 16, processes=2))

    yield "consume and finish, 2 processes, 16 at a time: messages/s, CPU µs each", measure_two
    yield "to a process that sleeps: median ms, p99 ms", lambda url: list(wake_up_times(url, "wake", 200))


@contextmanager
def nsqd_for(url: str | None, directory: Path) -> Iterator[str]:
    if url:
        yield url
        return
    from servers.nsq import Nsqd

    with Nsqd(directory, mem_queue_size=1_000_000) as nsqd:
        yield f"nsq://{nsqd.tcp_address}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--url", help="an NSQ URL to measure instead of an nsqd of its own")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, nsqd_for(arguments.url, Path(directory)) as nsq:
        sqlite = f"sqlite://{directory}/queue.db"
        print(f"{'':76}{'SQLite':>10}{'NSQ':>10}{'ratio':>8}")
        for name, measure in measurements(arguments.messages):
            for one, other in zip(measure(sqlite), measure(nsq), strict=True):
                figures = (f"{figure:>10,.0f}" if figure >= 100 else f"{figure:>10.2f}" for figure in (one, other))
                print(f"{name:76}{''.join(figures)}{other / one:>8.2f}", flush=True)
                name = ""
        rate, cpu = reader_beside(nsq, arguments.messages)
        print(f"pynsq's Reader, 192 in flight: {rate:,.0f} messages/s, CPU {cpu:.2f} µs each")


if __name__ == "__main__":
    main()
