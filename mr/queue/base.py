"""What the engine needs of a message queue: it wakes workers, and is never the record of anything.

Delivery is at least once and in no order; a message may come twice, late or, where a server dies, never. A topic's
messages go to every *channel* of it, and within a channel to one consumer each. A topic that has no channel yet
keeps its messages for the first one. Words and behaviour are those of NSQ (https://nsq.io/overview/design.html).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mr.findings import Finding


class Message(NamedTuple):
    """What is published. ``delay`` is in seconds."""

    topic: str
    body: bytes
    delay: float = 0.0


class Delivery(NamedTuple):
    """A message in the hands of a consumer. ``handle`` is the driver's own, ``attempts`` counts from 1."""

    topic: str
    body: bytes
    attempts: int
    handle: object


class Backlog(NamedTuple):
    """How many messages wait on a channel of a topic to be taken; without a channel, for the topic's first one.

    ``consumers`` are those that the channel has; None: nobody knows.
    """

    topic: str
    channel: str
    waiting: int
    consumers: int | None = None


class Consumer(ABC):
    """Takes messages of some topics on one channel. Used by one thread.

    A delivered message is *in flight* until it is finished or requeued; one that is neither, nor touched, for the
    visibility timeout is delivered again, and so is everything in flight of a consumer whose process died.
    """

    @abstractmethod
    def subscribe(self, topics: Iterable[str]) -> None:
        """From now on these topics, and no others. Topics need not exist. May be repeated."""

    @abstractmethod
    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """At most ``limit`` messages; waits up to ``timeout`` seconds for the first (0: not at all).

        :raises QueueUnavailable: the queue cannot be reached. May be asked again.
        """

    @abstractmethod
    def fileno(self) -> int:
        """A descriptor that turns readable when :meth:`receive` may have something."""

    @abstractmethod
    def idle_for(self) -> float:
        """Seconds after which :meth:`receive` is worth asking even if :meth:`fileno` stays silent."""

    @abstractmethod
    def finish(self, deliveries: Sequence[Delivery]) -> None:
        """Ends these messages for this channel. One that timed out meanwhile is passed over."""

    @abstractmethod
    def requeue(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        """Gives these messages back, to be delivered again after ``delay`` seconds."""

    @abstractmethod
    def touch(self, deliveries: Sequence[Delivery]) -> None:
        """Starts the visibility timeout of these messages anew."""

    @abstractmethod
    def restarts(self) -> int:
        """How often the queue was lost and found again, so that messages may be gone. Only ever grows."""

    @abstractmethod
    def close(self) -> None:
        """Gives everything in flight back and lets go. May be repeated."""


class Queue(ABC):
    """A set of topics. Safe to use from several threads and processes."""

    local: bool = False
    """True where calls wait for no network, so that an event loop may make them itself."""

    max_body_bytes: int = 1_000_000

    @abstractmethod
    def publish(self, messages: Sequence[Message]) -> None:
        """Adds messages to their topics, all or none where the technology can. None at all: asks whether it could.

        :raises QueueUnavailable: they may or may not have been taken.
        """

    @abstractmethod
    def consumer(self, channel: str, *, max_in_flight: int, visibility: float = 60.0) -> Consumer:
        """A consumer without topics yet. It never holds more than ``max_in_flight`` messages."""

    def examine(self) -> list[Finding]:
        """What its technology can say about its health, within seconds; nothing where it has nothing to say.

        It raises nothing: a server that does not answer is a finding.
        """
        return []

    def backlogs(self) -> list[Backlog] | None:
        """All channels that there are, and topics without one; None where the technology cannot tell.

        :raises QueueUnavailable: it could tell, but does not answer.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Lets go of connections and files. May be repeated."""
