"""What concurrent requests write at the same time is written together: one wait for the disk serves them all."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mr.errors import InvalidTransaction

T = TypeVar("T")
R = TypeVar("R")

_MOST = 64


class _Ticket(Generic[T, R]):
    __slots__ = ("answers", "error", "item", "leads", "turn")

    def __init__(self, item: T) -> None:
        self.item = item
        self.answers: list[R] = []
        self.error: Exception | None = None
        self.leads = False
        self.turn = threading.Event()


class Groups(Generic[T, R]):
    """Hands the items of concurrent callers on in groups of at most ``most``, in order of arrival.

    One of the callers carries the group out for all; the next group gathers meanwhile, and its first caller carries
    that one out. Nobody waits for more than the group before its own, however eager others are. ``carry_out`` takes
    items and answers with one answer for each. What it raises is raised to all of the group; but an InvalidTransaction
    is one item's fault, and then each is carried out by itself.

    Works among threads, and among greenlets where locks are patched.
    """

    def __init__(self, carry_out: Callable[[Sequence[T]], Sequence[R]], most: int = _MOST) -> None:
        self._carry_out, self._most = carry_out, most
        self._lock = threading.Lock()
        self._waiting: deque[_Ticket[T, R]] = deque()
        self._is_led = False

    def do(self, item: T) -> R:
        ticket: _Ticket[T, R] = _Ticket(item)
        with self._lock:
            self._waiting.append(ticket)
            ticket.leads, self._is_led = not self._is_led, True
        if not ticket.leads:
            ticket.turn.wait()
        if ticket.leads:
            self._lead()
        if ticket.error is not None:
            raise ticket.error
        return ticket.answers[0]

    def _lead(self) -> None:
        """Carries out a group that begins with the caller's own ticket, and has the next one led."""
        group: list[_Ticket[T, R]] = []
        try:
            # Those who have something to read right now come as far as this before the group is closed: stores of this
            # machine never yield.
            time.sleep(0)
            with self._lock:
                group = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            self._settle(group)
        finally:
            for ticket in group:
                if not ticket.answers and ticket.error is None:
                    ticket.error = RuntimeError("Whoever carried this out was stopped.")
                ticket.turn.set()
            with self._lock:
                self._is_led = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].leads = True
                    self._waiting[0].turn.set()

    def _settle(self, group: Sequence[_Ticket[T, R]]) -> None:
        try:
            answers = self._carry_out([ticket.item for ticket in group])
        except InvalidTransaction as error:
            if len(group) == 1:
                group[0].error = error
                return
            for ticket in group:
                self._settle([ticket])
            return
        except Exception as error:
            for ticket in group:
                ticket.error = error
            return
        for ticket, answer in zip(group, answers, strict=True):
            ticket.answers.append(answer)
