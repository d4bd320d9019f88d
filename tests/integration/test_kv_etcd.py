"""The store on real etcd servers that stop, freeze, fill up, ask for certificates and forget."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import servers
from servers.certificates import Authority
from servers.etcd import Etcd, EtcdCluster

from mr.errors import Compacted, InvalidConfig, InvalidTransaction, StoreUnavailable
from mr.kv.base import Compare, Event, Put, Store, Txn, Verdict, Watch
from mr.kv.etcd import EtcdStore

LONG_S = 30.0
only_newest = pytest.mark.parametrize("server", ["3.6"], indirect=True)
USER, PASSWORD = "worker", "s3cret/%?"


@pytest.fixture(scope="module", params=["3.6", "3.4"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    servers.need(f"etcd-{request.param}")
    with Etcd(tmp_path_factory.mktemp("etcd"), version=request.param) as server:
        yield server


@pytest.fixture
def store(server: Etcd) -> Iterator[EtcdStore]:
    """A store that others have used before; what is asked of it here is told apart by its keys."""
    server.start()
    store = EtcdStore(server.url)
    store.delete_prefix("")
    yield store
    store.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    servers.need("etcd-3.6")
    with EtcdCluster(tmp_path_factory.mktemp("three")) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: EtcdCluster) -> Iterator[EtcdCluster]:
    """Three nodes, all of which are up again afterwards."""
    yield three
    for node in three.nodes:
        if node.is_running:
            node.thaw()
    three.start()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Etcd]:
    """Wants a certificate, a name and a password, and lets the user write below work/ alone."""
    servers.need("etcd-3.6")
    with Etcd(tmp_path_factory.mktemp("guarded"), tls=authority, client_certificates=True) as server:
        server.ctl("user", "add", "root:root")
        server.ctl("user", "grant-role", "root", "root")
        server.ctl("role", "add", "working")
        server.ctl("role", "grant-permission", "--prefix", "working", "readwrite", "work/")
        server.ctl("user", "add", f"{USER}:{PASSWORD}")
        server.ctl("user", "grant-role", USER, "working")
        server.ctl("auth", "enable")
        yield server


@pytest.fixture
def opening() -> Iterator[Callable[[str], EtcdStore]]:
    stores: list[EtcdStore] = []

    def open_store(url: str) -> EtcdStore:
        stores.append(EtcdStore(url))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def put(store: Store, *keys: str, value: bytes = b"x", lease: int = 0) -> int:
    (outcome,) = store.commit([Txn(puts=tuple(Put(key, value, lease) for key in keys))])
    assert outcome.verdict is Verdict.COMMITTED
    return outcome.revision


def insist(store: Store, txn: Txn) -> tuple[Verdict, int]:
    """Repeats the same transaction until its outcome is known; also, how often it was not."""
    deadline, doubts = time.monotonic() + LONG_S, 0
    while True:
        assert time.monotonic() < deadline
        try:
            (outcome,) = store.commit([txn])
        except StoreUnavailable:
            time.sleep(0.01)
            continue
        if outcome.verdict is not Verdict.UNKNOWN:
            return outcome.verdict, doubts
        doubts += 1


def follow(watch: Watch, until: Callable[[dict[str, Event]], bool]) -> dict[str, Event]:
    """The newest event of each key, once they are as they should be."""
    deadline = time.monotonic() + LONG_S
    told: dict[str, Event] = {}
    while not until(told):
        assert time.monotonic() < deadline, f"told of {len(told)} keys"
        try:
            told.update((event.key, event) for event in watch.next(0.5))
        except StoreUnavailable:
            continue
    return told


def write_under(store: Store, name: str, stop: threading.Event) -> list[str]:
    """Creates keys, each with a value of its own, and says which of them it created for certain."""
    created = []
    number = 0
    while not stop.is_set():
        key, value = f"{name}/{number:06}", f"{name} {number}".encode()
        verdict, doubts = insist(store, Txn((Compare("version", key, 0),), (Put(key, value),)))
        if verdict is Verdict.REFUSED:
            # Nobody else writes this key: an earlier try, which nobody knew of, went through.
            assert doubts
            (entry,) = reading(store, key)
            assert entry is not None and entry.value == value
        created.append(key)
        number += 1
    return created


def reading(store: Store, *keys: str) -> list[object]:
    deadline = time.monotonic() + LONG_S
    while True:
        try:
            return [*store.get(keys)]
        except StoreUnavailable:
            assert time.monotonic() < deadline


def under_load(store: Store, other: Store, trouble: Callable[[], None]) -> None:
    """What was created is there, once, and was told to a watch, whatever trouble there is meanwhile."""
    watch = other.watch(["load/"], other.revision())
    stop = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write_under, store, f"load/{n}", stop) for n in range(3)]
        try:
            trouble()
        finally:
            stop.set()
        created = {key for writer in writers for key in writer.result()}
    assert len(created) > 10
    told = follow(watch, lambda told: created <= told.keys())
    entries: list[str] = []
    while page := store.list("load/", after=entries[-1] if entries else "", limit=5000):
        entries += [entry.key for entry in page]
        assert all(entry.version == 1 for entry in page)
    assert set(entries) == created == told.keys()
    watch.close()


def until_written(store: Store, prefix: str, more: int) -> None:
    """Waits until so many more keys are there."""
    deadline = time.monotonic() + LONG_S

    def count() -> int:
        try:
            return store.count(prefix)
        except StoreUnavailable:
            return 0

    while not (wanted := count()):
        assert time.monotonic() < deadline
    wanted += more
    while count() < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- one server ----------------------------------------------------------------------------------------------


def test_a_restart_amid_writes_loses_nothing_and_doubles_nothing(server: Etcd, store: EtcdStore) -> None:
    other = EtcdStore(server.url)

    def restart() -> None:
        for end in (server.stop, server.kill, server.kill):
            until_written(store, "load/", 30)
            end()
            server.start()
        until_written(store, "load/", 30)

    under_load(store, other, restart)
    other.close()


@only_newest
def test_a_server_that_is_frozen_is_told_of_and_found_again(server: Etcd, store: EtcdStore) -> None:
    watch = store.watch(["a"], store.revision())
    put(store, "a1")
    assert [event.key for event in watch.next(LONG_S)] == ["a1"]
    server.freeze()
    try:
        assert [outcome.verdict for outcome in store.commit([Txn(puts=(Put("a2", b""),))])] == [Verdict.UNKNOWN]
        # By now it is known that it does not answer: what it never got is not unknown.
        calls: list[Callable[[], object]] = [
            lambda: store.get(["a1"]),
            lambda: store.commit([Txn(puts=(Put("a3", b""),))]),
            lambda: store.keep_alive(1),
            lambda: watch.next(LONG_S),
        ]
        with ThreadPoolExecutor(len(calls)) as pool:
            for asked in [pool.submit(call) for call in calls]:
                error = asked.exception()
                assert isinstance(error, StoreUnavailable)
                assert "no answer in time" in str(error)
    finally:
        server.thaw()
    put(store, "a4")
    told = follow(watch, lambda told: "a4" in told)
    assert told.keys() <= {"a2", "a4"}
    assert [entry.key for entry in store.list("a")] == sorted({"a1", *told})
    watch.close()


@only_newest
def test_a_quiet_watch_stays_open(server: Etcd, store: EtcdStore) -> None:
    """etcd says nothing on a stream that waits for a revision to come, however often it is asked."""
    watch = store.watch(["a"], store.revision())
    stream = watch._stream
    assert watch.next(7.0) == []
    assert watch._stream is stream
    put(store, "a")
    assert [event.key for event in watch.next(LONG_S)] == ["a"]
    watch.close()


def test_leases_expire_when_nobody_renews_them_and_live_whole_seconds(server: Etcd, store: EtcdStore) -> None:
    renewed, short = store.grant(1.2), store.grant(0.2)
    assert "TTL(2s)" in server.ctl("lease", "timetolive", f"{renewed:x}")
    put(store, "renewed", lease=renewed)
    put(store, "short", lease=short)
    watch = store.watch([""], store.revision())
    told: list[Event] = []
    deadline = time.monotonic() + LONG_S
    while not told:
        assert time.monotonic() < deadline
        assert store.keep_alive(renewed)
        told = watch.next(0.2)
    assert [(event.key, event.value) for event in told] == [("short", None)]
    assert not store.keep_alive(short)
    assert [event.key for event in watch.next(LONG_S)] == ["renewed"]
    assert store.commit([Txn(puts=(Put("late", b"", renewed),))])[0].verdict is Verdict.REFUSED
    watch.close()


def test_a_long_range_of_large_values_comes_in_pieces(store: EtcdStore) -> None:
    start = store.revision()
    value = bytes(10_000)
    for first in range(0, 5000, 500):
        txns = [Txn(puts=(Put(f"big/{n:04}", value + b"%d" % n),)) for n in range(first, first + 500)]
        assert {outcome.verdict for outcome in store.commit(txns)} == {Verdict.COMMITTED}
    names = [f"big/{n:04}" for n in range(5000)]
    assert [entry.key for entry in store.list("big/", limit=10_000)] == names
    assert [entry.key for entry in store.list("big/", limit=4000, reverse=True)] == names[:-4001:-1]
    assert [entry.value for entry in store.list("big/", after="big/2999", limit=700)] == [
        value + b"%d" % n for n in range(3000, 3700)
    ]
    assert [entry.key for entry in store.list("big/", limit=10_000, keys_only=True)] == names
    entries = store.get(names)
    assert [entry and entry.value for entry in entries] == [value + b"%d" % n for n in range(5000)]
    watch = store.watch(["big/"], start)
    told = follow(watch, lambda told: len(told) == 5000)
    assert told["big/4999"].value == value + b"4999"
    watch.close()
    assert store.delete_prefix("big/") == 5000
    assert store.count("big/") == 0


def test_a_listing_of_many_pages_is_of_one_moment(store: EtcdStore) -> None:
    put(store, *(f"span/{n:03}" for n in range(100)))
    for start in range(100, 400, 100):
        put(store, *(f"span/{n}" for n in range(start, start + 100)))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            put(store, "span/000", "span/200", "span/399")

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            for reverse in [False, True] * 20:
                entries = store.list("span/", reverse=reverse)
                assert len(entries) == 400
                ends = {entry.version for entry in entries if entry.key in ("span/000", "span/200", "span/399")}
                assert len(ends) == 1
        finally:
            stop.set()
        writing.result()


def test_a_group_whose_one_lease_is_gone_is_carried_out_without_what_names_it(store: EtcdStore) -> None:
    alive, gone, also_gone = store.grant(60), store.grant(60), store.grant(60)
    store.revoke(gone)
    store.revoke(also_gone)

    def one(name: str, *leases: int) -> Txn:
        return Txn(puts=tuple(Put(f"{name}{n}", b"", lease) for n, lease in enumerate(leases)))

    txns = [
        one("a", 0),
        one("b", gone),
        one("c", alive, 0),
        one("d", alive, gone),
        one("e", also_gone),
        one("f", alive),
    ]
    verdicts = [outcome.verdict for outcome in store.commit(txns)]
    committed, refused = Verdict.COMMITTED, Verdict.REFUSED
    assert verdicts == [committed, refused, committed, refused, refused, committed]
    assert [entry.key for entry in store.list("")] == ["a0", "c0", "c1", "f0"]
    only = [one("g", gone), one("h", 0, gone)]
    assert [outcome.verdict for outcome in store.commit(only)] == [refused, refused]


@only_newest
def test_a_group_takes_as_many_requests_as_it_needs(store: EtcdStore) -> None:
    large = [Txn(puts=(Put(f"large/{n}", bytes(900_000)),)) for n in range(4)]
    many = [Txn(puts=tuple(Put(f"many/{n}/{m}", b"") for m in range(100))) for n in range(5)]
    small = [Txn((Compare("version", f"small/{n}", 0),), (Put(f"small/{n}", b""),)) for n in range(300)]
    again = [Txn(puts=(Put(f"small/{n % 7}", b"again"),)) for n in range(40)]
    outcomes = store.commit([*large, *many, *small, *again])
    assert {outcome.verdict for outcome in outcomes} == {Verdict.COMMITTED}
    assert (store.count("large/"), store.count("many/"), store.count("small/")) == (4, 500, 300)
    entries = store.get([f"small/{n}" for n in range(8)])
    assert [entry and entry.version for entry in entries] == [7, 7, 7, 7, 7, 6, 6, 1]
    with pytest.raises(InvalidTransaction, match=r"1500000 at a time"):
        store.commit([Txn(puts=(Put("a", bytes(900_000)), Put("b", bytes(900_000))))])


@only_newest
def test_a_forked_process_has_connections_of_its_own(store: EtcdStore) -> None:
    watch = store.watch(["f"], store.revision())
    put(store, "f1")
    assert [event.key for event in watch.next(LONG_S)] == ["f1"]
    with warnings.catch_warnings():
        # Newer Pythons warn of forks beside threads, of which gRPC has some.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            put(store, "f2")
            mine = store.watch(["f"], store.revision())
            put(store, "f3")
            assert [event.key for event in mine.next(LONG_S)] == ["f3"]
            try:
                watch.next(0)
            except StoreUnavailable:
                code = 0
            watch.close()
            store.close()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    put(store, "f4")
    told = follow(watch, lambda told: "f4" in told)
    assert told.keys() == {"f2", "f3", "f4"}
    watch.close()


# --- several servers -----------------------------------------------------------------------------------------


def node_of(store: EtcdStore, cluster: EtcdCluster) -> Etcd:
    """The one that the store talks to."""
    address = store._cluster.connect()[0].address
    return next(node for node in cluster.nodes if node.address == address)


def test_a_killed_node_of_three_costs_nothing(cluster: EtcdCluster, opening: Callable[[str], EtcdStore]) -> None:
    store, other = opening(cluster.url), opening(cluster.url)
    store.delete_prefix("")

    def kill_each() -> None:
        for node in (node_of(store, cluster), node_of(other, cluster)):
            until_written(store, "load/", 30)
            node.kill()
            until_written(store, "load/", 30)
            node.start()

    under_load(store, other, kill_each)


def test_a_frozen_node_of_three_is_left(cluster: EtcdCluster, opening: Callable[[str], EtcdStore]) -> None:
    store, other = opening(cluster.url), opening(cluster.url)
    store.delete_prefix("")
    lease = store.grant(20)

    def freeze() -> None:
        until_written(store, "load/", 30)
        node_of(store, cluster).freeze()
        until_written(store, "load/", 30)
        assert store.keep_alive(lease)

    under_load(store, other, freeze)


def test_a_dead_address_among_several_does_not_matter(
    cluster: EtcdCluster, opening: Callable[[str], EtcdStore]
) -> None:
    for _ in range(4):
        store = opening(f"etcd://127.0.0.1:1,{cluster.nodes[0].address},127.0.0.1:2")
        watch = store.watch(["here"], store.revision())
        put(store, "here")
        assert [event.key for event in watch.next(LONG_S)] == ["here"]


def test_closing_a_watch_is_no_reason_to_leave_its_server(
    cluster: EtcdCluster, opening: Callable[[str], EtcdStore]
) -> None:
    store = opening(cluster.url)
    node = node_of(store, cluster)
    for _ in range(3):
        watch = store.watch(["a"], store.revision())
        thread = next(thread for thread in threading.enumerate() if thread.name == "etcd watch")
        watch.close()
        thread.join(LONG_S)
        assert not thread.is_alive()
        assert node_of(store, cluster) is node


def test_without_a_majority_nothing_is_promised(cluster: EtcdCluster, opening: Callable[[str], EtcdStore]) -> None:
    store = opening(cluster.url)
    put(store, "a")
    for node in cluster.nodes[:2]:
        node.kill()
    with ThreadPoolExecutor(1) as pool:
        commit = pool.submit(store.commit, [Txn(puts=(Put("a", b""),))])
        with pytest.raises(StoreUnavailable, match="None of the etcd servers answers"):
            store.get(["a"])
        with suppress(StoreUnavailable):
            assert commit.result()[0].verdict is Verdict.UNKNOWN


def test_what_was_compacted_while_a_watch_was_cut_off_is_said_to_be_missing(
    cluster: EtcdCluster, opening: Callable[[str], EtcdStore]
) -> None:
    watching = opening(cluster.url)
    put(watching, "k")
    watch = watching.watch(["k"], watching.revision())
    cut_off = node_of(watching, cluster)
    reached = [node for node in cluster.nodes if node is not cut_off]
    cut_off.freeze()
    store = opening(f"etcd://{reached[0].address}")
    for _ in range(5):
        insist(store, Txn(puts=(Put("k", b""),)))
    reached[0].ctl("compaction", str(store.revision()))
    cut_off.kill()
    deadline = time.monotonic() + LONG_S
    with pytest.raises(Compacted) as caught:
        while time.monotonic() < deadline:
            assert watch.next(1) == []
    assert caught.value.oldest == store.revision()
    with pytest.raises(Compacted):
        watch.next(0)
    watch.close()


# --- who is let in -------------------------------------------------------------------------------------------


def guarded_url(server: Etcd, user: str = USER, password: str = PASSWORD) -> str:
    password = password.replace("%", "%25").replace("/", "%2F").replace("?", "%3F")
    return server.url.replace("etcds://", f"etcds://{user}:{password}@")


def test_a_certificate_a_name_and_a_password_let_in(guarded: Etcd, opening: Callable[[str], EtcdStore]) -> None:
    store = opening(guarded_url(guarded))
    lease = store.grant(60)
    watch = store.watch(["work/"], store.revision())
    put(store, "work/a", "work/b", lease=lease)
    assert {event.key for event in watch.next(LONG_S)} == {"work/a", "work/b"}
    assert store.count("work/") == 2
    assert store.keep_alive(lease)
    # A server that starts again has forgotten all tokens.
    guarded.kill()
    guarded.start()
    assert [entry.key for entry in store.list("work/")] == ["work/a", "work/b"]
    assert store.delete_prefix("work/") == 2
    told = follow(watch, lambda told: len(told) == 2)
    assert {event.value for event in told.values()} == {None}
    store.revoke(lease)


def test_a_token_that_is_too_old_is_renewed(guarded: Etcd, opening: Callable[[str], EtcdStore]) -> None:
    store = opening(guarded_url(guarded))
    put(store, "work/a")
    admin = ["--user=root:root"]
    for _ in range(2):
        # Whatever is changed about users makes all tokens old.
        guarded.ctl(*admin, "role", "add", f"role-{time.monotonic_ns()}")
        put(store, "work/a")
        store.watch(["work/"], store.revision()).close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda url: url.replace(f"{USER}:", "nobody:"), "does not let the user 'nobody' in"),
        (lambda url: url.replace("s3cret", "guess"), f"does not let the user '{USER}' in"),
        (lambda url: url.replace(url[len("etcds://") : url.index("@") + 1], ""), "a client without a name"),
        (lambda url: url[: url.index("&cert=")], "wants a certificate of its clients"),
        (lambda url: url[: url.index("?ca=")], "is not trusted"),
        (lambda url: f"etcd://{url[url.index('@') + 1 : url.index('?')]}", "write etcds://"),
        (lambda url: url.replace("127.0.0.1:", "127.0.0.2:"), "refused"),
    ],
    ids=["user", "password", "nobody", "certificate", "authority", "plain", "elsewhere"],
)
def test_whoever_is_not_let_in_is_told_why(
    guarded: Etcd, opening: Callable[[str], EtcdStore], change: Callable[[str], str], complaint: str
) -> None:
    store = opening(change(guarded_url(guarded)))
    calls: list[Callable[[], object]] = [
        lambda: store.get(["work/a"]),
        lambda: store.commit([Txn(puts=(Put("work/a", b""),))]),
        lambda: store.watch(["work/"], 1),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert complaint in str(caught.value)
        assert guarded.address.partition(":")[2] in str(caught.value)
        assert "s3cret" not in str(caught.value) and "guess" not in str(caught.value)


def test_certificates_of_another_authority_do_not_let_in(
    guarded: Etcd, opening: Callable[[str], EtcdStore], tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    pair = other.client("jobx")
    url = guarded_url(guarded)
    with pytest.raises(StoreUnavailable, match="its certificate is not trusted"):
        opening(url.replace(url[url.index("?ca=") : url.index("&cert=")], f"?ca={other.ca}")).get(["work/a"])
    with pytest.raises(StoreUnavailable, match="does not take the certificate"):
        opening(f"{url[: url.index('&cert=')]}&cert={pair.cert}&key={pair.key}").get(["work/a"])


@only_newest
def test_tls_where_there_is_none_is_told(server: Etcd, opening: Callable[[str], EtcdStore]) -> None:
    server.start()
    with pytest.raises(StoreUnavailable, match="does not speak TLS"):
        opening(server.url.replace("etcd://", "etcds://")).get(["a"])


@only_newest
def test_a_name_and_a_password_do_no_harm_where_there_are_no_users(
    server: Etcd, opening: Callable[[str], EtcdStore]
) -> None:
    server.start()
    put(opening(server.url.replace("etcd://", "etcd://somebody:secret@")), "a")


@pytest.mark.parametrize(
    "options",
    ["?ca=/no/such/file", "?cert={ca}&key={key}", "?ca={key}", "?cert={cert}", "?key={key}", "?password=x"],
)
def test_a_url_that_cannot_be_right_is_refused_before_anything_is_connected_to(
    authority: Authority, options: str
) -> None:
    cert, key = authority.client("jobx")
    with pytest.raises(InvalidConfig) as caught:
        EtcdStore(f"etcds://me:hidden@127.0.0.1:1{options.format(ca=authority.ca, cert=cert, key=key)}")
    assert caught.value.parameter == "MR_KV_URL"
    assert "hidden" not in str(caught.value)


def test_what_a_user_may_not_do_is_told_with_the_key(guarded: Etcd, opening: Callable[[str], EtcdStore]) -> None:
    store = opening(guarded_url(guarded))
    calls: list[Callable[[], object]] = [
        lambda: store.get(["work/a", "other/a"]),
        lambda: store.commit([Txn(puts=(Put("other/a", b""),))]),
        lambda: store.list("other/a"),
        lambda: store.delete_prefix("other/a"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=rf"the user '{USER}' .*permission denied.*'other/a'"):
            call()
    with pytest.raises(StoreUnavailable, match=rf"the user '{USER}' .*permission denied.*'other/'"):
        store.watch(["other/"], 1)


def test_those_that_share_a_request_with_what_is_denied_do_not_suffer(
    guarded: Etcd, opening: Callable[[str], EtcdStore]
) -> None:
    store = opening(guarded_url(guarded))
    store.delete_prefix("work/")
    # Alone in its request, for its size: no server lets that through, also none that does not look inside of groups.
    denied = Txn(puts=(Put("other/a", bytes(900_000)),))
    txns = [Txn(puts=(Put(key, bytes(700_000)),)) for key in ("work/1", "work/2")]
    verdicts = [outcome.verdict for outcome in store.commit([txns[0], denied, txns[1]])]
    assert verdicts == [Verdict.COMMITTED, Verdict.UNKNOWN, Verdict.COMMITTED]
    with pytest.raises(StoreUnavailable, match="permission denied"):
        store.commit([denied])
    assert store.delete_prefix("work/") == 2


def test_a_server_with_users_lets_in_whoever_has_a_name(tmp_path: Path, opening: Callable[[str], EtcdStore]) -> None:
    servers.need("etcd-3.4")
    with Etcd(tmp_path, version="3.4") as server:
        # Connected before there are users, as when they are introduced.
        store, nobody = opening(server.url.replace("etcd://", "etcd://root:pass@")), opening(server.url)
        put(store, "a")
        put(nobody, "a")
        watch = store.watch(["a"], store.revision())
        server.ctl("user", "add", "root:pass")
        server.ctl("user", "grant-role", "root", "root")
        server.ctl("auth", "enable")
        put(store, "a")
        assert [event.key for event in watch.next(LONG_S)] == ["a"]
        server.kill()
        server.start()
        store.watch(["a"], store.revision()).close()
        put(store, "a")
        assert [event.key for event in watch.next(LONG_S)] == ["a"]
        with pytest.raises(StoreUnavailable, match="lets nobody in without a name and a password"):
            put(nobody, "a")
        with pytest.raises(StoreUnavailable):
            nobody.watch(["a"], 1)


# --- a full store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.6", "3.4"])
def test_a_full_store_says_what_to_do_and_takes_writes_once_it_is_done(
    tmp_path: Path, opening: Callable[[str], EtcdStore], version: str
) -> None:
    servers.need(f"etcd-{version}")
    with Etcd(tmp_path, version=version, quota_bytes=16 << 20) as server:
        store = opening(server.url)
        with pytest.raises(StoreUnavailable) as caught:
            for n in range(100):
                put(store, f"fill/{n % 10}", value=bytes(900_000))
        for word in ("NOSPACE", "etcdctl compact", "etcdctl defrag", "--quota-backend-bytes", "etcdctl alarm disarm"):
            assert word in str(caught.value)
        with pytest.raises(StoreUnavailable, match="NOSPACE"):
            put(store, "more")
        assert store.count("fill/") == 10
        assert store.delete_prefix("fill/") == 10
        server.ctl("compaction", str(store.revision()))
        server.ctl("defrag")
        server.ctl("alarm", "disarm")
        assert insist(store, Txn(puts=(Put("more", b""),))) == (Verdict.COMMITTED, 0)


def test_a_server_that_takes_less_than_others_gets_less(tmp_path: Path, opening: Callable[[str], EtcdStore]) -> None:
    servers.need("etcd-3.6")
    with Etcd(tmp_path, args=["--max-request-bytes=200000"]) as server:
        store = opening(server.url)
        small = [Txn(puts=(Put(f"small/{n}", bytes(60_000)),)) for n in range(5)]
        large = Txn(puts=(Put("large", bytes(250_000)),))
        outcomes = store.commit([*small, large])
        assert [outcome.verdict for outcome in outcomes] == [*[Verdict.COMMITTED] * 5, Verdict.UNKNOWN]
        with pytest.raises(InvalidTransaction, match=r"'large' is larger than this etcd takes.*--max-request-bytes"):
            store.commit([large])
        assert store.count("") == 5


# --- greenlets -----------------------------------------------------------------------------------------------

GREENLETS = """
import mr.web.patched
import sys, threading, time
from mr.kv.base import Compare, Put, Txn, Verdict
from mr.kv.etcd import EtcdStore

store = EtcdStore(sys.argv[1])
ticks, stop = 0, threading.Event()

def tick():
    global ticks
    while not stop.is_set():
        time.sleep(0.01)
        ticks += 1

def work(number, done):
    watch = store.watch([f"g/{number:03}/"], store.revision()) if number % 10 == 0 else None
    for n in range(5):
        key = f"g/{number:03}/{n}"
        (outcome,) = store.commit([Txn((Compare("version", key, 0),), (Put(key, b"x"),))])
        assert outcome.verdict is Verdict.COMMITTED
        assert store.get([key])[0].version == 1
    told = []
    while watch and len(told) < 5:
        told += watch.next(30)
    done.append(number)
    if watch:
        watch.close()

ticker = threading.Thread(target=tick)
ticker.start()
done = []
greenlets = [threading.Thread(target=work, args=(number, done)) for number in range(200)]
for greenlet in greenlets:
    greenlet.start()
for greenlet in greenlets:
    greenlet.join()
print(len(done), store.count("g/"), ticks, flush=True)
sys.stdin.readline()
begun = ticks
print(store.commit([Txn(puts=(Put("x", b""),))])[0].verdict.name, flush=True)
print(ticks - begun, flush=True)
stop.set()
ticker.join()
store.close()
"""


@only_newest
def test_greenlets_commit_and_watch_while_others_go_on(server: Etcd, store: EtcdStore) -> None:
    command = [sys.executable, "-c", GREENLETS, server.url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin and program.stdout
        done, count, ticks = program.stdout.readline().split()
        assert (done, count) == ("200", "1000")
        assert int(ticks) > 20
        server.freeze()
        try:
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "UNKNOWN\n"
            # A hub that waits for an answer in the meantime ticks once.
            assert int(program.stdout.readline()) > 100
        finally:
            server.thaw()
        assert program.wait(LONG_S) == 0
