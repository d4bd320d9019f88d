"""The store in a SQLite file, among processes that write, wait, fork and die."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mr.errors import StoreUnavailable
from mr.kv.base import Compare, Event, Put, Txn
from mr.kv.sqlite import SqliteStore
from mr.local.clock import Clock

LONG_S = 30.0

PREAMBLE = """
import os, sys, time
from mr.kv.base import Put, Txn, Verdict
from mr.kv.sqlite import SqliteStore
store = SqliteStore(sys.argv[1])
"""

# Each group is one commit of 8 transactions of 8 puts; its number is told once it is acknowledged.
WRITER = """
name, first = sys.argv[2], int(sys.argv[3])
value = b"v" * 300
for group in range(first, 1_000_000):
    store.commit([
        Txn(puts=tuple(Put(f"{name}/{part}/{group:07}/{txn}", value) for part in range(8)), durable=group % 16 == 0)
        for txn in range(8)
    ])
    os.write(1, b"%d\\n" % group)
"""

COUNTER = """
worst = 0.0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    begun = time.monotonic()
    store.commit([Txn(puts=(Put("count", b""),))])
    worst = max(worst, time.monotonic() - begun)
print(worst, flush=True)
store.close()
"""

ANSWERER = """
watch = store.watch(["ask/"], store.revision())
print("ready", flush=True)
while True:
    for event in watch.next(30):
        if event.key == "ask/end":
            watch.close()
            store.close()
            sys.exit()
        store.commit([Txn(puts=(Put("answer/" + event.key[4:], b""),))])
"""

GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent
PREAMBLE
ticks = 0
def tick():
    global ticks
    while True:
        gevent.sleep(0.005)
        ticks += 1
gevent.spawn(tick)
watch = store.watch(["k"], store.revision())
waiting = gevent.spawn(watch.next, 30)
gevent.sleep(0.1)
assert ticks > 2, ticks
begun = time.monotonic()
store.commit([Txn(puts=(Put("k", b"v"),))])
events = waiting.get(timeout=30)
assert [event.key for event in events] == ["k"]
assert time.monotonic() - begun < 3
jobs = [gevent.spawn(store.commit, [Txn(puts=(Put("count", b""),))]) for _ in range(200)]
gevent.joinall(jobs, raise_error=True)
assert store.get(["count"])[0].version == 200
watch.close()
store.close()
""".replace("PREAMBLE", PREAMBLE)

FORKER = """
store.commit([Txn(puts=(Put("parent", b""),))])
watch = store.watch([""], store.revision())
pid = os.fork()
if pid == 0:
    assert store._file._writer is None, "SQLite forbids to use a connection of before a fork"
    store.commit([Txn(puts=(Put("child", b""),))])
    assert [entry.key for entry in store.list("")] == ["child", "parent"]
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
assert [event.key for event in watch.next(30)] == ["child"]
store.commit([Txn(puts=(Put("parent", b""),))])
assert [event.key for event in watch.next(30)] == ["parent"]
watch.close()
store.close()
"""

# The parent dies while its forked child lives on; the parent was in the middle of a write.
ORPHANER = """
with store._file.write():
    pid = os.fork()
    if pid == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
    time.sleep(600)
"""


def spawn(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> int:
    with process:
        try:
            return process.wait(LONG_S)
        finally:
            process.kill()


def run(script: str, path: Path) -> None:
    assert ended(spawn(script, path)) == 0


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_acknowledged_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = tmp_path / "kv.db"
    chance = random.Random(7)
    acknowledged: dict[str, int] = {}
    for life in range(12):
        # Two at once, so that one may die while the other waits for its turn.
        writers = {name: spawn(PREAMBLE + WRITER, path, name, acknowledged.get(name, -1) + 1) for name in ("x", "y")}
        for name, writer in writers.items():
            for _ in range(chance.randrange(1, 12)):
                acknowledged[name] = int(told(writer))
        for name, writer in writers.items():
            time.sleep(chance.random() * 0.004)  # any moment of a commit
            writer.kill()
            assert writer.stdout is not None
            rest = writer.stdout.read().split()
            acknowledged[name] = int(rest[-1]) if rest else acknowledged[name]
            assert ended(writer) == -signal.SIGKILL
        store = SqliteStore(path)
        for name, last in acknowledged.items():
            groups: dict[str, int] = {}
            after = ""
            while page := store.list(f"{name}/", after=after, keys_only=True):
                after = page[-1].key
                for entry in page:
                    group = entry.key.split("/")[2]
                    groups[group] = groups.get(group, 0) + 1
            assert set(groups.values()) == {64}, f"half a commit in life {life}"
            # The one group that was committed and not told of any more may be there or not.
            assert len(groups) - (last + 1) in (0, 1)
            acknowledged[name] = len(groups) - 1
        assert store.revision() == 1 + 8 * sum(last + 1 for last in acknowledged.values())
        store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_processes_that_write_at_once_all_get_their_turn(tmp_path: Path) -> None:
    each = 300
    writers = [spawn(PREAMBLE + COUNTER, tmp_path / "kv.db", each) for _ in range(4)]
    for writer in writers:
        assert told(writer) == "ready"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    worst = [float(told(writer)) for writer in writers]
    assert [ended(writer) for writer in writers] == [0] * 4
    store = SqliteStore(tmp_path / "kv.db")
    (entry,) = store.get(["count"])
    assert entry is not None and entry.version == 4 * each
    store.close()
    assert max(worst) < 10


def test_a_write_wakes_a_watch_of_another_process_at_once(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    answerer = spawn(PREAMBLE + ANSWERER, tmp_path / "kv.db")
    assert told(answerer) == "ready"
    watch = store.watch(["answer/"], store.revision())
    times = []
    for n in range(20):
        begun = time.monotonic()
        (outcome,) = store.commit([Txn(puts=(Put(f"ask/{n}", b""),))])
        assert watch.next(LONG_S) == [Event(f"answer/{n}", b"", outcome.revision + 1)]
        times.append(time.monotonic() - begun)
    store.commit([Txn(puts=(Put("ask/end", b""),))])
    assert ended(answerer) == 0
    watch.close()
    store.close()
    # There and back. Far below the poll that stands in for a lost ring, even on a busy machine.
    assert sorted(times)[10] < 0.4


def test_a_watch_sees_what_was_written_by_a_process_that_died_before_it_could_ring(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    watch = store.watch(["k"], store.revision())
    run(PREAMBLE + "store._bell.close()\nstore.commit([Txn(puts=(Put('k', b''),))])\nos._exit(0)", tmp_path / "kv.db")
    assert [event.key for event in watch.next(LONG_S)] == ["k"]
    watch.close()
    store.close()


def test_watches_of_killed_processes_are_forgotten(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    bells = tmp_path / "kv.db.bells"
    answerer = spawn(PREAMBLE + ANSWERER, tmp_path / "kv.db")
    assert told(answerer) == "ready"
    # One that was rung before, and one that was not.
    store.commit([Txn(puts=(Put("ask/1", b""),))])
    unrung = spawn(PREAMBLE + ANSWERER, tmp_path / "kv.db")
    assert told(unrung) == "ready"
    assert len(list(bells.iterdir())) == 4
    for process in (answerer, unrung):
        process.kill()
        ended(process)
    store.commit([Txn(puts=(Put("ask/2", b""),))])
    assert list(bells.iterdir()) == []
    store.close()


def test_a_writer_gets_its_turn_the_moment_that_another_ends(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "kv.db"), SqliteStore(tmp_path / "kv.db")
    waits = []
    for _ in range(5):
        with ThreadPoolExecutor(1) as pool:
            with first._file.write():
                waiting = pool.submit(lambda: (second.commit([Txn(puts=(Put("k", b""),))]), time.monotonic())[1])
                # Long enough that SQLite's own waiting would by now look every 100 ms only.
                time.sleep(0.4)
                ending = time.monotonic()
            waits.append(waiting.result(LONG_S) - ending)
    first.close()
    second.close()
    assert sorted(waits)[2] < 0.4


def test_a_write_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    with pytest.raises(KeyboardInterrupt), store._file.write() as connection:
        connection.execute("INSERT INTO kv VALUES ('k', '', 1, 1, 1, 0)")
        raise KeyboardInterrupt
    assert store.count("") == 0
    store.commit([Txn(puts=(Put("a", b""),))])
    assert [entry.key for entry in store.list("")] == ["a"]
    store.close()


@pytest.mark.parametrize("script", [GEVENT, PREAMBLE + FORKER], ids=["gevent", "fork"])
def test_it_works_in_other_kinds_of_process(tmp_path: Path, script: str) -> None:
    run(script, tmp_path / "kv.db")


def test_a_child_that_outlives_a_killed_writer_does_not_keep_its_turn(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    writer = spawn(PREAMBLE + ORPHANER, tmp_path / "kv.db")
    orphan = int(told(writer))
    writer.kill()
    try:
        assert writer.wait(LONG_S) == -signal.SIGKILL
        run(PREAMBLE + "store.commit([Txn(puts=(Put('k', b''),))])\nstore.close()", tmp_path / "kv.db")
    finally:
        os.kill(orphan, signal.SIGKILL)
        ended(writer)
    assert store.count("") == 1
    store.close()


def test_processes_that_open_a_new_store_at_once_all_find_it_whole(tmp_path: Path) -> None:
    openers = [spawn(PREAMBLE + COUNTER, tmp_path / "deep" / "er" / "kv.db", 1) for _ in range(6)]
    for opener in openers:
        opener.communicate("go\n", timeout=LONG_S)
        assert ended(opener) == 0
    store = SqliteStore(tmp_path / "deep" / "er" / "kv.db")
    assert store.revision() == 7
    store.close()


def test_leases_of_an_earlier_boot_are_over(tmp_path: Path) -> None:
    before = SqliteStore(tmp_path / "kv.db", clock=Clock(lambda: 90_000.0, "first"))
    lease = before.grant(60)
    before.commit([Txn(puts=(Put("own", b"", lease), Put("kept", b"")))])
    revision = before.revision()
    before.close()
    after = SqliteStore(tmp_path / "kv.db", clock=Clock(lambda: 5.0, "second"))
    assert [entry.key for entry in after.list("")] == ["kept"]
    assert not after.keep_alive(lease)
    assert after.revision() == revision + 1
    own = after.grant(60)
    assert own != lease
    after.commit([Txn((Compare("version", "own", 0),), (Put("own", b"", own),))])
    again = SqliteStore(tmp_path / "kv.db", clock=Clock(lambda: 6.0, "second"))
    assert [entry.key for entry in again.list("")] == ["kept", "own"]
    after.close()
    again.close()


def test_the_wall_clock_may_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    lease = store.grant(60)
    store.commit([Txn(puts=(Put("own", b"", lease),))])
    for jump in (+1e6, -1e6):
        now = time.time() + jump
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert store.keep_alive(lease)
        assert store.count("own") == 1
    store.close()


def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data" / "kv.db")
    watch = store.watch([""], 0)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "data").iterdir()} == {
        name: 0 for name in ("kv.db", "kv.db-wal", "kv.db-shm", "kv.db.lock", "kv.db.bells")
    }
    watch.close()
    store.close()


def test_a_path_longer_than_a_socket_address_can_be_watched(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / ("long" * 30) / ("longer" * 20) / "kv.db")
    watch = store.watch([""], store.revision())
    store.commit([Txn(puts=(Put("k", b""),))])
    assert [event.key for event in watch.next(LONG_S)] == ["k"]
    watch.close()
    store.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"something else entirely, and longer than a header of SQLite " * 50)


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()


def newer(path: Path) -> None:
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def a_directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [(no_database, "not a database"), (foreign, "not a store"), (newer, "format 99"), (a_directory, "unable to open")],
)
def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "kv.db"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StoreUnavailable, match=words) as caught:
        SqliteStore(path)
    assert str(path) in str(caught.value)
    assert not path.is_file() or path.read_bytes() == before


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="file"):
        SqliteStore(tmp_path / "file" / "kv.db")


def test_a_full_disk_refuses_and_changes_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    store.commit([Txn(puts=(Put("a", b"before"),))])
    revision = store.revision()
    with store._file.write() as connection:
        # SQLite's own limit on pages fails as a full disk does.
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="free some space"):
        store.commit([Txn(puts=(Put("a", b"after"), Put("b", bytes(500_000))))])
    (entry,) = store.get(["a"])
    assert entry is not None and entry.value == b"before"
    assert store.revision() == revision
    # Once there is space again the same store goes on.
    store.commit([Txn(puts=(Put("b", bytes(500_000)),))])
    assert store.count("") == 2
    store.close()


def list_all(path: Path) -> None:
    store = SqliteStore(path)
    try:
        store.list("")
    finally:
        store.close()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db")
    for n in range(50):
        store.commit([Txn(puts=(Put(f"k{n:02}", bytes(2000)),))])
    store.close()
    with open(tmp_path / "kv.db", "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)
    with pytest.raises(StoreUnavailable, match="damaged"):
        list_all(tmp_path / "kv.db")


def test_the_log_stays_bounded(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "kv.db", history=1000)
    for _ in range(150):
        store.commit([Txn(puts=(Put("k", b""),))] * 20)
    with store._file.read() as connection:
        assert connection.execute("SELECT count(*) FROM log").fetchone()[0] < 2000
    store.close()


def test_the_log_forgets_what_is_old_though_it_is_little(tmp_path: Path) -> None:
    now = [0.0]
    store = SqliteStore(tmp_path / "kv.db", clock=Clock(lambda: now[0], "boot"))
    store.commit([Txn(puts=(Put("k", b""),))] * 100)
    now[0] = 3600.0
    for _ in range(6):
        store.commit([Txn(puts=(Put("k", b""),))] * 100)
    with store._file.read() as connection:
        assert connection.execute("SELECT min(revision) FROM log").fetchone()[0] > 100
    store.close()
