"""Who delivers what is owed: the worker that sweeps a workflow. Two at once do no harm but repeat a delivery."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from mr.engine import deliver
from mr.engine.ops import Env, Flow, HandBack, Read
from mr.errors import StoreError
from mr.model.deliveries import Delivery, parse_target
from mr.worker.job import Job, Surroundings

_ROUND_S = 1.0
AT_ONCE = 16
"""How many deliveries are under way at a time, each in a thread of its own."""

PER_WORKFLOW = 12
"""How many of them may be of one workflow, where the worker delivers for several."""

PER_PLACE = 4
"""How many of them may be for one place: one that is slow keeps none of the others waiting."""

_FIRST_REST_S = 1.0
_LAST_REST_S = 30.0
_MOST_RESTS = 1000
_LAST_WAIT_S = 3.0
_IDLE_SHARE = 4

log = logging.getLogger(__name__)


def place_of(target: str, result_url: str = "") -> str:
    """What is down when one delivery to it fails for that reason: a host, the mail server, or a writer.

    ``result_url`` is where the platform's own settings have results posted.
    """
    url = parse_target(target).url
    parts = urlsplit(result_url if url == "http" else url)
    if parts.scheme in ("http", "https"):
        return parts.netloc.lower()
    return "mailto" if url == "email" else url.partition(":")[0]


class Places:
    """Where deliveries go. A place at which one failed is given a rest, and then tried by one alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._busy: Counter[str] = Counter()
        self._rests: dict[str, tuple[float, float]] = {}

    def has_room(self, place: str) -> bool:
        if self._busy.total() >= AT_ONCE:
            return False
        until, _ = self._rests.get(place, (0.0, 0.0))
        return self._clock() >= until and self._busy[place] < (1 if place in self._rests else PER_PLACE)

    def enter(self, place: str) -> None:
        self._busy[place] += 1

    def leave(self, place: str, has_worked: bool | None = None) -> None:
        """``has_worked`` None: nothing was learned of the place."""
        self._busy[place] -= 1
        if not self._busy[place]:
            del self._busy[place]
        if has_worked is None:
            return
        if has_worked:
            self._rests.pop(place, None)
        else:
            _, pause = self._rests.get(place, (0.0, _FIRST_REST_S / 2))
            pause = min(_LAST_REST_S, 2 * pause)
            now = self._clock()
            if len(self._rests) >= _MOST_RESTS:
                # A place that nobody has tried for as long as it rested is not known to be down any more.
                self._rests = {name: rest for name, rest in self._rests.items() if rest[0] + rest[1] > now}
            self._rests[place] = (now + pause, pause)


class Courier:
    """Delivers for the workflows that ``held`` tells, each as soon as it may."""

    def __init__(self, worker: Surroundings, env: Env, held: Callable[[], Iterable[str]], result_url: str = "") -> None:
        self._worker, self._env, self._held, self._result_url = worker, env, held, result_url
        self._memories: dict[str, deliver.Memory] = {}
        self._clock = asyncio.get_running_loop().time
        self._places = Places(self._clock)
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._reserved: list[str] = []
        self._mine: Counter[str] = Counter()
        self._rounds = 0
        self._news = asyncio.Event()

    def owes(self) -> None:
        """There is something new to be delivered."""
        self._news.set()

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), _ROUND_S)
            self._news.clear()
            began = self._clock()
            held = list(self._held())
            self._memories = {name: self._memories.get(name, deliver.Memory()) for name in held}
            first = self._rounds % len(held) if held else 0
            self._rounds += 1
            for workflow in held[first:] + held[:first]:
                await self._look(workflow)
            # Where much is outstanding, a look takes its time, which the worker has other uses for.
            await asyncio.sleep(_IDLE_SHARE * (self._clock() - began))

    async def finish(self) -> None:
        """Lets what is under way come to its end, for a moment; the rest is delivered again by others."""
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=_LAST_WAIT_S)
        for task in self._under_way.values():
            task.cancel()

    async def _look(self, workflow: str) -> None:
        memory = self._memories[workflow]
        try:
            await self._run(workflow, deliver.forget_dead(self._env, workflow, memory))
            takes = partial(self._takes, workflow)
            for owed in await self._run(workflow, deliver.due(self._env, workflow, memory, takes)):
                self._begin(workflow, owed)
        except HandBack:
            return
        except StoreError as error:
            log.warning("what workflow %s owes cannot be looked at, trying again: %s", workflow, error)
        except Exception:
            log.exception("deliveries of %s went wrong, trying again", workflow, extra={"workflow": workflow})
        finally:
            for place in self._reserved:
                self._places.leave(place)
                self._mine[workflow] -= 1
            self._reserved.clear()

    def _takes(self, workflow: str, key: str, target: str) -> bool:
        """Reserves a place for it, if there is one."""
        place = self._place(target)
        has_enough = len(self._memories) > 1 and self._mine[workflow] >= PER_WORKFLOW
        if has_enough or key in self._under_way or not self._places.has_room(place):
            return False
        self._places.enter(place)
        self._mine[workflow] += 1
        self._reserved.append(place)
        return True

    def _begin(self, workflow: str, owed: Read[Delivery]) -> None:
        assert owed.record is not None
        # What was reserved for others that have gone meanwhile is given back.
        self._reserved.remove(self._place(owed.record.target))
        task = asyncio.create_task(self._deliver(workflow, owed, owed.record))
        self._under_way[owed.key] = task
        task.add_done_callback(lambda _: self._ended(owed.key))

    def _ended(self, key: str) -> None:
        del self._under_way[key]
        # There is a free place.
        self._news.set()

    async def _deliver(self, workflow: str, owed: Read[Delivery], record: Delivery) -> None:
        has_worked: bool | None = None
        try:
            failure = await self._run(workflow, deliver.deliver(self._env, owed))
            # A place that refuses for good is up.
            if failure is None or not failure.spares_place:
                has_worked = failure is None or failure.is_final
            if failure is not None:
                fields = {"workflow": workflow, "request": record.request_id or ""}
                log.warning("%s was not delivered: %s", record.delivery_id, failure.message, extra=fields)
        except (HandBack, asyncio.CancelledError):
            pass
        except StoreError as error:
            log.warning("%s may be delivered again, since that it was cannot be told: %s", record.delivery_id, error)
        except Exception:
            log.exception("the delivery %s went wrong, trying again", record.delivery_id)
        finally:
            self._places.leave(self._place(record.target), has_worked)
            self._mine[workflow] -= 1

    def _place(self, target: str) -> str:
        return place_of(target, self._result_url)

    async def _run(self, workflow: str, flow: Flow[Any]) -> Any:
        return await Job(self._worker, None, workflow, "").run(flow)
