"""The documentation's console examples, run as written: the same commands in one shell, and the output that is shown.

``...`` in an output stands for anything, and what differs from run to run is not compared. A command without output may
print what it likes, and has to succeed. Only what fetches and installs JobX is left out, and ports are free ones.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
MARK = "documentation-command-ended"


class Example(NamedTuple):
    command: str
    output: str


def blocks(text: str) -> list[str]:
    """The bodies of a page's console blocks."""
    found = re.findall(r"^\.\. code-block:: console\n\n((?:(?:[ ]+.*)?\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") for block in found]


def examples(text: str) -> list[Example]:
    """The commands of a page in order, each with what it prints."""
    found: list[Example] = []
    for block in blocks(text):
        lines = iter(block.splitlines())
        for line in lines:
            if not line.startswith("$ "):
                last = found.pop()
                found.append(Example(last.command, f"{last.output}{line}\n"))
                continue
            command = [line[2:]]
            if ending := re.search(r"<<'(\w+)'", line):
                for inner in lines:
                    command.append(inner)
                    if inner == ending.group(1):
                        break
            found.append(Example("\n".join(command), ""))
    return [example for example in found if not example.command.startswith("git clone ")]


class Shell:
    """One bash that runs commands in turn, and all that they started in it, until the end of the block."""

    def __init__(self, directory: Path) -> None:
        self.ports = {shown: free_port() for shown in (":8080", "8099")}
        environ = {
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "MR_BIND": f"127.0.0.1{self.real(':8080')}",
            "NO_PROXY": "*",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        self.errors = directory / ".stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                ["bash"],
                cwd=directory,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self.lines: queue.Queue[str] = queue.Queue()
        self._drainer = threading.Thread(target=self._drain, daemon=True)
        self._drainer.start()

    def _drain(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.replace("\r", ""))

    def real(self, text: str) -> str:
        """With the ports that there are in place of those that are shown."""
        for shown, port in self.ports.items():
            text = text.replace(shown, f"{':' * shown.startswith(':')}{port}")
        return text

    def check(self, example: Example) -> None:
        command, wanted = self.real(example.command), self.real(example.output)
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\ncode=$?; echo; echo {MARK} $code\n")
        self.process.stdin.flush()
        deadline = time.monotonic() + DEADLINE_S
        said, code = "", None
        # What is started in the background prints after the mark.
        while code is None or (command.rstrip().endswith("&") and not matches(wanted, said)):
            try:
                line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"$ {command}\n{said}\n(nothing more for {DEADLINE_S} s)\n{self.said_wrong()}")
            if line.startswith(MARK):
                code = int(line.split()[1])
            else:
                said += line
        assert code == 0, f"$ {command}\n{said}\nended with {code}\n{self.said_wrong()}"
        if wanted:
            assert matches(wanted, said), f"$ {command}\n{said}\nand not\n{wanted}\n{self.said_wrong()}"

    def said_wrong(self) -> str:
        return self.errors.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        # The shell has no job control, so that everything it started is in its process group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._drainer.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


VARYING = (
    (re.compile(r"\b1[0-9a-hjkmnp-tv-z]{17}(\.0\.[a-z2-7]{8}(?=-\d))?"), "REQUEST"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b"), "MOMENT"),
    (re.compile(r"\b\d+(\.\d+)? ?ms\b|\b\d+(\.\d+)? s\b"), "TIME"),
    (re.compile(r"^(worker +)\S+$", re.MULTILINE), r"\1WORKER"),
    # Pythons before 3.11 do not point at what went wrong in a line.
    (re.compile(r"^[ ~]*\^[\^~]*\n", re.MULTILINE), ""),
    (re.compile(r"(?<=\S)(\t| {2,})"), " "),
)
"""What differs from run to run, and between a table and columns with tabs."""


def matches(wanted: str, said: str) -> bool:
    for pattern, same in VARYING:
        wanted, said = pattern.sub(same, wanted), pattern.sub(same, said)
    wanted, said = (re.sub(r" +$", "", text.strip(), flags=re.MULTILINE) for text in (wanted, said))
    return re.fullmatch(".*".join(map(re.escape, wanted.split("..."))), said, re.DOTALL) is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    one = Shell(tmp_path)
    yield one
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.rst", "docs/tutorial.rst"])
def test_the_examples_of_a_page_do_what_it_says(shell: Shell, page: str) -> None:
    found = examples((REPOSITORY / page).read_text(encoding="utf-8"))
    assert found
    for example in found:
        shell.check(example)


@pytest.mark.slow
def test_a_change_that_the_readme_makes_is_live_within_a_second(shell: Shell) -> None:
    opening = (REPOSITORY / "README.rst").read_text(encoding="utf-8").partition("JobX is MapReduce")[0]
    found = examples(opening)
    for example in found:
        shell.check(example)
    again = next(example.command for example in found if example.command.startswith("curl"))
    tenfold = '{"result": {"pairs": [["be", 20], ["not", 10], ["or", 10], ["to", 20]]}}'
    shell.check(Example(f"sleep 1; {again}", tenfold))
