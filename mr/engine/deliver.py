"""Delivering what is owed: tried again with growing pauses for a day, then listed as dead until somebody looks."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from mr.engine.ops import Change, Commit, Deliver, Env, Flow, Get, List, Read, Write
from mr.kv.base import Compare
from mr.model import deliveries, keys
from mr.model.deliveries import Delivery

_LOOK_AT_DEAD_S = 300.0


@dataclass
class Memory:
    """What a courier knows of a workflow's deliveries: which revision of each is due when."""

    due: dict[str, tuple[int, float]] = field(default_factory=dict)
    next_burial: float = 0.0


def due(env: Env, workflow: str, memory: Memory, most: int) -> Flow[list[Read[Delivery]]]:
    """Those that are to be tried now, ``most`` at most. What waits for its next try costs no more than its key."""
    now, page_size = env.clock(), env.settings.page
    found: list[Read[Delivery]] = []
    seen: set[str] = set()
    after = ""
    while True:
        page: list[Read[Delivery]] = yield List(keys.deliveries(workflow), None, after, page_size)
        news = [read.key for read in page if memory.due.get(read.key, (0, 0.0))[0] != read.modified]
        for start in range(0, len(news), 100):
            for read in (yield Get(tuple((key, Delivery) for key in news[start : start + 100]))):
                if read.record is not None:
                    memory.due[read.key] = (read.modified, read.record.due_timestamp)
        ripe = [read.key for read in page if memory.due.get(read.key, (0, now + 1))[1] <= now]
        seen.update(read.key for read in page)
        if wanted := ripe[: most - len(found)]:
            found += [read for read in (yield Get(tuple((key, Delivery) for key in wanted))) if read.record is not None]
        if len(page) < page_size:
            memory.due = {key: known for key, known in memory.due.items() if key in seen}
            return found
        if len(found) >= most:
            return found
        after = page[-1].key


def deliver(env: Env, owed: Read[Delivery]) -> Flow[None]:
    """One try at one delivery."""
    record = owed.record
    assert record is not None
    failure = yield Deliver(record)
    if failure is None:
        yield Commit(delivered(owed))
        return
    settings, now = env.settings, env.clock()
    ceiling = min(settings.deliver_last_s, settings.deliver_first_s * 2.0 ** min(record.attempts, 30))
    pause = max(ceiling * (0.5 + 0.5 * env.jitter()), min(failure.retry_after_s, settings.deliver_last_s))
    if failure.is_final or now + pause > record.created_timestamp + settings.delivery_s:
        yield Commit(bury(owed, failure.message, now))
    else:
        yield Commit(put_off(owed, failure.message, now + pause))


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


def send_again(dead: Read[Delivery], now: float) -> Change:
    """One that was given up has as long as it had before, under the same ID."""
    assert dead.record is not None
    owed = msgspec.structs.replace(
        dead.record, attempts=0, created_timestamp=now, due_timestamp=now, buried_timestamp=None
    )
    return Change("send-again", _unchanged(dead), (Write(deliveries.live_key(dead.key), owed),), (dead.key,))


def drop(dead: Read[Delivery]) -> Change:
    return Change("drop", _unchanged(dead), (), (dead.key,))
