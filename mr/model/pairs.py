"""Pairs of key and value: their JSON text, which keys are equal, the order of groups, and partitions.

A key is null, a boolean, a number, a string, or a list of keys. Two keys are equal when their canonical JSON text is
equal, so ``1``, ``1.0``, ``"1"`` and ``true`` are four keys. Groups come in one order: null, booleans (false first),
numbers by value, strings by code point, lists element by element; what is still a tie (``1`` and ``1.0``) goes by
canonical text. A value is any JSON.

Text here is strict JSON: no NaN, no infinity, no lone surrogates.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import Any, Generic, TypeVar

from mr.errors import InvalidInput

Key = Any
"""None, bool, int, float, str, or a list or tuple of keys."""

V = TypeVar("V")

_encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


class InvalidPair(InvalidInput):
    """A key or a value cannot be written as JSON, or text is no list of pairs."""

    slug = "invalid-pair"


# --- text ------------------------------------------------------------------------------------------------------


def value_text(value: Any) -> str:
    """Compact JSON text of any JSON value. Tuples are lists, and names that are numbers become strings, as in ``json``.

    :raises InvalidPair: it is, or holds, something that is not JSON; the message names what.
    """
    kind = type(value)
    if kind is int:
        return _integer_text(value)
    try:
        text = encode_basestring(value) if kind is str else _encode(value)
        if not text.isascii():
            text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidPair(_blame(value, error)) from None
    return text


def key_text(key: Key) -> str:
    """The canonical JSON text of a key: equal keys, and only they, have equal text.

    :raises InvalidPair: it is no key; the message names what came.
    """
    kind = type(key)
    if kind is not str and kind is not int:
        _check_key(key, key, 0)
    return value_text(key)


def pair_text(key: Key, value: Any) -> str:
    """JSON text of ``[key, value]``.

    :raises InvalidPair: see :func:`key_text` and :func:`value_text`.
    """
    return f"[{key_text(key)},{value_text(value)}]"


def pairs_text(pairs: Iterable[tuple[Key, Any]]) -> bytes:
    """JSON text of ``[[key, value], …]``.

    :raises InvalidPair: see :func:`key_text` and :func:`value_text`.
    """
    return f"[{','.join([pair_text(key, value) for key, value in pairs])}]".encode()


def parse_json(text: bytes | str) -> Any:
    """What strict JSON text says.

    :raises InvalidPair: it is not strict JSON.
    """
    try:
        return _decode(text.decode() if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise InvalidPair(f"This is not JSON: {error}") from None


def parse_pairs(text: bytes | str) -> list[tuple[Key, Any]]:
    """The pairs of ``[[key, value], …]``, with lists in keys handed over as tuples.

    :raises InvalidPair: it is not strict JSON, or something else than a list of pairs.
    """
    pairs = parse_json(text)
    try:
        return [(key if type(key) is not list else as_tuple(key), value) for key, value in pairs]
    except (ValueError, TypeError):
        raise InvalidPair("This is JSON, and not a list of [key, value] pairs.") from None


def as_tuple(key: Key) -> Key:
    """A key as handlers get it: lists are tuples, so that it can stand in a set or a dict."""
    return tuple([as_tuple(part) for part in key]) if isinstance(key, list | tuple) else key


# --- groups ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Group(Generic[V]):
    """A key, its canonical text, and the values that came under it, in order of arrival."""

    key: Key
    text: str
    values: list[V]


class Groups(Generic[V]):
    """Collects values under keys and gives them back in the one order of groups.

    With ``partitions`` > 1 it keeps only the keys of ``partition``.
    """

    def __init__(self, partition: int = 0, partitions: int = 1) -> None:
        self._groups: dict[str, Group[V] | None] = {}
        self._partition = partition
        self._partitions = partitions

    def add(self, key: Key, value: V) -> None:
        """:raises InvalidPair: the key is none."""
        text = key_text(key)
        try:
            group = self._groups[text]
        except KeyError:
            mine = self._partitions <= 1 or partition_of(text, self._partitions) == self._partition
            group = self._groups[text] = Group(as_tuple(key), text, []) if mine else None
        if group is not None:
            group.values.append(value)

    def ordered(self) -> list[Group[V]]:
        groups = [group for group in self._groups.values() if group is not None]
        kinds = {type(group.key) for group in groups}
        if kinds == {str} or kinds == {int}:
            # Most often all keys are of one simple kind, which sorts by itself.
            groups.sort(key=lambda group: group.key)
        else:
            groups.sort(key=lambda group: order(group.key))
        return groups


def group(pairs: Iterable[tuple[Key, V]]) -> list[tuple[Key, list[V]]]:
    """``(key, values)`` of all pairs, in the order of groups; list keys as tuples, values in order of arrival.

    :raises InvalidPair: a key is none.
    """
    groups: Groups[V] = Groups()
    for key, value in pairs:
        groups.add(key, value)
    return [(found.key, found.values) for found in groups.ordered()]


def order(key: Key) -> tuple[Any, ...]:
    """What to sort keys by. Only for valid keys."""
    if key is None:
        return (0,)
    if isinstance(key, bool):
        return (1, key)
    if isinstance(key, int | float):
        return (2, key, value_text(key))
    if isinstance(key, str):
        return (3, key)
    return (4, tuple([order(part) for part in key]))


def partition_of(text: str, partitions: int) -> int:
    """Which of ``partitions``, from 0, the key with that canonical text belongs to: the same everywhere, for ever."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") % partitions


# --- what is wrong with it ---------------------------------------------------------------------------------------


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


_decode = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_parse_float).decode


def _integer_text(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:
        raise InvalidPair(f"An integer of {value.bit_length()} bits is too long to be written out.") from None


def _check_key(key: Key, whole: Key, depth: int) -> None:
    if key is None or isinstance(key, bool | int | str):
        return
    if isinstance(key, float):
        if not math.isfinite(key):
            raise InvalidPair(f"The key {_shown(whole)} has {key!r} in it, which is not a JSON number.")
        return
    if not isinstance(key, list | tuple):
        inside = "" if key is whole else f" (in {_shown(whole)})"
        raise InvalidPair(
            "A key has to be null, a boolean, a number, a string or a list of those; "
            f"this one is {_described(key)}{inside}."
        )
    if depth > 100:
        raise InvalidPair("A key is a list that is nested more than 100 deep.")
    for part in key:
        _check_key(part, whole, depth + 1)


def _blame(value: Any, error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"There is half of a surrogate pair in {_shown(value)}, which no UTF-8 text can hold."
    if isinstance(error, RecursionError):
        return f"A value is nested too deeply: {_shown(value)}"
    if isinstance(error, TypeError):
        return f"A value is not JSON: {_shown(value)} ({error})"
    return f"A value is not JSON: {_shown(value)} has NaN or an infinity in it, or is part of itself ({error})."


def _described(thing: object) -> str:
    return f"{_shown(thing)} of type {type(thing).__name__}"


_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100


def _shown(thing: object) -> str:
    try:
        text = _brief.repr(thing)
    except Exception:
        text = f"<{type(thing).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 120 else f"{text[:119]}…"
