"""Who may come in: how many requests of a workflow may be open, and how many invocations in flight, before posts are
turned away.

Open requests are counted here: by the keys under ``live/``, which are followed anyway, and each post that is let in at
once, so that a burst finds the last place taken. Front ends do not ask each other, so that several may together let in
a few more than the limit, as many as they accept before they hear of each other. Invocations are counted by the sweep.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mr.config import Config
from mr.errors import CorruptRecord, JobxError
from mr.kv.base import Event, Store
from mr.model import keys
from mr.model.entities import Workflow, decode
from mr.model.records import Load
from mr.web.following import Subject

_RECOUNT_S = 5.0
"""How often what is counted is compared with the store, for events that were missed."""

_FORGET_S = 60.0
"""How long a workflow is counted that nobody posts to."""

_SETTLE_S = 10.0
"""How long a post that was let in counts though the store does not show its request: it may be on its way there."""

_SOONEST_S, _LATEST_S = 1, 60
_UNKNOWN_S = 10
"""When to come again, where nothing is known of how fast places become free."""

_ENDS = 128

log = logging.getLogger(__name__)


class WorkflowFull(JobxError):
    """The workflow has as much to do as it may have; ``limit_name`` is the limit that it reached. Nothing was taken."""

    slug = "workflow-full"
    status = 429

    def __init__(self, workflow: str, limit_name: str, what: str, current: int, limit: int, retry_after_s: int) -> None:
        super().__init__(
            f"The workflow {workflow!r} is full: it has {current} {what}, and takes more only below {limit} "
            f"({limit_name}). Nothing was accepted; try again in {retry_after_s} s."
        )
        self.limit_name, self.limit, self.current = limit_name, limit, current
        self.retry_after_s = retry_after_s


class Bounds(NamedTuple):
    """0: no limit."""

    open_requests: int
    invocations: int

    @classmethod
    def of(cls, config: Config, workflow: Workflow) -> Bounds:
        """A workflow's own, and the platform's where it has none."""
        own = (workflow.max_open_requests, workflow.max_invocations)
        platform = (config.max_open_requests, config.max_invocations)
        return cls(*(theirs if mine is None else mine for mine, theirs in zip(own, platform, strict=True)))


class _Count:
    """What is open of one workflow. Its methods are called with the lock held."""

    def __init__(self, now: float) -> None:
        self.asked = now
        self.counted = -math.inf
        self.open: dict[str, float] = {}
        """By request: when it was let in here; 0 for those that the store has shown."""
        self.gone: set[str] | None = None
        """What ended while the store is asked for all that is open."""
        self.recounting = threading.Lock()
        self.ends: deque[float] = deque(maxlen=_ENDS)
        self.load: Load | None = None
        self.told = now
        self.falling = 0.0
        """Invocations that ended a second, more than began, when the sweep told last."""

    def put(self, request_id: str) -> None:
        self.open[request_id] = 0.0

    def end(self, request_id: str, now: float) -> None:
        if self.open.pop(request_id, None) is not None:
            self.ends.append(now)
        if self.gone is not None:
            self.gone.add(request_id)

    def found(self, listed: list[str], now: float) -> None:
        """All that was open when the store was asked."""
        coming = {name: at for name, at in self.open.items() if at and now - at < _SETTLE_S}
        self.open = coming | {name: 0.0 for name in listed if name not in (self.gone or ())}
        self.counted, self.gone = now, None

    def tell(self, load: Load | None, now: float) -> None:
        if load is not None and self.load is not None and now > self.told:
            self.falling = max(0.0, (self.load.invocations - load.invocations) / (now - self.told))
        self.load, self.told = load, now

    def invocations(self) -> int:
        """Those that the sweep saw, and the roots of requests that came since."""
        seen = Load(requests=0, invocations=0) if self.load is None else self.load
        return seen.invocations + max(0, len(self.open) - seen.requests) if self.open else 0

    def ending(self, now: float) -> float:
        """Requests that ended a second, lately."""
        while self.ends and now - self.ends[0] > _LATEST_S:
            self.ends.popleft()
        return len(self.ends) / max(1.0, now - self.ends[0]) if self.ends else 0.0


class Limits(Subject):
    """``served`` are the only workflows that are followed; empty: all. ``clock`` is monotonic, in seconds."""

    def __init__(self, store: Store, served: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        own = (prefix for name in served for prefix in (keys.lives(name), keys.loads(name)))
        self.prefixes = tuple(own) or (keys.LIVE, keys.LOADS)
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._counts: dict[str, _Count] = {}

    def admit(self, workflow: str, request_id: str, bounds: Bounds) -> None:
        """Lets a request in, and counts it from now on; :meth:`leave` takes back one that comes to nothing.

        :raises WorkflowFull: there is no place for it.
        :raises StoreUnavailable: it is the first of its workflow here, and cannot be counted.
        """
        if bounds == (0, 0):
            return
        count = self._counts.get(workflow)
        if count is None or count.counted < 0:
            count = self._begin(workflow)
        with self._lock:
            now = count.asked = self._clock()
            self._check(workflow, count, bounds, now)
            count.open[request_id] = now

    def leave(self, workflow: str, request_id: str) -> None:
        """A request that was let in was not accepted, or has ended."""
        with self._lock:
            count = self._counts.get(workflow)
            if count is not None:
                count.end(request_id, self._clock())

    def _check(self, workflow: str, count: _Count, bounds: Bounds, now: float) -> None:
        current, limit = len(count.open), bounds.open_requests
        if limit and current >= limit:
            after = _seconds(current - limit + 1, count.ending(now))
            raise WorkflowFull(workflow, "max_open_requests", "open requests", current, limit, after)
        current, limit = count.invocations(), bounds.invocations
        if limit and current >= limit:
            after = _seconds(current - limit + 1, count.falling)
            raise WorkflowFull(workflow, "max_invocations", "invocations in flight", current, limit, after)

    # --- counting ---------------------------------------------------------------------------------------------------

    def _begin(self, workflow: str) -> _Count:
        with self._lock:
            # From here on events are heard; what is open already is asked for.
            count = self._counts.setdefault(workflow, _Count(self._clock()))
        with count.recounting:
            if count.counted < 0:
                self._recount(workflow, count)
        return count

    def _recount(self, workflow: str, count: _Count) -> None:
        with self._lock:
            count.gone = set()
        prefix = keys.lives(workflow)
        listed: list[str] = []
        after = ""
        while page := self._store.list(prefix, after=after, keys_only=True):
            listed += [entry.key.removeprefix(prefix) for entry in page]
            after = page[-1].key
        [entry] = self._store.get([keys.load(workflow)])
        load = None if entry is None else decode(Load, entry.key, entry.value)
        with self._lock:
            now = self._clock()
            count.found(listed, now)
            if load != count.load:
                count.tell(load, now)

    def changed(self, event: Event) -> None:
        kind, _, rest = event.key.partition("/")
        workflow, _, request_id = rest.partition("/")
        count = self._counts.get(workflow)
        if count is None:
            return
        with self._lock:
            now = self._clock()
            if kind != keys.LIVE.rstrip("/"):
                self._told(count, event, now)
            elif event.value is None:
                count.end(request_id, now)
            else:
                count.put(request_id)

    def _told(self, count: _Count, event: Event, now: float) -> None:
        try:
            count.tell(None if event.value is None else decode(Load, event.key, event.value), now)
        except CorruptRecord as error:
            log.warning("%s", error)

    def check(self) -> None:
        now = self._clock()
        for workflow, count in list(self._counts.items()):
            if now - count.asked > _FORGET_S:
                with self._lock:
                    self._counts.pop(workflow, None)
            elif now - count.counted > _RECOUNT_S:
                with count.recounting:
                    self._recount(workflow, count)


def _seconds(places: int, rate: float) -> int:
    """When so many places will be free, at so many a second."""
    return _UNKNOWN_S if rate <= 0 else min(_LATEST_S, max(_SOONEST_S, math.ceil(places / rate)))
