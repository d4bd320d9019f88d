r"""The lines of a file of pairs: ``text``, ``jsonl`` and ``csv``.

``text`` is key, blank, value. Strings are as they are, but for what would break a line or a key: backslash, tab, line
feed and carriage return are ``\\``, ``\t``, ``\n`` and ``\r``, other control characters and line separators ``\uXXXX``,
and a blank in a key ``\s``. Everything else is JSON on one line, in keys without blanks. So the first blank of a line
ends its key. It cannot be told whether ``1`` was a number or a string: ``jsonl``, which is ``[key,value]``, keeps that.

``csv`` is RFC 4180 with a line of names, ``key,value``: strings as they are, everything else as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from mr.model.pairs import Key, key_text, pair_text, value_text


class Format(NamedTuple):
    """How pairs, or the values of one key, become lines, which end with their line break. ``names`` come first."""

    extension: str
    pair: Callable[[Key, Any], str]
    value: Callable[[Any], str]
    names_of_pair: str = ""
    names_of_value: str = ""


# --- text ---------------------------------------------------------------------------------------------------------

_SHORT = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_BREAKS = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BREAKS_OF_JSON = re.compile("[\x7f-\x9f\u2028\u2029]")
_SPACES = re.compile(r"[^\S ]")


def _unicode(char: str) -> str:
    return f"\\u{ord(char):04x}"


def _plain(text: str) -> str:
    return _BREAKS.sub(lambda found: _SHORT.get(found[0]) or _unicode(found[0]), text)


def _json(text: str) -> str:
    """The same JSON, on one line whatever one takes for the end of a line."""
    return _BREAKS_OF_JSON.sub(lambda found: _unicode(found[0]), text)


def _text_key(key: Key) -> str:
    if isinstance(key, str):
        return _SPACES.sub(lambda found: _unicode(found[0]), _plain(key)).replace(" ", "\\s")
    # In JSON without indentation blanks stand in strings only, where they may be written like that.
    return _json(_SPACES.sub(lambda found: _unicode(found[0]), key_text(key))).replace(" ", "\\u0020")


def _text_value(value: Any) -> str:
    return f"{_plain(value) if isinstance(value, str) else _json(value_text(value))}\n"


def _text_pair(key: Key, value: Any) -> str:
    return f"{_text_key(key)} {_text_value(value)}"


# --- csv ----------------------------------------------------------------------------------------------------------


# The standard library's writer, before Python 3.11, refuses a NUL.
_QUOTED = re.compile('[",\r\n]')


def _csv_cell(value: Any) -> str:
    text = value if isinstance(value, str) else value_text(value)
    return '"{}"'.format(text.replace('"', '""')) if _QUOTED.search(text) else text


def _csv_pair(key: Key, value: Any) -> str:
    return f"{_csv_cell(key)},{_csv_cell(value)}\r\n"


def _csv_value(value: Any) -> str:
    # A line with nothing on it would be none for many readers.
    return (_csv_cell(value) or '""') + "\r\n"


FORMATS = {
    "text": Format(".txt", _text_pair, _text_value),
    "jsonl": Format(".jsonl", lambda key, value: f"{pair_text(key, value)}\n", lambda value: f"{value_text(value)}\n"),
    "csv": Format(".csv", _csv_pair, _csv_value, "key,value\r\n", "value\r\n"),
}
