"""A workflow's files on a running platform: handlers, retries and the installed programs, to a request's removal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mr.kv.base import Put, Txn
from mr.model import keys
from mr.model.entities import encode
from tests.integration.worker_harness import Bench, bench, until

BIN = Path(sys.executable).parent

FAN = """
def mapper(arguments):
    [(_, names)] = arguments
    ctx.session_set("names", names)
    with FS.scratch.open("input/names", "w") as file:
        file.write("\\n".join(names))
    yield MrConfigureToMap("leaf")
    for name in names:
        yield name, 1
"""
LEAF = """
def mapper(arguments):
    [(name, _)] = arguments
    ctx.session_set("name", name)
    with FS.scratch.open("input/names") as file:
        number = file.read().split().index(name)
    with FS.scratch.open(f"found/{number}", "x") as file:
        file.write(name)
    yield MrConfigureToReturn()
    yield "found", name
"""
COLLECT = """
def reducer(results):
    for key, values in results:
        found = [FS.scratch.open(f"found/{number}").read() for number in sorted(FS.scratch.ls("found"))]
        with FS.open(f"reports/{ctx.request_id}", "w") as file:
            file.write(" ".join(found))
        yield key, found
"""
TRY = """
import os, signal

def mapper(arguments):
    yield MrConfigureToReturn()
    yield "seen", FS.scratch.exists("half")
    is_first = not FS.scratch.exists("begun")
    FS.scratch.open("begun", "a").write("begun\\n")
    with FS.scratch.open("half", "w") as file:
        file.write("x" * 200_000)
        file.flush()
        if is_first:
            os.kill(os.getpid(), signal.SIGKILL)
    yield "begun", FS.scratch.open("begun").read().split()
    yield "size", FS.scratch.get_filesize("half")
"""
KEEP = """
def reducer(results):
    for key, values in results:
        yield key, values
"""
JOBS = """
steps:
  fan: {map: fan, reduce: collect}
  leaf: {map: leaf, reduce: keep}
  try: {map: try, reduce: keep, max_attempts: 2}
jobs:
  fan: {step: fan}
  try: {step: try}
"""
FILES = {"jobs.yaml": JOBS, "fan.py": FAN, "leaf.py": LEAF, "collect.py": COLLECT, "try.py": TRY, "keep.py": KEEP}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, module_backing: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("platform"), **module_backing) as made:
        made.apply(FILES)
        made.worker()
        yield made


def run(platform: Bench, program: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / program, *arguments],
        env={"PATH": os.environ["PATH"], **platform.environ},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def expire(platform: Bench, request_id: str) -> None:
    """Ends the retention of an ended request, and waits until a worker has removed it."""
    ended = platform.request(request_id)
    assert ended.expires_timestamp is not None
    past = Put(keys.request("w", request_id), encode(msgspec.structs.replace(ended, expires_timestamp=1.0)))
    due = keys.expire("w", ended.expires_timestamp, request_id)
    platform.store.commit([Txn(puts=(past, Put(keys.expire("w", 1.0, request_id), b"{}")), deletes=(due,))])
    until(lambda: platform.store.get([keys.request("w", request_id)]) == [None], 30, platform.log)


def test_invocations_share_scratch_files_that_go_with_their_request(platform: Bench) -> None:
    names = ["to", "be", "or", "not"]
    other, request_id = (platform.submit("fan", names=names) for _ in range(2))
    assert platform.wait(other).state == platform.wait(request_id).state == "done"
    assert platform.pairs(request_id)[-1] == ["found", names]

    listed = run(platform, "jobx", "fs", "ls", "w", "-r", "--scratch", request_id)
    found = [line.split("\t")[0] for line in listed.stdout.splitlines()]
    assert found == ["found", *(f"found/{number}" for number in range(4)), "input", "input/names"]
    below = platform.config.fs_path / "w"
    assert (below / request_id).is_dir()
    expire(platform, request_id)
    assert sorted(path.name for path in below.iterdir()) == sorted(["shared", other])
    assert not [path for path in below.rglob("*") if request_id in str(path) and path.parent.name != "reports"]
    gone = run(platform, "jobx", "fs", "ls", "w", "--scratch", request_id)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "retention is over" in gone.stderr
    assert (below / "shared" / "reports" / request_id).read_text() == "to be or not"


def test_an_attempt_that_is_killed_leaves_nothing_half_for_the_next(platform: Bench) -> None:
    request_id = platform.submit("try", a=1)
    assert platform.wait(request_id).state == "done", platform.log()
    assert platform.pairs(request_id) == [["begun", [["begun", "begun"]]], ["seen", [False]], ["size", [200_000]]]
    expire(platform, request_id)
    assert not (platform.config.fs_path / "w" / request_id).exists()


def test_files_come_in_and_out_by_the_installed_program(platform: Bench) -> None:
    put = run(platform, "jobx", "fs", "put", "w", "-", "in/names", stdin="a\nb\n")
    assert (put.returncode, put.stdout, put.stderr) == (0, "", "Put 1 file, 4 bytes.\n")
    got = run(platform, "jobx", "fs", "get", "w", "in/names", "-")
    assert (got.returncode, got.stdout, got.stderr) == (0, "a\nb\n", "")
    assert run(platform, "jobx", "fs", "rm", "w", "in", "-r").returncode == 0
    refused = run(platform, "jobx", "fs", "get", "w", "in/names", "-")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("Error: 'in/names': No such file or directory. (Looked in the files of w, below ")


def test_sessions_of_a_request_are_shown_by_the_installed_program(platform: Bench) -> None:
    request_id = platform.submit("fan", names=["b", "a"])
    assert platform.wait(request_id).state == "done"
    done = run(platform, "mr_get_request_sessions", "w", "last", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    root, *children = json.loads(done.stdout)
    assert root == {"invocation_id": f"{request_id}.0", "step_name": "fan", "values": {"names": ["b", "a"]}}
    assert [(one["step_name"], one["values"]) for one in children] == [("leaf", {"name": "b"}), ("leaf", {"name": "a"})]
