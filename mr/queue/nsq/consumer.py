"""What a user consumes with: nothing here waits for the network, but for :meth:`NsqConsumer.close`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from mr.errors import QueueUnavailable
from mr.queue.base import Consumer, Delivery
from mr.queue.limits import check_delay, check_topics
from mr.queue.nsq import wire
from mr.queue.nsq.holdings import Flight, Holdings
from mr.queue.nsq.lookup import Lookup
from mr.queue.nsq.publisher import Publisher
from mr.queue.nsq.settings import Settings
from mr.queue.nsq.switchboard import Switchboard

# What nsqd allows, unless it was told otherwise.
_SHORTEST_VISIBILITY_S = 1.0
_LONGEST_VISIBILITY_S = 900.0
_LONGEST_IDLE_S = 60.0


class NsqConsumer(Consumer):
    """See :class:`~mr.queue.nsq.queue.NsqQueue`, which makes it.

    What it was told to do is done a moment later; where the connection is lost before that, messages come again.
    """

    def __init__(
        self,
        settings: Settings,
        lookup: Lookup,
        publisher: Publisher,
        channel: str,
        max_in_flight: int,
        visibility: float,
    ) -> None:
        self._publisher = publisher
        self._visibility = min(_LONGEST_VISIBILITY_S, max(_SHORTEST_VISIBILITY_S, visibility))
        self._holdings = Holdings(max_in_flight)
        self._switchboard = Switchboard(settings, lookup, publisher, self._holdings, channel, self._visibility)

    def subscribe(self, topics: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(topics))
        check_topics(wanted)
        self._check_open()
        unwanted = self._holdings.want(wanted)
        self._switchboard.subscribe(wanted, unwanted)

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """:raises QueueUnavailable: nothing is at hand and no nsqd can be consumed from; each is named."""
        give_up = time.monotonic() + timeout
        while True:
            self._check_open()
            taken = self._holdings.take(limit)
            if self._switchboard.is_to_share():
                self._switchboard.poke()
            left = give_up - time.monotonic()
            if taken or left <= 0 or limit < 1:
                return taken
            self._holdings.wait(left)

    def fileno(self) -> int:
        return self._holdings.fileno()

    def idle_for(self) -> float:
        # Whatever there is to know makes the descriptor readable.
        return _LONGEST_IDLE_S

    def finish(self, deliveries: Sequence[Delivery]) -> None:
        self._send([(flight, wire.finish(flight.id)) for flight in self._holdings.end(deliveries)])

    def requeue(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        check_delay(delay)
        ended = self._holdings.end(deliveries)
        if ended and delay > self._publisher.longest_delay():
            self._switchboard.put_off(ended, delay)
        else:
            self._send([(flight, wire.requeue(flight.id, delay)) for flight in ended])

    def touch(self, deliveries: Sequence[Delivery]) -> None:
        renewed = self._holdings.renew(deliveries, time.monotonic() + self._visibility)
        self._send([(flight, wire.touch(flight.id)) for flight in renewed])

    def restarts(self) -> int:
        return self._switchboard.restarts

    def close(self) -> None:
        """Waits until nsqd has taken everything back, for a second or two at most."""
        if not self._holdings.is_closed:
            self._switchboard.close()
            self._holdings.close()

    def _send(self, commands: list[tuple[Flight, bytes]]) -> None:
        if commands:
            for flight, command in commands:
                flight.source.outgoing.append(command)
            self._switchboard.poke()

    def _check_open(self) -> None:
        if self._holdings.is_closed:
            raise QueueUnavailable("This consumer is closed.")
