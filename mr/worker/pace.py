"""How much a worker takes on at once, learned from how long handlers run and what is done around them."""

from __future__ import annotations

MOST_PER_RUNNER = 16
WAIT_FOR_RUNNER_S = 0.5
"""How long a claimed invocation waits for a runner before it is handed back, so that others may run it."""

_AHEAD_S = 0.02
"""How much work a runner should have before it, in seconds."""
_SHORT_S = 0.003
_SHARE = 0.2
"""What the newest measurement counts in a mean."""


class Pace:
    """For a worker of so many runners. Durations are seconds.

    A runner that waits while the store is told what it did, and what it does next, is idle: so the longer that takes in
    proportion to a run, the more invocations are worked on besides those that run.
    """

    def __init__(self, runners: int) -> None:
        self._runners = runners
        self._run_s = _AHEAD_S
        self._around_s = 0.0
        self.most = runners
        """Invocations to work on at once."""

    def ran(self, seconds: float) -> None:
        """A handler ran for so long."""
        self._run_s += _SHARE * (seconds - self._run_s)
        self._settle()

    def took(self, seconds: float) -> None:
        """So long took all else that there was to do for a run, but for the waiting for a runner."""
        self._around_s += _SHARE * (seconds - self._around_s)
        self._settle()

    def is_crowded(self) -> None:
        """An invocation waited in vain for a runner: handlers run longer than they did."""
        self._run_s = max(self._run_s, _AHEAD_S)
        self._around_s = 0.0
        self.most = self._runners

    @property
    def is_short(self) -> bool:
        """Whether handlers are so short that what comes next is worth a moment of waiting."""
        return self._run_s < _SHORT_S

    @property
    def is_long(self) -> bool:
        """Whether handlers are so long that nothing is worth being at hand that is not worked on."""
        return _times(self._run_s) == 1

    @property
    def hoard(self) -> int:
        """Messages to have at hand. Where handlers are short, that is twice as many, taken many at a time."""
        return self.most * _times(self._run_s)

    def at_hand(self, run_s: float) -> float:
        """Messages to have at hand for each runner, were all runs as long as that."""
        return self._depth(run_s) * _times(run_s)

    def _settle(self) -> None:
        self.most = round(self._runners * self._depth(self._run_s))

    def _depth(self, run_s: float) -> float:
        run_s = max(run_s, 1e-4)
        if run_s > WAIT_FOR_RUNNER_S / 2:
            # What is claimed ahead would be handed back.
            return 1
        return min(max(1 + self._around_s / run_s, _AHEAD_S / run_s), MOST_PER_RUNNER)


def _times(run_s: float) -> int:
    return 2 if 2 * run_s <= _AHEAD_S else 1
