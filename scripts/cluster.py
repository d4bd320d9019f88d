"""What `scripts/cluster` does once there is an environment; its exit code is 1 where something is wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import demo
from rich.console import Console
from rich.table import Table
from servers import ServerFailed, Unavailable, binaries
from servers.platform import Cluster
from servers.process import Server

PARTS = ("nginx", "nsq", "etcd-3.6")

console = Console(highlight=False, soft_wrap=True)


def get_programs() -> None:
    console.print(f"Getting {', '.join(PARTS)}, which takes some minutes the first time …")
    for part in PARTS:
        binaries.get(part)


def run_main_job(cluster: Cluster) -> tuple[bool, str]:
    """Whether the answer that came through nginx is the right one, and the ID of the request."""
    cluster.jobx("apply", str(demo.REPOSITORY / "handlers" / demo.WORKFLOW))
    console.print(f"\n$ curl -d '{{\"arguments\": {{}}}}' {cluster.url}/job/{demo.WORKFLOW}/{demo.JOB}", markup=False)
    asked = time.monotonic()
    pairs, request_id = demo.post(cluster.url)
    took = time.monotonic() - asked
    demo.show(pairs)
    show_messages(cluster)
    stored = read_request(cluster, request_id)
    console.print(f"etcd has request {request_id} with state {stored['state']}.")

    expected = demo.count_here()
    is_right = pairs == expected and stored["state"] == "done"
    console.print(
        f"\nCompared: the {len(pairs)} pairs that came through nginx, in {took:.1f} s, and those that one loop in this "
        f"process finds. They are [bold]{'the same' if is_right else 'not the same'}[/bold]."
    )
    if not is_right:
        console.print("the cluster:", json.dumps(pairs), markup=False)
        console.print("the loop:   ", json.dumps(expected), markup=False)
    return is_right, request_id


def show_messages(cluster: Cluster) -> None:
    counts: dict[str, list[int]] = {}
    for number, nsqd in enumerate(cluster.nsqds):
        for topic in nsqd.stats()["topics"]:
            counts.setdefault(topic["topic_name"], [0] * len(cluster.nsqds))[number] = topic["message_count"]
    table = Table()
    table.add_column("topic")
    for number in range(len(cluster.nsqds)):
        table.add_column(f"messages at nsqd {number}", justify="right")
    for topic, numbers in sorted(counts.items()):
        table.add_row(topic, *(f"{number:,}" for number in numbers))
    console.print(table)


def read_request(cluster: Cluster, request_id: str) -> Any:
    assert cluster.etcd is not None
    return json.loads(cluster.etcd.ctl("get", request_key(request_id), "--print-value-only"))


def request_key(request_id: str) -> str:
    return f"entities/request/{demo.WORKFLOW}/{request_id}"


def linger(cluster: Cluster, request_id: str) -> None:
    assert cluster.etcd is not None and cluster.lookupd is not None
    page = f"{cluster.url}/request/{demo.WORKFLOW}/{request_id}"
    etcdctl = f"{binaries.etcdctl()} --endpoints={cluster.etcd.address}"
    console.print(f"\nThe request:   {page}\nIts drawing:   {page}/graph.svg")
    console.print(f"In etcd:       {etcdctl} get {request_key(request_id)} --print-value-only")
    for nsqd in cluster.nsqds:
        console.print(f"In nsqd:       http://{nsqd.http_address}/stats")
    console.print(f"nsqlookupd:    http://{cluster.lookupd.http_address}/nodes")
    console.print(f"Logs and data: {cluster.directory}")
    console.print("For commands:")
    for name, value in cluster.settings.items():
        console.print(f"    export {name}={shlex.quote(value)}", markup=False)
    console.print(
        f"It keeps running. To stop it: Ctrl-C here, or kill {os.getpid()}. To see what it survives, kill one:"
    )
    for each in everything(cluster):
        console.print(f"    {each.name}: kill -9 {each.pid}")
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def everything(cluster: Cluster) -> list[Server]:
    assert cluster.etcd is not None and cluster.lookupd is not None
    return [*cluster.etcd.nodes, cluster.lookupd, *cluster.nsqds, *cluster.workers, *cluster.gunicorns, cluster.nginx]


def run(keep: bool) -> int:
    get_programs()
    with tempfile.TemporaryDirectory(prefix="jobx-cluster-", ignore_cleanup_errors=True) as directory:
        begun = time.monotonic()
        cluster = Cluster(Path(directory))
        console.print("Starting nginx, two gunicorns, three workers, three etcd, two nsqd and nsqlookupd …")
        try:
            with cluster:
                console.print(f"JobX is ready at {cluster.url}, {time.monotonic() - begun:.1f} s after the start.")
                is_right, request_id = run_main_job(cluster)
                if keep:
                    linger(cluster, request_id)
        except (ServerFailed, demo.DemoFailed):
            print(cluster.logs(), file=sys.stderr)
            raise
        console.print(f"Everything is stopped, {time.monotonic() - begun:.1f} s after the start.")
    return 0 if is_right else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description="Runs the main job on a cluster on loopback.")
    parser.add_argument("--keep", action="store_true", help="leave it up until Ctrl-C, and print how to look into it")
    options = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, demo.interrupt)
    try:
        return run(options.keep)
    except (Unavailable, ServerFailed, demo.DemoFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
