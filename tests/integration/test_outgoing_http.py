"""POSTs to the outside, against servers on loopback that behave and that do not."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from outgoing_harness import LONG_S, PATIENCE_S, Server, Talk
from servers.certificates import Authority

from mr.errors import DeliveryFailed, ForbiddenURL
from mr.outgoing.guard import Guard
from mr.outgoing.http import MAX_ANSWER_BYTES, Answer, post

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
LOOPBACK = Guard(["127.0.0.0/8"])


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    opened: list[Server] = []

    def open_one(talk: Talk, *arguments: Any) -> Server:
        opened.append(Server(talk, *arguments))
        return opened[-1]

    yield open_one
    for server in opened:
        server.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def read_request(connection: socket.socket) -> bytes:
    """Head and body, by length or in chunks as they came."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.splitlines() if line.startswith(b"content-length:")), None)
    while (len(body) < length) if length is not None else not body.endswith(b"0\r\n\r\n"):
        body += _some(connection)
    return head + b"\r\n\r\n" + body


def _some(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ConnectionError("the client is gone")
    return piece


def answering(answer: bytes, seen: list[bytes] | None = None) -> Talk:
    def talk(connection: socket.socket) -> None:
        request = read_request(connection)
        if seen is not None:
            seen.append(request)
        connection.sendall(answer)

    return talk


def endless(head: bytes, piece: bytes) -> Talk:
    """Goes on until the client has gone, which it tells by an error."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            connection.sendall(piece)
            time.sleep(0.01)

    return talk


def silent(connection: socket.socket) -> None:
    while True:
        _some(connection)


def failure(url: str, *, body: Any = b"{}", seconds: float = LONG_S, guard: Guard = LOOPBACK, ca: str = "") -> str:
    with pytest.raises(DeliveryFailed) as failed:
        post(url, body, {}, guard, seconds=seconds, ca=ca)
    assert not failed.value.is_final
    return str(failed.value)


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_a_body_is_posted_as_it_is(serve: Callable[..., Server]) -> None:
    seen: list[bytes] = []
    server = serve(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: 1\r\nX-A: 2\r\n\r\nyes", seen))
    answer = post(f"{server.url}?a=b", b"\x00\xff", {"Content-Type": "text/x", "X-Empty": ""}, LOOPBACK)
    assert answer == Answer(200, b"yes", {"content-length": "3", "x-a": "1, 2"})
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert body == b"\x00\xff"
    first, *lines = head.decode().split("\r\n")
    assert first == "POST /hook?a=b HTTP/1.1"
    fields = dict(line.split(":", 1) for line in lines)
    assert fields["host"].strip() == f"127.0.0.1:{server.port}"
    assert fields["content-type"].strip() == "text/x"
    assert fields["content-length"].strip() == "2"
    assert fields["user-agent"].strip().startswith("jobx/")
    assert not any("encoding" in name for name in fields)


def test_pieces_are_sent_in_chunks_and_taken_once(serve: Callable[..., Server]) -> None:
    seen: list[bytes] = []
    server = serve(answering(OK, seen))
    pieces = iter([b"a" * 40_000, b"", b"b" * 40_000, b"c"])
    post(server.url, pieces, {}, LOOPBACK)
    assert next(pieces, None) is None
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert body == b"13880\r\n" + b"a" * 40_000 + b"b" * 40_000 + b"\r\n1\r\nc\r\n0\r\n\r\n"


def test_what_the_source_of_a_body_raises_is_not_taken_for_the_receivers(serve: Callable[..., Server]) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a" * 100_000
        raise OSError("the disk is gone")

    server = serve(answering(OK))
    with pytest.raises(OSError, match="the disk is gone"):
        post(server.url, broken(), {}, LOOPBACK)
    # What came has no end, and is nothing whole.
    assert server.was_cut.wait(LONG_S)


@pytest.mark.parametrize("value", ["a\r\nX-B: b", "a\nb", "a\rb", "a\x00b", "é", " a", "a\n"])
def test_values_of_headers_cannot_be_more(serve: Callable[..., Server], value: str) -> None:
    is_refused_before_it_is_sent(serve(answering(OK)), {"X-A": value})


@pytest.mark.parametrize(
    "name", ["X-A\r\nX-B", "X A", "X-A:", "", "é", "Host", "content-length", "Transfer-Encoding", "Connection"]
)
def test_names_of_headers_cannot_be_others(serve: Callable[..., Server], name: str) -> None:
    is_refused_before_it_is_sent(serve(answering(OK)), {name: "b"})


def is_refused_before_it_is_sent(server: Server, headers: dict[str, str]) -> None:
    with pytest.raises(DeliveryFailed) as failed:
        post(server.url, b"", headers, LOOPBACK)
    assert failed.value.is_final
    assert server.connections == 0


def test_proxies_of_the_environment_are_not_used(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(answering(OK))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    post(serve(answering(OK)).url, b"", {}, LOOPBACK)
    assert proxy.connections == 0


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_a_name_that_leads_to_loopback_the_second_time_leads_nowhere(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own look-up is replaced: whoever asks again, wherever in the code, is led to the victim."""
    allowed = serve(answering(OK), "127.0.0.2")
    victim = serve(answering(OK), "127.0.0.1", allowed.port)
    real = socket.getaddrinfo
    asked: list[str] = []

    def rebinding(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "hooks.example.com":
            asked.append(host)
            host = "127.0.0.2" if len(asked) == 1 else "127.0.0.1"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    guard = Guard([f"127.0.0.2:{allowed.port}"])
    url = f"http://hooks.example.com:{allowed.port}/"
    assert post(url, b"", {}, guard).status == 200
    assert (len(asked), allowed.connections, victim.connections) == (1, 1, 0)
    with pytest.raises(ForbiddenURL, match=r"leads to 127\.0\.0\.1, a loopback address"):
        post(url, b"", {}, guard)
    assert (len(asked), allowed.connections, victim.connections) == (2, 1, 0)


def test_a_forbidden_url_is_not_connected_to(serve: Callable[..., Server]) -> None:
    server = serve(answering(OK))
    for url in (server.url, f"https://127.0.0.1:{server.port}/", f"https://localhost:{server.port}/"):
        with pytest.raises(ForbiddenURL):
            post(url, b"", {}, Guard())
    assert server.connections == 0


def test_addresses_are_tried_in_turn(serve: Callable[..., Server]) -> None:
    server = serve(answering(OK))
    guard = Guard(["127.0.0.0/8"], look_up=lambda *_: ["127.0.0.3", "127.0.0.4", "127.0.0.1"])
    assert post(f"http://hooks.internal:{server.port}/", b"", {}, guard).status == 200


def test_one_that_takes_no_connections_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    assert "nothing takes connections there" in failure(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(serve: Callable[..., Server], status: int) -> None:
    other = serve(answering(OK))
    head = f"HTTP/1.1 {status} Elsewhere\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n"
    told = failure(serve(answering(head.encode())).url)
    assert f"answered {status} Elsewhere: a redirect to {other.url}, which is not followed" in told
    assert other.connections == 0


# --- what is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_success(serve: Callable[..., Server], status: int) -> None:
    server = serve(answering(f"HTTP/1.1 {status} Fine\r\nContent-Length: 0\r\n\r\n".encode()))
    assert post(server.url, b"", {}, LOOPBACK).status == status


@pytest.mark.parametrize("status", [101, 300, 304, 400, 401, 403, 404, 408, 410, 422, 425, 429, 500, 502, 503, 599])
def test_everything_else_is_failure_and_only_410_for_good(serve: Callable[..., Server], status: int) -> None:
    body = b"no \x1b[31msuch\r\n thing" + b"!" * 5000
    head = f"HTTP/1.1 {status} No\r\nRetry-After: 7\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server = serve(answering(head + body))
    with pytest.raises(DeliveryFailed) as failed:
        post(server.url, b"", {}, LOOPBACK)
    told = str(failed.value)
    assert f"127.0.0.1:{server.port} answered {status} No" in told
    assert len(told) < 400 and told.isprintable()
    assert failed.value.is_final is (status == 410)
    if status >= 400:
        assert "no [31msuch thing!!!" in told
        assert failed.value.retry_after_s == 7


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("0", 0, 0),
        ("120", 120, 120),
        ("99999999999999999999", 86400, 86400),
        ("in ten minutes", 300, 600),
        (formatdate(0, usegmt=True), 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86400, 86400),
    ],
)
def test_how_long_to_wait_is_handed_on(serve: Callable[..., Server], text: str, least: float, most: float) -> None:
    if text == "in ten minutes":
        text = formatdate(time.time() + 600, usegmt=True)
    server = serve(answering(f"HTTP/1.1 503 Busy\r\nRetry-After: {text}\r\nContent-Length: 0\r\n\r\n".encode()))
    with pytest.raises(DeliveryFailed) as failed:
        post(server.url, b"", {}, LOOPBACK)
    assert failed.value.retry_after_s is not None
    assert least <= failed.value.retry_after_s <= most


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "٣"])
def test_a_wait_that_cannot_be_read_is_none(serve: Callable[..., Server], text: str) -> None:
    server = serve(answering(f"HTTP/1.1 503 Busy\r\nRetry-After: {text}\r\nContent-Length: 0\r\n\r\n".encode()))
    with pytest.raises(DeliveryFailed) as failed:
        post(server.url, b"", {}, LOOPBACK)
    assert failed.value.retry_after_s is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        b"220 mail.test ESMTP\r\n",
        b"\x00" * 100,
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 70_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "a piece", "mail", "zeros", "another version", "many headers", "a long header"],
)
def test_what_is_no_answer_is_failure(serve: Callable[..., Server], answer: bytes) -> None:
    assert "did not answer" in failure(serve(answering(answer)).url)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", b"short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nnonsense", b"short"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
    ],
)
def test_the_status_decides_where_the_body_is_cut(serve: Callable[..., Server], answer: bytes, body: bytes) -> None:
    assert post(serve(answering(answer)).url, b"", {}, LOOPBACK)[:2] == (200, body)


@pytest.mark.parametrize("head", [b"", b"Content-Length: 100000000\r\n"])
def test_of_a_huge_answer_the_beginning_is_read(serve: Callable[..., Server], head: bytes) -> None:
    server = serve(endless(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", b"x" * 100_000))
    assert post(server.url, b"", {}, LOOPBACK, seconds=LONG_S).body == b"x" * MAX_ANSWER_BYTES
    assert server.was_cut.wait(LONG_S)


# --- in time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-A:", b"b"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["the status", "headers", "a header", "go on"],
)
def test_a_server_that_drips_an_answer_is_left(serve: Callable[..., Server], head: bytes, piece: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        for _ in range(int(LONG_S * 20)):
            connection.sendall(piece)
            time.sleep(0.05)

    server = serve(talk)
    assert "it took longer than" in server.holding(lambda seconds: failure(server.url, seconds=seconds))
    assert server.was_cut.wait(LONG_S)


def test_a_server_that_drips_a_body_is_left_with_what_came(serve: Callable[..., Server]) -> None:
    server = serve(endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x"))
    for seconds in PATIENCE_S:
        # A machine that is busy may be late even for the status.
        with suppress(DeliveryFailed):
            body = post(server.url, b"", {}, LOOPBACK, seconds=seconds).body
            break
    assert len(body) < 10_000 and set(body) <= {ord("x")}
    assert server.was_cut.wait(LONG_S)


def test_a_server_that_says_nothing_is_left(serve: Callable[..., Server]) -> None:
    server = serve(silent)
    assert "it took longer than" in server.holding(lambda seconds: failure(server.url, seconds=seconds))
    assert server.was_cut.wait(LONG_S)


@pytest.mark.parametrize("size", [0, 200_000])
def test_a_server_that_does_not_read_or_only_in_sips_is_left(serve: Callable[..., Server], size: int) -> None:
    gone = threading.Event()

    def talk(connection: socket.socket) -> None:
        while not gone.wait(0.01):
            if size:
                connection.recv(size)

    def body() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_000_000
        raise AssertionError("it goes on")

    server = serve(talk)
    try:
        told = server.holding(lambda seconds: failure(server.url, body=body(), seconds=seconds))
        assert "it took longer than" in told
    finally:
        gone.set()


def test_an_agreement_on_tls_that_does_not_come_is_left(serve: Callable[..., Server]) -> None:
    server = serve(silent)
    url = server.url.replace("http:", "https:")
    assert "cannot be reached: it took longer than" in server.holding(lambda seconds: failure(url, seconds=seconds))
    assert server.was_cut.wait(LONG_S)


def test_a_look_up_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(LONG_S) and [])
    assert "the look-up of hooks.example.com took longer" in failure(
        "https://hooks.example.com/", seconds=PATIENCE_S[0]
    )
    answered.set()


def test_an_answer_before_all_was_sent_is_no_success(serve: Callable[..., Server]) -> None:
    server = serve(lambda connection: connection.sendall(OK))
    failure(server.url, body=(b"x" * 1_000_000 for _ in range(100)))


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def encrypted(serve: Callable[..., Server], authority: Authority) -> tuple[Server, list[str | None]]:
    """A server that is localhost, and the names that it was asked for."""
    pair = authority.server()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    names: list[str | None] = []
    context.sni_callback = lambda connection, name, context: names.append(name)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            answering(OK)(secured)

    return serve(talk), names


def leading(*names: str) -> Guard:
    return Guard(names, look_up=lambda *_: ["127.0.0.1"])


def test_tls_is_with_the_name_though_the_address_is_connected_to(
    encrypted: tuple[Server, list[str | None]], authority: Authority
) -> None:
    server, names = encrypted
    url = f"https://localhost:{server.port}/"
    assert post(url, b"{}", {}, leading("localhost"), ca=str(authority.ca)).status == 200
    assert names == ["localhost"]
    assert post(f"https://127.0.0.1:{server.port}/", b"{}", {}, LOOPBACK, ca=str(authority.ca)).status == 200


def test_a_certificate_for_another_name_or_of_nobody_known_is_refused(
    encrypted: tuple[Server, list[str | None]], authority: Authority, tmp_path: Path
) -> None:
    server, _ = encrypted
    stranger = Authority(tmp_path)
    for host, ca, why in (
        ("hooks.example.com", str(authority.ca), "not valid for 'hooks.example.com'"),
        ("localhost", str(stranger.ca), "certificate"),
        ("localhost", "", "unable to get local issuer"),
    ):
        told = failure(f"https://{host}:{server.port}/", guard=leading(host), ca=ca)
        assert "cannot be reached: its certificate is not accepted" in told
        assert why in told


def test_plain_and_encrypted_do_not_mix(
    serve: Callable[..., Server], encrypted: tuple[Server, list[str | None]]
) -> None:
    plain = serve(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert "no agreeing on TLS" in failure(f"https://127.0.0.1:{plain.port}/")
    assert "did not answer" in failure(f"http://127.0.0.1:{encrypted[0].port}/")


# --- under gevent -----------------------------------------------------------------------------------------------------


def test_under_gevent_they_run_side_by_side(serve: Callable[..., Server]) -> None:
    """The server answers once five ask at once: one after the other, they would all be late."""
    together = threading.Barrier(5)

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        together.wait(LONG_S)
        connection.sendall(OK)

    server = serve(talk)
    program = f"""
        from gevent import monkey; monkey.patch_all()
        import gevent
        from mr.outgoing.guard import Guard
        from mr.outgoing.http import post
        url = "http://localhost:{server.port}/"
        tasks = [gevent.spawn(post, url, iter([b"a"]), {{}}, Guard(["localhost"]), seconds={LONG_S}) for _ in range(5)]
        gevent.joinall(tasks, raise_error=True)
        print([task.value.status for task in tasks])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "[200, 200, 200, 200, 200]", done.stderr
