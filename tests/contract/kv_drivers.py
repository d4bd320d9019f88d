"""The stores that the contract is held against. A new driver is a class here and a line in ``DRIVERS``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from mr.kv.base import Store
from mr.kv.memory import MemoryStore
from mr.kv.sqlite import SqliteStore
from mr.local.clock import Clock


class Driver(ABC):
    """Makes stores for one test and closes them."""

    kept_history = 8
    """How many transactions a store opened with ``short_history`` lets watches look back, at most."""

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


DRIVERS: dict[str, type[MemoryDriver] | type[SqliteDriver]] = {"memory": MemoryDriver, "sqlite": SqliteDriver}
