"""What every key-value store promises, held against each driver."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kv_drivers import DRIVERS, Driver

from mr.errors import Compacted, InvalidTransaction, StoreUnavailable
from mr.kv.base import Attribute, Compare, Entry, Event, Outcome, Put, Store, Txn, Verdict, Watch

LONG_S = 20.0


@pytest.fixture(params=list(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    driver = DRIVERS[request.param](tmp_path)
    yield driver
    driver.close()


@pytest.fixture
def store(driver: Driver) -> Store:
    return driver.open()


@pytest.fixture
def watching(store: Store) -> Iterator[Callable[..., Watch]]:
    watches: list[Watch] = []

    def watch(*prefixes: str, after: int | None = None, of: Store = store) -> Watch:
        watches.append(of.watch(prefixes, of.revision() if after is None else after))
        return watches[-1]

    yield watch
    for one in watches:
        one.close()


def put(store: Store, *keys: str, value: bytes = b"x", lease: int = 0) -> Outcome:
    (outcome,) = store.commit([Txn(puts=tuple(Put(key, value, lease) for key in keys))])
    assert outcome.verdict is Verdict.COMMITTED
    return outcome


def delete(store: Store, *keys: str) -> Outcome:
    (outcome,) = store.commit([Txn(deletes=keys)])
    return outcome


def read(store: Store, key: str) -> Entry:
    (entry,) = store.get([key])
    assert entry is not None
    return entry


def keys_of(entries: list[Entry]) -> list[str]:
    return [entry.key for entry in entries]


# --- reading -------------------------------------------------------------------------------------------------


def test_an_absent_key_reads_as_none(store: Store) -> None:
    assert store.get(["a"]) == [None]
    assert store.get([]) == []


def test_a_put_is_read_back_with_its_revisions_and_version(store: Store) -> None:
    first = put(store, "a", value=b"one")
    assert first.versions == (1,)
    assert read(store, "a") == Entry("a", b"one", first.revision, first.revision, 1)
    second = put(store, "a", value=b"two")
    assert second.versions == (2,)
    assert second.revision > first.revision
    assert read(store, "a") == Entry("a", b"two", first.revision, second.revision, 2)


@pytest.mark.parametrize("value", [b"", b"\0\n\xff", "naïve ☃".encode(), bytes(1_000_000)])
def test_a_value_is_any_bytes(store: Store, value: bytes) -> None:
    put(store, "a", value=value)
    assert read(store, "a").value == value


def test_entries_come_in_the_order_asked_for_however_many_and_however_often(store: Store) -> None:
    for start in range(0, 300, 100):
        put(store, *(f"k{n:03}" for n in range(start, start + 100)))
    asked = [f"k{n:03}" for n in reversed(range(301))] + ["k007", "k007"]
    entries = store.get(asked)
    assert entries[0] is None
    assert [entry.key for entry in entries[1:] if entry] == asked[1:]


def test_names_that_no_key_can_have_are_absent(store: Store) -> None:
    put(store, "a")
    assert [entry and entry.key for entry in store.get(["ä", "\ud800", "a", "\0", ""])] == [None, None, "a", None, None]
    assert store.list("ä") == store.list("\ud800") == []
    assert store.count("ä") == store.count("\ud800") == 0
    assert store.delete_prefix("ä") == store.delete_prefix("\ud800") == 0
    assert keys_of(store.list("", after="Z\ud800")) == keys_of(store.list("", after="ä", reverse=True)) == ["a"]
    assert store.list("", after="a\ud800") == store.list("", after="Zä", reverse=True) == []


# --- listing -------------------------------------------------------------------------------------------------


def test_a_listing_has_the_keys_under_the_prefix_in_order_of_code_point(store: Store) -> None:
    put(store, "a/b", "a/B", "a/~", "a/ ", "a/b/c", "a", "a0", "b")
    assert keys_of(store.list("a/")) == ["a/ ", "a/B", "a/b", "a/b/c", "a/~"]
    assert keys_of(store.list("")) == ["a", "a/ ", "a/B", "a/b", "a/b/c", "a/~", "a0", "b"]
    assert keys_of(store.list("a/b")) == ["a/b", "a/b/c"]
    assert store.list("c") == []
    assert store.count("a/") == 5
    assert store.count("") == 8
    assert store.count("c") == 0


@pytest.mark.parametrize("special", list("%_*?[]^-'\"\\~ \x7e"))
def test_characters_that_mean_something_to_others_mean_themselves_in_a_prefix(store: Store, special: str) -> None:
    put(store, f"a{special}1", f"a{special}2", "ax1", "a1", "b")
    assert keys_of(store.list(f"a{special}")) == [f"a{special}1", f"a{special}2"]
    assert store.count(f"a{special}") == 2
    assert store.delete_prefix(f"a{special}") == 2
    assert keys_of(store.list("")) == ["a1", "ax1", "b"]


@pytest.mark.parametrize("reverse", [False, True])
def test_paging_visits_every_key_once_in_either_direction(store: Store, reverse: bool) -> None:
    names = [f"p/{n:02}" for n in range(25)]
    put(store, "o", "p", *names, "p0", "q")
    seen: list[str] = []
    after = ""
    while page := store.list("p/", after=after, limit=4, reverse=reverse):
        assert len(page) <= 4
        seen += keys_of(page)
        after = seen[-1]
        assert len(seen) <= len(names)
    assert seen == (names[::-1] if reverse else names)


def test_a_page_may_begin_after_a_key_that_is_not_there(store: Store) -> None:
    put(store, "p/a", "p/c", "p/e", "q")
    assert keys_of(store.list("p/", after="p/b")) == ["p/c", "p/e"]
    assert keys_of(store.list("p/", after="p/d", reverse=True)) == ["p/c", "p/a"]
    assert keys_of(store.list("p/", after="a")) == ["p/a", "p/c", "p/e"]
    assert keys_of(store.list("p/", after="z", reverse=True)) == ["p/e", "p/c", "p/a"]
    assert store.list("p/", after="z") == store.list("p/", after="a", reverse=True) == []
    assert store.list("p/", limit=0) == []


def test_keys_alone_come_without_values_and_with_all_else(store: Store) -> None:
    put(store, "a", value=b"long")
    entry = read(store, "a")
    assert store.list("a", keys_only=True) == [entry._replace(value=b"")]
    assert store.list("a") == [entry]


# --- transactions --------------------------------------------------------------------------------------------


def test_a_transaction_needs_every_compare_to_hold(store: Store) -> None:
    put(store, "a")
    entry = read(store, "a")
    refused = Txn((Compare("version", "a", 1), Compare("version", "b", 7)), (Put("c", b""),), ("a",))
    assert store.commit([refused])[0].verdict is Verdict.REFUSED
    assert store.get(["a", "c"]) == [entry, None]
    taken = refused._replace(compares=(Compare("version", "a", 1), Compare("version", "b", 0)))
    assert store.commit([taken])[0].verdict is Verdict.COMMITTED
    assert keys_of(store.list("")) == ["c"]


@pytest.mark.parametrize("attribute", ["created", "modified", "version"])
def test_each_attribute_can_be_compared(store: Store, attribute: Attribute) -> None:
    put(store, "a")
    put(store, "a")
    right = getattr(read(store, "a"), attribute)
    for value in (right, right + 1, right - 1, 0):
        (outcome,) = store.commit([Txn((Compare(attribute, "a", value),))])
        assert (outcome.verdict is Verdict.COMMITTED) == (value == right)
    for value in (0, 1):
        (outcome,) = store.commit([Txn((Compare(attribute, "absent", value),))])
        assert (outcome.verdict is Verdict.COMMITTED) == (value == 0)


def test_all_writes_of_a_transaction_have_one_revision(store: Store) -> None:
    put(store, "old")
    (outcome,) = store.commit([Txn(puts=(Put("a", b""), Put("b", b"")), deletes=("old", "absent"))])
    assert [(entry.key, entry.created, entry.modified) for entry in store.list("")] == [
        ("a", outcome.revision, outcome.revision),
        ("b", outcome.revision, outcome.revision),
    ]
    assert store.revision() == outcome.revision
    assert outcome.versions == (1, 1)


def test_versions_are_told_in_the_order_of_the_puts(store: Store) -> None:
    put(store, "z")
    put(store, "z")
    put(store, "m")
    assert put(store, "z", "a", "m").versions == (3, 1, 2)


def test_a_deleted_key_starts_anew(store: Store) -> None:
    put(store, "a")
    put(store, "a")
    delete(store, "a")
    again = put(store, "a")
    assert again.versions == (1,)
    assert read(store, "a") == Entry("a", b"x", again.revision, again.revision, 1)


def test_what_writes_nothing_is_no_new_revision(store: Store) -> None:
    put(store, "a")
    before = store.revision()
    outcomes = store.commit([Txn(), Txn((Compare("version", "a", 1),)), Txn(deletes=("absent",))])
    assert [outcome.verdict for outcome in outcomes] == [Verdict.COMMITTED] * 3
    store.commit([Txn((Compare("version", "a", 2),), (Put("b", b""),))])
    assert store.revision() == before
    assert store.commit([]) == []


def test_transactions_handed_in_together_each_have_their_own_verdict(store: Store) -> None:
    first = Txn((Compare("version", "slot", 0),), (Put("slot", b"1"),))
    outcomes = store.commit(
        [
            first,
            first,
            Txn(puts=(Put("other", b""),)),
            Txn((Compare("version", "never", 1),), (Put("no", b""),)),
            Txn(puts=(Put("count", b""),)),
            Txn(puts=(Put("count", b""),)),
        ]
    )
    verdicts = [outcome.verdict for outcome in outcomes]
    assert sorted(verdict.value for verdict in verdicts[:2]) == ["committed", "refused"]
    assert verdicts[2:] == [Verdict.COMMITTED, Verdict.REFUSED, Verdict.COMMITTED, Verdict.COMMITTED]
    assert sorted(outcomes[4].versions + outcomes[5].versions) == [1, 2]
    assert outcomes[4].revision != outcomes[5].revision
    assert keys_of(store.list("")) == ["count", "other", "slot"]
    assert read(store, "count").version == 2
    assert store.revision() == max(outcome.revision for outcome in outcomes)


def test_transactions_handed_in_together_may_undo_each_other(store: Store) -> None:
    put(store, "a")
    outcomes = store.commit([Txn(deletes=("a",)), Txn((Compare("version", "b", 0),), (Put("b", b"b"),))])
    assert all(outcome.verdict is Verdict.COMMITTED for outcome in outcomes)
    assert keys_of(store.list("")) == ["b"]
    outcomes = store.commit([Txn(deletes=("b",)), Txn(puts=(Put("b", b"anew"),)), Txn(puts=(Put("c", b""),))])
    assert sorted(keys_of(store.list(""))) in (["b", "c"], ["c"])
    assert outcomes[2].versions == (1,)


def test_durable_transactions_are_taken_alone_and_among_others(store: Store) -> None:
    durable = Txn(puts=(Put("a", b""),), durable=True)
    assert store.commit([durable])[0].versions == (1,)
    assert [outcome.verdict for outcome in store.commit([Txn(puts=(Put("b", b""),)), durable])] == [
        Verdict.COMMITTED,
        Verdict.COMMITTED,
    ]
    assert read(store, "a").version == 2


def test_a_transaction_may_have_as_much_as_is_published(store: Store) -> None:
    keys = [f"k{n:03}" for n in range(store.max_operations)]
    assert len(put(store, *keys).versions) == store.max_operations
    compares = tuple(Compare("version", key, 1) for key in keys)
    assert store.commit([Txn(compares, deletes=tuple(keys))])[0].verdict is Verdict.COMMITTED
    put(store, "big", value=bytes(store.max_value_bytes))
    assert store.count("") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        Txn(puts=(Put("a", b"1"), Put("a", b"2"))),
        Txn(puts=(Put("a", b"1"),), deletes=("a",)),
        Txn(deletes=("a", "a")),
        Txn(puts=tuple(Put(f"k{n}", b"") for n in range(129))),
        Txn(puts=tuple(Put(f"k{n}", b"") for n in range(100)), deletes=tuple(f"d{n}" for n in range(29))),
        Txn(compares=tuple(Compare("version", f"k{n}", 0) for n in range(129))),
        Txn(puts=(Put("a", bytes(1_000_001)),)),
        Txn(puts=(Put("", b""),)),
        Txn(puts=(Put("ä", b""),)),
        Txn(puts=(Put("a\nb", b""),)),
        Txn(puts=(Put("a\x7f", b""),)),
        Txn(deletes=("\0",)),
        Txn(compares=(Compare("version", "\t", 0),)),
    ],
    ids=lambda txn: f"{len(txn.compares)}-{len(txn.puts)}-{len(txn.deletes)}",
)
def test_what_breaks_a_published_limit_is_refused_with_everything_beside_it(store: Store, wrong: Txn) -> None:
    before = store.revision()
    with pytest.raises(InvalidTransaction):
        store.commit([Txn(puts=(Put("innocent", b""),)), wrong])
    assert store.count("") == 0
    assert store.revision() == before


def test_deleting_a_prefix_leaves_its_neighbours_and_says_how_many(store: Store) -> None:
    for start in range(0, 1200, 100):
        put(store, *(f"p/{n}" for n in range(start, start + 100)))
    put(store, "p", "p0")
    assert store.delete_prefix("p/") == 1200
    assert keys_of(store.list("")) == ["p", "p0"]
    before = store.revision()
    assert store.delete_prefix("p/") == 0
    assert store.revision() == before
    assert store.delete_prefix("") == 2


# --- leases --------------------------------------------------------------------------------------------------


def test_keys_vanish_with_their_lease(store: Store, driver: Driver) -> None:
    lease = store.grant(2.0)
    assert lease != 0
    put(store, "under/a", "under/b", lease=lease)
    put(store, "under/c")
    assert read(store, "under/a").lease == lease
    driver.pass_time(1.0)
    assert store.count("under/") == 3
    driver.pass_time(1.5)
    assert store.get(["under/a", "under/b"]) == [None, None]
    assert store.count("under/") == store.count("") == 1
    assert keys_of(store.list("")) == keys_of(store.list("", reverse=True, limit=1)) == ["under/c"]
    assert keys_of(store.list("", keys_only=True)) == ["under/c"]
    assert not store.keep_alive(lease)


def test_a_renewed_lease_lives_its_whole_time_again(store: Store, driver: Driver) -> None:
    lease = store.grant(3.0)
    put(store, "a", lease=lease)
    for _ in range(3):
        driver.pass_time(2.0)
        assert store.keep_alive(lease)
    assert store.get(["a"]) != [None]
    driver.pass_time(3.5)
    assert store.get(["a"]) == [None]


def test_compares_see_keys_under_a_lease_that_is_over_as_absent(store: Store, driver: Driver) -> None:
    lease = store.grant(1.0)
    put(store, "own", lease=lease)
    claim = Txn((Compare("version", "own", 0),), (Put("own", b"mine"),))
    assert store.commit([claim])[0].verdict is Verdict.REFUSED
    driver.pass_time(1.5)
    (outcome,) = store.commit([claim])
    assert outcome.versions == (1,)
    assert read(store, "own") == Entry("own", b"mine", outcome.revision, outcome.revision, 1)


def test_a_put_under_a_lease_that_is_gone_is_refused(store: Store, driver: Driver) -> None:
    revoked, expired = store.grant(60.0), store.grant(1.0)
    store.revoke(revoked)
    driver.pass_time(1.5)
    for lease in (revoked, expired, 987_654):
        (outcome,) = store.commit([Txn(puts=(Put("free", b""), Put("bound", b"", lease)))])
        assert outcome.verdict is Verdict.REFUSED
    assert store.list("") == []
    assert not store.keep_alive(987_654)


def test_revoking_deletes_the_keys_at_once_and_may_be_repeated(store: Store) -> None:
    lease, other = store.grant(60.0), store.grant(60.0)
    put(store, "a", "b", lease=lease)
    put(store, "c", lease=other)
    store.revoke(lease)
    store.revoke(lease)
    assert keys_of(store.list("")) == ["c"]
    assert not store.keep_alive(lease)
    assert store.keep_alive(other)


def test_a_key_belongs_to_the_lease_of_its_last_put(store: Store, driver: Driver) -> None:
    short, long = store.grant(1.0), store.grant(60.0)
    put(store, "freed", "moved", "deleted", lease=short)
    put(store, "freed")
    put(store, "moved", lease=long)
    delete(store, "deleted")
    put(store, "deleted")
    driver.pass_time(1.5)
    put(store, "z")
    assert keys_of(store.list("")) == ["deleted", "freed", "moved", "z"]
    store.revoke(long)
    assert keys_of(store.list("")) == ["deleted", "freed", "z"]


def test_leases_are_numbered_apart(store: Store, driver: Driver) -> None:
    first = store.grant(1.0)
    driver.pass_time(2.0)
    put(store, "a")
    assert store.grant(1.0) != first


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_a_lease_without_a_sensible_time_is_a_mistake(store: Store, ttl: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        store.grant(ttl)


# --- watches -------------------------------------------------------------------------------------------------


def test_a_watch_tells_what_happened_under_its_prefixes(store: Store, watching: Callable[..., Watch]) -> None:
    watch = watching("a/", "c")
    assert watch.next(0) == []
    first = put(store, "a/1", "b", value=b"one")
    second = put(store, "c", "ab", value=b"two")
    assert watch.next(LONG_S) == [Event("a/1", b"one", first.revision), Event("c", b"two", second.revision)]
    assert watch.next(0) == []
    gone = delete(store, "a/1", "b")
    assert watch.next(LONG_S) == [Event("a/1", None, gone.revision)]
    put(store, "b")
    assert watch.next(0) == []


def test_the_empty_prefix_watches_everything_and_no_prefix_nothing(
    store: Store, watching: Callable[..., Watch]
) -> None:
    everything, nothing = watching(""), watching()
    put(store, "a", "~")
    assert {event.key for event in everything.next(LONG_S)} == {"a", "~"}
    assert nothing.next(0) == []


def test_a_watch_begins_after_the_revision_it_was_given(store: Store, watching: Callable[..., Watch]) -> None:
    revisions = [put(store, f"k{n}").revision for n in range(5)]
    watch = watching("k", after=revisions[2])
    assert [(event.key, event.revision) for event in watch.next(LONG_S)] == [("k3", revisions[3]), ("k4", revisions[4])]
    resumed = watching("k", after=revisions[3])
    assert [event.key for event in resumed.next(LONG_S)] == ["k4"]


def test_the_newest_state_of_a_key_is_always_told(store: Store, watching: Callable[..., Watch]) -> None:
    watch = watching("k")
    for n in range(10):
        last = put(store, "k", value=b"%d" % n)
    deadline = time.monotonic() + LONG_S
    events: list[Event] = []
    while not events or events[-1].revision < last.revision:
        assert time.monotonic() < deadline
        events += watch.next(1)
    assert events[-1] == Event("k", b"9", last.revision)
    assert [event.revision for event in events] == sorted({event.revision for event in events})


def test_a_watch_tells_of_leases_that_end_though_nobody_writes(
    store: Store, driver: Driver, watching: Callable[..., Watch]
) -> None:
    expiring, revoked = store.grant(1.0), store.grant(60.0)
    put(store, "a", lease=expiring)
    put(store, "b", lease=revoked)
    watch = watching("")
    store.revoke(revoked)
    assert [(event.key, event.value) for event in watch.next(LONG_S)] == [("b", None)]
    driver.pass_time(1.5)
    assert [(event.key, event.value) for event in watch.next(LONG_S)] == [("a", None)]


def test_deleting_a_prefix_is_told(store: Store, watching: Callable[..., Watch]) -> None:
    put(store, "p/1", "p/2", "q")
    watch = watching("p/")
    store.delete_prefix("")
    assert {(event.key, event.value) for event in watch.next(LONG_S)} == {("p/1", None), ("p/2", None)}


def test_a_waiting_watch_wakes_at_once(store: Store, driver: Driver, watching: Callable[..., Watch]) -> None:
    other = driver.again(store)
    watch = watching("k")
    delays = []
    for _ in range(5):
        written: list[float] = []

        def write(note: list[float] = written) -> None:
            note.append(time.monotonic())
            put(other, "k")

        timer = threading.Timer(0.05, write)
        timer.start()
        assert [event.key for event in watch.next(LONG_S)] == ["k"]
        woken = time.monotonic()
        timer.join()
        delays.append(woken - written[0])
    # Well under any poll; the best of five, as the machine may be busy.
    assert min(delays) < 0.4


def test_the_descriptor_of_a_watch_turns_readable_for_its_prefixes_and_no_others(
    store: Store, driver: Driver, watching: Callable[..., Watch]
) -> None:
    other = driver.again(store)
    watch = watching("k")
    assert watch.next(0) == []
    put(other, "elsewhere")
    assert not select.select([watch.fileno()], [], [], 0.05)[0]
    put(other, "k")
    assert select.select([watch.fileno()], [], [], LONG_S)[0]
    assert [event.key for event in watch.next(0)] == ["k"]
    assert not select.select([watch.fileno()], [], [], 0)[0]


def test_a_watch_that_fell_too_far_behind_says_so(driver: Driver) -> None:
    store = driver.open(short_history=True)
    start = store.revision()
    for n in range(3):
        last = put(store, f"k{n}").revision
    early, late = store.watch(["k"], start), store.watch(["k"], last)
    assert [event.key for event in early.next(LONG_S)] == ["k0", "k1", "k2"]
    behind = store.watch(["k"], start)
    for _ in range(3 * driver.kept_history):
        put(store, "other")
    for watch in (early, late, behind):
        with pytest.raises(Compacted) as caught:
            watch.next(0)
        assert last < caught.value.oldest <= store.revision()
        watch.close()
    fresh = store.watch(["k"], store.revision())
    put(store, "k")
    assert [event.key for event in fresh.next(LONG_S)] == ["k"]
    fresh.close()


def test_a_watch_that_keeps_up_is_never_told_that_it_fell_behind(driver: Driver) -> None:
    store = driver.open(short_history=True)
    watch = store.watch(["k"], store.revision())
    for n in range(5 * driver.kept_history):
        put(store, f"k{n}")
        if n % (driver.kept_history // 2) == 0:
            assert watch.next(LONG_S)[-1].key == f"k{n}"
    watch.close()


def test_closing_a_watch_may_be_repeated(store: Store, watching: Callable[..., Watch]) -> None:
    watch = watching("")
    watch.close()
    watch.close()
    put(store, "a")
    with pytest.raises(StoreUnavailable):
        watch.next(0)


# --- several users ---------------------------------------------------------------------------------------------


def test_every_user_of_a_store_sees_the_same(store: Store, driver: Driver) -> None:
    other = driver.again(store)
    lease = other.grant(2.0)
    put(store, "a", lease=lease)
    assert other.get(["a"]) == store.get(["a"]) != [None]
    assert store.keep_alive(lease)
    driver.pass_time(3.0)
    assert other.count("") == store.count("") == 0
    put(other, "b")
    assert store.revision() == other.revision()


def test_puts_of_many_threads_are_each_counted_once(store: Store) -> None:
    threads, each = 8, 40

    def count(_: int) -> list[Outcome]:
        return [outcome for _ in range(each) for outcome in store.commit([Txn(puts=(Put("count", b""),))])]

    with ThreadPoolExecutor(threads) as pool:
        outcomes = [outcome for part in pool.map(count, range(threads)) for outcome in part]
    assert read(store, "count").version == threads * each
    assert sorted(version for outcome in outcomes for version in outcome.versions) == list(range(1, 321))
    assert len({outcome.revision for outcome in outcomes}) == threads * each


def test_of_many_threads_that_claim_a_key_one_gets_it(store: Store) -> None:
    names = [f"own/{n}" for n in range(30)]

    def claim(who: int) -> int:
        txns = [Txn((Compare("version", name, 0),), (Put(name, b"%d" % who),)) for name in names]
        return sum(store.commit([txn])[0].verdict is Verdict.COMMITTED for txn in txns)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == len(names)
    assert all(entry.version == 1 for entry in store.list("own/"))


def test_a_transaction_is_read_whole(store: Store) -> None:
    put(store, "a", "b", value=b"0")
    done = threading.Event()

    def write() -> None:
        for n in range(200):
            put(store, "a", "b", value=b"%d" % n)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    torn = 0
    while not done.is_set():
        a, b = store.get(["a", "b"])
        torn += a is None or b is None or a.value != b.value
    writer.join()
    assert torn == 0


def test_a_closed_store_is_unavailable(driver: Driver) -> None:
    store = driver.open()
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: store.get(["a"]),
        lambda: store.list(""),
        lambda: store.count(""),
        lambda: store.commit([Txn()]),
        lambda: store.delete_prefix(""),
        lambda: store.grant(1),
        store.revision,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable):
            call()
