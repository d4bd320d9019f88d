"""Who sweeps: one worker a workflow, chosen by a leased key. For economy only; two at once do no harm."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from mr.engine.ops import Change, Env, HandBack, Write
from mr.engine.sweep import Memory, Sweep
from mr.errors import StoreError
from mr.kv.base import Compare
from mr.model import keys
from mr.model.records import Owner
from mr.worker.job import Job, Surroundings

_ROUND_S = 1.0
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
        self._worker, self._env = worker, env
        self._memories: dict[str, Memory] = {}
        self._restarts = worker.restarts()
        self._job: asyncio.Task[None] | None = None
        self._is_stopping = False

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
            for workflow, memory in list(self._memories.items()):
                try:
                    if not await self._is_ours(workflow):
                        continue
                    if restarts != self._restarts:
                        memory.hurry()
                    sweep = Sweep(self._env, workflow, memory, self._worker.has_room(_ROOM_AFTER_S))
                    await Job(self._worker, None, workflow, "").run(sweep.run())
                except HandBack:
                    return
                except StoreError as error:
                    log.warning("workflow %s could not be swept, trying again: %s", workflow, error)
                except Exception:
                    log.exception("the sweep of %s went wrong, trying again", workflow, extra={"workflow": workflow})
            self._restarts = restarts

    async def _is_ours(self, workflow: str) -> bool:
        key, lease = keys.sweeper(workflow), self._env.lease()
        [entry] = await self._worker.calls.make(self._worker.platform.store.get, [key])
        if entry is not None:
            return entry.lease == lease
        owner = Write(key, Owner(nonce="", worker=self._worker.name), lease)
        change = Change("sweep", (Compare("version", key, 0, "sweeper"),), (owner,))
        return (await self._worker.commits.commit(change)).ok
