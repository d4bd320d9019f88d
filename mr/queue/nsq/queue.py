"""The queue itself: what its users get."""

from __future__ import annotations

from collections.abc import Sequence

from mr.findings import Finding
from mr.queue.base import Backlog, Message, Queue
from mr.queue.limits import check_consumer, check_messages
from mr.queue.nsq import examination
from mr.queue.nsq.consumer import NsqConsumer
from mr.queue.nsq.lookup import Lookup, Node
from mr.queue.nsq.publisher import Publisher
from mr.queue.nsq.settings import read_settings


class NsqQueue(Queue):
    """Topics on all nsqd that the URL names, or that the nsqlookupd do which it names.

    Nothing is connected to before it is needed. Visibility timeouts are from 1 second to NSQ's 15 minutes; a message
    that was touched for 15 minutes on end is delivered again all the same (nsqd's ``--max-msg-timeout``). Messages that
    an nsqd holds in memory are lost when it is killed.

    :raises InvalidConfig: the URL is wrong, or names certificates that cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._settings = read_settings(url)
        self._lookup = Lookup(self._settings)
        self._publisher = Publisher(self._settings, self._lookup)

    def publish(self, messages: Sequence[Message]) -> None:
        """To one nsqd, or a part to each where they are many. Nothing at all goes through where one can be reached.

        :raises QueueUnavailable: none could, each is named; any part of the messages may have been taken.
        """
        check_messages(messages, self.max_body_bytes)
        if messages:
            self._publisher.publish(messages)
        else:
            self._publisher.check()

    def consumer(self, channel: str, *, max_in_flight: int, visibility: float = 60.0) -> NsqConsumer:
        """Starts a thread, which ends when the consumer is closed. Not for processes that are patched for greenlets."""
        check_consumer(channel, max_in_flight, visibility)
        return NsqConsumer(self._settings, self._lookup, self._publisher, channel, max_in_flight, visibility)

    def nodes(self) -> tuple[Node, ...]:
        """Every nsqd there is, as far as is known, and where its statistics are. May wait for the network."""
        return self._lookup.nodes()

    def examine(self) -> list[Finding]:
        return examination.examine(self._settings, self._lookup)

    def backlogs(self) -> list[Backlog] | None:
        return examination.backlogs(self._lookup)

    def close(self) -> None:
        """Refuses what is published from now on. Consumers are closed by those who use them."""
        self._publisher.close()
