"""``mr_http_notification_listen``: what it shows of what arrives, and what it answers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from click.testing import CliRunner
from command_harness import BIN, DEADLINE_S

from mr.cli import workflows
from mr.cli.listen import MAX_BODY_BYTES, SHOWN_BODY_CHARS, Arrival, Receiver, as_json, as_text, listen
from mr.errors import DeliveryFailed
from mr.kv.sqlite import SqliteStore
from mr.model import secrets
from mr.outgoing import signing
from mr.outgoing.guard import Guard
from mr.outgoing.http import Answer, post

SECRET = secrets.new_secret()
BODY = json.dumps({"type": "request.failed", "data": {"request_id": "r1"}}).encode()
LOOPBACK = Guard(["127.0.0.1", "::1"])

Open = Callable[..., tuple[Receiver, list[Arrival]]]


@pytest.fixture
def receive() -> Iterator[Open]:
    opened: list[tuple[Receiver, threading.Thread]] = []

    def open_one(host: str = "127.0.0.1", **options: Any) -> tuple[Receiver, list[Arrival]]:
        arrivals: list[Arrival] = []
        receiver = Receiver(host, 0, arrivals.append, **options)
        thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
        thread.start()
        opened.append((receiver, thread))
        return receiver, arrivals

    yield open_one
    for receiver, thread in opened:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


def send(url: str, body: Any = BODY, secret: str = SECRET, **headers: str) -> Answer:
    signed = signing.signed(secret, "r1_0_1", int(time.time()), body if isinstance(body, bytes) else BODY)
    return post(url, body, {"content-type": "application/json", **signed, **headers}, LOOPBACK)


def test_what_is_signed_is_taken(receive: Open) -> None:
    receiver, arrivals = receive(secrets=[secrets.new_secret(), SECRET])
    assert send(f"{receiver.url}/a?b=c").body == b"signature is good\n"
    # As a result of unknown length comes.
    assert send(receiver.url, iter([BODY[:5], BODY[5:]])).status == 200
    assert [arrival.body for arrival in arrivals] == [BODY, BODY]
    assert [arrival.is_good for arrival in arrivals] == [True, True]
    assert (arrivals[0].path, arrivals[0].event, arrivals[0].status) == ("/a?b=c", "request.failed", 200)
    assert arrivals[0].headers["webhook-id"] == "r1_0_1"


def test_what_is_signed_otherwise_is_shown_and_refused(receive: Open) -> None:
    receiver, arrivals = receive(secrets=[SECRET], status=204)
    for attempt in (
        lambda: send(receiver.url, secret=secrets.new_secret()),
        lambda: send(receiver.url, **{"webhook-timestamp": "1"}),
        lambda: post(receiver.url, BODY, {}, LOOPBACK),
    ):
        with pytest.raises(DeliveryFailed, match="answered 401"):
            attempt()
    assert [(arrival.is_good, arrival.status) for arrival in arrivals] == [(False, 401)] * 3
    assert [arrival.body for arrival in arrivals] == [BODY] * 3
    assert "BAD SIGNATURE: None of its signatures is right" in as_text(arrivals[0])
    assert "BAD SIGNATURE: It has no header webhook-id" in as_text(arrivals[2])


def test_without_secrets_it_is_said_that_nothing_was_checked(receive: Open) -> None:
    receiver, arrivals = receive(status=503)
    with pytest.raises(DeliveryFailed, match="answered 503"):
        send(receiver.url)
    assert "signature not checked" in as_text(arrivals[0])
    assert json.loads(as_json(arrivals[0]))["is_signature_good"] is None


def test_it_listens_on_ipv6_too(receive: Open) -> None:
    receiver, arrivals = receive("::1")
    assert receiver.url.startswith("http://[::1]:")
    send(receiver.url)
    assert len(arrivals) == 1


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (f"Content-Length: {MAX_BODY_BYTES + 1}", ""),
        ("Content-Length: -1", ""),
        ("Content-Length: some", ""),
        ("Transfer-Encoding: chunked", f"{MAX_BODY_BYTES:x}1\r\n"),
        ("Transfer-Encoding: chunked", "-1\r\n"),
        ("Transfer-Encoding: chunked", "nonsense\r\n"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(receive: Open, head: str, body: str) -> None:
    receiver, arrivals = receive()
    with socket.create_connection(receiver.server_address[:2], DEADLINE_S) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}".encode())
        assert client.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"
    assert arrivals == []


def test_a_client_that_goes_away_is_nothing(receive: Open, capfd: pytest.CaptureFixture[str]) -> None:
    receiver, arrivals = receive()
    for text in (b"", b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab", b"\x16\x03\x01\x00"):
        with socket.create_connection(receiver.server_address[:2], DEADLINE_S) as client:
            client.sendall(text)
    send(receiver.url)
    assert len(arrivals) == 1
    assert capfd.readouterr() == ("", "")


def arrival(body: bytes, **headers: str) -> Arrival:
    return Arrival(0.0, "/", headers, body, None, "", 200)


def test_a_block_is_readable_and_nothing_in_it_is_for_the_terminal() -> None:
    text = as_text(arrival('{"type": "message", "data": "é"}'.encode(), **{"x-a": "\x1b[31mred"}))
    assert '{\n  "type": "message",\n  "data": "é"\n}' in text
    assert "event: message" in text
    assert "x-a:  [31mred" in text
    assert "\x1b" not in text + as_text(arrival(b"\x1b[2J\xff"))
    assert "event: none" in as_text(arrival(b"[1]"))
    assert "event: none" in as_text(arrival(b'{"type": 1}'))
    assert "(1000000 bytes in all)" in as_text(arrival(b"x" * 1_000_000))
    assert len(as_text(arrival(b"x" * 1_000_000))) < SHOWN_BODY_CHARS + 1000
    assert as_text(arrival(b"[" * 100_000)).startswith("---")


# --- as a command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = [str(BIN / "mr_http_notification_listen"), *options]
        environ = {"MR_DATA_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def url_of(process: subprocess.Popen[str]) -> str:
    stdout: IO[str] = process.stdout  # type: ignore[assignment]
    said, _, url = stdout.readline().rstrip("\n").partition(" at ")
    assert said == "Listening"
    return url


def test_it_ends_after_as_many_as_were_asked_for(run: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    environ = {"MR_DATA_DIR": str(tmp_path)}
    assert CliRunner(env=environ).invoke(workflows.create, ["words", ""]).exit_code == 0
    store = SqliteStore(tmp_path / "kv.sqlite")
    [secret] = secrets.of_workflow(store, "words")
    store.close()
    process = run("--workflow", "words", "--json", "--count", "2")
    url = url_of(process)
    assert url.startswith("http://127.0.0.1:")
    send(url, secret=secret)
    with pytest.raises(DeliveryFailed):
        send(url)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["is_signature_good"], first["status"], first["event"]) == (True, 200, "request.failed")
    assert (first["webhook_id"], first["body"]["data"]) == ("r1_0_1", {"request_id": "r1"})
    assert (second["is_signature_good"], second["status"]) == (False, 401)
    assert "None of its signatures is right" in second["reason"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_shows_each_at_once_and_ends_when_told(run: Callable[..., subprocess.Popen[str]], number: int) -> None:
    process = run("--secret", SECRET)
    url = url_of(process)
    send(url)
    assert process.stdout is not None
    assert "POST /  answered 200" in process.stdout.readline()
    assert process.stdout.readline() == "signature is good\n"
    process.send_signal(number)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(listen, ["--port", str(port)])
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"Nothing can listen at 127.0.0.1, port {port}: Address already in use" in done.stderr
    assert CliRunner().invoke(listen, ["--host", "192.0.2.1"]).exit_code == 1


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    runner = CliRunner(env={"MR_DATA_DIR": str(tmp_path)})
    for options, code, why in (
        (["--secret", SECRET, "--workflow", "words"], 2, "either --secret or --workflow"),
        (["--secret", "guess"], 1, "24 to 64 bytes"),
        (["--workflow", "nothere"], 1, "There is no workflow 'nothere'"),
        (["--count", "0"], 2, "--count"),
        (["--status", "101"], 2, "--status"),
        (["--port", "65536"], 2, "--port"),
    ):
        done = runner.invoke(listen, options)
        assert (done.exit_code, done.stdout) == (code, "")
        assert why in done.stderr
