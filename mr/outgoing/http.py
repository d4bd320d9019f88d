"""POSTs to the outside, within a fixed time and to checked addresses only.

The standard library's `http.client` reads the answer, from a connection that is made here: a pool such as urllib3's
could be pinned to an address, too, but bounds each receive rather than all of it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, RemoteDisconnected
from itertools import chain
from socket import socket
from typing import NamedTuple, cast

from mr import __version__
from mr.errors import DeliveryFailed
from mr.outgoing.connection import Deadline, Line, client_context, connect, reason
from mr.outgoing.guard import Destination, Guard

MAX_ANSWER_BYTES = 64 * 1024
MAX_RETRY_AFTER_S = 86400.0

_BUSY = (408, 425, 429)

_CHUNK_BYTES = 64 * 1024

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?|")
_OWN = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"})


class Answer(NamedTuple):
    """What a server answered; of a longer body the first ``MAX_ANSWER_BYTES``. Names of headers are in lower case."""

    status: int
    body: bytes
    headers: dict[str, str]


def post(
    url: str,
    body: bytes | Iterable[bytes],
    headers: Mapping[str, str],
    guard: Guard,
    *,
    seconds: float = 10.0,
    ca: str = "",
) -> Answer:
    """What the server answered, which is a 2xx. An iterable body is sent chunked, and consumed once.

    ``seconds`` bound all of it: look-up, connecting, TLS, sending and reading. Once the status is there it decides: of
    a body that does not end in time, or at all, there is what came. Redirects are not followed and proxies not used.
    ``ca`` is a file of certificates to trust instead of the system's.

    :raises ForbiddenURL: the guard does not let it out.
    :raises DeliveryFailed: there was no 2xx in time. Final is what cannot become better: a 410, by which a server says
        that it wants no more, and headers that HTTP cannot carry.
    """
    deadline = Deadline(seconds)
    _check_headers(headers)
    destination = guard.check(url, seconds=seconds)
    try:
        context = client_context(ca) if destination.is_tls else None
        line = connect(destination.addresses, destination.port, deadline, context, destination.host)
    except OSError as error:
        raise DeliveryFailed(f"{destination.authority} cannot be reached: {reason(error, deadline)}.") from error
    with line:
        is_sent = _send(line, _head(destination, headers, body), body)
        try:
            answer, phrase = _read(line)
        except (OSError, HTTPException) as error:
            raise DeliveryFailed(f"{destination.authority} did not answer: {_reason(error, deadline)}.") from error
    if not 200 <= answer.status < 300:
        raise _refused(destination, answer, phrase)
    if not is_sent:
        raise DeliveryFailed(f"{destination.authority} answered {answer.status} before all was sent.")
    return answer


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name.lower() in _OWN:
            raise DeliveryFailed(f"{name[:80]!r} cannot be a header of what is sent.", is_final=True)
        if not _VALUE.fullmatch(value):
            raise DeliveryFailed(
                f"The header {name} cannot have the value {value[:80]!r}: it has to be ASCII, in one line.",
                is_final=True,
            )


def _head(destination: Destination, headers: Mapping[str, str], body: bytes | Iterable[bytes]) -> bytes:
    fields = {"host": destination.authority, "connection": "close", "user-agent": f"jobx/{__version__}"}
    fields |= {name.lower(): value for name, value in headers.items()}
    if isinstance(body, bytes):
        fields["content-length"] = str(len(body))
    else:
        fields["transfer-encoding"] = "chunked"
    lines = [f"POST {destination.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("ascii")


def _send(line: Line, head: bytes, body: bytes | Iterable[bytes]) -> bool:
    """False where not all of it could be sent: who refuses early may stop listening, and has an answer all the same."""
    # What the body's source raises is not the other side's doing: it is left to go through.
    for piece in [head, body] if isinstance(body, bytes) else chain([head], _chunked(body)):
        try:
            line.sendall(piece)
        except OSError:
            return False
    return True


def _chunked(body: Iterable[bytes]) -> Iterator[bytes]:
    waiting = bytearray()
    for piece in body:
        waiting += piece
        if len(waiting) >= _CHUNK_BYTES:
            yield b"%X\r\n%b\r\n" % (len(waiting), bytes(waiting))
            waiting = bytearray()
    if waiting:
        yield b"%X\r\n%b\r\n" % (len(waiting), bytes(waiting))
    yield b"0\r\n\r\n"


def _read(line: Line) -> tuple[Answer, str]:
    """
    :raises OSError, HTTPException: no status and headers came.
    """
    # A line is as much of a socket as is used here.
    response = HTTPResponse(cast("socket", line), method="POST")
    response.begin()
    body = bytearray()
    with suppress(OSError, HTTPException):
        while len(body) < MAX_ANSWER_BYTES:
            piece = response.read1(MAX_ANSWER_BYTES - len(body))
            if not piece:
                break
            body += piece
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Answer(response.status, bytes(body), headers), response.reason


def _refused(destination: Destination, answer: Answer, phrase: str) -> DeliveryFailed:
    said = f"{destination.authority} answered {answer.status} {_one_line(phrase)}".rstrip()
    if 300 <= answer.status < 400:
        location = _one_line(answer.headers.get("location", ""))
        where = f" to {location}" if location else ""
        what = f"{said}: a redirect{where}, which is not followed. Give the URL that it leads to."
        return DeliveryFailed(what, spares_place=True)
    text = _one_line(answer.body[:1000].decode("utf-8", "replace"))
    return DeliveryFailed(
        f"{said}: {text}" if text else f"{said}.",
        is_final=answer.status == 410,
        retry_after_s=_retry_after_s(answer.headers.get("retry-after", "")),
        # It does not want this one; of others that says nothing.
        spares_place=400 <= answer.status < 500 and answer.status not in _BUSY,
    )


def _one_line(text: str) -> str:
    plain = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return plain if len(plain) <= 200 else f"{plain[:200]}…"


def _retry_after_s(text: str) -> float | None:
    """Seconds, or until a date."""
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER_S)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _reason(error: OSError | HTTPException, deadline: Deadline) -> str:
    if isinstance(error, RemoteDisconnected):
        return "it closed the connection"
    if isinstance(error, HTTPException):
        return f"what it says is not HTTP ({type(error).__name__})"
    return reason(error, deadline)
