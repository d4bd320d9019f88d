"""The worker's one lease: what it owns is its own for as long as it renews it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mr.errors import StoreUnavailable
from mr.kv.base import Store
from mr.worker.calls import Calls

_SAFETY = 0.75
"""The share of its time after which a lease that could not be renewed is taken for lost."""

log = logging.getLogger(__name__)


class Tenure:
    """``clock`` is monotonic, in seconds. ``lost`` is called when whatever runs under the lease must be stopped."""

    def __init__(self, store: Store, ttl: float, clock: Callable[[], float], lost: Callable[[], None]) -> None:
        self._store, self._ttl, self._clock, self._lost = store, ttl, clock, lost
        self._calls = Calls(store.local, 1, "lease")
        self._lease = 0
        self._is_lost = False
        self._renewed = clock()

    async def begin(self) -> None:
        """
        :raises StoreUnavailable: no lease could be had.
        """
        asked = self._clock()
        self._lease = await self._calls.make(self._store.grant, self._ttl)
        self._renewed = asked

    def lease(self) -> int:
        """The current lease. One that was lost may still be answered; what is put under it goes with it."""
        return self._lease

    async def renew(self) -> None:
        """Call it at least four times in the lease's time."""
        asked = self._clock()
        try:
            if not self._is_lost and await self._calls.make(self._store.keep_alive, self._lease):
                self._renewed = asked
                return
            self._give_up("is gone")
            # Never renewed again, even if it lives: a claim that was cut short may stand under it unknown to anybody.
            await self._calls.make(self._store.revoke, self._lease)
            await self.begin()
            self._is_lost = False
        except StoreUnavailable as error:
            log.warning("the worker's lease could not be renewed: %s", error)
            self.check()

    def check(self) -> None:
        """Gives up in time, also while a renewal has not been answered. Call it more often than :meth:`renew`."""
        if self._clock() - self._renewed > _SAFETY * self._ttl:
            # Before it expires and another worker takes over what still runs here.
            self._give_up("is about to expire")

    def _give_up(self, why: str) -> None:
        if not self._is_lost:
            self._is_lost = True
            log.warning("the worker's lease %s: what runs is stopped and will be run again", why)
            self._lost()

    async def end(self) -> None:
        """Lets go of everything that is owned under the lease."""
        try:
            await self._calls.make(self._store.revoke, self._lease)
        except StoreUnavailable as error:
            log.warning("the worker's lease could not be ended; it will expire: %s", error)
        self._calls.close()
