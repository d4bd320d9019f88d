"""Streams of events, over a platform in memory. Ends of requests are written as the engine would write them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from test_web_application import DEADLINE_S, Stack, done, eventually, is_problem, open_stack
from werkzeug.test import TestResponse

from mr.client.events import Event, Reader
from mr.errors import StoreUnavailable
from mr.model import keys
from mr.model.entities import Failure
from mr.model.progress import Progress
from mr.model.records import Mark, Seal
from mr.web import events, views
from mr.web.looks import Looker


class Looks:
    """How often requests are looked at, and how many there are who look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self.lookers: set[int] = set()
        self.error: Exception | None = None
        look = Looker.look

        def counted(looker: Looker) -> Progress:
            self.number += 1
            self.lookers.add(id(looker))
            if self.error is not None:
                raise self.error
            return look(looker)

        monkeypatch.setattr(Looker, "look", counted)


class Opened(NamedTuple):
    stack: Stack
    events: events.Events
    looks: Looks


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    made: list[events.Events] = []

    class Kept(events.Events):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(views.events, "Events", Kept)
    monkeypatch.setattr("mr.web.looks.FASTEST_S", 0.005)
    monkeypatch.setattr("mr.web.looks.SLOWEST_S", 0.01)
    looks = Looks(monkeypatch)
    stack = open_stack(tmp_path)
    yield Opened(stack, made[-1], looks)
    stack.front.stop()


class Stream:
    """A client that reads its events in a thread of its own."""

    def __init__(self, stack: Stack, request_id: str, **headers: str) -> None:
        self.seen: list[Event] = []
        self.comments = 0
        self.answer: TestResponse = stack.client.application.test_client().get(
            f"/request/words/{request_id}/events",
            headers={name.replace("_", "-"): text for name, text in headers.items()},
        )
        assert self.answer.status_code == 200, self.answer.text
        self._pieces = iter(self.answer.iter_encoded())
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        def lines() -> Iterator[bytes]:
            for piece in self._pieces:
                self.comments += piece.startswith(b":")
                yield from piece.splitlines() or [b""]

        for event in Reader().read(lines()):
            self.seen.append(event)

    def has_seen(self, number: int) -> bool:
        return len(self.seen) >= number

    def wait(self) -> list[Event]:
        """Everything, once it is closed by the server."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "it is still open"
        return self.seen


def told(event: Event) -> Any:
    return json.loads(event.data)


def seal(stack: Stack, request_id: str, children: int) -> None:
    sealed = Seal(
        nonce="n",
        step_name="leaf",
        children=children,
        bounds=[0],
        epoch=0,
        tolerated=0,
        shielded=False,
        open=True,
    )
    stack.put((keys.seal("words", request_id, f"{request_id}.0"), sealed))


def test_a_request_is_told_of_at_once_and_whenever_it_changed_until_it_ended(opened: Opened) -> None:
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    assert stream.answer.content_type == "text/event-stream"
    assert stream.answer.headers["Cache-Control"] == "no-store"
    assert stream.answer.headers["X-Accel-Buffering"] == "no"
    assert stream.answer.headers["X-MR-REQUEST-ID"] == request_id
    eventually(lambda: stream.has_seen(1))
    seal(opened.stack, request_id, 5)
    eventually(lambda: stream.has_seen(2))
    looked = opened.looks.number
    eventually(lambda: opened.looks.number > looked + 3)
    # Nothing happened meanwhile.
    assert len(stream.seen) == 2
    opened.stack.put((keys.count("words", request_id, f"{request_id}.0", 0, 3), Mark()))
    eventually(lambda: stream.has_seen(3))
    opened.stack.succeed(request_id, done(("a", 1)))
    seen = stream.wait()
    assert [event.name for event in seen] == ["progress", "progress", "progress", "end"]
    assert [told(event)["counts"]["sealed"] for event in seen[:2]] == [1, 6]
    assert told(seen[2])["counts"]["ended"] == 1
    assert (told(seen[3])["state"], told(seen[3])["error"]) == ("done", None)
    assert len({event.event_id for event in seen}) == 4
    eventually(lambda: not opened.events and not opened.events.streams)


def test_the_end_says_why_a_request_failed(opened: Opened) -> None:
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    failure = Failure(exception_type="ValueError", exception_message="no", traceback='  File "split.py", line 3, in x')
    opened.stack.fail(request_id, failure)
    last = told(stream.wait()[-1])
    assert last["state"] == "failed"
    assert (last["error"]["exception_type"], last["error"]["exception_message"]) == ("ValueError", "no")
    assert last["error"]["place"] == "split.py:3"


def test_an_ended_request_is_told_of_once(opened: Opened) -> None:
    request_id = opened.stack.submit()
    opened.stack.succeed(request_id, done())
    answer = opened.stack.client.get(f"/request/words/{request_id}/events")
    [event] = Reader().read(answer.data.splitlines())
    assert (event.name, told(event)["state"]) == ("end", "done")
    assert not opened.events.streams
    again = opened.stack.client.get(f"/request/words/{request_id}/events", headers={"Last-Event-ID": event.event_id})
    # A browser stops asking.
    assert (again.status_code, again.data) == (204, b"")
    other = opened.stack.client.get(f"/request/words/{request_id}/events", headers={"Last-Event-ID": "0.cancelled"})
    assert other.status_code == 200


def test_who_connects_again_is_not_told_again_what_is_still_so(opened: Opened) -> None:
    request_id = opened.stack.submit()
    first = Stream(opened.stack, request_id)
    eventually(lambda: first.has_seen(1))
    again = Stream(opened.stack, request_id, Last_Event_ID=first.seen[0].event_id)
    stranger = Stream(opened.stack, request_id, Last_Event_ID="whatever")
    eventually(lambda: stranger.has_seen(1))
    seal(opened.stack, request_id, 2)
    eventually(lambda: again.has_seen(1) and stranger.has_seen(2))
    assert told(again.seen[0])["counts"]["sealed"] == 3
    opened.stack.succeed(request_id, done())
    assert len(again.wait()) == 2


def test_an_event_has_the_same_name_in_every_process(opened: Opened) -> None:
    found = Looker(opened.stack.store, opened.stack.request(opened.stack.submit())).look()
    later = msgspec.structs.replace(found, elapsed_s=9.0, rate=1.0)
    assert events.name_of(0, later) == events.name_of(0, found)
    counts = msgspec.structs.replace(found.counts, running=1)
    others = {events.name_of(1, found), events.name_of(0, msgspec.structs.replace(found, counts=counts))}
    assert events.name_of(0, found) not in others
    assert len(others) == 2


def test_many_who_watch_one_request_cost_the_store_as_much_as_one(opened: Opened) -> None:
    request_id = opened.stack.submit()
    streams = [Stream(opened.stack, request_id) for _ in range(100)]
    eventually(lambda: all(stream.has_seen(1) for stream in streams))
    assert (len(opened.events), opened.events.streams, len(opened.looks.lookers)) == (1, 100, 1)
    opened.stack.succeed(request_id, done())
    assert {stream.wait()[-1].name for stream in streams} == {"end"}
    assert len(opened.looks.lookers) == 1
    eventually(lambda: not opened.events and not opened.events.streams)


def test_when_the_last_has_gone_nobody_looks_any_more(opened: Opened) -> None:
    request = opened.stack.request(opened.stack.submit())
    first, second = (opened.events.stream(request, "") for _ in range(2))
    for stream in (first, second):
        assert next(stream).startswith(b"retry: ")
        assert next(stream).startswith(b"id: ")
    first.close()
    looked = opened.looks.number
    eventually(lambda: opened.looks.number > looked + 1)
    assert opened.events.streams == 1
    second.close()
    eventually(lambda: not opened.events)
    looked, running = opened.looks.number, opened.events.stream(request, "")
    assert opened.events.streams == 0
    # Who comes then begins anew.
    assert next(running)
    assert next(running).startswith(b"id: ")
    assert opened.looks.number > looked
    running.close()


def test_a_stream_with_nothing_to_tell_gives_signs_of_life(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    eventually(lambda: stream.comments > 3)
    assert len(stream.seen) == 1
    opened.stack.succeed(request_id, done())
    stream.wait()


def test_a_stopping_server_closes_its_streams_without_an_end(opened: Opened) -> None:
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    eventually(lambda: stream.has_seen(1))
    opened.stack.front.drain()
    assert [event.name for event in stream.wait()] == ["progress"]
    assert not Stream(opened.stack, request_id).wait()


def test_a_stream_ends_when_its_time_is_over(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LONGEST_S", 0.05)
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    assert [event.name for event in Stream(opened.stack, opened.stack.submit()).wait()] == ["progress"]


def test_a_store_that_is_away_for_a_while_ends_no_stream(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_AWAY_S", 0.005)
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    eventually(lambda: stream.has_seen(1))
    opened.looks.error = StoreUnavailable("away")
    looked = opened.looks.number
    eventually(lambda: opened.looks.number > looked + 2)
    opened.looks.error = None
    opened.stack.succeed(request_id, done())
    assert [event.name for event in stream.wait()] == ["progress", "end"]


def test_a_look_that_goes_wrong_ends_the_stream_and_leaves_nothing(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened.looks.error = RuntimeError("broken")
    assert not Stream(opened.stack, opened.stack.submit()).wait()
    assert not opened.events
    assert "cannot be watched" in caplog.text


def test_what_is_removed_while_it_is_watched_has_ended(opened: Opened) -> None:
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    eventually(lambda: stream.has_seen(1))
    opened.stack.store.delete_prefix(keys.request("words", request_id))
    last = stream.wait()[-1]
    assert (last.name, told(last)["state"]) == ("end", "expired")


def test_there_are_only_so_many_streams(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAMS", 1)
    request_id = opened.stack.submit()
    stream = Stream(opened.stack, request_id)
    eventually(lambda: stream.has_seen(1))
    answer = opened.stack.client.get(f"/request/words/{request_id}/events")
    assert is_problem(answer, 503, "too-many-streams")["limit"] == 1
    assert answer.headers["Retry-After"] == "1"
    opened.stack.succeed(request_id, done())
    stream.wait()


def test_head_opens_no_stream(opened: Opened) -> None:
    answer = opened.stack.client.head(f"/request/words/{opened.stack.submit()}/events")
    assert (answer.status_code, answer.content_type, answer.data) == (200, "text/event-stream", b"")
    assert not opened.events.streams
    assert not opened.looks.number


@pytest.mark.parametrize("path", ["/request/words/nothing/events", "/request/other/last/events"])
def test_what_there_is_not_has_no_events(opened: Opened, path: str) -> None:
    opened.stack.submit()
    assert opened.stack.client.get(path).status_code == 404


def test_events_take_no_parameters(opened: Opened) -> None:
    path = f"/request/words/{opened.stack.submit()}/events?since=1"
    assert is_problem(opened.stack.client.get(path), 400, "invalid-input")["parameter"] == "since"


def test_text_in_an_event_is_on_one_line(opened: Opened) -> None:
    request_id = opened.stack.submit()
    opened.stack.fail(request_id, Failure(exception_type="E", exception_message="a\n\nevent: end\rdata: b\u2028"))
    answer = opened.stack.client.get(f"/request/words/{request_id}/events")
    assert answer.data.count(b"\n") == 4
    assert b"\r" not in answer.data
    [event] = Reader().read(answer.data.split(b"\n"))
    assert told(event)["error"]["exception_message"] == "a\n\nevent: end\rdata: b\u2028"
