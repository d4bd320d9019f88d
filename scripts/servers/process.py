"""A server as a process that a test can stop, kill, freeze and start again, and that never outlives the test."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from servers import ServerFailed

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
HTTP_TIMEOUT_S = 5.0
LOG_LINES = 15
HOST = "127.0.0.1"

# Runs in the new process before the server does. 1 is PR_SET_PDEATHSIG; it holds across exec. A parent that ended
# before it was set sends nothing, which the second look finds out.
_TETHERED = """
import ctypes, os, sys
parent, number = int(sys.argv[1]), int(sys.argv[2])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, number)
if os.getppid() == parent:
    os.execv(sys.argv[3], sys.argv[3:])
"""

AnyServer = TypeVar("AnyServer", bound="Server")


def _state(task: Path) -> str:
    """That of a thread, as `/proc` has it; T where it was stopped, or is gone."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "T"


def wait_until(condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT_S) -> None:
    """Returns once the condition holds; raises ServerFailed, naming what it waited for, when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"waited {timeout:g} s in vain: {what}")
        time.sleep(0.02)


class Port:
    """A loopback port that is free, and stays so for a server that is down for a while.

    It lies below the ports that the system gives to clients, and a UDP socket of the same number, held as long as there
    is this object, keeps others who choose in this way from it.
    """

    def __init__(self) -> None:
        first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        numbers = range(10240, first_of_clients) if first_of_clients > 12000 else range(first_of_clients, 65536)
        for number in random.sample(numbers, 200):
            held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                held.bind((HOST, number))
                with socket.socket() as tried:
                    tried.bind((HOST, number))
            except OSError:
                held.close()
                continue
            self.number, self._held = number, held.detach()
            return
        raise ServerFailed("no free port was found on 127.0.0.1")

    def __del__(self) -> None:
        if hasattr(self, "_held"):
            os.close(self._held)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.number}"

    def __str__(self) -> str:
        return str(self.number)


def accepts(address: str) -> bool:
    """True when something takes connections at `host:port`, or at `unix:PATH`."""
    host, _, rest = address.rpartition(":")
    with socket.socket(socket.AF_UNIX if host == "unix" else socket.AF_INET) as tried:
        tried.settimeout(HTTP_TIMEOUT_S)
        try:
            tried.connect(rest if host == "unix" else (host, int(rest)))
        except OSError:
            return False
        return True


def answers(url: str) -> bool:
    """True when the URL answers with success."""
    try:
        with _direct.open(url, timeout=HTTP_TIMEOUT_S):
            return True
    except (OSError, http.client.HTTPException):
        return False


# A proxy of the environment is no way to loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


_launchers: dict[int, ThreadPoolExecutor] = {}
_launchers_lock = threading.Lock()


def _launcher() -> ThreadPoolExecutor:
    """The thread that starts all servers of this process.

    A parent's death is told when the *thread* that forked ends, so it has to be one that ends with the process; a
    forked process, which does not have its parent's threads, gets one of its own.
    """
    with _launchers_lock:
        if os.getpid() not in _launchers:
            _launchers[os.getpid()] = ThreadPoolExecutor(1, thread_name_prefix="launcher")
        return _launchers[os.getpid()]


class Server:
    """One server process; the directory is its own, the caller's to remove, and has its log.

    Subclasses say the command, and how to see that the server answers. Ports are chosen once, so that a server that
    starts again is found where it was.
    """

    death_signal = signal.SIGKILL
    """What the server gets when the process that started it ends, in whichever way."""

    def __init__(self, name: str, directory: Path | str) -> None:
        self.name = name
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The program's absolute path and its arguments."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Asks the server itself."""
        raise NotImplementedError

    def start(self: AnyServer, *, wait: bool = True, detached: bool = False) -> AnyServer:
        """Starts the server unless it runs; returns when it answers, at once without `wait`.

        A detached one goes on when the process that started it ends. Raises ServerFailed, Unavailable.
        """
        if not self.is_running:
            command = self.command()
            if not detached:
                tether = [sys.executable, "-I", "-S", "-c", _TETHERED]
                command = [*tether, str(os.getpid()), str(int(self.death_signal)), *command]
            self._process = _launcher().submit(self._launch, command).result()
        if wait:
            self.wait_ready()
        return self

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        # A session of its own: an interrupt from the terminal is for the tests, which then stop their servers in order.
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.directory, env=self.environ(),
            )  # fmt: skip

    def environ(self) -> dict[str, str]:
        return dict(os.environ)

    def wait_ready(self) -> None:
        try:
            wait_until(lambda: not self.is_running or self.is_ready(), "it does not answer")
        except ServerFailed as error:
            self.kill()
            raise ServerFailed(f"{self.name}: {error}\n{self._end_of_log()}") from None
        if not self.is_running:
            assert self._process is not None
            raise ServerFailed(f"{self.name} ended with {self._process.returncode}\n{self._end_of_log()}")

    def stop(self) -> None:
        """Ends it in order, with SIGTERM; kills it when that takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it with SIGKILL, frozen or not."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops it where it stands: its connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)
        # The signal takes effect a moment later, thread by thread.
        threads = Path(f"/proc/{self.pid}/task")
        wait_until(lambda: all(_state(each) == "T" for each in threads.iterdir()), f"{self.name} to stand still")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def restart(self: AnyServer) -> AnyServer:
        """Stops it, if it runs, and starts it with the same ports and data."""
        self.stop()
        return self.start()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ServerFailed(f"{self.name} was not started")
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _end_of_log(self) -> str:
        return "\n".join(self.log.splitlines()[-LOG_LINES:])

    def _signal(self, number: signal.Signals) -> None:
        if not self.is_running:
            raise ServerFailed(f"{self.name} is not running")
        os.kill(self.pid, number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or not self.is_running:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self: AnyServer) -> AnyServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
