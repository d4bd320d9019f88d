"""The queue of one process, in its memory: for tests, and for programs that need no second process."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from mr.errors import QueueUnavailable
from mr.queue.base import Consumer, Delivery, Message, Queue
from mr.queue.limits import check_consumer, check_delay, check_messages, check_topics

_LONGEST_IDLE = 60.0

# Holds the messages of a topic until its first real channel takes them over. No channel can be called this.
_NO_CHANNEL = ""


class _Item:
    """A message as one channel has it."""

    __slots__ = ("attempts", "body")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.attempts = 0


class _Channel:
    """What one channel of one topic has ready, oldest first, and who listens."""

    __slots__ = ("consumers", "ready", "topic")

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.ready: deque[_Item] = deque()
        self.consumers: set[MemoryConsumer] = set()


class _Flight:
    """A delivery that is neither finished nor given back: the handle that a consumer gets."""

    __slots__ = ("channel", "deadline", "item")

    def __init__(self, channel: _Channel, item: _Item, deadline: float) -> None:
        self.channel = channel
        self.item = item
        self.deadline = deadline


class MemoryQueue(Queue):
    """A queue whose state is this object's and ends with it.

    ``clock`` answers seconds and never goes back; delays and visibility timeouts are reckoned by it. How long
    :meth:`Consumer.receive` blocks is reckoned in real time: a clock that a test moves by hand goes with ``timeout=0``.
    """

    local = True

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._topics: dict[str, dict[str, _Channel]] = {}
        self._later: list[tuple[float, int, _Channel, _Item]] = []
        self._serial = itertools.count()
        self._consumers: set[MemoryConsumer] = set()
        self._closed = False

    def publish(self, messages: Sequence[Message]) -> None:
        check_messages(messages, self.max_body_bytes)
        with self._lock:
            if self._closed:
                raise QueueUnavailable("This queue is closed.")
            now = self._clock()
            for message in messages:
                channels = self._topics.setdefault(message.topic, {})
                if not channels:
                    channels[_NO_CHANNEL] = _Channel(message.topic)
                for channel in channels.values():
                    self._add(channel, _Item(message.body), message.delay, now)

    def consumer(self, channel: str, *, max_in_flight: int, visibility: float = 60.0) -> MemoryConsumer:
        check_consumer(channel, max_in_flight, visibility)
        consumer = MemoryConsumer(self, channel, max_in_flight, visibility)
        with self._lock:
            self._consumers.add(consumer)
        return consumer

    def close(self) -> None:
        """Refuses what is published from now on. Consumers are closed by those who use them."""
        with self._lock:
            self._closed = True

    # What follows is called with the lock held.

    def _channel(self, topic: str, name: str) -> _Channel:
        channels = self._topics.setdefault(topic, {})
        if _NO_CHANNEL in channels:
            channels[name] = channels.pop(_NO_CHANNEL)
        return channels.setdefault(name, _Channel(topic))

    def _add(self, channel: _Channel, item: _Item, delay: float, now: float) -> None:
        if delay > 0:
            heapq.heappush(self._later, (now + delay, next(self._serial), channel, item))
        else:
            channel.ready.append(item)
        # Also for a delayed one: whoever waits must learn that it has something to wake up for.
        for consumer in channel.consumers:
            consumer._signal()

    def _advance(self, now: float) -> None:
        """Makes ready what became due: delayed messages, and those in flight for too long."""
        while self._later and self._later[0][0] <= now:
            _, _, channel, item = heapq.heappop(self._later)
            self._add(channel, item, 0.0, now)
        for consumer in self._consumers:
            while consumer._flights:
                flight = next(iter(consumer._flights))
                if flight.deadline > now:
                    break
                del consumer._flights[flight]
                self._add(flight.channel, flight.item, 0.0, now)

    def _next_due(self) -> float:
        """When :meth:`_advance` has something to do, on the clock."""
        due = self._later[0][0] if self._later else float("inf")
        firsts = (next(iter(consumer._flights)).deadline for consumer in self._consumers if consumer._flights)
        return min(due, *firsts, float("inf"))


class MemoryConsumer(Consumer):
    """See :class:`MemoryQueue`, which makes it."""

    def __init__(self, queue: MemoryQueue, channel: str, max_in_flight: int, visibility: float) -> None:
        self._queue = queue
        self._name = channel
        self._max_in_flight = max_in_flight
        self._visibility = visibility
        self._channels: list[_Channel] = []
        # In the order of their deadlines: all get the same time, and a touch moves to the end.
        self._flights: dict[_Flight, None] = {}
        self._closed = False
        self._readable = False
        self._pipe_out, self._pipe_in = os.pipe()

    def subscribe(self, topics: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(topics))
        check_topics(wanted)
        with self._queue._lock:
            self._check_open()
            for channel in self._channels:
                channel.consumers.discard(self)
            self._channels = [self._queue._channel(topic, self._name) for topic in wanted]
            for channel in self._channels:
                channel.consumers.add(self)
            self._signal()

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        give_up = time.monotonic() + timeout
        while True:
            with self._queue._lock:
                self._check_open()
                taken = self._take(limit)
            left = give_up - time.monotonic()
            if taken or left <= 0 or limit < 1:
                return taken
            poll = select.poll()
            poll.register(self._pipe_out, select.POLLIN)
            # Rounded up: a wait that ends a fraction of a millisecond early would spin until the time has come.
            poll.poll(int(min(left, self.idle_for()) * 1000) + 1)

    def fileno(self) -> int:
        return self._pipe_out

    def idle_for(self) -> float:
        with self._queue._lock:
            return min(_LONGEST_IDLE, max(0.0, self._queue._next_due() - self._queue._clock()))

    def finish(self, deliveries: Sequence[Delivery]) -> None:
        with self._queue._lock:
            self._end_flights(deliveries)
            self._signal_if_ready()

    def requeue(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        check_delay(delay)
        with self._queue._lock:
            now = self._queue._clock()
            for flight in self._end_flights(deliveries):
                self._queue._add(flight.channel, flight.item, delay, now)
            self._signal_if_ready()

    def touch(self, deliveries: Sequence[Delivery]) -> None:
        with self._queue._lock:
            deadline = self._queue._clock() + self._visibility
            for flight in self._end_flights(deliveries):
                flight.deadline = deadline
                self._flights[flight] = None

    def restarts(self) -> int:
        return 0

    def close(self) -> None:
        with self._queue._lock:
            if self._closed:
                return
            self._closed = True
            self._queue._consumers.discard(self)
            for channel in self._channels:
                channel.consumers.discard(self)
            for flight in self._flights:
                self._queue._add(flight.channel, flight.item, 0.0, self._queue._clock())
            self._flights.clear()
            os.close(self._pipe_out)
            os.close(self._pipe_in)

    # What follows is called with the queue's lock held.

    def _check_open(self) -> None:
        if self._closed:
            raise QueueUnavailable("This consumer is closed.")

    def _take(self, limit: int) -> list[Delivery]:
        now = self._queue._clock()
        self._queue._advance(now)
        room = min(limit, self._max_in_flight - len(self._flights))
        deadline = now + self._visibility
        sources = [channel for channel in self._channels if channel.ready]
        # One of each in turn, in an order that changes: no backlog keeps another topic waiting.
        random.shuffle(sources)
        taken: list[Delivery] = []
        while sources and len(taken) < room:
            for channel in sources[: room - len(taken)]:
                item = channel.ready.popleft()
                item.attempts += 1
                flight = _Flight(channel, item, deadline)
                self._flights[flight] = None
                taken.append(Delivery(channel.topic, item.body, item.attempts, flight))
            sources = [channel for channel in sources if channel.ready]
        if not self._may_take():
            self._unsignal()
        return taken

    def _end_flights(self, deliveries: Sequence[Delivery]) -> list[_Flight]:
        """Ends these deliveries and answers those that had not ended before."""
        self._queue._advance(self._queue._clock())
        ended = []
        for delivery in deliveries:
            flight = delivery.handle
            if isinstance(flight, _Flight) and flight in self._flights:
                del self._flights[flight]
                ended.append(flight)
        return ended

    def _may_take(self) -> bool:
        return len(self._flights) < self._max_in_flight and any(channel.ready for channel in self._channels)

    def _signal_if_ready(self) -> None:
        if self._may_take():
            self._signal()

    def _signal(self) -> None:
        if not self._readable and not self._closed:
            self._readable = True
            os.write(self._pipe_in, b"!")

    def _unsignal(self) -> None:
        if self._readable:
            self._readable = False
            os.read(self._pipe_out, 1)
