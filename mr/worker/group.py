"""Group commit on an event loop: what all flows want to write, or read, in one turn goes to the store together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

from mr.engine.ops import Change, Committed, Get, Read
from mr.engine.shell import settle, to_read, to_txn
from mr.errors import InvalidTransaction, StoreError
from mr.kv.base import Entry, Outcome, Store, Txn, Verdict
from mr.worker.calls import Calls

_MOST = 64
_ENOUGH = 16
_HOLD_S = 0.002
_FIRST_PAUSE_S = 0.01
_LAST_PAUSE_S = 1.0
_COMMITS = 2
_QUESTIONS = 2
"""How many of them may be on their way at once: the more there are, the less each is a group."""

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

    Call from the loop's thread only. ``store`` is used from that thread where it is local, else from others. While
    ``are_more_coming``, a small group is held back for two milliseconds at most: a commit of many costs little more
    than a commit of one.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop, are_more_coming: Callable[[], bool]) -> None:
        self._store, self._loop = store, loop
        self._are_more_coming = are_more_coming
        self._calls = Calls(store.local, _COMMITS, "commit")
        self._waiting: list[_Waiting] = []
        self._is_due = False
        self._running = 0
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
        if not self._is_due and self._running < _COMMITS:
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
        if self._running >= _COMMITS:
            return
        group, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
        group = [waiting for waiting in group if not waiting.future.cancelled()]
        if group:
            if self._store.local:
                self._settle(group, self._carry_out(group))
            else:
                self._running += 1
                task = self._loop.create_task(self._calls.make(self._carry_out, group))
                task.add_done_callback(lambda done: self._returned(group, done))
        if self._waiting and self._running < _COMMITS and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _carry_out(self, group: list[_Waiting]) -> list[Outcome | Exception]:
        """How each of them ended, or why it could not be tried."""
        try:
            return [*self._store.commit([waiting.txn for waiting in group])]
        except Exception as error:
            is_blameless = isinstance(error, StoreError) and not isinstance(error, InvalidTransaction)
            if is_blameless or len(group) == 1:
                return [error] * len(group)
            # One of them is to blame: each is tried by itself.
            return [self._carry_out([waiting])[0] for waiting in group]

    def _returned(self, group: list[_Waiting], done: asyncio.Task[list[Outcome | Exception]]) -> None:
        self._running -= 1
        if done.cancelled():
            return
        self._settle(group, done.result())
        if self._waiting and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _settle(self, group: list[_Waiting], outcomes: list[Outcome | Exception]) -> None:
        told = ""
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, StoreError) and not isinstance(outcome, InvalidTransaction):
                if told != str(outcome):
                    told = str(outcome)
                    log.warning("the store does not take changes, trying again: %s", outcome)
                self._again(waiting, outcome)
            elif isinstance(outcome, Exception):
                if not waiting.future.done():
                    waiting.future.set_exception(outcome)
            elif outcome.verdict is Verdict.UNKNOWN:
                waiting.doubtful = True
                self._again(waiting, StoreError("The store never said whether a change was made."))
            elif not waiting.future.done():
                waiting.future.set_result(settle(outcome, waiting.doubtful))

    def _again(self, waiting: _Waiting, error: Exception) -> None:
        if self.is_closing:
            if not waiting.future.done():
                waiting.future.set_exception(error)
            return
        self._loop.call_later(waiting.pause, self._add, waiting)
        waiting.pause = min(_LAST_PAUSE_S, 2 * waiting.pause)

    def close(self) -> None:
        """Lets go of its thread."""
        self._calls.close()


class _Asked:
    __slots__ = ("future", "op")

    def __init__(self, op: Get, future: asyncio.Future[list[Read[Any]]]) -> None:
        self.op, self.future = op, future


class GroupRead:
    """Reads the keys of several flows in one question, each flow's at one revision. For stores beyond a network.

    Call from the loop's thread only.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._calls = Calls(store.local, _QUESTIONS, "read")
        self._waiting: list[_Asked] = []
        self._is_due = False
        self._running = 0

    async def get(self, op: Get) -> list[Read[Any]]:
        """
        :raises StoreUnavailable: the store did not answer.
        """
        asked = _Asked(op, self._loop.create_future())
        self._waiting.append(asked)
        if not self._is_due and self._running < _QUESTIONS:
            self._is_due = True
            self._loop.call_soon(self._flush)
        return await asked.future

    def _flush(self) -> None:
        self._is_due = False
        while self._waiting and self._running < _QUESTIONS:
            group = self._next_group()
            keys = list(dict.fromkeys(key for asked in group for key, _ in asked.op.wants))
            self._running += 1
            task = self._loop.create_task(self._calls.make(self._store.get, keys))
            task.add_done_callback(partial(self._returned, group, keys))

    def _next_group(self) -> list[_Asked]:
        """As many as one question has room for; a single one may need more."""
        count = 0
        keys: set[str] = set()
        for asked in self._waiting:
            keys.update(key for key, _ in asked.op.wants)
            if count and len(keys) > self._store.max_operations:
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    def _returned(self, group: list[_Asked], keys: list[str], done: asyncio.Task[list[Entry | None]]) -> None:
        self._running -= 1
        if not self._is_due and self._waiting:
            self._is_due = True
            self._loop.call_soon(self._flush)
        error = None if done.cancelled() else done.exception()
        found = {} if done.cancelled() or error is not None else dict(zip(keys, done.result(), strict=True))
        for asked in group:
            if asked.future.done():
                continue
            if not found:
                asked.future.set_exception(error or asyncio.CancelledError())
                continue
            try:
                asked.future.set_result([to_read(key, kind, found[key]) for key, kind in asked.op.wants])
            except Exception as unreadable:
                asked.future.set_exception(unreadable)

    def close(self) -> None:
        """Lets go of its threads."""
        self._calls.close()


class Outbox(Generic[T]):
    """Gathers what is to be sent for ``hold_s`` seconds (0: to the end of the loop's turn), and hands it over.

    ``send`` may answer with what is to be waited for; what comes meanwhile is handed over after that.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[list[T]], Awaitable[None] | None],
        hold_s: float = 0.0,
    ) -> None:
        self._loop, self._send, self._hold_s = loop, send, hold_s
        self._items: list[T] = []
        self._timer: asyncio.Handle | None = None
        self._sending: asyncio.Future[None] | None = None

    def add(self, *items: T) -> None:
        self._items += items
        if self._timer is None and items:
            loop, hold_s = self._loop, self._hold_s
            self._timer = loop.call_later(hold_s, self.flush) if hold_s else loop.call_soon(self.flush)

    def flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._items or self._sending is not None:
            return
        items, self._items = self._items, []
        sending = self._send(items)
        if sending is not None:
            self._sending = asyncio.ensure_future(sending)
            self._sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Future[None]) -> None:
        self._sending = None
        if not sending.cancelled() and (error := sending.exception()) is not None:
            log.error("what was gathered could not be sent", exc_info=error)
        self.flush()

    async def drain(self) -> None:
        """Hands everything over."""
        self.flush()
        while self._sending is not None:
            await asyncio.wait([self._sending])
            self.flush()
