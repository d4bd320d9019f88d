"""The store on etcd beside the one in SQLite, measured in the same run.

    python bench/kv_etcd.py [--version 3.6] [--callers 1 32] [--groups 1 16 32 64] [--seconds 2] [--greenlets]

Each transaction has three compares and four puts, two of them of 200 bytes, as a step of an invocation has. A group is
what one call of ``commit`` carries. Both stores wait for the disk at every commit, as etcd always does; the last column
is the rate of SQLite without that, which is how the engine writes most of what it writes. CPU is that of the clients.
The last lines are the time from the call of commit to the event in another process. With --greenlets the callers are
greenlets, as in the front end, and there are no such lines.
"""

from __future__ import annotations

import sys

if "--greenlets" in sys.argv:
    import mr.web.patched  # noqa: F401

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from kv_writers import step

from mr.kv.base import Put, Store, Txn, Verdict
from mr.kv.etcd import EtcdStore
from mr.kv.sqlite import SqliteStore

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from servers.etcd import Etcd

LONG_S = 30.0
PUTS = 4


def open_store(place: str) -> Store:
    return EtcdStore(place) if place.startswith("etcd") else SqliteStore(place)


def commit_until(end: float, store: Store, caller: str, group: int, durable: bool) -> int:
    """How many transactions were committed until then."""
    done = 0
    while time.monotonic() < end:
        time.sleep(0)  # SQLite never waits: other greenlets would not get their turn
        txns = [step(caller, done + n)._replace(durable=durable) for n in range(group)]
        assert all(outcome.verdict is Verdict.COMMITTED for outcome in store.commit(txns))
        done += group
    return done


def measure(store: Store, name: str, callers: int, group: int, seconds: float, durable: bool) -> tuple[float, float]:
    """Transactions a second, and milliseconds of CPU that each took."""
    done = [0] * callers
    begun, cpu = time.monotonic(), time.process_time()

    def call(number: int) -> None:
        done[number] = commit_until(begun + seconds, store, f"bench/{name}-{number}", group, durable)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = sum(done)
    return total / (time.monotonic() - begun), (time.process_time() - cpu) / total * 1e3


def answer(place: str, pipe: Connection) -> None:
    """Says when it saw each write of another process: they share a clock."""
    store = open_store(place)
    watch = store.watch(["ring/"], store.revision())
    pipe.send("ready")
    while watch.next(LONG_S)[-1].value != b"end":
        pipe.send(time.monotonic())
    watch.close()
    store.close()


def delays_of(place: str, rounds: int = 500) -> list[float]:
    """Seconds from the call of commit to the event in another process, sorted."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    listener = context.Process(target=answer, args=(place, there))
    listener.start()
    here.recv()
    store = open_store(place)
    delays = []
    for _ in range(rounds):
        begun = time.monotonic()
        store.commit([Txn(puts=(Put("ring/x", b"x"),))])
        delays.append(here.recv() - begun)
    store.commit([Txn(puts=(Put("ring/x", b"end"),))])
    listener.join()
    store.close()
    return sorted(delays)


@contextmanager
def places(version: str) -> Iterator[dict[str, str]]:
    """Where the stores are, both on the same disk."""
    with tempfile.TemporaryDirectory() as directory, Etcd(Path(directory) / "etcd", version=version) as server:
        yield {"etcd": server.url, "SQLite": str(Path(directory) / "kv.db")}


def table(stores: dict[str, Store], callers: list[int], groups: list[int], seconds: float) -> None:
    print(f"{'':26}{'etcd':^31}{'SQLite, durable':^31}{'ratio':>7}{'SQLite':>11}{'ratio':>7}")
    head = f"{'txns/s':>10}{'puts/s':>10}{'CPU, ms':>11}"
    print(f"{'callers':>10}{'group of':>10}      {head}{head}{'':7}{'txns/s':>11}")
    for number in callers:
        for group in groups:
            kinds = (("etcd", True), ("SQLite", True), ("SQLite", False))
            (rate, cpu), (peer, peer_cpu), (fast, _) = (
                measure(stores[which], f"{number}-{group}-{durable}", number, group, seconds, durable)
                for which, durable in kinds
            )
            print(
                f"{number:>10}{group:>10}      {rate:>10,.0f}{PUTS * rate:>10,.0f}{cpu:>11.3f}"
                f"{peer:>10,.0f}{PUTS * peer:>10,.0f}{peer_cpu:>11.3f}{rate / peer:>7.2f}{fast:>11,.0f}"
                f"{rate / fast:>7.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--version", default="3.6", help="of etcd: 3.6 or 3.4")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--greenlets", action="store_true")
    given = parser.parse_args()
    with places(given.version) as where:
        stores = {name: open_store(place) for name, place in where.items()}
        table(stores, given.callers, given.groups, given.seconds)
        for store in stores.values():
            store.close()
        # Pipes between processes do not wait in a program whose threads are greenlets.
        for name, place in where.items() if not given.greenlets else ():
            delays = delays_of(place)
            median, late = delays[len(delays) // 2] * 1e3, delays[len(delays) * 99 // 100] * 1e3
            print(f"{name}: call of commit to event in another process: median {median:.2f} ms, p99 {late:.2f} ms")


if __name__ == "__main__":
    main()
