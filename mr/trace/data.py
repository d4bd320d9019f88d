"""What went in and out of an invocation, as much of it as somebody wants to look at."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from mr.kv.base import Store
from mr.model import ids, keys
from mr.model.entities import Invocation, decode
from mr.model.records import Dataset, Done, Seal, Session

ReadDataset = Callable[[Dataset], "Iterable[bytes] | None"]
"""The pieces of a dataset, each JSON text of a list of pairs; None where its file is gone."""

KEY_CHARACTERS = 60


class Cut(NamedTuple):
    """How much is shown: pairs of a dataset, and characters of a pair. None: all.

    Datasets of more than ``bytes`` are not read.
    """

    pairs: int | None
    characters: int | None
    bytes: int | None


PREVIEW = Cut(pairs=10, characters=400, bytes=4 * 1024 * 1024)
WHOLE = Cut(None, None, None)


@dataclass(frozen=True)
class Preview:
    """The beginning of a dataset. ``pairs`` are the first ones, JSON; ``bytes`` is the size of all ``count``.

    ``cut`` has, for each pair that is longer than wanted and therefore the beginning of its JSON text, by its place in
    ``pairs``, how many characters it has.
    """

    count: int
    bytes: int
    pairs: list[Any]
    cut: dict[int, int]


def inline(dataset: Dataset) -> list[bytes] | None:
    """The reader for who has no files."""
    return [bytes(dataset.pairs)] if dataset.file is None else None


def previews(
    store: Store, record: Invocation, seal_of_parent: Seal | None, read_dataset: ReadDataset, cut: Cut
) -> dict[str, Preview]:
    """``arguments``, ``post_combine``, ``session`` and ``post_reduce``, those that there are."""
    at = (record.workflow_name, record.request_id, record.invocation_id)
    is_map = record.direction == "map"
    arguments, combined = (keys.dataset(*at, name) for name in ("arguments", "post_combine"))
    session, done = keys.session(*at), keys.done(*at)
    wanted = [arguments, combined, session, done] if is_map else [done]
    found = {entry.key: entry.value for entry in store.get(wanted) if entry is not None}
    shown: dict[str, Preview] = {}
    if arguments in found:
        shown["arguments"] = _preview(decode(Dataset, arguments, found[arguments]), read_dataset, cut)
    elif is_map and seal_of_parent is not None:
        pair = argument_of(store, record, seal_of_parent, read_dataset)
        if pair is not None:
            shown["arguments"] = _shown([pair], 1, len(bytes(pair)), cut)
    if combined in found:
        shown["post_combine"] = _preview(decode(Dataset, combined, found[combined]), read_dataset, cut)
    if session in found:
        values = bytes(decode(Session, session, found[session]).values)
        if len(values) > len(b"{}"):
            shown["session"] = _session(values, cut)
    if done in found:
        output = decode(Done, done, found[done]).output
        if output is not None:
            shown["post_reduce"] = _preview(output, read_dataset, cut)
    return shown


def argument_of(store: Store, record: Invocation, seal: Seal, read_dataset: ReadDataset = inline) -> msgspec.Raw | None:
    """The pair that a child is given: one of a chunk of its parent's. None where it is gone, or cannot be read."""
    slot = ids.slot_of(record.invocation_id)
    number = bisect_right(seal.bounds, slot) - 1
    parent_id = ids.parent_of(record.invocation_id)
    key = keys.chunk(record.workflow_name, record.request_id, parent_id, seal.nonce, number)
    [entry] = store.get([key]) if number >= 0 else [None]
    if entry is None:
        return None
    place = slot - seal.bounds[number]
    return next(islice(_pairs(decode(Dataset, key, entry.value), read_dataset), place, None), None)


def key_of(pair: msgspec.Raw) -> str:
    """The JSON text of a pair's key, cut where it is long."""
    [key, _] = msgspec.json.decode(pair, type=tuple[msgspec.Raw, msgspec.Raw])
    text = bytes(key).decode("utf-8", "replace")
    return text if len(text) <= KEY_CHARACTERS else f"{text[: KEY_CHARACTERS - 1]}…"


def _preview(dataset: Dataset, read_dataset: ReadDataset, cut: Cut) -> Preview:
    if cut.bytes is not None and dataset.bytes > cut.bytes:
        return Preview(dataset.count, dataset.bytes, [], {})
    return _shown(islice(_pairs(dataset, read_dataset), cut.pairs), dataset.count, dataset.bytes, cut)


def _session(values: bytes, cut: Cut) -> Preview:
    items = msgspec.json.decode(values, type=dict[str, msgspec.Raw])
    pairs = (msgspec.Raw(msgspec.json.encode([name, value])) for name, value in items.items())
    return _shown(islice(pairs, cut.pairs), len(items), len(values), cut)


def _shown(pairs: Iterable[msgspec.Raw], count: int, size: int, cut: Cut) -> Preview:
    shown: list[Any] = []
    too_long: dict[int, int] = {}
    for pair in pairs:
        text = bytes(pair).decode("utf-8", "replace")
        if cut.characters is None or len(text) <= cut.characters:
            shown.append(msgspec.json.decode(pair))
        else:
            too_long[len(shown)] = len(text)
            shown.append(f"{text[: cut.characters - 1]}…")
    return Preview(count, size, shown, too_long)


def _pairs(dataset: Dataset, read_dataset: ReadDataset) -> Iterator[msgspec.Raw]:
    for piece in read_dataset(dataset) or []:
        yield from msgspec.json.decode(piece, type=list[msgspec.Raw])
