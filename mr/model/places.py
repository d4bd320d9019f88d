"""Where a handler failed: the line of it that a traceback's text ends in."""

from __future__ import annotations

import re
from typing import NamedTuple

# Groups of exceptions are drawn with bars in front.
_FRAME = re.compile(r'^[ |+-]*File "([^"\n]+)", line (\d+)')


class Place(NamedTuple):
    """``path`` is the handler's own, as its workflow's directory has it; ``source_line`` may be empty."""

    path: str
    line: int
    source_line: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def place_of(traceback: str) -> Place | None:
    """The last line of a handler in the text of a traceback; None where it names none.

    Libraries, of which frames may follow, have absolute paths, and what was made of a string has none.
    """
    lines = traceback.splitlines()
    for index in range(len(lines) - 1, -1, -1):
        found = _FRAME.match(lines[index])
        if found is not None and not found[1].startswith(("/", "<")):
            return Place(found[1], int(found[2]), _source_line(lines, index))
    return None


def _source_line(lines: list[str], index: int) -> str:
    if index + 1 >= len(lines):
        return ""
    told, bare = (line.lstrip(" |+-") for line in (lines[index], lines[index + 1]))
    is_deeper = len(lines[index + 1]) - len(bare) > len(lines[index]) - len(told)
    return bare.strip() if is_deeper and not _FRAME.match(lines[index + 1]) else ""
