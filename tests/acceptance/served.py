"""The installed program as a user runs it: ``jobx dev`` in a directory of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

BIN = Path(sys.executable).parent


class Answer(NamedTuple):
    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def pairs(self) -> Any:
        return self.json["result"]["pairs"]


class Served:
    """One platform. It can be killed, whole or in part, and started again on what it left."""

    def __init__(self, directory: Path, files: dict[str, str], *options: str, **settings: object) -> None:
        self.directory = directory
        self.workflow = directory / "w"
        self.write(files)
        self._options = options
        self.environ = {**os.environ, "MR_DATA_DIR": str(directory / "data"), "MR_LEASE_S": "2"}
        self.environ |= {name: str(value) for name, value in settings.items()}
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        self.port = 0

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.workflow / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def start(self) -> None:
        command = [str(BIN / "jobx"), "dev", str(self.workflow), "--port", str(self.port), *self._options]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("JobX is ready at http://"), line + self.log()
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._reap(30)

    def kill_everything(self) -> None:
        """``kill -9`` of all processes at once."""
        assert self.process is not None
        processes = [psutil.Process(self.process.pid), *self.children()]
        for process in processes:
            _kill(process)
        self._reap(10)

    def kill(self, *words: str) -> int:
        """``kill -9`` of the child processes whose command line has all these words; how many."""
        found = [
            process for process in self.children(recursive=False) if all(word in _command(process) for word in words)
        ]
        for process in found:
            _kill(process)
        return len(found)

    def children(self, recursive: bool = True) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=recursive)

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text()[-6000:] if path.exists() else ""

    def _reap(self, timeout: float) -> int:
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()

    # --- as a client ------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: bytes | None = None, timeout: float = 60, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, answer.headers, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read().decode())

    def get(self, path: str, **headers: str) -> Answer:
        return self.call("GET", path, **headers)

    def post(
        self, job: str, query: str = "", timeout: float = 60, headers: dict[str, str] | None = None, **arguments: Any
    ) -> Answer:
        body = json.dumps({"arguments": arguments}).encode()
        return self.call("POST", f"/job/w/{job}{query}", body, timeout, **(headers or {}))

    def submit(self, job: str, **arguments: Any) -> str:
        answer = self.post(job, "?blocking=false", **arguments)
        assert answer.status == 202, answer
        return str(answer.json["request_id"])

    def status(self, request_id: str) -> Any:
        return self.get(f"/request/w/{request_id}").json

    def result(self, request_id: str, timeout: float = 60) -> Answer:
        """The result, once there is one; connections may be refused while something was killed."""
        answers: list[Answer] = []

        def ended() -> bool:
            try:
                answers.append(self.get(f"/request/w/{request_id}/result"))
            except (ConnectionError, urllib.error.URLError, TimeoutError):
                return False
            return answers[-1].status not in (202, 503)

        until(ended, timeout, self.log, pause=0.1)
        return answers[-1]

    def jobx(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("jobx", *arguments, check=check)

    def run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(BIN / program), *arguments], env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


@contextmanager
def served(directory: Path, files: dict[str, str], *options: str, **settings: object) -> Iterator[Served]:
    platform = Served(directory, files, *options, **settings)
    platform.start()
    try:
        yield platform
    finally:
        if platform.process is not None and platform.process.poll() is None:
            platform.kill_everything()


def until(
    condition: Callable[[], object], timeout: float = 30, explain: Callable[[], str] = lambda: "", pause: float = 0.02
) -> None:
    """Waits for a condition, looking now and then."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about in {timeout} s\n{explain()}"
        time.sleep(pause)
