"""The text of a result, in pieces: nothing grows with it but what a single piece takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import msgspec

from mr.fs.base import Files
from mr.model.records import Dataset
from mr.results import reading

Write = Callable[[Files, list[Dataset]], Iterable[bytes]]
"""How the outputs of a request's last reduces are written, in pieces."""

HEAD = b'{"result": {"pairs": ['
TAIL = b"]}}\n"


def text(files: Files, parts: list[Dataset]) -> Iterable[bytes]:
    """``{"result": {"pairs": [[key, value], …]}}`` of the outputs of a request's last reduces, one a partition.

    :raises FilesUnavailable: a spilled output cannot be read; from the first piece on, if it is missing from the start.
    """
    if len(parts) == 1 and parts[0].file is None:
        return [b"".join([HEAD, _inner(bytes(parts[0].pairs or b"[]")), TAIL])]
    pieces = reading.pieces(files, parts)
    first = next(pieces, b"[]")
    return chain([HEAD + _inner(first)], _rest(pieces, len(first) > 2), [TAIL])


def lines(files: Files, parts: list[Dataset]) -> Iterable[bytes]:
    """The same pairs as JSON texts, ``[key,value]`` a line.

    :raises FilesUnavailable: see :func:`text`.
    """
    pieces = reading.pieces(files, parts)
    return chain([_lines(next(pieces, b"[]"))], _rest_of_lines(pieces))


def _rest_of_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield _lines(piece)
        time.sleep(0)


def _lines(piece: bytes) -> bytes:
    return b"".join([b"%b\n" % pair for pair in msgspec.json.decode(piece, type=list[msgspec.Raw])])


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
