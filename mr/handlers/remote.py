"""A runner as its worker sees it. What it says is not trusted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Protocol

import msgspec

from mr.errors import RunnerBroken
from mr.handlers import zygote
from mr.handlers.compiler import MAX_PAIR_BYTES
from mr.handlers.limits import Limits
from mr.handlers.printed import Printed
from mr.handlers.protocol import Event, Failed, Finished, Input, Task
from mr.handlers.runner import CACHED_HANDLERS, CANCEL_SIGNAL

MAX_FRAME_BYTES = MAX_PAIR_BYTES + 256 * 1024
CANCEL_GRACE_S = 0.5
LOST_GRACE_S = 0.1
KILL_GRACE_S = 5.0
WATCHED_AFTER_S = 0.1

_READ_BYTES = 256 * 1024
_QUEUED_BYTES = 1024 * 1024
_INPUT_FRAME_BYTES = 256 * 1024

_encode = msgspec.msgpack.Encoder().encode
_decode_event = msgspec.msgpack.Decoder(Event).decode


class Pool(Protocol):
    """What a runner needs of the pool that it belongs to."""

    loop: asyncio.AbstractEventLoop
    limits: Limits

    def order(self, order: zygote.Order) -> None:
        """Tell the zygote, if there is one."""

    def watch(self) -> None:
        """A task began: have :meth:`Runner.check` called from time to time."""

    def give_up(self) -> None:
        """The zygote does not do what it is told: start all over."""


class Runner:
    """One runner process, held by whoever acquired it."""

    def __init__(self, pool: Pool, runner_id: int) -> None:
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
        self._overdue: asyncio.TimerHandle | None = None
        self._is_closed = False
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
            if self._overdue is None:
                self._overdue = self._loop.call_later(KILL_GRACE_S, self._pool.give_up)

    @property
    def is_running(self) -> bool:
        """It has a task whose end was not told yet."""
        return self._task is not None

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
        if self._overdue is not None:
            self._overdue.cancel()
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
        """Let go of the descriptors. May be repeated."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._socket)
        self._stop_writing()
        self._socket.close()
        self._out.close()
        self._err.close()
        for timer in (self._cancelling, self._lost, self._overdue):
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
        if was_crowded:
            message = f"The handler started more than the {self._pool.limits.processes} processes that it may."
        elif self._why is not None:
            name, message = self._why
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
