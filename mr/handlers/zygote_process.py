"""The zygote as its worker sees it: started, told what to do, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable

import msgspec

import mr
from mr.errors import RunnerBroken
from mr.handlers import zygote

_START_S = 30.0
_CLOSE_S = 5.0
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""All of the worker's environment that zygote and runners have: none of the platform's secrets."""

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from mr.handlers.zygote import main; main({})"

_encode = msgspec.msgpack.Encoder().encode
_decode_notice = msgspec.msgpack.Decoder(zygote.Notice).decode


class ZygoteProcess:
    """Starts a zygote, sends it orders and hands its notices to ``noticed``; ``lost`` is called when it ends."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        noticed: Callable[[zygote.Notice], None],
        lost: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._noticed = noticed
        self._lost = lost
        self._ready: asyncio.Future[str] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._is_open = True
        self.directory = tempfile.mkdtemp(prefix="jobx-runners-")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            boot = _BOOT.format(f"{theirs.fileno()}, {os.getpid()}, {self.directory!r}")
            # Isolated, for what the environment says is not for handlers; what the worker can import, they can too.
            root = os.path.dirname(os.path.dirname(os.path.abspath(mr.__file__)))
            paths = [path for path in sys.path if path]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", boot, json.dumps([*paths, *([] if root in paths else [root])])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                cwd=self.directory,
                start_new_session=True,
            )
        loop.add_reader(self._control, self._readable)

    async def start(self, settings: zygote.Settings) -> str:
        """What is wrong with the settings, or nothing.

        :raises RunnerBroken: it did not start.
        """
        self.send(settings)
        try:
            return await asyncio.wait_for(self._ready, _START_S)
        except (asyncio.TimeoutError, RunnerBroken):
            await self.close()
            raise RunnerBroken("The process that runners come from did not start; see its stderr.") from None

    def send(self, order: zygote.Order, fds: list[int] | None = None) -> None:
        """Send a message and close ``fds`` once they are on their way."""
        self._unsent.append((_encode(order), fds or []))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                if self._is_open:
                    socket.send_fds(self._control, [data], fds)
            except BlockingIOError:
                self._loop.call_later(0.005, self._flush)
                return
            except OSError:
                self._is_open = False
            for fd in fds:
                os.close(fd)
            self._unsent.popleft()

    def _readable(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control)
            self._is_open = False
            self._flush()
            if not self._ready.done():
                self._ready.set_exception(RunnerBroken("It ended."))
                self._ready.exception()
            if not self._gone.done():
                self._gone.set_result(None)
            self._lost()
            return
        notice = _decode_notice(data)
        if isinstance(notice, zygote.Ready):
            if not self._ready.done():
                self._ready.set_result(notice.problem)
        else:
            self._noticed(notice)

    async def close(self) -> None:
        """Have it end everything, and wait for it."""
        if self._is_open:
            self._is_open = False
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._gone), _CLOSE_S)
        self.discard()

    def kill(self) -> None:
        """End it at once; ``lost`` is called as ever."""
        self._process.kill()

    def discard(self) -> None:
        """Let go of it, dead or alive."""
        self._is_open = False
        self._loop.remove_reader(self._control)
        self._control.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
