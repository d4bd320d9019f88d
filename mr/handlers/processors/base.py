"""What the platform needs to know of a language that handlers are written in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from mr.model.entities import Handler

HANDLER_TYPES = ("mapper", "combiner", "reducer")


class Inspection(NamedTuple):
    """What can be said of a source without running it.

    ``header`` is the text that carries the metadata, empty without one, and ``header_line`` the line of the file that
    it starts on. ``function`` is the one of mapper, combiner and reducer that the source defines, on ``line``; empty
    when the source is a body.
    """

    header: str
    header_line: int
    function: str
    line: int


class Program(ABC):
    """A handler that is ready to run, any number of times."""

    path: str
    """The file name in tracebacks."""

    line: int
    """Where the handler begins."""

    name: str
    """The function's name in tracebacks."""

    module_name = "handler"
    """What handlers' globals say that their module is."""

    @abstractmethod
    def start(self, scope: Mapping[str, Any], argument: Any) -> Any:
        """Call the handler with fresh globals, ``scope`` among them. It gives a generator, an iterable or None."""


class Processor(ABC):
    """One language."""

    source_type: str
    extensions: tuple[str, ...]

    @abstractmethod
    def inspect(self, source: str, path: str) -> Inspection:
        """Check the syntax and look for header and form; never runs anything.

        :raises InvalidHandler: with every problem as ``path:line: what``.
        """

    @abstractmethod
    def compile(self, handler: Handler) -> Program:
        """:raises InvalidHandler: as :meth:`inspect`."""
