"""Child processes that are kept running: started, started again when they die, and stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from mr.cli.programs import command_line

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SETTLED_S = 1.0
"""A child that lived so long, or became ready, starts with the shortest pause again."""


class Child:
    """One program of the package. It writes a line to the descriptor of ``--ready-fd`` once it is ready.

    It has a session of its own, so that Ctrl-C reaches its parent alone, which stops everything in order; and the
    kernel ends it when its parent ends, however that does.
    """

    def __init__(
        self,
        title: str,
        program: tuple[str, str],
        arguments: Sequence[str],
        environ: Mapping[str, str],
        inherit: Sequence[int],
        say: Callable[[str], None],
    ) -> None:
        self.title = title
        self.is_ready = False
        self.deaths = 0
        self._program, self._arguments = program, arguments
        self._environ, self._inherit, self._say = environ, tuple(inherit), say
        self._process: subprocess.Popen[bytes] | None = None
        self._pause = FIRST_PAUSE_S
        self._began = 0.0
        self._due: float | None = None
        self._ready_fd = -1

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def fileno(self) -> int:
        """What turns readable when the child is ready or has gone; -1: nothing will."""
        return self._ready_fd

    def start(self) -> None:
        self._due = None
        self._began = time.monotonic()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        self._ready_fd = reading
        try:
            self._process = subprocess.Popen(
                command_line(*self._program, *self._arguments, f"--ready-fd={writing}", parent=os.getpid()),
                env=dict(self._environ),
                stdin=subprocess.DEVNULL,
                # What is on standard output is for who started us to read.
                stdout=2,
                pass_fds=(*self._inherit, writing),
                start_new_session=True,
            )
        finally:
            os.close(writing)

    def look(self) -> None:
        """Notices that it is ready, or has died, and starts it again when that is due."""
        self._look_for_ready()
        if self._process is not None and self._process.poll() is not None:
            self._died(self._process.returncode)
        elif self._process is None and self._due is not None and time.monotonic() >= self._due:
            self.start()

    def _look_for_ready(self) -> None:
        if self._ready_fd < 0:
            return
        try:
            said = os.read(self._ready_fd, 4096)
        except BlockingIOError:
            return
        if said:
            self.is_ready = True
        self._close_ready_fd()

    def _close_ready_fd(self) -> None:
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1

    def _died(self, code: int) -> None:
        self._close_ready_fd()
        self._process = None
        was_ready, self.is_ready = self.is_ready, False
        self.deaths += 1
        if was_ready or time.monotonic() - self._began > SETTLED_S:
            self._pause = FIRST_PAUSE_S
        self._say(f"The {self.title} {ending(code)}; it is started again in {self._pause:g} s.")
        self._due = time.monotonic() + self._pause
        self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)

    def due_in(self) -> float | None:
        """Seconds until it will be started again; None where that is not to be."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def tell_to_stop(self) -> None:
        """Has it stop in order. May be repeated."""
        self._signal(signal.SIGTERM)
        self._due = None

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def has_stopped(self) -> bool:
        """Whether it has ended; then it is not started again."""
        if self._process is not None and self._process.poll() is None:
            return False
        self._process, self._due = None, None
        self._close_ready_fd()
        return True


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
