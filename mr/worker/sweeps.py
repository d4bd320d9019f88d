"""Who sweeps: one worker a workflow, chosen by a leased key. For economy only; two at once do no harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from mr.engine.ops import Change, Env, HandBack, Write
from mr.engine.sweep import Memory, Sweep
from mr.errors import StoreError
from mr.kv.base import Compare
from mr.model import keys, workers
from mr.model.records import Owner
from mr.worker.job import Job, Surroundings

_ROUND_S = 1.0
_TOGETHER = 16
_ROOM_AFTER_S = 1.0

log = logging.getLogger(__name__)


class Host(Surroundings, Protocol):
    """What sweeping uses of its worker."""

    name: str

    def has_room(self, for_s: float) -> bool: ...

    def restarts(self) -> int: ...


class Sweeps:
    """Sweeps those workflows for which this worker holds the key, once a second each."""

    def __init__(self, worker: Host, env: Env) -> None:
        # What is due is removed side by side: each takes a dozen answers of the store, one after the other.
        self._worker, self._env = worker, replace(env, together=_TOGETHER)
        self._memories: dict[str, Memory] = {}
        self._restarts = worker.restarts()
        self._job: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.held: list[str] = []
        """The workflows whose key this worker had when it looked last."""

    def over(self, workflows: Iterable[str]) -> None:
        """These workflows, from now on."""
        self._memories = {name: self._memories.get(name, Memory()) for name in workflows}

    def stop(self) -> None:
        """Begins no further round."""
        self._is_stopping = True

    async def run(self) -> None:
        while not self._is_stopping:
            await asyncio.sleep(_ROUND_S)
            restarts = self._worker.restarts()
            has_come_back = restarts != self._restarts
            try:
                self.held = await self._ours()
                for workflow in self.held:
                    await self._sweep(workflow, has_come_back)
            except HandBack:
                return
            except StoreError as error:
                log.warning("it cannot be said which workflows to sweep, trying again: %s", error)
            except Exception:
                log.exception("sweeping went wrong, trying again")
            else:
                self._restarts = restarts

    async def _sweep(self, workflow: str, has_come_back: bool) -> None:
        """
        :raises HandBack: the worker stops.
        """
        memory = self._memories.get(workflow)
        if memory is None:
            return
        if has_come_back:
            memory.hurry()
        try:
            store = self._worker.platform.store
            registered = await self._worker.calls.make(workers.of_workflow, store, workflow)
            offered = workers.offered(registered) | self._env.capabilities
            sweep = Sweep(self._env, workflow, memory, self._worker.has_room(_ROOM_AFTER_S), offered)
            await Job(self._worker, None, workflow, "").run(sweep.run())
        except HandBack:
            raise
        except StoreError as error:
            log.warning("workflow %s could not be swept, trying again: %s", workflow, error)
        except Exception:
            log.exception("the sweep of %s went wrong, trying again", workflow, extra={"workflow": workflow})

    async def _ours(self) -> list[str]:
        """Those workflows whose key this worker holds; keys that nobody holds are taken."""
        workflows, lease = list(self._memories), self._env.lease()
        names = [keys.sweeper(workflow) for workflow in workflows]
        entries = await self._worker.calls.make(self._worker.platform.store.get, names)
        ours = []
        for workflow, name, entry in zip(workflows, names, entries, strict=True):
            if entry is None:
                owner = Write(name, Owner(nonce="", worker=self._worker.name), lease)
                change = Change("sweep", (Compare("version", name, 0, "sweeper"),), (owner,))
                if not (await self._worker.commits.commit(change)).ok:
                    continue
            elif entry.lease != lease:
                continue
            ours.append(workflow)
        return ours
