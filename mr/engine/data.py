"""Datasets on their way in and out of the store: inline while small, spilled to files when large."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from mr.engine.ops import Env, Flow, Get, ReadDataset, Settle, Spill
from mr.engine.transitions import Scene
from mr.model import ids
from mr.model.entities import Record
from mr.model.records import Dataset, Done

EMPTY = b"[]"


def join(pieces: Sequence[bytes]) -> bytes:
    """One JSON list of the items of several."""
    if len(pieces) == 1:
        return pieces[0]
    return b"[" + b",".join(piece[1:-1] for piece in pieces if len(piece) > 2) + b"]"


def file_name(workflow: str, request_id: str, invocation_id: str, nonce: str, what: str) -> str:
    """Under the attempt that writes it, so that no two attempts share a file; short, however deep the invocation."""
    digest = hashlib.blake2s(invocation_id.encode(), digest_size=10).hexdigest()
    return f"{workflow}/{request_id}/{digest}.{nonce}.{what}"


class Gathering:
    """Collects pieces, each JSON text of a list of pairs, into a dataset; beyond a limit they go to a file."""

    def __init__(self, env: Env, name: str) -> None:
        self._settings = env.settings
        self._name = name
        self._pieces: list[bytes] = []
        self._held = 0
        self._spilled = False
        self.bytes = 0
        self.count = 0

    def add(self, piece: bytes, count: int) -> Flow[None]:
        self._pieces.append(piece)
        self._held += len(piece)
        self.bytes += len(piece)
        self.count += count
        if self._held > self._settings.spill_bytes:
            yield from self._spill()

    def _spill(self) -> Flow[None]:
        for piece in self._pieces:
            yield Spill(self._name, piece)
        self._pieces, self._held, self._spilled = [], 0, True

    def dataset(self) -> Flow[Dataset]:
        if not self._spilled and self._held <= self._settings.inline_bytes:
            pairs = join(self._pieces) if self._pieces else EMPTY
            return Dataset(count=self.count, pairs=msgspec.Raw(pairs), bytes=len(pairs))
        yield from self._spill()
        yield Settle(self._name)
        return Dataset(count=self.count, file=self._name, bytes=self.bytes)


def read(dataset: Dataset | None) -> Flow[list[bytes] | None]:
    """The pieces of a dataset; None where it, or its file, is gone."""
    if dataset is None:
        return None
    if dataset.file is None:
        return [bytes(dataset.pairs)]
    pieces: list[bytes] | None = yield ReadDataset(dataset)
    return pieces


def outputs_of(scene: Scene, invocation_ids: Sequence[str], page: int) -> Flow[list[bytes] | None]:
    """The reduced pairs of ended invocations, in order, without those that failed; None where one is not there."""
    pieces: list[bytes] = []
    for start in range(0, len(invocation_ids), page):
        some = invocation_ids[start : start + page]
        wants: tuple[tuple[str, type[Record]], ...] = tuple((scene.done(one), Done) for one in some)
        reads = yield Get(wants)
        for invocation_id, one in zip(some, reads, strict=True):
            done: Done | None = one.record
            if done is None:
                return None
            if not done.ok:
                continue
            if done.partitions > 1:
                parts = [ids.reduce_of(invocation_id, j) for j in range(done.partitions)]
                got = yield from outputs_of(scene, parts, page)
            else:
                got = yield from read(done.output)
            if got is None:
                return None
            pieces += got
    return pieces
