"""Long work of which others must not feel anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import gevent
from gevent import monkey
from gevent.os import fork_gevent

T = TypeVar("T")


def aside(is_local: bool, work: Callable[[], T]) -> T:
    """What ``work`` answers. Among greenlets, others go on meanwhile.

    ``is_local``: it waits for no network, so it never yields, and is done in a thread. What uses the network yields
    while it waits, and must stay where its connections are.
    """
    if is_local and monkey.is_module_patched("threading"):
        answer: T = gevent.get_hub().threadpool.apply(work)
        return answer
    return work()


def elsewhere(ask: Callable[[], bool]) -> bool:
    """The answer, from a process of its own: a driver may leave behind what breaks in the processes that are forked.

    True where there is none.
    """
    # Not the patched fork: it asks to be told of the child's end only when the child may have ended already, and then
    # waits for ever.
    child = fork_gevent()
    if not child:
        code = 1
        try:
            code = 1 if ask() else 0
        finally:
            os._exit(code)
    _, status = monkey.get_original("os", "waitpid")(child, 0)
    return bool(status != 0)
