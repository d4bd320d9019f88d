"""What was found by whoever looked whether all is well: the lines of ``jobx doctor``."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "problem"]

MAX_SKEW_S = 1.0


class Finding(NamedTuple):
    """``check`` is what was looked at, ``advice`` what to do about it: every problem has some."""

    level: Level
    check: str
    text: str
    advice: str = ""


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes as people say them."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.0f} {unit}" if unit == "bytes" or number >= 100 else f"{number:.3g} {unit}"


def skew(date: str, asked: float, answered: float) -> tuple[float, float] | None:
    """By how many seconds the clock of an HTTP server is ahead of this machine's: at least, and at most.

    ``date`` is the header of its answer, which tells whole seconds; ``asked`` and ``answered`` are the times here.
    None: it is no date.
    """
    try:
        told = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return told - answered, told + 1.0 - asked


def judge_clock(server: str, ahead: tuple[float, float]) -> Finding:
    """What to think of a clock that is so far ahead of this machine's."""
    low, high = ahead
    if low > MAX_SKEW_S or high < -MAX_SKEW_S:
        how_far = f"at least {low:.1f} s ahead of" if low > 0 else f"at least {-high:.1f} s behind"
        advice = "Have both machines keep time by NTP (chronyd, systemd-timesyncd); `timedatectl` says if they do."
        return Finding("warning", "clock", f"The clock of {server} is {how_far} this machine's.", advice)
    return Finding("ok", "clock", f"{server} and this machine agree on the time, as far as whole seconds tell.")
