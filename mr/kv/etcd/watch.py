"""Following changes on etcd: one stream for all prefixes, taken up where it broke off."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from mr.errors import Compacted, StoreUnavailable
from mr.kv.base import Event, Watch
from mr.kv.etcd.cluster import Cluster
from mr.kv.etcd.endpoint import Endpoint, Metadata
from mr.kv.etcd.failures import Failure, Lost, Refused, failure_of, refusal_of
from mr.kv.etcd.wire import DELETED, RANGE, WATCH, RangeRequest, WatchRequest, range_of

_PROGRESS_S = 1.0
"""How often the server is asked for a sign of life."""

_QUIET_S = 3.0
"""After so long without one it is found out whether it lives."""

_OPEN_S = 10.0
_FIRST_PAUSE_S = 0.05
_LAST_PAUSE_S = 1.0

_MAX_WAITING = 10_000
"""Keys whose changes are held for a slow reader. The server keeps further ones, until they are compacted away."""


class _Stream:
    """One call of etcd's Watch and what is known about it."""

    def __init__(self, endpoint: Endpoint, metadata: Metadata, start: int) -> None:
        self.endpoint, self.metadata = endpoint, metadata
        self.start = start
        self.heard = time.monotonic()
        self.over = threading.Event()
        self.created = 0
        self.call: Any = None


class EtcdWatch(Watch):
    """A thread (or greenlet, where threads are patched) reads the stream and keeps what is not told yet.

    Changes under one prefix are in order. After a reconnection those that were missed under one prefix may be told
    before earlier ones under another.

    :raises StoreUnavailable: the store does not answer, or does not let its user watch that.
    """

    def __init__(self, cluster: Cluster, prefixes: Sequence[str], after: int) -> None:
        self._cluster = cluster
        self._pid = os.getpid()
        # A key belongs to one prefix, so that its changes come in order and once.
        self._seen = {
            one: after for one in prefixes if not any(one != other and one.startswith(other) for other in prefixes)
        }
        self._changed = threading.Condition()
        self._events: dict[str, Event] = {}
        self._parts: dict[int, list[Any]] = {}
        self._compacted = 0
        self._trouble: StoreUnavailable | None = None
        self._is_open = False
        self._is_closed = False
        self._is_readable = False
        self._stream: _Stream | None = None
        self._receiver, self._sender = os.pipe()
        if self._seen:
            threading.Thread(target=self._run, name="etcd watch", daemon=True).start()
            self._wait_until_open()

    # --- for its user ----------------------------------------------------------------------------------------

    def next(self, timeout: float | None) -> list[Event]:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                self._check()
                if self._events:
                    events = sorted(self._events.values(), key=lambda event: event.revision)
                    self._events.clear()
                    self._turn_readable(self._trouble is not None)
                    self._changed.notify_all()
                    return events
                self._turn_readable(False)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return []
                self._changed.wait(left)

    def fileno(self) -> int:
        if self._is_closed:
            raise StoreUnavailable("The watch on etcd was closed.")
        return self._receiver

    @property
    def revision(self) -> int:
        """Up to which revision all changes have been told, or are held to be told."""
        return min(self._seen.values(), default=0)

    @property
    def is_over(self) -> bool:
        """True when it can tell nothing any more: it was closed, or missed changes."""
        return self._is_closed or self._compacted > 0

    def close(self) -> None:
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            os.close(self._receiver)
            os.close(self._sender)
            stream = self._stream
            self._changed.notify_all()
        if stream is not None and self._pid == os.getpid():
            stream.call.cancel()

    def _check(self) -> None:
        """Raises what is to be told instead of changes."""
        if self._is_closed or self._pid != os.getpid():
            raise StoreUnavailable("The watch on etcd was closed, or opened by another process.")
        trouble: Exception | None = None
        if self._compacted:
            trouble = Compacted(self._compacted)
        elif not self._events:
            trouble, self._trouble = self._trouble, None
        if trouble is not None:
            self._turn_readable(False)
            raise trouble

    def _wait_until_open(self) -> None:
        deadline = time.monotonic() + _OPEN_S
        with self._changed:
            while not self._is_open and self._trouble is None and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._is_open:
                return
            trouble = self._trouble or StoreUnavailable("etcd did not begin to tell of changes in time.")
        self.close()
        raise trouble

    def _turn_readable(self, is_readable: bool) -> None:
        if is_readable != self._is_readable and not self._is_closed:
            self._is_readable = is_readable
            if is_readable:
                os.write(self._sender, b"!")
            else:
                os.read(self._receiver, 1)

    # --- in its own thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        pause, refusals = _FIRST_PAUSE_S, 0
        while not self._is_closed and not self._compacted:
            try:
                endpoint, metadata = self._cluster.connect()
            except StoreUnavailable as error:
                self._tell(error)
            else:
                stream = _Stream(endpoint, metadata, 1 + max(self._seen.values()))
                failure = self._follow(stream)
                if self._is_closed:
                    return
                self._cluster.heed(endpoint, metadata, failure)
                if stream.created == len(self._seen):
                    pause, refusals = _FIRST_PAUSE_S, 0
                elif isinstance(failure, Refused):
                    # What is refused once may have been for an old token.
                    refusals += 1
                    if refusals > 1:
                        about = f"keys that begin with {' or '.join(map(repr, self._seen))}"
                        self._tell(self._cluster.refusal(failure, endpoint, about))
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed, pause)
            pause = min(_LAST_PAUSE_S, 2 * pause)

    def _tell(self, trouble: StoreUnavailable) -> None:
        with self._changed:
            self._trouble = trouble
            self._turn_readable(True)
            self._changed.notify_all()

    def _follow(self, stream: _Stream) -> Failure:
        """Takes what the stream brings, until it ends; says how."""
        prefixes = list(self._seen)
        self._parts.clear()
        try:
            stream.call = stream.endpoint.stream(WATCH, self._requests(stream, prefixes), stream.metadata)
        except ValueError as error:
            return Lost(str(error))  # the channel was closed
        try:
            with self._changed:
                self._stream = stream
                if self._is_closed:
                    stream.call.cancel()
            for answer in stream.call:
                stream.heard = time.monotonic()
                if answer.canceled:
                    if answer.compact_revision:
                        self._fall_behind(answer.compact_revision)
                    return refusal_of(answer.cancel_reason)
                if answer.created:
                    self._note_created(stream)
                elif answer.watch_id > 0:
                    self._take(answer, prefixes[answer.watch_id - 1])
            return Lost("the stream ended")
        except grpc.RpcError as error:
            return failure_of(error)
        finally:
            stream.over.set()
            stream.call.cancel()

    def _note_created(self, stream: _Stream) -> None:
        with self._changed:
            stream.created += 1
            if stream.created == len(self._seen):
                self._is_open = True
                self._trouble = None
                self._changed.notify_all()

    def _take(self, answer: Any, prefix: str) -> None:
        """Keeps events to be told. An answer without any says how far there are none."""
        parts = self._parts.setdefault(answer.watch_id, [])
        parts += answer.events
        if answer.fragment:
            return
        self._parts[answer.watch_id] = []
        with self._changed:
            for one in parts:
                kv = one.kv
                key = kv.key.decode(errors="surrogateescape")
                self._events.pop(key, None)
                self._events[key] = Event(key, None if one.type == DELETED else kv.value, kv.mod_revision)
            newest = parts[-1].kv.mod_revision if parts else answer.header.revision
            self._seen[prefix] = max(self._seen[prefix], newest)
            if parts:
                self._turn_readable(True)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or len(self._events) < _MAX_WAITING)

    def _fall_behind(self, oldest: int) -> None:
        with self._changed:
            self._compacted = oldest
            self._is_open = True
            self._events.clear()
            self._turn_readable(True)
            self._changed.notify_all()

    # --- in a thread of gRPC's -------------------------------------------------------------------------------

    def _requests(self, stream: _Stream, prefixes: Sequence[str]) -> Iterator[Any]:
        """What the stream sends: what to watch, then now and then a request for a sign of life."""
        for number, prefix in enumerate(prefixes, 1):
            request = WatchRequest()
            create = request.create_request
            create.key, create.range_end = range_of(prefix)
            create.start_revision = self._seen[prefix] + 1
            create.watch_id, create.progress_notify, create.fragment = number, True, True
            yield request
        progress = WatchRequest()
        progress.progress_request.SetInParent()
        while not stream.over.wait(_PROGRESS_S):
            if len(self._events) >= _MAX_WAITING:
                stream.heard = time.monotonic()  # nobody listens
            elif time.monotonic() - stream.heard > _QUIET_S and not self._is_alive(stream):
                stream.call.cancel()
                return
            yield progress

    def _is_alive(self, stream: _Stream) -> bool:
        """Whether a server that is quiet has a reason to be."""
        quiet_since = stream.heard
        key, _ = range_of(next(iter(self._seen)))
        try:
            answer = stream.endpoint.call(RANGE, RangeRequest(key=key), stream.metadata)
        except Refused:
            stream.heard = time.monotonic()
            return True
        except Failure:
            return False
        # From 3.6.2 on, a server says nothing before the first revision that is watched has come.
        if answer.header.revision < stream.start:
            stream.heard = time.monotonic()
        return stream.heard > quiet_since or time.monotonic() - quiet_since < 2 * _QUIET_S
