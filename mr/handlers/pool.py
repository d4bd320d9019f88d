"""Runners for a worker: warm processes, each of which runs one handler at a time.

The pool starts a zygote, has runners forked by it and replaces every runner that misbehaved. All waiting is asyncio's,
on the sockets themselves. What a runner says is not trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

import mr
from mr.errors import InvalidConfig, RunnerBroken
from mr.handlers import zygote
from mr.handlers.compiler import MAX_PAIR_BYTES
from mr.handlers.protocol import Children, Direction, Event, Failed, Finished, Input, Output, Task
from mr.handlers.runner import CACHED_HANDLERS, CANCEL_SIGNAL, RunnerSettings
from mr.handlers.system import kill_group

MAX_FRAME_BYTES = MAX_PAIR_BYTES + 256 * 1024
CANCEL_GRACE_S = 0.5
LOST_GRACE_S = 0.1
WATCHED_AFTER_S = 0.1

_TICK_S = 0.05
_RESPAWN_S = 0.2
_READ_BYTES = 256 * 1024
_QUEUED_BYTES = 1024 * 1024
_INPUT_FRAME_BYTES = 256 * 1024
_START_S = 30.0
_CLOSE_S = 5.0
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")

_encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Direction | Children | Output | Finished | Failed).decode
_decode_notice = msgspec.msgpack.Decoder(zygote.Notice).decode

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from mr.handlers.zygote import main; main({})"


@dataclass(frozen=True)
class Limits:
    """What one handler may use; 0 is no limit.

    ``memory_bytes`` of address space on top of the interpreter's, ``cpu_s`` seconds of processor and ``wall_s`` seconds
    of time for one run, ``open_files``, ``processes`` below the runner (looked at from time to time), and how many
    bytes of what it prints are kept.
    """

    memory_bytes: int = 1024 * 1024 * 1024
    cpu_s: float = 0.0
    wall_s: float = 3600.0
    open_files: int = 1024
    processes: int = 64
    output_bytes: int = 1024 * 1024


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


class Runner:
    """One runner process, held by whoever acquired it."""

    def __init__(self, pool: RunnerPool, runner_id: int) -> None:
        self._pool = pool
        self.runner_id = runner_id
        self.process = 0
        """Its process ID; 0 until it is forked."""
        self.is_usable = True
        """It can be given another task."""
        self.has_run = False
        self._loop = pool.loop
        self._known: dict[str, None] = {}
        self._task: Task | None = None
        self._started = 0.0
        self._deadline = 0.0
        self._why: tuple[str, str] | None = None
        self._cancelling: asyncio.TimerHandle | None = None
        self._lost: asyncio.TimerHandle | None = None
        self._events: deque[Event] = deque()
        self._queued = 0
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._buffer = bytearray()
        self._outgoing: Iterator[bytes] = iter(())
        self._unsent = memoryview(b"")
        self._is_writing = False
        self._is_gone = False

        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        self.fds = [theirs.detach(), out_end, err_end]
        half = pool.limits.output_bytes // 2
        self._out = Printed(out, half, self._loop)
        self._err = Printed(err, half, self._loop)
        self._loop.add_reader(self._socket, self._readable)

    async def run(self, task: Task, inputs: Sequence[bytes]) -> AsyncIterator[Event]:
        """Run one handler and give what comes of it; exactly one ``Finished`` or ``Failed`` is the last event.

        ``task`` carries its handlers in full: what the runner knows already is left out here. ``inputs`` are JSON texts
        of lists of pairs. An iteration that is not followed to its end costs the runner its life.

        :raises RunnerBroken: the runner cannot take a task.
        """
        if self._task is not None or not self.is_usable:
            raise RunnerBroken("This runner has a task already, or has ended.")
        self._begin(task)
        try:
            self._outgoing = _frames(self._without_known(task), inputs)
            self._send()
            while True:
                while self._events:
                    event = self._events.popleft()
                    if isinstance(event, Finished | Failed):
                        yield self._end(event)
                        return
                    yield event
                if self._is_paused and not self._is_gone:
                    self._is_paused = False
                    self._queued = 0
                    self._loop.add_reader(self._socket, self._readable)
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        finally:
            if self._task is task:
                self._task = None
                self.kill("HandlerKilled", "The worker had no more use for it.")
                if self._is_gone:
                    self.close()

    def cancel(self) -> None:
        """Tell the running handler, through ``ctx.is_cancelled``, to end; kill it half a second later."""
        if self._task is None or self._cancelling is not None or self._is_gone:
            return
        self.is_usable = False
        self._pool.order(zygote.Signal(self.runner_id, CANCEL_SIGNAL))
        reason = ("HandlerKilled", "The request was cancelled, and the handler did not end by itself.")
        self._cancelling = self._loop.call_later(CANCEL_GRACE_S, self.kill, *reason)

    def kill(self, exception_type: str, message: str) -> None:
        """End the process and all that is below it. The first reason given is the one that is told."""
        self.is_usable = False
        if self._why is None:
            self._why = (exception_type, message)
        if not self._is_gone:
            self._pool.order(zygote.Kill(self.runner_id))

    # --- for the pool --------------------------------------------------------------------------------------------

    def check(self, now: float) -> bool:
        """Called from time to time. Whether the zygote has to look at how many processes there are."""
        if self._task is None:
            return False
        if self._deadline and now >= self._deadline:
            limit = self._deadline - self._started
            self.kill("HandlerTimeout", f"The handler ran longer than the {limit:g} s that it may.")
        return now - self._started >= WATCHED_AFTER_S

    def exited(self, status: int | None, was_crowded: bool) -> None:
        """The process is gone; None: with its zygote."""
        self._is_gone = True
        self.is_usable = False
        self._loop.remove_reader(self._socket)
        self._stop_writing()
        # What it said before is still in the socket. Bounded, since a process that got away could write for ever.
        for _ in range(64):
            if not self._receive():
                break
        if self._task is not None and not (self._events and isinstance(self._events[-1], Finished | Failed)):
            self._events.append(self._obituary(status, was_crowded))
        self._notify()

    def close(self) -> None:
        """Let go of the descriptors."""
        self._loop.remove_reader(self._socket)
        self._stop_writing()
        self._socket.close()
        self._out.close()
        self._err.close()
        for timer in (self._cancelling, self._lost):
            if timer is not None:
                timer.cancel()

    # --- one task ------------------------------------------------------------------------------------------------

    def _begin(self, task: Task) -> None:
        self._task = task
        self.has_run = True
        self._started = self._loop.time()
        limits = [limit for limit in (task.wall_s, self._pool.limits.wall_s) if limit > 0]
        self._deadline = self._started + min(limits) if limits else 0.0
        self._events.clear()
        self._queued = 0
        self._pool.watch()

    def _without_known(self, task: Task) -> Task:
        changes: dict[str, Any] = {}
        for name, version, handler in (
            ("handler", task.handler_version, task.handler),
            ("combiner", task.combiner_version, task.combiner),
        ):
            if handler is None:
                continue
            if version in self._known:
                changes[name] = None
                continue
            self._known[version] = None
            if len(self._known) > CACHED_HANDLERS:
                del self._known[next(iter(self._known))]
        return msgspec.structs.replace(task, **changes) if changes else task

    def _end(self, event: Finished | Failed) -> Finished | Failed:
        self._task = None
        if self._cancelling is not None:
            self._cancelling.cancel()
            self._cancelling = None
        if event.fatal or not self.is_usable:
            self.kill("HandlerKilled", "It is replaced.")
        event = msgspec.structs.replace(event, stdout=self._out.take(), stderr=self._err.take())
        if self._is_gone:
            self.close()
        return event

    def _obituary(self, status: int | None, was_crowded: bool) -> Failed:
        name, message = "HandlerKilled", "The process that runners come from was ended."
        if self._why is not None:
            name, message = self._why
        elif was_crowded:
            message = f"The handler started more than the {self._pool.limits.processes} processes that it may."
        elif status is not None and os.WIFEXITED(status):
            name = "HandlerExited"
            message = f"The handler ended its process with exit code {os.WEXITSTATUS(status)}."
        elif status is not None:
            number = os.WTERMSIG(status)
            message = f"The handler's process was ended by {_signal_name(number)}."
            if number == signal.SIGXCPU:
                name = "HandlerTimeout"
                message = f"The handler used more than the {self._pool.limits.cpu_s:g} s of processor time that it may."
            elif number == signal.SIGKILL:
                message += " Nobody here sent it; the kernel does when the machine is out of memory."
        assert self._task is not None
        return Failed(
            exception_type=name,
            exception_message=message,
            traceback="",
            stdout="",
            stderr="",
            fatal=True,
            task_id=self._task.task_id,
        )

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the socket ----------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._receive()
        if self._events:
            self._notify()
            if self._queued > _QUEUED_BYTES and not self._is_paused:
                self._is_paused = True
                self._loop.remove_reader(self._socket)

    def _receive(self) -> bool:
        """One read. False: nothing more comes, for now or for ever."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            if not self._is_gone:
                # Either the process is about to end by itself, or it let go of its socket.
                self.is_usable = False
                what = "The handler closed the runner's own channel."
                self._lost = self._loop.call_later(LOST_GRACE_S, self.kill, "HandlerContractError", what)
            return False
        self._buffer += data
        try:
            self._decode()
        except (msgspec.DecodeError, ValueError) as error:
            self._buffer.clear()
            self._loop.remove_reader(self._socket)
            self.kill("HandlerContractError", f"The handler wrote to the runner's own channel: {error}")
            return False
        self._queued += len(data)
        return True

    def _decode(self) -> None:
        position = 0
        buffer = self._buffer
        while len(buffer) - position >= 4:
            size = int.from_bytes(buffer[position : position + 4], "big")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes is too large")
            end = position + 4 + size
            if len(buffer) < end:
                break
            event = _decode_event(buffer[position + 4 : end])
            position = end
            if self._task is None:
                raise ValueError("there was no task")
            if self._events and isinstance(self._events[-1], Finished | Failed):
                raise ValueError("something came after the end")
            if isinstance(event, Finished | Failed) and event.task_id != self._task.task_id:
                raise ValueError(f"the end of task {event.task_id} came in task {self._task.task_id}")
            self._events.append(event)
        if position:
            del buffer[:position]

    def _send(self) -> None:
        """Send as much as the socket takes; the rest when it takes more."""
        try:
            while True:
                if not self._unsent:
                    self._unsent = memoryview(next(self._outgoing, b""))
                    if not self._unsent:
                        self._stop_writing()
                        return
                sent = self._socket.send(self._unsent)
                self._unsent = self._unsent[sent:]
        except BlockingIOError:
            if not self._is_writing:
                self._is_writing = True
                self._loop.add_writer(self._socket, self._send)
        except OSError:
            # It is ending; the zygote tells how.
            self._stop_writing()

    def _stop_writing(self) -> None:
        self._outgoing = iter(())
        self._unsent = memoryview(b"")
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._socket)


class RunnerPool:
    """``size`` warm runners.

    ``scope_factory`` is the dotted name of a :class:`mr.handlers.scope.ScopeFactory`.
    """

    def __init__(self, size: int, limits: Limits | None = None, scope_factory: str | None = None) -> None:
        self.size = size
        self.limits = limits or Limits()
        self._scope_factory = scope_factory
        self.loop: asyncio.AbstractEventLoop
        self._runners: dict[int, Runner] = {}
        self._idle: list[Runner] = []
        self._waiters: deque[asyncio.Future[Runner]] = deque()
        self._count = 0
        self._zygote: _ZygoteProcess | None = None
        self._is_closing = False
        self._ticking: asyncio.TimerHandle | None = None
        self._is_watching = False
        self._restarting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the zygote and all runners.

        :raises RunnerBroken: they cannot be started.
        :raises InvalidConfig: there is no such scope factory.
        """
        self.loop = asyncio.get_running_loop()
        try:
            await self._start_zygote()
            for _ in range(self.size):
                self._spawn()
        except BaseException:
            await self.close()
            raise

    async def acquire(self) -> Runner:
        """A runner that has nothing to do, the one that was used last; waits for one to become free.

        :raises RunnerBroken: the pool is closed, or runners cannot be started.
        """
        if self._is_closing or (self._zygote is None and self._restarting is None):
            raise RunnerBroken("The pool of runners is not open.")
        while self._idle:
            runner = self._idle.pop()
            if runner.is_usable:
                return runner
        waiter: asyncio.Future[Runner] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def release(self, runner: Runner) -> None:
        """Give a runner back. It is replaced if its last task spoiled it."""
        if not runner.is_usable or self._runners.get(runner.runner_id) is not runner:
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(runner)
                return
        self._idle.append(runner)

    async def close(self) -> None:
        """End all runners, whatever they do, and the zygote; runs in progress fail with ``HandlerKilled``."""
        self._is_closing = True
        if self._ticking is not None:
            self._ticking.cancel()
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        for runner in self._runners.values():
            runner.kill("HandlerKilled", "The worker stopped.")
        self._fail_waiters("The pool of runners was closed.")
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None
        self._forget_all()

    # --- for runners ---------------------------------------------------------------------------------------------

    def order(self, order: zygote.Order) -> None:
        """Tell the zygote, if there is one."""
        if self._zygote is not None:
            self._zygote.send(order)

    def watch(self) -> None:
        """A task began: look at running tasks from time to time."""
        if self._ticking is None and not self._is_closing:
            self._ticking = self.loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = self.loop.time()
        running = [runner for runner in self._runners.values() if runner._task is not None]
        # Every runner is to be checked, so no any() over a generator here.
        is_watching = any([runner.check(now) for runner in running])
        if is_watching != self._is_watching:
            self._is_watching = is_watching
            self.order(zygote.Watch(is_watching))
        self._ticking = self.loop.call_later(_TICK_S, self._tick) if running and not self._is_closing else None

    # --- starting and replacing ----------------------------------------------------------------------------------

    async def _start_zygote(self) -> None:
        each = RunnerSettings(
            memory_bytes=self.limits.memory_bytes,
            cpu_s=self.limits.cpu_s,
            open_files=self.limits.open_files,
            scope_factory=self._scope_factory,
        )
        process = _ZygoteProcess(self.loop, self._noticed, self._zygote_lost)
        problem = await process.start(zygote.Settings(each, self.limits.processes))
        if problem:
            await process.close()
            raise InvalidConfig(problem)
        self._zygote = process
        self._is_watching = False

    def _spawn(self) -> None:
        assert self._zygote is not None
        self._count += 1
        runner = Runner(self, self._count)
        self._runners[runner.runner_id] = runner
        directory = os.path.join(self._zygote.directory, str(runner.runner_id))
        self._zygote.send(zygote.Fork(runner.runner_id, directory), runner.fds)

    def _noticed(self, notice: zygote.Notice) -> None:
        if isinstance(notice, zygote.Forked):
            runner = self._runners.get(notice.runner_id)
            if runner is not None:
                runner.process = notice.process
                self.release(runner)
        elif isinstance(notice, zygote.Exited):
            runner = self._runners.pop(notice.runner_id, None)
            if runner is None:
                return
            runner.exited(notice.status, notice.was_crowded)
            self._retire(runner)
            # One that never ran anything says that something is wrong here; not to try again as fast as possible.
            self.loop.call_later(0.0 if runner.has_run else _RESPAWN_S, self._replace)

    def _replace(self) -> None:
        if not self._is_closing and self._zygote is not None and len(self._runners) < self.size:
            self._spawn()

    def _retire(self, runner: Runner) -> None:
        if runner in self._idle:
            self._idle.remove(runner)
        # Its task may not have read all events yet; those are in memory, but what it printed is in the pipes.
        if runner._task is None:
            runner.close()

    def _zygote_lost(self) -> None:
        """The zygote is gone, and with it, by the kernel's doing, all runners."""
        process, self._zygote = self._zygote, None
        for runner in self._runners.values():
            # What they started has nobody else now who would end it.
            if runner.process:
                kill_group(runner.process)
        self._forget_all()
        if process is not None and not self._is_closing:
            process.discard()
            self._restarting = self.loop.create_task(self._restart())

    async def _restart(self) -> None:
        while True:
            try:
                await self._start_zygote()
            except (RunnerBroken, InvalidConfig, OSError) as error:
                self._fail_waiters(f"Runners cannot be started: {error}")
                await asyncio.sleep(1.0)
                continue
            for _ in range(self.size):
                self._spawn()
            self._restarting = None
            return

    def _forget_all(self) -> None:
        runners, self._runners = list(self._runners.values()), {}
        self._idle.clear()
        for runner in runners:
            runner.exited(None, False)
            self._retire(runner)

    def _fail_waiters(self, message: str) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(RunnerBroken(message))


class _ZygoteProcess:
    """The worker's side of the zygote."""

    def __init__(self, loop: asyncio.AbstractEventLoop, noticed: Any, lost: Any) -> None:
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

    def discard(self) -> None:
        self._is_open = False
        self._loop.remove_reader(self._control)
        self._control.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _frames(task: Task, inputs: Sequence[bytes]) -> Iterator[bytes]:
    """What a task is sent as: frames in blocks of some size, made one by one as the socket takes them."""
    block = _frame(task)
    items: list[bytes] = []
    size = 0
    for item in inputs:
        items.append(item)
        size += len(item)
        if size >= _INPUT_FRAME_BYTES:
            yield block + _frame(Input(items=items, last=False))
            block, items, size = b"", [], 0
    yield block + _frame(Input(items=items, last=True))


def _frame(message: Task | Input) -> bytes:
    body = _encode(message)
    return len(body).to_bytes(4, "big") + body


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
