"""What a worker takes of the queue, and which of it is begun next: requests take turns.

Messages of one topic come in the order in which they were sent, so that all that a wide request has sent may stand
before the only one of a small request. A worker therefore looks at a few more messages than it needs.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from mr.engine.shell import Body
from mr.errors import QueueUnavailable
from mr.handlers.turns import Turns
from mr.queue.base import Consumer, Delivery
from mr.worker.pace import Pace

_DOWN_S = 1.0
"""How long a queue that does not answer is left alone."""

_OTHERS = 8
_OTHERS_AFTER_S = 0.01
"""How many more are taken, and how often, where handlers are short and all that is at hand is of one request."""

_LOOK = 16
_LOOK_AFTER_S = 0.02
"""How many more are looked at, and how often, where handlers are long and a runner is free."""

_LOOK_FAR = 64
LOOK_FAR_AFTER_S = 0.1
"""How many are looked at, and how often, while all runners are busy."""

_KEPT_S = 1.0
"""How long what was found so may wait for a runner here: after that, another worker may have one."""

log = logging.getLogger(__name__)

Owner = tuple[str, str]
"""A workflow and a request."""


class Wanted(NamedTuple):
    """A message, and what it says: whose it is, and the invocation to look at."""

    delivery: Delivery
    owner: Owner
    invocation_id: str


class Intake:
    """What is at hand of a worker. ``busy`` is always how many invocations of each request it works on.

    ``clock`` is monotonic, in seconds; ``drop`` ends a message that nobody can read.
    """

    def __init__(
        self, consumer: Consumer, pace: Pace, runners: int, clock: Callable[[], float], drop: Callable[[Delivery], None]
    ) -> None:
        self._consumer, self._pace, self._runners = consumer, pace, runners
        self._clock, self._drop = clock, drop
        self._waiting: Turns[Wanted] = Turns()
        self._down_until = 0.0
        self._received = self._looked = self._found = float("-inf")

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_down(self) -> bool:
        """Whether the queue did not answer a moment ago."""
        return self._down_until > self._clock()

    def deliveries(self) -> list[Delivery]:
        return [wanted.delivery for wanted in self._waiting]

    def next(self, busy: Counter[Owner]) -> Wanted | None:
        """What to begin next: of requests that the fewest invocations are worked on of, in turn."""
        if not self._waiting or busy.total() >= self._pace.most:
            return None
        return self._waiting.take(lambda owner: busy[owner])

    def wants(self, busy: Counter[Owner]) -> bool:
        """Whether it would take messages now."""
        if self.is_down or self._room(busy) <= 0:
            return False
        # As many as that are taken many at a time.
        return len(self._waiting) <= self._pace.most // 4 or self._places_for_others() > 0

    def fill(self, busy: Counter[Owner]) -> None:
        """Takes messages, where it wants some."""
        has_place = busy.total() < self._pace.most
        if self._pace.is_long and has_place and busy and self._may_look(busy, _LOOK_AFTER_S):
            self._look(busy, _LOOK)
        elif self.wants(busy):
            for delivery in self._receive(self._room(busy)):
                self._put_by(self._read(delivery))

    def look_far(self, busy: Counter[Owner]) -> None:
        """Looks for requests that wait behind one that is worked on. Call it often."""
        if not self._pace.is_long or busy.total() < self._pace.most:
            self._found = self._clock()
        elif self._may_look(busy, LOOK_FAR_AFTER_S):
            self._look(busy, _LOOK_FAR)
        elif self._clock() - self._found > _KEPT_S:
            self.give_back()

    def give_back(self) -> None:
        """Everything, for other workers or a later time."""
        self._requeue(self.deliveries())
        self._waiting.clear()

    # --- taking -----------------------------------------------------------------------------------------------------

    def _room(self, busy: Counter[Owner]) -> int:
        return max(self._pace.hoard - len(self._waiting) - busy.total(), self._places_for_others())

    def _places_for_others(self) -> int:
        is_time = self._clock() - self._received >= _OTHERS_AFTER_S
        return _OTHERS if is_time and len(self._waiting.owners) == 1 and not self._pace.is_long else 0

    def _may_look(self, busy: Counter[Owner], pause_s: float) -> bool:
        """Not while somebody is at hand who is not worked on, and is next."""
        is_time = not self.is_down and self._clock() - self._looked >= pause_s
        return is_time and self._waiting.owners <= busy.keys()

    def _look(self, busy: Counter[Owner], more: int) -> None:
        """Takes what there is room for, of requests that are not worked on first; the rest goes to the queue's end."""
        self._looked = self._found = self._clock()
        room = max(0, self._pace.hoard - len(self._waiting) - busy.total())
        newcomers: list[Wanted] = []
        others: list[Wanted] = []
        for delivery in self._receive(room + more):
            wanted = self._read(delivery)
            if wanted is not None:
                is_new = not busy[wanted.owner] and len(newcomers) < max(room, self._runners)
                (newcomers if is_new else others).append(wanted)
        kept = max(0, room - len(newcomers))
        for wanted in [*newcomers, *others[:kept]]:
            self._put_by(wanted)
        self._requeue(wanted.delivery for wanted in others[kept:])

    def _receive(self, limit: int) -> list[Delivery]:
        self._received = self._clock()
        try:
            return self._consumer.receive(limit, 0)
        except QueueUnavailable as error:
            log.warning("the queue does not answer, trying again: %s", error)
            self._down_until = self._clock() + _DOWN_S
            return []

    def _read(self, delivery: Delivery) -> Wanted | None:
        try:
            body = msgspec.json.decode(delivery.body, type=Body)
        except msgspec.DecodeError as error:
            log.warning("a message on %s that nobody can read is dropped: %s", delivery.topic, error)
            self._drop(delivery)
            return None
        return Wanted(delivery, (delivery.topic.split(".")[1], body.request), body.invocation)

    def _put_by(self, wanted: Wanted | None) -> None:
        if wanted is not None:
            self._waiting.add(wanted.owner, wanted)

    def _requeue(self, deliveries: Iterable[Delivery]) -> None:
        try:
            self._consumer.requeue(list(deliveries))
        except QueueUnavailable as error:
            log.warning("messages could not be given back, they will come again by themselves: %s", error)
