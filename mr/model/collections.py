"""Two general collections on a store: an ordered queue and a tree. Values are JSON.

Both keep their items as plain keys below a prefix, so that a person can read them, and both are safe to use from
several processes at once. They are for what is small and lasting; what flows between map and reduce are datasets.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from mr.errors import CorruptRecord, InvalidInput, OutcomeUnknown
from mr.kv.base import Compare, Entry, Put, Store, Txn, Verdict

_DIGITS = 12
_PAGE = 500
_PATIENCE_S = 5.0


def _decode(entry: Entry) -> Any:
    try:
        return msgspec.json.decode(entry.value)
    except msgspec.DecodeError as error:
        raise CorruptRecord(entry.key, str(error)) from error


def _commit(store: Store, txn: Txn) -> bool:
    """Whether it was committed, once that is certain."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        [outcome] = store.commit([txn])
        if outcome.verdict is not Verdict.UNKNOWN:
            return outcome.verdict is Verdict.COMMITTED
        if time.monotonic() > deadline:
            raise OutcomeUnknown("The store did not say whether the item was written. Look before you repeat it.")
        time.sleep(0.05)


class KvQueue:
    """Items in the order in which they were appended, at ``<prefix>/<number>`` from 0 on."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix.rstrip("/") + "/"

    def append(self, value: object) -> int:
        """Adds an item at the end; its number. An append whose outcome was in doubt may have happened twice.

        :raises OutcomeUnknown: the store never said whether it is there.
        """
        data = msgspec.json.encode(value)
        while True:
            last = self._store.list(self._prefix, limit=1, keys_only=True, reverse=True)
            number = int(last[0].key.removeprefix(self._prefix)) + 1 if last else 0
            key = f"{self._prefix}{number:0{_DIGITS}d}"
            if _commit(self._store, Txn((Compare("version", key, 0, "free"),), (Put(key, data),))):
                return number

    def __iter__(self) -> Iterator[Any]:
        after = ""
        while page := self._store.list(self._prefix, after=after, limit=_PAGE):
            for entry in page:
                yield _decode(entry)
            after = page[-1].key

    def __len__(self) -> int:
        return self._store.count(self._prefix)


class KvTree:
    """Values at paths of names, at ``<prefix>/<name>/<name>…``. A path may have a value and children at once."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix.rstrip("/")

    def _key(self, path: tuple[str, ...]) -> str:
        if not all(path):
            raise InvalidInput("A part of the path is empty.", "path")
        return "/".join([self._prefix, *(_escape(name) for name in path)])

    def set(self, path: tuple[str, ...], value: object, compares: tuple[Compare, ...] = ()) -> bool:
        """Puts a value at a path. False: one of ``compares`` did not hold, and nothing was put.

        :raises InvalidInput: a part of the path is empty.
        :raises OutcomeUnknown: the store never said whether it is there.
        """
        return _commit(self._store, Txn(compares, (Put(self._key(path), msgspec.json.encode(value)),)))

    def get(self, path: tuple[str, ...], default: object = None) -> Any:
        """The value at a path, or ``default``."""
        [entry] = self._store.get([self._key(path)])
        return default if entry is None else _decode(entry)

    def children(self, path: tuple[str, ...] = ()) -> list[str]:
        """The names right below a path, in order, whether they have a value or only children."""
        prefix = self._key(path) + "/"
        names: list[str] = []
        after = ""
        while page := self._store.list(prefix, after=after, limit=_PAGE, keys_only=True):
            found = [entry.key.removeprefix(prefix).partition("/")[0] for entry in page]
            names += [name for name in dict.fromkeys(found) if name not in names[-1:]]
            # The rest of the last child's subtree is passed over: "0" is the character after "/".
            after = f"{prefix}{found[-1]}/\x7f"
            if page[-1].key == f"{prefix}{found[-1]}":
                after = page[-1].key
        return [_unescape(name) for name in dict.fromkeys(names)]

    def delete(self, path: tuple[str, ...]) -> int:
        """Deletes a path with everything below it; how many values there were."""
        key = self._key(path)
        [entry] = self._store.get([key])
        below = self._store.delete_prefix(key + "/")
        _commit(self._store, Txn(deletes=(key,)))
        return below + (entry is not None)


def _escape(name: str) -> str:
    """Names as parts of keys: printable ASCII without slashes, reversibly."""
    return quote(name, safe="", errors="surrogatepass")


def _unescape(text: str) -> str:
    return unquote(text, errors="surrogatepass")
