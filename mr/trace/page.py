"""Rich's output as a string, for terminals of any width and encoding, and for pipes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

UNBROKEN = "\ue000"
"""A blank at which no line ends. Rich would break at those of Unicode. Nobody else's text may hold this: see plain."""

_KEPT = re.compile("\ue001([0-9]+)\ue002")

_PIPE_WIDTH = 10_000
"""Wide enough that nothing is wrapped where nobody looks at a screen."""

_PLAINER = str.maketrans({"…": "...", "→": "->"})


class Page:
    """What is written on: so many columns wide (None: lines are not wrapped), in an encoding, with the escapes of a
    terminal if it is colored."""

    def __init__(self, width: int | None = None, *, is_colored: bool = False, encoding: str = "utf-8") -> None:
        self._width, self._is_colored, self._encoding = width, is_colored, encoding
        self._kept: list[str] = []

    def whole(self, text: str, style: str = "") -> Text:
        """Text that stays in one piece, however narrow the page is, so that it can be copied."""
        self._kept.append(text)
        return Text(f"\ue001{len(self._kept) - 1}\ue002", style=style)

    def write(self, parts: Sequence[RenderableType]) -> str:
        """These, one below the other, in characters that the encoding has."""
        out = _Paper(self._encoding)
        console = Console(
            file=out,
            width=self._width or _PIPE_WIDTH,
            force_terminal=self._is_colored,
            color_system="standard" if self._is_colored else None,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
            _environ={},
        )
        for part in parts:
            console.print(part)
        lines = (line.rstrip() for line in out.getvalue().splitlines())
        text = _KEPT.sub(lambda found: self._kept[int(found[1])], "\n".join(lines)).replace(UNBROKEN, " ")
        return encodable(text, self._encoding) + "\n"


class _Paper(io.StringIO):
    """Tells Rich which lines it may draw with."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def encodable(text: str, encoding: str) -> str:
    """The text in characters that can be written in that encoding; others as escapes."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAINER).encode(encoding, "backslashreplace").decode(encoding)
    return text


def plain(text: str) -> str:
    """Without characters that a terminal would obey: what handlers say is theirs, not the platform's."""
    # No line separators of Unicode either: they would break lines where nobody counts them.
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text.expandtabs(4))


def one_line(text: str, limit: int) -> str:
    joined = " ".join(plain(text[: 2 * limit]).split("\n"))
    return joined if len(joined) <= limit and len(text) <= 2 * limit else f"{joined[: limit - 1]}…"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
