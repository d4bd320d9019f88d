"""A store, a queue and real worker processes, without a front end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from mr.app import make_env, make_shell, open_platform
from mr.config import Config
from mr.engine.redrive import redrive
from mr.engine.submit import cancel, new_request, submit
from mr.handlers.files import read_directory
from mr.model import catalog, ids, keys
from mr.model.entities import Invocation, Request, decode
from mr.model.records import Done

_WORKER = """
import logging, os, sys
from mr.app import run_worker
from mr.config import Config
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
sys.exit(run_worker(Config.read(os.environ)))
"""


class Bench:
    """One platform in a directory."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.environ = {"MR_DATA_DIR": str(directory / "data"), "MR_RUNNERS": "2", "MR_LEASE_S": "2"}
        self.environ |= {name: str(value) for name, value in settings.items()}
        self.config = Config.read(self.environ)
        self.platform = open_platform(self.config)
        self.store = self.platform.store
        self.shell = make_shell(self.platform)
        self.env = make_env(self.config)
        self.workers: list[subprocess.Popen[bytes]] = []

    def apply(self, files: dict[str, str], workflow: str = "w") -> None:
        """Makes the workflow equal to these files."""
        root = self.directory / "files" / workflow
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        found = read_directory(root, workflow)

        def edit(draft: catalog.Draft) -> None:
            draft.jobs, draft.steps, draft.handlers = dict(found.jobs), dict(found.steps), dict(found.handlers)

        catalog.change(self.store, workflow, edit, create=True)

    def worker(self, **settings: object) -> subprocess.Popen[bytes]:
        environ = {**os.environ, **self.environ, **{name: str(value) for name, value in settings.items()}}
        with (self.directory / "worker.log").open("ab") as log:
            worker = subprocess.Popen([sys.executable, "-c", _WORKER], env=environ, stderr=log)
        self.workers.append(worker)
        return worker

    def submit(self, job: str, workflow: str = "w", **arguments: Any) -> str:
        snapshot = catalog.read(self.store, workflow)
        request = new_request(workflow, job, snapshot.version, time.time(), 3600, False)
        pairs = json.dumps(list(arguments.items())).encode()
        return self.shell.run(submit(self.env, request, snapshot.manifest, pairs, len(arguments), None)).request_id

    def cancel(self, request_id: str, workflow: str = "w") -> Request:
        return self.shell.run(cancel(self.env, workflow, request_id))

    def redrive(self, request_id: str, workflow: str = "w", *, is_same_manifest: bool = False) -> Request:
        newest = None if is_same_manifest else catalog.read(self.store, workflow).version
        return self.shell.run(redrive(self.env, workflow, request_id, newest))

    def request(self, request_id: str, workflow: str = "w") -> Request:
        [entry] = self.store.get([keys.request(workflow, request_id)])
        assert entry is not None
        return decode(Request, entry.key, entry.value)

    def wait(self, request_id: str, timeout: float = 60, workflow: str = "w") -> Request:
        until(lambda: self.request(request_id, workflow).is_done, timeout, self.log)
        return self.request(request_id, workflow)

    def pairs(self, request_id: str, workflow: str = "w") -> list[Any]:
        """The result; of several partitions, in order."""
        [entry] = self.store.get([keys.result(workflow, request_id)])
        assert entry is not None
        done = decode(Done, entry.key, entry.value)
        if done.partitions > 1:
            parts = [ids.reduce_of(ids.root_of(request_id), j) for j in range(done.partitions)]
            entries = self.store.get([keys.done(workflow, request_id, part) for part in parts])
            dones = [decode(Done, entry.key, entry.value) for entry in entries if entry is not None]
        else:
            dones = [done]
        pieces = [self.platform.read_dataset(one.output) or [] for one in dones if one.output is not None]
        return [pair for lines in pieces for piece in lines for pair in json.loads(piece)]

    def invocations(self, request_id: str, workflow: str = "w") -> list[Invocation]:
        prefix = keys.invocation(workflow, request_id, "")
        return [decode(Invocation, entry.key, entry.value) for entry in self.store.list(prefix, limit=100_000)]

    def failed(self, request_id: str, workflow: str = "w") -> Invocation:
        """The invocation that the request failed with."""
        request = self.request(request_id, workflow)
        assert request.state == "failed", request
        return next(
            i for i in self.invocations(request_id, workflow) if i.invocation_id == request.failed_invocation_id
        )

    def log(self) -> str:
        path = self.directory / "worker.log"
        return path.read_text()[-4000:] if path.exists() else ""

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        self.platform.close()


@contextmanager
def bench(directory: Path, **settings: object) -> Iterator[Bench]:
    made = Bench(directory, **settings)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], object], timeout: float = 30, explain: Callable[[], str] = lambda: "") -> None:
    """Waits for a condition, looking every few milliseconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about in {timeout} s\n{explain()}"
        time.sleep(0.005)


def processes_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children(recursive=True)
