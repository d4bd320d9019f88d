"""Taking in turn: who has much that waits does not keep those waiting who have little."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, KeysView
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items of several owners. One is taken of each owner in turn, and of one owner in the order of their coming."""

    def __init__(self) -> None:
        self._items: dict[Hashable, deque[T]] = {}
        self._count = 0

    def add(self, owner: Hashable, item: T) -> None:
        self._items.setdefault(owner, deque()).append(item)
        self._count += 1

    def take(self, weight: Callable[[Any], int] | None = None) -> T:
        """The next item; with ``weight``, of the owners who weigh least.

        :raises IndexError: there is nothing.
        """
        if not self._items:
            raise IndexError("nothing waits")
        owner = next(iter(self._items)) if weight is None else min(self._items, key=weight)
        items = self._items.pop(owner)
        item = items.popleft()
        if items:
            # Behind all others.
            self._items[owner] = items
        self._count -= 1
        return item

    def clear(self) -> None:
        self._items.clear()
        self._count = 0

    @property
    def owners(self) -> KeysView[Any]:
        """Those who have something that waits."""
        return self._items.keys()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for items in self._items.values():
            yield from items
