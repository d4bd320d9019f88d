"""The text of a result, in pieces: nothing grows with it but what a single piece takes."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import msgspec

from mr.errors import FilesUnavailable
from mr.fs.base import Files
from mr.model import pairs
from mr.model.records import Dataset

HEAD = b'{"result": {"pairs": ['
TAIL = b"]}}\n"

_MERGED = 500
"""Pairs of one piece, where partitions are merged."""


def text(files: Files, parts: list[Dataset]) -> Iterable[bytes]:
    """``{"result": {"pairs": [[key, value], …]}}`` of the outputs of a request's last reduces, one a partition.

    The pairs of several partitions come in the order of their keys, so that their number makes no difference.

    :raises FilesUnavailable: a spilled output cannot be read; from the first piece on, if it is missing from the start.
    """
    if len(parts) == 1 and parts[0].file is None:
        return [b"".join([HEAD, _inner(bytes(parts[0].pairs or b"[]")), TAIL])]
    pieces = iter(_lines(files, parts[0]) if len(parts) == 1 else _merged([_lines(files, part) for part in parts]))
    first = next(pieces, b"[]")
    return chain([HEAD + _inner(first)], _rest(pieces, len(first) > 2), [TAIL])


def _rest(pieces: Iterator[bytes], is_filled: bool) -> Iterator[bytes]:
    for piece in pieces:
        inner = _inner(piece)
        if inner:
            yield b", " + inner if is_filled else inner
            is_filled = True
        # A client that takes everything at once would keep all others waiting.
        time.sleep(0)


def _inner(piece: bytes) -> bytes:
    """The items of a JSON list, with a blank after each comma and colon, as people and documentation write it."""
    return msgspec.json.format(piece, indent=0)[1:-1]


def _lines(files: Files, part: Dataset) -> Iterator[bytes]:
    if part.file is None:
        yield bytes(part.pairs or b"[]")
        return
    lines = files.lines(part.file)
    if lines is None:
        raise FilesUnavailable(f"The output {part.file} is not there.")
    yield from lines


def _merged(parts: list[Iterator[bytes]]) -> Iterator[bytes]:
    ordered = heapq.merge(*[_keyed(lines) for lines in parts], key=lambda pair: pair[0])
    while some := list(islice(ordered, _MERGED)):
        yield f"[{','.join([pair[1] for pair in some])}]".encode()


def _keyed(lines: Iterator[bytes]) -> Iterator[tuple[tuple[Any, ...], str]]:
    for line in lines:
        for key, value in pairs.parse_pairs(line):
            yield pairs.order(key), pairs.pair_text(key, value)
