"""Reading server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Event(NamedTuple):
    """``name`` is ``message`` where none was given; ``event_id`` is the newest that was told so far."""

    name: str
    data: str
    event_id: str


class Reader:
    """Makes events of lines. ``event_id`` and ``retry_s`` stay from one stream to the next."""

    def __init__(self, retry_s: float = 1.0) -> None:
        self.event_id = ""
        self.retry_s = retry_s

    def read(self, lines: Iterable[bytes]) -> Iterator[Event]:
        """One that is not closed by an empty line does not count."""
        name, data = "", list[str]()
        for line in lines:
            text = line.rstrip(b"\r").decode("utf-8", "replace")
            if not text:
                if data:
                    yield Event(name or "message", "\n".join(data), self.event_id)
                name, data = "", []
                continue
            field, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id" and "\0" not in value:
                self.event_id = value
            elif field == "retry" and value.isdecimal():
                self.retry_s = int(value) / 1000
