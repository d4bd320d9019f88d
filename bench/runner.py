"""What a runner costs: the fork of one, a task that does nothing, and pairs through it.

    python bench/runner.py [--tasks N]

The peer is a bare round trip of the same frames through a socket pair, between the same event loop and a forked process
that only answers: what is left of the difference is the platform's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable

from mr.handlers.header import make_handler
from mr.handlers.pool import RunnerPool
from mr.handlers.protocol import Children, Task
from mr.model.entities import Handler

NOTHING = "yield MrConfigureToReturn()\n"
MANY = "yield MrConfigureToMap('next')\nfor number in range(200_000):\n    yield number, 'word'\n"
COUNT = """
yield MrConfigureToReturn()
for number in range(200_000):
    yield f"word-{number % 1000}", 1
"""


def task(number: int, handler: Handler) -> Task:
    return Task(
        task_id=number,
        kind="map",
        handler_name=handler.handler_name,
        handler_version=handler.version,
        handler=handler,
        workflow_name="bench",
        request_id="request",
        invocation_id="invocation",
    )


async def measure(name: str, count: int, once: Callable[[int], Awaitable[None]]) -> list[float]:
    for number in range(20):
        await once(number)
    took = []
    for number in range(count):
        began = time.perf_counter()
        await once(number)
        took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    print(f"{name:<44} p50 {statistics.median(took):8.0f} us   p99 {took[int(count * 0.99)]:8.0f} us")
    return took


async def bare(count: int) -> list[float]:
    ours, theirs = socket.socketpair()
    process = os.fork()
    if process == 0:
        ours.close()
        while data := theirs.recv(65536):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None]

    def readable() -> None:
        ours.recv(65536)
        future.set_result(None)

    loop.add_reader(ours, readable)
    frame = b"x" * 300

    async def once(number: int) -> None:
        nonlocal future
        future = loop.create_future()
        ours.send(frame)
        await future

    took = await measure("bare echo of 300 bytes, asyncio", count, once)
    loop.remove_reader(ours)
    ours.close()
    os.waitpid(process, 0)
    return took


async def started(size: int) -> float:
    """Seconds until all runners of a pool were there."""
    began = time.perf_counter()
    pool = RunnerPool(size)
    await pool.start()
    runners = [await pool.acquire() for _ in range(size)]
    took = time.perf_counter() - began
    for runner in runners:
        pool.release(runner)
    await pool.close()
    return took


async def main(count: int) -> None:
    peer = await bare(count)
    one, many = [min([await started(size) for _ in range(3)]) for size in (1, 41)]
    print(f"{'fork of a runner':<44} {(many - one) / 40 * 1e3:8.1f} ms")
    began = time.perf_counter()
    pool = RunnerPool(1)
    await pool.start()
    runner = await pool.acquire()
    print(f"{'start of a pool, to its first runner':<44} {(time.perf_counter() - began) * 1e3:8.1f} ms")
    nothing = make_handler("bench", "nothing", "", "mapper", NOTHING)

    async def no_op(number: int) -> None:
        async for _ in runner.run(task(number, nothing), [b"[]"]):
            pass

    ours = await measure("a task that does nothing", count, no_op)
    print(f"{'ratio of the medians':<44} {statistics.median(ours) / statistics.median(peer):8.1f}")

    async def replaced(number: int) -> None:
        nonlocal runner
        runner.kill("HandlerKilled", "for the benchmark")
        pool.release(runner)
        runner = await pool.acquire()
        await no_op(number)

    await measure("kill, fork another, first task on it", 200, replaced)

    for name, source in (("children", MANY), ("pairs grouped in the runner", COUNT)):
        handler = make_handler("bench", "many", "", "mapper", source)
        began = time.perf_counter()
        seen = 0
        async for event in runner.run(task(0, handler), [b"[]"]):
            seen += len(event.pairs) if isinstance(event, Children) else getattr(event, "count", 0)
        took = time.perf_counter() - began
        print(f"{f'{seen} {name}':<44} {seen / took / 1000:8.0f} thousand a second")
    pool.release(runner)
    await pool.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--tasks", type=int, default=3000)
    asyncio.run(main(arguments.parse_args().tasks))
