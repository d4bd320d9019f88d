"""``kill -9`` at any moment: the answer is right, nobody restarts the request, and little is done twice.

``JOBX_FULL=1`` runs it at the size that the project is measured by: 2,000 children, ten kills each.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.acceptance.served import Served, served, until

FULL = os.environ.get("JOBX_FULL") == "1"
CHILDREN = 2000 if FULL else 300
KILLS = 10 if FULL else 3
RUNNERS = 8
AT_ONCE = 2 * RUNNERS
"""Telling a store takes less time than a child runs."""

FILES = {
    "jobs.yaml": """
steps:
  fan: {map: fan, reduce: add}
  leaf: {map: leaf, reduce: add}
jobs: {fan: {step: fan}}
""",
    "fan.py": """
def mapper(arguments):
    yield MrConfigureToMap("leaf")
    (_, (count, path)), = arguments
    for number in range(count):
        yield number, path
""",
    "leaf.py": """
import os, time

def mapper(arguments):
    yield MrConfigureToReturn()
    for number, path in arguments:
        with open(path, "a") as file:
            file.write(f"{os.getppid()}\\n")
        time.sleep(0.05)
        yield "children", 1
        yield "sum", number
""",
    "add.py": """
def reducer(results):
    for key, values in results:
        yield key, sum(values)
""",
}


def kill_worker(platform: Served) -> None:
    until(lambda: platform.kill("worker") == 1, 30, platform.log)


def kill_front_end(platform: Served) -> None:
    until(lambda: platform.kill("serve") >= 1, 30, platform.log)


def kill_everything(platform: Served) -> None:
    platform.kill_everything()
    platform.start()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [kill_worker, kill_front_end, kill_everything])
def test_the_answer_is_right_whatever_is_killed(tmp_path: Path, backing: dict[str, str], kill: object) -> None:
    ran = tmp_path / "ran"
    ran.touch()

    def executions() -> int:
        return ran.read_bytes().count(b"\n")

    with served(tmp_path, FILES, "--runners", str(RUNNERS), **backing) as platform:
        request_id = platform.submit("fan", args=[CHILDREN, str(ran)])
        done = []
        for number in range(KILLS):
            # Spread over the run; what was killed has to do something before it is killed again.
            goal = max(CHILDREN * (number + 1) // (KILLS + 2), done[-1] + 1 if done else 1)
            until(lambda goal=goal: executions() >= goal, 120, platform.log)  # type: ignore[misc]
            done.append(executions())
            kill(platform)  # type: ignore[operator]
        answer = platform.result(request_id, 180)
        assert answer.status == 200, answer.text + platform.log()
        assert answer.pairs == [["children", CHILDREN], ["sum", CHILDREN * (CHILDREN - 1) // 2]]
    assert all(0 < count < CHILDREN for count in done), done
    # What runs when a worker is killed runs again, and so does what has run and is being told to the store while its
    # runner has the next one already: no more than are worked on at once.
    assert CHILDREN <= executions() <= CHILDREN + KILLS * AT_ONCE
    print(f"\n{kill.__name__}: {KILLS} kills at {done} done, {executions()} executions")  # type: ignore[attr-defined]
