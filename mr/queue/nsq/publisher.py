"""Publishing: blocking connections, a few to each nsqd, so that threads and greenlets alike can use them."""

from __future__ import annotations

import itertools
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from mr.errors import QueueUnavailable
from mr.queue.base import Message
from mr.queue.nsq import wire
from mr.queue.nsq.envelope import Letter, is_sealed, seal
from mr.queue.nsq.lookup import Lookup
from mr.queue.nsq.settings import Address, Settings
from mr.queue.nsq.wire import NsqError

_CONNECT_S = 2.0
_ANSWER_S = 3.0
# One that rested for longer may have been forgotten by something on the way.
_IDLE_S = 60.0
_CONNECTIONS = 8
# A refusal costs next to nothing, so one that refuses is soon asked again; waiting for nothing is what has to be rare.
_SHORTEST_AVOID_S = 0.25
_LONGEST_AVOID_S = 5.0
_LONGEST_DELAY_S = 3600.0
# So many messages at once are worth a round trip to every nsqd: what is spread is not lost at once.
_SPREAD_FROM = 128

log = logging.getLogger(__name__)


class _Unreachable(Exception):
    """There is no talking to this nsqd. The text says why, in words that go after its name."""


class _Connection:
    """One connection to one nsqd, used by one caller at a time.

    :raises wire.TROUBLE: there is no talking to it.
    """

    def __init__(self, address: Address, settings: Settings) -> None:
        self.used = time.monotonic()
        self._rest = b""
        self._frames: list[wire.Frame] = []
        self._socket = socket.create_connection(address, _CONNECT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._greet(address, settings)
            self._socket.settimeout(_ANSWER_S)
        except BaseException:
            self.close()
            raise

    def _greet(self, address: Address, settings: Settings) -> None:
        self._socket.sendall(wire.greeting(settings))
        identity = wire.read_identity(self._answer(), settings)
        if settings.tls is not None:
            self._socket = settings.tls.wrap_socket(self._socket, server_hostname=address.host)
            self._answer()
        if identity.wants_secret:
            self._socket.sendall(wire.auth(settings))
            self._answer()

    def send(self, commands: Sequence[bytes]) -> None:
        """Sends them all and waits until each is answered.

        :raises OSError, EOFError, NsqError: any part of them may have been carried out. The connection is of no use.
        """
        self._socket.sendall(b"".join(commands))
        for _ in commands:
            self._answer()
        self.used = time.monotonic()

    def _answer(self) -> bytes:
        while not self._frames:
            data = self._socket.recv(65536)
            if not data:
                raise EOFError
            self._frames, self._rest = wire.split(self._rest + data)
        kind, answer = self._frames.pop(0)
        if kind == wire.ERROR:
            raise wire.refusal(answer)
        return answer

    def close(self) -> None:
        self._socket.close()


class _Server:
    """An nsqd with its connections. One that failed is left alone for a while; a longer one each time, if it hangs."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self.address = address
        self.longest_delay = _LONGEST_DELAY_S
        self.trouble = ""
        self._settings = settings
        self._places = threading.BoundedSemaphore(_CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._is_closed = False
        self._failures = 0
        self._failed_at = 0.0
        self._avoid_s = 0.0
        self._avoid_until = 0.0
        self._looks_until = 0.0

    def is_avoided(self) -> bool:
        """Whether it failed so lately that it is not worth asking."""
        return bool(self.trouble) and time.monotonic() < self._avoid_until

    def forgive(self) -> None:
        """Somebody has seen that it is back."""
        with self._lock:
            self._avoid_s = self._avoid_until = 0.0

    def look_aside(self) -> None:
        """Finds out whether it is back, if it is time to; nobody waits for that."""
        with self._lock:
            now = time.monotonic()
            if self.is_avoided() or now < self._looks_until:
                return
            self._looks_until = now + _CONNECT_S
        threading.Thread(target=self._look, name="nsq-look", daemon=True).start()

    def _look(self) -> None:
        with suppress(_Unreachable):
            self.check()

    def publish(self, messages: Sequence[Message], channel: str) -> None:
        """
        :raises _Unreachable: any part of them may have been taken.
        :raises NsqError: so it may, and then nsqd refused one.
        """
        try:
            self._send(self._encode(messages, channel))
        except NsqError as error:
            limit = wire.delay_limit(error)
            if limit is None or limit >= self.longest_delay:
                raise
            log.info("nsqd %s defers for at most %g s: what is later is deferred again on arrival", self.address, limit)
            self.longest_delay = limit
            self._send(self._encode(messages, channel))

    def check(self) -> None:
        """
        :raises _Unreachable: it does not take a new connection.
        """
        with self._place():
            self._rest(self._connect())

    def close(self) -> None:
        self._is_closed = True
        self._drop_resting()

    def _encode(self, messages: Sequence[Message], channel: str) -> list[bytes]:
        now: dict[str, list[bytes]] = {}
        later = []
        for message in messages:
            body = self._body(message, channel)
            if message.delay > 0:
                delay = min(message.delay, self.longest_delay)
                later.append((-delay, wire.publish_later(message.topic, body, delay)))
            else:
                now.setdefault(message.topic, []).append(body)
        # The longest delay goes first: where it is refused, nothing else was taken.
        later.sort()
        commands = [command for _, command in later]
        for topic, bodies in now.items():
            commands += wire.publish(topic, bodies)
        return commands

    def _body(self, message: Message, channel: str) -> bytes:
        if channel or message.delay > self.longest_delay:
            hops = math.ceil(message.delay / self.longest_delay) - 1
            return seal(Letter(time.time() + message.delay, max(0, hops), channel, message.body))
        if is_sealed(message.body):
            return seal(Letter(0.0, 0, "", message.body))
        return message.body

    def _send(self, commands: Sequence[bytes]) -> None:
        with self._place():
            resting = self._resting()
            if resting is not None:
                try:
                    return self._use(resting, commands)
                except (OSError, EOFError) as error:
                    if isinstance(error, TimeoutError):
                        raise self._failed(error) from error
                    # What ended it while it rested, as a restart does, ended the others too.
                    self._drop_resting()
            fresh = self._connect()
            try:
                self._use(fresh, commands)
            except (OSError, EOFError) as error:
                raise self._failed(error) from error

    def _use(self, connection: _Connection, commands: Sequence[bytes]) -> None:
        try:
            connection.send(commands)
        except BaseException:
            connection.close()
            raise
        self._rest(connection)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Room for one more caller."""
        failures = self._failures
        if not self._places.acquire(timeout=_ANSWER_S):
            raise _Unreachable("does not answer")
        try:
            trouble = self.trouble
            if trouble and failures != self._failures:
                # While this one queued up, others have found out.
                raise _Unreachable(trouble)
            yield
        finally:
            self._places.release()

    def _connect(self) -> _Connection:
        try:
            connection = _Connection(self.address, self._settings)
        except wire.TROUBLE as error:
            raise self._failed(error) from error
        with self._lock:
            trouble, self.trouble, self._avoid_s = self.trouble, "", 0.0
        if trouble:
            log.info("nsqd %s takes messages again", self.address)
        return connection

    def _failed(self, error: Exception) -> _Unreachable:
        self._drop_resting()
        why = wire.reason(error)
        with self._lock:
            now = time.monotonic()
            # Not once for each of those who waited for the same answer.
            if not self.trouble or now > self._failed_at + self._avoid_s:
                longer = min(_LONGEST_AVOID_S, 2 * self._avoid_s) if isinstance(error, TimeoutError) else 0.0
                self._avoid_s = max(_SHORTEST_AVOID_S, longer)
                self._failed_at = now
            self._avoid_until = self._failed_at + self._avoid_s
            is_news, self.trouble = self.trouble != why, why
            self._failures += 1
        if is_news:
            log.warning("nsqd %s %s; no messages go to it for a while", self.address, why)
        return _Unreachable(why)

    def _resting(self) -> _Connection | None:
        """The connection that was used last, if that was not too long ago."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None and time.monotonic() - connection.used > _IDLE_S:
            connection.close()
            self._drop_resting()
            return None
        return connection

    def _rest(self, connection: _Connection) -> None:
        with self._lock:
            self._idle.append(connection)
        if self._is_closed:
            self._drop_resting()

    def _drop_resting(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Publisher:
    """Spreads messages over the nsqd that live. Safe to use from several threads, and from greenlets of one."""

    def __init__(self, settings: Settings, lookup: Lookup) -> None:
        self._settings = settings
        self._lookup = lookup
        self._turn = itertools.count()
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._servers: dict[Address, _Server] = {}

    def publish(self, messages: Sequence[Message], channel: str = "") -> None:
        """``channel``: they are for this one alone, and nobody else sees them.

        :raises QueueUnavailable: any part of them may have been taken.
        """
        servers = self._current()
        living = sum(not server.trouble for server in servers)
        parts = living if len(messages) >= _SPREAD_FROM and living > 1 else 1
        size = math.ceil(len(messages) / parts)
        for start in range(0, len(messages), size):
            self._deliver(messages[start : start + size], channel)

    def check(self) -> None:
        """
        :raises QueueUnavailable: no nsqd takes a new connection.
        """
        self._try_each(_Server.check)

    def forgive(self, address: Address) -> None:
        """This nsqd is back, whatever it was like the last time. May be called while others publish."""
        server = self._servers.get(address)
        if server is not None:
            server.forgive()

    def longest_delay(self) -> float:
        """What every nsqd takes, in seconds, as far as is known."""
        return min((server.longest_delay for server in list(self._servers.values())), default=_LONGEST_DELAY_S)

    def close(self) -> None:
        self._is_closed = True
        for server in list(self._servers.values()):
            server.close()

    def _deliver(self, messages: Sequence[Message], channel: str) -> None:
        self._try_each(lambda server: server.publish(messages, channel))

    def _try_each(self, act: Callable[[_Server], None]) -> None:
        """Acts on one nsqd, another one each time; on the next where that fails. Those that failed before come last."""
        problems = []
        servers = self._current()
        first = next(self._turn) % max(1, len(servers))
        servers = servers[first:] + servers[:first]
        living = [server for server in servers if not server.trouble]
        failed = [server for server in servers if server.trouble]
        if living:
            for server in failed:
                server.look_aside()
        for server in living + failed:
            if server.is_avoided():
                problems.append(f"nsqd {server.address} {server.trouble}")
                continue
            try:
                return act(server)
            except (_Unreachable, NsqError) as error:
                problems.append(f"nsqd {server.address} {error}")
        raise QueueUnavailable(f"No nsqd took it: {'; '.join(problems)}." if problems else self._lookup.problem())

    def _current(self) -> list[_Server]:
        """Every nsqd there is, whether it lives or not."""
        if self._is_closed:
            raise QueueUnavailable("This queue is closed.")
        if self._process != os.getpid():
            # A forked child's connections would be those of its parent.
            self._begin()
        addresses = [node.address for node in self._lookup.nodes()]
        with self._lock:
            if self._servers.keys() != set(addresses):
                for address in self._servers.keys() - set(addresses):
                    self._servers.pop(address).close()
                for address in addresses:
                    self._servers.setdefault(address, _Server(address, self._settings))
            return list(self._servers.values())
