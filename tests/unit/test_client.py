"""The client, before a server that says what it is told to, and goes away when it is told to."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, ThreadingTCPServer, ThreadingUnixStreamServer
from typing import Any, NamedTuple

import pytest

from mr.client import (
    BrokenOff,
    Busy,
    Client,
    ClientError,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotAllowed,
    NotThere,
    Refused,
    RequestGone,
    StillRunning,
    Unreachable,
)
from mr.client.events import Event, Reader
from mr.errors import InvalidInput, JobxError

ACCEPTED = {"request_id": "r", "url": "http://x/request/w/r", "result": None}


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Say = Callable[[BaseHTTPRequestHandler], None]
"""What the server does when it is asked: once each, in order, the last one for ever."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    said: list[Say]
    asked: list[Asked]

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append(Asked(self.command, self.path, headers, self.rfile.read(length)))
        (self.said.pop(0) if len(self.said) > 1 else self.said[0])(self)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "here"


def answer(status: int, body: Any, kind: str = "application/json", **headers: str) -> Say:
    def say(handler: BaseHTTPRequestHandler) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(text))}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text)

    return say


def problem(status: int, slug: str, **facts: Any) -> Say:
    retry_after = facts.pop("retry_after", None)
    document = {"type": f"urn:jobx:{slug}", "title": slug, "status": status, "detail": f"It is {slug}.", **facts}
    headers = {} if retry_after is None else {"Retry_After": str(retry_after)}
    return answer(status, document, "application/problem+json", **headers)


def chunks(kind: str, *pieces: bytes, is_whole: bool = True, wait: threading.Event | None = None) -> Say:
    """An answer without a length; one that is not whole lacks its last chunk."""

    def say(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for piece in pieces:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if wait is not None:
            wait.wait(20)
        if is_whole:
            handler.wfile.write(b"0\r\n\r\n")
        else:
            handler.close_connection = True

    return say


def away(handler: BaseHTTPRequestHandler) -> None:
    """It breaks off before it has said anything."""
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


class Server(NamedTuple):
    url: str
    asked: list[Asked]

    def client(self, **options: Any) -> Client:
        return Client(self.url, **{"timeout": 10, **options})


@contextmanager
def serving(*said: Say, path: Path | None = None) -> Iterator[Server]:
    asked: list[Asked] = []
    handler = type(
        "Handler", (_Handler,), {"said": list(said), "asked": asked, "disable_nagle_algorithm": path is None}
    )
    server: BaseServer
    if path is None:
        tcp = ThreadingTCPServer(("127.0.0.1", 0), handler)
        server, url = tcp, f"http://127.0.0.1:{tcp.server_address[1]}"
    else:
        server, url = ThreadingUnixStreamServer(str(path), handler), f"unix:{path}"
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
    thread.start()
    try:
        yield Server(url, asked)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No pause is waited for; what they would have been."""
    paused: list[float] = []
    monkeypatch.setattr("time.sleep", paused.append)
    return paused


# --- posting --------------------------------------------------------------------------------------------------------


def test_a_request_is_begun_with_a_key_and_a_token() -> None:
    with serving(answer(202, ACCEPTED)) as server, server.client(token="secret") as client:
        submitted = client.submit("w", "a job", {"n": 1}, name="mine", notify=["mailto:a@example.com"])
        client.submit("w", "j", idempotency_key="k", retention_s=60, writer="inline")
    assert (submitted.workflow_name, submitted.request_id, submitted.url) == ("w", "r", ACCEPTED["url"])
    first, second = server.asked
    assert (first.method, first.path) == ("POST", "/job/w/a%20job?blocking=false")
    assert json.loads(first.body) == {"arguments": {"n": 1}, "name": "mine", "notify": ["mailto:a@example.com"]}
    assert first.headers["authorization"] == "Bearer secret"
    assert len(first.headers["idempotency-key"]) == 32
    assert second.headers["idempotency-key"] == "k"
    assert json.loads(second.body) == {"arguments": {}, "retention_s": 60, "writer": "inline"}


def test_a_post_is_repeated_with_its_key_until_it_is_taken(quick: list[float]) -> None:
    said = [away, problem(503, "store-unavailable", retry_after=3), problem(429, "workflow-full", retry_after=3600)]
    with serving(*said, answer(502, b"", "text/html"), answer(202, ACCEPTED)) as server, server.client() as client:
        assert client.submit("w", "j").request_id == "r"
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
    assert [asked.path for asked in server.asked] == ["/job/w/j?blocking=false"] * 5
    # As long as the server says, within reason.
    assert quick[:2] == [3, 30]


def test_two_posts_have_two_keys() -> None:
    with serving(answer(202, ACCEPTED)) as server, server.client() as client:
        client.submit("w", "j")
        client.submit("w", "j")
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 2


def test_what_is_refused_for_good_is_asked_once() -> None:
    with (
        serving(problem(400, "invalid-input", parameter="text")) as server,
        server.client() as client,
        pytest.raises(InvalidRequest, match=r"It is invalid-input\.") as error,
    ):
        client.submit("w", "j")
    assert (error.value.status, error.value.slug, error.value.parameter) == (400, "invalid-input", "text")
    assert len(server.asked) == 1


def test_one_that_stays_busy_is_asked_so_often(quick: list[float]) -> None:
    said = problem(429, "workflow-full", retry_after=7, limit=1)
    with serving(said) as server, server.client(retries=2) as client, pytest.raises(Busy) as error:
        client.submit("w", "j")
    assert (error.value.slug, error.value.facts) == ("workflow-full", {"limit": 1})
    assert (len(server.asked), quick) == (3, [7, 7])


def test_where_no_server_is_is_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, retries=1) as client, pytest.raises(Unreachable, match="There is no answer from"):
        client.submit("w", "j")


def test_arguments_that_are_not_json_are_not_sent() -> None:
    with serving(answer(202, ACCEPTED)) as server, server.client() as client:
        for value in (float("nan"), {1, 2}, "\ud800"):
            with pytest.raises(InvalidInput):
                client.submit("w", "j", {"n": value})
    assert not server.asked


def test_running_takes_one_round_trip_where_the_result_is_soon_there() -> None:
    lines = b'["a",1]\n[["b",null],{"c":[2.0]}]\n'
    with serving(answer(200, lines, "application/x-ndjson")) as server, server.client() as client:
        assert client.run("w", "j", {"n": 1}) == [("a", 1), (("b", None), {"c": [2.0]})]
        assert client.run("w", "j", wait_s=1.5)
    assert [asked.path for asked in server.asked] == ["/job/w/j?wait=20", "/job/w/j?wait=1.5"]
    assert server.asked[0].headers["accept"].startswith("application/x-ndjson")


PROGRESS = {
    "request_id": "r",
    "workflow_name": "w",
    "job_name": "j",
    "state": "running",
    "elapsed_s": 1.0,
    "counts": {"sealed": 3, "ready": 1, "running": 1, "ended": 0, "failed": 0},
    "is_whole": True,
    "steps": [],
    "rate": None,
    "waiting_for": [],
    "detail": None,
    "error": None,
    "what a newer server adds": 1,
}
STATUS = {
    "request_id": "r",
    "workflow_name": "w",
    "job_name": "j",
    "state": "done",
    "is_done": True,
    "created_timestamp": 1.0,
    "ended_timestamp": 2.0,
    "manifest": "m",
}


def event(name: str, event_id: str, **changes: Any) -> bytes:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps({**PROGRESS, **changes})}\n\n".encode()


def stream(*pieces: bytes, **options: Any) -> Say:
    return chunks("text/event-stream", b"retry: 2000\n\n", *pieces, **options)


def test_running_waits_for_what_takes_longer() -> None:
    said = [
        answer(202, ACCEPTED),
        stream(event("progress", "1"), event("end", "2", state="done")),
        answer(200, STATUS),
        chunks("application/x-ndjson", b'["a",', b"1]\n"),
    ]
    with serving(*said) as server, server.client() as client:
        assert client.run("w", "j") == [("a", 1)]
    assert [asked.path.rpartition("/")[2] for asked in server.asked[1:]] == ["events", "r", "result"]


def test_a_result_that_another_writer_delivers_is_fetched() -> None:
    said = [answer(200, {"result": {}}, X_MR_REQUEST_ID="r"), answer(200, b'["a",1]\n', "application/x-ndjson")]
    with serving(*said) as server, server.client() as client:
        assert client.run("w", "j") == [("a", 1)]
    assert server.asked[1].path == "/request/w/r/result"


# --- following ------------------------------------------------------------------------------------------------------


def test_a_stream_that_breaks_off_is_gone_on_with(quick: list[float]) -> None:
    said = [
        stream(event("progress", "1"), is_whole=False),
        away,
        stream(b": nothing new\n\n"),
        stream(event("progress", "1")[:-1], is_whole=False),
        stream(event("progress", "2"), event("end", "3", state="failed")),
    ]
    with serving(*said) as server, server.client() as client:
        seen = [(progress.state, progress.has_ended) for progress in client.watch("w", "last")]
    assert seen == [("running", False), ("running", False), ("failed", True)]
    # The first says which is the newest; from then on it is that one.
    assert [asked.path for asked in server.asked] == ["/request/w/last/events", *["/request/w/r/events"] * 4]
    assert [asked.headers.get("last-event-id") for asked in server.asked] == [None, "1", "1", "1", "1"]
    assert 2.0 in quick


def test_a_stream_that_goes_on_is_never_given_up() -> None:
    said = [stream(event("progress", str(number)), is_whole=False) for number in range(20)]
    with serving(*said, stream(event("end", "20", state="done"))) as server, server.client() as client:
        assert len(list(client.watch("w", "r"))) == 21


def test_a_server_that_never_gets_to_say_anything_is_given_up() -> None:
    with serving(stream(is_whole=False)) as server, server.client() as client, pytest.raises(BrokenOff):
        list(client.watch("w", "r"))
    assert len(server.asked) == 6


def test_waiting_ends_in_time() -> None:
    never = threading.Event()
    try:
        with (
            serving(stream(event("progress", "1"), wait=never)) as server,
            server.client() as client,
            pytest.raises(StillRunning, match=r"within 0\.1 s") as error,
        ):
            client.wait("w", "r", 0.1)
        assert isinstance(error.value, TimeoutError)
        assert error.value.request_id == "r"
    finally:
        never.set()


def test_waiting_gives_the_status_whichever_way_it_ended() -> None:
    failed = {"exception_type": "E", "exception_message": "no", "traceback": "t", "attempt": 1, "handler_name": "h"}
    said = [stream(event("end", "1", state="failed")), answer(200, {**STATUS, "state": "failed", "error": failed})]
    with serving(*said) as server, server.client() as client:
        status = client.wait("w", "r")
    assert (status.state, status.error and status.error.exception_type) == ("failed", "E")


def test_lines_of_a_stream_are_read_as_the_standard_says() -> None:
    text = (
        b"\xef\xbb\xbf: first\r\n\r\nid: 1\r\ndata: a\r\ndata:b\r\ndata\r\n\r\nevent: end\ndata: c\nother: x\n\n"
        b"retry: 250\nretry: soon\nid: a\0b\ndata: e\n\nid\ndata: d\n\ndata: never closed\n"
    )
    reader = Reader()
    seen = list(reader.read(text.split(b"\n")[:-1]))
    assert seen[:3] == [Event("message", "a\nb\n", "1"), Event("end", "c", "1"), Event("message", "e", "1")]
    assert seen[3:] == [Event("message", "d", "")]
    assert reader.retry_s == 0.25


# --- results --------------------------------------------------------------------------------------------------------


def test_a_result_is_read_as_it_comes() -> None:
    more = threading.Event()
    pieces = [b'["a",1]\n["', b'b",2]\n']
    with serving(chunks("application/x-ndjson", *pieces, wait=more)) as server, server.client() as client:
        result = client.result("w", "r")
        assert [next(result), next(result)] == [("a", 1), ("b", 2)]
        more.set()
        assert list(result) == []


@pytest.mark.parametrize("pieces", [(b'["a",1]\n',), (b'["a",1]\n["b"',)])
def test_a_result_that_breaks_off_is_not_taken_for_whole(pieces: tuple[bytes, ...]) -> None:
    said = chunks("application/x-ndjson", *pieces, is_whole=False)
    with serving(said) as server, server.client() as client:
        seen = []
        with pytest.raises(Unreachable, match="broke off"):
            seen += client.result("w", "r")
    assert seen == [("a", 1)]


def test_numbers_and_text_come_as_they_are() -> None:
    line = '[1,{"big":123456789012345678901234567890,"float":1.0,"text":"\u2028\\n"}]\n'.encode()
    with serving(answer(200, line, "application/x-ndjson")) as server, server.client() as client:
        [(key, value)] = client.result("w", "r")
    assert (key, value) == (1, {"big": 123456789012345678901234567890, "float": 1.0, "text": "\u2028\n"})
    assert isinstance(value["float"], float)


def test_a_result_that_is_yet_to_come_is_said() -> None:
    with serving(answer(202, ACCEPTED)) as server, server.client() as client, pytest.raises(StillRunning):
        list(client.result("w", "r"))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (problem(401, "unauthorized"), NotAllowed),
        (problem(403, "forbidden", scope="read"), NotAllowed),
        (problem(404, "request-not-found"), NotThere),
        (problem(409, "request-cancelled"), JobCancelled),
        (problem(410, "request-expired"), RequestGone),
        (problem(500, "handler-failed"), JobFailed),
        (problem(500, "internal", incident="x"), Refused),
        (answer(500, b"<html>", "text/html"), Refused),
        (answer(500, b"{", "application/problem+json"), Refused),
        (answer(302, b"", Location="http://elsewhere"), Refused),
        (answer(418, b"tea"), Refused),
    ],
)
def test_what_a_server_refuses_is_an_exception(said: Say, kind: type[Refused]) -> None:
    with serving(said) as server, server.client() as client:
        for call in (client.status, client.tree, client.cancel, client.wait, lambda *at: list(client.result(*at))):
            with pytest.raises(kind) as error:
                call("w", "r")
            assert type(error.value) is kind
            assert isinstance(error.value, ClientError | JobxError)
            assert str(error.value)


def test_a_failure_says_all_that_is_known() -> None:
    facts = {
        "request_id": "r",
        "invocation_id": "r.0",
        "exception_type": "ValueError",
        "exception_message": "no",
        "place": "split.py:7",
    }
    with serving(problem(500, "handler-failed", **facts)) as server, server.client() as client:
        with pytest.raises(JobFailed) as raised:
            client.run("w", "j")
        error = raised.value
    assert {name: getattr(error, name) for name in facts} == facts


@pytest.mark.parametrize("said", [answer(200, b"<html>", "text/html"), answer(200, {"a": 1}), answer(200, b"[]")])
def test_something_else_than_jobx_is_not_believed(said: Say) -> None:
    with serving(said) as server, server.client() as client, pytest.raises(Unreachable, match="is not JobX"):
        client.status("w", "r")


# --- where servers are ----------------------------------------------------------------------------------------------


def test_a_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    with serving(answer(200, STATUS), path=tmp_path / "s") as server:
        for url in (server.url, server.url.replace("unix:", "unix://")):
            with Client(url) as client:
                assert client.status("w", "r").is_done
    with Client(f"unix:{tmp_path}/none", retries=0) as client, pytest.raises(Unreachable, match="none"):
        client.status("w", "r")


def test_a_server_may_be_below_a_path() -> None:
    with serving(answer(200, STATUS)) as server, Client(f"{server.url}/below/") as client:
        client.status("a/b", "?")
    assert server.asked[0].path == "/below/request/a%2Fb/%3F"


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://x", "http://", "http://x:99999", "http://a:b@x", "unix:relative", "http://x?a"]
)
def test_what_is_no_url_of_a_server_is_said(url: str) -> None:
    with pytest.raises(ClientError):
        Client(url)


def test_one_client_serves_many_threads() -> None:
    seen: list[list[Any]] = []
    with serving(answer(200, b'["a",1]\n', "application/x-ndjson")) as server, server.client() as client:
        threads = [threading.Thread(target=lambda: seen.append(list(client.result("w", "r")))) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert seen == [[("a", 1)]] * 20


def test_it_brings_little_with_it() -> None:
    code = "import sys, mr.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"flask", "gevent", "grpc", "rich", "click", "yaml", "sqlite3"} & set(loaded)
