"""How transactions of independent callers share requests. Nothing here talks to anybody."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from mr.errors import InvalidTransaction
from mr.kv.base import Txn

MAX_REQUEST_BYTES = 1_500_000
"""etcd takes 1.5 MiB unless it is told otherwise (--max-request-bytes); this leaves room for what is around keys."""

_MAX_OPERATIONS = 128
"""etcd's --max-txn-ops: of the transactions in one and of the largest of them together, compares counting apart."""

_PER_COMPARE, _PER_PUT, _PER_DELETE, _PER_TXN = 24, 40, 16, 16


class _Request:
    def __init__(self) -> None:
        self.members: list[int] = []
        self.bytes = 0
        self.operations = 0


def check_sizes(txns: Sequence[Txn]) -> None:
    """:raises InvalidTransaction: one of them is more than etcd takes at a time."""
    for txn in txns:
        if (size := _size(txn)) > MAX_REQUEST_BYTES:
            keys = ", ".join(repr(put.key) for put in txn.puts[:3])
            raise InvalidTransaction(
                f"A transaction that puts {keys} has {size} bytes; etcd takes {MAX_REQUEST_BYTES} at a time."
            )


def plan(txns: Sequence[Txn]) -> list[list[int]]:
    """Requests, each the places of some transactions in ``txns``, to be carried out in this order.

    What each one finds is as if they were carried out one by one as they stand. For within a request all compares are
    made before anything is written, and a key can be put once: so those of one request do not touch what another of it
    writes, and no transaction comes before an earlier one that it has to do with.
    """
    requests: list[_Request] = []
    # The first request that a transaction may be in which reads, or writes, a key.
    after_writing: dict[str, int] = {}
    after_touching: dict[str, int] = {}
    for place, txn in enumerate(txns):
        written = [put.key for put in txn.puts]
        written += txn.deletes
        read = [compare.key for compare in txn.compares]
        befores = chain((after_writing.get(key, 0) for key in read), (after_touching.get(key, 0) for key in written))
        at = max(befores, default=0)
        size, operations = _size(txn), max(len(read), len(written))
        while at < len(requests) and not _has_room(requests[at], size, operations):
            at += 1
        if at == len(requests):
            requests.append(_Request())
        request = requests[at]
        request.members.append(place)
        request.bytes += size
        request.operations = max(request.operations, operations)
        for key in written:
            after_writing[key] = at + 1
        for key in (*read, *written):
            after_touching[key] = max(at + 1, after_touching.get(key, 0))
    return [request.members for request in requests]


def _has_room(request: _Request, size: int, operations: int) -> bool:
    return (
        request.bytes + size <= MAX_REQUEST_BYTES
        and len(request.members) + 1 + max(request.operations, operations) <= _MAX_OPERATIONS
    )


def _size(txn: Txn) -> int:
    """At least what the transaction takes up in a request."""
    size = _PER_TXN
    for compare in txn.compares:
        size += len(compare.key) + _PER_COMPARE
    for put in txn.puts:
        size += len(put.key) + len(put.value) + _PER_PUT
    for key in txn.deletes:
        size += len(key) + _PER_DELETE
    return size
