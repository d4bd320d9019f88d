"""What of its process a handler can change, and how it is put back between two tasks."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _thread
import gc
import io
import math
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any

from mr.handlers.system import children, descendants, kill


class RunnerState:
    """The process as it was before any handler ran, and the limits that count while one runs (0: none)."""

    def __init__(self, memory_bytes: int, cpu_s: float) -> None:
        self._memory_bytes = memory_bytes
        self._cpu_s = cpu_s
        self._directory = os.getcwd()
        self._environment = dict(_environment())
        self._path = list(sys.path)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        # The functions of _signal are those of signal, without making enums of numbers: ten times as fast.
        self._signals = {int(number): _signal.getsignal(number) for number in signal.valid_signals()}
        self._streams = tuple(_stream(fd) for fd in (1, 2))
        self._stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "rb", closefd=False)), encoding="utf-8")
        self._files = [_identity(fd) for fd in (0, 1, 2)]
        self._limits: dict[int, tuple[int, int]] = {}
        self._room = 0
        if memory_bytes:
            # The interpreter's own address space is not the handler's fault.
            self._room = _address_space() + memory_bytes
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_STACK, resource.RLIMIT_DATA):
            self._limits[kind] = resource.getrlimit(kind)
        self._set_streams()

    def open(self) -> None:
        """A handler is to run: set the limits that count from now."""
        if self._room:
            _set_soft_limit(resource.RLIMIT_AS, self._room)
        if self._cpu_s:
            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = math.ceil(used.ru_utime + used.ru_stime + self._cpu_s)
            _set_soft_limit(resource.RLIMIT_CPU, seconds)

    def give_room(self) -> None:
        """Lift the limit on memory, so that a failure can be told."""
        _set_soft_limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)

    def tidy(self) -> bool:
        """Put everything back. False: something is left that only a new process gets rid of."""
        try:
            return self._tidy()
        except (OSError, ValueError, MemoryError):
            return False

    def _tidy(self) -> bool:
        _flush({sys.stdout, sys.stderr, *self._streams})
        is_clean = end_children() and _thread._count() == 0
        if any(stream.closed for stream in self._streams):
            return False
        self._set_streams()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number, handler in self._signals.items():
            if _signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        for kind, limits in self._limits.items():
            if resource.getrlimit(kind) != limits:
                _set_soft_limit(kind, limits[0])
        if _environment() != self._environment:
            for name in list(os.environ):
                del os.environ[name]
            for key, value in self._environment.items():
                os.environ[os.fsdecode(key)] = os.fsdecode(value)
        if sys.path != self._path:
            sys.path[:] = self._path
        os.umask(self._umask)
        sys.settrace(None)
        sys.setprofile(None)
        if not gc.isenabled():
            gc.enable()
        self._clean_directory()
        return is_clean and self._is_small() and [_identity(fd) for fd in (0, 1, 2)] == self._files

    def _clean_directory(self) -> None:
        try:
            os.chdir(self._directory)
        except OSError:
            os.makedirs(self._directory, exist_ok=True)
            os.chdir(self._directory)
        with os.scandir(self._directory) as found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    os.unlink(entry.path)

    def _is_small(self) -> bool:
        """Few files are open, and little of the memory that the next handler may use is taken."""
        lowest = os.dup(0)
        os.close(lowest)
        if lowest > 64:
            return False
        if not self._room:
            return True
        taken = self._room - self._memory_bytes + self._memory_bytes // 4
        if _address_space() <= taken:
            return True
        gc.collect()
        return _address_space() <= taken

    def _set_streams(self) -> None:
        sys.stdin = self._stdin
        sys.stdout, sys.stderr = self._streams

    def idle(self) -> None:
        """Nothing runs now: the platform's own work is not to be limited."""
        if self._cpu_s:
            _set_soft_limit(resource.RLIMIT_CPU, resource.RLIM_INFINITY)


def _flush(streams: Iterable[Any]) -> None:
    for stream in streams:
        try:
            stream.flush()
        except Exception:
            # A handler may have put anything there, or closed it.
            continue


def _stream(fd: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(fd, "wb", closefd=False), 32 * 1024)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _environment() -> dict[bytes, bytes]:
    """The environment, to compare with: os.environ itself decodes every name and value whenever it is looked at."""
    data: dict[bytes, bytes] = vars(os.environ)["_data"]
    return data


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _address_space() -> int:
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read(64).split()[0]) * resource.getpagesize()


def _set_soft_limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > hard):
        value = hard
    resource.setrlimit(kind, (value, hard))


def end_children(deadline_s: float = 1.0) -> bool:
    """Kill and reap every process below this one. False: some are left."""
    until = 0.0
    while True:
        try:
            process, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if process == 0:
            # This process adopts orphans, so that whatever is left is below it.
            for one in descendants(os.getpid(), children()):
                kill(one)
            now = time.monotonic()
            until = until or now + deadline_s
            if now > until:
                return False
            time.sleep(0.001)
