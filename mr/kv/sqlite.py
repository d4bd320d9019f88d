"""The store in a SQLite file, shared by all processes of one machine."""

from __future__ import annotations

import builtins
import itertools
import math
import os
import re
import sqlite3
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mr.errors import Compacted, StoreUnavailable
from mr.findings import Finding
from mr.kv.base import Entry, Event, Outcome, Put, Store, Txn, Verdict, Watch
from mr.kv.limits import check_transactions
from mr.local.bell import Bell
from mr.local.clock import Clock, machine_clock
from mr.local.file import SqliteFile

# With a rowid the b-tree of keys stays small and a put of a known key leaves it alone: next to a table WITHOUT ROWID
# that is twice the puts and three times the gets at 1,500-byte values, and no slower at 200.
#
# log has one row a transaction that changed something: its keys, each after a newline. The newest row is never
# removed, so it tells the store's revision, too. noted is the time by the machine's clock.
_SCHEMA = """
CREATE TABLE kv (
    key TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL,
    created INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease INTEGER NOT NULL
);
CREATE INDEX kv_lease ON kv (lease) WHERE lease <> 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL, expires REAL NOT NULL);
CREATE INDEX lease_expires ON lease (expires);
CREATE TABLE log (revision INTEGER PRIMARY KEY, noted REAL NOT NULL, keys TEXT NOT NULL);
INSERT INTO log VALUES (1, 0, '');
CREATE TABLE boot (id TEXT NOT NULL);
INSERT INTO boot VALUES ('')
"""

# Keys under a lease that is over are gone, although their rows may still be there.
_ALIVE = "(lease = 0 OR lease IN (SELECT id FROM lease WHERE expires > :now))"
_LISTED = f"FROM kv WHERE key >= :low AND key < :high AND {_ALIVE} ORDER BY key"
_LIST = {
    (keys_only, reverse): (
        f"SELECT key, {'x' + repr('') if keys_only else 'value'}, created, modified, version, lease "
        f"{_LISTED}{' DESC' if reverse else ''} LIMIT :limit"
    )
    for keys_only in (False, True)
    for reverse in (False, True)
}
# The index of keys alone answers this; the few keys under dead leases are then found by theirs.
_COUNT = """
SELECT (SELECT count(*) FROM kv WHERE key >= :low AND key < :high)
     - (SELECT count(*) FROM kv WHERE lease <> 0 AND key >= :low AND key < :high
                                  AND lease NOT IN (SELECT id FROM lease WHERE expires > :now))
"""
_PUT = """
INSERT INTO kv VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET
    value = excluded.value, created = excluded.created, modified = excluded.modified,
    version = excluded.version, lease = excluded.lease
"""
_REVISION = "SELECT max(revision) FROM log"

_ABOVE_ALL = "\x7f"
"""Follows every character that a key may have."""

_BEYOND_KEYS = re.compile("[^\\0-\x7f].*", re.DOTALL)

_PAGE = 500
"""Keys that :meth:`SqliteStore.delete_prefix` deletes in one turn at the file."""

_LOG_AGE_S = 600.0
_TRIM_EVERY = 512
"""Revisions between two looks at how long the log is."""

_WATCH_IDLE_S = 0.5
"""How late a watch notices what nobody rang for: a lease that ends, a writer that was killed before it could ring."""

_WATCH_ROWS = 5000


class _State(NamedTuple):
    """What a transaction needs to know of a key; all 0 where it is absent."""

    created: int
    modified: int
    version: int


_ABSENT = _State(0, 0, 0)


class SqliteStore(Store):
    """A store in one file. Durable transactions wait for the disk; others survive the death of every process.

    :param path: the file; made if it is missing, together with its directory.
    :param clock: what leases are timed by; all users of one file need the same.
    :param history: how many transactions watches can look back, at least (and at most ten minutes).
    """

    local = True

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None, history: int = 50_000) -> None:
        self._clock = clock or machine_clock()
        self._history = history
        self._file = SqliteFile(path, _SCHEMA, kind="store", version=1, unavailable=StoreUnavailable)
        self._bell = Bell(f"{self._file.path}.bells")
        self._watches: weakref.WeakSet[SqliteWatch] = weakref.WeakSet()
        try:
            self._end_leases_of_earlier_boots()
        except BaseException:
            self.close()
            raise

    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        if len(keys) > self.max_operations:
            slices = [keys[start : start + self.max_operations] for start in range(0, len(keys), self.max_operations)]
            return [entry for part in slices for entry in self.get(part)]
        if not (wanted := _possible(keys)):
            return [None] * len(keys)
        with self._file.read() as connection:
            rows = connection.execute(
                f"SELECT key, value, created, modified, version, lease FROM kv WHERE key IN {_marks(len(wanted))} AND "
                f"{_ALIVE.replace(':now', '?')}",
                (*_padded(wanted), self._clock.now()),
            ).fetchall()
        found = {row[0]: Entry._make(row) for row in rows}
        return [found.get(key) for key in keys]

    def list(
        self, prefix: str, *, after: str = "", limit: int = 1000, keys_only: bool = False, reverse: bool = False
    ) -> list[Entry]:
        if not prefix.isascii():
            return []
        low, high = prefix, prefix + _ABOVE_ALL
        if after and reverse:
            high = min(high, _asked(after))
        elif after:
            low = max(low, _asked(after) + "\0")
        with self._file.read() as connection:
            rows = connection.execute(
                _LIST[keys_only, reverse],
                {"low": low, "high": high, "limit": max(0, limit), "now": self._clock.now()},
            ).fetchall()
        return [Entry._make(row) for row in rows]

    def count(self, prefix: str) -> int:
        if not prefix.isascii():
            return 0
        with self._file.read() as connection:
            row = connection.execute(
                _COUNT, {"low": prefix, "high": prefix + _ABOVE_ALL, "now": self._clock.now()}
            ).fetchone()
        return int(row[0])

    def commit(self, txns: Sequence[Txn]) -> builtins.list[Outcome]:
        check_transactions(txns, self.max_operations, self.max_value_bytes)
        if not txns:
            return []
        with self._file.write(durable=any(txn.durable for txn in txns)) as connection:
            batch = _Batch(connection, self._clock.now())
            batch.end_leases()
            batch.load(txns)
            outcomes = [batch.carry_out(txn) for txn in txns]
            batch.store(self._history)
        self._bell.ring(batch.changed)
        return outcomes

    def delete_prefix(self, prefix: str) -> int:
        if not prefix.isascii():
            return 0
        deleted = 0
        while True:
            with self._file.write() as connection:
                batch = _Batch(connection, self._clock.now())
                batch.end_leases()
                keys = batch.delete_page(prefix)
                batch.store(self._history)
            self._bell.ring(batch.changed)
            deleted += keys
            if keys < _PAGE:
                return deleted

    def grant(self, ttl: float) -> int:
        if not (ttl > 0 and math.isfinite(ttl)):
            raise ValueError(f"A lease lives a number of seconds above 0, not {ttl}.")
        with self._file.write() as connection:
            cursor = connection.execute(
                "INSERT INTO lease (ttl, expires) VALUES (?, ?)", (ttl, self._clock.now() + ttl)
            )
            return int(cursor.lastrowid or 0)

    def keep_alive(self, lease: int) -> bool:
        with self._file.write() as connection:
            now = self._clock.now()
            cursor = connection.execute(
                "UPDATE lease SET expires = ? + ttl WHERE id = ? AND expires > ?", (now, lease, now)
            )
            return cursor.rowcount == 1

    def revoke(self, lease: int) -> None:
        with self._file.write() as connection:
            batch = _Batch(connection, self._clock.now())
            batch.end_lease(lease)
            batch.store(self._history)
        self._bell.ring(batch.changed)

    def revision(self) -> int:
        with self._file.read() as connection:
            return _revision(connection)

    def watch(self, prefixes: Sequence[str], after: int) -> Watch:
        watch = SqliteWatch(self, prefixes, after)
        self._watches.add(watch)
        return watch

    def examine(self) -> builtins.list[Finding]:
        return self._file.examine()

    def close(self) -> None:
        for watch in list(self._watches):
            watch.close()
        self._bell.close()
        self._file.close()

    def _end_leases_of_earlier_boots(self) -> None:
        """Their times mean nothing any more. Nobody outlives a boot, so once when the store is opened is enough."""
        with self._file.read() as connection:
            if connection.execute("SELECT id FROM boot").fetchone() == (self._clock.boot,):
                return
        with self._file.write() as connection:
            batch = _Batch(connection, self._clock.now())
            if connection.execute("SELECT id FROM boot").fetchone() != (self._clock.boot,):
                batch.end_leases(of_all_times=True)
                connection.execute("UPDATE boot SET id = ?", (self._clock.boot,))
                connection.execute("UPDATE log SET noted = 0")
            batch.store(self._history)
        self._bell.ring(batch.changed)

    def _end_leases(self) -> None:
        """Deletes what expired since the last write, so that watches are told of it though nobody writes."""
        with self._file.read() as connection:
            (over,) = connection.execute(
                "SELECT EXISTS (SELECT 1 FROM lease WHERE expires <= ?)", (self._clock.now(),)
            ).fetchone()
        if over:
            self.commit([Txn()])


class _Batch:
    """Transactions that share one turn at the file. Keys are loaded at its start and stored at its end."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self.changed: set[str] = set()
        self._connection = connection
        self._now = now
        self._revision = _revision(connection)
        self._states: dict[str, _State] = {}
        self._leases: set[int] = set()
        self._puts: dict[str, tuple[Put, _State]] = {}
        self._deletes: set[str] = set()
        self._log: list[tuple[int, float, str]] = []

    def end_leases(self, of_all_times: bool = False) -> None:
        """Deletes the leases that are over, and their keys."""
        horizon = math.inf if of_all_times else self._now
        ended = self._connection.execute("SELECT id FROM lease WHERE expires <= ?", (horizon,)).fetchall()
        for (lease,) in ended:
            self.end_lease(lease)

    def end_lease(self, lease: int) -> None:
        self._connection.execute("DELETE FROM lease WHERE id = ?", (lease,))
        rows = self._connection.execute(
            "DELETE FROM kv WHERE lease = ? AND lease <> 0 RETURNING key", (lease,)
        ).fetchall()
        if rows:
            self._note([key for (key,) in rows])

    def delete_page(self, prefix: str) -> int:
        """Deletes some keys that start with ``prefix`` in a transaction of their own, and says how many."""
        rows = self._connection.execute(
            "DELETE FROM kv WHERE key IN (SELECT key FROM kv WHERE key >= ? AND key < ? LIMIT ?) RETURNING key",
            (prefix, prefix + _ABOVE_ALL, _PAGE),
        ).fetchall()
        if rows:
            self._note([key for (key,) in rows])
        return len(rows)

    def load(self, txns: Sequence[Txn]) -> None:
        """Reads what the transactions need to know, all at once."""
        keys = {compare.key for txn in txns for compare in txn.compares}
        keys.update(put.key for txn in txns for put in txn.puts)
        keys.update(key for txn in txns for key in txn.deletes)
        for part in _parts(keys):
            for key, *state in self._connection.execute(
                f"SELECT key, created, modified, version FROM kv WHERE key IN {_marks(len(part))}", _padded(part)
            ):
                self._states[key] = _State._make(state)
        leases = {put.lease for txn in txns for put in txn.puts if put.lease}
        # Leases that are over have been deleted in this turn.
        self._leases = {
            lease
            for lease in leases
            if self._connection.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone()
        }

    def carry_out(self, txn: Txn) -> Outcome:
        states = self._states
        for attribute, key, value, _ in txn.compares:
            if getattr(states.get(key, _ABSENT), attribute) != value:
                return Outcome(Verdict.REFUSED)
        if any(put.lease and put.lease not in self._leases for put in txn.puts):
            return Outcome(Verdict.REFUSED)
        deletes = [key for key in txn.deletes if key in states]
        if not txn.puts and not deletes:
            return Outcome(Verdict.COMMITTED, self._revision)
        keys = [put.key for put in txn.puts]
        revision = self._note(keys + deletes)
        versions = []
        for put in txn.puts:
            key = put.key
            before = states.get(key)
            state = _State(revision, revision, 1) if before is None else _State(before[0], revision, before[2] + 1)
            states[key] = state
            versions.append(state.version)
            self._puts[key] = (put, state)
        for key in deletes:
            del states[key]
            self._puts.pop(key, None)
            self._deletes.add(key)
        return Outcome(Verdict.COMMITTED, revision, tuple(versions))

    def store(self, history: int) -> None:
        """Writes the newest state of every key that changed, and the log."""
        # Deletes first: a key that was deleted and then put by a later transaction is there in the end.
        if self._deletes:
            self._connection.executemany("DELETE FROM kv WHERE key = ?", [(key,) for key in self._deletes])
        if self._puts:
            self._connection.executemany(
                _PUT, [(put.key, put.value, *state, put.lease) for put, state in self._puts.values()]
            )
        if self._log:
            self._connection.executemany("INSERT INTO log VALUES (?, ?, ?)", self._log)
            if self._log[0][0] // _TRIM_EVERY != self._revision // _TRIM_EVERY or history < _TRIM_EVERY:
                self._trim(history)

    def _note(self, keys: Iterable[str]) -> int:
        """Begins the next revision, which changes these keys."""
        self._revision += 1
        self._log.append((self._revision, self._now, "".join(f"\n{key}" for key in keys)))
        self.changed.update(keys)
        return self._revision

    def _trim(self, history: int) -> None:
        self._connection.execute("DELETE FROM log WHERE revision <= ?", (self._revision - history,))
        # Rows are in order of time, too: only the oldest are looked at.
        kept = self._connection.execute(
            "SELECT revision FROM log WHERE noted >= ? ORDER BY revision LIMIT 1", (self._now - _LOG_AGE_S,)
        ).fetchone()
        if kept:
            self._connection.execute("DELETE FROM log WHERE revision < ?", kept)


class SqliteWatch(Watch):
    """Follows the log; the bell says when."""

    def __init__(self, store: SqliteStore, prefixes: Sequence[str], after: int) -> None:
        self._store = store
        self._prefixes = tuple(_possible(prefixes))
        self._seen = after
        marks = " OR ".join("instr(keys, ?)" for _ in self._prefixes) or "0"
        self._select = (
            f"SELECT revision, keys FROM log WHERE revision > ? AND ({marks}) ORDER BY revision LIMIT {_WATCH_ROWS}"
        )
        try:
            self._listener = store._bell.listen(self._prefixes)
        except OSError as error:
            raise StoreUnavailable(
                f"{store._file.path} cannot be watched: {error}. Look at the permissions and length of its path."
            ) from error

    def next(self, timeout: float | None) -> list[Event]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        # Rings so far are answered by the look at the log that follows; later ones by the next.
        self._wait(0)
        while True:
            self._store._end_leases()
            if events := self._read():
                return events
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._wait(min(left, _WATCH_IDLE_S))

    def fileno(self) -> int:
        return self._listener.fileno()

    def close(self) -> None:
        self._listener.close()

    def _wait(self, timeout: float) -> None:
        try:
            self._listener.wait(timeout)
        except (OSError, ValueError) as error:
            raise StoreUnavailable(f"The watch on {self._store._file.path} was closed.") from error

    def _read(self) -> list[Event]:
        with self._store._file.read() as connection:
            connection.execute("BEGIN")
            oldest, newest = connection.execute(
                "SELECT (SELECT min(revision) FROM log), (SELECT max(revision) FROM log)"
            ).fetchone()
            if newest <= self._seen:
                return []
            if oldest > self._seen + 1:
                raise Compacted(oldest)
            rows = connection.execute(
                self._select, (self._seen, *(f"\n{prefix}" for prefix in self._prefixes))
            ).fetchall()
            # A key that changed several times is told once, at its last place.
            changed: dict[str, int] = {}
            for revision, keys in rows:
                for key in keys[1:].split("\n"):
                    if key.startswith(self._prefixes):
                        changed.pop(key, None)
                        changed[key] = revision
            values: dict[str, bytes] = {}
            for part in _parts(changed):
                values.update(
                    connection.execute(f"SELECT key, value FROM kv WHERE key IN {_marks(len(part))}", _padded(part))
                )
        self._seen = rows[-1][0] if len(rows) == _WATCH_ROWS else newest
        return [Event(key, values.get(key), revision) for key, revision in changed.items()]


def _revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute(_REVISION).fetchone()[0])


def _possible(keys: Sequence[str]) -> list[str]:
    """Those that may be keys at all: SQLite cannot even be asked for a lone surrogate."""
    return list(keys) if "".join(keys).isascii() else [key for key in keys if key.isascii()]


def _asked(bound: str) -> str:
    """What stands where ``bound`` does in the order of possible keys, and can be asked for."""
    return _BEYOND_KEYS.sub(_ABOVE_ALL, bound)


def _parts(keys: Iterable[str]) -> Iterable[list[str]]:
    """The keys in parts that fit into one statement."""
    rest = iter(keys)
    while part := list(itertools.islice(rest, 256)):
        yield part


def _marks(count: int) -> str:
    return _MARKS[(count - 1).bit_length()]


def _padded(keys: Sequence[str]) -> list[str]:
    """The keys, the last one repeated up to a power of two: so that few statements serve, which SQLite caches."""
    return [*keys, *itertools.repeat(keys[-1], (1 << (len(keys) - 1).bit_length()) - len(keys))]


_MARKS = [f"({', '.join('?' * (1 << bits))})" for bits in range(9)]
