"""What the engine needs of a key-value store, and no more.

Keys are strings of printable ASCII, values are bytes (JSON, in practice). The store has one *revision*, a
counter that grows with every committed transaction. An entry remembers the revision that created it, the one
that last modified it and its version, the number of times that it was put since it was created. This is the
data model of etcd v3 (https://etcd.io/docs/v3.6/learning/data_model/), which every driver gives.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Literal, NamedTuple

from mr.findings import Finding

Attribute = Literal["created", "modified", "version"]


class Entry(NamedTuple):
    """One stored key as it was read. ``value`` is empty where only keys were asked for."""

    key: str
    value: bytes
    created: int
    modified: int
    version: int
    lease: int = 0


class Compare(NamedTuple):
    """Holds when the attribute of ``key`` equals ``value``; all attributes of an absent key are 0.

    ``rule`` says what the comparison protects. The store ignores it.
    """

    attribute: Attribute
    key: str
    value: int
    rule: str = ""


class Put(NamedTuple):
    """Writes ``value``; with a lease other than 0 the key vanishes when that lease does."""

    key: str
    value: bytes
    lease: int = 0


class Txn(NamedTuple):
    """All puts and deletes happen, or none does; they happen only when every compare holds.

    A key may stand among the puts and deletes once. ``durable`` asks that a power cut after the answer does not
    undo it; without it only the death of any process must not.
    """

    compares: tuple[Compare, ...] = ()
    puts: tuple[Put, ...] = ()
    deletes: tuple[str, ...] = ()
    durable: bool = False


class Verdict(Enum):
    COMMITTED = "committed"
    REFUSED = "refused"
    """A compare did not hold, or a lease named by a put is gone. Nothing was written."""
    UNKNOWN = "unknown"
    """The answer was lost: it may have happened, may still happen, or never. Repeat the same transaction."""


class Outcome(NamedTuple):
    """How a transaction ended. ``versions`` has the new version of each put, in the order of ``Txn.puts``."""

    verdict: Verdict
    revision: int = 0
    versions: tuple[int, ...] = ()


class Event(NamedTuple):
    """A change seen by a watch. ``value`` is None for a deleted key."""

    key: str
    value: bytes | None
    revision: int


class Watch(ABC):
    """Changes under some prefixes, in order of revision, each key with at least its newest state.

    Several changes of one key between two calls may be told as the last one alone. Used by one thread.
    """

    @abstractmethod
    def next(self, timeout: float | None) -> list[Event]:
        """Waits up to ``timeout`` seconds (None: for ever, 0: not at all) for changes not told yet.

        :raises Compacted: changes were missed. List again, then open a new watch.
        :raises StoreUnavailable: the store went away. The watch may be asked again.
        """

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that turns readable when :meth:`next` may have something; ask now and then all the same."""

    @abstractmethod
    def close(self) -> None:
        """Ends the watch. May be repeated."""


class Store(ABC):
    """A transactional, ordered key-value store. Safe to use from several threads and processes.

    Every method blocks until it is answered, and raises StoreUnavailable when the store cannot be reached or
    refuses to serve; then nothing was changed.
    """

    local: bool = False
    """True where calls wait for no network, so that an event loop may make them itself."""

    max_operations: int = 128
    """How many compares, and how many puts and deletes together, one transaction may have."""

    max_value_bytes: int = 1_000_000

    @abstractmethod
    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entries of these keys in the same order, None for absent ones.

        Up to :attr:`max_operations` keys are read at one revision; more are read in slices of that size.
        May be repeated.
        """

    @abstractmethod
    def list(
        self, prefix: str, *, after: str = "", limit: int = 1000, keys_only: bool = False, reverse: bool = False
    ) -> list[Entry]:
        """Entries whose key starts with ``prefix``, in order of key (by code point), at most ``limit``.

        With ``after``, only those beyond that key in the direction of travel: pass the last key of the page before
        for the next page. May be repeated.
        """

    @abstractmethod
    def count(self, prefix: str) -> int:
        """How many keys start with ``prefix``."""

    @abstractmethod
    def commit(self, txns: Sequence[Txn]) -> builtins.list[Outcome]:
        """Carries out transactions of independent callers, each atomic by itself, and says how each ended.

        They take effect as if one after another in some order; a driver may group them to save round trips, and
        splits them again when a compare of one fails. The same transaction may be handed in again after UNKNOWN.

        :raises InvalidTransaction: a key stands twice in one of them, or a limit is exceeded. None was carried out.
        """

    @abstractmethod
    def delete_prefix(self, prefix: str) -> int:
        """Deletes every key that starts with ``prefix``, in as many transactions as it takes; says how many."""

    @abstractmethod
    def grant(self, ttl: float) -> int:
        """A new lease that lives ``ttl`` seconds from its last renewal; its number is never 0."""

    @abstractmethod
    def keep_alive(self, lease: int) -> bool:
        """Renews a lease. False: it is gone, and so are the keys under it."""

    @abstractmethod
    def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys. May be repeated."""

    @abstractmethod
    def revision(self) -> int:
        """The revision of the newest committed transaction."""

    @abstractmethod
    def watch(self, prefixes: Sequence[str], after: int) -> Watch:
        """Follows the changes under these prefixes that came after the revision ``after``."""

    def examine(self) -> builtins.list[Finding]:
        """What its technology can say about its health, within seconds; nothing where it has nothing to say.

        It raises nothing: a server that does not answer is a finding.
        """
        return []

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections and files. May be repeated; the store is of no use afterwards."""
