"""What handlers find among their globals."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mr.errors import InvalidConfig
from mr.handlers.tracebacks import handler_traceback


class ScopeFactory:
    """Base of classes that add globals to handlers.

    ``MR_WORKFLOW_SCOPE_FACTORY_FQ_CLASS`` is the dotted name of such a class. It is made once in every runner, without
    arguments, and asked before every run.
    """

    def get_scope(self, workflow_name: str, handler_name: str) -> Mapping[str, Any]:
        """The names to add for that handler, with their values."""
        return {}


def load_scope_factory(dotted_name: str) -> Callable[[], ScopeFactory]:
    """The class of that name, as ``package.module.Class``.

    :raises InvalidConfig: it cannot be imported, or has no ``get_scope``.
    """
    variable = "MR_WORKFLOW_SCOPE_FACTORY_FQ_CLASS"
    module_name, _, class_name = dotted_name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:
        raise InvalidConfig(f"{variable}: {dotted_name!r} cannot be loaded: {error!r}", variable) from error
    if not callable(getattr(found, "get_scope", None)):
        what = f"{dotted_name!r} has no method get_scope(workflow_name, handler_name)."
        raise InvalidConfig(f"{variable}: {what}", variable)
    factory: Callable[[], ScopeFactory] = found
    return factory


class MrConfigureToMap:
    """A mapper's first yield: each pair that follows becomes a child map invocation of ``step_name``."""

    def __init__(self, step_name: str) -> None:
        if not isinstance(step_name, str) or not step_name:
            raise TypeError(f"MrConfigureToMap takes the name of a step, not {step_name!r}")
        self.step_name = step_name

    def __repr__(self) -> str:
        return f"MrConfigureToMap({self.step_name!r})"


class MrConfigureToReturn:
    """A mapper's first yield: the pairs that follow are its data."""

    def __repr__(self) -> str:
        return "MrConfigureToReturn()"


Tell = Callable[[str, str, str], None]
"""Takes a channel's name, a level and a text."""

TOLD = ("NOTIFY", "EMAIL", "HTTP")
"""The loggers whose lines others are told of."""


class HandlerLog:
    """A logger whose lines become part of the invocation's stderr, and are handed to ``tell`` with their level."""

    def __init__(self, name: str, tell: Tell | None = None) -> None:
        self._name, self._tell = name, tell
        self._label = f" {name}" if name != "LOG" else ""

    def debug(self, message: object, *args: Any) -> None:
        self._write("DEBUG", message, args)

    def info(self, message: object, *args: Any) -> None:
        self._write("INFO", message, args)

    def warning(self, message: object, *args: Any) -> None:
        self._write("WARNING", message, args)

    warn = warning

    def error(self, message: object, *args: Any) -> None:
        self._write("ERROR", message, args)

    def critical(self, message: object, *args: Any) -> None:
        self._write("CRITICAL", message, args)

    def exception(self, message: object, *args: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        error = sys.exc_info()[1]
        self._write("ERROR", message, args, "" if error is None else handler_traceback(error))

    def _write(self, level: str, message: object, args: tuple[Any, ...], told: str = "") -> None:
        text = str(message)
        if args:
            try:
                text %= args[0] if len(args) == 1 and isinstance(args[0], Mapping) else args
            except (TypeError, ValueError, KeyError):
                # A wrong format string must not fail the work that it reports on.
                text = f"{text} {args!r}"
        text = f"{text}\n{told}" if told else text
        print(f"{level}{self._label}: {text}", file=sys.stderr)
        if self._tell is not None:
            self._tell(self._name, level, text)


def print_message(message: object = "", *more: object) -> None:
    """``PRINT``: a line of the invocation's stdout."""
    print(message, *more, flush=True)


def run_command(
    cmd: str | Sequence[str],
    input_data: str | bytes | None = None,
    success_code: int | None = 0,
    env: Mapping[str, str] | None = None,
) -> int:
    """``RUN``: run a program to its end and return its exit code (negative: the signal that ended it).

    A list is a program and its arguments, a string is for the shell. What it prints becomes part of the invocation's
    output. ``env`` adds to the environment. A code other than ``success_code`` is logged; None stands for any.
    """
    import subprocess

    sys.stdout.flush()
    sys.stderr.flush()
    done = subprocess.run(
        cmd if isinstance(cmd, str) else list(cmd),
        shell=isinstance(cmd, str),
        input=input_data.encode() if isinstance(input_data, str) else input_data,
        stdin=subprocess.DEVNULL if input_data is None else None,
        env={**os.environ, **env} if env is not None else None,
        check=False,
    )
    if success_code is not None and done.returncode != success_code:
        HandlerLog("RUN").error("%r ended with code %d, and %d is success.", cmd, done.returncode, success_code)
    return done.returncode


def standard_scope(tell: Tell | None = None) -> dict[str, Any]:
    """The names that every handler has and that are the same for all. ``tell`` is for what others are to be told."""
    return {
        "MrConfigureToMap": MrConfigureToMap,
        "MrConfigureToReturn": MrConfigureToReturn,
        "PRINT": print_message,
        "LOG": HandlerLog("LOG"),
        **{name: HandlerLog(name, tell) for name in TOLD},
        "RUN": run_command,
        "SEP": os.sep,
        "JOIN": os.path.join,
    }
