"""Where deliveries go, and when each is tried again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from test_window import scene

from mr.engine import deliver, ops, tell
from mr.engine.transitions import Hold, blank
from mr.errors import CorruptRecord
from mr.handlers.protocol import Told
from mr.model.deliveries import Delivery
from mr.model.entities import encode
from mr.worker.courier import AT_ONCE, PER_PLACE, Places, place_of

OWED = Delivery(
    delivery_id="r_0_0",
    workflow_name="w",
    request_id="r",
    kind="notification",
    event="request.done",
    target="https://example.com/hook",
    created_timestamp=1000.0,
    due_timestamp=1000.0,
)
KEY = "delivery/w/r/0.0"


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("https://Example.com:444/a", "example.com:444"),
        ("http://example.com/b?c=d", "example.com"),
        ("mailto:a@example.com", "mailto"),
        ("file", "file"),
        ("file:a/b", "file"),
        ("class:a.B", "class"),
        ("email", "mailto"),
        ("http", "results.example.com"),
    ],
)
def test_what_is_down_together_is_one_place(target: str, place: str) -> None:
    assert place_of(target, "https://results.example.com/in") == place


def test_one_place_takes_no_more_than_its_share_and_all_together_no_more_than_there_are_threads() -> None:
    places = Places(lambda: 0.0)
    taken = 0
    while places.has_room("a"):
        places.enter("a")
        taken += 1
    assert taken == PER_PLACE
    names = iter("bcdefghijklmn")
    while places.has_room(name := next(names)):
        places.enter(name)
        taken += 1
    assert taken == AT_ONCE


def test_a_place_that_is_down_rests_longer_and_longer_and_is_tried_by_one_until_it_is_up() -> None:
    now = 0.0
    places = Places(lambda: now)
    rests = []
    for _ in range(7):
        assert places.has_room("down")
        places.enter("down")
        assert not places.has_room("down") or now == 0
        places.leave("down", has_worked=False)
        began = now
        while not places.has_room("down"):
            now += 0.5
        rests.append(now - began)
    assert rests == [1, 2, 4, 8, 16, 30, 30]
    assert places.has_room("up")
    places.enter("down")
    places.leave("down")
    assert places.has_room("down")
    places.enter("down")
    places.leave("down", has_worked=True)
    places.enter("down")
    assert places.has_room("down")


def env(now: float, **settings: Any) -> ops.Env:
    return ops.Env(replace(ops.Settings(), **settings), lambda: now, lambda: "n", lambda: 0.0)


def tried(failure: ops.Undelivered | None, now: float = 1000.0, attempts: int = 0, **settings: Any) -> ops.Change:
    """The change that one try leads to."""
    record = msgspec.structs.replace(OWED, attempts=attempts)
    flow = deliver.deliver(env(now, **settings), ops.Read(KEY, record, 5, 7, 1))
    assert next(flow) == ops.Deliver(record)
    op = flow.send(failure)
    assert isinstance(op, ops.Commit)
    [compare] = op.change.compares
    assert (compare.attribute, compare.key, compare.value) == ("modified", KEY, 7)
    with pytest.raises(StopIteration) as stop:
        flow.send(ops.Committed(True))
    assert stop.value.value is failure
    return op.change


def test_what_was_delivered_is_forgotten() -> None:
    change = tried(None)
    assert (change.writes, change.deletes) == ((), (KEY,))


def test_what_was_not_is_tried_again_after_pauses_that_grow_with_its_age_up_to_an_hour() -> None:
    pauses = []
    for age in (0, 4, 60, 600, 7200, 80_000, 86_000):
        [write] = tried(ops.Undelivered("down"), 1000.0 + age, attempts=3).writes
        assert isinstance(write.record, Delivery) and write.key == KEY
        assert (write.record.attempts, write.record.last_error) == (4, "down")
        pauses.append(write.record.due_timestamp - 1000 - age)
    # Without jitter, which at least halves them.
    # The last try is at the end of the day.
    assert pauses == [1, 1, 15, 150, 1800, 1800, 400]


def test_whoever_asks_for_a_pause_gets_it() -> None:
    [write] = tried(ops.Undelivered("busy", retry_after_s=120)).writes
    assert isinstance(write.record, Delivery) and write.record.due_timestamp == 1120


@pytest.mark.parametrize(
    ("failure", "now"), [(ops.Undelivered("gone", is_final=True), 1000.0), (ops.Undelivered("down"), 1000.0 + 86400)]
)
def test_what_is_refused_for_good_or_took_a_day_is_listed_as_dead_and_can_be_sent_again(
    failure: ops.Undelivered, now: float
) -> None:
    change = tried(failure, now)
    [write] = change.writes
    assert change.deletes == (KEY,) and write.key == "dead/w/r/0.0"
    dead = write.record
    assert isinstance(dead, Delivery) and (dead.buried_timestamp, dead.last_error) == (now, failure.message)
    again = deliver.send_again(ops.Read(write.key, dead, 8, 9, 1), 2e9)
    [back] = again.writes
    assert again.deletes == ("dead/w/r/0.0",) and back.key == KEY
    assert isinstance(back.record, Delivery)
    assert (back.record.delivery_id, back.record.attempts, back.record.resent_timestamp) == ("r_0_0", 0, 2e9)


def listed(
    memory: deliver.Memory, entries: dict[str, tuple[int, Delivery | None]], takes: Any, page: int
) -> tuple[list[str], int]:
    """Which keys are to be tried, and how many records were read to find out."""
    flow = deliver.due(env(1000.0, page=page), "w", memory, takes)
    answer: Any = None
    problem: Exception | None = None
    reads = 0
    while True:
        try:
            op = flow.send(answer) if problem is None else flow.throw(problem)
            problem = None
        except StopIteration as stop:
            return [read.key for read in stop.value], reads
        if isinstance(op, ops.List):
            assert op.kind is None
            found = [key for key in sorted(entries) if key > op.after][: op.limit]
            answer = [ops.Read(key, None, 1, entries[key][0], 1) for key in found]
        else:
            assert isinstance(op, ops.Get)
            reads += len(op.wants)
            if any(entries[key][1] is None for key, _ in op.wants):
                problem = CorruptRecord("delivery/w", "it is of another version")
            answer = [ops.Read(key, entries[key][1], 1, entries[key][0], 1) for key, _ in op.wants]


@pytest.mark.parametrize("page", [2, 100])
def test_what_waits_is_read_once_and_what_is_due_when_there_is_room(page: int) -> None:
    later = msgspec.structs.replace(OWED, due_timestamp=1001.0)
    entries: dict[str, tuple[int, Delivery | None]] = {
        f"delivery/w/{number}/0.0": (number, OWED if number % 2 else later) for number in range(1, 8)
    }
    memory = deliver.Memory()
    odd = [f"delivery/w/{number}/0.0" for number in (1, 3, 5, 7)]
    assert listed(memory, entries, lambda key, target: False, page) == ([], 7)
    assert listed(memory, entries, lambda key, target: key < "delivery/w/5", page) == (odd[:2], 2)
    assert listed(memory, entries, lambda key, target: target == OWED.target, page) == (odd, 4)
    entries[odd[0]] = (9, later)
    del entries[odd[1]]
    assert listed(memory, entries, lambda key, target: True, page) == (odd[2:], 3)
    assert set(memory.known) == set(entries)


def test_what_was_tried_least_comes_first() -> None:
    tries = {"a": 3, "b": 0, "c": 1}
    entries: dict[str, tuple[int, Delivery | None]] = {
        f"delivery/w/{name}/0.0": (1, msgspec.structs.replace(OWED, attempts=attempts))
        for name, attempts in tries.items()
    }
    asked: list[str] = []
    listed(deliver.Memory(), entries, lambda key, target: asked.append(key.split("/")[2]), 100)
    assert asked == ["b", "c", "a"]


def test_one_that_nobody_can_read_keeps_no_other_from_being_delivered(caplog: pytest.LogCaptureFixture) -> None:
    entries: dict[str, tuple[int, Delivery | None]] = {"delivery/w/a/0": (1, None), "delivery/w/b/0.0": (2, OWED)}
    memory = deliver.Memory()
    for _ in range(3):
        found, _ = listed(memory, entries, lambda key, target: True, 100)
        assert found == ["delivery/w/b/0.0"]
    assert caplog.text.count("left where it is") == 1


@pytest.mark.parametrize("text", ["short", "x" * 16_384, "\U0001f600" * 16_384, "\x01" * 16_384])
def test_a_message_is_cut_to_what_a_transaction_takes_for_every_target(text: str) -> None:
    found = scene()
    targets = [f"https://example.com/{number}" for number in range(24)]
    found = replace(found, request=msgspec.structs.replace(found.request, notify=targets))
    record = blank(found, "r.0", "s", 0.0)
    hold = Hold(found, record, 1, "n", ops.Read("", record), None)
    flow = tell.tell(env(1000.0), hold, 0, Told(channel="NOTIFY", level="INFO", text=text))
    op = next(flow)
    assert isinstance(op, ops.Commit) and len(op.change.writes) == 24
    assert sum(len(encode(write.record)) for write in op.change.writes) < 600_000
