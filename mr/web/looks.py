"""Looking at a request again and again: how far it is, at a cost that does not grow with what has ended.

A tree is counted by its seals, which name how many children there are, and by the versions of the keys in which those
are counted that ended; a fan-out of 100,000 takes 65 keys. Of a tree with more than ``FAN_OUTS`` mapping invocations
the root's children alone are counted.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from mr.handlers.tracebacks import shortened
from mr.kv.base import Entry, Store
from mr.model import catalog, keys
from mr.model.entities import Invocation, Request, decode
from mr.model.progress import Cause, Counts, Progress, StepCounts, Waiting
from mr.model.records import Manifest, Seal
from mr.trace import why
from mr.web import waiting
from mr.web.problems import sanitised

FAN_OUTS = 256

FASTEST_S = 0.3
SLOWEST_S = 2.0

MESSAGE_CHARACTERS = 4000

_PAGE = 1000
_RATE_S = 10.0
_WAITING_S = 2.0
_SHARE = 10
"""The time between two looks is at least so many times what a look takes."""


_Epoch = tuple[str, int]
"""A parent's ID, and the epoch in which its children are counted."""


class _Fan(NamedTuple):
    """A mapping invocation's children."""

    parent_id: str
    seal: Seal
    kept: int
    """How many of them a redrive left as they were."""

    def ended(self, counted: Counter[_Epoch]) -> int:
        return min(self.seal.children, self.kept + counted[self.parent_id, self.seal.epoch])

    def has_ended(self, counted: Counter[_Epoch]) -> bool:
        return not self.seal.open or self.ended(counted) == self.seal.children


class Looker:
    """Looks at one request. Used by one thread; ``request`` is how it stands now. Where nothing happens, looks come at
    most ``slowest_s`` apart."""

    def __init__(self, store: Store, request: Request, slowest_s: float = SLOWEST_S) -> None:
        self._store, self._slowest = store, slowest_s
        self._workflow, self._id, self._root = request.workflow_name, request.request_id, request.invocation_id
        self._job = request.job_name
        self._manifests: dict[str, Manifest] = {}
        self._ended: deque[tuple[float, int]] = deque()
        self._lacks: list[waiting.Lack] = []
        self._lacks_due = 0.0
        self._pause = FASTEST_S
        self._cost = 0.0
        self._last: Progress | None = None

    def look(self) -> Progress:
        """How it stands; of one that was removed meanwhile, that it did.

        :raises StoreUnavailable: it cannot be told now.
        """
        began = time.monotonic()
        found = self._look()
        has_changed = self._last is None or not self._last.is_like(found)
        self._pause = FASTEST_S if has_changed else min(self._slowest, 1.5 * self._pause)
        self._last = found
        self._cost = time.monotonic() - began
        return found

    @property
    def pause_s(self) -> float:
        """How long to wait before the next look: longer where nothing happens, and where looking takes long."""
        return max(self._pause, _SHARE * self._cost)

    def _look(self) -> Progress:
        request, root = self._read()
        if request is None or request.state == "expiring":
            return self._gone()
        fans_out = keys.seal(self._workflow, self._id, "")
        is_whole = self._store.count(fans_out) <= FAN_OUTS
        below = "" if is_whole else f"{self._root}/"
        # Those that failed are read before those that ended, and these before those that there are, so that no number
        # is larger than what it is a part of.
        failed = self._versions(keys.failed(self._workflow, self._id, "", 0, 0), below)
        ended = self._versions(keys.count(self._workflow, self._id, "", 0, 0), below)
        seals = self._entries(fans_out) if is_whole else self._store.get([fans_out + self._root])
        fans = self._fans(seal for seal in seals if seal is not None)
        steps = self._count(request, root, fans, ended, failed)
        return self._told(request, steps, is_whole, waits=sum(not fan.has_ended(ended) for fan in fans))

    def _read(self) -> tuple[Request | None, Invocation | None]:
        names = [keys.request(self._workflow, self._id), keys.invocation(self._workflow, self._id, self._root)]
        request, root = self._store.get(names)
        return (
            None if request is None else decode(Request, request.key, request.value),
            None if root is None else decode(Invocation, root.key, root.value),
        )

    # --- counting ---------------------------------------------------------------------------------------------------

    def _versions(self, first: str, below: str) -> Counter[_Epoch]:
        """What the counters of each parent and epoch add up to; ``first`` is the key of one without a parent."""
        prefix = first.removesuffix("/0/0")
        found: Counter[_Epoch] = Counter()
        for entry in self._entries(prefix + below, keys_only=True):
            parent_id, epoch, _ = entry.key.removeprefix(prefix).rsplit("/", 2)
            found[parent_id, int(epoch)] += entry.version
        return found

    def _fans(self, seals: Iterable[Entry]) -> list[_Fan]:
        prefix = keys.seal(self._workflow, self._id, "")
        found = [_Fan(entry.key.removeprefix(prefix), decode(Seal, entry.key, entry.value), 0) for entry in seals]
        again = [place for place, fan in enumerate(found) if fan.seal.epoch]
        names = [keys.invocation(self._workflow, self._id, found[place].parent_id) for place in again]
        for place, entry in zip(again, self._store.get(names), strict=True):
            if entry is not None:
                need = decode(Invocation, entry.key, entry.value).need
                found[place] = found[place]._replace(kept=found[place].seal.children - need)
        return found

    def _entries(self, prefix: str, keys_only: bool = False) -> Iterator[Entry]:
        after = ""
        while page := self._store.list(prefix, after=after, limit=_PAGE, keys_only=keys_only):
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].key

    def _count(
        self,
        request: Request,
        root: Invocation | None,
        fans: list[_Fan],
        ended: Counter[_Epoch],
        failed: Counter[_Epoch],
    ) -> dict[str, StepCounts]:
        first = self._manifest(request).jobs[self._job].initial_step_name if root is None else root.step_name
        has_failed = request.state == "failed"
        steps = {first: StepCounts(step_name=first, sealed=1, ended=int(request.is_done), failed=int(has_failed))}
        for fan in fans:
            name, so_far = fan.seal.step_name, fan.ended(ended)
            # Children of a parent that failed are not begun any more.
            there_are = fan.seal.children if fan.seal.open else so_far
            before = steps.get(name) or StepCounts(step_name=name, sealed=0, ended=0, failed=0)
            steps[name] = StepCounts(
                step_name=name,
                sealed=before.sealed + there_are,
                ended=before.ended + so_far,
                failed=before.failed + min(so_far, failed[fan.parent_id, fan.seal.epoch]),
            )
        return steps

    # --- telling ----------------------------------------------------------------------------------------------------

    def _told(self, request: Request, steps: dict[str, StepCounts], is_whole: bool, waits: int) -> Progress:
        sealed, ended, failed = (
            sum(getattr(step, name) for step in steps.values()) for name in ("sealed", "ended", "failed")
        )
        running = ready = 0
        if not request.is_done:
            running = self._store.count(keys.own(self._workflow, self._id, ""))
            ready = max(0, sealed - ended - waits - running)
        elapsed_s = max(0.0, (request.ended_timestamp or time.time()) - request.began_timestamp)
        lacks = self._lacking(request)
        return Progress(
            request_id=self._id,
            workflow_name=self._workflow,
            job_name=self._job,
            state=request.state,
            elapsed_s=round(elapsed_s, 3),
            counts=Counts(sealed=sealed, ready=ready, running=running, ended=ended, failed=failed),
            is_whole=is_whole,
            steps=list(steps.values()),
            rate=round(ended / max(elapsed_s, 0.001), 3) if request.is_done else self._rate(ended),
            waiting_for=[Waiting(**lack._asdict()) for lack in lacks],
            detail=waiting.sentence(self._workflow, lacks) or None,
            error=self._cause(request),
        )

    def _rate(self, ended: int) -> float | None:
        now = time.monotonic()
        self._ended.append((now, ended))
        while self._ended[0][0] < now - _RATE_S and len(self._ended) > 2:
            self._ended.popleft()
        since, before = self._ended[0]
        return round(max(0, ended - before) / (now - since), 3) if now > since else None

    def _lacking(self, request: Request) -> list[waiting.Lack]:
        """As it was found within the last seconds: it changes seldom, and takes more reads than all the rest."""
        if request.is_done:
            return []
        now = time.monotonic()
        if now >= self._lacks_due:
            self._lacks = waiting.waited_for(self._store, request, self._manifest(request))
            self._lacks_due = now + _WAITING_S
        return self._lacks

    def _manifest(self, request: Request) -> Manifest:
        """The one that it is pinned to, which a redrive may change."""
        if request.manifest not in self._manifests:
            self._manifests = {request.manifest: catalog.read_manifest(self._store, self._workflow, request.manifest)}
        return self._manifests[request.manifest]

    def _cause(self, request: Request) -> Cause | None:
        if request.state != "failed":
            return None
        found = why.explain(self._store, request)
        if found.failure is None:
            return None
        return Cause(
            exception_type=found.failure.exception_type,
            exception_message=shortened(sanitised(found.failure.exception_message), MESSAGE_CHARACTERS),
            place=None if found.place is None else str(found.place),
            invocation_id=found.invocation_id or "",
            handler_name=found.handler_name,
        )

    def _gone(self) -> Progress:
        """As it was seen last, but for that."""
        last = self._last
        return Progress(
            request_id=self._id,
            workflow_name=self._workflow,
            job_name=self._job,
            state="expired",
            elapsed_s=0.0 if last is None else last.elapsed_s,
            counts=Counts(sealed=0, ready=0, running=0, ended=0, failed=0) if last is None else last.counts,
            is_whole=True if last is None else last.is_whole,
            steps=[] if last is None else last.steps,
            rate=None,
            waiting_for=[],
            detail="The request has ended, and what belonged to it was removed.",
            error=None,
        )
