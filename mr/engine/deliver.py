"""Delivering what is owed: tried again with growing pauses for a day, then listed as dead until somebody looks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from mr.engine.ops import Change, Commit, Deliver, Env, Flow, Get, List, Read, Undelivered, Write
from mr.errors import CorruptRecord
from mr.kv.base import Compare
from mr.model import deliveries, keys
from mr.model.deliveries import Delivery

_LOOK_AT_DEAD_S = 300.0

log = logging.getLogger(__name__)


class Known(NamedTuple):
    """A delivery as it was read: at which revision, how often it was tried, when it is due, and for whom."""

    modified: int
    attempts: int
    due: float
    target: str


@dataclass
class Memory:
    """What a courier knows of a workflow's deliveries."""

    known: dict[str, Known] = field(default_factory=dict)
    next_burial: float = 0.0


def due(env: Env, workflow: str, memory: Memory, takes: Callable[[str, str], bool]) -> Flow[list[Read[Delivery]]]:
    """Those that are to be tried now, of which ``takes`` says by key and target whether there is room for it.

    Those that were tried least come first. What waits costs no more than the listing of its key.
    """
    now, page_size = env.clock(), env.settings.page
    seen: dict[str, Known] = {}
    after, is_last = "", False
    while not is_last:
        page: list[Read[Delivery]] = yield List(keys.deliveries(workflow), None, after, page_size)
        is_last = len(page) < page_size
        known = {read.key: memory.known[read.key] for read in page if read.key in memory.known}
        news = {
            read.key: read.modified
            for read in page
            if read.key not in known or known[read.key].modified != read.modified
        }
        # What nobody can read is not looked at again until it is written again.
        known |= {key: Known(modified, 0, math.inf, "") for key, modified in news.items()}
        for read in (yield from _read(list(news))):
            record = read.record
            known[read.key] = Known(read.modified, record.attempts, record.due_timestamp, record.target)
        seen.update(known)
        after = page[-1].key if page else ""
    memory.known = seen
    ripe = sorted((one.attempts, one.due, key) for key, one in seen.items() if one.due <= now)
    wanted = [key for _, _, key in ripe if takes(key, seen[key].target)]
    return (yield from _read(wanted))


def _read(names: list[str]) -> Flow[list[Any]]:
    """Those that are there."""
    found: list[Any] = []
    for start in range(0, len(names), 100):
        some = names[start : start + 100]
        try:
            found += yield Get(tuple((key, Delivery) for key in some))
        except CorruptRecord as error:
            if len(some) > 1:
                for name in some:
                    found += yield from _read([name])
            else:
                log.warning("a delivery is left where it is: %s", error)
    return [read for read in found if read.record is not None]


def deliver(env: Env, owed: Read[Delivery]) -> Flow[Undelivered | None]:
    """One try at one delivery. Answers None where it was delivered, and otherwise why not."""
    record = owed.record
    assert record is not None
    failure: Undelivered | None = yield Deliver(record)
    if failure is None:
        yield Commit(delivered(owed))
        return None
    settings, now = env.settings, env.clock()
    since = record.resent_timestamp or record.created_timestamp
    # Half as long again as it has been waited already: soon there after a short outage, rarely there in a long one.
    ceiling = min(settings.deliver_last_s, max(settings.deliver_first_s, (now - since) / 2))
    pause = max(ceiling * (0.5 + 0.5 * env.jitter()), min(failure.retry_after_s, settings.deliver_last_s))
    end = since + settings.delivery_s
    if failure.is_final or now >= end:
        yield Commit(bury(owed, failure.message, now))
    else:
        yield Commit(put_off(owed, failure.message, min(now + pause, end)))
    return failure


def forget_dead(env: Env, workflow: str, memory: Memory) -> Flow[None]:
    """Removes what is dead for so long that nobody will ask for it."""
    now = env.clock()
    if now < memory.next_burial:
        return
    memory.next_burial = now + _LOOK_AT_DEAD_S
    after = ""
    while page := (yield List(keys.deads(workflow), Delivery, after, env.settings.page)):
        for read in page:
            if read.record is not None and (read.record.buried_timestamp or now) + env.settings.dead_s <= now:
                yield Commit(drop(read))
        after = page[-1].key


# --- transitions ------------------------------------------------------------------------------------------------------


def _unchanged(read: Read[Delivery]) -> tuple[Compare, ...]:
    return (Compare("modified", read.key, read.modified, "delivery"),)


def delivered(owed: Read[Delivery]) -> Change:
    return Change("deliver", _unchanged(owed), (), (owed.key,))


def put_off(owed: Read[Delivery], error: str, until: float) -> Change:
    """It is tried again then. ``error``: why it was not delivered now."""
    assert owed.record is not None
    later = msgspec.structs.replace(
        owed.record, attempts=owed.record.attempts + 1, last_error=error[:1000], due_timestamp=until
    )
    return Change("put-off", _unchanged(owed), (Write(owed.key, later),))


def bury(owed: Read[Delivery], error: str, now: float) -> Change:
    """It is given up, and listed among the dead."""
    assert owed.record is not None
    dead = Write(deliveries.dead_key(owed.key), deliveries.given_up(owed.record, error, now))
    return Change("bury", _unchanged(owed), (dead,), (owed.key,))


def send_again(read: Read[Delivery], now: float) -> Change:
    """One that waits, or was given up, is tried at once, and has as long as in the beginning. Its ID stays."""
    assert read.record is not None
    owed = msgspec.structs.replace(
        read.record, attempts=0, resent_timestamp=now, due_timestamp=now, buried_timestamp=None
    )
    key = deliveries.live_key(read.key)
    deletes = () if key == read.key else (read.key,)
    return Change("send-again", _unchanged(read), (Write(key, owed),), deletes)


def drop(read: Read[Delivery]) -> Change:
    """One that waits, or was given up, is delivered no more."""
    return Change("drop", _unchanged(read), (), (read.key,))
