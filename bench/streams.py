"""What streams cost the front end: a large result, read fast and read slowly, and many who watch one request.

    python bench/streams.py [--megabytes N] [--watchers N]

Memory is the resident set of the process that serves, which is looked at every few milliseconds meanwhile.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import urlsplit

import psutil
from served import Served, platform

from mr.client import Client

PAIRS_PER_MEGABYTE = 1000
MEGABYTE = 1 << 20


class Memory:
    """The resident set of a process, in MB: when asked, and at most since it was last asked for that."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._most = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def now(self) -> float:
        return float(self._process.memory_info().rss / MEGABYTE)

    def most(self) -> float:
        most, self._most = max(self._most, self.now()), 0.0
        return most

    def _look(self) -> None:
        while not self._stopped.wait(0.005):
            self._most = max(self._most, self.now())

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()


def front_end(served: Served) -> psutil.Process:
    """The process that takes connections: the last one below gunicorn's own."""
    [arbiter] = [
        child for child in psutil.Process(served.process.pid).children() if "mr.cli.serve" in " ".join(child.cmdline())
    ]
    [worker] = arbiter.children()
    return worker


@contextmanager
def asked(served: Served, path: str, accept: str) -> Iterator[HTTPResponse]:
    parts = urlsplit(served.url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=300)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        yield connection.getresponse()
    finally:
        connection.close()


def read(response: HTTPResponse, megabytes_a_second: float | None = None) -> int:
    began, size = time.monotonic(), 0
    while piece := response.read(MEGABYTE):
        size += len(piece)
        if megabytes_a_second is not None:
            time.sleep(max(0.0, size / MEGABYTE / megabytes_a_second - (time.monotonic() - began)))
    return size


def measure_result(served: Served, memory: Memory, megabytes: int) -> None:
    with Client(served.url) as client:
        request_id = client.submit("bench", "much", {"n": megabytes * PAIRS_PER_MEGABYTE}).request_id
        assert client.wait("bench", request_id).state == "done"
    path = f"/request/bench/{request_id}/result"
    for name, accept, speed in (
        ("NDJSON", "application/x-ndjson", None),
        ("JSON", "application/json", None),
        ("NDJSON, 40 MB/s", "application/x-ndjson", 40.0),
    ):
        before, began = memory.now(), time.monotonic()
        memory.most()
        with asked(served, path, accept) as response:
            size = read(response, speed)
        took = time.monotonic() - began
        print(
            f"{name:16} {size / MEGABYTE:7.1f} MB in {took:5.1f} s   front end: before {before:6.1f} MB   "
            f"most {memory.most():6.1f} MB   after {memory.now():6.1f} MB"
        )


def measure_watchers(served: Served, memory: Memory, process: psutil.Process, watchers: int) -> None:
    with Client(served.url) as client:
        request_id = client.submit("bench", "wait", {"seconds": 3600}).request_id
    parts = urlsplit(served.url)
    text = f"GET /request/bench/{request_id}/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    before, descriptors = memory.now(), process.num_fds()
    clients = []
    try:
        for _ in range(watchers):
            clients.append(socket.create_connection((parts.hostname or "", parts.port or 0)))
            clients[-1].sendall(text)
        for client in clients:
            seen = b""
            while b"event: progress" not in seen:
                seen += client.recv(65536)
        during = memory.now()
        cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(5)
        share = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
    finally:
        for client in clients:
            client.close()
    print(
        f"{watchers} who watch one request: {(during - before) * 1024 / watchers:.1f} KiB each "
        f"({before:.1f} to {during:.1f} MB), {100 * share:.1f} % of a processor while it runs"
    )
    deadline = time.monotonic() + 60
    while process.num_fds() > descriptors + 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    with Client(served.url) as client:
        client.cancel("bench", request_id)
    print(f"All gone {60 - (deadline - time.monotonic()):.1f} s after they went away.")


def main(megabytes: int, watchers: int) -> None:
    with platform(MR_RUNNER_MEMORY_BYTES=4 << 30) as served:
        process = front_end(served)
        memory = Memory(process)
        measure_result(served, memory, megabytes)
        measure_watchers(served, memory, process, watchers)
        memory.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--watchers", type=int, default=1000)
    options = parser.parse_args()
    main(options.megabytes, options.watchers)
