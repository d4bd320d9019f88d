"""One connection of a consumer to one nsqd, which carries the messages of one topic."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from mr.queue.nsq import wire
from mr.queue.nsq.holdings import Source
from mr.queue.nsq.settings import Address, Settings
from mr.queue.nsq.shares import Share
from mr.queue.nsq.wire import Identity, NsqError

CONNECT_S = 3.0

# What nsqd answers when it does not have a message in flight (any more); it keeps the connection.
_LATE = (b"E_FIN_FAILED", b"E_REQ_FAILED", b"E_TOUCH_FAILED")


class Link(Source, asyncio.Protocol):
    """Open it, then hand it commands. ``received`` gets the message frames as they come, many at a time."""

    def __init__(self, address: Address, topic: str, received: Callable[[Link, list[bytes]], None]) -> None:
        super().__init__()
        self.address = address
        self.topic = topic
        self.identity = Identity(1, 1.0, False)
        self.is_leaving = False
        self.share = Share()
        self._received = received
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._answers: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._heard = time.monotonic()
        self._is_open = False
        self._why = "closed the connection"
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._bade: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- its life ---------------------------------------------------------------------------------------------------

    async def open(self, settings: Settings, channel: str, visibility: float) -> None:
        """
        :raises wire.TROUBLE: it cannot be used.
        """
        try:
            await asyncio.wait_for(self._open(settings, channel, visibility), CONNECT_S)
        except BaseException:
            self.abort("")
            raise
        self._is_open = True

    async def _open(self, settings: Settings, channel: str, visibility: float) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self.address.host, self.address.port)
        self._write(wire.greeting(settings, visibility=visibility))
        self.identity = wire.read_identity(await self._answer(), settings)
        if settings.tls is not None:
            assert self._transport is not None
            host = self.address.host
            self._transport = await loop.start_tls(self._transport, self, settings.tls, server_hostname=host)
            await self._answer()
        if self.identity.wants_secret:
            self._write(wire.auth(settings))
            await self._answer()
        self._write(wire.subscribe(self.topic, channel))
        await self._answer()

    async def _answer(self) -> bytes:
        answer = await self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def lost(self) -> str:
        """Waits until the connection is gone, and answers why."""
        # Whoever waits may be cancelled; the future may not.
        return await asyncio.shield(self._lost)

    def is_lost(self) -> bool:
        return self._lost.done()

    def leave(self) -> None:
        """Nothing more shall come; what is in flight can still be finished or given back."""
        self.is_leaving = True
        self.outgoing.append(wire.ready(0))
        self.flush()

    async def bye(self) -> None:
        """Waits until nsqd has done everything that it was told."""
        self.outgoing.append(wire.CLOSE)
        self.flush()
        either: list[asyncio.Future[Any]] = [self._bade, self._lost]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    def abort(self, why: str) -> None:
        """Ends the connection at once."""
        self._why = why
        if self._transport is not None:
            self._transport.abort()

    # --- what goes out ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Sends the commands that wait."""
        count = len(self.outgoing)
        if count:
            commands = b"".join(self.outgoing[:count])
            # In place, since other threads append to this very list.
            del self.outgoing[:count]
            self._write(commands)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # --- what comes in ----------------------------------------------------------------------------------------------

    def is_silent(self, now: float) -> bool:
        """Whether not even heartbeats come any more."""
        return now - self._heard > 2.5 * wire.HEARTBEAT_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        try:
            frames, self._rest = wire.split(self._rest + data if self._rest else data)
        except NsqError as error:
            self._answers.put_nowait(error)
            self.abort(str(error))
            return
        messages = [frame for kind, frame in frames if kind == wire.MESSAGE]
        if len(messages) < len(frames):
            for kind, frame in frames:
                if kind != wire.MESSAGE:
                    self._said(kind, frame)
        if messages:
            self._received(self, messages)

    def _said(self, kind: int, frame: bytes) -> None:
        if frame == wire.HEARTBEAT:
            self._write(wire.NOP)
        elif not self._is_open:
            self._answers.put_nowait(wire.refusal(frame) if kind == wire.ERROR else frame)
        elif frame == wire.CLOSED:
            if not self._bade.done():
                self._bade.set_result(None)
        elif kind == wire.ERROR and not frame.startswith(_LATE):
            # nsqd closes the connection now.
            self._why = str(wire.refusal(frame))

    def connection_lost(self, error: Exception | None) -> None:
        self._answers.put_nowait(error or EOFError())
        if not self._lost.done():
            self._lost.set_result(wire.reason(error) if error is not None else self._why)
