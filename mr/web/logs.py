"""One line on standard error for each thing that is worth telling: prose, with fields as ``name=value`` at its end."""

from __future__ import annotations

import logging
import sys
import time
import traceback

_FRAMES = 12
"""How many frames of a traceback are told, the innermost ones."""


class OneLine(logging.Formatter):
    """``2026-01-31T12:00:00.000Z WARNING mr.web.front[PID] prose fields``, then an exception with its frames."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f" error={told(record.exc_info[1])!r}"
        plain = "".join(char if char.isprintable() else " " for char in text)
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname} {record.name}[{record.process}] {plain}"


def told(error: BaseException) -> str:
    """An exception and where it came from, innermost frame first."""
    frames = traceback.extract_tb(error.__traceback__)[: -_FRAMES - 1 : -1]
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error} at {places}"


def to_stderr(level: int = logging.INFO) -> None:
    """Has everything that is logged written to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
