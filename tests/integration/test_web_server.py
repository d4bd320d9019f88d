"""The front end as it is run: gunicorn in processes of its own, over SQLite, spoken to through sockets."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from mr.app import open_platform
from mr.config import Config
from mr.handlers.header import read_handler
from mr.model import catalog, keys
from mr.model.catalog import Draft
from mr.model.entities import Job, Step

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0


def eventually(what: Callable[[], bool], within: float = DEADLINE_S) -> float:
    """Waits for it, and says for how many seconds."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() < begun + within, f"it did not come to pass within {within} s"
        time.sleep(0.01)
    return time.monotonic() - begun


def fill(draft: Draft) -> None:
    mapper = "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
    reducer = "def reducer(results):\n    yield from ()\n"
    for name, source in (("split", mapper), ("add", reducer)):
        draft.handlers[name] = read_handler("words", name, source, f"{name}.py")
    draft.steps["count"] = Step(
        step_name="count",
        workflow_name="words",
        description="",
        map_handler_name="split",
        combine_handler_name="",
        reduce_handler_name="add",
        timeout_s=0,
        max_attempts=1,
        partitions=1,
        max_failed_children=0,
    )
    draft.jobs["wordcount"] = job("wordcount")


def job(name: str) -> Job:
    return Job(job_name=name, workflow_name="words", description="", initial_step_name="count")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def read_answer(response: HTTPResponse) -> Answer:
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


class Server:
    """A front end, and what can be asked of it."""

    def __init__(self, directory: Path, *options: str, pass_fds: tuple[int, ...] = (), **settings: str) -> None:
        self.directory = directory
        self.environ = {"MR_DATA_DIR": str(directory / "data"), "MR_BIND": "127.0.0.1:0", **settings}
        self.platform = open_platform(Config.read(self.environ))
        catalog.change(self.platform.store, "words", fill, create=True)
        self._connections: list[HTTPConnection] = []
        self.log = directory / "server.log"
        ready, tell = os.pipe()
        self.process = start(self.environ, self.log, "--ready-fd", str(tell), *options, pass_fds=(tell, *pass_fds))
        os.close(tell)
        with open(ready, encoding="ascii") as file:
            for _ in range(int(settings.get("MR_WEB_PROCESSES", "1"))):
                self.address = file.readline().strip()
        assert self.address, self.said()

    def said(self) -> str:
        return self.log.read_text()

    def connect_to(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host, int(port)

    def connect(self) -> HTTPConnection:
        """A connection that is closed with the server, if not before."""
        self._connections.append(HTTPConnection(*self.connect_to(), timeout=DEADLINE_S))
        return self._connections[-1]

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            return read_answer(connection.getresponse())
        finally:
            connection.close()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(self.connect_to()) == 0

    def blocked(self, number: int, path: str = "/job/words/wordcount") -> list[HTTPConnection]:
        """So many POSTs that wait for their requests."""
        before = self.running()
        connections = [self.connect() for _ in range(number)]
        for connection in connections:
            connection.request("POST", path, b"{}")
        eventually(lambda: self.running() == before + number)
        return connections

    def running(self) -> int:
        return self.platform.store.count(keys.LIVE)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.platform.close()


def start(environ: dict[str, str], log: Path, *options: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    with log.open("wb") as errors, (log.parent / "stdout").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "mr.cli.serve", *options],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=pass_fds,
            start_new_session=True,
            preexec_fn=limit_descriptors,
        )


def limit_descriptors(number: int = 1024) -> None:
    """Sets this process's soft limit of open files; 1,024 is what most systems begin with."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*options: str, **settings: Any) -> Server:
        servers.append(Server(tmp_path, *options, **settings))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


# --- a request's way ----------------------------------------------------------------------------------------------


def test_it_serves_where_it_says_and_is_silent(server: Server) -> None:
    assert server.ask("GET", "/healthz").json() == {"status": "ok"}
    assert server.ask("GET", "/readyz").json() == {"status": "ready"}
    posted = server.ask("POST", "/job/words/wordcount?blocking=false", b"{}")
    assert posted.status == 202
    url = posted.headers["location"].partition(server.address)[2]
    assert server.ask("GET", url).json()["state"] == "running"
    assert server.ask("GET", f"{url}/graph.dot").status == 200
    assert server.stop() == 0
    assert server.said() == ""
    assert (server.directory / "stdout").read_bytes() == b""


def test_cancelling_wakes_a_blocked_post_of_another_process(serve: Callable[..., Server]) -> None:
    server = serve(MR_WEB_PROCESSES="2")
    waiting = server.blocked(8)
    begun = time.monotonic()
    for entry in server.platform.store.list(keys.LIVE):
        assert server.ask("DELETE", f"/request/words/{entry.key.rpartition('/')[2]}").json()["state"] == "cancelled"
    answers = [read_answer(connection.getresponse()) for connection in waiting]
    assert {answer.status for answer in answers} == {409}
    assert time.monotonic() - begun < 5
    assert len({answer.headers["x-fulfilled-by"] for answer in answers}) == 2


def test_a_stored_change_is_live_in_every_process_within_a_second(serve: Callable[..., Server]) -> None:
    server = serve(MR_WEB_PROCESSES="2")

    def manifests() -> dict[str, str]:
        found = {}
        for _ in range(10):
            posted = server.ask("POST", "/job/words/wordcount?blocking=false")
            status = server.ask("GET", f"/request/words/{posted.json()['request_id']}").json()
            found[posted.headers["x-fulfilled-by"]] = status["manifest"]
        return found

    eventually(lambda: len(manifests()) == 2)

    def add(draft: Draft) -> None:
        draft.jobs["other"] = job("other")

    catalog.change(server.platform.store, "words", add)
    begun = time.monotonic()
    new = catalog.read(server.platform.store, "words").version
    eventually(lambda: set(manifests().values()) == {new})
    assert time.monotonic() - begun < 5


def test_twins_under_one_key_are_one_request(serve: Callable[..., Server]) -> None:
    server = serve(MR_WEB_PROCESSES="2")
    twins = [server.connect() for _ in range(20)]
    for twin in twins:
        twin.request("POST", "/job/words/wordcount", b"{}", {"Idempotency-Key": "once"})
    eventually(lambda: server.running() == 1)
    mismatch = server.ask("POST", "/job/words/wordcount", b'{"name": "x"}', {"Idempotency-Key": "once"})
    assert mismatch.status == 422
    request_id = server.ask("DELETE", "/request/words/last").json()["request_id"]
    answers = [read_answer(twin.getresponse()) for twin in twins]
    assert {(answer.status, answer.headers["x-mr-request-id"]) for answer in answers} == {(409, request_id)}
    assert len(server.platform.store.list(keys.REQUESTS)) == 1


def test_the_longest_wait_ends_with_504(serve: Callable[..., Server]) -> None:
    server = serve(MR_MAX_WAIT_S="0.3")
    begun = time.monotonic()
    answer = server.ask("POST", "/job/words/wordcount")
    assert 0.3 <= time.monotonic() - begun < 10
    assert (answer.status, answer.json()["type"]) == (504, "urn:jobx:waited-too-long")
    assert server.ask("POST", "/job/words/wordcount?wait=0.1").status == 202


# --- what clients can do wrong --------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_answered_and_not_cut(serve: Callable[..., Server]) -> None:
    server = serve(MR_MAX_BODY_BYTES="1000")
    for size in (1001, 20_000_000):
        for headers in ({}, {"Transfer-Encoding": "chunked"}):
            connection = server.connect()
            body: Any = b" " * size
            if headers:
                pieces = [body[start : start + 100_000] for start in range(0, size, 100_000)]
                connection.request("POST", "/job/words/wordcount", pieces, headers, encode_chunked=True)
            else:
                connection.request("POST", "/job/words/wordcount", body)
            answer = read_answer(connection.getresponse())
            assert (answer.status, answer.json()["limit"]) == (413, 1000)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status": "ok"}\n'
            connection.close()
        for _ in range(5):
            closed = server.ask("POST", "/job/words/wordcount", body, {"Connection": "close"})
            assert (closed.status, closed.json()["limit"]) == (413, 1000)
    assert server.ask("POST", "/job/words/wordcount?blocking=false", b"{}".ljust(1000)).status == 202


def test_a_body_that_never_ends_is_cut(serve: Callable[..., Server]) -> None:
    server = serve(MR_MAX_BODY_BYTES="1000")
    with socket.create_connection(server.connect_to(), DEADLINE_S) as client:
        client.sendall(b"POST /job/words/wordcount HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(4000):
                client.sendall(piece)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"arguments": {"a": NaN}}',
        b'{"arguments": {"a": "\\ud800"}}',
        b'{"arguments": {"a": 1, "a": 1}}',
        b"\xff",
        b"{",
    ],
)
def test_a_body_that_is_no_strict_json_is_400(server: Server, body: bytes) -> None:
    answer = server.ask("POST", "/job/words/wordcount", body)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert server.ask("GET", "/healthz").status == 200
    assert server.running() == 0


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /healthz HTTP/9.9\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nBad Header: 1\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"POST /job/words/wordcount HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_what_is_no_http_is_told_as_a_problem(server: Server, request_text: bytes, status: int) -> None:
    with socket.create_connection(server.connect_to(), DEADLINE_S) as client:
        client.sendall(request_text)
        head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == status


def test_a_client_that_goes_away_while_it_waits_harms_nobody(server: Server) -> None:
    for connection in server.blocked(5):
        connection.close()
    assert server.ask("DELETE", "/request/words/last").status == 200
    assert server.ask("GET", "/healthz").status == 200
    assert server.stop() == 0


# --- load -----------------------------------------------------------------------------------------------------------


def test_requests_that_wait_cost_nothing(server: Server) -> None:
    waiting = server.blocked(300)
    [worker] = server.workers()
    before = sum(worker.cpu_times()[:2])
    time.sleep(3)  # what is measured
    assert sum(worker.cpu_times()[:2]) - before < 0.3
    assert server.ask("GET", "/healthz").status == 200
    for entry in server.platform.store.list(keys.LIVE):
        server.ask("DELETE", f"/request/words/{entry.key.rpartition('/')[2]}")
    assert {connection.getresponse().status for connection in waiting} == {409}


def test_more_clients_than_a_process_has_descriptors_by_default_can_wait(server: Server) -> None:
    # This process needs as many.
    limit_descriptors(4096)
    waiting = server.blocked(1200)
    assert server.ask("GET", "/healthz").status == 200
    assert server.stop() == 0
    assert {connection.getresponse().status for connection in waiting} == {202}


def test_an_eager_client_does_not_keep_others_out(server: Server) -> None:
    eager = 4000
    answered = 0
    with socket.create_connection(server.connect_to(), DEADLINE_S) as client:

        def send() -> None:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * eager)

        def receive() -> None:
            nonlocal answered
            tail = b""
            while answered < eager:
                data = tail + client.recv(65536)
                answered += data.count(b"HTTP/1.1 200")
                tail = data[-11:]

        threads = [threading.Thread(target=work, daemon=True) for work in (receive, send)]
        for thread in threads:
            thread.start()
        eventually(lambda: answered > 0)
        for _ in range(3):
            assert server.ask("POST", "/job/words/wordcount?blocking=false").status == 202
        assert answered < eager
        for thread in threads:
            thread.join(DEADLINE_S)
    assert answered == eager


# --- beginning and ending ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_waits_is_answered_when_it_stops(serve: Callable[..., Server], number: signal.Signals) -> None:
    server = serve(MR_WEB_PROCESSES="2")
    idle = [server.connect() for _ in range(4)]
    for connection in idle:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    waiting = server.blocked(50)
    begun = time.monotonic()
    # As a terminal's Ctrl-C does it: to everybody.
    os.killpg(server.process.pid, number)
    answers = [read_answer(connection.getresponse()) for connection in waiting]
    assert server.process.wait(DEADLINE_S) == 0
    assert time.monotonic() - begun < 20
    assert {answer.status for answer in answers} == {202}
    assert len({answer.headers["location"] for answer in answers}) == 50
    assert not server.is_listening()


def test_killing_the_server_ends_its_processes_and_frees_the_port(serve: Callable[..., Server]) -> None:
    server = serve(MR_WEB_PROCESSES="2")
    workers = server.workers()
    assert len(workers) == 2
    server.blocked(3)
    # One that cannot look whether its parent lives.
    workers[0].suspend()
    server.process.kill()
    server.process.wait()
    try:
        eventually(lambda: not any(is_alive(worker) for worker in workers), within=1)
    finally:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(server.connect_to())
        again.listen()


def test_killing_the_parent_ends_the_server_where_that_is_asked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(
        textwrap.dedent(
            """
            import os, subprocess, sys, time
            ready, tell = os.pipe()
            child = subprocess.Popen(
                [sys.executable, "-m", "mr.cli.serve", "--ready-fd", str(tell), "--die-with-parent", str(os.getpid())],
                pass_fds=(tell,),
            )
            print(child.pid, os.read(ready, 100).decode(), flush=True)
            time.sleep(60)
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        env={**os.environ, **server.environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        process = psutil.Process(int(parent.stdout.readline().split()[0]))
    family = [process, *process.children()]
    parent.kill()
    parent.wait()
    eventually(lambda: not any(is_alive(one) for one in family), within=1)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_worker_that_is_killed_is_replaced(server: Server) -> None:
    [worker] = server.workers()
    worker.kill()
    eventually(lambda: [one.pid for one in server.workers() if is_alive(one)] not in ([], [worker.pid]))
    assert server.ask("GET", "/readyz").status == 200


def test_it_serves_a_socket_that_it_is_given(serve: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        given = str(listener.fileno())
        server = serve("--listen-fd", given, pass_fds=(listener.fileno(),), MR_BIND="127.0.0.1:1")
    assert server.address == f"127.0.0.1:{port}"
    assert server.ask("GET", "/healthz").status == 200


def test_it_serves_a_unix_socket_and_takes_it_away(serve: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(MR_BIND=f"unix:{path}")
    assert server.address == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n")
        assert b"".join(iter(lambda: client.recv(65536), b"")).endswith(b'{"status": "ok"}\n')
    assert server.stop() == 0
    assert not path.exists()


def refusal(tmp_path: Path, **settings: str) -> str:
    environ = {"MR_DATA_DIR": str(tmp_path / "data"), "MR_BIND": "127.0.0.1:0", **settings}
    process = start(environ, tmp_path / "refusal.log")
    try:
        assert process.wait(DEADLINE_S) not in (0, -signal.SIGKILL)
    finally:
        process.kill()
    return (tmp_path / "refusal.log").read_text()


def test_it_does_not_open_itself_to_everyone(tmp_path: Path) -> None:
    assert "MR_API_TOKENS" in refusal(tmp_path, MR_BIND="0.0.0.0:0")


def test_an_address_in_use_is_told_at_once(server: Server, tmp_path: Path) -> None:
    said = refusal(tmp_path, MR_BIND=server.address)
    assert f"MR_BIND is '{server.address}'" in said
    assert "Traceback" not in said


def test_a_store_that_cannot_be_opened_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kv.sqlite").write_bytes(b"no database, but some text" * 100)
    said = refusal(tmp_path)
    assert "kv.sqlite" in said
    assert "Traceback" not in said
    assert all("ERROR" in line for line in said.splitlines())


def test_a_store_that_breaks_makes_it_unready_but_not_dead(server: Server) -> None:
    data = server.directory / "data"
    for name in ("kv.sqlite", "kv.sqlite-wal", "kv.sqlite-shm"):
        path = data / name
        path.write_bytes(b"\x55" * max(4096, path.stat().st_size))
    eventually(lambda: server.ask("GET", "/readyz").status == 503)
    assert server.ask("GET", "/readyz").json()["unreachable"] == ["store"]
    assert server.ask("GET", "/healthz").status == 200
    assert server.ask("POST", "/job/words/wordcount").status == 503


def test_tokens_are_asked_for(serve: Callable[..., Server]) -> None:
    server = serve(MR_API_TOKENS="secret")
    assert server.ask("POST", "/job/words/wordcount").status == 401
    token = {"Authorization": "Bearer secret"}
    assert server.ask("POST", "/job/words/wordcount?blocking=false", headers=token).status == 202


def test_gunicorn_itself_serves_it_with_the_configuration_of_the_project(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "gunicorn.sock"
    with (tmp_path / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                str(REPOSITORY / "resources" / "gunicorn_prod.py"),
                "mr.cli.serve:application()",
            ],
            env={**os.environ, **server.environ, "MR_BIND": f"unix:{path}"},
            stderr=log,
        )
    try:
        eventually(path.exists)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_S)
            client.connect(str(path))
            client.sendall(b"POST /job/words/wordcount HTTP/1.0\r\nHost: x\r\n\r\n")
            eventually(lambda: server.running() == 1)
            process.terminate()
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.partition(b"\r\n")[0].endswith(b" 202 ACCEPTED")
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
