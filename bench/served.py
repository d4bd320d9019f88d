"""What the benchmarks measure on: a platform started by ``jobx dev``, and a bare Flask application beside it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

FILES = {
    "jobs.yaml": """
steps:
  noop: {map: noop, reduce: add}
  fan: {map: fan, reduce: add}
  leaf: {map: leaf, reduce: add}
  much: {map: much, reduce: same}
  wait: {map: wait, reduce: add}
jobs: {noop: {step: noop}, fan: {step: fan}, much: {step: much}, wait: {step: wait}}
""",
    "noop.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 'n', 1\n",
    "fan.py": (
        "def mapper(arguments):\n    yield MrConfigureToMap('leaf')\n"
        "    for _, count in arguments:\n        for number in range(count):\n            yield number, 1\n"
    ),
    "leaf.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, value in arguments:\n        yield 'n', value\n"
    ),
    "much.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, count in arguments:\n        for number in range(count):\n            yield number, 'x' * 1024\n"
    ),
    "wait.py": (
        "import time\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, seconds in arguments:\n        time.sleep(seconds)\n    yield 'n', 1\n"
    ),
    "same.py": "def reducer(results):\n    for key, values in results:\n        yield key, values[0]\n",
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
}

_BARE = """
from flask import Flask, request
app = Flask(__name__)

@app.post("/")
def answer():
    return {"result": request.get_json(force=True)}
"""


class Served(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    data: Path


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The settings of a cluster's store and queue: one etcd and one nsqd on loopback, started for this run."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    from servers.etcd import Etcd
    from servers.nsq import Nsqd

    directory = Path(tempfile.mkdtemp(prefix="jobx-bench-"))
    try:
        with Etcd(directory / "etcd") as etcd, Nsqd(directory / "nsqd") as nsqd:
            yield {"MR_KV_URL": etcd.url, "MR_QUEUE_URL": f"nsq://{nsqd.tcp_address}"}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def platforms(with_cluster: bool) -> Iterator[dict[str, Served]]:
    """A fresh platform each, by what they run on: the embedded one, and where asked for the cluster's."""
    with ExitStack() as stack:
        found = {"embedded": stack.enter_context(platform())}
        if with_cluster:
            found["cluster"] = stack.enter_context(platform(**stack.enter_context(cluster())))
        yield found


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def platform(**settings: object) -> Iterator[Served]:
    """A fresh platform with the workflow ``bench``."""
    directory = Path(tempfile.mkdtemp(prefix="jobx-bench-"))
    workflow = directory / "bench"
    workflow.mkdir()
    for name, text in FILES.items():
        (workflow / name).write_text(text)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MR_")}
    environ |= {name: str(value) for name, value in settings.items()}
    jobx = Path(sys.executable).with_name("jobx")
    command = [str(jobx), "dev", str(workflow), "--port", "0", "--data-dir", str(directory / "data")]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("JobX is ready at "), line
        yield Served(line.split()[-1], process, directory / "data")
    finally:
        _stop(process)
        assert process.stdout is not None
        process.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def bare_flask() -> Iterator[str]:
    """The peer: Flask under gunicorn with one gevent worker, that answers what it was posted."""
    directory = Path(tempfile.mkdtemp(prefix="jobx-bench-"))
    (directory / "bare.py").write_text(_BARE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--worker-class", "gevent", "--keep-alive", "600", "--bind", f"127.0.0.1:{port}"]
    command = [sys.executable, "-m", "gunicorn", *options, "bare:app"]
    process = subprocess.Popen(command, cwd=directory, stderr=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 30
        while not _takes_connections(port):
            assert process.poll() is None and time.monotonic() < deadline, "the peer did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        _stop(process)
        shutil.rmtree(directory, ignore_errors=True)


def _takes_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Client:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def post(self, path: str, body: object) -> Any:
        data = json.dumps(body)
        self._connection.request("POST", path, data, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        return json.loads(text)

    def close(self) -> None:
        self._connection.close()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
