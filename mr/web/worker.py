"""The gunicorn worker: gunicorn's own for greenlets, but it stops without cutting anybody off, and with its parent."""

from __future__ import annotations

import socket
import time
from functools import partial
from types import FrameType
from typing import Any

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

from mr.handlers.system import die_with_parent

_LOOK_S = 0.25
"""How late a worker notices that it has to stop."""


class FrontWorker(GeventWorker):  # type: ignore[misc]
    """Expects an application with a ``drain`` method, which wakes everybody who waits."""

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
        self.app.drain()
        self._stop_idle()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while len(pool) and time.monotonic() < deadline:
            self.notify()
            pool.join(timeout=_LOOK_S)
            self._stop_idle()
        if len(pool):
            self.log.warning("Connections were cut when the time for stopping was over. connections=%d", len(pool))
        self.app.stop()

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
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            self._idle.add(sock)

    def _stop_idle(self) -> None:
        """Connections that are kept for a next request, which will not be served, read the end of their input."""
        for client in list(self._idle):
            self._idle.discard(client)
            try:
                client.shutdown(socket.SHUT_RD)
            except OSError:
                continue
