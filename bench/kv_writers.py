"""Several processes that write to one SQLite store at once: how much they get done, and who waits longest.

    python bench/kv_writers.py [--processes 1 2 4] [--group 1 16] [--seconds 3] [--durable]

Each transaction has three compares and four puts, two of them of 200 bytes, as a step of an invocation has. A group is
what one call of ``commit`` carries. The last line is the time from a write's beginning to its event in another process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from mr.kv.base import Compare, Put, Txn, Verdict
from mr.kv.sqlite import SqliteStore

VALUE = b"v" * 200
LONG_S = 30.0


def step(request: str, invocation: int) -> Txn:
    own, record = f"own/{request}/{invocation:08}", f"entities/invocation/{request}/{invocation:08}"
    return Txn(
        (Compare("version", own, 0), Compare("created", f"live/{request}", 0), Compare("modified", record, 0)),
        (
            Put(own, b""),
            Put(record, VALUE),
            Put(f"done/{request}/{invocation:08}", VALUE),
            Put(f"count/{request}/0/{invocation % 32}", b""),
        ),
    )


def write(path: Path, name: str, group: int, seconds: float, durable: bool, pipe: Connection) -> None:
    store = SqliteStore(path)
    pipe.send("ready")
    pipe.recv()
    done, waits = 0, []
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        txns = [step(name, done + n)._replace(durable=durable) for n in range(group)]
        assert all(outcome.verdict is Verdict.COMMITTED for outcome in store.commit(txns))
        waits.append(time.monotonic() - begun)
        done += group
    pipe.send((done, waits))
    store.close()


def answer(path: Path, pipe: Connection) -> None:
    """Says when it saw each write of another process: they share a clock."""
    store = SqliteStore(path)
    watch = store.watch(["ring/"], store.revision())
    pipe.send("ready")
    while watch.next(LONG_S)[-1].value != b"end":
        pipe.send(time.monotonic())
    watch.close()
    store.close()


def measure_writers(processes: int, group: int, seconds: float, durable: bool) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        pipes, workers = [], []
        for n in range(processes):
            here, there = context.Pipe()
            arguments = (Path(directory) / "kv.db", f"bench/request-{n}", group, seconds, durable, there)
            workers.append(context.Process(target=write, args=arguments))
            workers[-1].start()
            pipes.append(here)
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        results = [pipe.recv() for pipe in pipes]
        for worker in workers:
            worker.join()
    total = sum(done for done, _ in results)
    print(f"{processes} processes, groups of {group}: {total / seconds:,.0f} transactions/s")
    for n, (done, waits) in enumerate(results):
        print(
            f"    process {n}: {done / seconds:8,.0f}/s   commit median {statistics.median(waits) * 1e3:6.2f} ms   "
            f"worst {max(waits) * 1e3:6.1f} ms"
        )


def measure_bell(rounds: int = 500) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        here, there = context.Pipe()
        listener = context.Process(target=answer, args=(Path(directory) / "kv.db", there))
        listener.start()
        here.recv()
        store = SqliteStore(Path(directory) / "kv.db")
        delays = []
        for _ in range(rounds):
            begun = time.monotonic()
            store.commit([Txn(puts=(Put("ring/x", b"x"),))])
            delays.append(here.recv() - begun)
        store.commit([Txn(puts=(Put("ring/x", b"end"),))])
        listener.join()
        store.close()
    delays.sort()
    print(
        f"call of commit to event in another process: median {delays[rounds // 2] * 1e3:.2f} ms, "
        f"p99 {delays[rounds * 99 // 100] * 1e3:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--group", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--durable", action="store_true", help="wait for the disk at every commit")
    given = parser.parse_args()
    for group in given.group:
        for processes in given.processes:
            measure_writers(processes, group, given.seconds, given.durable)
    measure_bell()


if __name__ == "__main__":
    main()
