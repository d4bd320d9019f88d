"""Speaking HTTP with one server: kept connections, tries that are repeated, and problems as exceptions."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry, Timeout

from mr.client.errors import BrokenOff, ClientError, Unreachable, refused

REPEATED = (429, 502, 503, 504)
"""Nothing was accepted, or nobody knows; asking again is harmless, as every POST has an idempotency key."""

LONGEST_PAUSE_S = 30.0

_KEPT = 16
_BYTES = 64 << 10
_PROBLEM_BYTES = 1 << 20


class Answer:
    """A status, headers, and a body that is read as it comes."""

    def __init__(self, response: BaseHTTPResponse) -> None:
        self._response = response
        self.status = response.status

    @property
    def request_id(self) -> str | None:
        return self._response.headers.get("X-MR-REQUEST-ID")

    @property
    def content_type(self) -> str:
        return self._response.headers.get("Content-Type", "").partition(";")[0].strip()

    def read(self) -> bytes:
        return b"".join(self.pieces())

    def pieces(self, until: float | None = None) -> Iterator[bytes]:
        """The body. ``until`` is when to stop waiting for more, on the monotonic clock.

        :raises TimeoutError: nothing came until then.
        :raises BrokenOff: it ended before it was whole.
        """
        try:
            for piece in self._response.stream(_BYTES):
                yield piece
                if until is not None:
                    self._wait_until(until)
        except (HTTPError, OSError) as error:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError from None
            raise BrokenOff(f"The answer broke off: {error}") from error

    def _wait_until(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection = self._response.connection
        if isinstance(connection, HTTPConnection) and connection.sock is not None:
            known = connection.sock.gettimeout()
            connection.sock.settimeout(left if known is None else min(known, left))

    def lines(self, until: float | None = None) -> Iterator[bytes]:
        """The lines of the body, without their ends, as they come; an unfinished one at the end is given, too."""
        rest = b""
        for piece in self.pieces(until):
            *whole, rest = (rest + piece).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def close(self) -> None:
        """What was not read is not waited for."""
        self._response.close()


class _Again(Retry):
    """Waits as long as the server says, within reason."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        told = super().get_retry_after(response)
        return None if told is None else min(told, LONGEST_PAUSE_S)


class Connection:
    """To one server, by its URL. Safe to use from several threads.

    :raises ClientError: it is no URL of a server.
    """

    def __init__(self, url: str, token: str | None, timeout: float, retries: int) -> None:
        self._pool, self._root = _open(url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout
        self._again = _Again(
            total=retries,
            redirect=0,
            status_forcelist=REPEATED,
            allowed_methods=None,
            backoff_factor=0.2,
            backoff_max=5.0,
            backoff_jitter=0.1,
            raise_on_status=False,
        )
        self.url, self.retries = url, retries

    @contextmanager
    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        silence_s: float = 0.0,
        at_most_s: float | None = None,
    ) -> Iterator[Answer]:
        """An answer that is no error; its connection is free again afterwards.

        ``silence_s``: so much longer than else the server may say nothing; ``at_most_s``: but never longer than this.

        :raises Unreachable: there is none.
        :raises Refused: the server said no.
        """
        read_s = self._timeout + silence_s
        timeout = Timeout(
            connect=self._timeout, read=read_s if at_most_s is None else max(0.001, min(read_s, at_most_s))
        )
        try:
            response = self._pool.urlopen(
                method,
                self._root + path,
                body,
                {**self._headers, **(headers or {})},
                retries=self._again,
                redirect=False,
                timeout=timeout,
                preload_content=False,
            )
        except (HTTPError, OSError) as error:
            raise Unreachable(f"There is no answer from {self.url}: {_reason(error)}") from error
        answer = Answer(response)
        try:
            if not 200 <= answer.status < 300:
                raise refused(answer.status, _problem(answer))
            yield answer
        finally:
            answer.close()

    def close(self) -> None:
        self._pool.close()


def _reason(error: Exception) -> object:
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    is_refused = isinstance(reason.__cause__ or reason.__context__, ConnectionRefusedError)
    return "nothing takes connections there; is it started?" if is_refused else reason


def _problem(answer: Answer) -> dict[str, Any]:
    if answer.content_type != "application/problem+json":
        return {}
    try:
        text = answer.read()
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, Unreachable):
        return {}


# --- where servers are --------------------------------------------------------------------------------------------


class _UnixConnection(HTTPConnection):
    def __init__(self, *arguments: Any, socket_path: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            timeout = self.timeout
            self.sock.settimeout(timeout if isinstance(timeout, int | float) else None)
            self.sock.connect(self._path)
        except OSError as error:
            self.sock.close()
            raise urllib3.exceptions.NewConnectionError(self, f"{self._path}: {error}") from error


class _UnixPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _UnixConnection


def _open(url: str) -> tuple[urllib3.HTTPConnectionPool, str]:
    """The connections to a server, and what its paths begin with."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:")
        if path.startswith("//"):
            path = path[2:]
        if not path.startswith("/"):
            raise ClientError(f"{url!r} names no socket: write unix:/run/jobx/gunicorn.sock.")
        return _UnixPool("localhost", maxsize=_KEPT, socket_path=path), ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ClientError(f"{url!r} is no URL: {error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ClientError(f"{url!r} is no URL of a server: write http://HOST:PORT, https://HOST or unix:/PATH.")
    if parts.username is not None:
        raise ClientError("A URL does not tell who asks: leave the user's name out, and give a token.")
    kind = urllib3.HTTPSConnectionPool if parts.scheme == "https" else urllib3.HTTPConnectionPool
    return kind(parts.hostname, port, maxsize=_KEPT), parts.path.rstrip("/")
