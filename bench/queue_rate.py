"""How fast the embedded queue is between processes: ``python bench/queue_rate.py [--messages N] [--consumers N]``.

Prints messages a second for publishing in batches and singly, and for consuming in batches of 16 that are finished
together; and how long a message takes to a process that sleeps. Bodies have 120 bytes, as those of the engine do.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from mr.queue.base import Message
from mr.queue.sqlite import SqliteQueue

BODY = b"x" * 120
TOPIC = "bench"


def publish(path: Path, count: int, batch: int) -> float:
    """Messages a second."""
    queue = SqliteQueue(path)
    before = time.perf_counter()
    for _ in range(count // batch):
        queue.publish([Message(TOPIC, BODY)] * batch)
    rate = count // batch * batch / (time.perf_counter() - before)
    queue.close()
    return rate


def consume(path: Path, results: Connection) -> None:
    """Consumes until nothing comes for a second; sends how many, and when the first and the last came."""
    queue = SqliteQueue(path)
    consumer = queue.consumer("c", max_in_flight=16)
    consumer.subscribe([TOPIC])
    results.send("ready")
    results.recv()
    count = 0
    first = last = time.perf_counter()
    while deliveries := consumer.receive(16, 1.0):
        consumer.finish(deliveries)
        count += len(deliveries)
        last = time.perf_counter()
    results.send((count, first, last))
    consumer.close()
    queue.close()


def echo(path: Path, results: Connection) -> None:
    """Sends the time since each message was published; ends with a message that says so, and sends its CPU time."""
    queue = SqliteQueue(path)
    consumer = queue.consumer("c", max_in_flight=16)
    consumer.subscribe([TOPIC])
    results.send("ready")
    while True:
        for delivery in consumer.receive(16, 60.0):
            arrived = time.perf_counter()
            consumer.finish([delivery])
            if delivery.body == b"end":
                usage = resource.getrusage(resource.RUSAGE_SELF)
                results.send(usage.ru_utime + usage.ru_stime)
                consumer.close()
                queue.close()
                return
            results.send(arrived - float(delivery.body))


def consuming_rate(path: Path, consumers: int) -> tuple[int, float]:
    """How many messages were there, and how many a second went."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(consumers):
        here, there = context.Pipe()
        context.Process(target=consume, args=(path, there), daemon=True).start()
        here.recv()
        pipes.append(here)
    for pipe in pipes:
        pipe.send("go")
    counts, firsts, lasts = zip(*(pipe.recv() for pipe in pipes), strict=True)
    return sum(counts), sum(counts) / (max(lasts) - min(firsts))


def wake_up_times(path: Path, count: int) -> tuple[list[float], float]:
    """Seconds from before publishing to arrival in another process, and that process's share of a CPU when idle."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=echo, args=(path, there), daemon=True)
    process.start()
    here.recv()
    queue = SqliteQueue(path)
    times = []
    for _ in range(count):
        # So long that the other process sleeps again.
        time.sleep(0.02)
        queue.publish([Message(TOPIC, str(time.perf_counter()).encode())])
        times.append(here.recv())
    idle = 5.0
    before = _cpu_time(process.pid)
    time.sleep(idle)
    share = (_cpu_time(process.pid) - before) / idle
    queue.publish([Message(TOPIC, b"end")])
    here.recv()
    process.join()
    queue.close()
    return times, share


def _cpu_time(pid: int | None) -> float:
    """Seconds of CPU of a process so far, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--consumers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "queue.db"
        for batch, count in ((1, arguments.messages // 10), (100, arguments.messages), (1000, arguments.messages)):
            print(f"publish, {batch} at a time: {publish(path, count, batch):,.0f} messages/s")
        for consumers in (1, arguments.consumers):
            count, rate = consuming_rate(path, consumers)
            print(f"consume and finish, 16 at a time, {consumers} processes, {count} messages: {rate:,.0f} messages/s")
            publish(path, arguments.messages, 1000)
        consuming_rate(path, 1)
        times, share = wake_up_times(path, 200)
        cuts = statistics.quantiles(times, n=100)
        print(f"publish to another process that sleeps: median {cuts[49] * 1e3:.2f} ms, p99 {cuts[98] * 1e3:.2f} ms")
        print(f"idle consumer: {share:.1%} of a CPU")


if __name__ == "__main__":
    main()
