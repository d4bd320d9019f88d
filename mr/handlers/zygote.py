"""The zygote: a small process with all imports done, from which runners are forked in milliseconds.

Its worker starts it with one end of a socket, over which whole messages go: ``Fork`` (with a runner's socket and pipes
as file descriptors), ``Signal``, ``Kill``, ``Watch``; it answers with ``Ready``, ``Forked`` and ``Exited``. It has one
thread, so that forking is safe. It is the parent of all runners and adopts what they leave behind, so that it alone
signals them: no process ID is ever used after it was reaped.

When the socket closes, or the worker dies, it kills every runner with all that is below it, and ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time

import msgspec

from mr.errors import InvalidConfig
from mr.handlers import runner, system
from mr.handlers.runner import RunnerSettings
from mr.handlers.scope import load_scope_factory

WATCH_INTERVAL_S = 0.05
SCAN_EVERY = 20
"""Without a sign of many new processes a full count is made only every that many intervals."""

PROCESS_ROOM = 2000
"""How many processes and threads more than there are now an unprivileged user may come to have."""
STRAYS_S = 1.0

_COULD_NOT_FORK = 1 << 8

PRELOADED = (subprocess,)


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of what worker and zygote say to each other."""


class Settings(_Message, frozen=True):
    """The first message. ``processes`` is how many each runner may have below it; 0 is no limit."""

    each: RunnerSettings
    processes: int


class Fork(_Message, frozen=True):
    """Comes with three descriptors: the runner's socket, its stdout and its stderr."""

    runner_id: int
    directory: str


class Signal(_Message, frozen=True):
    runner_id: int
    signal_number: int


class Kill(_Message, frozen=True):
    runner_id: int


class Watch(_Message, frozen=True):
    """Count the processes of runners from time to time, or stop it."""

    is_on: bool


Order = Settings | Fork | Signal | Kill | Watch


class Ready(_Message, frozen=True):
    """Imports are done. ``problem`` is empty unless the settings cannot be worked with."""

    problem: str = ""


class Forked(_Message, frozen=True):
    runner_id: int
    process: int


class Exited(_Message, frozen=True):
    """A runner ended, and so did all that was below it. ``status`` is as of ``os.waitpid``."""

    runner_id: int
    status: int
    was_crowded: bool


Notice = Ready | Forked | Exited

_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(Order).decode


class Zygote:
    def __init__(self, control: socket.socket, parent: int, directory: str) -> None:
        self._control = control
        self._parent = parent
        self._directory = directory
        self._settings = Settings(RunnerSettings(0, 0, 1024, None), 0)
        self._processes: dict[int, int] = {}
        self._runners: dict[int, int] = {}
        self._directories: dict[int, str] = {}
        self._cleaners: set[int] = set()
        self._crowded: set[int] = set()
        self._has_strays = False
        self._is_watching = False
        self._quiet = 0
        self._until_scan = SCAN_EVERY
        self._is_ending = False
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_end = wake
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._signalled)
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        system.adopt_orphans()
        system.go_first()
        # Not to be killed at once with the worker: the runners' processes are to be ended first.
        system.die_with_parent(parent, signal.SIGHUP)

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        next_watch = 0.0
        try:
            while not self._is_ending:
                timeout = None
                if self._is_watching:
                    timeout = max(0.0, next_watch - time.monotonic()) * 1000
                if self._has_strays:
                    self._end_strays()
                    timeout = 0.0
                for fd, _ in poll.poll(timeout):
                    if fd == self._wake:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake, 4096)
                        self._reap()
                    else:
                        self._receive()
                if self._is_watching and time.monotonic() >= next_watch:
                    self._count()
                    next_watch = time.monotonic() + WATCH_INTERVAL_S
        finally:
            self._end()

    def _signalled(self, number: int, frame: object) -> None:
        # The kernel sends SIGHUP when the thread that started this process ends; that need not be the worker's end.
        if number == signal.SIGTERM or (number == signal.SIGHUP and os.getppid() != self._parent):
            self._is_ending = True

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65536, 8)
        except OSError:
            data, fds = b"", []
        if not data:
            self._is_ending = True
            return
        order = _decode_order(data)
        if isinstance(order, Settings):
            self._set(order)
        elif isinstance(order, Fork):
            self._fork(order, fds)
        elif isinstance(order, Signal):
            if order.runner_id in self._processes:
                system.kill(self._processes[order.runner_id], order.signal_number)
        elif isinstance(order, Kill):
            self._kill(order.runner_id)
        else:
            self._is_watching = order.is_on
            self._quiet = 0
        for fd in fds:
            os.close(fd)

    def _set(self, settings: Settings) -> None:
        self._settings = settings
        problem = ""
        if settings.each.scope_factory is not None:
            try:
                load_scope_factory(settings.each.scope_factory)
            except InvalidConfig as error:
                problem = str(error)
        # What is here now is for ever: no collection, in any runner, needs to look at it or to copy its pages.
        gc.collect()
        gc.freeze()
        self._say(Ready(problem))

    def _say(self, notice: Notice) -> None:
        try:
            self._control.send(_encode(notice))
        except OSError:
            self._is_ending = True

    # --- runners -----------------------------------------------------------------------------------------------

    def _fork(self, order: Fork, fds: list[int]) -> None:
        try:
            process = os.fork()
        except OSError as error:
            print(f"A runner could not be forked: {error}", file=sys.stderr)
            self._say(Exited(order.runner_id, _COULD_NOT_FORK, False))
            return
        if process == 0:
            status = 1
            try:
                self._become_runner(order, fds)
                status = 0
            except BaseException as error:
                with contextlib.suppress(Exception):
                    sys.__excepthook__(type(error), error, error.__traceback__)
            finally:
                os._exit(status)
        self._directories[order.runner_id] = order.directory
        self._processes[order.runner_id] = process
        self._runners[process] = order.runner_id
        self._say(Forked(order.runner_id, process))

    def _become_runner(self, order: Fork, fds: list[int]) -> None:
        zygote = os.getppid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        system.die_with_parent(zygote)
        system.adopt_orphans()
        settings = self._settings.each
        channel = _prepare_files(fds, settings.open_files)
        os.makedirs(order.directory, mode=0o700, exist_ok=True)
        os.chdir(order.directory)
        os.environ.update(HOME=order.directory, TMPDIR=order.directory)
        sys.argv[:] = ["handler"]
        # The sockets of the zygote are closed with all others; nothing may close them a second time.
        self._control.detach()
        runner.main(channel, settings)

    def _kill(self, number: int) -> None:
        process = self._processes.get(number)
        if process is not None:
            system.kill_group(process)
            system.kill(process)

    def _reap(self) -> None:
        exited: list[tuple[int, int]] = []
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if process == 0:
                break
            self._cleaners.discard(process)
            number = self._runners.pop(process, None)
            if number is not None:
                del self._processes[number]
                system.kill_group(process)
                exited.append((number, status))
        if exited:
            self._end_strays()
        for number, status in exited:
            self._say(Exited(number, status, number in self._crowded))
            self._crowded.discard(number)
            self._remove(self._directories.pop(number))

    def _remove(self, directory: str) -> None:
        """Remove what an ended runner leaves in its directory, in a process of its own, since it may be much."""
        with contextlib.suppress(OSError):
            os.rmdir(directory)
            return
        with contextlib.suppress(OSError):
            process = os.fork()
            if process == 0:
                try:
                    shutil.rmtree(directory, ignore_errors=True)
                finally:
                    os._exit(0)
            self._cleaners.add(process)

    def _end_strays(self) -> None:
        """Kill what ended runners left behind: all that is below this process and not below a runner.

        Some may fork faster than they are killed, so it is tried for a while, and again after other things.
        """
        self._has_strays = True
        until = time.monotonic() + STRAYS_S
        while time.monotonic() < until:
            tree = system.children()
            strays = [
                process
                for process in tree.get(os.getpid(), ())
                if process not in self._runners and process not in self._cleaners
            ]
            if not strays:
                self._has_strays = False
                return
            for stray in strays:
                for process in (stray, *system.descendants(stray, tree)):
                    system.kill(process)
            for stray in strays:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(stray, 0)

    def _count(self) -> None:
        """Kill runners that have too many processes below them.

        A full count reads all of /proc, so it is made only when the number of all processes and threads of the machine
        grew by about half the limit, and now and then.
        """
        limit = self._settings.processes
        if not limit:
            return
        total = system.tasks_in_system()
        self._until_scan -= 1
        if self._quiet and total - self._quiet < max(limit // 2, 8) and self._until_scan > 0:
            self._quiet = min(total, self._quiet)
            return
        self._until_scan = SCAN_EVERY
        self._quiet = total
        tree = system.children()
        for number, process in self._processes.items():
            below = system.descendants(process, tree)
            if len(below) > limit:
                self._crowded.add(number)
                system.kill_group(process)
                for one in below:
                    system.kill(one)

    def _end(self) -> None:
        for number in list(self._processes):
            self._kill(number)
        for process in list(self._runners):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)
        self._runners.clear()
        self._end_strays()
        shutil.rmtree(self._directory, ignore_errors=True)


def _prepare_files(fds: list[int], open_files: int) -> int:
    """Give a runner its standard files and nothing else, and its socket at a number that nobody hits by accident."""
    channel, out, err = fds
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = open_files if hard == resource.RLIM_INFINITY else min(open_files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_processes()
    high = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, max(64, limit - 100))
    null = os.open(os.devnull, os.O_RDWR)
    for fd, wanted in ((null, 0), (out, 1), (err, 2)):
        os.dup2(fd, wanted)
    os.closerange(3, high)
    os.closerange(high + 1, high + 256)
    return high


def _limit_processes() -> None:
    """Bound the number of processes of the user, far above what there is. It does not bind root: only counting does."""
    wanted = system.tasks_in_system() + PROCESS_ROOM
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or soft > wanted:
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted, hard))


def main(control_fd: int, parent: int, directory: str) -> None:
    """The zygote's program; the worker runs it in a fresh interpreter."""
    with socket.socket(fileno=control_fd) as control:
        control.set_inheritable(False)
        Zygote(control, parent, directory).serve()
