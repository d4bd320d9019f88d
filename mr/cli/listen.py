"""``mr_http_notification_listen``: shows what JobX sends, to whoever writes or tries a receiver."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, NamedTuple

import click

from mr.cli import workflows
from mr.cli.edge import Command, store
from mr.errors import InvalidInput, InvalidSignature
from mr.model import secrets
from mr.outgoing import signing

MAX_BODY_BYTES = 64 * 1024 * 1024
SHOWN_BODY_CHARS = 20_000
TIMEOUT_S = 30.0


class Arrival(NamedTuple):
    """One thing that was posted. ``is_good`` is None where no signature was asked for."""

    timestamp: float
    path: str
    headers: dict[str, str]
    body: bytes
    is_good: bool | None
    reason: str
    status: int
    """What it was answered with."""

    @property
    def verdict(self) -> str:
        if self.is_good is None:
            return "signature not checked (no --secret, no --workflow)"
        return "signature is good" if self.is_good else f"BAD SIGNATURE: {self.reason}"

    @property
    def document(self) -> Any:
        """The body as JSON, or as the text that it is."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return self.body.decode("utf-8", "replace")

    @property
    def event(self) -> str | None:
        found = self.document
        kind = found.get("type") if isinstance(found, dict) else None
        return kind if isinstance(kind, str) else None


class Receiver(ThreadingHTTPServer):
    """Hands what is posted to ``tell``, one at a time, and answers it; with ``count``, ``ended`` is set after so many.

    With secrets, what is not signed with one of them is answered 401; the rest ``status``.

    :raises OSError: it cannot listen there.
    """

    daemon_threads = True
    # One that was started anew takes its port again.
    allow_reuse_address = True

    def __init__(
        self,
        host: str,
        port: int,
        tell: Callable[[Arrival], None],
        *,
        secrets: Sequence[str] = (),
        status: int = 200,
        count: int | None = None,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.ended = threading.Event()
        self._tell = tell
        self._secrets, self._status, self._count = secrets, status, count
        self._told = self._answered = 0
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without the look-up of its own name that an HTTP server makes."""
        TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Arrival:
        now = time.time()
        is_good, reason = None, ""
        if self._secrets:
            try:
                signing.verify(self._secrets, headers, body, now)
                is_good = True
            except InvalidSignature as error:
                is_good, reason = False, str(error)
        status = 401 if is_good is False else self._status
        arrival = Arrival(now, path, headers, body, is_good, reason, status)
        with self._lock:
            self._told += 1
            # One that comes while the last one is answered is answered, too, and that is all.
            if self._count is None or self._told <= self._count:
                self._tell(arrival)
        return arrival

    def answered(self) -> None:
        with self._lock:
            self._answered += 1
            if self._answered == self._count:
                self.ended.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    server: Receiver

    def do_POST(self) -> None:
        try:
            body = self._body()
        except ValueError as error:
            self._answer(HTTPStatus.BAD_REQUEST, f"{error}\n")
            return
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            key = name.lower()
            headers[key] = f"{headers[key]}, {value}" if key in headers else value
        arrival = self.server.take(self.path, headers, body)
        try:
            self._answer(arrival.status, f"{arrival.verdict}\n")
        finally:
            self.server.answered()

    def do_GET(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "This listens for what JobX posts.\n")

    def _answer(self, status: int, text: str) -> None:
        body = b"" if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED) else text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _body(self) -> bytes:
        """
        :raises ValueError: there is none that can be read.
        """
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = bytearray()
            while size := int(self.rfile.readline(100).partition(b";")[0], 16):
                body += self._exactly(size, len(body))
                self.rfile.readline(3)
            while self.rfile.readline(65536).strip():
                pass
            return bytes(body)
        length = self.headers.get("Content-Length")
        if length is None:
            raise ValueError("Its length is missing.")
        return self._exactly(int(length), 0)

    def _exactly(self, size: int, so_far: int) -> bytes:
        if not 0 <= size <= MAX_BODY_BYTES - so_far:
            raise ValueError(f"A body has at most {MAX_BODY_BYTES} bytes here.")
        found = self.rfile.read(size)
        if len(found) < size:
            raise ValueError("The body ends too early.")
        return found

    def log_message(self, *args: Any) -> None:
        """What arrives is told elsewhere."""


def as_text(arrival: Arrival) -> str:
    """A block for people to read; nothing in it is for the terminal to obey."""
    document = arrival.document
    body = document if isinstance(document, str) else json.dumps(document, indent=2, ensure_ascii=False)
    if len(body) > SHOWN_BODY_CHARS:
        body = f"{body[:SHOWN_BODY_CHARS]}\n… ({len(arrival.body)} bytes in all)"
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(arrival.timestamp))
    lines = [
        f"--- {moment}  POST {arrival.path}  answered {arrival.status}",
        arrival.verdict,
        f"event: {arrival.event or 'none'}",
        *(f"  {name}: {value}" for name, value in arrival.headers.items()),
        body,
        "",
    ]
    return "".join(char if char.isprintable() or char == "\n" else " " for char in "\n".join(lines))


def as_json(arrival: Arrival) -> str:
    return json.dumps(
        {
            "timestamp": arrival.timestamp,
            "path": arrival.path,
            "is_signature_good": arrival.is_good,
            "reason": arrival.reason,
            "status": arrival.status,
            "event": arrival.event,
            "webhook_id": arrival.headers.get(signing.ID),
            "headers": arrival.headers,
            "body": arrival.document,
        }
    )


@click.command(
    cls=Command,
    example="$ mr_http_notification_listen --port 8099 --workflow words\n"
    "$ mr_http_notification_listen --secret whsec_… --count 1 --json",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port to listen at.  [default: a free one]")
@click.option("--secret", "given", multiple=True, metavar="WHSEC", help="What is signed with; may be repeated.")
@click.option("--workflow", metavar="NAME", help="Take the secrets of that workflow, from the store.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object a line for each.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after that many.")
@click.option(
    "--status",
    type=click.IntRange(200, 599),
    default=200,
    show_default=True,
    metavar="CODE",
    help="What to answer, as a receiver that is in trouble may.",
)
def listen(
    host: str, port: int, given: tuple[str, ...], workflow: str | None, is_json: bool, count: int | None, status: int
) -> None:
    """Listen for notifications and results over HTTP, and print what arrives.

    The first line on standard output is `Listening at http://HOST:PORT`. Signatures are checked with the secrets given,
    or those of a workflow; what is not signed with one of them is shown, and answered 401. JobX sends here only if it
    is allowed to: see MR_OUTGOING_ALLOW. SIGINT or SIGTERM end it.
    """
    if given and workflow is not None:
        raise click.UsageError("Give either --secret or --workflow.")
    known = [secrets.check_secret(one) for one in given]
    if workflow is not None:
        opened = store()
        workflows.read(opened, workflow)
        known = secrets.of_workflow(opened, workflow)

    def tell(arrival: Arrival) -> None:
        click.echo(as_json(arrival) if is_json else as_text(arrival))

    try:
        receiver = Receiver(host, port, tell, secrets=known, status=status, count=count)
    except OSError as error:
        raise InvalidInput(f"Nothing can listen at {host}, port {port or 'any'}: {error.strerror}.", "host") from error
    with receiver:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: receiver.ended.set())
        threading.Thread(target=receiver.serve_forever, args=(0.1,), daemon=True).start()
        click.echo(f"Listening at {receiver.url}")
        receiver.ended.wait()
        receiver.shutdown()
