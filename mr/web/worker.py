"""The gunicorn worker: gunicorn's own for greenlets, but it stops without cutting anybody off, and with its parent."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any

import gevent
import msgspec
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.workers.ggevent import GeventWorker

from mr.handlers.system import die_with_parent
from mr.web.application import FRONT
from mr.web.front import Front
from mr.web.problems import document, header_text

_LOOK_S = 0.25
"""How late a worker notices that it has to stop."""

_STALLED_S = 60.0
"""How long a client may keep us waiting for more of its body, or for room for more of its answer."""

_DISCARDED_BYTES = 64 << 20
_DISCARDED_AT_ONCE = 64 << 10
_DISCARDING_S = 10.0

_STATUS = {
    "LimitRequestLine": HTTPStatus.REQUEST_URI_TOO_LONG,
    "LimitRequestHeaders": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "UnsupportedTransferCoding": HTTPStatus.NOT_IMPLEMENTED,
    "ExpectationFailed": HTTPStatus.EXPECTATION_FAILED,
}
"""By the name of gunicorn's exception: not every gunicorn has them all."""


class FrontWorker(GeventWorker):  # type: ignore[misc]
    """For applications that :func:`mr.web.application.create_app` made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._idle: set[Any] = set()

    def init_process(self) -> None:
        die_with_parent(self.ppid)
        super().init_process()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C reaches the whole process group: it, too, stops in order."""
        self.handle_exit(sig, frame)

    def run(self) -> None:
        pool = Pool(self.worker_connections)
        servers = []
        for listener in self.sockets:
            listener.setblocking(True)
            server = StreamServer(listener, handle=partial(self.handle, listener), spawn=pool)
            if self.cfg.workers > 1:
                # So that one worker does not take what others could serve at once.
                server.max_accept = 1
            server.start()
            servers.append(server)
        while self.alive:
            self.notify()
            gevent.sleep(_LOOK_S)
        for server in servers:
            server.close()
        front: Front = self.wsgi.extensions[FRONT]
        front.drain()
        self._stop_idle()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while len(pool) and time.monotonic() < deadline:
            self.notify()
            pool.join(timeout=_LOOK_S)
            self._stop_idle()
        if len(pool):
            self.log.warning("Connections were cut when the time for stopping was over. connections=%d", len(pool))
        front.stop()
        front.platform.close()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        self._idle.discard(sock)
        # A client that sends its next request while the last one is being answered would never let others in: with a
        # store of this machine nothing on the way has to wait.
        gevent.sleep(0)
        sock.settimeout(_STALLED_S)
        try:
            super().handle_request(listener_name, req, sock, addr)
        except StopIteration:
            # The connection is to be closed, and its client may be sending still.
            self._is_read(req.body)
            raise
        if not self._is_read(req.body):
            raise StopIteration
        sock.settimeout(None)
        self._idle.add(sock)

    def _is_read(self, body: Any) -> bool:
        """Whether the body has been read to its end, after reading on for a while.

        Gunicorn would read on for ever. Closing at once would take the answer away from a client that is still sending.
        """
        left = _DISCARDED_BYTES
        with gevent.Timeout(_DISCARDING_S, False):
            try:
                while left > 0:
                    data = body.read(_DISCARDED_AT_ONCE)
                    if not data:
                        return True
                    left -= len(data)
            except (OSError, ParseException, NoMoreData):
                pass
        return False

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """What could not be read as HTTP is answered as every other error is."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        status = _STATUS.get(type(exc).__name__, HTTPStatus.BAD_REQUEST)
        self.log.info("Something else than HTTP came. error=%r", exc)
        body = msgspec.json.encode(document("invalid-http", status, header_text(str(exc)), {}))
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/problem+json\r\n"
        with suppress(OSError), gevent.Timeout(_DISCARDING_S, False):
            client.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            client.shutdown(socket.SHUT_WR)
            # What is unread when a connection is closed takes the answer with it.
            for _ in range(_DISCARDED_BYTES // _DISCARDED_AT_ONCE):
                if not client.recv(_DISCARDED_AT_ONCE):
                    break

    def _stop_idle(self) -> None:
        """Connections that are kept for a next request, which will not be served, read the end of their input."""
        for client in list(self._idle):
            self._idle.discard(client)
            # By a socket of its own: shut down by the one that is read from, the reader would be told of an error.
            with suppress(OSError), socket.socket(fileno=os.dup(client.fileno())) as same:
                same.shutdown(socket.SHUT_RD)
