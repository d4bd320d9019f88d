"""The stores that the contract is held against. A new driver is a class here and a line in ``DRIVERS``."""

from __future__ import annotations

import functools
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import servers
from servers.etcd import Etcd

from mr.kv.base import Event, Store, Watch
from mr.kv.etcd import EtcdStore
from mr.kv.etcd.watch import EtcdWatch
from mr.kv.memory import MemoryStore
from mr.kv.sqlite import SqliteStore
from mr.local.clock import Clock

LONG_S = 30.0


class Driver(ABC):
    """Makes stores for one test and closes them."""

    kept_history = 8
    """How many transactions a store opened with ``short_history`` lets watches look back, at most."""

    groups = False
    """True where transactions that are committed together and have nothing to do with each other share a revision."""

    @abstractmethod
    def open(self, *, short_history: bool = False) -> Store:
        """A new, empty store."""

    @abstractmethod
    def again(self, store: Store) -> Store:
        """The same store as another user of it has it; the very same object where there are no others."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Lets leases age."""

    @abstractmethod
    def close(self) -> None: ...


class MemoryDriver(Driver):
    def __init__(self, directory: Path) -> None:
        self._time = 1000.0
        self._stores: list[Store] = []

    def open(self, *, short_history: bool = False) -> Store:
        history = self.kept_history if short_history else 50_000
        self._stores.append(MemoryStore(now=lambda: self._time, history=history))
        return self._stores[-1]

    def again(self, store: Store) -> Store:
        return store

    def pass_time(self, seconds: float) -> None:
        self._time += seconds

    def close(self) -> None:
        for store in self._stores:
            store.close()


class SqliteDriver(Driver):
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._time = 1000.0
        self._made = 0
        self._stores: dict[Store, tuple[Path, int]] = {}

    def open(self, *, short_history: bool = False) -> Store:
        self._made += 1
        return self._open(self._directory / f"{self._made}" / "kv.db", self.kept_history if short_history else 50_000)

    def again(self, store: Store) -> Store:
        return self._open(*self._stores[store])

    def _open(self, path: Path, history: int) -> Store:
        store = SqliteStore(path, clock=Clock(lambda: self._time, "this boot"), history=history)
        self._stores[store] = (path, history)
        return store

    def pass_time(self, seconds: float) -> None:
        self._time += seconds

    def close(self) -> None:
        for store in self._stores:
            store.close()


class EtcdDriver(Driver):
    """Stores on one server, which is emptied for each. Its leases live long, and a clock ends them as the server would:
    with whole seconds of its own, real ones would take minutes. They are waited for in the tests of integration.
    """

    groups = True
    version = "3.6"

    def __init__(self, directory: Path) -> None:
        self._server = etcd_server(self.version)
        self._time = 1000.0
        self._leases: dict[int, tuple[float, float]] = {}
        self._stores: list[_PromptStore] = []

    def open(self, *, short_history: bool = False) -> Store:
        store = _PromptStore(self, self._server.url, self._forget if short_history else None)
        self._stores.append(store)
        store.delete_prefix("")
        return store

    def again(self, store: Store) -> Store:
        self._stores.append(_PromptStore(self, self._server.url, None))
        return self._stores[-1]

    def granted(self, lease: int, ttl: float) -> None:
        self._leases[lease] = (ttl, self._time + ttl)

    def renewed(self, lease: int) -> None:
        if lease in self._leases:
            self.granted(lease, self._leases[lease][0])

    def pass_time(self, seconds: float) -> None:
        self._time += seconds
        for lease, (_, end) in sorted(self._leases.items(), key=lambda item: item[1][1]):
            if end <= self._time:
                del self._leases[lease]
                self._server_ends(lease)

    def _server_ends(self, lease: int) -> None:
        self._plain.revoke(lease)

    @functools.cached_property
    def _plain(self) -> EtcdStore:
        return EtcdStore(self._server.url)

    def _forget(self, revision: int) -> None:
        """Has the server drop what is older than the history that is kept."""
        with suppress(servers.ServerFailed):  # it has been dropped already
            self._server.ctl("compaction", str(revision - self.kept_history))

    def close(self) -> None:
        for lease in self._leases:
            self._server_ends(lease)
        for store in [*self._stores, self._plain]:
            store.close()


class Etcd34Driver(EtcdDriver):
    version = "3.4"


class _PromptStore(EtcdStore):
    """What was committed before a watch is asked, it tells: for tests, which cannot know how long events travel."""

    def __init__(self, driver: EtcdDriver, url: str, forget: Callable[[int], None] | None) -> None:
        super().__init__(url)
        self._driver = driver
        self._forget = forget

    def grant(self, ttl: float) -> int:
        lease = super().grant(ttl + 3600 if 0 < ttl < math.inf else ttl)
        self._driver.granted(lease, ttl)
        return lease

    def keep_alive(self, lease: int) -> bool:
        is_alive = super().keep_alive(lease)
        if is_alive:
            self._driver.renewed(lease)
        return is_alive

    def watch(self, prefixes: Sequence[str], after: int) -> Watch:
        return _PromptWatch(self, prefixes, after, self._forget)

    def real_watch(self, prefixes: Sequence[str], after: int) -> EtcdWatch:
        watch = super().watch(prefixes, after)
        assert isinstance(watch, EtcdWatch)
        return watch


class _PromptWatch(Watch):
    """With a short history it is off whenever nobody asks it: one that is on keeps up, asked or not."""

    def __init__(
        self, store: _PromptStore, prefixes: Sequence[str], after: int, forget: Callable[[int], None] | None
    ) -> None:
        self._store, self._prefixes, self._forget = store, prefixes, forget
        self._watch = store.real_watch(prefixes, after)
        self._after = after
        if forget:
            self._watch.close()

    def next(self, timeout: float | None) -> list[Event]:
        revision = self._store.revision()
        if self._forget:
            self._forget(revision)
            self._watch = self._store.real_watch(self._prefixes, self._after)
        self._catch_up(revision)
        events = self._watch.next(timeout)
        if self._forget:
            self._after = self._watch.revision
            self._watch.close()
        return events

    def _catch_up(self, revision: int) -> None:
        deadline = time.monotonic() + LONG_S
        while self._prefixes and not self._watch.is_over and self._watch.revision < revision:
            assert time.monotonic() < deadline, "the watch does not catch up"
            time.sleep(0.002)

    def fileno(self) -> int:
        return self._watch.fileno()

    def close(self) -> None:
        self._watch.close()


@functools.cache
def etcd_server(version: str) -> Etcd:
    """The server of all tests of this process. A watch hears every few milliseconds how far it is."""
    servers.need(f"etcd-{version}")
    flag = "--watch-progress-notify-interval" if version != "3.4" else "--experimental-watch-progress-notify-interval"
    directory = tempfile.TemporaryDirectory()
    server = Etcd(directory.name, version=version, args=[f"{flag}=10ms"])
    _directories.append(directory)
    return server.start()


_directories: list[tempfile.TemporaryDirectory[str]] = []

DRIVERS: dict[str, Callable[[Path], Driver]] = {
    "memory": MemoryDriver,
    "sqlite": SqliteDriver,
    "etcd": EtcdDriver,
    "etcd-3.4": Etcd34Driver,
}
