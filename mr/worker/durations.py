"""How long handlers take: learned from those that ran here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_WEIGHT = 0.2
_KNOWN = 1024


class Durations:
    """Means in seconds by workflow and handler version, the newest runs counting most."""

    def __init__(self) -> None:
        self._means: OrderedDict[tuple[str, str], float] = OrderedDict()

    def learn(self, workflow: str, version: str, seconds: float) -> None:
        key = (workflow, version)
        mean = self._means.get(key)
        self._means[key] = seconds if mean is None else mean + _WEIGHT * (seconds - mean)
        self._means.move_to_end(key)
        if len(self._means) > _KNOWN:
            self._means.popitem(last=False)

    def of(self, workflow: str, versions: Sequence[str]) -> float | None:
        """What a run of one of these takes; None where the first of them never ran here.

        Others may never run here at all, for want of a capability.
        """
        means = [self._means.get((workflow, version)) for version in versions]
        known = [mean for mean in means if mean is not None]
        return None if means[0] is None else sum(known) / len(known)
