"""An ended request's result, in pieces: nothing grows with it but what a single piece takes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mr.errors import FilesUnavailable
from mr.fs.base import Files
from mr.kv.base import Store
from mr.model import ids, keys, pairs
from mr.model.entities import Request, decode
from mr.model.records import Dataset, Done


@dataclass(frozen=True)
class Result:
    """The result of a request that ended well; it can be read as often as one likes."""

    request: Request
    files: Files
    parts: list[Dataset]

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def pairs(self) -> Iterator[tuple[pairs.Key, Any]]:
        """The pairs one by one, list keys as tuples.

        :raises FilesUnavailable: a spilled output cannot be read.
        """
        for piece in pieces(self.files, self.parts):
            yield from pairs.parse_pairs(piece)


_MERGED = 500
"""Pairs of one piece, where partitions are merged."""


def outputs(store: Store, request: Request) -> list[Dataset] | None:
    """The outputs of the root's reduces, one a partition; None where they are gone.

    :raises StoreUnavailable: the store refuses.
    """
    workflow, request_id = request.workflow_name, request.request_id
    [done] = _done(store, [keys.result(workflow, request_id)])
    if done is None:
        return None
    if done.partitions <= 1:
        return None if done.output is None else [done.output]
    reduces = [ids.reduce_of(request.invocation_id, partition) for partition in range(done.partitions)]
    parts = _done(store, [keys.done(workflow, request_id, reduce_id) for reduce_id in reduces])
    found = [part.output for part in parts if part is not None and part.output is not None]
    return found if len(found) == done.partitions else None


def _done(store: Store, names: list[str]) -> list[Done | None]:
    entries = zip(names, store.get(names), strict=True)
    return [None if entry is None else decode(Done, name, entry.value) for name, entry in entries]


def pieces(files: Files, parts: list[Dataset]) -> Iterator[bytes]:
    """JSON texts of lists of pairs, whose concatenation is the result.

    The pairs of several partitions come in the order of their keys, so that their number makes no difference.

    :raises FilesUnavailable: a spilled output cannot be read.
    """
    return _lines(files, parts[0]) if len(parts) == 1 else _merged([_lines(files, part) for part in parts])


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


def _keyed(lines: Iterable[bytes]) -> Iterator[tuple[tuple[Any, ...], str]]:
    for line in lines:
        for key, value in pairs.parse_pairs(line):
            yield pairs.order(key), pairs.pair_text(key, value)
