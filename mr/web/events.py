"""The progress of requests as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

However many watch a request, it is looked at once for all of them: by a thread (a greenlet, where threads are patched)
that begins with the first and ends with the last. A watcher is told the newest look that it has not seen, so that one
who reads slowly misses some, and holds up nobody.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from mr.errors import JobxError, StoreUnavailable
from mr.model.entities import Request
from mr.model.progress import Progress
from mr.web.aside import aside
from mr.web.front import Front
from mr.web.looks import Looker

CONTENT_TYPE = "text/event-stream"

MAX_STREAMS = 4096
"""How many streams a process has open: half of its connections, so that there are some left for everything else."""

LONGEST_S = 3600.0
"""Then a stream is closed: its client connects again, and shows a token that may have been revoked meanwhile."""

HEARTBEAT_S = 10.0
"""How long a stream is silent at most. A client that went away is noticed when it is written to."""

RETRY_MS = 1000

_AWAY_S = 1.0

log = logging.getLogger(__name__)


class TooManyStreams(JobxError):
    """This process has as many event streams open as it may have."""

    slug = "too-many-streams"
    status = 503

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} event streams are open here already. Try again, or ask for the status instead.")
        self.limit = limit


class _Told(NamedTuple):
    """The look of that number, counted from 1, with its name for clients and its text."""

    number: int
    name: str
    text: bytes
    progress: Progress


def end_of(request: Request) -> str:
    """The ID of the last event of an ended request."""
    return f"{request.epoch}.{request.state}"


def name_of(epoch: int, progress: Progress) -> str:
    """The ID of an event: the same for what is alike but for the time, in whichever process."""
    if progress.has_ended:
        return f"{epoch}.{progress.state}"
    timeless = msgspec.structs.replace(progress, elapsed_s=0.0, rate=None)
    return f"{epoch}.{hashlib.blake2b(msgspec.json.encode(timeless), digest_size=6).hexdigest()}"


def frame(name: str, progress: Progress) -> bytes:
    """The text of one event."""
    kind = "end" if progress.has_ended else "progress"
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (name.encode(), kind.encode(), msgspec.json.encode(progress))


class _Shared:
    """What all who watch one request are told."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.watchers = 0
        self._told: _Told | None = None
        self._is_closed = False
        self._changed = threading.Condition()

    def tell(self, progress: Progress) -> None:
        with self._changed:
            if self._told is None or not self._told.progress.is_like(progress):
                number = 1 if self._told is None else self._told.number + 1
                name = name_of(self.request.epoch, progress)
                self._told = _Told(number, name, frame(name, progress), progress)
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Nothing new will be told."""
        return self._is_closed

    def next(self, after: int, seconds: float) -> _Told | None:
        """What is newer than that number; None where there is nothing within so many seconds, or will not be."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._number > after, seconds)
            return self._told if self._number > after else None

    @property
    def _number(self) -> int:
        return 0 if self._told is None else self._told.number


class Events:
    """All streams of a process. Safe to use from many threads or greenlets."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, str], _Shared] = {}
        self.streams = 0

    def __len__(self) -> int:
        """How many requests are looked at."""
        return len(self._shared)

    def check(self) -> None:
        """
        :raises TooManyStreams: there is no room for one more.
        """
        if self.streams >= MAX_STREAMS:
            raise TooManyStreams(MAX_STREAMS)

    def once(self, request: Request) -> bytes:
        """All that there is to say of an ended request.

        :raises StoreUnavailable: it cannot be told now.
        """
        store = self._front.platform.store
        progress = aside(store.local, Looker(store, request).look)
        return frame(name_of(request.epoch, progress), progress)

    def stream(self, request: Request, seen: str) -> Iterator[bytes]:
        """The events of a running request until it has ended; ``seen`` is the ID of the last that the client got.

        Nothing happens before the first is asked for. Let go of the iterator, and everything is freed.
        """
        until = time.monotonic() + LONGEST_S
        with self._watched(request) as shared:
            yield b"retry: %d\n\n" % RETRY_MS
            number = 0
            while time.monotonic() < until:
                told = shared.next(number, HEARTBEAT_S)
                if told is None:
                    if shared.is_closed:
                        break
                    yield b": nothing new\n\n"
                    continue
                number = told.number
                if told.name != seen or told.progress.has_ended:
                    yield told.text
                if told.progress.has_ended:
                    return
        yield b": connect again\n\n"

    @contextmanager
    def _watched(self, request: Request) -> Iterator[_Shared]:
        place = (request.workflow_name, request.request_id)
        with self._lock:
            shared = self._shared.get(place)
            if shared is None or shared.is_closed:
                shared = self._shared[place] = _Shared(request)
                threading.Thread(target=self._look, args=(shared,), name="looker", daemon=True).start()
            shared.watchers += 1
            self.streams += 1
        try:
            yield shared
        finally:
            with self._lock:
                shared.watchers -= 1
                self.streams -= 1

    # --- looking ----------------------------------------------------------------------------------------------------

    def _look(self, shared: _Shared) -> None:
        request = shared.request
        try:
            with self._front.end_of(request.workflow_name, request.request_id) as ended:
                self._look_while_wanted(shared, ended)
        except Exception:
            log.exception("The request cannot be watched. request=%s", request.request_id)
        finally:
            with self._lock:
                self._close(shared)

    def _close(self, shared: _Shared) -> None:
        shared.close()
        place = (shared.request.workflow_name, shared.request.request_id)
        if self._shared.get(place) is shared:
            del self._shared[place]

    def _is_wanted(self, shared: _Shared) -> bool:
        with self._lock:
            # Whoever comes after this finds none, and begins anew.
            if not shared.watchers or self._front.is_draining:
                self._close(shared)
            return not shared.is_closed

    def _look_while_wanted(self, shared: _Shared, ended: threading.Event) -> None:
        store = self._front.platform.store
        looker = Looker(store, shared.request)
        while self._is_wanted(shared):
            try:
                progress = aside(store.local, looker.look)
            except StoreUnavailable:
                # Who watches hears nothing meanwhile, and is not sent away: others would tell them no more.
                pause_s = _AWAY_S
            else:
                shared.tell(progress)
                if progress.has_ended:
                    return
                pause_s = looker.pause_s
            if ended.wait(pause_s):
                ended.clear()
