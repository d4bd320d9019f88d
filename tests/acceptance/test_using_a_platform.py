"""Programs that use a running platform: by the client, by ``jobx request watch``, and as the description says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mr.client import BrokenOff, Client, InvalidRequest, JobCancelled, JobFailed, NotThere, StillRunning
from mr.model.progress import Progress
from tests.acceptance.served import BIN, Served, served, until
from tests.unit.described import Description

FILES = {
    "jobs.yaml": (
        "steps:\n"
        "  count: {map: split, combine: add, reduce: add}\n"
        "  fan: {map: fan, reduce: add}\n"
        "  hold: {map: hold, reduce: add}\n"
        "  break: {map: break, reduce: add}\n"
        "  much: {map: much, reduce: all}\n"
        "  parts: {map: much, reduce: all, partitions: 3}\n"
        "jobs:\n"
        "  wordcount: {step: count}\n"
        "  fan: {step: fan}\n"
        "  break: {step: break}\n"
        "  much: {step: much}\n"
        "  parts: {step: parts}\n"
    ),
    "split.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, text in arguments:\n        for word in text.split():\n            yield word, 1\n"
    ),
    "fan.py": (
        "def mapper(arguments):\n    yield MrConfigureToMap('hold')\n"
        "    given = dict(arguments)\n    for n in range(given['n']):\n        yield n, given['gate']\n"
    ),
    "hold.py": (
        '"""Waits until there is a file of that name."""\n'
        "import os, time\n"
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, gate in arguments:\n"
        "        while not os.path.exists(gate):\n            time.sleep(0.01)\n"
        "        yield 'n', 1\n"
    ),
    "break.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 'a', 1 / 0\n",
    "much.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    given = dict(arguments)\n    for n in range(given['n']):\n        yield n, 'x' * given['size']\n"
    ),
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
    "all.py": "def reducer(results):\n    for key, values in results:\n        yield key, list(values)[0]\n",
}


@pytest.fixture(scope="module")
def platform(module_backing: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("platform"), FILES, MR_RUNNERS=4, **module_backing) as platform:
        yield platform


@pytest.fixture
def client(platform: Served) -> Iterator[Client]:
    with Client(platform.url) as client:
        yield client


class Gate:
    """What the job ``fan`` waits for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def arguments(self, n: int) -> dict[str, Any]:
        return {"n": n, "gate": str(self._path)}

    def open(self) -> None:
        self._path.touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


def test_a_job_is_run(client: Client) -> None:
    assert dict(client.run("w", "wordcount", {"text": "to be or not to be"})) == {"be": 2, "not": 1, "or": 1, "to": 2}


def test_a_request_is_followed_to_its_end(client: Client, gate: Gate) -> None:
    request_id = client.submit("w", "fan", gate.arguments(20), name="mine").request_id
    seen: list[Progress] = []
    for progress in client.watch("w", request_id):
        seen.append(progress)
        if progress.counts.sealed == 21 and progress.counts.running:
            assert (client.status("w", request_id).state, client.status("w", request_id).name) == ("running", "mine")
            with pytest.raises(StillRunning):
                list(client.result("w", request_id))
            with pytest.raises(StillRunning):
                client.wait("w", request_id, 0.01)
            gate.open()
    assert {progress.state for progress in seen[:-1]} == {"running"}
    last = seen[-1]
    assert (last.state, last.counts.sealed, last.counts.ended, last.counts.failed) == ("done", 21, 21, 0)
    assert {step.step_name: (step.sealed, step.ended) for step in last.steps} == {"fan": (1, 1), "hold": (20, 20)}
    assert list(client.result("w", request_id)) == [("n", 20)]
    assert client.wait("w", request_id).state == "done"
    assert client.tree("w", request_id)["root"]["groups"]
    # An ended request is told of once.
    assert [progress.state for progress in client.watch("w", "last")] == ["done"]


def test_a_failure_says_where(client: Client) -> None:
    with pytest.raises(JobFailed, match="division by zero") as error:
        client.run("w", "break")
    assert (error.value.exception_type, error.value.place) == ("ZeroDivisionError", "break.py:3")
    assert error.value.request_id is not None
    status = client.wait("w", error.value.request_id)
    assert status.error is not None
    assert "break.py" in status.error.traceback
    [last] = client.watch("w", error.value.request_id)
    assert last.error is not None
    assert last.error.place == "break.py:3"


def test_a_request_that_is_cancelled_has_no_result(client: Client, gate: Gate) -> None:
    request_id = client.submit("w", "fan", gate.arguments(3)).request_id
    states: list[str] = []
    watching = threading.Thread(target=lambda: states.extend(one.state for one in client.watch("w", request_id)))
    watching.start()
    until(lambda: states)
    assert client.cancel("w", request_id).state == "cancelled"
    watching.join(30)
    assert states[-1] == "cancelled"
    with pytest.raises(JobCancelled):
        list(client.result("w", request_id))


def test_what_is_wrong_is_said(client: Client) -> None:
    with pytest.raises(NotThere):
        client.run("w", "nothing")
    with pytest.raises(InvalidRequest) as error:
        client.submit("w", "wordcount", {"text": ""}, retention_s=-5)
    assert error.value.parameter == "retention_s"


@pytest.mark.parametrize("job", ["much", "parts"])
def test_a_result_comes_in_lines(platform: Served, client: Client, job: str) -> None:
    request_id = client.submit("w", job, {"n": 3000, "size": 500}).request_id
    assert client.wait("w", request_id).state == "done"
    assert [(key, len(value)) for key, value in client.result("w", request_id)] == [(n, 500) for n in range(3000)]
    url = f"/request/w/{request_id}/result"
    lines = platform.get(url, Accept="application/x-ndjson")
    assert (lines.headers["Content-Type"], lines.headers["Vary"]) == ("application/x-ndjson", "Accept")
    pairs = [json.loads(line) for line in lines.text.splitlines()]
    assert platform.get(url).pairs == pairs
    assert len(pairs) == 3000


def test_a_result_that_breaks_off_is_not_taken_for_whole(platform: Served, client: Client) -> None:
    request_id = client.submit("w", "much", {"n": 3000, "size": 500}).request_id
    assert client.wait("w", request_id).state == "done"
    spilled = [path for path in (platform.directory / "data").rglob(f"*{request_id}/*") if path.is_file()]
    assert spilled
    for path in spilled:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    seen = 0
    with pytest.raises(BrokenOff):
        for _ in client.result("w", request_id):
            seen += 1
    assert 0 < seen < 3000


def test_watching_outlives_the_front_end(platform: Served, client: Client, gate: Gate) -> None:
    request_id = client.submit("w", "fan", gate.arguments(4)).request_id
    seen: list[Progress] = []
    watching = threading.Thread(target=lambda: seen.extend(client.watch("w", request_id)))
    watching.start()
    until(lambda: seen)
    assert platform.kill("mr.cli.serve") == 1
    gate.open()
    watching.join(30)
    assert seen[-1].state == "done", platform.log()


# --- the command ----------------------------------------------------------------------------------------------------


def watch(platform: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    return platform.jobx("request", "watch", *arguments, check=False)


def test_the_command_follows_to_the_end(platform: Served, client: Client, gate: Gate) -> None:
    request_id = client.submit("w", "fan", gate.arguments(5)).request_id
    command = [str(BIN / "jobx"), "request", "watch", request_id]
    with subprocess.Popen(command, env=platform.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert re.match(r"w/fan running, [^:]+: ", first), first
        gate.open()
        assert process.stdout.read().splitlines()[-1].startswith("w/fan done, ")
    assert process.returncode == 0
    by_http = watch(platform, "w", request_id, "--url", platform.url, "--json")
    assert (by_http.returncode, by_http.stderr) == (0, "")
    [event] = [json.loads(line) for line in by_http.stdout.splitlines()]
    assert (event["state"], event["counts"]["ended"]) == ("done", 6)


def test_the_command_ends_as_the_request_does(platform: Served, client: Client) -> None:
    request_id = client.submit("w", "break").request_id
    client.wait("w", request_id)
    for arguments, more in (
        (["w", request_id], f"jobx request why {request_id}"),
        (["w", request_id, "--url", platform.url], f"{platform.url}/request/w/{request_id}"),
    ):
        done = watch(platform, *arguments)
        assert done.returncode == 1
        assert f"The request {request_id} failed: ZeroDivisionError: division by zero (break.py:3)" in done.stderr
        assert done.stderr.splitlines()[1] == f"For the whole story: {more}"


def test_ctrl_c_ends_watching_alone(platform: Served, client: Client, gate: Gate) -> None:
    request_id = client.submit("w", "fan", gate.arguments(2)).request_id
    command = [str(BIN / "jobx"), "request", "watch", "last"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=platform.environ, text=True, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.splitlines()[-1]) == (
        130,
        f"Nobody watches any more, but the request goes on. To end it: jobx request cancel {request_id}",
    )
    assert client.status("w", request_id).state == "running"


# --- the description ------------------------------------------------------------------------------------------------


def test_a_running_platform_answers_as_it_is_described(platform: Served, client: Client, gate: Gate) -> None:
    description = Description(platform.get("/openapi.json").json)

    def ask(method: str, path: str, status: int, body: bytes | None = None, **headers: str) -> None:
        answer = platform.call(method, path, body, **headers)
        assert answer.status == status, answer
        # Drawings are no text.
        description.check(method, path, status, answer.headers, answer.text.encode())

    def ended(job: str, **arguments: Any) -> str:
        return client.wait("w", client.submit("w", job, arguments).request_id).request_id

    running = client.submit("w", "fan", gate.arguments(2)).request_id
    until(lambda: (root := client.status("w", running).progress) is not None and root.children == 2)
    cancelled = client.cancel("w", client.submit("w", "fan", gate.arguments(30)).request_id).request_id
    done, failed = ended("wordcount", text="a b"), ended("break")
    folded = ended("fan", n=30, gate=sys.executable)
    for request_id, result in ((running, 202), (cancelled, 409), (done, 200), (failed, 500), (folded, 200)):
        url = f"/request/w/{request_id}"
        ask("GET", url, 200)
        ask("GET", url, 200, Accept="text/html")
        ask("GET", f"{url}/result", result)
        ask("GET", f"{url}/result", result, Accept="application/x-ndjson")
        ask("GET", f"{url}/tree?data=true", 200)
        ask("GET", f"{url}/graph.dot", 200)
        if request_id != running:
            ask("GET", f"{url}/events", 200)
            ask("DELETE", url, 200)
    ask("POST", "/job/w/wordcount", 200, b'{"arguments": {"text": "a"}}')
    ask("POST", "/job/w/wordcount?blocking=false", 202, b'{"arguments": {"text": "a"}}')
    ask("POST", "/job/w/wordcount", 400, b"[]")
    ask("POST", "/job/w/break", 500, b"")
    ask("POST", "/job/w/nothing", 404, b"")
    ask("GET", "/job/w/wordcount", 405)
    ask("POST", "/job/w/wordcount", 413, b" " * (2 << 20))
    ask("GET", f"/request/w/{done[:-1]}", 404)
    for path in ("/", "/healthz", "/readyz"):
        ask("GET", path, 200)
