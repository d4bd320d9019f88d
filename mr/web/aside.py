"""Long work of which others must not feel anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import gevent
from gevent import monkey

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
