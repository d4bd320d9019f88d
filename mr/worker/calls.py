"""Calls that may wait for a network, and the threads that make them so that the event loop does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar, cast

T = TypeVar("T")


async def aside(function: Callable[..., T], *arguments: object) -> T:
    """What ``function`` answers, or raises, from a thread of its own that keeps no process from ending."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, result))

    def run() -> None:
        result, problem = None, None
        try:
            result = function(*arguments)
        except BaseException as error:
            problem = error
        # Nobody may wait any more, and the loop be gone.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await answer


class Calls:
    """Makes blocking calls: on the loop itself where they wait for no network, else in at most ``threads`` threads.

    One for each purpose, so that what is urgent, as the renewal of a lease, never waits behind what is much.
    """

    def __init__(self, is_local: bool, threads: int, name: str) -> None:
        self.is_local = is_local
        self._pool = None if is_local else ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def make(self, function: Callable[..., T], *arguments: object) -> T:
        """What ``function`` answers, or raises."""
        if self._pool is None:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def close(self) -> None:
        """Begins no call any more; those that run are not waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
