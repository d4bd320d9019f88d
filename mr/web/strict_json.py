"""JSON as it is meant: whatever two readers could take differently is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from mr.errors import InvalidInput

MAX_NESTING = 200
"""How deep lists and objects may stand in each other."""

_STRING = re.compile(rb'"[^"]*"')
_UNSTRUCTURAL = bytes(set(range(256)) - set(b'"[]{}'))


def parse(text: bytes, what: str = "The body") -> Any:
    """What the text says; ``what`` names it in messages.

    :raises InvalidInput: it is no UTF-8 or no JSON, has NaN, an infinity, half a surrogate pair or a name twice in one
        object, or is nested more than :data:`MAX_NESTING` deep.
    """
    if _nesting_exceeds(text, MAX_NESTING):
        raise InvalidInput(f"{what} is nested more than {MAX_NESTING} deep.")
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{what} is not UTF-8: {error.reason} at byte {error.start}.") from None
    try:
        value = _decode(decoded)
    except ValueError as error:
        raise InvalidInput(f"{what} is not JSON: {error}") from None
    except RecursionError:
        raise InvalidInput(f"{what} is nested too deeply.") from None
    # A pair of escapes makes one character, half of a pair is none: only escapes can do that in UTF-8.
    if b"\\u" in text:
        _check_surrogates(value, what)
    return value


def _nesting_exceeds(text: bytes, limit: int) -> bool:
    """Looks before the parser recurses. Costs next to nothing while there are few brackets."""
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    structure = text.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _UNSTRUCTURAL)
    depth = 0
    for byte in _STRING.sub(b"", structure):
        if byte in b"[{":
            depth += 1
            if depth > limit:
                return True
        elif byte in b"]}":
            depth -= 1
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite).decode


def _check_surrogates(value: Any, what: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} has half of a surrogate pair in it, which is no character.") from None
