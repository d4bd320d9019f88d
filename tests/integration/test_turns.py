"""Requests take turns: in what a worker has at hand, and for its runners."""

from __future__ import annotations

import asyncio
from itertools import groupby
from pathlib import Path

from mr.handlers.pool import Runner, RunnerPool
from tests.integration.worker_harness import bench

FILES = {
    "jobs.yaml": """
steps:
  fan: {map: fan, reduce: count}
  leaf: {map: leaf, reduce: count}
jobs: {fan: {step: fan}}
""",
    "fan.py": (
        "def mapper(arguments):\n    given = dict(arguments)\n    yield MrConfigureToMap('leaf')\n"
        "    for number in range(given['n']):\n        yield number, [given['file'], given['name']]\n"
    ),
    "leaf.py": (
        "def mapper(arguments):\n    for _, (path, name) in arguments:\n        with open(path, 'a') as file:\n"
        "            file.write(name)\n    yield MrConfigureToReturn()\n    yield 'n', 1\n"
    ),
    "count.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
}


def test_children_of_two_wide_requests_are_run_in_turn(tmp_path: Path) -> None:
    order = tmp_path / "order"
    with bench(tmp_path, MR_RUNNERS=1) as platform:
        platform.apply(FILES)
        requests = [platform.submit("fan", n=200, file=str(order), name=name) for name in "ab"]
        platform.worker()
        for request_id in requests:
            assert platform.wait(request_id).state == "done", platform.log()
            assert platform.pairs(request_id) == [["n", 200]]
    ran = order.read_text()
    both = ran[max(ran.index("a"), ran.index("b")) : min(ran.rindex("a"), ran.rindex("b"))]
    assert len(both) > 200
    # In the order of their messages they would run by the window, forty at a time.
    assert len(list(groupby(both))) > 40, both


def test_owners_who_wait_for_a_runner_get_one_in_turn() -> None:
    async def run() -> list[str]:
        pool = RunnerPool(1)
        await pool.start()
        served: list[str] = []

        async def use(owner: str, name: str) -> None:
            runner = await pool.acquire(owner)
            served.append(name)
            pool.release(runner)

        try:
            runner: Runner = await pool.acquire("a")
            waiting = [asyncio.create_task(use(name[0], name)) for name in ("a1", "a2", "a3", "b1", "c1")]
            await asyncio.sleep(0)
            pool.release(runner)
            await asyncio.gather(*waiting)
        finally:
            await pool.close()
        return served

    assert asyncio.run(run()) == ["a1", "b1", "c1", "a2", "a3"]
