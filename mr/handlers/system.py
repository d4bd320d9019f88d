"""The few things of Linux that runners need and that Python's library lacks."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send that signal when the parent ends, and end at once if it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process, not of init."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def go_first() -> None:
    """Run before all that is not as urgent, where that is allowed; children do not inherit it.

    Among a thousand processes that fork, one of equal rank gets too little of the processor to end them.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):
        return


def children() -> dict[int, list[int]]:
    """All processes by their parent's ID. Reads all of ``/proc``: about ten microseconds a process."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    stat = file.read(1024)
            except OSError:
                continue
            # The second field is the program's name in parentheses, and may have anything in it.
            parent = int(stat[stat.rindex(b")") + 2 :].split(None, 2)[1])
            found.setdefault(parent, []).append(int(name))
    return found


def descendants(process: int, tree: dict[int, list[int]]) -> list[int]:
    """All processes below that one in a tree that :func:`children` gave."""
    found = list(tree.get(process, ()))
    for one in found:
        found += tree.get(one, ())
    return found


def tasks_in_system() -> int:
    """How many processes and threads there are in all: one small read."""
    with open("/proc/loadavg", "rb", buffering=0) as file:
        return int(file.read(128).split()[3].partition(b"/")[2])


def kill(process: int, number: int = signal.SIGKILL) -> None:
    """Signal a process; it may be gone."""
    try:
        os.kill(process, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_group(group: int) -> None:
    """Kill a whole process group, which the kernel does in one go, forks in progress included; it may be gone."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
