"""Consumes the topics of its workflows and capabilities, and works on so many messages side by side.

One event loop does everything but the handlers themselves. While there is work, a worker holds a few messages more than
it has runners, the more the shorter handlers run, so that runners need not wait and commits are grouped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

from mr.config import Config
from mr.engine.handle import handle
from mr.engine.ops import Env, HandBack, Wake
from mr.engine.shell import Platform, to_message, topic
from mr.errors import Compacted, InvalidConfig, QueueUnavailable, StoreError, StoreUnavailable
from mr.handlers.limits import Limits
from mr.handlers.pool import RunnerPool
from mr.kv.base import Watch
from mr.model import catalog, keys
from mr.queue.base import Delivery, Queue
from mr.worker.calls import Calls
from mr.worker.courier import Courier
from mr.worker.durations import Durations
from mr.worker.group import GroupCommit, GroupRead, Outbox
from mr.worker.intake import LOOK_FAR_AFTER_S, Intake, Owner, Wanted
from mr.worker.job import Job
from mr.worker.pace import MOST_PER_RUNNER, Pace
from mr.worker.registry import Registry
from mr.worker.sweeps import Sweeps
from mr.worker.tenure import Tenure

_VISIBILITY_S = 60.0
_FINISH_AFTER_S = 0.005
_POLL_S = 2.0
_DRAIN_S = 8.0
_HAND_BACK_S = 3.0
_HAND_BACK_PAUSE_S = 0.1
_QUEUE_PAUSE_S = 1.0
_TROUBLE_PAUSE_S = 5.0
_THREADS = 4

log = logging.getLogger(__name__)


def worker_name() -> str:
    """Host, process and something random: a restarted worker is another one."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(2)}"


def check_sandbox(config: Config) -> None:
    """
    :raises InvalidConfig: handlers cannot be confined here as the configuration asks.
    """
    if config.sandbox != "process":
        raise InvalidConfig(
            f"This worker cannot run handlers {config.sandbox}. Set MR_SANDBOX=process, or leave it out.",
            "MR_SANDBOX",
        )


class Worker:
    """One worker process: build it, then ``await run()`` in its event loop.

    :raises InvalidConfig: handlers cannot be confined as the configuration asks.
    """

    def __init__(self, config: Config, platform: Platform) -> None:
        check_sandbox(config)
        self.name = worker_name()
        self.platform = platform
        self.is_stopping = False
        self._config = config
        self._runners = config.runners
        self._pace = Pace(config.runners)
        self._is_listening = False
        self._running = 0
        self._has_unsent = False
        self._comebacks = 0
        self._durations = Durations()
        self._jobs: set[Job] = set()
        self._busy: Counter[Owner] = Counter()
        self._workflows: tuple[str, ...] = ()
        self._is_pumping = False
        self._idle_since: float | None = None

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Works until SIGTERM or SIGINT, then drains in order. ``on_ready`` is called once messages are taken.

        :raises StoreUnavailable, QueueUnavailable, RunnerBroken: it cannot begin.
        """
        loop = self._loop = asyncio.get_running_loop()
        store, queue = self.platform.store, self.platform.queue
        self._stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._tenure = Tenure(store, self._config.lease_s, loop.time, self._lost)
        await self._tenure.begin()
        try:
            await self._work_until_stopped(queue, on_ready)
        finally:
            await self._tenure.end()

    async def _work_until_stopped(self, queue: Queue, on_ready: Callable[[], None]) -> None:
        loop, store = self._loop, self.platform.store
        env = self._env = Env.of(self._config, self.name, self._tenure.lease, self._at_hand)
        factory = self._config.workflow_scope_factory_fq_class or None
        self.pool = RunnerPool(self._runners, Limits.of(self._config), factory, self._config.fs_url)
        self.commits = GroupCommit(store, loop, self._are_more_coming)
        self.reads = GroupRead(store, loop)
        self.calls = Calls(store.local, _THREADS, "store")
        self._publishing = Calls(queue.local, 1, "publish")
        self.wakes: Outbox[Wake] = Outbox(loop, self._publish)
        self._finished: Outbox[Delivery] = Outbox(loop, self._finish, _FINISH_AFTER_S)
        most = self._runners * MOST_PER_RUNNER
        self._consumer = queue.consumer(self._config.channel, max_in_flight=3 * most, visibility=_VISIBILITY_S)
        self._intake = Intake(self._consumer, self._pace, self._runners, loop.time, self._finished.add)
        self._sweeps = Sweeps(self, env)
        self._courier = Courier(self, env, lambda: self._sweeps.held, self._config.result_http_writer_server_url)
        self._registry = Registry(self, self._config, self._tenure.lease)
        self._watch: Watch | None = None
        await self.pool.start()
        await self._look_at_queue()
        await self._follow()
        # Who waits for this worker to be ready may ask for it right away.
        await self._registry.settle()
        timers = [
            asyncio.create_task(self._every(self._config.lease_s / 5, self._tenure.renew)),
            asyncio.create_task(self._every(self._config.lease_s / 20, self._tenure.check)),
            asyncio.create_task(self._every(_VISIBILITY_S / 4, self._touch)),
            asyncio.create_task(self._every(_POLL_S, self._follow)),
            asyncio.create_task(self._every(LOOK_FAR_AFTER_S, lambda: self._intake.look_far(self._busy))),
            asyncio.create_task(self._poll_queue()),
            asyncio.create_task(self._every(_QUEUE_PAUSE_S, self._retry_queue)),
            asyncio.create_task(self._sweeps.run()),
            asyncio.create_task(self._courier.run()),
            asyncio.create_task(self._registry.run()),
        ]
        log.info("worker %s is ready: %d runners, workflows: %s", self.name, self._runners, ", ".join(self._workflows))
        on_ready()
        await self._stop.wait()
        await self._drain(timers)

    async def _look_at_queue(self) -> None:
        """A queue that is away is waited for; that it is should not be a secret."""
        try:
            await self._publishing.make(self.platform.queue.publish, [])
        except QueueUnavailable as error:
            log.warning("the queue does not answer, trying again: %s", error)

    async def _retry_queue(self) -> None:
        """Once the queue takes messages again, the sweep sends what it did not take."""
        if self._has_unsent:
            with suppress(QueueUnavailable):
                await self._publishing.make(self.platform.queue.publish, [])
                self._has_unsent = False
                self._comebacks += 1

    # --- what goes on by itself -------------------------------------------------------------------------------------

    async def _every(self, pause: float, act: Callable[[], Awaitable[None] | None]) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                waiting = act()
                if waiting is not None:
                    await waiting
            except Exception:
                # What is done again and again must not end with one failure.
                log.exception("something went wrong that is done every %g s", pause)

    async def _poll_queue(self) -> None:
        while True:
            self._pump_soon()
            pause = _POLL_S if self._intake.is_down else self._consumer.idle_for()
            await asyncio.sleep(min(_POLL_S, max(0.005, pause)))

    async def _follow(self) -> None:
        """Keeps the watch open, and looks itself now and then for what a watch may have missed."""
        try:
            if self._watch is None:
                await self._open_watch()
            await self._find_workflows()
            self._watched()
            await self._find_ended()
        except (StoreError, QueueUnavailable) as error:
            log.warning("workflows and requests cannot be followed, trying again: %s", error)

    async def _open_watch(self) -> None:
        """Follows nothing but the workflows that are this worker's to serve."""
        wanted = self._config.workflow_names
        prefixes = [*catalog.watched(wanted), *(map(keys.lives, wanted) if wanted else [keys.LIVE])]
        store = self.platform.store
        after = await self.calls.make(store.revision)
        self._watch = await self.calls.make(store.watch, prefixes, after)
        self._loop.add_reader(self._watch.fileno(), self._watched)

    def _watched(self) -> None:
        if self._watch is None:
            return
        try:
            events = self._watch.next(0)
        except (Compacted, StoreUnavailable):
            self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
            return
        are_new = False
        for event in events:
            if catalog.changed(event.key) is not None:
                are_new = True
            elif event.value is None:
                workflow, _, request_id = event.key.removeprefix(keys.LIVE).partition("/")
                self._ended(workflow, request_id)
        if are_new:
            self._finding = self._loop.create_task(self._find_new_workflows())

    async def _find_new_workflows(self) -> None:
        try:
            await self._find_workflows()
        except (StoreError, QueueUnavailable) as error:
            log.warning("new workflows cannot be followed yet: %s", error)

    async def _find_workflows(self) -> None:
        store, wanted = self.platform.store, self._config.workflow_names
        workflows = tuple(await self.calls.make(catalog.workflow_names, store, wanted))
        if workflows != self._workflows:
            capabilities = self._config.system_capabilities
            directions = ("map", "reduce")
            self._consumer.subscribe([topic(w, d, c) for w in workflows for d in directions for c in capabilities])
            self._sweeps.over(workflows)
            self._registry.over(workflows)
            self._workflows = workflows
            self._pump_soon()

    def _ended(self, workflow: str, request_id: str) -> None:
        for job in self._jobs:
            if job.request_id == request_id and job.workflow == workflow:
                job.end()

    async def _find_ended(self) -> None:
        requests = list({(job.workflow, job.request_id) for job in self._jobs if job.delivery is not None})
        lives = await self.calls.make(self.platform.store.get, [keys.live(*request) for request in requests])
        for (workflow, request_id), live in zip(requests, lives, strict=True):
            if live is None:
                self._ended(workflow, request_id)

    def _lost(self) -> None:
        """The lease is gone, or as good as gone: others may run what is run here."""
        for job in self._jobs:
            if job.task is not None and job.delivery is not None:
                job.task.cancel()

    def _touch(self) -> None:
        worked_on = (job.delivery for job in self._jobs if job.delivery is not None)
        deliveries = [*self._intake.deliveries(), *worked_on]
        try:
            self._consumer.touch(deliveries)
        except QueueUnavailable as error:
            log.warning("messages could not be touched, they may come again: %s", error)

    # --- messages ---------------------------------------------------------------------------------------------------

    def is_crowded(self) -> None:
        """Handlers run longer than they did: nothing more is claimed ahead of runners."""
        self._pace.is_crowded()

    def owes(self) -> None:
        """Something was committed that is to be delivered."""
        self._courier.owes()

    def starts(self) -> None:
        """A runner is about to run a handler."""
        self._running += 1

    def _are_more_coming(self) -> bool:
        return self._running > 0 and self._pace.is_short

    def ran(self, workflow: str, version: str, seconds: float) -> None:
        """A handler ran for so long."""
        self._running -= 1
        self._pace.ran(seconds)
        self._durations.learn(workflow, version, seconds)

    def _at_hand(self, workflow: str, handlers: tuple[str, ...]) -> float | None:
        run_s = self._durations.of(workflow, handlers)
        return None if run_s is None else self._pace.at_hand(run_s)

    def has_room(self, for_s: float) -> bool:
        """Whether runners have been waiting for messages for so long."""
        return self._idle_since is not None and self._loop.time() - self._idle_since >= for_s

    def restarts(self) -> int:
        """How often the queue was lost and found again: what should have been in it may not be."""
        return self._consumer.restarts() + self._comebacks

    def start(self, job: Job, flow: object) -> None:
        """Begins to work on something; its end is taken care of."""
        self._jobs.add(job)
        job.task = asyncio.create_task(self._work(job, flow))
        job.task.add_done_callback(lambda task: self._worked(job, task))

    def _pump_soon(self) -> None:
        if not self._is_pumping:
            self._is_pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pumping = False
        if self.is_stopping:
            return
        self._intake.fill(self._busy)
        while (wanted := self._intake.next(self._busy)) is not None:
            self._begin(wanted)
        self._listen(self._intake.wants(self._busy))
        is_idle = not self._intake and len(self._jobs) < self._runners
        if not is_idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._loop.time()

    def _listen(self, is_to: bool) -> None:
        """Hears of messages only while it would take them: a descriptor stays readable until they are taken."""
        if is_to and not self._is_listening:
            self._loop.add_reader(self._consumer.fileno(), self._pump_soon)
        elif self._is_listening and not is_to:
            self._loop.remove_reader(self._consumer.fileno())
        self._is_listening = is_to

    def _begin(self, wanted: Wanted) -> None:
        workflow, request_id = wanted.owner
        job = Job(self, wanted.delivery, workflow, request_id)
        self._busy[job.owner] += 1
        self.start(job, handle(self._env, workflow, request_id, wanted.invocation_id))

    async def _work(self, job: Job, flow: object) -> None:
        fields = {"workflow": job.workflow, "request": job.request_id}
        began = self._loop.time()
        try:
            await job.run(flow)  # type: ignore[arg-type]
        except HandBack:
            self._requeue(job, 0.0 if self.is_stopping else _HAND_BACK_PAUSE_S)
        except Exception:
            log.exception("something went wrong with request %s of %s", job.request_id, job.workflow, extra=fields)
            self._requeue(job, _TROUBLE_PAUSE_S)
        else:
            if job.runs:
                self._pace.took((self._loop.time() - began - job.busy_s) / job.runs)
            if job.delivery is not None:
                self._finished.add(job.delivery)

    def _worked(self, job: Job, task: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        self._busy[job.owner] -= 1
        if not self._busy[job.owner]:
            del self._busy[job.owner]
        if task.cancelled():
            # Before it had begun.
            self._requeue(job, 0.0)
        self._pump_soon()

    def _requeue(self, job: Job, delay: float) -> None:
        if job.delivery is None:
            return
        try:
            self._consumer.requeue([job.delivery], delay)
        except QueueUnavailable as error:
            log.warning("a message could not be given back, it will come again by itself: %s", error)

    def _finish(self, deliveries: list[Delivery]) -> None:
        try:
            self._consumer.finish(deliveries)
        except QueueUnavailable as error:
            log.warning("messages could not be finished, they will come again: %s", error)

    def _publish(self, wakes: list[Wake]) -> Awaitable[None] | None:
        if not self._publishing.is_local:
            return self._publishing.make(self._send, wakes)
        self._send(wakes)
        return None

    def _send(self, wakes: list[Wake]) -> None:
        try:
            self.platform.queue.publish([to_message(wake) for wake in wakes])
        except QueueUnavailable as error:
            self._has_unsent = True
            log.warning("%d messages could not be sent, the sweep will: %s", len(wakes), error)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _drain(self, timers: list[asyncio.Task[None]]) -> None:
        """Stops taking, lets handlers finish for a while, hands back the rest, and then lets go of everything."""
        log.info("worker %s stops: %d invocations are let finish", self.name, len(self._jobs))
        self.is_stopping = True
        self._listen(False)
        self._sweeps.stop()
        renewing, checking, *others = timers
        for timer in others:
            timer.cancel()
        self._intake.give_back()
        await self._registry.leave()
        await asyncio.gather(self._wait_for_jobs(_DRAIN_S), self._courier.finish())
        for job in self._jobs:
            if job.task is not None:
                job.task.cancel()
        await self._wait_for_jobs(_HAND_BACK_S)
        self.commits.is_closing = True
        await self._wait_for_jobs(1.0)
        await self.wakes.drain()
        self._finished.flush()
        renewing.cancel()
        checking.cancel()
        await asyncio.gather(*timers, return_exceptions=True)
        await self.pool.close()
        if self._watch is not None:
            self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
        self._consumer.close()
        for one in (self.commits, self.reads, self.calls, self._publishing):
            one.close()
        log.info("worker %s has stopped", self.name)

    async def _wait_for_jobs(self, seconds: float) -> None:
        tasks = [job.task for job in self._jobs if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
