"""Sockets that listen, of TCP and of Unix."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mr.config import Bind
from mr.errors import InvalidConfig

BACKLOG = 2048

UNIX_MODE = 0o666
"""Who reaches the path may connect, as with a port of loopback. Who may reach it is up to its directory."""

_PROBE_S = 2.0
_TURN_S = 5.0
_TURN_PAUSE_S = 0.02

_Identity = tuple[int, int]


class Listener:
    """A socket that listens, and that child processes can be given. :meth:`close` takes a Unix socket's path away.

    A Unix socket that a server left behind when it was killed gives way; one that is listened on does not.

    :raises InvalidConfig: nothing can listen there, or somebody does already.
    """

    def __init__(self, bind: Bind) -> None:
        self._path = bind.path
        self._identity: _Identity | None = None
        self._owner = os.getpid()
        self.socket = self._listen_at_path(bind) if bind.path else _listen_at_port(bind)
        self.socket.set_inheritable(True)
        self.bind = bind_of(self.socket)
        """Where it is, with the port that was chosen."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """May be repeated. A process that was forked from the one that made it leaves the path alone."""
        if self._identity is not None and os.getpid() == self._owner:
            # What somebody else put there meanwhile is not ours to remove.
            with suppress(OSError), _turn(self._path):
                if _identity_of(self._path) == self._identity:
                    os.unlink(self._path)
            self._identity = None
        self.socket.close()

    def _listen_at_path(self, bind: Bind) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _turn(self._path):
                _make_way(bind)
                listener.bind(self._path)
                os.chmod(self._path, UNIX_MODE)
                self._identity = _identity_of(self._path)
                listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise _refused(bind, f"nothing can listen there: {error.strerror}. Choose another path.") from error
        except BaseException:
            listener.close()
            raise
        return listener


def bind_of(listener: socket.socket) -> Bind:
    """Where a socket listens."""
    name = listener.getsockname()
    return Bind(name[0], name[1]) if isinstance(name, tuple) else Bind(path=os.fsdecode(name))


def _listen_at_port(bind: Bind) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in bind.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # What a connection of the run before leaves behind does not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((bind.host, bind.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = f"nothing can listen there: {error.strerror}. Choose another address or port."
        raise _refused(bind, reason) from error
    return listener


def _make_way(bind: Bind) -> None:
    """Removes a socket that nobody listens on.

    :raises InvalidConfig: somebody does, or that is no socket.
    """
    try:
        mode = os.lstat(bind.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise _refused(bind, "there is something else than a socket. Remove it, or choose another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(bind.path)
        except ConnectionRefusedError:
            os.unlink(bind.path)
            return
        except BlockingIOError:
            # So many wait to be let in that there is no room for one more.
            pass
    raise _refused(bind, "a server listens there already. Stop it, or choose another path.")


@contextmanager
def _turn(path: str) -> Iterator[None]:
    """One process at a time may look at a path, remove what is there and bind to it.

    :raises OSError: the directory cannot be opened, or others hold it for too long.
    """
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _TURN_S
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_TURN_PAUSE_S)
        yield
    finally:
        os.close(directory)


def _identity_of(path: str) -> _Identity:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _refused(bind: Bind, reason: str) -> InvalidConfig:
    return InvalidConfig(f"MR_BIND is '{bind}', and {reason}", "MR_BIND")
