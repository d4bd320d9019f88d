"""What the tests of runners share."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from textwrap import dedent
from typing import Any

from mr.handlers.header import make_handler
from mr.handlers.pool import Limits, Runner, RunnerPool
from mr.handlers.protocol import Children, Direction, Failed, Finished, Output, Task, Told
from mr.model.entities import Argument, Handler, HandlerType

_task_ids = count(1)


@dataclass
class Outcome:
    """All that came of one task."""

    end: Finished | Failed
    direction: str | None = None
    children: list[Any] = field(default_factory=list)
    output: list[Any] = field(default_factory=list)
    frames: list[Children | Output] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)

    @property
    def failure(self) -> Failed:
        assert isinstance(self.end, Failed), self.end
        return self.end

    @property
    def finished(self) -> Finished:
        assert isinstance(self.end, Finished), self.end
        return self.end


def handler(
    source: str, kind: HandlerType = "mapper", name: str = "split", path: str = "", argument: Argument | None = None
) -> Handler:
    arguments = None if argument is None else [argument]
    return make_handler("words", name, "", kind, dedent(source), argument_spec=arguments, path=path)


def task(one: Handler, combiner: Handler | None = None, **more: Any) -> Task:
    values: dict[str, Any] = {
        "task_id": next(_task_ids),
        "kind": "map" if one.handler_type == "mapper" else "reduce",
        "handler_name": one.handler_name,
        "handler_version": one.version,
        "handler": one,
        "combiner_version": combiner.version if combiner else "",
        "combiner": combiner,
        "workflow_name": "words",
        "request_id": "request-1",
        "invocation_id": "invocation-1",
    }
    return Task(**{**values, **more})


async def follow(runner: Runner, one: Task, inputs: Sequence[Any] = ([],)) -> Outcome:
    """Run a task and collect what comes. ``inputs`` are lists of pairs."""
    found = Outcome(Finished(session=b"", stdout="", stderr=""))
    ends = 0
    async for event in runner.run(one, [json.dumps(pairs).encode() for pairs in inputs]):
        if isinstance(event, Direction):
            found.direction = event.step_name
        elif isinstance(event, Children):
            found.children += [json.loads(pair) for pair in event.pairs]
            found.frames.append(event)
        elif isinstance(event, Output):
            pairs = json.loads(event.pairs)
            assert len(pairs) == event.count
            found.output += pairs
            found.frames.append(event)
        elif isinstance(event, Told):
            found.told.append(event)
        else:
            found.end = event
            ends += 1
    assert ends == 1
    return found


async def play(pool: RunnerPool, one: Task | Handler, inputs: Sequence[Any] = ([],)) -> Outcome:
    runner = await asyncio.wait_for(pool.acquire(), 20)
    try:
        return await asyncio.wait_for(follow(runner, one if isinstance(one, Task) else task(one), inputs), 60)
    finally:
        pool.release(runner)


WELL = handler(
    """
    yield MrConfigureToReturn()
    for key, text in arguments:
        for word in text.split():
            yield word, 1
    """,
    name="well",
)


async def expect_well(pool: RunnerPool) -> None:
    """A normal task on every runner of the pool answers as it should."""
    outcomes = await asyncio.gather(*[play(pool, WELL, [[["", "to be or not to be"]]]) for _ in range(pool.size)])
    for outcome in outcomes:
        assert isinstance(outcome.end, Finished), outcome.end
        assert outcome.output == [["be", 1], ["be", 1], ["not", 1], ["or", 1], ["to", 1], ["to", 1]]
        assert (outcome.end.stdout, outcome.end.stderr) == ("", "")


@asynccontextmanager
async def opened(size: int = 1, scope_factory: str | None = None, **limits: Any) -> AsyncIterator[RunnerPool]:
    pool = RunnerPool(size, Limits(**limits), scope_factory)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def with_pool(
    test: Callable[[RunnerPool], Awaitable[None]], size: int = 1, scope_factory: str | None = None, **limits: Any
) -> None:
    """Run a test on a pool of its own; afterwards every runner of the pool still does its work."""

    async def main() -> None:
        async with opened(size, scope_factory, **limits) as pool:
            await test(pool)
            await expect_well(pool)

    asyncio.run(main())


def until(condition: Callable[[], bool], seconds: float = 10.0, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)


async def until_async(condition: Callable[[], bool], seconds: float = 10.0, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        await asyncio.sleep(0.01)
