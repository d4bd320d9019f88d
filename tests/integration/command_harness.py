"""A command as it is installed, running in a session of its own, with everything below it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

BIN = Path(sys.executable).parent
DEADLINE_S = 30.0

SPLIT = """def mapper(arguments):
    yield MrConfigureToReturn()
    for key, text in arguments:
        for word in text.split():
            yield word, 1
"""
ADD = """def reducer(results):
    for word, counts in results:
        yield word, sum(counts)
"""
SLOW = """import time

def mapper(arguments):
    yield MrConfigureToReturn()
    for key, seconds in arguments:
        time.sleep(seconds)
        yield key, 1
"""
JOBS = """steps:
    count: {map: split, reduce: add}
    slow: {map: slow, reduce: add}
jobs:
    wordcount: {step: count}
    slow: {step: slow}
"""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"Not within {seconds:g} s: {what}")
        time.sleep(0.01)
    return found


class Lines:
    """The lines of a stream so far."""

    def __init__(self, stream: IO[str]) -> None:
        self.all: list[str] = []
        self._thread = threading.Thread(target=self._drain, args=(stream,), daemon=True)
        self._thread.start()

    def _drain(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.all.append(line.rstrip("\n"))

    def have(self, part: str) -> bool:
        return any(part in line for line in self.all)

    def end(self) -> list[str]:
        self._thread.join(DEADLINE_S)
        return self.all


class Running(ABC):
    """What prints a line once it is ready, and serves the workflow ``words``."""

    def __init__(self, directory: Path, command: list[str], **environ: str) -> None:
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "MR_DATA_DIR": str(directory / "data"),
            "MR_RUNNERS": "2",
            **environ,
        }
        self.process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.output, self.errors = Lines(self.process.stdout), Lines(self.process.stderr)
        self.known: dict[int, psutil.Process] = {}

    @abstractmethod
    def connection(self) -> http.client.HTTPConnection:
        """A new one to its front end."""

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.errors.end()
            return bool(self.output.all)

        wait_for(is_ready, f"ready, and not {self.errors.all}")

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null")

    def count(self, text: str = "to be or not to be") -> Any:
        status, answer = self.call("POST", "/job/words/wordcount", {"arguments": {"text": text}})
        assert status == 200, answer
        return answer["result"]["pairs"]

    def children(self) -> list[psutil.Process]:
        """The front end and the worker."""
        return psutil.Process(self.process.pid).children()

    def child(self, part: str) -> psutil.Process:
        [found] = [child for child in self.children() if part in " ".join(child.cmdline())]
        return found

    def below(self) -> list[psutil.Process]:
        """All processes that it, or what it started, has started so far."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in psutil.Process(self.process.pid).children(recursive=True):
                self.known[one.pid] = one
        return list(self.known.values())

    def close(self) -> None:
        below = self.below()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self.output.end()
        self.errors.end()


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


def write_words(directory: Path) -> Path:
    """The workflow ``words`` in that directory."""
    words = directory / "words"
    words.mkdir()
    for name, text in (("jobs.yaml", JOBS), ("split.py", SPLIT), ("add.py", ADD), ("slow.py", SLOW)):
        (words / name).write_text(text)
    return words
