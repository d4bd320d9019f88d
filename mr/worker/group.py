"""Group commit on an event loop: what all flows want to write in one turn of the loop goes to the store together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from mr.engine.ops import Change, Committed
from mr.engine.shell import settle, to_txn
from mr.errors import InvalidTransaction, StoreError
from mr.kv.base import Outcome, Store, Txn, Verdict

_MOST = 64
_FIRST_PAUSE_S = 0.01
_LAST_PAUSE_S = 1.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Waiting:
    __slots__ = ("doubtful", "future", "pause", "txn")

    def __init__(self, txn: Txn, future: asyncio.Future[Committed]) -> None:
        self.txn, self.future = txn, future
        self.doubtful = False
        self.pause = _FIRST_PAUSE_S


class GroupCommit:
    """Commits changes until their outcome is definite: an unknown one is repeated, an unreachable store waited for.

    Call from the loop's thread only. ``store`` is used from that thread where it is local, else from one other.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._waiting: list[_Waiting] = []
        self._is_due = False
        self._busy = False
        self.is_closing = False
        """From now on a store that does not answer is not waited for."""

    async def commit(self, change: Change) -> Committed:
        """
        :raises InvalidTransaction: the store cannot take such a transaction, now or ever.
        :raises StoreError: while closing, the store did not answer.
        """
        waiting = _Waiting(to_txn(change), self._loop.create_future())
        self._add(waiting)
        return await waiting.future

    def _add(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if not self._is_due and not self._busy:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        group, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        group = [waiting for waiting in group if not waiting.future.cancelled()]
        if group:
            if self._store.local:
                self._settle(group, *self._carry_out(group))
            else:
                self._busy = True
                future = self._loop.run_in_executor(None, self._carry_out, group)
                future.add_done_callback(lambda done: self._returned(group, done))
        if self._waiting and not self._busy and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _carry_out(self, group: list[_Waiting]) -> tuple[list[Outcome], StoreError | None]:
        try:
            return self._store.commit([waiting.txn for waiting in group]), None
        except StoreError as error:
            return [], error

    def _returned(self, group: list[_Waiting], done: asyncio.Future[tuple[list[Outcome], StoreError | None]]) -> None:
        self._busy = False
        self._settle(group, *done.result())
        if self._waiting and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _settle(self, group: list[_Waiting], outcomes: list[Outcome], error: StoreError | None) -> None:
        if error is not None:
            self._failed(group, error)
            return
        for waiting, outcome in zip(group, outcomes, strict=True):
            if outcome.verdict is Verdict.UNKNOWN:
                waiting.doubtful = True
                self._again(waiting, StoreError("The store never said whether a change was made."))
            elif not waiting.future.done():
                waiting.future.set_result(settle(outcome, waiting.doubtful))

    def _failed(self, group: list[_Waiting], error: StoreError) -> None:
        if isinstance(error, InvalidTransaction):
            if len(group) > 1:
                # One of them is to blame: each is tried by itself.
                for waiting in group:
                    self._settle([waiting], *self._carry_out([waiting]))
            elif not group[0].future.done():
                group[0].future.set_exception(error)
            return
        log.warning("the store does not take changes, trying again: %s", error)
        for waiting in group:
            self._again(waiting, error)

    def _again(self, waiting: _Waiting, error: StoreError) -> None:
        if self.is_closing:
            if not waiting.future.done():
                waiting.future.set_exception(error)
            return
        self._loop.call_later(waiting.pause, self._add, waiting)
        waiting.pause = min(_LAST_PAUSE_S, 2 * waiting.pause)


class Outbox(Generic[T]):
    """Gathers what is to be sent in one turn of the loop, and hands it over at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[list[T]], None]) -> None:
        self._loop, self._send = loop, send
        self._items: list[T] = []

    def add(self, *items: T) -> None:
        if not self._items and items:
            self._loop.call_soon(self.flush)
        self._items += items

    def flush(self) -> None:
        items, self._items = self._items, []
        if items:
            self._send(items)
