"""One message at work: a flow whose operations are carried out on the event loop, and the runner that it uses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol, TypeVar

import msgspec

from mr.engine import ops
from mr.engine.shell import Platform
from mr.errors import FilesUnavailable, RunnerBroken, StoreUnavailable
from mr.handlers.pool import Runner, RunnerPool
from mr.handlers.protocol import Event, Failed, Finished
from mr.model import keys
from mr.model.entities import Handler
from mr.queue.base import Delivery
from mr.worker.calls import Calls, aside
from mr.worker.group import GroupCommit, GroupRead, Outbox
from mr.worker.pace import WAIT_FOR_RUNNER_S

_FIRST_PAUSE_S = 0.05
_LAST_PAUSE_S = 2.0
_BREATHE_S = 0.01

T = TypeVar("T")

log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What a job uses of its worker."""

    platform: Platform
    pool: RunnerPool
    commits: GroupCommit
    reads: GroupRead
    calls: Calls
    """For whatever else the store is asked."""
    wakes: Outbox[ops.Wake]
    is_stopping: bool

    def is_crowded(self) -> None:
        """An invocation waited in vain for a runner."""

    def owes(self) -> None:
        """There is something new to be delivered."""

    def starts(self) -> None:
        """A handler begins to run."""

    def ran(self, workflow: str, version: str, seconds: float) -> None:
        """A handler of that version ended that ran for so long."""


class Job:
    """``delivery`` is None where no message led here: a sweep."""

    def __init__(self, worker: Surroundings, delivery: Delivery | None, workflow: str, request_id: str) -> None:
        self._worker = worker
        self.delivery, self.workflow, self.request_id = delivery, workflow, request_id
        self.owner = (workflow, request_id)
        self.task: asyncio.Task[None] | None = None
        self._runner: Runner | None = None
        self._events: AsyncIterator[Event] | None = None
        self._loop = asyncio.get_running_loop()
        self._version = ""
        self._started = 0.0
        self.runs = 0
        """How many handlers were run."""
        self.busy_s = 0.0
        """How long they ran, and waited for a runner."""
        self._breathed = self._loop.time()
        self._spilled: set[str] = set()
        self._is_ended = False

    async def run(self, flow: ops.Flow[T]) -> T:
        """Runs the flow to its end, and answers what it does.

        :raises HandBack: what was claimed is given back, and the message should come again.
        :raises Exception: whatever went wrong; what was claimed is let go.
        """
        answer: Any = None
        problem: BaseException | None = None
        try:
            while True:
                try:
                    op = flow.send(answer) if problem is None else flow.throw(problem)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                answer, problem = None, None
                try:
                    answer = await self._perform(op)
                except asyncio.CancelledError:
                    # The worker stops, or must: the flow gives back what it holds, which takes a commit.
                    problem = ops.HandBack()
                except Exception as error:
                    problem = error
        finally:
            self._worker.platform.discard(self._spilled)
            await self._let_go()

    def end(self) -> None:
        """The request has ended: whatever is run for it is stopped. The flow finds out at its commit."""
        self._is_ended = True
        if self._runner is not None:
            self._runner.cancel()

    # --- operations -------------------------------------------------------------------------------------------------

    async def _perform(self, op: ops.Op) -> Any:
        if isinstance(op, ops.Commit):
            answer = await self._worker.commits.commit(op.change)
            if answer.ok and any(write.key.startswith(keys.DELIVERIES) for write in op.change.writes):
                self._worker.owes()
            return answer
        if isinstance(op, ops.NextEvent):
            return await self._next_event()
        if isinstance(op, ops.Publish):
            self._worker.wakes.add(*op.wakes)
            return None
        if isinstance(op, ops.Start):
            return await self._start(op)
        if isinstance(op, ops.Stop):
            return await self._let_go()
        if isinstance(op, ops.Together):
            return await self._side_by_side(op)
        return await self._ask(op)

    async def _side_by_side(self, op: ops.Together) -> None:
        jobs = [Job(self._worker, None, self.workflow, self.request_id) for _ in op.flows]
        answers = await asyncio.gather(
            *(job.run(flow) for job, flow in zip(jobs, op.flows, strict=True)), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def _ask(self, op: ops.Op) -> Any:
        """Reads, and all else that changes nothing when it is repeated: until it is answered."""
        known = self._worker.platform.known(op)
        if known is not None:
            return known
        if isinstance(op, ops.Spill):
            self._spilled.add(op.name)
        pause = _FIRST_PAUSE_S
        while True:
            try:
                return await self._try(op)
            except StoreUnavailable as error:
                if self._worker.is_stopping or self.delivery is None:
                    raise
                log.warning("the store does not answer, trying again: %s", error)
            except FilesUnavailable as error:
                if self._worker.is_stopping or self.delivery is None or isinstance(op, (ops.Spill, ops.Settle)):
                    raise
                log.warning("the shared files cannot be read, trying again: %s", error)
            await asyncio.sleep(pause)
            pause = min(_LAST_PAUSE_S, 2 * pause)

    async def _try(self, op: ops.Op) -> Any:
        platform = self._worker.platform
        if isinstance(op, ops.Deliver):
            # It may take minutes, which the end of a worker does not wait for.
            return await aside(platform.perform, op)
        if isinstance(op, (ops.Settle, ops.ReadDataset, ops.RemoveFiles)):
            # These wait for a disk.
            return await self._loop.run_in_executor(None, platform.perform, op)
        if not platform.store.local and not isinstance(op, ops.Spill):
            if not isinstance(op, ops.Get):
                return await self._worker.calls.make(platform.perform, op)
            reads = await self._worker.reads.get(op)
            platform.keep(op, reads)
            return reads
        if self._loop.time() - self._breathed > _BREATHE_S:
            # A flow that only reads would otherwise keep everything else waiting.
            await asyncio.sleep(0)
            self._breathed = self._loop.time()
        return platform.perform(op)

    async def _handler(self, workflow: str, version: str) -> Handler:
        platform = self._worker.platform
        known = platform.known_handler(workflow, version)
        if known is not None:
            return known
        return await self._worker.calls.make(platform.handler, workflow, version)

    async def _start(self, op: ops.Start) -> None:
        if self._is_ended:
            raise ops.HandBack
        handlers = [await self._handler(op.task.workflow_name, version) for version in op.handlers]
        combiner = handlers[1] if len(handlers) > 1 else None
        task = msgspec.structs.replace(op.task, handler=handlers[0], combiner=combiner)
        waited_from = self._loop.time()
        try:
            pool = self._worker.pool
            runner = pool.take_idle()
            if runner is None:
                runner = await asyncio.wait_for(pool.acquire(self.owner), WAIT_FOR_RUNNER_S)
        except (TimeoutError, asyncio.TimeoutError, RunnerBroken) as error:
            self._worker.is_crowded()
            raise ops.HandBack from error
        self._runner = runner
        if self._is_ended:
            raise ops.HandBack
        self._events = runner.run(task, op.items)
        self._version = task.handler_version
        self._started = self._loop.time()
        self.busy_s += self._started - waited_from
        self._worker.starts()

    async def _next_event(self) -> Event:
        assert self._events is not None
        try:
            event = await self._events.__anext__()
        except RunnerBroken as error:
            raise ops.HandBack from error
        if isinstance(event, (Finished, Failed)):
            await self._let_go()
        return event

    async def _let_go(self) -> None:
        """Gives the runner back; one that is still busy is ended."""
        events, runner = self._events, self._runner
        self._events = self._runner = None
        if events is not None:
            seconds = self._loop.time() - self._started
            self.runs += 1
            self.busy_s += seconds
            self._worker.ran(self.workflow, self._version, seconds)
            await events.aclose()  # type: ignore[attr-defined]
        if runner is not None:
            self._worker.pool.release(runner)
