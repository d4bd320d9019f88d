"""Small blocking requests while a bulk fan-out runs: how long they take, beside those of an idle platform in one run.

    python bench/fairness.py [--children 20000] [--child-ms 0] [--surprise] [--seconds 20] [--runners N] [--cluster]
    python bench/fairness.py --url http://HOST:PORT [--token TOKEN] …
    python bench/fairness.py --write DIRECTORY

Two clients, one at the fan-out's workflow and one at another, post a tiny job, wait for its answer, think for 20 ms and
post again: first on the idle platform, then while the fan-out runs, until it ends or for --seconds; it is cancelled
then. --child-ms is how long each child sleeps; with --surprise its handler was a quick one so far. With --url the
platform is one that runs: --write has the two workflows written first, for ``jobx apply`` to bring there.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from served import cluster, percentile, platform

BULK, OTHER = "bench", "other"
THINK_S = 0.02
WARM_UP = 20

_ADD = "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n"
FILES = {
    "jobs.yaml": """
steps:
  tiny: {map: tiny, reduce: add}
  fan: {map: fan, reduce: add}
  leaf: {map: leaf, reduce: add}
  nap: {map: nap, reduce: add}
jobs: {tiny: {step: tiny}, fan: {step: fan}}
""",
    "tiny.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 'n', 1\n",
    "fan.py": (
        "def mapper(arguments):\n    given = dict(arguments)\n    yield MrConfigureToMap(given['step'])\n"
        "    for number in range(given['children']):\n        yield number, given['child_ms']\n"
    ),
    "leaf.py": (
        "import time\n\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, child_ms in arguments:\n        if child_ms:\n            time.sleep(child_ms / 1000)\n"
        "        yield 'n', 1\n"
    ),
    "add.py": _ADD,
}
FILES["nap.py"] = FILES["leaf.py"]


def write(directory: Path) -> None:
    for workflow in (BULK, OTHER):
        (directory / workflow).mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (directory / workflow / name).write_text(text)


class Client:
    """One kept connection to a platform, which may want a token."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.netloc, timeout=120)
        self._root = parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, self._root + path, data, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 202):
            raise SystemExit(f"{method} {path} was answered with {answer.status}: {text.decode(errors='replace')}")
        return json.loads(text)

    def post(self, workflow: str, job: str, query: str = "", **arguments: int | str) -> Any:
        return self.call("POST", f"/job/{workflow}/{job}{query}", {"arguments": arguments})


class Visitor(threading.Thread):
    """Posts small jobs, one at a time, until it is stopped; ``took`` has each one's milliseconds."""

    def __init__(self, url: str, token: str, workflow: str) -> None:
        super().__init__(daemon=True)
        self._client = Client(url, token)
        self._workflow = workflow
        self._stopped = threading.Event()
        self.took: list[float] = []

    def run(self) -> None:
        while not self._stopped.is_set():
            started = time.perf_counter()
            answer = self._client.post(self._workflow, "tiny", n=1)
            self.took.append((time.perf_counter() - started) * 1000)
            assert answer == {"result": {"pairs": [["n", 1]]}}, answer
            time.sleep(THINK_S)

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def visit(url: str, token: str, seconds: float, is_over: Callable[[], bool] = lambda: False) -> dict[str, list[float]]:
    visitors = {workflow: Visitor(url, token, workflow) for workflow in (BULK, OTHER)}
    for visitor in visitors.values():
        visitor.start()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not is_over():
        time.sleep(0.25)
    for visitor in visitors.values():
        visitor.stop()
    return {workflow: visitor.took for workflow, visitor in visitors.items()}


def show(when: str, workflow: str, took: list[float], idle: list[float]) -> None:
    p50, p99 = (percentile(took, share) for share in (0.5, 0.99))
    ratios = f"   {p50 / percentile(idle, 0.5):6.1f} {p99 / percentile(idle, 0.99):6.1f} times idle"
    print(
        f"{when:12} {workflow:6} {len(took):5} requests   p50 {p50:8.1f} ms   p99 {p99:8.1f} ms   "
        f"longest {max(took):8.1f} ms{ratios if took is not idle else ''}",
        flush=True,
    )


def measure(url: str, token: str, children: int, child_ms: int, is_surprise: bool, seconds: float) -> None:
    client = Client(url, token)
    for _ in range(WARM_UP):
        for workflow in (BULK, OTHER):
            client.post(workflow, "tiny", n=1)
    client.post(BULK, "fan", children=200, child_ms=0, step="leaf")
    idle = visit(url, token, min(seconds, 5.0))
    for workflow, took in idle.items():
        show("idle", workflow, took, took)
    step = "nap" if child_ms and not is_surprise else "leaf"
    bulk = client.post(BULK, "fan", "?blocking=false", children=children, child_ms=child_ms, step=step)
    path = f"/request/{BULK}/{bulk['request_id']}"

    def progress() -> Any:
        return client.call("GET", path)

    while progress()["progress"]["children"] is None:
        time.sleep(0.01)
    started, before = time.perf_counter(), progress()["progress"]["ended"]
    busy = visit(url, token, seconds, lambda: bool(progress()["is_done"]))
    took_s = time.perf_counter() - started
    status = progress()
    ended = status["progress"]["ended"] - before
    if not status["is_done"]:
        client.call("DELETE", path)
    for workflow, took in busy.items():
        show("in a fan-out", workflow, took, idle[workflow])
    print(f"meanwhile {ended} children of {child_ms} ms ended: {ended / took_s:.0f} a second", flush=True)


def main(options: argparse.Namespace) -> None:
    if options.write is not None:
        write(options.write)
        print(f"Now: jobx apply {options.write / BULK}; jobx apply {options.write / OTHER}")
        return
    wanted = (options.children, options.child_ms, options.surprise, options.seconds)
    if options.url:
        measure(options.url, options.token, *wanted)
        return
    directory = Path(tempfile.mkdtemp(prefix="jobx-bench-"))
    try:
        write(directory)
        with cluster() if options.cluster else nullcontext({}) as settings:
            measure_on(directory, settings, options.runners, wanted)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure_on(directory: Path, settings: dict[str, str], runners: int | None, wanted: Any) -> None:
    """On a platform of its own, started for this run."""
    own = {} if runners is None else {"MR_RUNNERS": str(runners)}
    with platform(**settings, **own) as served:
        environ = {**os.environ, **settings, "MR_DATA_DIR": str(served.data)}
        for workflow in (BULK, OTHER):
            jobx = Path(sys.executable).with_name("jobx")
            subprocess.run([jobx, "apply", directory / workflow], env=environ, check=True, stdout=subprocess.DEVNULL)
        measure(served.url, "", *wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--children", type=int, default=20_000)
    parser.add_argument("--child-ms", type=int, default=0)
    parser.add_argument("--surprise", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runners", type=int)
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--url", default="")
    parser.add_argument("--token", default="")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY")
    main(parser.parse_args())
