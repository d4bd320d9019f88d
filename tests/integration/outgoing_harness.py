"""Servers on loopback that do what a test says, for what goes out to them; and patience with a machine that is busy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

LONG_S = 30.0

PATIENCE_S = (0.15, 0.6, 2.4, 9.6)
"""How long an attempt may take that is to run out of time: longer, where it did so before the server saw it."""

Result = TypeVar("Result")
Talk = Callable[[socket.socket], None]


class Server:
    """Does one thing with each connection, in a thread of its own."""

    def __init__(self, talk: Talk, host: str = "127.0.0.1", port: int = 0) -> None:
        self._talk = talk
        self._listening = socket.create_server((host, port))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        self.requests: list[bytes] = []
        self.was_cut = threading.Event()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(LONG_S)
        with connection:
            try:
                self._talk(connection)
            except OSError:
                self.was_cut.set()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in [self._accepting, *self._threads]:
            thread.join(LONG_S)
            assert not thread.is_alive()

    def holding(self, attempt: Callable[[float], Result]) -> Result:
        """What an attempt of so many seconds came to which this server saw."""
        for seconds in PATIENCE_S:
            result = attempt(seconds)
            if self.connections:
                return result
        raise AssertionError("no attempt reached the server")
