"""JobX behind nginx, with the site as it is shipped: only the places in it are those of the test."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import servers
from servers.certificates import Authority
from servers.nginx import Nginx
from servers.platform import Cluster, nginx_configuration
from servers.process import HOST, Port

from mr.client import Client
from tests.acceptance.served import until

DEADLINE_S = 60.0
WAITING = 1000

FILES = {
    "jobs.yaml": "steps:\n  words: {map: words, reduce: add}\n  slow: {map: slow, reduce: add}\n"
    "jobs:\n  words: {step: words}\n  slow: {step: slow}\n",
    "words.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, text in arguments:\n        for word in text.split():\n            yield word, 1\n"
    ),
    "slow.py": (
        "import time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    time.sleep(dict(arguments)['seconds'])\n    yield 'slept', 1\n"
    ),
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
}


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Door:
    """An nginx, as a client sees it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self, source: str = HOST) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, timeout=DEADLINE_S, source_address=(source, 0))

    def call(self, method: str, path: str, body: Any = None, source: str = HOST, **headers: str) -> Answer:
        with contextlib.closing(self.connect(source)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named, encode_chunked="Transfer-Encoding" in named)
            return read(connection)

    def post(self, job: str, query: str = "", source: str = HOST, **arguments: Any) -> Answer:
        return self.call("POST", f"/job/w/{job}{query}", json.dumps({"arguments": arguments}), source)

    def send(self, text: bytes) -> bytes:
        """What comes back until the server closes."""
        with socket.create_connection((HOST, self.port), DEADLINE_S) as client:
            client.sendall(text)
            return b"".join(iter(lambda: client.recv(65536), b""))


def read(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def problem(answer: Answer, status: int, slug: str) -> Any:
    assert answer.status == status, answer
    assert answer.headers["Content-Type"] == "application/problem+json"
    found = answer.json
    assert (found["type"], found["status"]) == (f"urn:jobx:{slug}", status)
    assert found["title"] and found["detail"]
    return found


def platform_in(directory: Path, **sizes: Any) -> Cluster:
    servers.need("nginx")
    workflow = directory / "w"
    workflow.mkdir(parents=True)
    for name, text in FILES.items():
        (workflow / name).write_text(text)
    made = Cluster(directory / "platform", **{"etcd_nodes": 0, "nsqds": 0, "gunicorns": 1, "workers": 1, **sizes})
    made.jobx("apply", str(workflow))
    return made


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with platform_in(tmp_path_factory.mktemp("door"), runners=4, environ={"MR_LEASE_S": "2"}) as made:
        yield made


@pytest.fixture(scope="module")
def door(platform: Cluster) -> Door:
    return door_of(platform)


def door_of(platform: Cluster) -> Door:
    return Door(int(platform.url.rpartition(":")[2]))


@contextlib.contextmanager
def changed(
    directory: Path, sockets: list[Path], *changes: tuple[str, str | Callable[[re.Match[str]], str]]
) -> Iterator[Door]:
    """Another nginx before these, with parts of the shipped configuration, each there once, changed."""
    port = Port()
    (directory / "site").mkdir(parents=True)
    text = nginx_configuration(port.address, sockets, directory)
    for old, new in changes:
        text, found = re.subn(old, new, text)
        assert found == 1, f"{old!r} is in the configuration {found} times"
    (directory / "site" / "nginx.conf").write_text(text)
    with Nginx(directory, directory / "site" / "nginx.conf"):
        yield Door(port.number)


# --- a request's way --------------------------------------------------------------------------------------------------


def test_a_blocking_post_answers_with_the_reduced_pairs(door: Door) -> None:
    answer = door.post("words", text="to be or not to be")
    assert answer.status == 200
    assert answer.body == b'{"result": {"pairs": [["be", 2], ["not", 1], ["or", 1], ["to", 2]]}}\n'
    assert answer.headers["X-MR-REQUEST-ID"]
    assert answer.headers["X-FULFILLED-BY"]


def test_urls_in_answers_lead_back_through_nginx(door: Door) -> None:
    answer = door.post("words", "?blocking=false", text="a")
    assert answer.status == 202
    prefix = f"http://{HOST}:{door.port}/request/w/"
    assert answer.headers["Location"].startswith(prefix)
    path = answer.headers["Location"].removeprefix(f"http://{HOST}:{door.port}")
    until(lambda: door.call("GET", f"{path}/result").status == 200)
    assert door.call("GET", path).json["links"]["tree"].startswith(prefix)


def test_a_client_of_http_1_0_that_names_no_host_is_served(door: Door) -> None:
    head, _, body = door.send(b"GET /healthz HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"status": "ok"}


def test_connections_to_the_front_end_are_used_again(platform: Cluster, door: Door) -> None:
    def connections() -> set[str]:
        """The inodes of accepted connections at the front end's socket; 01 is that of the listener's flags."""
        path = str(platform.gunicorns[0].path)
        lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        return {line[6] for line in lines if line[-1] == path and line[3] == "00000000"}

    with contextlib.closing(door.connect()) as client:
        seen = set()
        for _ in range(50):
            client.request("GET", "/healthz")
            client.getresponse().read()
            seen |= connections()
    assert 1 <= len(seen) <= 10, seen


def test_the_clients_address_reaches_the_request_and_a_forged_one_does_not(door: Door) -> None:
    def requester(**headers: str) -> str:
        answer = door.call("POST", "/job/w/words?blocking=false", b"{}", "127.0.0.9", **headers)
        found = door.call("GET", f"/request/w/{answer.json['request_id']}").json
        return str(found["context"]["requester_ip"])

    assert requester() == "127.0.0.9"
    assert requester(X_Forwarded_For="203.0.113.7") == "127.0.0.9"
    assert requester(X_Forwarded_For="203.0.113.7, 198.51.100.1", X_Real_IP="203.0.113.7") == "127.0.0.9"
    assert requester(Forwarded="for=203.0.113.7;proto=https", X_Forwarded_Ssl="on") == "127.0.0.9"


def test_scheme_and_host_are_those_of_nginx_whatever_a_client_claims(door: Door) -> None:
    answer = door.call(
        "POST",
        "/job/w/words?blocking=false",
        b"{}",
        X_Forwarded_Proto="https",
        X_Forwarded_Host="evil.example",
        X_Forwarded_Prefix="/evil",
        X_Forwarded_Port="666",
    )
    assert answer.headers["Location"].startswith(f"http://{HOST}:{door.port}/request/w/")


def test_behind_another_proxy_its_word_is_taken_and_strangers_need_a_token(platform: Cluster, tmp_path: Path) -> None:
    changes = [
        (r"# set_real_ip_from 192\.0\.2\.10;", "set_real_ip_from 127.0.0.2;"),
        (r"# real_ip_header", "real_ip_header"),
        (r"# real_ip_recursive", "real_ip_recursive"),
    ]
    with changed(tmp_path, [platform.gunicorns[0].path], *changes) as door:
        stranger = {"X_Forwarded_For": "10.0.0.1, 203.0.113.7"}
        problem(door.call("POST", "/job/w/words", b"{}", "127.0.0.2", **stranger), 401, "unauthorized")
        assert door.call("POST", "/job/w/words", b"{}", "127.0.0.3", **stranger).status == 200
        token = platform.jobx("token", "create", "door", "--scope", "submit").split()[-1]
        try:
            posted = door.call("POST", "/job/w/words", b"{}", "127.0.0.2", Authorization=f"Bearer {token}", **stranger)
            assert posted.status == 200, posted
        finally:
            for line in platform.jobx("token", "list").splitlines():
                platform.jobx("token", "revoke", line.split()[0])


def test_files_are_served_by_nginx_where_there_are_any(door: Door) -> None:
    robots = door.call("GET", "/robots.txt")
    assert (robots.status, robots.headers["Content-Type"]) == (200, "text/plain")
    assert robots.body == b"User-agent: *\nDisallow: /\n"
    icon = door.call("GET", "/favicon.ico")
    assert (icon.status, icon.headers["Content-Type"]) == (200, "image/x-icon")
    assert "X-FULFILLED-BY" not in icon.headers
    nothing = door.call("GET", "/static/nothing.css")
    problem(nothing, 404, "not-found")
    assert nothing.headers["X-FULFILLED-BY"]
    for path in ("/static/../jobx.env", "/static/..%2fjobx.env", "/static../jobx.env"):
        assert b"MR_DATA_DIR" not in door.call("GET", path).body


def test_each_answer_is_a_line_of_json_in_the_log(platform: Cluster, door: Door) -> None:
    request_id = door.post("words", text="logged").headers["X-MR-REQUEST-ID"]
    log = platform.directory / "nginx" / "jobx.access.log"
    until(lambda: request_id in log.read_text())
    [line] = [json.loads(line) for line in log.read_text().splitlines() if request_id in line]
    assert (line["method"], line["uri"], line["status"], line["client"]) == ("POST", "/job/w/words", 200, HOST)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_errors_of_the_front_end_come_through_as_they_are(door: Door) -> None:
    problem(door.call("POST", "/job/w/words", b"{"), 400, "invalid-input")
    assert "words" in problem(door.call("POST", "/job/w/wrods", b"{}"), 404, "job-not-found")["detail"]
    problem(door.call("GET", "/nowhere"), 404, "not-found")


@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}], ids=["with its length", "chunked"])
def test_a_body_over_the_limit_is_refused_by_the_front_end_near_it_and_by_nginx_beyond(
    door: Door, headers: dict[str, str]
) -> None:
    def post(size: int) -> Answer:
        body = (b" " * min(65536, size - start) for start in range(0, size, 65536)) if headers else b" " * size
        return door.call("POST", "/job/w/words?blocking=false", body, **headers)

    near = problem(post(1024**2 + 1), 413, "too-large")
    assert near["limit"] == 1024**2
    beyond = problem(post(2 * 1024**2 + 1), 413, "too-large")
    assert "client_max_body_size" in beyond["detail"]
    problem(post(20_000_000), 413, "too-large")
    assert post(1024**2).status == 202, "as large as it may be; blanks are an empty body"


def test_what_is_no_http_or_too_long_is_told_as_a_problem(door: Door) -> None:
    problem(door.call("GET", f"/{'x' * 5000}"), 414, "invalid-http")
    problem(door.call("GET", f"/{'x' * 9000}"), 414, "uri-too-long")
    problem(door.call("GET", "/healthz", X_Long="x" * 9000), 400, "invalid-http")
    problem(door.call("TRACE", "/healthz"), 405, "method-not-allowed")
    for text in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\nHost: x\r\n\r\n"):
        head, _, body = door.send(text).partition(b"\r\n\r\n")
        assert b"Content-Type: application/problem+json" in head
        status = json.loads(body)["status"]
        assert head.startswith(b"HTTP/1.1 %d " % status)


def test_without_a_front_end_every_answer_is_a_problem_and_it_comes_back(platform: Cluster, door: Door) -> None:
    platform.gunicorns[0].kill()
    try:
        for method, path in (("POST", "/job/w/words"), ("GET", "/request/w/last"), ("GET", "/static/nothing.css")):
            answer = door.call(method, path, b"{}")
            assert problem(answer, 502, "bad-gateway")["incident"]
            assert answer.headers["Retry-After"] == "1"
        assert door.call("HEAD", "/healthz").status == 502
    finally:
        platform.gunicorns[0].start()
    until(lambda: door.call("GET", "/readyz").status == 200)
    assert door.post("words", text="back").json == {"result": {"pairs": [["back", 1]]}}


def test_a_request_may_wait_as_long_as_nginx_is_told_to_read_for(platform: Cluster, tmp_path: Path) -> None:
    """That the shipped time is longer than the front end lets anybody wait is tested with the other files."""
    sockets = [platform.gunicorns[0].path]
    with changed(tmp_path, sockets, (r"proxy_read_timeout 330s;", "proxy_read_timeout 1s;")) as door:
        assert door.post("slow", seconds=0).status == 200
        told = problem(door.post("slow", seconds=4), 504, "gateway-timeout")
        assert "Idempotency-Key" in told["detail"]


@pytest.mark.slow
def test_a_request_that_takes_longer_than_nginx_would_wait_by_itself_is_answered(door: Door) -> None:
    with contextlib.closing(http.client.HTTPConnection(HOST, door.port, timeout=120)) as connection:
        connection.request("POST", "/job/w/slow", json.dumps({"arguments": {"seconds": 62}}))
        assert read(connection).json == {"result": {"pairs": [["slept", 1]]}}


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_is_there_when_it_is_uncommented(platform: Cluster, tmp_path: Path) -> None:
    port, authority = Port(), Authority(tmp_path / "authority")
    pair = authority.server()

    def uncommented(found: re.Match[str]) -> str:
        text = re.sub(r"^    # ", "    ", found[1], flags=re.MULTILINE)
        text = text.replace("listen 443 ssl;", f"listen {port.address} ssl;").replace("listen [::]:443 ssl;", "")
        return text.replace("/etc/ssl/jobx/fullchain.pem", str(pair.cert)).replace(
            "/etc/ssl/jobx/key.pem", str(pair.key)
        )

    site = r"(?s)# --- TLS: uncomment[^\n]*\n(.*?)    # --- end of TLS ---"
    with changed(tmp_path / "nginx", [platform.gunicorns[0].path], (site, uncommented)):
        context = ssl.create_default_context(cafile=str(authority.ca))
        connection = http.client.HTTPSConnection(HOST, port.number, timeout=DEADLINE_S, context=context)
        with contextlib.closing(connection):
            connection.request("POST", "/job/w/words?blocking=false", b"{}")
            answer = read(connection)
    assert answer.headers["Location"].startswith(f"https://{HOST}:{port.number}/request/w/")
    assert answer.headers["Strict-Transport-Security"]


# --- what nginx does to bytes, with front ends that do as they are told -----------------------------------------------


class Upstream:
    """Accepts connections at a Unix socket, one after the other, and does with each request what the test says."""

    def __init__(self, path: Path, act: Callable[[socket.socket, bytes], None]) -> None:
        self.seen: list[bytes] = []
        self._act = act
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client:
                    client.settimeout(DEADLINE_S)
                    text = b""
                    while b"\r\n\r\n" not in text:
                        text += client.recv(65536)
                    self.seen.append(text.partition(b"\r\n")[0])
                    self._act(client, text)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize(
    ("path", "kind", "extra"),
    [
        ("/request/w/1/events", b"text/event-stream", b""),
        ("/request/w/1/events", b"application/x-ndjson", b""),
        ("/anything", b"application/x-ndjson", b"X-Accel-Buffering: no\r\n"),
    ],
)
def test_what_is_streamed_goes_out_as_it_comes(
    tmp_path: Path, short_directory: Path, path: str, kind: bytes, extra: bytes
) -> None:
    heard = threading.Event()

    def stream(client: socket.socket, request: bytes) -> None:
        # Of unknown length: chunks would be passed on one by one anyhow.
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\n" + extra + b"Connection: close\r\n\r\n")
        client.sendall(b"first\n")
        # Only who has got the first part lets the second one come.
        if heard.wait(DEADLINE_S):
            client.sendall(b"second\n")

    servers.need("nginx")
    upstream = Upstream(short_directory / "s", stream)
    with contextlib.ExitStack() as stack:
        stack.callback(upstream.close)
        door = stack.enter_context(changed(tmp_path, [short_directory / "s"]))
        connection = stack.enter_context(contextlib.closing(door.connect()))
        connection.request("GET", path, headers={"Accept-Encoding": "gzip"})
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        heard.set()
        assert response.read() == b"second\n"


def test_a_request_is_watched_through_nginx(door: Door) -> None:
    with Client(f"http://{HOST}:{door.port}") as client:
        request_id = client.submit("w", "slow", {"seconds": 600}).request_id
        states = []
        for progress in client.watch("w", request_id):
            if not states:
                # What nginx held back would come when it is too late.
                assert client.cancel("w", request_id).state == "cancelled"
            states.append(progress.state)
    assert (states[0], states[-1]) == ("running", "cancelled")


def test_the_front_end_hears_nothing_of_what_a_client_claims(tmp_path: Path, short_directory: Path) -> None:
    sent: list[bytes] = []

    def answer(client: socket.socket, request: bytes) -> None:
        sent.extend(request.split(b"\r\n"))
        client.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    claims = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "666",
        "X-Forwarded-Prefix": "/evil",
        "X-Forwarded-Ssl": "on",
        "X-Forwarded-Protocol": "ssl",
        "X-Real-IP": "203.0.113.7",
        "Forwarded": "for=203.0.113.7",
        "X_Forwarded_For": "203.0.113.7",
        "Connection": "close",
        "TE": "trailers",
    }
    servers.need("nginx")
    upstream = Upstream(short_directory / "s", answer)
    with contextlib.ExitStack() as stack:
        stack.callback(upstream.close)
        door = stack.enter_context(changed(tmp_path, [short_directory / "s"]))
        connection = stack.enter_context(contextlib.closing(door.connect("127.0.0.9")))
        connection.request("GET", "/", headers=claims)
        assert connection.getresponse().status == 204
    host = f"{HOST}:{door.port}".encode()
    assert sorted(line for line in sent if line) == [
        b"Accept-Encoding: identity",
        b"GET / HTTP/1.1",
        b"Host: " + host,
        b"X-Forwarded-For: 127.0.0.9",
        b"X-Forwarded-Host: " + host,
        b"X-Forwarded-Proto: http",
        b"X-Real-IP: 127.0.0.9",
    ]


@pytest.mark.parametrize(("method", "tries"), [("POST", 1), ("GET", 2)])
def test_a_post_that_a_front_end_may_have_seen_is_not_sent_to_a_second(
    tmp_path: Path, short_directory: Path, method: str, tries: int
) -> None:
    def break_off(client: socket.socket, request: bytes) -> None:
        client.close()

    servers.need("nginx")
    paths = [short_directory / "a", short_directory / "b"]
    upstreams = [Upstream(path, break_off) for path in paths]
    with contextlib.ExitStack() as stack:
        for upstream in upstreams:
            stack.callback(upstream.close)
        door = stack.enter_context(changed(tmp_path, paths))
        problem(door.call(method, "/job/w/words", b"{}"), 502, "bad-gateway")
    assert sum(len(upstream.seen) for upstream in upstreams) == tries


def test_a_front_end_that_cannot_be_reached_is_passed_over(platform: Cluster, tmp_path: Path) -> None:
    with changed(tmp_path, [tmp_path / "nobody", platform.gunicorns[0].path]) as door:
        answers = [door.post("words", text="over") for _ in range(4)]
    assert {answer.status for answer in answers} == {200}


@pytest.fixture
def short_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unix sockets' paths are short."""
    return tmp_path_factory.mktemp("s")


# --- many who wait ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [100, pytest.param(WAITING, marks=pytest.mark.slow)])
def test_many_wait_at_one_front_end_and_all_are_answered(
    tmp_path: Path, number: int, record_property: Callable[[str, object], None]
) -> None:
    allow_files(2 * number + 1000)
    with platform_in(tmp_path, workers=0) as platform, ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        door = door_of(platform)
        assert door.post("words", "?blocking=false", text="first").status == 202
        [process] = psutil.Process(platform.gunicorns[0].pid).children()
        before = process.memory_info().rss
        body = json.dumps({"arguments": {"text": "a b a"}})
        waiting = [stack.enter_context(contextlib.closing(door.connect())) for _ in range(number)]
        for connection in waiting:
            connection.request("POST", "/job/w/words", body)
        until(lambda: waiting_in(platform) == number + 1, DEADLINE_S)
        held, files = process.memory_info().rss - before, process.num_fds()
        begun = time.monotonic()
        assert door.call("GET", "/healthz").status == 200
        assert door.call("GET", "/readyz").status == 200
        checked = time.monotonic() - begun
        begun = time.monotonic()
        platform.add_worker().start()
        answers = list(pool.map(read, waiting))
        took = time.monotonic() - begun
    assert {(answer.status, answer.body) for answer in answers} == {
        (200, b'{"result": {"pairs": [["a", 2], ["b", 1]]}}\n')
    }
    seen = (
        f"{number} requests held: {held / number / 1024:.1f} KiB each, {files} open files in the front end's process, "
        f"two health checks {1000 * checked:.0f} ms; all answered {took:.1f} s after a worker was started"
    )
    print(seen)
    record_property("waiting", seen)


def waiting_in(platform: Cluster) -> int:
    listed = json.loads(platform.jobx("request", "list", "--json", "--limit", "5000"))
    return sum(one["data"]["state"] == "running" for one in listed)


def allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard), hard))


# --- scripts/cluster --------------------------------------------------------------------------------------------------


def cluster(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    program = Path(servers.__file__).parents[1] / "cluster.py"
    return subprocess.run(
        [sys.executable, str(program), *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_main_job_goes_through_nginx_on_a_whole_cluster_and_nothing_is_left(tmp_path: Path) -> None:
    for part in ("nginx", "nsq", "etcd-3.6"):
        servers.need(part)
    done = cluster(TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "They are the same." in done.stdout
    assert "mr.stdlib_names.map.general" in done.stdout
    assert list(tmp_path.iterdir()) == []
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]


def test_a_cluster_whose_programs_cannot_be_had_is_told_in_words(tmp_path: Path) -> None:
    done = cluster(XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 1
    assert "nginx cannot be had" in done.stderr
    assert "Traceback" not in done.stderr
