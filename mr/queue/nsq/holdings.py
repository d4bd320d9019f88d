"""What a consumer holds: messages at hand, which its user has not taken yet, and those that are with the user.

nsqd sends without being asked, as much as it is told that there is room for. So this also reckons how much there should
be: as many as the user asks for at a time, more of them while it waits for more, and none once it leaves them lying.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence

from mr.errors import QueueUnavailable
from mr.queue.base import Delivery

HOARD_S = 0.25
"""What was at hand for so long goes back: another consumer may be idle."""


class Source:
    """Where messages come from: a connection."""

    def __init__(self) -> None:
        self.flights: dict[bytes, Flight] = {}
        """What is in flight on it, by ID."""
        self.outgoing: list[bytes] = []
        """Commands that wait to be sent. Any thread may append."""


class Flight:
    """A message that is neither finished nor given back: the handle that a consumer's user gets."""

    __slots__ = ("arrived", "attempts", "body", "deadline", "id", "is_at_hand", "source", "topic")

    def __init__(
        self, source: Source, topic: str, id: bytes, body: bytes, attempts: int, arrived: float, deadline: float
    ) -> None:
        self.source = source
        self.topic = topic
        self.id = id
        self.body = body
        self.attempts = attempts
        self.arrived = arrived
        self.deadline = deadline
        self.is_at_hand = True


class Holdings:
    """Used by the user's thread and by the one that talks to nsqd. Only :meth:`wait` waits."""

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.held = 0
        """How many are with the user."""
        self.demand = 1
        """How many should be at hand."""
        self.is_starved = False
        """Whether some nsqd may have more than it was told to send."""
        self.is_closed = False
        self._lock = threading.Lock()
        self._wanted: frozenset[str] = frozenset()
        self._at_hand: dict[str, deque[Flight]] = {}
        self._count = 0
        self._trouble = ""
        self._has_news = False
        self._is_readable = False
        self._pipe_out, self._pipe_in = os.pipe()

    # --- for the user's thread --------------------------------------------------------------------------------------

    def want(self, topics: Iterable[str]) -> list[Flight]:
        """These topics and no others. Answers what was at hand of others, which is given up."""
        with self._lock:
            self._wanted = frozenset(topics)
            unwanted = [topic for topic in self._at_hand if topic not in self._wanted]
            given = [flight for topic in unwanted for flight in self._at_hand.pop(topic)]
            self._gave_up(given)
        return given

    def take(self, limit: int) -> list[Delivery]:
        """Up to ``limit`` of the messages at hand, one of each topic in turn.

        :raises QueueUnavailable: there are none, and no nsqd that could send some.
        """
        with self._lock:
            room = min(limit, self.max_in_flight - self.held)
            taken: list[Flight] = []
            topics = [waiting for waiting in self._at_hand.values() if waiting]
            # In an order that changes: no backlog keeps another topic waiting.
            random.shuffle(topics)
            while topics and len(taken) < room:
                taken += [waiting.popleft() for waiting in topics[: room - len(taken)]]
                topics = [waiting for waiting in topics if waiting]
            for flight in taken:
                flight.is_at_hand = False
            self._count -= len(taken)
            self.held += len(taken)
            if limit > self.demand:
                self.demand = min(limit, self.max_in_flight)
            elif len(taken) < limit and self.is_starved:
                self.demand = min(2 * self.demand, self.max_in_flight)
            self._has_news = False
            self._ring()
            if self._trouble and not taken:
                raise QueueUnavailable(self._trouble)
        return [Delivery(flight.topic, flight.body, flight.attempts, flight) for flight in taken]

    def fileno(self) -> int:
        return self._pipe_out

    def wait(self, seconds: float) -> None:
        """Waits until :meth:`take` is worth trying, at most so long."""
        poll = select.poll()
        poll.register(self._pipe_out, select.POLLIN)
        poll.poll(int(seconds * 1000) + 1)

    def end(self, deliveries: Sequence[Delivery]) -> list[Flight]:
        """Those of them that had not ended before; they have now."""
        with self._lock:
            ended = self._alive(deliveries)
            for flight in ended:
                self._forget(flight)
            self._ring()
        return ended

    def renew(self, deliveries: Sequence[Delivery], deadline: float) -> list[Flight]:
        """Those of them that have not ended; they have until then now."""
        with self._lock:
            renewed = self._alive(deliveries)
            for flight in renewed:
                flight.deadline = deadline
        return renewed

    # --- for the thread that talks to nsqd --------------------------------------------------------------------------

    def add(self, topic: str, flights: Sequence[Flight]) -> bool:
        """They are at hand now, unless the topic is not wanted. One that comes again is no longer what it was."""
        with self._lock:
            if topic not in self._wanted:
                return False
            at_hand = self._at_hand.setdefault(topic, deque())
            for flight in flights:
                known = flight.source.flights
                if flight.id in known:
                    self._lose(known[flight.id])
                known[flight.id] = flight
            at_hand += flights
            self._count += len(flights)
            self._ring()
        return True

    def has_some(self) -> bool:
        """Whether anything is at hand."""
        return self._count > 0

    def give_up_hoard(self) -> list[Flight]:
        """What has been at hand for too long. Nothing more should come until the user asks again."""
        before = time.monotonic() - HOARD_S
        given = []
        with self._lock:
            for waiting in self._at_hand.values():
                while waiting and waiting[0].arrived <= before:
                    given.append(waiting.popleft())
            if given:
                self.demand = 0
                # The user has to know that it must ask.
                self._has_news = True
            self._gave_up(given)
        return given

    def drop(self, source: Source) -> list[Flight]:
        """Everything that is in flight there: it has all ended now."""
        with self._lock:
            flights = list(source.flights.values())
            for flight in flights:
                self._lose(flight)
            self._ring()
        return flights

    def expire(self, source: Source, now: float) -> None:
        """Forgets what timed out there: it is no longer this consumer's."""
        with self._lock:
            for flight in [flight for flight in source.flights.values() if flight.deadline <= now]:
                self._lose(flight)
            self._ring()

    def tell(self, trouble: str) -> None:
        """Why no messages can come, or nothing if they can."""
        with self._lock:
            if trouble and not self._trouble:
                self._has_news = True
            self._trouble = trouble
            self._ring()

    def close(self) -> None:
        with self._lock:
            self.is_closed = True
            os.close(self._pipe_out)
            os.close(self._pipe_in)

    # --- with the lock held -----------------------------------------------------------------------------------------

    def _alive(self, deliveries: Sequence[Delivery]) -> list[Flight]:
        handles = dict.fromkeys(delivery.handle for delivery in deliveries)
        return [
            handle
            for handle in handles
            if isinstance(handle, Flight) and handle.source.flights.get(handle.id) is handle
        ]

    def _forget(self, flight: Flight) -> None:
        del flight.source.flights[flight.id]
        if not flight.is_at_hand:
            self.held -= 1

    def _lose(self, flight: Flight) -> None:
        """Forgets one wherever it is."""
        if flight.is_at_hand:
            self._at_hand[flight.topic].remove(flight)
            self._count -= 1
        self._forget(flight)

    def _gave_up(self, flights: Sequence[Flight]) -> None:
        for flight in flights:
            self._forget(flight)
        self._count -= len(flights)
        self._ring()

    def _ring(self) -> None:
        """Sees to it that the descriptor is readable just as long as :meth:`take` may have something to say."""
        is_due = self._has_news or (self._count > 0 and self.held < self.max_in_flight)
        if is_due == self._is_readable or self.is_closed:
            return
        self._is_readable = is_due
        if is_due:
            os.write(self._pipe_in, b"!")
        else:
            os.read(self._pipe_out, 1)
