"""One watch a process on what its front end needs to hear of: workflows that change, and requests that end."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mr.errors import Compacted, StoreUnavailable
from mr.kv.base import Event, Store, Watch
from mr.model import keys

log = logging.getLogger(__name__)

_CHECK_S = 1.0
"""How often everything is looked at without being told, for a watch that went deaf."""

_PAUSE_S = 0.5


class Subject(ABC):
    """Something that follows the keys under some prefixes."""

    prefixes: tuple[str, ...]

    @abstractmethod
    def changed(self, event: Event) -> None:
        """A key under one of the prefixes changed."""

    @abstractmethod
    def check(self) -> None:
        """Changes may have been missed: looks for itself.

        :raises StoreUnavailable: it could not.
        """


class Follower:
    """Tells subjects of changes, in a thread (or greenlet, where threads are patched) of its own."""

    def __init__(self, store: Store, subjects: Sequence[Subject]) -> None:
        self._store, self._subjects = store, subjects
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends following, about a second later. May be repeated."""
        self._stopped.set()

    def _run(self) -> None:
        is_well = True
        while not self._stopped.is_set():
            try:
                # Several subjects may follow the same.
                prefixes = dict.fromkeys(prefix for subject in self._subjects for prefix in subject.prefixes)
                watch = self._store.watch(list(prefixes), self._store.revision())
                try:
                    if not is_well:
                        log.info("The store answers again, and its changes are followed.")
                        is_well = True
                    self._follow(watch)
                finally:
                    watch.close()
            except Compacted:
                continue
            except StoreUnavailable as error:
                if is_well and not self._stopped.is_set():
                    log.warning("The store's changes cannot be followed for now: %s", error)
                    is_well = False
                self._stopped.wait(_PAUSE_S)
            except Exception:
                if self._stopped.is_set():
                    return
                log.exception("Following the store's changes failed and begins anew.")
                self._stopped.wait(_PAUSE_S)

    def _follow(self, watch: Watch) -> None:
        """What happened before the watch was opened is found by the first check."""
        due = 0.0
        while not self._stopped.is_set():
            if time.monotonic() >= due:
                for subject in self._subjects:
                    subject.check()
                due = time.monotonic() + _CHECK_S
            for event in watch.next(min(_CHECK_S, max(0.0, due - time.monotonic()))):
                for subject in self._subjects:
                    if event.key.startswith(subject.prefixes):
                        subject.changed(event)


class Ends(Subject):
    """Wakes those who wait for requests to end, which is when their key under ``live/`` goes.

    ``served`` are the only workflows whose requests are waited for; empty: all.
    """

    def __init__(self, store: Store, served: Sequence[str] = ()) -> None:
        self.prefixes = tuple(map(keys.lives, served)) or (keys.LIVE,)
        self._store = store
        self._lock = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}

    def __len__(self) -> int:
        """How many requests are waited for."""
        return len(self._waiting)

    @contextmanager
    def of(self, workflow: str, request_id: str) -> Iterator[threading.Event]:
        """An event that is set when the request may have ended, from before it is submitted: look, and wait again."""
        key = keys.live(workflow, request_id)
        event = threading.Event()
        with self._lock:
            self._waiting.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                waiting = self._waiting[key]
                waiting.discard(event)
                if not waiting:
                    del self._waiting[key]

    def changed(self, event: Event) -> None:
        if event.value is None:
            self._wake(event.key)

    def check(self) -> None:
        waited_for = list(self._waiting)
        for start in range(0, len(waited_for), self._store.max_operations):
            some = waited_for[start : start + self._store.max_operations]
            for key, entry in zip(some, self._store.get(some), strict=True):
                if entry is None:
                    self._wake(key)

    def wake_all(self) -> None:
        for key in list(self._waiting):
            self._wake(key)

    def _wake(self, key: str) -> None:
        for event in list(self._waiting.get(key, ())):
            event.set()
