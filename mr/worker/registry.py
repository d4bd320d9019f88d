"""What a worker says of itself, under its lease, so that others know that it is there and what it can do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from mr import __version__
from mr.config import Config
from mr.engine.ops import Change, Write
from mr.engine.shell import Platform
from mr.errors import FilesUnavailable, StoreError
from mr.model import keys
from mr.model.workers import Registration
from mr.worker.group import GroupCommit

_ROUND_S = 1.0
_LEAVE_S = 1.0
_PAGE = 64
"""Workflows that are written of in one transaction."""

log = logging.getLogger(__name__)


class Host(Protocol):
    """What a registry uses of its worker."""

    name: str
    platform: Platform
    commits: GroupCommit


class Registry:
    """Keeps one key a workflow under the worker's current ``lease``; a lease that is lost takes them all with it."""

    def __init__(self, worker: Host, config: Config, lease: Callable[[], int]) -> None:
        self._worker, self._lease = worker, lease
        self._registration = Registration(
            worker_name=worker.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            capabilities=sorted(config.system_capabilities),
            runners=config.runners,
            channel=config.channel,
            started_timestamp=time.time(),
            registered_timestamp=0.0,
        )
        self._wanted: frozenset[str] = frozenset()
        self._told: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def over(self, workflows: Iterable[str]) -> None:
        """These workflows, from now on."""
        self._wanted = frozenset(workflows)
        self._changed.set()

    async def run(self) -> None:
        """Follows what is asked for, and the lease: never ends."""
        while True:
            self._changed.clear()
            try:
                await self.settle()
            except StoreError as error:
                log.warning("the worker could not be registered, trying again: %s", error)
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _ROUND_S)

    async def settle(self) -> None:
        """Writes what is not written yet under the current lease, and removes what is not wanted any more.

        :raises StoreError: the store refuses.
        """
        async with self._turn:
            lease = self._lease()
            new = sorted(name for name in self._wanted if self._told.get(name) != lease)
            if new and not self._registration.files:
                await self._look_at_files()
            record = msgspec.structs.replace(self._registration, registered_timestamp=time.time())
            for start in range(0, len(new), _PAGE):
                page = new[start : start + _PAGE]
                writes = tuple(Write(self._key(name), record, lease) for name in page)
                if not (await self._worker.commits.commit(Change("register", (), writes))).ok:
                    # The lease is gone; the one that takes its place is noticed in the next round.
                    return
                self._told |= dict.fromkeys(page, lease)
            gone = sorted(self._told.keys() - self._wanted)
            for start in range(0, len(gone), _PAGE):
                page = gone[start : start + _PAGE]
                await self._worker.commits.commit(Change("deregister", (), (), tuple(map(self._key, page))))
                for name in page:
                    del self._told[name]

    async def leave(self) -> None:
        """Nothing more is begun here: what was said is taken back, if the store answers soon; else it goes with the
        lease."""
        self.over(())
        with contextlib.suppress(StoreError, TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(self.settle(), _LEAVE_S)

    async def _look_at_files(self) -> None:
        files = self._worker.platform.files
        with contextlib.suppress(FilesUnavailable):
            identity = await asyncio.get_running_loop().run_in_executor(None, files.identity)
            self._registration = msgspec.structs.replace(self._registration, files=identity)

    def _key(self, workflow: str) -> str:
        return keys.worker(workflow, self._worker.name)
