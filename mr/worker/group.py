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
_ENOUGH = 16
_HOLD_S = 0.002
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

    Call from the loop's thread only. ``store`` is used from that thread where it is local, else from one other. While
    ``are_more_coming``, a small group is held back for two milliseconds at most: a commit of many costs little more
    than a commit of one.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, are_more_coming: Callable[[], bool]) -> None:
        self._store, self._loop = store, loop
        self._are_more_coming = are_more_coming
        self._waiting: list[_Waiting] = []
        self._is_due = False
        self._busy = False
        self._held: asyncio.TimerHandle | None = None
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
        if len(self._waiting) < _ENOUGH and self._are_more_coming():
            if self._held is None:
                self._held = self._loop.call_later(_HOLD_S, self._send)
            return
        self._send()

    def _send(self) -> None:
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._busy:
            return
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

    def _carry_out(self, group: list[_Waiting]) -> tuple[list[Outcome], Exception | None]:
        try:
            return self._store.commit([waiting.txn for waiting in group]), None
        except Exception as error:
            return [], error

    def _returned(self, group: list[_Waiting], done: asyncio.Future[tuple[list[Outcome], Exception | None]]) -> None:
        self._busy = False
        self._settle(group, *done.result())
        if self._waiting and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _settle(self, group: list[_Waiting], outcomes: list[Outcome], error: Exception | None) -> None:
        if error is not None:
            self._failed(group, error)
            return
        for waiting, outcome in zip(group, outcomes, strict=True):
            if outcome.verdict is Verdict.UNKNOWN:
                waiting.doubtful = True
                self._again(waiting, StoreError("The store never said whether a change was made."))
            elif not waiting.future.done():
                waiting.future.set_result(settle(outcome, waiting.doubtful))

    def _failed(self, group: list[_Waiting], error: Exception) -> None:
        if not isinstance(error, StoreError) or isinstance(error, InvalidTransaction):
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

    def _again(self, waiting: _Waiting, error: Exception) -> None:
        if self.is_closing:
            if not waiting.future.done():
                waiting.future.set_exception(error)
            return
        self._loop.call_later(waiting.pause, self._add, waiting)
        waiting.pause = min(_LAST_PAUSE_S, 2 * waiting.pause)


class Outbox(Generic[T]):
    """Gathers what is to be sent for ``hold_s`` seconds (0: to the end of the loop's turn), and hands it over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[list[T]], None], hold_s: float = 0.0) -> None:
        self._loop, self._send, self._hold_s = loop, send, hold_s
        self._items: list[T] = []
        self._timer: asyncio.Handle | None = None

    def add(self, *items: T) -> None:
        self._items += items
        if self._timer is None and items:
            loop, hold_s = self._loop, self._hold_s
            self._timer = loop.call_later(hold_s, self.flush) if hold_s else loop.call_soon(self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items, self._items = self._items, []
        if items:
            self._send(items)
