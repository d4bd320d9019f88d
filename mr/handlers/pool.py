"""Runners for a worker: warm processes, each of which runs one handler at a time.

The pool starts a zygote, has runners forked by it and replaces every runner that misbehaved. All waiting is asyncio's,
on the sockets themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Hashable

from mr.errors import InvalidConfig, RunnerBroken
from mr.handlers import zygote
from mr.handlers.limits import Limits
from mr.handlers.remote import Runner
from mr.handlers.runner import RunnerSettings
from mr.handlers.system import kill_group
from mr.handlers.turns import Turns
from mr.handlers.zygote_process import ZygoteProcess

__all__ = ["Limits", "Runner", "RunnerPool"]

_TICK_S = 0.05
_RESPAWN_S = 0.2


class RunnerPool:
    """``size`` warm runners.

    ``scope_factory`` is the dotted name of a :class:`mr.handlers.scope.ScopeFactory`, ``fs_url`` what ``FS`` is on.
    """

    def __init__(
        self, size: int, limits: Limits | None = None, scope_factory: str | None = None, fs_url: str = ""
    ) -> None:
        self.size = size
        self.limits = limits or Limits()
        self._scope_factory, self._fs_url = scope_factory, fs_url
        self.loop: asyncio.AbstractEventLoop
        self._runners: dict[int, Runner] = {}
        self._idle: list[Runner] = []
        self._waiters: Turns[asyncio.Future[Runner]] = Turns()
        self._count = 0
        self._zygote: ZygoteProcess | None = None
        self._is_closing = False
        self._ticking: asyncio.TimerHandle | None = None
        self._is_watching = False
        self._restarting: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the zygote and all runners.

        :raises RunnerBroken: they cannot be started.
        :raises InvalidConfig: there is no such scope factory.
        """
        self.loop = asyncio.get_running_loop()
        try:
            await self._start_zygote()
            for _ in range(self.size):
                self._spawn()
        except BaseException:
            await self.close()
            raise

    async def acquire(self, owner: Hashable = None) -> Runner:
        """A runner that has nothing to do, the one that was used last; waits for one to become free.

        Of several owners who wait, each gets one in turn.

        :raises RunnerBroken: the pool is closed, or runners cannot be started.
        """
        if self._is_closing or (self._zygote is None and self._restarting is None):
            raise RunnerBroken("The pool of runners is not open.")
        if (runner := self.take_idle()) is not None:
            return runner
        waiter: asyncio.Future[Runner] = self.loop.create_future()
        self._waiters.add(owner, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def take_idle(self) -> Runner | None:
        """A runner that has nothing to do, the one that was used last; None: there is none just now."""
        while self._idle:
            runner = self._idle.pop()
            if runner.is_usable:
                return runner
        return None

    def release(self, runner: Runner) -> None:
        """Give a runner back. It is replaced if its last task spoiled it."""
        if runner.is_running:
            runner.kill("HandlerKilled", "It was given back before its end.")
        if not runner.is_usable or self._runners.get(runner.runner_id) is not runner:
            return
        while self._waiters:
            waiter = self._waiters.take()
            if not waiter.done():
                waiter.set_result(runner)
                return
        self._idle.append(runner)

    async def close(self) -> None:
        """End all runners, whatever they do, and the zygote; runs in progress fail with ``HandlerKilled``."""
        self._is_closing = True
        if self._ticking is not None:
            self._ticking.cancel()
        if self._restarting is not None:
            self._restarting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._restarting
        for runner in self._runners.values():
            runner.kill("HandlerKilled", "The worker stopped.")
        self._fail_waiters("The pool of runners was closed.")
        if self._zygote is not None:
            await self._zygote.close()
            self._zygote = None
        self._forget_all()

    # --- for runners ---------------------------------------------------------------------------------------------

    def order(self, order: zygote.Order) -> None:
        """Tell the zygote, if there is one."""
        if self._zygote is not None:
            self._zygote.send(order)

    def give_up(self) -> None:
        """A runner was to be killed long ago, so the zygote hangs (a handler may have stopped it): start all over."""
        if self._zygote is not None:
            self._zygote.kill()

    def watch(self) -> None:
        """A task began: look at running tasks from time to time."""
        if self._ticking is None and not self._is_closing:
            self._ticking = self.loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = self.loop.time()
        running = [runner for runner in self._runners.values() if runner.is_running]
        # Every runner is to be checked, so no any() over a generator here.
        is_watching = any([runner.check(now) for runner in running])
        if is_watching != self._is_watching:
            self._is_watching = is_watching
            self.order(zygote.Watch(is_watching))
        self._ticking = self.loop.call_later(_TICK_S, self._tick) if running and not self._is_closing else None

    # --- starting and replacing ----------------------------------------------------------------------------------

    async def _start_zygote(self) -> None:
        each = RunnerSettings(
            memory_bytes=self.limits.memory_bytes,
            cpu_s=self.limits.cpu_s,
            open_files=self.limits.open_files,
            scope_factory=self._scope_factory,
            fs_url=self._fs_url,
        )
        process = ZygoteProcess(self.loop, self._noticed, self._zygote_lost)
        problem = await process.start(zygote.Settings(each, self.limits.processes))
        if problem:
            await process.close()
            raise InvalidConfig(problem)
        self._zygote = process
        self._is_watching = False

    def _spawn(self) -> None:
        assert self._zygote is not None
        self._count += 1
        runner = Runner(self, self._count)
        self._runners[runner.runner_id] = runner
        directory = os.path.join(self._zygote.directory, str(runner.runner_id))
        self._zygote.send(zygote.Fork(runner.runner_id, directory), runner.fds)

    def _noticed(self, notice: zygote.Notice) -> None:
        if isinstance(notice, zygote.Forked):
            runner = self._runners.get(notice.runner_id)
            if runner is not None:
                runner.process = notice.process
                self.release(runner)
        elif isinstance(notice, zygote.Exited):
            runner = self._runners.pop(notice.runner_id, None)
            if runner is None:
                return
            runner.exited(notice.status, notice.was_crowded)
            self._retire(runner)
            # One that never ran anything says that something is wrong here; not to try again as fast as possible.
            self.loop.call_later(0.0 if runner.has_run else _RESPAWN_S, self._replace)

    def _replace(self) -> None:
        if not self._is_closing and self._zygote is not None and len(self._runners) < self.size:
            self._spawn()

    def _retire(self, runner: Runner) -> None:
        if runner in self._idle:
            self._idle.remove(runner)
        # Its task may not have read all events yet; those are in memory, but what it printed is in the pipes.
        if not runner.is_running:
            runner.close()

    def _zygote_lost(self) -> None:
        """The zygote is gone, and with it, by the kernel's doing, all runners."""
        process, self._zygote = self._zygote, None
        for runner in self._runners.values():
            # What they started has nobody else now who would end it.
            if runner.process:
                kill_group(runner.process)
        self._forget_all()
        if process is not None and not self._is_closing:
            process.discard()
            self._restarting = self.loop.create_task(self._restart())

    async def _restart(self) -> None:
        while True:
            try:
                await self._start_zygote()
            except (RunnerBroken, InvalidConfig, OSError) as error:
                self._fail_waiters(f"Runners cannot be started: {error}")
                await asyncio.sleep(1.0)
                continue
            for _ in range(self.size):
                self._spawn()
            self._restarting = None
            return

    def _forget_all(self) -> None:
        runners, self._runners = list(self._runners.values()), {}
        self._idle.clear()
        for runner in runners:
            runner.exited(None, False)
            self._retire(runner)

    def _fail_waiters(self, message: str) -> None:
        while self._waiters:
            waiter = self._waiters.take()
            if not waiter.done():
                waiter.set_exception(RunnerBroken(message))
