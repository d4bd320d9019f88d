"""A worker of one workflow and everything that is not its own: names that begin alike, roles of etcd."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from servers.etcd import Etcd
from servers.nsq import Nsqd

from mr.app import open_store
from mr.config import Config
from mr.engine.submit import new_request, submit
from mr.errors import StoreUnavailable
from mr.kv.base import Put, Txn
from mr.model import catalog, keys
from tests.integration.worker_harness import Bench, bench, until

FILES = {
    "jobs.yaml": """
steps:
  fan: {map: fan, reduce: add, max_failed_children: 1}
  leaf: {map: leaf, reduce: add, partitions: 2}
  fails: {map: fails, reduce: add}
  large: {map: large, reduce: add}
  slow: {map: slow, reduce: add}
jobs:
  fan: {step: fan}
  fails: {step: fails}
  large: {step: large}
  slow: {step: slow}
""",
    "fan.py": (
        "def mapper(arguments):\n    yield MrConfigureToMap('leaf')\n"
        "    for number in range(30):\n        yield number, number\n"
    ),
    "leaf.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n    S_SET('seen', True)\n"
        "    for _, number in arguments:\n        assert number != 7\n        yield 'sum', number\n"
    ),
    "fails.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    raise ValueError('no')\n",
    "large.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 'x', 'y' * 3_000_000\n",
    "slow.py": (
        "import time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n    time.sleep(60)\n    yield 'x', 1\n"
    ),
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, len(list(values))\n",
}
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def guarded(platform: Bench, workflow: str) -> Iterator[subprocess.Popen[bytes]]:
    """The worker of :mod:`tests.integration.guarded`."""
    environ = {**os.environ, **platform.environ, "MR_WORKFLOW_NAMES": workflow, "PYTHONPATH": str(ROOT)}
    with (platform.directory / "worker.log").open("ab") as log:
        worker = subprocess.Popen([sys.executable, "-m", "tests.integration.guarded"], env=environ, stderr=log)
    platform.workers.append(worker)
    yield worker
    worker.terminate()
    assert worker.wait(30) == 0, platform.log()


def live_through_much(platform: Bench, workflow: str) -> None:
    """A request of each kind."""
    fan, large = platform.submit("fan", workflow, x=1), platform.submit("large", workflow, x=1)
    fails, slow = platform.submit("fails", workflow, x=1), platform.submit("slow", workflow, x=1)
    assert platform.wait(fan, workflow=workflow).state == "done", platform.log()
    assert platform.wait(large, workflow=workflow).state == "done", platform.log()
    assert platform.wait(fails, workflow=workflow).state == "failed", platform.log()
    platform.cancel(slow, workflow)
    assert platform.pairs(fan, workflow) == [["sum", 29]]


def brief(platform: Bench, workflow: str) -> str:
    """A request that is removed as soon as it has ended."""
    snapshot = catalog.read(platform.store, workflow)
    request = new_request(workflow, "fan", snapshot.version, time.time(), 0, False)
    return platform.shell.run(submit(platform.env, request, snapshot.manifest, b'[["x", 1]]', 1, None)).request_id


@pytest.fixture
def platform(tmp_path: Path, backing: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path, **backing) as made:
        yield made


def test_a_worker_of_one_workflow_touches_nothing_of_others(platform: Bench) -> None:
    for name in ("a", "ab"):
        platform.apply(FILES, name)
    other = platform.submit("fan", "ab", x=1)
    with guarded(platform, "a") as worker:
        removed = brief(platform, "a")
        live_through_much(platform, "a")
        platform.apply({**FILES, "add.py": FILES["add.py"].replace("len(list(values))", "'new'")}, "a")
        platform.apply({**FILES, "add.py": "# other\n" + FILES["add.py"]}, "ab")
        changed = platform.submit("large", "a", x=1)
        platform.wait(changed, workflow="a")
        assert platform.pairs(changed, "a") == [["x", "new"]]
        key = keys.request("a", removed)
        until(lambda: platform.store.get([key]) == [None] or worker.poll() is not None, 60, platform.log)
        assert worker.poll() is None, platform.log()
    assert platform.request(other, "ab").state == "running", "nobody serves it"
    used = set(platform.log().rpartition("USED: ")[2].split())
    needed = {space.key for space in keys.of_workflow("a") if space.right != "nothing"}
    # What only front ends read, and what nobody is told here to be signed with.
    assert needed - used <= {"current/a", "secret/a"}


# --- roles of etcd ----------------------------------------------------------------------------------------------


def grants(workflow: str, role: str) -> list[list[str]]:
    """The arguments of etcdctl that make a role of what a worker needs."""
    found = []
    for key, right in keys.of_workflow(workflow):
        if right != "nothing":
            is_prefix = ["--prefix=true"] if key.endswith("/") else []
            found.append(["role", "grant-permission", *is_prefix, role, right, key])
    return found


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[Etcd, dict[str, str]]]:
    """An etcd with users: ``root`` may do everything, ``a`` what the worker of the workflow ``a`` needs."""
    servers.need("etcd-3.6", "nsq")
    with Etcd(tmp_path / "etcd") as etcd, Nsqd(tmp_path / "nsqd") as nsqd:
        for line in (["user", "add", "root:secret"], ["role", "add", "root"], ["user", "grant-role", "root", "root"]):
            etcd.ctl(*line)
        etcd.ctl("role", "add", "worker-a")
        for line in grants("a", "worker-a"):
            etcd.ctl(*line)
        etcd.ctl("user", "add", "a:secret")
        etcd.ctl("user", "grant-role", "a", "worker-a")
        etcd.ctl("auth", "enable")
        port = nsqd.http_address.rpartition(":")[2]
        yield etcd, {"MR_QUEUE_URL": f"nsq://{nsqd.tcp_address}?http={port}"}


def test_a_worker_with_the_role_of_its_workflow_runs_its_jobs(
    secured: tuple[Etcd, dict[str, str]], tmp_path: Path
) -> None:
    etcd, settings = secured
    with bench(tmp_path, MR_KV_URL=f"etcd://root:secret@{etcd.address}", **settings) as platform:
        for name in ("a", "ab"):
            platform.apply(FILES, name)
        platform.worker(MR_KV_URL=f"etcd://a:secret@{etcd.address}", MR_WORKFLOW_NAMES="a")
        live_through_much(platform, "a")
        until(lambda: not platform.store.list(keys.lives("a")), 30, platform.log)
        assert "permission denied" not in platform.log()


def test_etcd_refuses_that_role_what_belongs_to_others(secured: tuple[Etcd, dict[str, str]], tmp_path: Path) -> None:
    etcd, settings = secured
    environ = {"MR_DATA_DIR": str(tmp_path), **settings}
    root = open_store(Config.read({**environ, "MR_KV_URL": f"etcd://root:secret@{etcd.address}"}))
    mine = open_store(Config.read({**environ, "MR_KV_URL": f"etcd://a:secret@{etcd.address}"}))
    try:
        for workflow in ("a", "ab"):
            for key, _ in keys.of_workflow(workflow):
                name = f"{key}x" if key.endswith("/") else key
                root.commit([Txn(puts=(Put(name, b"{}"),))])
        for key, right in keys.of_workflow("a"):
            name = f"{key}x" if key.endswith("/") else key
            if right == "nothing":
                refused(lambda name=name: mine.get([name]))
            else:
                assert mine.get([name])[0] is not None
            if right != "readwrite":
                refused(lambda name=name: mine.commit([Txn(puts=(Put(name, b"[]"),))]))
        for key, _ in keys.of_workflow("ab"):
            name = f"{key}x" if key.endswith("/") else key
            refused(lambda name=name: mine.get([name]))
            refused(lambda name=name: mine.commit([Txn(puts=(Put(name, b"[]"),))]))
            refused(lambda name=name: mine.delete_prefix(name))
            refused(lambda name=name: mine.list(name))
            [entry] = root.get([name])
            assert entry is not None
            assert entry.value == b"{}"
    finally:
        mine.close()
        root.close()


def refused(act: object) -> None:
    assert callable(act)
    with pytest.raises(StoreUnavailable, match="permission denied"):
        act()
