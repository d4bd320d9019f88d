"""Child processes that are kept running: started, started again when they die, and stopped in order."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType

from mr.cli.programs import command_line

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
SETTLED_S = 1.0
"""A child that lived so long, or became ready, starts with the shortest pause again."""
LOOK_S = 0.1
"""How often the children are looked at, though nothing happened."""
DEATHS_AT_START = 3
NEXT_STOP_S = 5.0
"""How long a child waits for the one before it to stop before it stops as well."""
STOP_S = 30.0


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


class Signals:
    """Counts the signals that ask to stop, and wakes whoever waits on its descriptor for them or for children."""

    def __init__(self) -> None:
        self.stops = 0
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup has it ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1

    def wait(self, seconds: float, also: Sequence[int]) -> None:
        readable, _, _ = select.select([self._reading, *also], [], [], seconds)
        if self._reading in readable:
            with suppress(BlockingIOError):
                os.read(self._reading, 4096)


class Supervisor:
    """Keeps children running until it is told to stop; then they stop in their order, each when the last one has.

    ``on_ready`` is called once, when all of them are; ``on_stop`` before the first is told to stop; ``on_turn`` several
    times a second while they run.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        say: Callable[[str], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._children = list(children)
        self._on_ready, self._on_stop, self._on_turn, self._say = on_ready, on_stop, on_turn, say

    def run(self) -> int:
        """The exit code."""
        signals = Signals()
        try:
            return self._keep(signals) or self._stop(signals)
        finally:
            for child in self._children:
                child.kill()

    def _keep(self, signals: Signals) -> int:
        is_told = False
        for child in self._children:
            child.start()
        while not signals.stops:
            pauses = [pause for child in self._children if (pause := child.due_in()) is not None]
            signals.wait(min([LOOK_S, *pauses]), [child.fileno() for child in self._children if child.fileno() >= 0])
            for child in self._children:
                child.look()
            self._on_turn()
            if not is_told and all(child.is_ready for child in self._children):
                is_told = True
                self._on_ready()
            if not is_told and any(child.deaths >= DEATHS_AT_START for child in self._children):
                self._say("JobX cannot start: what was said above has to be put right first.")
                self._stop(signals)
                return 1
        return 0

    def _stop(self, signals: Signals) -> int:
        asked = signals.stops
        begun = told = time.monotonic()
        self._on_stop()
        left = self._children
        while left:
            left[0].tell_to_stop()
            signals.wait(LOOK_S, [])
            now = time.monotonic()
            if now - begun > STOP_S or signals.stops > max(1, asked):
                self._say("JobX was stopped before everything had ended in order.")
                return 1
            if left[0].has_stopped():
                left, told = left[1:], now
            elif now - told > NEXT_STOP_S and len(left) > 1:
                # It goes on stopping, and is waited for after the next.
                left, told = [*left[1:], left[0]], now
        return 0
