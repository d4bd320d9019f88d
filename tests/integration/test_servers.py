"""The servers that other tests rely on: they answer, come back where they were, and outlive nobody."""

from __future__ import annotations

import json
import os
import random
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import servers
from servers.certificates import Authority
from servers.etcd import Etcd, EtcdCluster
from servers.nginx import Nginx
from servers.nsq import AuthServer, Nsqd, Nsqlookupd
from servers.process import Port, Server, accepts, answers, wait_until

SCRIPTS = Path(servers.__file__).parent.parent


@pytest.fixture(params=["3.6", "3.4"])
def version(request: pytest.FixtureRequest) -> str:
    servers.need(f"etcd-{request.param}")
    return str(request.param)


def test_etcd_keeps_its_data_and_its_port_when_it_is_killed(tmp_path: Path, version: str) -> None:
    with Etcd(tmp_path, version=version) as etcd:
        etcd.ctl("put", "name", "value")
        address, first = etcd.address, etcd.pid
        etcd.kill()
        assert not etcd.is_running and not accepts(address)
        etcd.start()
        assert (etcd.address, etcd.pid == first) == (address, False)
        assert etcd.ctl("get", "name", "--print-value-only") == "value\n"
        assert f'"version":"{version}.' in etcd.ctl("endpoint", "status", "--write-out=json")


def test_two_etcd_of_three_go_on(tmp_path: Path, version: str) -> None:
    with EtcdCluster(tmp_path, version=version) as cluster:
        cluster.ctl("put", "name", "value")
        cluster.nodes[1].kill()
        assert cluster.ctl("get", "name", "--print-value-only") == "value\n"
        cluster.nodes[1].restart()
        assert cluster.nodes[1].ctl("get", "name", "--print-value-only") == "value\n"


def test_etcd_refuses_a_client_without_a_certificate(tmp_path: Path, version: str) -> None:
    authority = Authority(tmp_path / "tls")
    with Etcd(tmp_path / "etcd", version=version, tls=authority, client_certificates=True) as etcd:
        etcd.ctl("put", "name", "value")
        client = ssl.create_default_context(cafile=str(authority.ca))
        with pytest.raises(OSError, match=r"certificate required|bad certificate"):
            _etcd_version(etcd, client)
        client.load_cert_chain(*authority.client("somebody"))
        assert version in _etcd_version(etcd, client)


def test_etcd_with_tls_lets_clients_go_without_a_certificate(tmp_path: Path, version: str) -> None:
    authority = Authority(tmp_path / "tls")
    with Etcd(tmp_path / "etcd", version=version, tls=authority) as etcd:
        assert etcd.ctl("put", "name", "value") == "OK\n"
        with pytest.raises(OSError, match="certificate verify failed"):
            _etcd_version(etcd, ssl.create_default_context())
        assert version in _etcd_version(etcd, ssl.create_default_context(cafile=str(authority.ca)))


def _etcd_version(etcd: Etcd, context: ssl.SSLContext) -> str:
    with urllib.request.urlopen(f"https://{etcd.address}/version", context=context, timeout=10) as response:
        return str(json.load(response)["etcdserver"])


def test_a_full_etcd_is_started_again(tmp_path: Path, version: str) -> None:
    with Etcd(tmp_path, version=version, quota_bytes=1 << 20) as etcd:
        with pytest.raises(servers.ServerFailed, match="database space exceeded"):
            for number in range(40):
                etcd.ctl("put", f"name{number}", "x" * 100_000)
        assert "NOSPACE" in etcd.ctl("alarm", "list")
        etcd.restart()
        assert "NOSPACE" in etcd.ctl("alarm", "list")


def test_a_frozen_etcd_answers_when_it_thaws(tmp_path: Path) -> None:
    servers.need("etcd-3.6")
    with Etcd(tmp_path) as etcd:
        etcd.freeze()
        with pytest.raises(servers.ServerFailed):
            etcd.ctl("--command-timeout=300ms", "--dial-timeout=300ms", "get", "name")
        etcd.thaw()
        assert etcd.ctl("get", "name") == ""
        etcd.freeze()
        etcd.kill()
        assert not etcd.is_running


@pytest.fixture
def lookupd(tmp_path: Path) -> Iterator[Nsqlookupd]:
    servers.need("nsq")
    with Nsqlookupd(tmp_path / "nsqlookupd") as lookupd:
        yield lookupd


def test_nsqd_is_found_through_nsqlookupd_and_keeps_what_is_on_disk(tmp_path: Path, lookupd: Nsqlookupd) -> None:
    with Nsqd(tmp_path / "nsqd", lookupds=[lookupd], mem_queue_size=0) as nsqd:
        publish = f"http://{nsqd.http_address}/pub?topic=words"
        urllib.request.urlopen(publish, data=b"message", timeout=10).close()
        wait_until(lambda: answers(f"http://{lookupd.http_address}/lookup?topic=words"), "the topic is known")
        address = nsqd.tcp_address
        nsqd.restart()
        [topic] = nsqd.stats()["topics"]
        assert (topic["topic_name"], topic["depth"]) == ("words", 1)
        assert nsqd.tcp_address == address


def test_nsqd_asks_who_may_connect(tmp_path: Path) -> None:
    servers.need("nsq")
    with AuthServer("secret") as auth, Nsqd(tmp_path, auth=auth) as nsqd:
        assert _nsq(nsqd, b"AUTH\n" + _sized(b"wrong")).startswith(b"E_")
        assert b'"permission_count":1' in _nsq(nsqd, b"AUTH\n" + _sized(b"secret"))
        assert [call["secret"] for call in auth.asked] == ["wrong", "secret"]


def test_nsqd_with_tls_refuses_a_client_without(tmp_path: Path) -> None:
    servers.need("nsq")
    with Nsqd(tmp_path / "nsqd", tls=Authority(tmp_path / "tls")) as nsqd:
        assert _nsq(nsqd, b"PUB words\n" + _sized(b"message")).startswith(b"E_INVALID")
        assert nsqd.stats()["topics"] == []


def _sized(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def _nsq(nsqd: Nsqd, command: bytes) -> bytes:
    """What nsqd answers to the command of a client that has only said what version it speaks."""
    host, port = nsqd.tcp_address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection, connection.makefile("rb") as answers:
        connection.sendall(b"  V2" + command)
        size = int.from_bytes(answers.read(4), "big")
        return answers.read(size)[4:]


def test_nginx_serves_a_site_and_leaves_nothing_behind(tmp_path: Path) -> None:
    servers.need("nginx")
    port = Port()
    site = tmp_path / "site.conf"
    site.write_text(f'server {{\n listen {port.address};\n location / {{ return 200 "one"; }}\n}}\n')
    with Nginx(tmp_path / "nginx", site) as nginx:
        assert _read(port) == b"one"
        site.write_text(site.read_text().replace("one", "two"))
        nginx.reload()
        wait_until(lambda: _read(port) == b"two", "the site is read again")
        processes = [psutil.Process(nginx.pid), *psutil.Process(nginx.pid).children()]
        nginx.kill()
        _, alive = psutil.wait_procs(processes[1:], timeout=20)
        assert not alive and len(processes) > 1
        nginx.start()
        assert _read(port) == b"two"


def _read(port: Port) -> bytes:
    with urllib.request.urlopen(f"http://{port.address}/", timeout=10) as response:
        body: bytes = response.read()
    return body


STARTER = """
import sys, threading
from servers.etcd import Etcd
from servers.nginx import Nginx
from servers.nsq import Nsqd
started = [Etcd(sys.argv[1] + "/etcd"), Nsqd(sys.argv[1] + "/nsqd"), Nginx(sys.argv[1] + "/nginx", sys.argv[2])]
for server in started:
    # None may end with the thread that asked for it.
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
assert all(server.is_running and server.is_ready() for server in started)
print(*(server.pid for server in started), flush=True)
sys.stdin.read()
"""


def test_servers_end_with_a_starter_that_is_killed_and_not_with_its_threads(tmp_path: Path) -> None:
    servers.need("etcd-3.6", "nsq", "nginx")
    site = tmp_path / "site.conf"
    site.write_text(f"server {{ listen {Port().address}; }}\n")
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), str(site)],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in starter.stdout.readline().split()]
        processes += processes[-1].children()
        assert len(processes) > 3
        starter.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


class Liar(Server):
    """Starts a program that is no server."""

    def __init__(self, directory: Path, program: str) -> None:
        super().__init__("liar", directory)
        self.program = program

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.program]

    def is_ready(self) -> bool:
        return False


def test_a_server_that_ends_at_once_tells_why(tmp_path: Path) -> None:
    with pytest.raises(servers.ServerFailed, match=r"liar ended with 3\nno luck"):
        Liar(tmp_path, "import sys; print('no luck', flush=True); sys.exit(3)").start()


def test_a_port_is_kept_for_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "sample", lambda numbers, count: numbers[-count:])
    first, second = Port(), Port()
    assert first.number < second.number
    kept = first.number
    del first
    assert Port().number == kept


def services(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `scripts/services` with a state of its own and the programs that are there."""
    return subprocess.run(
        [sys.executable, SCRIPTS / "services", *arguments],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_services_run_until_they_are_stopped(tmp_path: Path) -> None:
    servers.need("etcd-3.6", "nsq")
    from servers import binaries

    (tmp_path / "jobx").mkdir()
    (tmp_path / "jobx" / binaries.cache().name).symlink_to(binaries.cache())
    assert services(tmp_path, "status").returncode == 1
    try:
        started = services(tmp_path, "start", "--nsqds", "2")
        exports = dict(line.removeprefix("export ").split("=") for line in started.stdout.splitlines())
        [etcd] = exports["MR_KV_URL"].strip("'").removeprefix("etcd://").split(",")
        first, second = exports["MR_QUEUE_URL"].strip("'").removeprefix("nsq://").split(",")
        assert all(accepts(address) for address in (etcd, first, second))
        again = services(tmp_path, "start")
        assert (again.returncode, again.stdout) == (0, started.stdout)
        assert "run already" in again.stderr
        assert services(tmp_path, "status").returncode == 0
    finally:
        stopped = services(tmp_path, "stop")
    assert stopped.stderr == "Ended etcd-node0, nsqlookupd, nsqd0, nsqd1\n"
    assert not any(accepts(address) for address in (etcd, first, second))
    assert services(tmp_path, "stop").stderr == "Nothing runs.\n"


def test_services_end_no_process_that_only_has_the_number_of_one(tmp_path: Path) -> None:
    state = tmp_path / "jobx/services/state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps([[["nsqd0", os.getpid(), "1", "127.0.0.1:4150"]], {}]))
    assert services(tmp_path, "status").returncode == 1
    assert services(tmp_path, "stop").stderr == "Nothing runs.\n"


def test_what_cannot_be_had_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from servers import binaries; binaries.nginx()"],
        env={"XDG_CACHE_HOME": str(tmp_path), "PATH": str(tmp_path), "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "servers.Unavailable: nginx cannot be had: there is no apt-get to get it with; not on PATH: nginx. "
        "Install nginx; on Debian and Ubuntu: apt-get install nginx"
    )
