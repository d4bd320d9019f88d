"""``kill -9`` of the worker at every point of a delivery: nobody misses anything, and what comes twice has one ID.

``JOBX_FULL=1`` runs it at the size that the project is measured by: at every point there is several times, and at any
moment, on both kinds of platform.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from servers.hooks import Hook, Hooks
from servers.mail import MailServer

from mr.engine import deliver, ops
from mr.engine.shell import to_txn
from mr.engine.submit import new_request, submit
from mr.model import catalog, keys
from mr.model.catalog import settle
from mr.model.deliveries import Delivery
from mr.model.entities import decode
from tests.integration.worker_harness import Bench, bench, until

FULL = os.environ.get("JOBX_FULL") == "1"
ROUNDS = 4 if FULL else 1
PER_POINT = 3
"""Requests that are there when the worker begins which is to die."""
RANDOM_KILLS = 30 if FULL else 0
WHERE = ["embedded", "cluster"] if FULL else ["embedded"]

FILES = {
    "jobs.yaml": "steps: {one: {map: one, reduce: add}}\njobs: {one: {step: one}}",
    "one.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 'one', 1\n",
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
}

POINTS = [
    "before the end is committed",
    "after the end is committed",
    "before it is sent",
    "while it is sent",
    "after it was sent",
    "before the news of it is committed",
    "after the news of it is committed",
    "before it is put off",
    "after it is put off",
    "before it is buried",
    "after it is buried",
]
if not FULL:
    POINTS = ["before the end is committed", "after the end is committed", "while it is sent", "after it was sent"]

WORKER = """
import os, signal, sys
from dataclasses import replace
from mr import app
from mr.config import Config
from mr.engine import ops

point, times = sys.argv[1], int(sys.argv[2])

def reach(name):
    global times
    if name == point:
        times -= 1
        if times == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def what(txn):
    if any(put.key.startswith("dead/") for put in txn.puts):
        return "it is buried"
    if any(key.startswith("delivery/") for key in txn.deletes):
        return "the news of it is committed"
    for put in txn.puts:
        if put.key.startswith("delivery/"):
            return "it is put off" if b"last_error" in put.value else "the end is committed"
    return ""

def opened(config):
    platform = open_platform(config)
    commit, deliver = platform.store.commit, platform.deliver
    def committing(txns):
        for txn in txns:
            reach(f"before {what(txn)}")
        outcomes = commit(txns)
        for txn, outcome in zip(txns, outcomes):
            if outcome.verdict.value == "committed":
                reach(f"after {what(txn)}")
        return outcomes
    def delivering(delivery):
        reach("before it is sent")
        deliver(delivery)
        reach("after it was sent")
    platform.store.commit, platform.deliver = committing, delivering
    return platform

# What waits here waits for less than it would.
usual, open_platform = ops.Settings.of, app.open_platform
ops.Settings.of = lambda config: replace(usual(config), deliver_first_s=0.1, resend_first_s=0.5)
app.open_platform = opened
sys.exit(app.run_worker(Config.read(os.environ)))
"""


class Kills:
    """A workflow, whose worker dies now and then, and those who are told of its requests."""

    def __init__(self, platform: Bench, hooks: Hooks, post_office: MailServer) -> None:
        self.platform, self.hooks, self.post_office = platform, hooks, post_office
        self.submitted: list[str] = []
        self.kills: Counter[str] = Counter()

    def submit(self, number: int) -> None:
        snapshot = catalog.read(self.platform.store, "w")
        for _ in range(number):
            notify = [self.hooks.url, "mailto:ops@example.com"]
            request = new_request("w", "one", snapshot.version, time.time(), 3600, False, notify=notify)
            flow = submit(self.platform.env, request, snapshot.manifest, b'[["n",1]]', 1, None)
            self.submitted.append(self.platform.shell.run(flow).request_id)

    def worker(self, point: str = "never", times: int = 1) -> subprocess.Popen[bytes]:
        environ = {**os.environ, **self.platform.environ}
        with (self.platform.directory / "worker.log").open("ab") as log:
            command = [sys.executable, "-c", WORKER, point, str(times)]
            worker = subprocess.Popen(command, env=environ, stderr=log)
        self.platform.workers.append(worker)
        return worker

    def die(self, point: str) -> None:
        """Has requests end and be told of until the worker has died at that point."""
        statuses = {"put off": 503, "buried": 410}
        refused = next((status for word, status in statuses.items() if word in point), 204)
        self.hooks.answer = lambda hook: refused
        self.submit(PER_POINT)
        worker = self.worker(point, random.randint(1, PER_POINT))
        if point == "while it is sent":

            def answer(hook: Hook) -> int | None:
                worker.kill()
                return None

            self.hooks.answer = answer
        until(lambda: worker.poll() is not None, 30, self.platform.log)
        assert worker.returncode == -signal.SIGKILL, self.platform.log()
        self.kills[point] += 1

    def live_through_anything(self) -> None:
        """A worker that is killed at any moment while there is something to do."""
        self.submit(PER_POINT)
        worker = self.worker()
        # What takes that long is no matter: it has begun, is at work, or has done it all.
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(random.uniform(0.2, 2.0))
        worker.kill()
        worker.wait()
        self.kills["any moment"] += 1

    def owed(self) -> list[str]:
        return [entry.key for entry in self.platform.store.list(keys.deliveries("w"), keys_only=True)]

    def end(self) -> None:
        """A worker that nobody kills, until all that is owed was delivered; what was given up is sent again."""
        self.hooks.answer = lambda hook: 204
        worker = self.worker()

        def is_over() -> bool:
            for entry in self.platform.store.list(keys.deads("w")):
                read = ops.Read(entry.key, decode(Delivery, entry.key, entry.value), modified=entry.modified)
                settle(self.platform.store, to_txn(deliver.send_again(read, time.time())))
            return all(self.platform.request(one).is_done for one in self.submitted) and not self.owed()

        until(is_over, 120, self.platform.log)
        worker.terminate()
        worker.wait()

    def check(self) -> str:
        """Everybody was told of everything; what there is to be said of it."""
        taken = Counter(hook.webhook_id for hook in self.hooks.received)
        mailed = Counter(str(mail.message["Message-ID"]) for mail in self.post_office.received)
        assert set(taken) == {f"{one}_0_0" for one in self.submitted}
        assert set(mailed) == {f"<{one}_0_1@example.com>" for one in self.submitted}
        bodies: dict[str, set[str]] = {}
        for hook in self.hooks.received:
            bodies.setdefault(hook.webhook_id, set()).add(json.dumps(hook.json, sort_keys=True))
        assert all(len(different) == 1 for different in bodies.values()), "what comes twice says the same"
        return (
            f"{len(self.submitted)} requests, {self.kills.total()} kills: {taken.total()} webhooks of {len(taken)} "
            f"IDs, {mailed.total()} mails of {len(mailed)} IDs, none lost"
        )


@pytest.mark.slow
@pytest.mark.parametrize("backing", WHERE, indirect=True)
def test_no_kill_at_any_point_loses_a_notification(tmp_path: Path, backing: dict[str, str]) -> None:
    with Hooks() as hooks, MailServer() as post_office:
        settings = {
            **backing,
            "MR_LEASE_S": "0.5",
            "MR_OUTGOING_ALLOW": hooks.address,
            "MR_EMAIL_SMTP_HOSTNAME": post_office.address,
            "MR_EMAIL_SMTP_SECURITY": "none",
            "MR_EMAIL_SMTP_FROM_EMAIL": "jobx@example.com",
        }
        with bench(tmp_path, **settings) as platform:
            platform.apply(FILES)
            kills = Kills(platform, hooks, post_office)
            for _ in range(ROUNDS):
                for point in POINTS:
                    kills.die(point)
            for _ in range(RANDOM_KILLS):
                kills.live_through_anything()
            kills.end()
            print(f"\n{kills.check()}")
        assert kills.kills.total() == ROUNDS * len(POINTS) + RANDOM_KILLS
