"""Each driver does what a store of a dictionary would do, whatever the order of calls."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from kv_drivers import DRIVERS, Driver

from mr.kv.base import Attribute, Compare, Entry, Event, Put, Store, Txn, Verdict, Watch

KEYS = ["a", "a%", "a/", "a/1", "a/2", "a0", "a_", "b", "b/*", "~"]
PREFIXES = ["", "a", "a/", "a%", "b", "c", "~"]
ATTRIBUTES: list[Attribute] = ["created", "modified", "version"]

keys = st.sampled_from(KEYS)
prefixes = st.sampled_from(PREFIXES)
values = st.binary(max_size=4)


class Wish(NamedTuple):
    """A transaction before it is known what its compares can be about."""

    compares: list[tuple[Attribute, str, int]]
    """Attribute, key, and what to add to the true value."""
    puts: dict[str, tuple[bytes, bool]]
    """Value, and whether under the newest lease."""
    deletes: set[str]


wishes = st.builds(
    Wish,
    st.lists(st.tuples(st.sampled_from(ATTRIBUTES), keys, st.sampled_from([0, 0, 0, 0, 1])), max_size=3),
    st.dictionaries(keys, st.tuples(values, st.booleans()), max_size=3),
    st.sets(keys, max_size=2),
)


class Machine(RuleBasedStateMachine):
    driver_name: str

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.driver: Driver = DRIVERS[self.driver_name](Path(self.directory.name))
        first = self.driver.open()
        self.stores: Sequence[Store] = (first, self.driver.again(first))
        self.turn = 0
        self.time = 0.0
        self.revision = first.revision()
        self.entries: dict[str, Entry] = {}
        self.changed: dict[str, int] = {}
        self.leases: dict[int, tuple[float, float]] = {}
        self.newest_lease = 0
        self.watch: Watch = first.watch(["a"], self.revision)
        self.told: dict[str, Event] = {}

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.watch.close()
            self.driver.close()
            self.directory.cleanup()

    @property
    def store(self) -> Store:
        """Calls go to two users of the store by turns."""
        self.turn += 1
        return self.stores[self.turn % 2]

    # What the model thinks.

    def write(
        self, puts: dict[str, tuple[bytes, int]], deletes: set[str], revision: int | None = None
    ) -> tuple[int, ...]:
        """A revision that is given is what the store said: it has been judged."""
        present = deletes & self.entries.keys()
        if not puts and not present:
            return ()
        revision = revision or self.revision + 1
        self.revision = max(self.revision, revision)
        versions = []
        for key, (value, lease) in puts.items():
            before = self.entries.get(key)
            created, version = (before.created, before.version + 1) if before else (revision, 1)
            self.entries[key] = Entry(key, value, created, revision, version, lease)
            versions.append(version)
        for key in present:
            del self.entries[key]
        return tuple(versions)

    def end(self, lease: int) -> None:
        if self.leases.pop(lease, None):
            self.write({}, {entry.key for entry in self.entries.values() if entry.lease == lease})

    def under(self, prefix: str) -> list[Entry]:
        return [self.entries[key] for key in sorted(self.entries) if key.startswith(prefix)]

    # What both are asked to do.

    @rule(batch=st.lists(wishes, min_size=1, max_size=3), durable=st.booleans())
    def commit(self, batch: list[Wish], durable: bool) -> None:
        txns = []
        for wish in batch:
            compares = tuple(
                Compare(attribute, key, getattr(self.entries.get(key, Entry(key, b"", 0, 0, 0)), attribute) + error)
                for attribute, key, error in wish.compares
            )
            puts = tuple(
                Put(key, value, self.newest_lease if leased else 0) for key, (value, leased) in wish.puts.items()
            )
            txns.append(Txn(compares, puts, tuple(wish.deletes - wish.puts.keys()), durable))
        outcomes = self.store.commit(txns)
        first, revisions = self.revision + 1, set()
        for txn, outcome in zip(txns, outcomes, strict=True):
            holds = all(
                getattr(self.entries.get(key, Entry(key, b"", 0, 0, 0)), attribute) == value
                for attribute, key, value, _ in txn.compares
            ) and all(put.lease == 0 or put.lease in self.leases for put in txn.puts)
            assert outcome.verdict is (Verdict.COMMITTED if holds else Verdict.REFUSED)
            if holds:
                puts = {put.key: (put.value, put.lease) for put in txn.puts}
                if not self.driver.groups:
                    versions = self.write(puts, set(txn.deletes))
                    assert (outcome.versions, outcome.revision) == (versions, self.revision)
                    continue
                # In whatever way they were grouped: nothing that they touch was changed at that revision or later.
                touched = {compare.key for compare in txn.compares} | puts.keys() | set(txn.deletes)
                has_effect = bool(puts) or any(key in self.entries for key in txn.deletes)
                assert all(self.changed.get(key, 0) < outcome.revision for key in touched) or not has_effect
                assert outcome.versions == self.write(puts, set(txn.deletes), outcome.revision)
                assert outcome.revision >= first - 1
                if has_effect:
                    revisions.add(outcome.revision)
                    self.changed.update((key, outcome.revision) for key in (*puts, *txn.deletes))
        if self.driver.groups:
            assert revisions == set(range(first, first + len(revisions)))

    @rule(prefix=prefixes)
    def delete_prefix(self, prefix: str) -> None:
        doomed = self.under(prefix)
        assert self.store.delete_prefix(prefix) == len(doomed)
        self.write({}, {entry.key for entry in doomed})

    @rule(ttl=st.integers(1, 5))
    def grant(self, ttl: int) -> None:
        self.newest_lease = self.store.grant(ttl)
        assert self.newest_lease not in self.leases
        self.leases[self.newest_lease] = (ttl, self.time + ttl)

    @rule()
    def keep_alive(self) -> None:
        assert self.store.keep_alive(self.newest_lease) == (self.newest_lease in self.leases)
        if self.newest_lease in self.leases:
            ttl, _ = self.leases[self.newest_lease]
            self.leases[self.newest_lease] = (ttl, self.time + ttl)

    @rule()
    def revoke(self) -> None:
        self.store.revoke(self.newest_lease)
        self.end(self.newest_lease)

    @rule(seconds=st.integers(1, 4))
    def pass_time(self, seconds: int) -> None:
        self.driver.pass_time(seconds)
        self.time += seconds
        # Each lease that ends is a change of its own, if it has keys.
        for lease, _ in sorted(self.leases.items(), key=lambda item: item[1][1]):
            if self.leases[lease][1] <= self.time:
                self.end(lease)
        assert self.store.count("") == len(self.entries)
        self.store.commit([Txn()])

    # What must then be the same.

    @rule(prefix=prefixes, after=st.sampled_from(["", *KEYS, "a.", "0", "zz"]), limit=st.integers(0, 4))
    def list(self, prefix: str, after: str, limit: int) -> None:
        entries = self.under(prefix)
        forth = [entry for entry in entries if entry.key > after][:limit]
        back = [entry for entry in entries[::-1] if not after or entry.key < after][:limit]
        assert self.store.list(prefix, after=after, limit=limit) == forth
        assert self.store.list(prefix, after=after, limit=limit, reverse=True) == back
        assert self.store.list(prefix, after=after, limit=limit, keys_only=True) == [
            entry._replace(value=b"") for entry in forth
        ]

    @rule(prefix=prefixes)
    def count(self, prefix: str) -> None:
        assert self.store.count(prefix) == len(self.under(prefix))

    @rule()
    def follow(self) -> None:
        events = self.watch.next(0)
        assert [event.revision for event in events] == sorted(event.revision for event in events)
        self.told.update((event.key, event) for event in events)
        assert {key: event.value for key, event in self.told.items() if event.value is not None} == {
            entry.key: entry.value for entry in self.under("a")
        }
        for entry in self.under("a"):
            assert self.told[entry.key].revision == entry.modified

    @invariant()
    def same(self) -> None:
        if hasattr(self, "driver"):
            assert self.store.get(KEYS) == [self.entries.get(key) for key in KEYS]
            assert self.store.revision() == self.revision


@pytest.mark.parametrize("name", list(DRIVERS))
def test_a_driver_does_what_the_model_does(name: str) -> None:
    machine = type(f"{name.title()}Machine", (Machine,), {"driver_name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
