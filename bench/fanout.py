"""Fan-out: one map to so many no-op children, each mapped and reduced, and the final answer.

    python bench/fanout.py [children ...]

Prints children a second, the processes that ran them, bytes of the store a child and the memory of every process. The
peer is the same number of bare Flask POSTs on one connection: what it would cost to call somebody for each child.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing

import psutil
from served import Client, Served, bare_flask, platform


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


def main(sizes: list[int]) -> None:
    with bare_flask() as peer_url, platform() as served:
        client, peer = Client(served.url), Client(peer_url)
        client.post("/job/bench/fan", {"arguments": {"n": 50}})
        for size in sizes:
            before = store_bytes(served)
            started = time.perf_counter()
            answer = client.post("/job/bench/fan", {"arguments": {"n": size}})
            seconds = time.perf_counter() - started
            assert answer == {"result": {"pairs": [["n", size]]}}, answer
            started = time.perf_counter()
            for _ in range(size):
                peer.post("/", {"n": 1})
            bare = time.perf_counter() - started
            print(
                f"{size:7} children: {seconds:6.2f} s, {size / seconds:6.0f}/s, "
                f"{2 * size / seconds:6.0f} invocations/s, "
                f"{(store_bytes(served) - before) / size:5.0f} bytes a child; as many bare POSTs: {bare:.2f} s, "
                f"ratio {seconds / bare:.2f}"
            )
        print(f"memory (MiB): {memory(served)}")
        client.close()
        peer.close()


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [1000, 10_000])
