"""What `scripts/demo` does once there is an environment; its last word is its exit code, 1 where an answer is wrong."""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tokenize
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

REPOSITORY = Path(__file__).resolve().parent.parent
WORKFLOW = "stdlib_names"
JOB = "commonest_names"
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo"}
SHOWN = 20

START_S = 30
ANSWER_S = 120
STOP_S = 10
TREE_LINES = 24
PR_SET_PDEATHSIG = 1

console = Console(highlight=False)


class DemoFailed(Exception):
    """The demonstration cannot go on; the text says why."""


class Platform(NamedTuple):
    url: str
    process: subprocess.Popen[str]
    environ: dict[str, str]

    def jobx(self, *arguments: str) -> str:
        done = subprocess.run(
            [jobx(), *arguments], env=self.environ, capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
        if done.returncode:
            raise DemoFailed(f"`jobx {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return done.stdout


def jobx() -> str:
    return str(Path(sys.executable).parent / "jobx")


def end_with_parent() -> None:
    """Has the kernel stop the platform when this program is killed and cannot do it itself."""
    # Not on every system; elsewhere the ordinary ways of ending still stop it.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def platform() -> Iterator[Platform]:
    """JobX on a temporary data directory and a free port, stopped at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="jobx-demo-", ignore_cleanup_errors=True) as directory:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("MR_")}
        environ["MR_DATA_DIR"] = directory
        log = Path(directory) / "demo.log"
        with log.open("wb") as errors:
            # A session of its own: Ctrl-C reaches this program alone, which then stops the platform once and in order.
            process = subprocess.Popen(
                [jobx(), "dev", str(REPOSITORY / "handlers" / WORKFLOW), "--port", "0"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        try:
            yield Platform(ready_url(process, log), process, environ)
        finally:
            stop(process)


def ready_url(process: subprocess.Popen[str], log: Path) -> str:
    """The URL in the line by which `jobx dev` says that it takes requests."""
    lines: queue.Queue[str] = queue.Queue()

    def drain() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=drain, daemon=True).start()
    deadline = time.monotonic() + START_S
    line = "?"
    while line and (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=left)
            if found := re.search(r"JobX is ready at (http://\S+)", line):
                return found.group(1).rstrip("/")
    said = log.read_text(errors="replace")[-2000:].strip()
    raise DemoFailed(f"JobX did not start within {START_S} s. It said:\n{said or 'nothing'}")


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def post(url: str) -> tuple[list[Any], str]:
    """The job's answer and its request's ID."""
    body = json.dumps({"arguments": {}}).encode()
    call = urllib.request.Request(f"{url}/job/{WORKFLOW}/{JOB}", body, {"Content-Type": "application/json"})
    # A proxy set for the rest of the world has no business between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=ANSWER_S) as answer:
            return json.load(answer)["result"]["pairs"], answer.headers["X-MR-REQUEST-ID"]
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise DemoFailed(f"The job failed with status {error.code}: {said}") from error


def count_here() -> list[Any]:
    """The same answer, counted by one loop in this process."""
    top = sysconfig.get_path("stdlib")
    totals = collections.Counter[str]()
    names = collections.Counter[str]()
    for directory, directories, files in os.walk(top):
        directories[:] = [name for name in directories if name not in SKIPPED]
        for name in files:
            if name.endswith(".py"):
                try:
                    with tokenize.open(os.path.join(directory, name)) as file:
                        lines = file.readlines()
                    found = list(tokenize.generate_tokens(iter([*lines, ""]).__next__))
                except (SyntaxError, UnicodeError, tokenize.TokenError):
                    totals["unreadable"] += 1
                    continue
                totals["files"] += 1
                totals["lines"] += len(lines)
                names.update(token.string for token in found if token.type == tokenize.NAME)
    ranked = sorted(names.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
    pairs: list[Any] = [[kind, count] for kind, count in sorted(totals.items())]
    return pairs + [[[place, name], count] for place, (name, count) in enumerate(ranked, start=1)]


def show(pairs: list[Any]) -> None:
    totals = {key: value for key, value in pairs if isinstance(key, str)}
    console.print("The commonest names in Python's standard library:")
    table = Table()
    table.add_column("", justify="right")
    table.add_column("name")
    table.add_column("times", justify="right")
    for key, count in pairs:
        if not isinstance(key, str):
            table.add_row(str(key[0]), key[1], f"{count:,}")
    console.print(table)
    console.print(f"{totals.get('files', 0):,} files, {totals.get('lines', 0):,} lines")


def show_tree(text: str) -> None:
    lines = text.rstrip().splitlines()
    for line in lines[:TREE_LINES]:
        console.print(line, markup=False, soft_wrap=True)
    if len(lines) > TREE_LINES:
        console.print(f"… and {len(lines) - TREE_LINES:,} lines more")


def demonstrate(keep: bool) -> int:
    begun = time.monotonic()
    console.print("Starting JobX on a temporary directory …")
    with platform() as running:
        console.print(f"JobX is ready at {running.url}, {time.monotonic() - begun:.1f} s after the start.")
        command = f"curl -d '{{\"arguments\": {{}}}}' {running.url}/job/{WORKFLOW}/{JOB}"
        console.print(f"\n$ {command}", markup=False, soft_wrap=True)
        asked = time.monotonic()
        pairs, request_id = post(running.url)
        took = time.monotonic() - asked
        show(pairs)

        console.print("\n$ jobx request tree last")
        show_tree(running.jobx("request", "tree", "last"))

        counting = time.monotonic()
        expected = count_here()
        alone = time.monotonic() - counting
        right = pairs == expected
        console.print(
            f"\nJobX took {took:.1f} s, with {os.cpu_count()} CPUs and a stored invocation for every file; one loop in "
            f"one process took {alone:.1f} s and [bold]{'found the same' if right else 'found something else'}[/bold]."
        )
        if not right:
            console.print("JobX:    ", json.dumps(pairs), markup=False, soft_wrap=True)
            console.print("the loop:", json.dumps(expected), markup=False, soft_wrap=True)
        if keep:
            linger(running, request_id)
        else:
            console.print(f"All in all: {time.monotonic() - begun:.1f} s. To look at the drawing: scripts/demo --keep")
    return 0 if right else 1


def linger(running: Platform, request_id: str) -> None:
    page = f"{running.url}/request/{WORKFLOW}/{request_id}"
    console.print(f"\nThe request:  {page}\nIts drawing:  {page}/graph.svg", soft_wrap=True)
    if not shutil.which("dot"):
        console.print("              (needs graphviz; on Debian and Ubuntu: apt-get install graphviz)")
    console.print(f"For commands: export MR_DATA_DIR={running.environ['MR_DATA_DIR']}", soft_wrap=True)
    console.print(f"JobX keeps running. To stop it: Ctrl-C here, or kill {os.getpid()}")
    with contextlib.suppress(KeyboardInterrupt):
        running.process.wait()
        console.print("JobX has ended by itself.")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Shows JobX at work, and stops it afterwards.")
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C, to look around")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, interrupt)
    try:
        return demonstrate(options.keep)
    except DemoFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
