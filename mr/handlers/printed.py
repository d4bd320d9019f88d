"""What a runner prints, as its worker keeps it."""

from __future__ import annotations

import asyncio
import os

_READ_BYTES = 256 * 1024


class Printed:
    """What comes out of one of a runner's pipes: its head and its tail, never more than about twice the limit."""

    def __init__(self, fd: int, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = fd
        self._half = max(limit // 2, 1)
        self._loop = loop
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0
        os.set_blocking(fd, False)
        loop.add_reader(fd, self.read)

    def read(self) -> bool:
        """Take what is there, one read at most; False: nothing was."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._fd)
            return False
        self._total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]
        return True

    def take(self) -> str:
        """All of it so far, as text; then it starts anew."""
        # Bounded, since a process that got away could write for ever.
        for _ in range(64):
            if not self.read():
                break
        if self._total == 0:
            return ""
        tail = self._tail[-self._half :]
        cut = self._total - len(self._head) - len(tail)
        text = self._head.decode("utf-8", "replace") if cut else (self._head + tail).decode("utf-8", "replace")
        if cut:
            text += f"\n… {cut} bytes left out …\n{tail.decode('utf-8', 'replace')}"
        self._head, self._tail, self._total = bytearray(), bytearray(), 0
        return text

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
