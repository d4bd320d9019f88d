"""What every driver refuses before it talks to its store, so that a mistake reads alike on all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from mr.errors import InvalidTransaction
from mr.kv.base import Txn


def check_transactions(txns: Sequence[Txn], max_operations: int, max_value_bytes: int) -> None:
    """:raises InvalidTransaction: a key stands twice in one of them, has characters outside printable ASCII or none
    at all, a value is too long, or there are too many operations.
    """
    for txn in txns:
        if len(txn.compares) > max_operations or len(txn.puts) + len(txn.deletes) > max_operations:
            raise InvalidTransaction(
                f"A transaction may have {max_operations} compares, and as many puts and deletes together, not "
                f"{len(txn.compares)} and {len(txn.puts) + len(txn.deletes)}."
            )
        written = [put.key for put in txn.puts]
        written += txn.deletes
        if len(set(written)) != len(written):
            twice = next(key for key in written if written.count(key) > 1)
            raise InvalidTransaction(f"A transaction may put or delete {twice!r} once only.")
        for put in txn.puts:
            if len(put.value) > max_value_bytes:
                raise InvalidTransaction(
                    f"The value of {put.key!r} has {len(put.value)} bytes; at most {max_value_bytes} are allowed."
                )
        _check_keys(chain(written, (compare.key for compare in txn.compares)))


def _check_keys(keys: Iterable[str]) -> None:
    for key in keys:
        if not (key and key.isascii() and key.isprintable()):
            raise InvalidTransaction(f"A key is one or more printable ASCII characters, not {key!r}.")
