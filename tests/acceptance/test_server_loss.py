"""``kill -9`` of servers under a running request: through nginx, on a cluster of etcd and NSQ, the answer is right.

``JOBX_FULL=1`` runs it at the size that the project is measured by: 2,000 children.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from servers.nsq import Nsqd
from servers.platform import Cluster

from tests.acceptance.served import until
from tests.acceptance.test_kills import CHILDREN, FILES

RUNNERS = 4
LIMIT_S = 240


class Posts:
    """What a client sees of a cluster: nginx, and nothing else. One that is refused, or cut off, asks again."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        workflow = directory / "w"
        workflow.mkdir()
        for name, text in FILES.items():
            (workflow / name).write_text(text)
        cluster.jobx("apply", str(workflow))
        self.ran = directory / "ran"
        self.ran.touch()

    def executions(self) -> int:
        return self.ran.read_bytes().count(b"\n")

    def submit(self, children: int, key: str) -> str:
        body = json.dumps({"arguments": {"args": [children, str(self.ran)]}}).encode()
        path = "/job/w/fan?blocking=false"
        return str(self._until(path, body, {"Idempotency-Key": key}, lambda status: status == 202)["request_id"])

    def result(self, request_id: str) -> Any:
        path = f"/request/w/{request_id}/result"
        return self._until(path, None, {}, lambda status: status == 200)["result"]["pairs"]

    def _until(self, path: str, body: bytes | None, headers: dict[str, str], is_it: Callable[[int], bool]) -> Any:
        deadline = time.monotonic() + LIMIT_S
        last: object = "nothing was answered"
        while time.monotonic() < deadline:
            request = urllib.request.Request(self.cluster.url + path, data=body, headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    text = answer.read()
                    if is_it(answer.status):
                        return json.loads(text)
                    last = text
            except urllib.error.HTTPError as error:
                with error:
                    last = error.read()
                assert error.code in (502, 503, 504), last
            except OSError as error:
                last = error
            time.sleep(0.1)
        pytest.fail(f"{path}: {last!r}\n{self.cluster.logs()}")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Posts]]:
    servers.need("etcd-3.6", "nsq", "nginx")
    made: list[Cluster] = []

    def start(**sizes: int) -> Posts:
        cluster = Cluster(tmp_path / "cluster", runners=RUNNERS, environ={"MR_LEASE_S": "3"}, **sizes)
        made.append(cluster.start())
        return Posts(cluster, tmp_path)

    yield start
    for cluster in made:
        cluster.stop()


def answer_for(children: int) -> list[object]:
    return [["children", children], ["sum", children * (children - 1) // 2]]


def depth(nsqd: Nsqd) -> int:
    """Messages that the server holds for workers: in memory, as it was not told otherwise."""
    return sum(channel["depth"] for topic in nsqd.stats()["topics"] for channel in topic["channels"])


@pytest.mark.slow
def test_the_answer_is_right_when_one_of_each_kind_is_killed(make: Callable[..., Posts]) -> None:
    posts = make(etcd_nodes=3, nsqds=2, gunicorns=2, workers=3)
    cluster = posts.cluster
    assert cluster.etcd is not None
    request_id = posts.submit(CHILDREN, "one of each")
    done = []
    for number, victim in enumerate([cluster.etcd.nodes[0], cluster.nsqds[0], cluster.workers[0]]):
        until(lambda goal=CHILDREN * (number + 1) // 5: posts.executions() >= goal, LIMIT_S, cluster.logs)  # type: ignore[misc]
        done.append(posts.executions())
        victim.kill()
    assert posts.result(request_id) == answer_for(CHILDREN)
    assert all(0 < count < CHILDREN for count in done), done
    print(f"\nkilled at {done} of {CHILDREN} done: {posts.executions()} executions")


@pytest.mark.slow
def test_the_answer_is_right_when_the_only_nsqd_is_killed_full_of_messages_and_etcd_restarts(
    make: Callable[..., Posts],
) -> None:
    posts = make(etcd_nodes=1, nsqds=1, gunicorns=1, workers=1)
    cluster = posts.cluster
    assert cluster.etcd is not None
    [nsqd], [etcd] = cluster.nsqds, cluster.etcd.nodes
    # Many requests at once, so that much waits however few messages are sent ahead for each.
    few, requests = 5, CHILDREN // 5
    started = [posts.submit(few, f"request {number}") for number in range(requests)]
    until(lambda: depth(nsqd) > requests // 2 and posts.executions() > 0, LIMIT_S, cluster.logs)
    held = depth(nsqd)
    nsqd.kill()
    nsqd.start()
    lost = held - depth(nsqd)
    until(lambda: posts.executions() > CHILDREN // 3, LIMIT_S, cluster.logs)
    etcd.kill()
    at = posts.executions()
    etcd.start()
    assert [posts.result(one) for one in started] == [answer_for(few)] * requests
    assert lost > 0
    assert at < few * requests
    print(f"\nnsqd held {held} messages and lost {lost}; etcd restarted at {at}: {posts.executions()} executions")
