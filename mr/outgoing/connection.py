"""Connections that end in time, whatever the other side does.

A socket's own time-out starts anew with every byte that comes: a server that sends one a second holds its client for as
long as it likes. Here look-up, connecting, TLS and each send and receive have what is left until one moment.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

MAX_TRIED = 6
"""Addresses of one host; each gets its share of the time that is left."""

_SLICE_BYTES = 64 * 1024


class Deadline:
    """The moment at which something has to be over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._at

    def left(self) -> float:
        """Seconds, more than 0.

        :raises TimeoutError: there are none.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took longer than {self.seconds:g} s")
        return left

    def share(self, number: int) -> Deadline:
        """One that leaves as much for each of ``number`` tries.

        :raises TimeoutError: nothing is left.
        """
        return Deadline(self.left() / number)


def look_up(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of the host, each once, in the system's order of preference.

    :raises OSError: they could not be had (TimeoutError: not in time).
    """
    found: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.append(list(dict.fromkeys(str(answer[4][0]) for answer in answers)))
        except (OSError, UnicodeError) as error:
            found.append(error)

    # Nothing ends a look-up: its thread is left to itself, and to the resolver's own limits.
    thread = threading.Thread(target=ask, daemon=True, name=f"look-up of {host}")
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError(f"the look-up of {host} took longer than {seconds:.3g} s")
    [answer] = found
    if isinstance(answer, Exception):
        raise answer if isinstance(answer, OSError) else OSError(f"{host!r} is no host's name")
    return answer


class Line:
    """A connection, with as much of a socket's interface as `http.client` and `smtplib` use."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket = connected
        self._deadline = deadline

    def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """
        :raises OSError: it was not all sent (TimeoutError: not in time).
        """
        rest = memoryview(data).cast("B")
        while rest:
            self._socket.settimeout(self._deadline.left())
            rest = rest[self._socket.send(rest[:_SLICE_BYTES]) :]

    def recv_into(self, buffer: Any) -> int:
        """
        :raises OSError: nothing came (TimeoutError: not in time).
        """
        self._socket.settimeout(self._deadline.left())
        return self._socket.recv_into(buffer)

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """To read from. Closing it leaves the connection open."""
        assert mode == "rb"
        return io.BufferedReader(_Received(self))

    def secure(self, context: ssl.SSLContext, name: str) -> None:
        """Agrees on TLS, with a certificate for ``name``.

        :raises OSError: it was not agreed on (SSLCertVerificationError: for the certificate).
        """
        # A handshake as a whole has the time-out of its socket.
        self._socket.settimeout(self._deadline.left())
        self._socket = context.wrap_socket(self._socket, server_hostname=name)

    @property
    def own_address(self) -> str:
        return str(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Received(io.RawIOBase):
    def __init__(self, line: Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.recv_into(buffer)


def connect(
    addresses: Sequence[str], port: int, deadline: Deadline, context: ssl.SSLContext | None = None, name: str = ""
) -> Line:
    """A connection to the first of the addresses that takes one; with ``context``, over TLS, to ``name``.

    :raises OSError: what the last of them came to.
    """
    tried = addresses[:MAX_TRIED]
    for place, address in enumerate(tried):
        try:
            return _connect(address, port, deadline, len(tried) - place, context, name)
        except OSError:
            if place == len(tried) - 1:
                raise
    raise OSError("no address is known")


def _connect(
    address: str, port: int, deadline: Deadline, tries: int, context: ssl.SSLContext | None, name: str
) -> Line:
    share = deadline.share(tries)
    connected = socket.create_connection((address, port), share.left())
    try:
        # What an answer is waited for with is sent at once.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            connected.settimeout(share.left())
            connected = context.wrap_socket(connected, server_hostname=name)
        return Line(connected, deadline)
    except BaseException:
        connected.close()
        raise


def client_context(ca: str = "") -> ssl.SSLContext:
    """Verifies certificates and names, by the system's authorities or those in the file ``ca``.

    :raises OSError: the file cannot be read.
    """
    return ssl.create_default_context(cafile=ca or None)


def reason(error: BaseException, deadline: Deadline | None = None) -> str:
    """What went wrong with a connection, in words; ``deadline`` is what it may have been too late for."""
    if isinstance(error, TimeoutError) and deadline is not None:
        return f"it took longer than {deadline.seconds:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message or error}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be looked up: {error.strerror or error}"
    if isinstance(error, ssl.SSLError):
        return f"there is no agreeing on TLS: {error.reason or error}"
    if isinstance(error, ConnectionRefusedError):
        return "nothing takes connections there"
    return str(error.strerror if isinstance(error, OSError) and error.strerror else error) or type(error).__name__
