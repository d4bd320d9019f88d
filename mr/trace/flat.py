"""Every invocation of a request on a line of its own, for grep and awk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mr.kv.base import Entry, Store
from mr.model import ids, keys
from mr.model.entities import Invocation, Request, decode
from mr.model.records import Seal
from mr.trace.page import one_line
from mr.trace.tree import as_it_ended, seconds_of

MESSAGE_CHARACTERS = 200

_PAGE = 40


def lines(store: Store, request: Request, below: str | None = None) -> Iterator[str]:
    """Of all invocations, or of that one and those below it: ID, step, direction, state, seconds, attempt, children,
    worker and failure.

    Columns are two blanks apart, a dash is where there is nothing, and only the last one may hold blanks. Lines are
    indented below their parent's; children come in the order of their slots. What nobody has begun has no line.
    Nothing is held but a page of each level.
    """
    top = below or request.invocation_id
    for record in walk(store, request, top):
        depth = record.invocation_id.count(".") - top.count(".")
        yield f"{'  ' * depth}{'  '.join(_columns(record))}"


def walk(store: Store, request: Request, top: str) -> Iterator[Invocation]:
    """That invocation and all below it, each before those below it."""
    for record in _walk(store, request, [top]):
        yield as_it_ended(record) if request.is_done else record


def _columns(record: Invocation) -> list[str]:
    seconds = seconds_of(record)
    error = record.error
    return [
        record.invocation_id,
        record.step_name,
        record.direction,
        record.state,
        "-" if seconds is None else f"{seconds:.3f}",
        str(record.attempt),
        "-" if record.mapped_count is None else str(record.mapped_count),
        record.worker or "-",
        "-" if error is None else one_line(f"{error.exception_type}: {error.exception_message}", MESSAGE_CHARACTERS),
    ]


class _Found(NamedTuple):
    record: Invocation
    seal: Seal | None
    first_reduce: Invocation | None


def _walk(store: Store, request: Request, names: list[str]) -> Iterator[Invocation]:
    for record, seal, first_reduce in _read(store, request, names):
        yield record
        if seal is not None:
            for start in range(0, seal.children, _PAGE):
                slots = range(start, min(start + _PAGE, seal.children))
                children = [ids.child_of(record.invocation_id, seal.nonce, slot) for slot in slots]
                yield from _walk(store, request, children)
        if first_reduce is not None:
            yield first_reduce
        for start in range(1, record.partitions, _PAGE):
            partitions = range(start, min(start + _PAGE, record.partitions))
            yield from _walk(store, request, [ids.reduce_of(record.invocation_id, one) for one in partitions])


def _read(store: Store, request: Request, names: list[str]) -> Iterator[_Found]:
    """Those of them that there are. Each comes with its seal and its only reduce, since most have nothing else."""
    at = (request.workflow_name, request.request_id)
    wanted = [keys.invocation(*at, name) for name in names]
    wanted += [keys.seal(*at, name) for name in names]
    wanted += [keys.invocation(*at, ids.reduce_of(name, 0)) for name in names]
    entries = store.get(wanted)
    records, seals, reduces = (entries[part * len(names) : (part + 1) * len(names)] for part in range(3))
    for entry, seal, reduce in zip(records, seals, reduces, strict=True):
        record = _invocation(entry)
        if record is not None:
            yield _Found(record, None if seal is None else decode(Seal, seal.key, seal.value), _invocation(reduce))


def _invocation(entry: Entry | None) -> Invocation | None:
    return None if entry is None else decode(Invocation, entry.key, entry.value)
