"""Handlers that take a capability: seen to wait where no live worker has it, and done when one joins."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mr.app import open_queue
from mr.config import Config
from tests.acceptance.served import BIN, Served, served, until

FILES = {
    "jobs.yaml": """
steps:
  plain: {map: words, reduce: add}
  frames: {map: render, reduce: add}
  fan: {map: fan, reduce: add}
  big: {map: words, reduce: join}
jobs:
  plain: {step: plain}
  frames: {step: frames}
  fan: {step: fan}
  big: {step: big}
""",
    "words.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, text in arguments:\n        for word in text.split():\n            yield word, 1\n"
    ),
    "render.py": (
        '"""\n**\nhandler_type: mapper\nrequired_capability: gpu\n"""\n'
        "yield MrConfigureToReturn()\nfor key, frame in arguments:\n    yield 'rendered', 1\n"
    ),
    "fan.py": (
        "def mapper(arguments):\n    yield MrConfigureToMap('frames')\n"
        "    for number in range(dict(arguments)['n']):\n        yield number, number\n"
    ),
    "add.py": "def reducer(results):\n    for word, counts in results:\n        yield word, sum(counts)\n",
    "join.py": (
        '"""\n**\nhandler_type: reducer\nrequired_capability: much_memory\n"""\n'
        "for word, counts in results:\n    yield word, sum(counts)\n"
    ),
}


@contextmanager
def worker(platform: Served, capabilities: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    environ = {**platform.environ, "MR_SYSTEM_CAPABILITIES": capabilities, **settings}
    with (platform.directory / "log").open("ab") as log:
        process = subprocess.Popen([str(BIN / "jobx"), "worker", "--quiet"], env=environ, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def live(platform: Served) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(platform.jobx("worker", "list", "--json").stdout)
    return found


def waited_for(platform: Served, request_id: str) -> list[tuple[str, str, str]]:
    status = platform.status(request_id)
    assert bool(status["detail"]) is bool(status["waiting_for"])
    return [(one["capability"], one["step"], one["handler"]) for one in status["waiting_for"]]


def doctor(platform: Served) -> tuple[int, list[str]]:
    """The exit code, and the problems."""
    done = platform.jobx("doctor", "--json", check=False)
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, [one["text"] + one["advice"] for one in findings if one["level"] == "problem"]


def test_work_that_no_live_worker_can_do_is_seen_and_done_when_one_joins(
    tmp_path: Path, backing: dict[str, str]
) -> None:
    with served(tmp_path, FILES, **backing) as platform:
        assert platform.post("plain", text="a b a").pairs == [["a", 2], ["b", 1]]
        [one] = live(platform)
        assert (one["capabilities"], one["workflows"]) == (["general"], ["w"])
        request_id = platform.submit("frames", one=1, two=2)
        assert waited_for(platform, request_id) == [("gpu", "frames", "render")]
        code, problems = doctor(platform)
        assert code == 1
        assert any("'gpu'" in text and request_id in text for text in problems), problems
        assert "MR_SYSTEM_CAPABILITIES=gpu" in platform.jobx("request", "tree", request_id).stderr
        # Who has something else does not help.
        with worker(platform, "much_memory"):
            until(lambda: len(live(platform)) == 2, 30, platform.log)
            assert waited_for(platform, request_id) == [("gpu", "frames", "render")]
            with worker(platform, "gpu"):
                assert platform.result(request_id).pairs == [["rendered", 2]]
                assert waited_for(platform, request_id) == []
                assert doctor(platform) == (0, [])
        until(lambda: len(live(platform)) == 1, 30, platform.log)
        assert doctor(platform)[0] == 1, "whoever could do it is gone again"


def test_a_blocking_post_waits_for_a_worker_to_come(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, **backing) as platform, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(platform.post, "frames", one=1)
        until(lambda: "running" in platform.jobx("request", "list").stdout, 30, platform.log)
        with worker(platform, "gpu"):
            answer = waiting.result(60)
            assert (answer.status, answer.pairs) == (200, [["rendered", 1]])


def test_children_and_reduces_that_wait_are_seen_in_the_midst_of_a_request(
    tmp_path: Path, backing: dict[str, str]
) -> None:
    with served(tmp_path, FILES, **backing) as platform:
        fan, big = platform.submit("fan", n=300), platform.submit("big", text="a a")
        until(lambda: waited_for(platform, fan) == [("gpu", "frames", "render")], 30, platform.log)
        until(lambda: waited_for(platform, big) == [("much_memory", "big", "join")], 30, platform.log)
        with worker(platform, "gpu,much_memory"):
            assert platform.result(fan).pairs == [["rendered", 300]]
            assert platform.result(big).pairs == [["a", 2]]


def test_messages_that_were_lost_are_sent_again_when_a_worker_joins(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, **backing) as platform:
        request_id = platform.submit("fan", n=20)
        until(lambda: waited_for(platform, request_id), 30, platform.log)
        # Somebody takes the messages and does nothing for them: what a kill of nsqd comes to.
        queue = open_queue(Config.read(platform.environ))
        thief = queue.consumer("general_worker", max_in_flight=100)
        thief.subscribe(["mr.w.map.gpu"])
        stolen = 0
        while stolen < 20:
            deliveries = thief.receive(100, 1)
            thief.finish(deliveries)
            stolen += len(deliveries)
        thief.close()
        queue.close()
        with worker(platform, "gpu"):
            assert platform.result(request_id).pairs == [["rendered", 20]]


def test_a_worker_that_is_killed_is_not_listed_for_long(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, **backing) as platform:
        with worker(platform, "gpu") as process:
            until(lambda: len(live(platform)) == 2, 30, platform.log)
            process.kill()
            until(lambda: len(live(platform)) == 1, 30, platform.log)
        request_id = platform.submit("frames", one=1)
        assert waited_for(platform, request_id) == [("gpu", "frames", "render")]


def test_a_worker_serves_the_workflows_that_come_later(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, **backing) as platform:
        platform.run("mr_kv_workflow_create", "later", "")
        until(lambda: live(platform)[0]["workflows"] == ["later", "w"], 30, platform.log)
        platform.run("mr_kv_workflow_delete", "later")
        until(lambda: live(platform)[0]["workflows"] == ["w"], 30, platform.log)


@pytest.mark.parametrize("names", ["w", "other"])
def test_a_worker_of_one_workflow_serves_no_other(tmp_path: Path, names: str) -> None:
    with served(tmp_path, FILES) as platform:
        platform.run("mr_kv_workflow_create", "other", "")
        with worker(platform, "gpu", MR_WORKFLOW_NAMES=names):
            until(lambda: len(live(platform)) == 2, 30, platform.log)
            [joined] = [one for one in live(platform) if one["capabilities"] == ["gpu"]]
            assert joined["workflows"] == [names]
            request_id = platform.submit("frames", one=1)
            if names == "w":
                assert platform.result(request_id).pairs == [["rendered", 1]]
            else:
                assert waited_for(platform, request_id) == [("gpu", "frames", "render")]
