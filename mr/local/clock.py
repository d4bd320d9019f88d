"""A clock that all processes of one machine read alike, whatever happens to the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(NamedTuple):
    """``now`` gives seconds that only grow, from one origin for every process of one boot; ``boot`` names that boot.

    Times of another boot must not be compared with ``now()``.
    """

    now: Callable[[], float]
    boot: str


def machine_clock() -> Clock:
    """This machine's clock. It counts while the machine sleeps, where the system can tell."""
    return Clock(_since_boot if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic, _boot())


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        # Without an ID the moment of the boot stands in, in steps of an hour so that small corrections of the wall
        # clock don't look like a boot. A wrong guess ends leases early or late; neither loses anything.
        return f"about-{round((time.time() - time.monotonic()) / 3600)}"
