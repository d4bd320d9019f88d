"""``jobx doctor`` and what drivers tell it, on real servers in all states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from servers.certificates import Authority
from servers.etcd import Etcd, EtcdCluster
from servers.nsq import Nsqd, Nsqlookupd

from mr.findings import Finding
from mr.kv.base import Put, Txn
from mr.kv.etcd import EtcdStore, examination
from mr.model import keys
from mr.queue.base import Backlog, Message
from mr.queue.nsq import NsqQueue
from tests.integration.worker_harness import until

PROGRAMS = Path(sys.executable).parent

Found = Callable[..., list[str]]


def texts(findings: list[Finding], level: str, check: str = "store") -> list[str]:
    return [f"{one.text} {one.advice}" for one in findings if (one.level, one.check) == (level, check)]


def one_text(findings: list[Finding], level: str, part: str, check: str = "store") -> str:
    [text] = [text for text in texts(findings, level, check) if part in text]
    return text


def doctor(directory: Path, **environ: str) -> tuple[int, dict[str, list[str]]]:
    """The exit code, and what was said by ``level check``."""
    done = subprocess.run(
        [PROGRAMS / "jobx", "doctor", "--json"],
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "MR_DATA_DIR": str(directory / "data"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    said: dict[str, list[str]] = {}
    for one in json.loads(done.stdout)["findings"]:
        said.setdefault(f"{one['level']} {one['check']}", []).append(f"{one['text']} {one['advice']}")
    return done.returncode, said


# --- etcd -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def needs_etcd() -> None:
    servers.need("etcd-3.6")


@pytest.fixture
def needs_nsq() -> None:
    servers.need("nsq")


@pytest.fixture
def looked_at() -> Iterator[Callable[[str], list[Finding]]]:
    stores: list[EtcdStore] = []

    def look(url: str) -> list[Finding]:
        stores.append(EtcdStore(url))
        return stores[-1].examine()

    yield look
    for store in stores:
        store.close()


Look = Callable[[str], list[Finding]]


@pytest.mark.usefixtures("needs_etcd")
def test_etcd_tells_its_version_role_size_and_history(tmp_path: Path, looked_at: Look) -> None:
    with Etcd(tmp_path, quota_bytes=64 << 20) as etcd:
        etcd.ctl("put", "a", "1")
        found = looked_at(etcd.url)
        assert {one.level for one in found} == {"ok"}
        one_text(found, "ok", "is the leader")
        one_text(found, "ok", "of a quota of 64 MiB")
        one_text(found, "ok", "etcd 3.6")
        one_text(found, "ok", "keeps 2 revisions, all that there were")
        one_text(found, "ok", etcd.address, "clock")
        for _ in range(10):
            etcd.ctl("put", "a", "2")
        etcd.ctl("compact", "10")
        one_text(looked_at(etcd.url), "ok", "keeps 2 revisions.")


@pytest.mark.usefixtures("needs_etcd")
def test_a_history_that_is_never_compacted_is_a_warning(
    tmp_path: Path, looked_at: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_UNCOMPACTED", 3)
    with Etcd(tmp_path) as etcd:
        for _ in range(5):
            etcd.ctl("put", "a", "1")
        assert "--auto-compaction-retention" in one_text(looked_at(etcd.url), "warning", "never forgot")
        etcd.ctl("compact", "2")
        assert not texts(looked_at(etcd.url), "warning")
        monkeypatch.setattr(examination, "_LONG", 3)
        one_text(looked_at(etcd.url), "warning", "keeps 4 revisions")


@pytest.mark.usefixtures("needs_etcd")
def test_a_database_that_fills_is_told_before_and_after(tmp_path: Path) -> None:
    with Etcd(tmp_path, quota_bytes=16 << 20) as etcd:
        store = EtcdStore(etcd.url)
        levels = []
        try:
            for number in range(200):
                store.commit([Txn(puts=(Put(f"x/{number}", b"x" * 200_000),))])
                levels.append({one.level for one in store.examine()})
        except Exception as error:
            assert "quota" in str(error)
        assert levels[0] == {"ok"}
        assert {"ok", "warning"} in levels
        found = store.examine()
        assert "etcdctl alarm disarm" in one_text(found, "problem", "NOSPACE")
        assert "etcdctl defrag" in one_text(found, "problem", "when full")
        store.close()
        code, said = doctor(tmp_path / "home", MR_KV_URL=etcd.url, MR_QUEUE_URL="nsq://127.0.0.1:1")
        assert code == 1
        assert any("alarm NOSPACE" in text for text in said["problem store"])
        assert any("is the leader" in text for text in said["ok store"]), "all that can be looked at is"


@pytest.mark.usefixtures("needs_etcd")
def test_members_that_are_down_or_not_named_are_warnings(tmp_path: Path, looked_at: Look) -> None:
    with EtcdCluster(tmp_path) as cluster:
        found = looked_at(cluster.url)
        assert {one.level for one in found} == {"ok"}
        assert len([text for text in texts(found, "ok") if "a follower" in text]) == 2
        one_text(looked_at(cluster.nodes[0].url), "warning", "MR_KV_URL names 1 of the 3 members")
        cluster.nodes[1].kill()
        found = looked_at(cluster.url)
        one_text(found, "warning", f"{cluster.nodes[1].address} does not answer")
        assert not texts(found, "problem")
        cluster.nodes[2].kill()
        # Until those that are left notice that they lead nobody, they answer.
        until(lambda: texts(looked_at(cluster.url), "problem"))


@pytest.mark.usefixtures("needs_etcd")
def test_a_frozen_member_is_told_and_the_others_are_looked_at(tmp_path: Path, looked_at: Look) -> None:
    with EtcdCluster(tmp_path) as cluster:
        frozen = cluster.nodes[0]
        frozen.freeze()
        until(lambda: len(texts(looked_at(cluster.url), "ok")) >= 3)
        one_text(looked_at(cluster.url), "warning", f"{frozen.address} does not answer")
        frozen.thaw()


def test_an_etcd_out_of_support_is_a_warning(tmp_path: Path, looked_at: Look) -> None:
    servers.need("etcd-3.4")
    with Etcd(tmp_path, version="3.4") as etcd:
        found = looked_at(etcd.url)
        assert "CVE-2026-33343" in one_text(found, "warning", "out of support")
        one_text(found, "ok", "of a quota of")


@pytest.mark.parametrize(
    ("version", "has_user", "is_told"),
    [
        ("3.5.29", True, True),
        ("3.5.29", False, False),
        ("3.5.30", True, False),
        ("3.6.4", True, True),
        ("3.6.11", True, False),
        ("3.7.0", True, False),
    ],
)
def test_roles_that_do_not_hold_are_told_where_they_are_used(version: str, has_user: bool, is_told: bool) -> None:
    server = examination._Server("a:1", version, True, True, 1, 1, 1 << 30, "", 1, 0, None)
    assert bool(texts(examination._of_server(server, has_user), "warning")) is is_told


@pytest.mark.parametrize(
    ("changes", "level", "part"),
    [
        ({"is_led": False}, "problem", "has no leader"),
        ({"database": 1 << 30, "in_use": 1 << 28}, "warning", "etcdctl defrag"),
        ({"database": 1 << 30, "in_use": 1 << 30}, "ok", "1 GiB of a quota"),
        ({"quota": 0}, "ok", "quota that it does not tell"),
    ],
)
def test_what_a_server_tells_is_judged(changes: dict[str, float], level: str, part: str) -> None:
    server = examination._Server("a:1", "3.6.4", True, True, 1, 1, 8 << 30, "", 1, 0, None)._replace(**changes)
    assert any(part in text for text in texts(examination._of_server(server, False), level))


def test_alarms_are_told_once() -> None:
    server = examination._Server("a:1", "3.6.4", True, True, 1, 1, 8 << 30, "memberID:1 alarm:CORRUPT", 1, 0, None)
    assert [one.level for one in examination._alarms([server, server])] == ["problem"]


@pytest.mark.usefixtures("needs_etcd")
def test_etcd_is_looked_at_through_tls_and_as_a_user_of_one_workflow(tmp_path: Path, looked_at: Look) -> None:
    with Etcd(tmp_path / "etcd", tls=Authority(tmp_path / "ca"), client_certificates=True) as etcd:
        assert {one.level for one in looked_at(etcd.url)} == {"ok"}
        one_text(looked_at(etcd.url), "ok", "of a quota of 2 GiB")
        for line in (["user", "add", "root:secret"], ["role", "add", "root"], ["user", "grant-role", "root", "root"]):
            etcd.ctl(*line)
        etcd.ctl("role", "add", "a")
        etcd.ctl("role", "grant-permission", "a", "--prefix=true", "read", keys.requests("a"))
        etcd.ctl("user", "add", "a:secret")
        etcd.ctl("user", "grant-role", "a", "a")
        etcd.ctl("auth", "enable")
        for user in ("root", "a"):
            found = looked_at(etcd.url.replace("://", f"://{user}:secret@"))
            assert {one.level for one in found if "Roles do not hold in etcd 3.6.4" not in one.text} == {"ok"}, found
            one_text(found, "ok", "is the leader")
        [refused] = looked_at(etcd.url.replace("://", "://a:wrong@"))
        assert (refused.level, "password" in refused.text) == ("problem", True)


# --- NSQ ------------------------------------------------------------------------------------------------------------


def port_of(nsqd: Nsqd) -> str:
    return nsqd.http_address.rpartition(":")[2]


@pytest.mark.usefixtures("needs_nsq")
def test_nsqd_tells_what_it_holds_and_what_a_kill_would_lose(tmp_path: Path) -> None:
    with Nsqd(tmp_path / "one") as forgetful, Nsqd(tmp_path / "two", mem_queue_size=0) as careful:
        queue = NsqQueue(f"nsq://{forgetful.tcp_address}?http={port_of(forgetful)}")
        queue.publish([Message("mr.w.map.general", b"1"), Message("mr.w.map.general", b"2")])
        found = queue.examine()
        assert {one.level for one in found} == {"ok"}
        text = one_text(found, "ok", "holds 2 messages in 1 topic.", "queue")
        assert "10,000" in text
        assert "sweep" in text
        one_text(found, "ok", forgetful.tcp_address, "clock")
        queue.close()
        queue = NsqQueue(f"nsq://{careful.tcp_address}?http={port_of(careful)}")
        assert one_text(queue.examine(), "ok", "holds 0 messages in 0 topics", "queue").endswith("topics. ")
        queue.close()


@pytest.mark.usefixtures("needs_nsq")
def test_nsq_tells_what_waits_on_which_channel_and_who_consumes_it(tmp_path: Path) -> None:
    with Nsqlookupd(tmp_path / "l") as lookupd:
        nodes = [Nsqd(tmp_path / name, lookupds=[lookupd]).start() for name in ("one", "two")]
        queue = NsqQueue(lookupd.url)
        try:
            until(lambda: len(queue.nodes()) == 2)
            queue.publish([Message("mr.w.map.general", b"x")] * 3)
            assert queue.backlogs() == [Backlog("mr.w.map.general", "", 3, 0)]
            consumer = queue.consumer("c", max_in_flight=1)
            consumer.subscribe(["mr.w.map.general"])
            taken = []
            until(lambda: taken.extend(consumer.receive(1, 0.1)) or taken)

            def told() -> dict[str, Backlog]:
                return {one.channel: one for one in queue.backlogs() or []}

            until(lambda: "c" in told() and (told()["c"].consumers or 0) >= 1)
            consumer.close()
            until(lambda: told()["c"].waiting == 3 and told()["c"].consumers == 0)
        finally:
            queue.close()
            for node in nodes:
                node.stop()


@pytest.mark.usefixtures("needs_nsq")
def test_an_nsqd_whose_http_port_nobody_told_is_a_warning(tmp_path: Path) -> None:
    with Nsqd(tmp_path) as nsqd:
        queue = NsqQueue(f"nsq://{nsqd.tcp_address}")
        if texts(queue.examine(), "ok", "queue"):
            pytest.skip("something else answers on port 4151 of this machine")
        assert "?http=" in one_text(queue.examine(), "warning", nsqd.tcp_address, "queue")
        assert queue.backlogs() is None
        queue.close()


@pytest.mark.usefixtures("needs_nsq")
def test_nsqd_and_nsqlookupd_that_are_down_are_told(tmp_path: Path) -> None:
    with Nsqlookupd(tmp_path / "l1") as first, Nsqlookupd(tmp_path / "l2") as second:
        nsqd = Nsqd(tmp_path / "q", lookupds=[first, second]).start()
        queue = NsqQueue(f"nsqlookup://{first.http_address},{second.http_address}")
        try:
            until(lambda: len(queue.nodes()) == 1)
            assert {one.level for one in queue.examine()} == {"ok"}
            second.kill()
            found = queue.examine()
            one_text(found, "warning", second.http_address, "queue")
            assert not texts(found, "problem", "queue")
            nsqd.freeze()
            one_text(queue.examine(), "warning", f"{nsqd.tcp_address} does not answer", "queue")
            nsqd.thaw()
            nsqd.stop()
            fresh = NsqQueue(f"nsqlookup://{first.http_address}")
            until(lambda: not NsqQueue(f"nsqlookup://{first.http_address}").nodes())
            assert "--lookupd-tcp-address" in one_text(fresh.examine(), "problem", "No nsqd", "queue")
            fresh.close()
        finally:
            queue.close()
            nsqd.stop()


@pytest.mark.usefixtures("needs_nsq")
def test_something_else_at_the_http_port_is_told(tmp_path: Path) -> None:
    with Nsqlookupd(tmp_path / "l") as lookupd, Nsqd(tmp_path / "q") as nsqd:
        port = lookupd.http_address.rpartition(":")[2]
        queue = NsqQueue(f"nsq://{nsqd.tcp_address}?http={port}")
        assert texts(queue.examine(), "warning", "queue")
        assert not texts(queue.examine(), "ok", "queue")
        queue.close()


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_etcd", "needs_nsq")
def test_a_cluster_that_is_well_and_one_that_is_down(tmp_path: Path) -> None:
    with Etcd(tmp_path / "etcd") as etcd, Nsqd(tmp_path / "nsqd") as nsqd:
        urls = {"MR_KV_URL": etcd.url, "MR_QUEUE_URL": f"nsq://{nsqd.tcp_address}?http={port_of(nsqd)}"}
        code, said = doctor(tmp_path, **urls)
        assert code == 0, said
        assert not [check for check in said if check.startswith("problem")]
        for check in ("store", "queue", "clock", "files", "sandbox"):
            assert said[f"ok {check}"]
        urllib.request.urlopen(
            urllib.request.Request(f"http://{nsqd.http_address}/topic/create?topic=mr.gone.map.general", method="POST")
        ).close()
        code, said = doctor(tmp_path, **urls)
        assert code == 0
        assert any("mr.gone.map.general" in text for text in said["warning queue"])
    code, said = doctor(tmp_path, **urls)
    assert code == 1
    [store] = said["problem store"]
    [queue] = said["problem queue"]
    assert etcd.address in store
    assert nsqd.tcp_address in queue
    for check in ("files", "sandbox", "exposure"):
        assert said[f"ok {check}"], "all else is looked at"


@pytest.mark.usefixtures("needs_etcd", "needs_nsq")
def test_a_frozen_cluster_is_told_as_well(tmp_path: Path) -> None:
    with Etcd(tmp_path / "etcd") as etcd, Nsqd(tmp_path / "nsqd") as nsqd:
        etcd.freeze()
        nsqd.freeze()
        code, said = doctor(tmp_path, MR_KV_URL=etcd.url, MR_QUEUE_URL=f"nsq://{nsqd.tcp_address}")
        etcd.thaw()
        nsqd.thaw()
        assert code == 1
        assert said["problem store"]
        assert said["problem queue"]
        assert said["ok sandbox"]
