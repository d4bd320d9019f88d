"""A runner: a process that runs one handler after another for its worker.

It is forked by the zygote (see :mod:`mr.handlers.zygote`), speaks :mod:`mr.handlers.protocol` on a socket, and prints
to two pipes that the worker reads. Between two tasks it puts back what a handler may have changed in the process; where
it cannot, it says that it is of no use any more.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from mr.errors import RunnerBroken
from mr.handlers.compiler import MAX_PAIR_BYTES, Context, HandlerContractError, Output, Session, brief, compile_handler
from mr.handlers.processors.base import Program
from mr.handlers.protocol import Children, Direction, Failed, Finished, Input, Task, Told
from mr.handlers.protocol import Output as OutputFrame
from mr.handlers.runner_state import RunnerState
from mr.handlers.scope import ScopeFactory, load_scope_factory, standard_scope
from mr.handlers.shared_files import SharedFiles
from mr.handlers.tracebacks import handler_traceback, shortened
from mr.model import pairs
from mr.model.entities import Handler

PIECE_BYTES = 64 * 1024
PIECE_PAIRS = 256
CACHED_HANDLERS = 64
"""How many handler versions a runner keeps, oldest out first. Its pool counts along."""

MAX_MESSAGE_CHARACTERS = 16 * 1024
MAX_TOLD = 100
"""How many messages of an attempt others are told of."""

CANCEL_SIGNAL = signal.SIGUSR1

_UNCHANGING = (str, int, float, type(None))


class RunnerSettings(msgspec.Struct, frozen=True):
    """What a runner is started with. Limits of 0 are none."""

    memory_bytes: int
    cpu_s: float
    open_files: int
    scope_factory: str | None
    fs_url: str = ""


class Channel:
    """The runner's end of the socket."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._owner = os.getpid()
        self._sending = threading.Lock()
        self._received = bytearray()
        self._frames: list[bytes] = []
        self._size = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Task | Input)

    def receive(self) -> Task | Input:
        """:raises EOFError: the worker is gone."""
        self._fill(4)
        size = int.from_bytes(self._received[:4], "big")
        self._fill(4 + size)
        frame: Task | Input = self._decoder.decode(memoryview(self._received)[4 : 4 + size])
        if len(self._received) == 4 + size:
            self._received = bytearray()
        else:
            self._received = self._received[4 + size :]
        return frame

    def _fill(self, size: int) -> None:
        while len(self._received) < size:
            data = self._socket.recv(max(PIECE_BYTES, min(size - len(self._received), 1 << 20)))
            if not data:
                raise EOFError
            self._received += data

    def put(self, frame: Direction | Children | OutputFrame | Told | Finished | Failed) -> None:
        """Send a frame with the next flush; there is one once they are large."""
        body = self._encoder.encode(frame)
        self._frames += (len(body).to_bytes(4, "big"), body)
        self._size += len(body)
        if self._size >= PIECE_BYTES:
            self.flush()

    @property
    def is_forked(self) -> bool:
        """Whether this is a child that a handler forked."""
        return os.getpid() != self._owner

    def leave_if_forked(self) -> None:
        """End a child that a handler forked and that came back from it."""
        if self.is_forked:
            os._exit(0)

    def flush(self) -> None:
        self.leave_if_forked()
        try:
            # Threads of a handler may log.
            with self._sending:
                frames, self._frames, self._size = self._frames, [], 0
                self._socket.sendall(b"".join(frames))
        except OSError:
            # Without its channel a runner has nobody to tell; its worker sees that, says why and kills it.
            time.sleep(5)
            os._exit(1)

    def drop(self) -> None:
        """Forget what was put and not yet sent."""
        self._frames, self._size = [], 0

    def abandon(self) -> None:
        """In a forked child: let go of the socket."""
        self._socket.close()


class Runner:
    def __init__(self, channel: Channel, settings: RunnerSettings) -> None:
        self._channel = channel
        self._settings = settings
        self._handlers: dict[str, Handler] = {}
        self._programs: dict[str, Program] = {}
        self._standard = standard_scope(self._tell)
        self._told = 0
        self._handler_name = ""
        self._files = SharedFiles(settings.fs_url)
        self._factory: ScopeFactory | None = None
        self._is_cancelled = False
        signal.signal(CANCEL_SIGNAL, self._cancel)
        os.register_at_fork(after_in_child=channel.abandon)
        self._state = RunnerState(settings.memory_bytes, settings.cpu_s)

    def serve(self) -> None:
        """Run tasks until the worker is gone."""
        while True:
            try:
                task = self._channel.receive()
            except EOFError:
                return
            assert isinstance(task, Task)
            self._serve_one(task)

    def _serve_one(self, task: Task) -> None:
        self._is_cancelled = False
        self._told = 0
        self._handler_name = task.handler_name
        self._state.open()
        failure: Failed | None = None
        session = Session(b"", False)
        try:
            try:
                items = self._items()
                session = Session(task.session, task.kind == "map")
                self._remember(task)
                if task.kind == "map":
                    self._map(task, items, session)
                else:
                    self._reduce(task, items, session)
                self._files.close()
            except MemoryError as error:
                self._state.give_room()
                self._files.abandon()
                failure = self._out_of_memory(task, error)
            except EOFError:
                raise
            except BaseException as error:
                # Before the error, and with it the handler's variables, is gone: then files would close themselves.
                self._files.abandon()
                failure = _failed(task, error)
            session_text = session.text() if task.kind == "map" and failure is None else b"{}"
            if len(session_text) > MAX_PAIR_BYTES:
                what = f"The session has {len(session_text)} bytes as JSON; at most {MAX_PAIR_BYTES} are allowed."
                program = self._programs[task.handler_version]
                failure = _failed(task, HandlerContractError(program.path, program.line, program.name, what))
        except EOFError:
            os._exit(0)
        self._channel.leave_if_forked()
        is_clean = self._state.tidy()
        if failure is None:
            self._channel.put(
                Finished(session=session_text, stdout="", stderr="", fatal=not is_clean, task_id=task.task_id)
            )
        else:
            failure = msgspec.structs.replace(failure, handler_name=self._handler_name)
            self._channel.drop()
            self._channel.put(failure if is_clean else msgspec.structs.replace(failure, fatal=True))
        self._channel.flush()
        self._state.idle()

    def _items(self) -> list[bytes]:
        items: list[bytes] = []
        while True:
            frame = self._channel.receive()
            assert isinstance(frame, Input)
            items += frame.items
            if frame.last:
                return items

    def _out_of_memory(self, task: Task, error: MemoryError) -> Failed:
        told = handler_traceback(error)
        limit = self._settings.memory_bytes
        error.__traceback__ = None
        message = "The handler needed more memory than there is."
        if limit:
            message = f"The handler needed more than its {limit} bytes of memory."
        return Failed(
            exception_type="HandlerOutOfMemory",
            exception_message=message,
            traceback=told,
            stdout="",
            stderr="",
            fatal=True,
            task_id=task.task_id,
        )

    def _tell(self, channel: str, level: str, text: str) -> None:
        """Says at once what the handler wants others to know. What a child of its process says is only printed."""
        if self._channel.is_forked:
            return
        self._told += 1
        if self._told <= MAX_TOLD:
            told = shortened(_clean(text), MAX_MESSAGE_CHARACTERS)
            self._channel.put(Told(channel=channel, level=level, text=told, handler_name=self._handler_name))
            self._channel.flush()
        elif self._told == MAX_TOLD + 1:
            print(f"WARNING: others are told of {MAX_TOLD} messages of an attempt, not of more.", file=sys.stderr)

    # --- handlers --------------------------------------------------------------------------------------------

    def _remember(self, task: Task) -> None:
        for version, handler in ((task.handler_version, task.handler), (task.combiner_version, task.combiner)):
            if handler is not None:
                self._handlers[version] = handler
                if len(self._handlers) > CACHED_HANDLERS:
                    oldest = next(iter(self._handlers))
                    del self._handlers[oldest]
                    self._programs.pop(oldest, None)

    def _program(self, version: str) -> tuple[Handler, Program]:
        try:
            handler = self._handlers[version]
        except KeyError:
            raise RunnerBroken(f"Version {version!r} of a handler was not sent, and is not known here.") from None
        program = self._programs.get(version)
        if program is None:
            program = self._programs[version] = compile_handler(handler)
        return handler, program

    def _start(self, task: Task, version: str, session: Session, items: Any) -> Output:
        """Begin running a handler over an iterable."""
        handler, program = self._program(version)
        self._handler_name = handler.handler_name
        context = Context(task, handler.handler_name, session, lambda: self._is_cancelled)
        files = {"FS": self._files.of(task.workflow_name, task.request_id)}
        scope = {**self._standard, **context.scope(), **files, **self._added(task, handler)}
        is_lazy = bool(handler.argument_spec) and handler.argument_spec[0].type == "iterator"
        return Output(program, scope, iter(items) if is_lazy else list(items))

    def _added(self, task: Task, handler: Handler) -> dict[str, Any]:
        if self._settings.scope_factory is None:
            return {}
        if self._factory is None:
            self._factory = load_scope_factory(self._settings.scope_factory)()
        return dict(self._factory.get_scope(task.workflow_name, handler.handler_name))

    def _map(self, task: Task, items: list[bytes], session: Session) -> None:
        output = self._start(task, task.handler_version, session, _arguments(items))
        try:
            step_name = output.direction()
            if step_name is not None:
                self._channel.put(Direction(step_name=step_name))
                self._put_children(output)
                return
            self._channel.put(Direction(step_name=""))
            if task.combiner_version:
                self._combine(task, output, session)
            else:
                self._put_output(_grouped(output))
        except HandlerContractError:
            self._files.abandon()
            output.close()
            raise

    def _combine(self, task: Task, output: Output, session: Session) -> None:
        groups: pairs.Groups[Any] = pairs.Groups()
        for key, value in output.pairs():
            try:
                # A value that can be changed is kept as it was when it was yielded.
                text = pairs.value_text(value)
                groups.add(key, value if isinstance(value, _UNCHANGING) else pairs.parse_json(text))
            except pairs.InvalidPair as error:
                raise output.error(str(error)) from None
        self._apply(task, task.combiner_version, session, groups)

    def _reduce(self, task: Task, items: list[bytes], session: Session) -> None:
        groups: pairs.Groups[Any] = pairs.Groups(task.partition, task.partitions)
        for key, value in _arguments(items):
            groups.add(key, value)
        self._apply(task, task.handler_version, session, groups)

    def _apply(self, task: Task, version: str, session: Session, groups: pairs.Groups[Any]) -> None:
        results = ((group.key, group.values) for group in groups.ordered())
        output = self._start(task, version, session, results)
        try:
            self._put_output(f"[{key},{value}]" for key, value in output.texts())
        except HandlerContractError:
            self._files.abandon()
            output.close()
            raise

    # --- output ------------------------------------------------------------------------------------------------

    def _put_children(self, output: Output) -> None:
        piece: list[bytes] = []
        size = 0
        for key, value in output.texts():
            text = f"[{key},{value}]".encode()
            if piece and (len(piece) == PIECE_PAIRS or size + len(text) > PIECE_BYTES):
                self._channel.put(Children(pairs=piece))
                piece, size = [], 0
            piece.append(text)
            size += len(text)
        if piece:
            self._channel.put(Children(pairs=piece))

    def _put_output(self, texts: Iterator[str]) -> None:
        piece: list[bytes] = []
        size = 2
        for text in texts:
            encoded = text.encode()
            if piece and size + len(encoded) + 1 > PIECE_BYTES:
                self._channel.put(OutputFrame(pairs=b"[%b]" % b",".join(piece), count=len(piece)))
                piece, size = [], 2
            piece.append(encoded)
            size += len(encoded) + 1
        if piece:
            self._channel.put(OutputFrame(pairs=b"[%b]" % b",".join(piece), count=len(piece)))

    def _cancel(self, number: int, frame: object) -> None:
        self._is_cancelled = True


def _arguments(items: list[bytes]) -> Iterator[tuple[Any, Any]]:
    for item in items:
        yield from pairs.parse_pairs(item)


def _grouped(output: Output) -> Iterator[str]:
    """What the default combiner does: all pairs stay, and stand in the order of groups."""
    groups: pairs.Groups[str] = pairs.Groups()
    for key, value in output.pairs():
        try:
            text = pairs.value_text(value)
            groups.add(key, text)
        except pairs.InvalidPair as error:
            raise output.error(str(error)) from None
        if len(text) > PIECE_BYTES:
            output.check_size((pairs.key_text(key), text))
    for group in groups.ordered():
        for text in group.values:
            yield f"[{group.text},{text}]"


def _failed(task: Task, error: BaseException) -> Failed:
    """What to tell of an exception."""
    told = handler_traceback(error)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        name = "HandlerExited"
        message = f"The handler called sys.exit({'' if error.code is None else brief(error.code)}): exit code {code}."
    else:
        name = type(error).__name__
        try:
            message = str(error)
        except Exception as failure:
            message = f"(no message: its __str__ raised {type(failure).__name__})"
    return Failed(
        exception_type=_clean(name),
        exception_message=shortened(_clean(message), MAX_MESSAGE_CHARACTERS),
        traceback=_clean(told),
        stdout="",
        stderr="",
        task_id=task.task_id,
    )


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which no frame can carry."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def main(fd: int, settings: RunnerSettings) -> None:
    """The life of a runner, from the fork on."""
    Runner(Channel(fd), settings).serve()
