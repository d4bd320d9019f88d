"""From a handler's source to its output, pair by pair. Runs inside a runner."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

from mr.errors import JobxError
from mr.handlers.processors.base import Processor, Program
from mr.handlers.processors.python import PythonProcessor
from mr.handlers.protocol import Task
from mr.handlers.scope import MrConfigureToMap, MrConfigureToReturn
from mr.model import pairs
from mr.model.entities import Handler

MAX_PAIR_BYTES = 16 * 1024 * 1024
"""The longest JSON text of one pair, and of one session."""

_processors: dict[str, Processor] = {"python": PythonProcessor()}


class HandlerContractError(JobxError):
    """A handler did something that handlers may not; the message names file, line and what came."""

    slug = "handler-contract"
    # So that tracebacks name it as it is known, without where it is defined.
    __module__ = "builtins"

    def __init__(self, path: str, line: int, name: str, what: str) -> None:
        super().__init__(f"{path}:{line}: {what}")
        self.place = (path, line, name)


def compile_handler(handler: Handler) -> Program:
    """:raises InvalidHandler: its source is wrong, or of a type that this worker does not run."""
    processor = _processors.get(handler.source_type)
    if processor is None:
        raise HandlerContractError(
            handler.path or handler.handler_name,
            1,
            handler.handler_type,
            f"Handlers of source type {handler.source_type!r} cannot be run; known are {', '.join(_processors)}.",
        )
    return processor.compile(handler)


# --- what it puts out ------------------------------------------------------------------------------------------


class Output:
    """What a handler yields, and where it stands."""

    def __init__(self, program: Program, scope: Mapping[str, Any], argument: Any) -> None:
        self._program = program
        self._generator: GeneratorType[Any, Any, Any] | None = None
        self.is_returned = False
        """What comes now was returned, as a list or the like, and not yielded."""
        self._items = self._run(scope, argument)

    def __iter__(self) -> Iterator[Any]:
        return self._items

    def _run(self, scope: Mapping[str, Any], argument: Any) -> Iterator[Any]:
        result = self._program.start(scope, argument)
        while isinstance(result, GeneratorType):
            self._generator = result
            result = yield from result
        if result is None:
            return
        if isinstance(result, str | bytes | Mapping):
            hint = "Return its .items()." if isinstance(result, Mapping) else ""
            raise self.error(f"A handler may return pairs, and this one returned a {type(result).__name__}. {hint}")
        try:
            items = iter(result)
        except TypeError:
            raise self.error(f"A handler may return pairs, and this one returned {brief(result)}.") from None
        self.is_returned = isinstance(result, list | tuple | set | frozenset)
        self._generator = None
        yield from items

    def line(self) -> int:
        """The line of the yield that the handler waits in, as far as it can be told."""
        line = self._program.line
        inner: Any = self._generator
        while isinstance(inner, GeneratorType) and inner.gi_frame is not None:
            if inner.gi_frame.f_code.co_filename == self._program.path:
                line = inner.gi_frame.f_lineno
            inner = inner.gi_yieldfrom
        return line

    def error(self, what: str) -> HandlerContractError:
        return HandlerContractError(self._program.path, self.line(), self._program.name, what)

    def direction(self) -> str | None:
        """The mapper's first yield: the step to map to, or None to return. To be called once, before anything else.

        :raises HandlerContractError: it is neither of the two.
        """
        nothing = object()
        first = next(self._items, nothing)
        if isinstance(first, MrConfigureToMap):
            return first.step_name
        if isinstance(first, MrConfigureToReturn):
            return None
        if self.is_returned:
            # A list that was returned as a whole is data, and needs no word on where it goes.
            if first is not nothing:
                self._items = _chained(first, self._items)
            return None
        wanted = "A mapper's first yield has to be MrConfigureToMap(STEP) or MrConfigureToReturn()"
        if first is nothing:
            raise self.error(f"{wanted}; this one yielded nothing.")
        raise self.error(f"{wanted}; this one yielded {brief(first)}.")

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """:raises HandlerContractError: something is no pair."""
        for item in self._items:
            if (type(item) is tuple or isinstance(item, tuple | list)) and len(item) == 2:
                yield item[0], item[1]
            else:
                raise self.error(self._not_a_pair(item))

    def texts(self) -> Iterator[tuple[str, str]]:
        """Each pair as the JSON texts of its key and its value.

        :raises HandlerContractError: something is no pair, or its key or value cannot be written as JSON.
        """
        for key, value in self.pairs():
            try:
                texts = pairs.key_text(key), pairs.value_text(value)
            except pairs.InvalidPair as error:
                raise self.error(str(error)) from None
            if len(texts[0]) + len(texts[1]) > MAX_PAIR_BYTES // 4:
                self.check_size(texts)
            yield texts

    def check_size(self, texts: tuple[str, str]) -> None:
        size = sum(len(text.encode()) for text in texts)
        if size > MAX_PAIR_BYTES:
            raise self.error(f"A pair has {size} bytes as JSON; at most {MAX_PAIR_BYTES} are allowed.")

    def close(self) -> None:
        """Let the handler's ``finally`` blocks run. What they raise is of no interest any more."""
        if self._generator is not None:
            try:
                self._generator.close()
            except Exception:
                return

    def _not_a_pair(self, item: Any) -> str:
        if isinstance(item, MrConfigureToMap | MrConfigureToReturn):
            if self._program.name == "mapper":
                return f"{item!r} came a second time; a mapper says once, with its first yield, which way it goes."
            return f"{item!r} is for mappers; a {self._program.name} yields pairs."
        return f"A handler yields pairs (key, value); this one yielded {brief(item)}."


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def brief(thing: object) -> str:
    """A thing and its type, on one short line."""
    try:
        text = repr(thing)
    except Exception:
        text = "something without a repr()"
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"{text if len(text) <= 200 else text[:199] + '…'} ({type(thing).__name__})"


# --- what it can ask for -----------------------------------------------------------------------------------------


class Session:
    """The private namespace of a map invocation: names to JSON values."""

    def __init__(self, text: bytes, is_writable: bool) -> None:
        self._texts: dict[str, str] = {}
        if len(text) > 2:
            self._texts = {name: pairs.value_text(value) for name, value in pairs.parse_json(text).items()}
        self._is_writable = is_writable

    def get(self, name: str, *default: Any) -> Any:
        """A copy of the value. :raises KeyError: there is none, and no default was given."""
        try:
            text = self._texts[name]
        except KeyError:
            if default:
                return default[0]
            raise KeyError(f"{name!r} is not in the session; it has {self.list()}") from None
        return pairs.parse_json(text)

    def set(self, name: str, value: Any) -> None:
        """:raises HandlerContractError: in a reducer, or the value is not JSON."""
        if not self._is_writable:
            raise _at_caller("The session belongs to the mapper and its combiner; a reducer can only read it.")
        if not isinstance(name, str):
            raise _at_caller(f"A name in the session is a string, not {brief(name)}.")
        try:
            text = pairs.value_text(value)
            pairs.value_text(name)
        except pairs.InvalidPair as error:
            raise _at_caller(str(error)) from None
        if len(text) > MAX_PAIR_BYTES // 4 and len(text.encode()) > MAX_PAIR_BYTES:
            raise _at_caller(f"The value of {name!r} is over the session's limit of {MAX_PAIR_BYTES} bytes.")
        self._texts[name] = text

    def list(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._texts)

    def text(self) -> bytes:
        """JSON text of an object."""
        named = [f"{pairs.value_text(name)}:{text}" for name, text in self._texts.items()]
        return f"{{{','.join(named)}}}".encode()


def _at_caller(what: str) -> HandlerContractError:
    """The error, placed where the handler called."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename not in linecache.cache:
        frame = frame.f_back
    return HandlerContractError(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, what)


class Context:
    """``ctx``: what a handler can know of the invocation that it runs for, and its session."""

    def __init__(self, task: Task, handler_name: str, session: Session, cancelled: Callable[[], bool]) -> None:
        self.request_id = task.request_id
        self.invocation_id = task.invocation_id
        self.workflow_name = task.workflow_name
        self.handler_name = handler_name
        self.auxiliary: Any = None
        self.session_get = session.get
        self.session_set = session.set
        self.session_list = session.list
        self._cancelled = cancelled

    @property
    def is_cancelled(self) -> bool:
        """The request was cancelled: end soon, there is half a second left."""
        return self._cancelled()

    def scope(self) -> dict[str, Any]:
        """The globals that depend on the invocation."""
        return {"ctx": self, "S_GET": self.session_get, "S_SET": self.session_set, "S_LIST": self.session_list}
