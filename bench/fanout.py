"""Fan-out: one map to so many no-op children, each mapped and reduced, and the final answer.

    python bench/fanout.py [--cluster] [children ...]

With --cluster also on an etcd and an nsqd. Prints children a second, the processes that ran them, bytes of the store a
child (embedded) and the memory of every process. The peer is the same number of bare Flask POSTs on one connection:
what it would cost to call somebody for each child.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from contextlib import closing

import psutil
from served import Client, Served, bare_flask, platforms


def memory(served: Served) -> str:
    processes = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
    return ", ".join(f"{process.memory_info().rss / 1024 / 1024:.0f}" for process in processes)


def store_bytes(served: Served) -> int:
    """What the store would have as one file, whatever of it still stands in its write-ahead log."""
    [path] = served.data.glob("kv*.sqlite")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages * size)


def measure(name: str, served: Served, sizes: list[int], peer: Client) -> None:
    client = Client(served.url)
    client.post("/job/bench/fan", {"arguments": {"n": 50}})
    for size in sizes:
        before = store_bytes(served) if name == "embedded" else 0
        started = time.perf_counter()
        answer = client.post("/job/bench/fan", {"arguments": {"n": size}})
        seconds = time.perf_counter() - started
        assert answer == {"result": {"pairs": [["n", size]]}}, answer
        started = time.perf_counter()
        for _ in range(size):
            peer.post("/", {"n": 1})
        bare = time.perf_counter() - started
        grown = f"{(store_bytes(served) - before) / size:5.0f} bytes a child; " if name == "embedded" else ""
        print(
            f"{name:9}{size:7} children: {seconds:6.2f} s, {size / seconds:6.0f}/s, "
            f"{2 * size / seconds:6.0f} invocations/s, {grown}as many bare POSTs: {bare:.2f} s, "
            f"ratio {seconds / bare:.2f}"
        )
    print(f"{name:9}memory (MiB): {memory(served)}")
    client.close()


def main(sizes: list[int], with_cluster: bool) -> None:
    with bare_flask() as peer_url, platforms(with_cluster) as served:
        peer = Client(peer_url)
        for name, one in served.items():
            measure(name, one, sizes, peer)
        peer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("sizes", type=int, nargs="*", metavar="children")
    options = parser.parse_args()
    main(options.sizes or [1000, 10_000], options.cluster)
