"""The thread of a consumer that talks to nsqd: a connection for each topic at each nsqd, all in one event loop.

It is not pynsq's Reader, which takes five times the CPU time a message, shares no bound between topics, goes on without
TLS where nsqd has none, and is back 15 to 25 seconds after its nsqd is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from mr.errors import QueueUnavailable
from mr.queue.base import Message
from mr.queue.nsq import wire
from mr.queue.nsq.envelope import is_sealed, unseal
from mr.queue.nsq.holdings import HOARD_S, Flight, Holdings
from mr.queue.nsq.link import Link
from mr.queue.nsq.lookup import LOOKUP_S, Lookup
from mr.queue.nsq.publisher import Publisher
from mr.queue.nsq.settings import Address, Settings
from mr.queue.nsq.shares import share_out
from mr.queue.nsq.wire import NsqError

_TICK_S = 0.02
_LOOK_S = 0.5
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_LEAVE_S = 1.0

log = logging.getLogger(__name__)


class _Nsqd:
    """What is known of one nsqd."""

    def __init__(self, address: Address, is_new: bool) -> None:
        self.address = address
        self.links = 0
        self.trouble = ""
        self.is_lost = is_new
        """Whether it may have lost messages since there was a connection."""


class Switchboard:
    """Keeps ``holdings`` filled. Everything public may be called from any thread, and waits only where it says so."""

    def __init__(
        self,
        settings: Settings,
        lookup: Lookup,
        publisher: Publisher,
        holdings: Holdings,
        channel: str,
        visibility: float,
    ) -> None:
        self.restarts = 0
        self._settings = settings
        self._lookup = lookup
        self._publisher = publisher
        self._holdings = holdings
        self._channel = channel
        self._visibility = visibility
        self._topics: frozenset[str] = frozenset()
        self._nsqds: dict[Address, _Nsqd] = {}
        self._has_looked = False
        self._tending: dict[tuple[Address, str], asyncio.Task[None]] = {}
        self._links: dict[Link, _Nsqd] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_poked = False
        self._is_short = False
        self._shared_demand = 0
        self._shared_at = 0.0
        self._soon: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._hoard_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        # For what blocks: asking nsqlookupd, and publishing again what is deferred for longer than nsqd can.
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="nsq-aside")
        self._thread = threading.Thread(target=self._run, name="nsq-consumer", daemon=True)
        self._thread.start()

    # --- for any thread ---------------------------------------------------------------------------------------------

    def subscribe(self, topics: Iterable[str], unwanted: list[Flight]) -> None:
        """These topics from now on. What is ``unwanted`` goes back."""
        self._call(self._subscribe, frozenset(topics), unwanted)

    def poke(self) -> None:
        """Commands wait on some connection, or there is something to share out."""
        if not self._is_poked:
            self._is_poked = True
            self._call(self._poked)

    def is_to_share(self) -> bool:
        """Whether nsqd should be told to send more than it was."""
        return self._is_short or self._holdings.is_starved or self._holdings.demand != self._shared_demand

    def put_off(self, flights: list[Flight], delay: float) -> None:
        """Defers messages for longer than nsqd can: each is published anew, then finished."""
        self._call(lambda: self._start(self._put_off(flights, delay)))

    def close(self) -> None:
        """Gives everything back and ends the thread. Waits for that, for a second or two at most."""
        self._call(self._stop.set)
        self._thread.join(_LEAVE_S + 2.0)
        self._aside.shutdown(wait=False, cancel_futures=True)

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        # Once the thread has ended, whatever it would have done has ended with its connections.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            log.exception("the consumer of channel %s has ended", self._channel)
            self._holdings.tell("This consumer has broken; the log says how.")
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        chores = [self._start(self._find_nsqds()), self._start(self._look_after())]
        stopping = self._start(self._wait_for_end())
        try:
            await asyncio.wait([*chores, stopping], return_when=asyncio.FIRST_COMPLETED)
            self._topics = frozenset()
            self._arrange()
            for link in self._links:
                self._send([(flight, wire.requeue(flight.id)) for flight in self._holdings.drop(link)])
            if self._leaving:
                await asyncio.wait(self._leaving, timeout=_LEAVE_S)
        finally:
            for link in self._links:
                link.abort("")
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_LEAVE_S)
            # Once more around, so that the connections are closed indeed.
            await asyncio.sleep(0)
        for chore in chores:
            if chore.done() and not chore.cancelled():
                chore.result()

    async def _wait_for_end(self) -> None:
        await self._stop.wait()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _find_nsqds(self) -> None:
        while True:
            nodes = await self._loop.run_in_executor(self._aside, self._lookup.nodes)
            is_first = not self._nsqds
            self._has_looked = True
            found = {node.address for node in nodes}
            for address in found - self._nsqds.keys():
                self._nsqds[address] = _Nsqd(address, is_new=not is_first)
            # One that is not listed any more goes with its last connection.
            for address in self._nsqds.keys() - found:
                if not self._nsqds[address].links:
                    del self._nsqds[address]
            self._arrange()
            await asyncio.sleep(LOOKUP_S * random.uniform(0.8, 1.2))

    async def _look_after(self) -> None:
        """Finds what timed out, and connections from which nothing comes any more."""
        while True:
            await asyncio.sleep(_LOOK_S)
            now = time.monotonic()
            for link in list(self._links):
                self._holdings.expire(link, now)
                if link.is_silent(now):
                    link.abort("does not answer")

    # --- connections ------------------------------------------------------------------------------------------------

    def _subscribe(self, topics: frozenset[str], unwanted: list[Flight]) -> None:
        self._topics = topics
        self._arrange()
        # After nsqd was told to send no more of them.
        self._send([(flight, wire.requeue(flight.id)) for flight in unwanted])

    def _arrange(self) -> None:
        """Sees to it that every topic has a connection at every nsqd."""
        wanted = {(address, topic) for address in self._nsqds for topic in self._topics}
        for place in self._tending.keys() - wanted:
            self._tending.pop(place).cancel()
        for place in [place for place, tending in self._tending.items() if tending.done()]:
            # What nobody thought of must not leave a topic unheard.
            log.error("a connection to nsqd %s has ended", place[0], exc_info=self._tending.pop(place).exception())
        for link in [link for link in self._links if not link.is_leaving and link.topic not in self._topics]:
            self._leave(link)
        for address, topic in wanted - self._tending.keys():
            self._tending[address, topic] = self._start(self._tend(self._nsqds[address], topic))
        self._tell()
        self._share_soon()

    async def _tend(self, nsqd: _Nsqd, topic: str) -> None:
        """Keeps a connection open, for as long as it is wanted."""
        pause = _FIRST_PAUSE_S
        while self._is_wanted(nsqd, topic):
            link = Link(nsqd.address, topic, self._received)
            try:
                await link.open(self._settings, self._channel, self._visibility)
            except wire.TROUBLE as error:
                # A refusal says that it is there, and has what it had.
                self._failed(nsqd, wire.reason(error), is_lost=not isinstance(error, NsqError))
            else:
                if not self._is_wanted(nsqd, topic):
                    link.abort("")
                    return
                self._opened(nsqd, link)
                pause = _FIRST_PAUSE_S
                why = await link.lost()
                self._closed(link)
                self._failed(nsqd, why, is_lost=True)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _is_wanted(self, nsqd: _Nsqd, topic: str) -> bool:
        """Whether the task that asks is still the one to tend that connection.

        That it was cancelled is not enough: before Python 3.12, what opens the connection may miss it.
        """
        return self._tending.get((nsqd.address, topic)) is asyncio.current_task()

    def _opened(self, nsqd: _Nsqd, link: Link) -> None:
        self._links[link] = nsqd
        nsqd.links += 1
        link.share.most = min(self._holdings.max_in_flight, link.identity.max_rdy)
        if nsqd.trouble:
            log.info("nsqd %s is back", nsqd.address)
        nsqd.trouble = ""
        if nsqd.is_lost:
            nsqd.is_lost = False
            # First: whoever hears of the restart sends again for what was lost.
            self._publisher.forgive(nsqd.address)
            self.restarts += 1
        self._tell()
        self._share_soon()

    def _closed(self, link: Link) -> None:
        nsqd = self._links.pop(link, None)
        if nsqd is not None:
            nsqd.links -= 1
            self._holdings.drop(link)
            self._share_soon()

    def _failed(self, nsqd: _Nsqd, why: str, *, is_lost: bool) -> None:
        nsqd.is_lost |= is_lost
        if nsqd.trouble != why:
            log.warning("nsqd %s %s; trying again", nsqd.address, why)
        nsqd.trouble = why
        self._tell()

    def _tell(self) -> None:
        """Says why nothing can come, where nothing can."""
        trouble = ""
        if self._topics and not self._links and self._has_looked:
            if not self._nsqds:
                trouble = self._lookup.problem()
            elif all(nsqd.trouble for nsqd in self._nsqds.values()):
                told = "; ".join(f"nsqd {nsqd.address} {nsqd.trouble}" for nsqd in self._nsqds.values())
                trouble = f"No nsqd can be consumed from: {told}."
        self._holdings.tell(trouble)

    def _leave(self, link: Link) -> None:
        link.leave()
        task = self._start(self._see_off(link))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _see_off(self, link: Link) -> None:
        """Closes a connection on which no more comes, once its user has ended what is in flight there."""
        while link.flights and not link.is_lost():
            await asyncio.sleep(_LOOK_S)
        await link.bye()
        link.abort("")
        self._closed(link)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _received(self, link: Link, frames: list[bytes]) -> None:
        now = time.monotonic()
        deadline = now + min(self._visibility, link.identity.max_visibility_s)
        topic = link.topic
        flights = []
        for frame in frames:
            _, attempts, id = wire.MESSAGE_HEAD.unpack_from(frame)
            flight = Flight(link, topic, id, frame[26:], attempts, now, deadline)
            if not is_sealed(flight.body) or self._unseal(flight):
                flights.append(flight)
        if link.is_leaving or not self._holdings.add(topic, flights):
            link.outgoing += [wire.requeue(flight.id) for flight in flights]
        elif link.share.take_in(len(link.flights), now):
            self._holdings.is_starved = True
            self._share_soon()
        link.flush()
        if self._hoard_timer is None:
            self._hoard_timer = self._loop.call_later(HOARD_S, self._give_up_hoard)

    def _unseal(self, flight: Flight) -> bool:
        """Takes the body out of its envelope. False if this message is not to be seen yet, or not here: it is sent on
        its way."""
        try:
            letter = unseal(flight.body)
        except ValueError:
            # Somebody else's message, which only begins alike.
            return True
        left = letter.due - time.time()
        if letter.channel not in ("", self._channel):
            flight.source.outgoing.append(wire.finish(flight.id))
        elif left > 0.001:
            flight.source.outgoing.append(wire.requeue(flight.id, left))
        else:
            flight.body = letter.body
            flight.attempts = max(1, flight.attempts - letter.hops)
            return True
        return False

    def _give_up_hoard(self) -> None:
        self._hoard_timer = None
        hoard = self._holdings.give_up_hoard()
        if hoard:
            # First of all no more of them, or they would come back here.
            self._share()
            self._send([(flight, wire.requeue(flight.id)) for flight in hoard])
        if self._holdings.has_some():
            self._hoard_timer = self._loop.call_later(HOARD_S, self._give_up_hoard)

    async def _put_off(self, flights: list[Flight], delay: float) -> None:
        messages = [Message(flight.topic, flight.body, delay) for flight in flights]
        try:
            await self._loop.run_in_executor(self._aside, self._publisher.publish, messages, self._channel)
        except QueueUnavailable as error:
            log.warning("%d messages come again earlier than they should: %s", len(flights), error)
            self._send([(flight, wire.requeue(flight.id, delay)) for flight in flights])
        else:
            self._send([(flight, wire.finish(flight.id)) for flight in flights])

    def _send(self, commands: list[tuple[Flight, bytes]]) -> None:
        for flight, command in commands:
            flight.source.outgoing.append(command)
        self._flush()

    def _flush(self) -> None:
        for link in self._links:
            if link.outgoing:
                link.flush()

    def _poked(self) -> None:
        self._is_poked = False
        self._flush()
        if self.is_to_share():
            self._share_soon()

    # --- sharing out ------------------------------------------------------------------------------------------------

    def _share_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_at(self._shared_at + _TICK_S, self._share)

    def _share(self) -> None:
        """Tells nsqd how much may come on each connection."""
        for timer in (self._soon, self._again):
            if timer is not None:
                timer.cancel()
        self._soon = self._again = None
        self._shared_at = now = self._loop.time()
        holdings = self._holdings
        links = {link.share: link for link in self._links if not link.is_leaving}
        for share, link in links.items():
            share.in_flight = len(link.flights)
        capacity = holdings.max_in_flight - sum(len(link.flights) for link in self._links if link.is_leaving)
        self._shared_demand = demand = holdings.demand
        # Each has room for one, so that nothing new has to wait, and beside that there is what was asked for.
        total = min(capacity, holdings.held + demand + len(links)) if demand else 0
        plan = share_out(list(links), max(0, total), capacity, now)
        for share, rdy in plan.changes:
            links[share].outgoing.append(wire.ready(rdy))
            links[share].flush()
        self._is_short = plan.is_short
        holdings.is_starved = any(share.in_flight >= share.rdy for share in links)
        if plan.again_in is not None:
            self._again = self._loop.call_later(plan.again_in, self._share)
