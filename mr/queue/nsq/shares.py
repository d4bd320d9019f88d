"""Who may have how many messages in flight, when all together may have no more than so many.

nsqd sends on a connection for as long as fewer are in flight there than the last RDY said. RDY is never answered, so
one that was lowered is counted as it was for a moment longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SETTLE_S = 0.02
"""After that, nsqd has heard of a lower RDY, and what it had sent before is here."""

ROTATE_S = 0.1
"""Where not everybody can have a message, everybody waits for one so long in turn."""

_HUNGER_S = 0.5


class Share:
    """What one connection may have. ``rdy`` is what nsqd was told last; ``in_flight`` is kept by others."""

    __slots__ = ("_before", "_hungry_until", "_opened", "_settled", "_shut", "in_flight", "most", "rdy")

    def __init__(self) -> None:
        self.rdy = 0
        self.in_flight = 0
        self.most = 1
        self._before = 0
        self._settled = 0.0
        self._opened = 0.0
        self._shut = 0.0
        self._hungry_until = 0.0

    def take_in(self, in_flight: int, now: float) -> bool:
        """Messages came. True if there may be more than it was allowed."""
        self.in_flight = in_flight
        if in_flight < self.rdy:
            return False
        self._hungry_until = now + _HUNGER_S
        return True

    def allot(self, rdy: int, now: float) -> None:
        if rdy < self.rdy:
            self._before, self._settled = self.cost(now), now + SETTLE_S
        if rdy == 0:
            self._shut = now
        elif self.rdy == 0:
            self._opened = now
        self.rdy = rdy

    def want(self, now: float) -> int:
        return self.most if now < self._hungry_until else self.in_flight + 1

    def cost(self, now: float) -> int:
        """How many messages it may have in flight at nsqd, for all that is known here."""
        return max(self.in_flight, self.rdy, self._before if now < self._settled else 0)

    def is_settling(self, now: float) -> bool:
        return now < self._settled and self._before > max(self.in_flight, self.rdy)

    def turn(self, now: float) -> tuple[int, float]:
        """Sorts who is first where not everybody can have a message."""
        if self.rdy and now < self._opened + ROTATE_S:
            return 0, self._opened
        return (2, self._opened) if self.rdy else (1, self._shut)


class Plan(NamedTuple):
    """``is_short``: when messages end, there is something to share out. ``again_in``: so there is after that time."""

    changes: list[tuple[Share, int]]
    is_short: bool
    again_in: float | None


def share_out(shares: Sequence[Share], total: int, capacity: int, now: float) -> Plan:
    """Shares ``total`` messages out so that never more than ``capacity`` are in flight."""
    is_scarce = 0 < total < len(shares)
    if is_scarce:
        shares = sorted(shares, key=lambda share: share.turn(now))
    targets = divide(total, [share.want(now) for share in shares])
    targets = [min(target, share.most) for share, target in zip(shares, targets, strict=True)]
    costs = {share: share.cost(now) for share in shares}
    is_short = sum(max(costs[share], target) for share, target in zip(shares, targets, strict=True)) > capacity
    free = capacity - sum(costs.values())
    changes = []
    for share, target in zip(shares, targets, strict=True):
        if target > share.rdy:
            possible = min(target, costs[share] + max(0, free))
            if possible > share.rdy:
                free -= max(0, possible - costs[share])
                changes.append((share, possible))
        # A little too much is not worth a command, unless others wait for it.
        elif target < share.rdy and (is_short or 2 * target <= share.rdy):
            changes.append((share, target))
    for share, rdy in changes:
        share.allot(rdy, now)
    again_in = None
    if is_short and any(share.is_settling(now) for share in shares):
        again_in = SETTLE_S
    elif is_scarce:
        again_in = ROTATE_S
    return Plan(changes, is_short, again_in)


def divide(total: int, wants: Sequence[int]) -> list[int]:
    """Max-min fair: nobody gets more than it wants, and what one leaves the others have in equal parts.

    Everybody wants at least 1. Where there are fewer than that, the first ones get it.
    """
    if total <= len(wants):
        return [1] * total + [0] * (len(wants) - total)
    granted = [0] * len(wants)
    left = total
    for served, index in enumerate(sorted(range(len(wants)), key=wants.__getitem__)):
        granted[index] = min(wants[index], left // (len(wants) - served))
        left -= granted[index]
    return granted
