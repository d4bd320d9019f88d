"""The store of one process, gone with it: for tests, and for platforms that are thrown away."""

from __future__ import annotations

import builtins
import math
import select
import socket
import threading
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from mr.errors import Compacted, StoreUnavailable
from mr.kv.base import Entry, Event, Outcome, Store, Txn, Verdict, Watch
from mr.kv.limits import check_transactions

_ABSENT = Entry("", b"", 0, 0, 0)

_ABOVE_ALL = "\x7f"
"""Follows every character that a key may have."""

_WATCH_IDLE_S = 0.5
"""How late a watch notices a lease that ends while nobody uses the store."""


class _Lease:
    def __init__(self, ttl: float, expires: float) -> None:
        self.ttl = ttl
        self.expires = expires
        self.keys: set[str] = set()


class MemoryStore(Store):
    """A store in this process's memory; every instance is a store of its own. Nothing in it is durable.

    :param now: the seconds by which leases live.
    :param history: how many transactions watches can look back.
    """

    local = True

    def __init__(self, *, now: Callable[[], float] = time.monotonic, history: int = 50_000) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []
        self._leases: dict[int, _Lease] = {}
        self._granted = 0
        self._revision = 1
        self._log: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=history)
        self._watches: set[MemoryWatch] = set()
        self._closed = False

    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        with self._lock:
            self._begin()
            return [self._entries.get(key) for key in keys]

    def list(
        self, prefix: str, *, after: str = "", limit: int = 1000, keys_only: bool = False, reverse: bool = False
    ) -> list[Entry]:
        low, high = prefix, prefix + _ABOVE_ALL
        if after and reverse:
            high = min(high, after)
        elif after:
            low = max(low, after + "\0")
        limit = max(0, limit)
        with self._lock:
            self._begin()
            start, end = bisect_left(self._keys, low), bisect_left(self._keys, high)
            keys = self._keys[max(start, end - limit) : end][::-1] if reverse else self._keys[start:end][:limit]
            entries = [self._entries[key] for key in keys]
        return [entry._replace(value=b"") for entry in entries] if keys_only else entries

    def count(self, prefix: str) -> int:
        with self._lock:
            self._begin()
            low, high = bisect_left(self._keys, prefix), bisect_left(self._keys, prefix + _ABOVE_ALL)
            return max(0, high - low)

    def commit(self, txns: Sequence[Txn]) -> builtins.list[Outcome]:
        check_transactions(txns, self.max_operations, self.max_value_bytes)
        with self._lock:
            self._begin()
            return [self._carry_out(txn) for txn in txns]

    def delete_prefix(self, prefix: str) -> int:
        with self._lock:
            self._begin()
            low, high = bisect_left(self._keys, prefix), bisect_left(self._keys, prefix + _ABOVE_ALL)
            keys = self._keys[low:high]
            self._delete(keys)
            return len(keys)

    def grant(self, ttl: float) -> int:
        if not (ttl > 0 and math.isfinite(ttl)):
            raise ValueError(f"A lease lives a number of seconds above 0, not {ttl}.")
        with self._lock:
            self._begin()
            self._granted += 1
            self._leases[self._granted] = _Lease(ttl, self._now() + ttl)
            return self._granted

    def keep_alive(self, lease: int) -> bool:
        with self._lock:
            self._begin()
            if (kept := self._leases.get(lease)) is None:
                return False
            kept.expires = self._now() + kept.ttl
            return True

    def revoke(self, lease: int) -> None:
        with self._lock:
            self._begin()
            self._end(lease)

    def revision(self) -> int:
        with self._lock:
            self._begin()
            return self._revision

    def watch(self, prefixes: Sequence[str], after: int) -> Watch:
        with self._lock:
            self._begin()
            watch = MemoryWatch(self, prefixes, after)
            self._watches.add(watch)
            return watch

    def close(self) -> None:
        with self._lock:
            self._closed = True
            watches = list(self._watches)
        for watch in watches:
            watch.close()

    def _begin(self) -> None:
        """What every call does first."""
        if self._closed:
            raise StoreUnavailable("The store in memory was closed.")
        now = self._now()
        for lease in [lease for lease, terms in self._leases.items() if terms.expires <= now]:
            self._end(lease)

    def _carry_out(self, txn: Txn) -> Outcome:
        for attribute, key, value, _ in txn.compares:
            if getattr(self._entries.get(key, _ABSENT), attribute) != value:
                return Outcome(Verdict.REFUSED)
        if any(put.lease and put.lease not in self._leases for put in txn.puts):
            return Outcome(Verdict.REFUSED)
        deletes = [key for key in txn.deletes if key in self._entries]
        if not txn.puts and not deletes:
            return Outcome(Verdict.COMMITTED, self._revision)
        revision = self._revision + 1
        versions = []
        for put in txn.puts:
            before = self._entries.get(put.key)
            if before is None:
                insort(self._keys, put.key)
                entry = Entry(put.key, put.value, revision, revision, 1, put.lease)
            else:
                self._untie(before)
                entry = Entry(put.key, put.value, before.created, revision, before.version + 1, put.lease)
            self._entries[put.key] = entry
            if put.lease:
                self._leases[put.lease].keys.add(put.key)
            versions.append(entry.version)
        self._remove(deletes)
        self._note([*(put.key for put in txn.puts), *deletes])
        return Outcome(Verdict.COMMITTED, revision, tuple(versions))

    def _end(self, lease: int) -> None:
        if (ended := self._leases.pop(lease, None)) is not None:
            self._delete(sorted(ended.keys))

    def _delete(self, keys: Sequence[str]) -> None:
        """Deletes keys that are there in a transaction of their own."""
        if keys:
            self._remove(keys)
            self._note(keys)

    def _remove(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._untie(self._entries.pop(key))
            del self._keys[bisect_left(self._keys, key)]

    def _untie(self, entry: Entry) -> None:
        if entry.lease in self._leases:
            self._leases[entry.lease].keys.discard(entry.key)

    def _note(self, keys: Sequence[str]) -> None:
        """Begins the next revision, which changed these keys."""
        self._revision += 1
        self._log.append((self._revision, tuple(keys)))
        for watch in self._watches:
            watch.wake(keys)

    def _changes(self, prefixes: tuple[str, ...], after: int) -> tuple[builtins.list[Event], int]:
        """The events after a revision, and the revision up to which they tell."""
        with self._lock:
            self._begin()
            oldest = self._log[0][0] if self._log else self._revision + 1
            if oldest > max(after, 1) + 1:
                raise Compacted(oldest)
            changed: dict[str, int] = {}
            for revision, keys in reversed(self._log):
                if revision <= after:
                    break
                for key in reversed(keys):
                    if key.startswith(prefixes):
                        changed.setdefault(key, revision)
            return [
                Event(key, self._entries[key].value if key in self._entries else None, revision)
                for key, revision in reversed(changed.items())
            ], self._revision

    def _forget(self, watch: MemoryWatch) -> None:
        with self._lock:
            self._watches.discard(watch)


class MemoryWatch(Watch):
    """Follows the log; a pair of sockets stands in for the connection that other stores have."""

    def __init__(self, store: MemoryStore, prefixes: Sequence[str], after: int) -> None:
        self._store = store
        self._prefixes = tuple(prefixes)
        self._seen = after
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def next(self, timeout: float | None) -> list[Event]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            self._wait(0)
            events, self._seen = self._store._changes(self._prefixes, self._seen)
            if events:
                return events
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._wait(min(left, _WATCH_IDLE_S))

    def fileno(self) -> int:
        return self._woken.fileno()

    def close(self) -> None:
        self._store._forget(self)
        self._woken.close()
        self._waker.close()

    def wake(self, keys: Iterable[str]) -> None:
        """Called by the store when these keys changed."""
        if any(key.startswith(self._prefixes) for key in keys):
            with suppress(OSError):  # full: it is awake already
                self._waker.send(b"!")

    def _wait(self, timeout: float) -> None:
        try:
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            if poll.poll(timeout * 1000):
                with suppress(BlockingIOError):
                    while self._woken.recv(4096):
                        pass
        except (OSError, ValueError) as error:
            raise StoreUnavailable("The watch was closed.") from error
