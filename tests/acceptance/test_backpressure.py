"""A workflow that has enough to do turns posts away, and one request with much to do keeps no other waiting."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.acceptance.served import Answer, Served, served, until

FILES = {
    "jobs.yaml": """
steps:
  tiny: {map: tiny, reduce: add}
  gated: {map: gated, reduce: add}
  fan: {map: fan, reduce: add}
  quick: {map: leaf, reduce: add}
  slow: {map: slow, reduce: add}
jobs:
  tiny: {step: tiny}
  gated: {step: gated}
  fan: {step: fan}
""",
    "tiny.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 'n', 1\n",
    "gated.py": (
        "import os\nimport time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    while not os.path.exists(dict(arguments)['gate']):\n        time.sleep(0.01)\n    yield 'n', 1\n"
    ),
    "fan.py": (
        "def mapper(arguments):\n    given = dict(arguments)\n    yield MrConfigureToMap(given['step'])\n"
        "    for number in range(given['n']):\n        yield number, given['seconds']\n"
    ),
    "leaf.py": (
        "import time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    time.sleep(arguments[0][1])\n    yield 'n', 1\n"
    ),
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
}
FILES["slow.py"] = FILES["leaf.py"]


def ended(platform: Served, request_id: str) -> int:
    return int(platform.status(request_id)["progress"]["ended"])


def fan(platform: Served, n: int, step: str, seconds: float = 0) -> str:
    """A fan-out whose children have begun to end; its ID."""
    request_id = platform.submit("fan", n=n, step=step, seconds=seconds)
    until(lambda: ended(platform, request_id) > 3, 60, platform.log)
    return request_id


def overtaken(platform: Served, request_id: str) -> int:
    """How many children of a fan-out end while a small request is run."""
    before = ended(platform, request_id)
    assert platform.post("tiny").pairs == [["n", 1]]
    assert platform.status(request_id)["state"] == "running"
    return ended(platform, request_id) - before


def test_of_a_burst_as_many_are_accepted_as_the_limit_says(tmp_path: Path, backing: dict[str, str]) -> None:
    gate = tmp_path / "gate"
    with served(tmp_path, FILES, "--runners", "2", **backing, MR_MAX_OPEN_REQUESTS=5) as platform:

        def post(number: int) -> Answer:
            return platform.post("gated", "?blocking=false", gate=str(gate), number=number)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(post, range(40)))
        assert Counter(answer.status for answer in answers) == {202: 5, 429: 35}, platform.log()
        for answer in answers:
            if answer.status == 429:
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert (answer.json["type"], answer.json["limit"]) == ("urn:jobx:workflow-full", 5)
                assert 1 <= int(answer.headers["Retry-After"]) <= 60
        accepted = [answer.json["request_id"] for answer in answers if answer.status == 202]
        listed = platform.jobx("request", "list", "w").stdout
        assert sum(line.startswith(tuple(accepted)) for line in listed.splitlines()) == 5
        gate.touch()
        for request_id in accepted:
            assert platform.result(request_id).pairs == [["n", 1]]
        assert [platform.post("tiny").status for _ in range(12)] == [200] * 12, "one after the other there is a place"


def test_a_fan_out_does_not_keep_a_small_request_waiting(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, "--runners", "2", **backing) as platform:
        assert platform.post("fan", n=100, step="quick", seconds=0).status == 200
        bulk = fan(platform, 6000, "quick")
        # Before children were sent a few at a time, a thousand went first.
        assert overtaken(platform, bulk) < 400


def test_neither_do_long_children(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, "--runners", "2", **backing) as platform:
        bulk = fan(platform, 600, "slow", 0.05)
        assert max(overtaken(platform, bulk) for _ in range(5)) < 16


def test_nor_do_children_that_are_longer_than_those_before(tmp_path: Path, backing: dict[str, str]) -> None:
    """They were taken for short ones, so that many were sent."""
    with served(tmp_path, FILES, "--runners", "2", **backing) as platform:
        assert platform.post("fan", n=100, step="quick", seconds=0).status == 200
        bulk = fan(platform, 600, "quick", 0.1)
        assert max(overtaken(platform, bulk) for _ in range(5)) < 30


def test_a_fan_out_counts_against_the_limit_of_invocations(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, "--runners", "2", **backing, MR_MAX_INVOCATIONS=50) as platform:
        bulk = platform.submit("fan", n=400, step="slow", seconds=0.2)
        answers: list[Any] = []

        def is_full() -> bool:
            answers.append(platform.post("tiny", "?blocking=false"))
            return bool(answers[-1].status == 429)

        until(is_full, 30, platform.log, pause=0.2)
        assert answers[-1].json["limit_name"] == "max_invocations"
        assert platform.call("DELETE", f"/request/w/{bulk}").status == 200
        until(lambda: platform.post("tiny").status == 200, 30, platform.log, pause=0.2)
