"""Wakes other processes of this machine when something was written that they wait for, in about 0.2 ms.

Each listener is a Unix datagram socket in a directory that all processes know, with a file beside it that says what
it listens for. Ringing sends it one byte, and never waits. A ring is a hint: one that is lost with the process that
was about to send it is never sent again, so whoever listens also looks by itself now and then.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import select
import socket
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_SOCKET = ".bell"
_INTERESTS = ".for"

# The kernel stamps directories by its tick, up to 10 ms; two changes within one look like one.
_STAMP_GRAIN_S = 0.05

# What sun_path holds everywhere, with its closing NUL.
_ADDRESS_BYTES = 103


class _Rope(NamedTuple):
    """A connection to one listener. One socket each: unread datagrams count against the socket that sent them."""

    interests: tuple[str, ...]
    socket: socket.socket


class Bell:
    """Rings listeners of any process that use the same directory. Safe to use from several threads."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory).absolute()
        self._lock = threading.Lock()
        self._ropes: dict[str, _Rope] = {}
        self._listed: tuple[int, int] | None = None
        self._closed = False
        _bells.add(self)

    def listen(self, interests: Sequence[str]) -> Listener:
        """Hears, from now on, of names that start with one of ``interests``; the empty one hears all.

        Look at what was written *after* this returns, and only then wait.

        :raises OSError: the directory cannot be used.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Listener(self._directory, interests)

    def ring(self, names: Iterable[str]) -> None:
        """Wakes every listener that is interested in one of these names. Never waits and never fails."""
        names = list(names)
        with self._lock:
            if self._closed or not names:
                return
            with suppress(OSError):
                self._list()
            for listener, rope in list(self._ropes.items()):
                if any(name.startswith(rope.interests) for name in names):
                    self._pull(listener, rope)

    def close(self) -> None:
        """Lets go of the connections to listeners. Own listeners are closed by themselves. May be repeated."""
        with self._lock:
            self._closed = True
            for listener in list(self._ropes):
                self._let_go(listener)

    def _pull(self, listener: str, rope: _Rope) -> None:
        try:
            rope.socket.send(b"!")
        except BlockingIOError:
            pass  # So many rings are waiting to be heard that one more would not say more.
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                self._bury(listener)
            self._let_go(listener)

    def _list(self) -> None:
        """Reads the directory again if it may have changed since."""
        try:
            stat = os.stat(self._directory)
        except FileNotFoundError:
            for listener in list(self._ropes):
                self._let_go(listener)
            self._listed = None
            return
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if stamp == self._listed:
            return
        # While the stamp is younger than its grain, something may still be added under the same stamp.
        self._listed = stamp if time.time() - stat.st_mtime > _STAMP_GRAIN_S else None
        present = {name for name in os.listdir(self._directory) if name.endswith(_SOCKET)}
        for gone in self._ropes.keys() - present:
            self._let_go(gone)
        for found in present - self._ropes.keys():
            self._tie(found)

    def _tie(self, listener: str) -> None:
        rope = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            rope.setblocking(False)
            interests = json.loads((self._directory / listener).with_suffix(_INTERESTS).read_bytes())
            with _address(self._directory, listener) as address:
                rope.connect(address)
        except OSError as error:
            rope.close()
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                self._bury(listener)
            return
        except ValueError:
            rope.close()  # Not one of ours.
            return
        self._ropes[listener] = _Rope(tuple(interests), rope)

    def _renew_lock(self) -> None:
        """In a forked child: another thread may have held it."""
        self._lock = threading.Lock()

    def _let_go(self, listener: str) -> None:
        self._ropes.pop(listener).socket.close()

    def _bury(self, listener: str) -> None:
        """Removes what a dead process left."""
        path = self._directory / listener
        for leftover in (path, path.with_suffix(_INTERESTS)):
            with suppress(OSError):
                leftover.unlink()


class Listener:
    """Hears a bell. Used by one thread; its descriptor stays the same for life."""

    def __init__(self, directory: Path, interests: Sequence[str]) -> None:
        self._directory = directory
        self._id = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._changes = itertools.count()
        self._name: str | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)
            # Between the making of its file and the end of bind() a socket refuses connections like a dead one, so
            # it is shown to others, by its suffix, only then.
            hidden = f"{self._id}.new"
            with _address(directory, hidden) as address:
                self._socket.bind(address)
            self._show(hidden, interests)
        except BaseException:
            self._socket.close()
            raise
        _listeners.add(self)

    def change(self, interests: Sequence[str]) -> None:
        """From now on these interests, and no others; what was rung before is still heard."""
        if self._name is not None:
            self._show(self._name, interests)

    def fileno(self) -> int:
        """A descriptor that is readable while a ring waits to be heard; -1 once closed."""
        return self._socket.fileno()

    def wait(self, timeout: float | None) -> bool:
        """Waits up to ``timeout`` seconds (None: for ever) and says whether it rang; forgets all rings so far."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(None if timeout is None else max(0, timeout) * 1000):
            return False
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(16)
        return True

    def close(self) -> None:
        """Ends listening. May be repeated."""
        self._socket.close()
        _listeners.discard(self)
        name, self._name = self._name, None
        if name is not None:
            with suppress(OSError):
                self._remove(name)

    def _show(self, present: str, interests: Sequence[str]) -> None:
        # Others read the interests of a name only once: new interests go with a new name.
        name = f"{self._id}-{next(self._changes)}{_SOCKET}"
        path = self._directory / name
        path.with_suffix(_INTERESTS).write_text(json.dumps(list(interests)), encoding="ascii")
        os.rename(self._directory / present, path)
        self._name = name
        if present.endswith(_SOCKET):
            with suppress(OSError):
                (self._directory / present).with_suffix(_INTERESTS).unlink()

    def _remove(self, name: str) -> None:
        path = self._directory / name
        path.unlink()
        path.with_suffix(_INTERESTS).unlink()

    def _leave_to_parent(self) -> None:
        """In a forked child: the socket stays the parent's."""
        self._name = None
        self.close()


@contextmanager
def _address(directory: Path, name: str) -> Iterator[str]:
    """The address of a socket in ``directory``, however long its path is."""
    path = str(directory / name)
    if len(os.fsencode(path)) <= _ADDRESS_BYTES or not os.path.isdir("/proc/self/fd"):
        yield path
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


_bells: weakref.WeakSet[Bell] = weakref.WeakSet()
_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def _after_fork() -> None:
    for bell in list(_bells):
        bell._renew_lock()
    for listener in list(_listeners):
        listener._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
