"""The queue of several processes on one machine, in a SQLite file: no server, and nothing lost when a process dies.

A message is a row for each channel that has it. ``visible_at`` says when it may be taken: a delay, the visibility
timeout of a message in flight, and the order in which the rest are taken are all this one column. Taking a message
moves it into the future; finishing deletes the row.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import secrets
import sqlite3
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mr.errors import QueueUnavailable
from mr.findings import Finding
from mr.local.bell import Bell
from mr.local.clock import Clock, machine_clock
from mr.local.file import SqliteFile
from mr.queue.base import Backlog, Consumer, Delivery, Message, Queue
from mr.queue.limits import check_consumer, check_delay, check_messages, check_topics

# How often a consumer that nobody wakes looks by itself: for rings that died with whoever was about to ring, and for
# consumers whose process died.
_PATROL_S = 1.0

# A topic that has no channel yet keeps its messages in one of this name, which the first real channel takes over.
_NO_CHANNEL = ""

_SCHEMA = """
CREATE TABLE boot (id TEXT NOT NULL);
CREATE TABLE channels (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    name TEXT NOT NULL,
    UNIQUE (topic, name)
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    channel INTEGER NOT NULL,
    visible_at REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    consumer TEXT,
    body BLOB NOT NULL
);
CREATE INDEX messages_in_order ON messages (channel, visible_at);
"""


class SqliteQueue(Queue):
    """The queue in the file ``path``, which is made if it is missing. Messages survive the death of any process.

    Beside the file stand ``<path>.bell``, where consumers are woken, and ``<path>.consumers``, where each holds a lock
    that ends with its process.

    :raises QueueUnavailable: the file cannot be made or opened, or is not a queue.
    """

    local = True

    def __init__(self, path: str | os.PathLike[str], clock: Clock | None = None) -> None:
        self._clock = clock or machine_clock()
        self._file = SqliteFile(path, _SCHEMA, kind="queue", version=1, unavailable=QueueUnavailable)
        self._bell = Bell(f"{self._file.path}.bell")
        self._locks = Path(f"{self._file.path}.consumers")
        try:
            self._forget_other_boots()
        except BaseException:
            self.close()
            raise

    def publish(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        check_messages(messages, self.max_body_bytes)
        topics = dict.fromkeys(message.topic for message in messages)
        with self._file.write() as connection:
            now = self._clock.now()
            channels = {topic: _channels_of(connection, topic) for topic in topics}
            connection.executemany(
                "INSERT INTO messages (channel, visible_at, body) VALUES (?, ?, ?)",
                [
                    (channel, now + message.delay, message.body)
                    for message in messages
                    for channel in channels[message.topic]
                ],
            )
        # Delayed ones ring, too: whoever waits must learn when to look.
        self._ring(topics)

    def consumer(self, channel: str, *, max_in_flight: int, visibility: float = 60.0) -> SqliteConsumer:
        check_consumer(channel, max_in_flight, visibility)
        return SqliteConsumer(self, channel, max_in_flight, visibility)

    def examine(self) -> list[Finding]:
        return self._file.examine()

    def backlogs(self) -> list[Backlog]:
        with self._file.read() as connection:
            rows = connection.execute(
                "SELECT topic, name, count(messages.id) FROM channels LEFT JOIN messages ON channel = channels.id "
                "AND consumer IS NULL GROUP BY channels.id ORDER BY topic, name"
            ).fetchall()
        return [Backlog(topic, channel, waiting) for topic, channel, waiting in rows]

    def close(self) -> None:
        """Lets go of the file. Close consumers first: what is in flight of others comes back only after a moment."""
        self._bell.close()
        self._file.close()

    def _ring(self, topics: Iterable[str]) -> None:
        self._bell.ring(map(_rung, topics))

    def _forget_other_boots(self) -> None:
        """After a boot the clock began anew and nothing is in flight: everything may be taken, in the old order."""
        with self._file.read() as connection:
            if connection.execute("SELECT id FROM boot").fetchone() == (self._clock.boot,):
                return
        with self._file.write() as connection:
            if connection.execute("SELECT id FROM boot").fetchone() != (self._clock.boot,):
                connection.execute("UPDATE messages SET visible_at = ?, consumer = NULL", (self._clock.now(),))
                connection.execute("DELETE FROM boot")
                connection.execute("INSERT INTO boot VALUES (?)", (self._clock.boot,))


class _Flight:
    """A delivery that is neither finished nor given back: the handle that a consumer's user gets.

    The row's ID alone would not do, since SQLite gives the ID of a deleted row to a new one.
    """

    __slots__ = ("deadline", "row", "topic")

    def __init__(self, row: int, topic: str, deadline: float) -> None:
        self.row = row
        self.topic = topic
        self.deadline = deadline


class SqliteConsumer(Consumer):
    """See :class:`SqliteQueue`, which makes it."""

    def __init__(self, queue: SqliteQueue, channel: str, max_in_flight: int, visibility: float) -> None:
        self._queue = queue
        self._name = channel
        self._max_in_flight = max_in_flight
        self._visibility = visibility
        self._topics: dict[int, str] = {}
        self._look = ""
        # In the order of their deadlines: all get the same time, and a touch moves to the end.
        self._flights: dict[_Flight, None] = {}
        # When a message that was not yet visible at the last look will be; 0 where a look may find some at once.
        self._due = 0.0
        self._patrolled = float("-inf")
        self._closed = False
        with _translated():
            self._listener = queue._bell.listen([])
            try:
                self._id, self._lock = _lock_new(queue._locks)
            except BaseException:
                self._listener.close()
                raise
        _consumers.add(self)

    def subscribe(self, topics: Iterable[str]) -> None:
        """:raises QueueUnavailable: the file cannot be used; the subscription is as it was."""
        wanted = list(dict.fromkeys(topics))
        check_topics(wanted)
        self._check_open()
        with self._queue._file.read() as connection:
            found = {topic: _channel(connection, topic, self._name) for topic in wanted}
        missing = [topic for topic, channel in found.items() if channel is None]
        if missing:
            with self._queue._file.write() as connection:
                for topic in missing:
                    found[topic] = _make_channel(connection, topic, self._name)
        with _translated():
            self._listener.change([_rung(topic) for topic in wanted])
        self._topics = {channel: topic for topic, channel in found.items() if channel is not None}
        # Each channel's first entry in the index, however many messages it has.
        self._look = (
            "SELECT id, (SELECT min(visible_at) FROM messages WHERE channel = channels.id) FROM channels "
            f"WHERE id IN ({', '.join('?' * len(self._topics))})"
        )
        self._due = 0.0

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        self._check_open()
        give_up = time.monotonic() + timeout
        while True:
            # Forgets the rings so far *before* it looks: one that comes meanwhile is kept for the next time.
            self._listener.wait(0)
            self._patrol()
            taken = self._take(limit)
            left = give_up - time.monotonic()
            if taken or left <= 0 or limit < 1:
                return taken
            self._listener.wait(min(left, self.idle_for()))

    def fileno(self) -> int:
        return self._listener.fileno()

    def idle_for(self) -> float:
        due = self._due
        if len(self._flights) >= self._max_in_flight:
            due = next(iter(self._flights)).deadline
        return min(_PATROL_S, max(0.0, due - self._queue._clock.now()))

    def finish(self, deliveries: Sequence[Delivery]) -> None:
        """:raises QueueUnavailable: they are still in flight; may be repeated."""
        flights = self._alive(deliveries)
        if flights:
            with self._queue._file.write() as connection:
                connection.executemany(
                    "DELETE FROM messages WHERE id = ? AND consumer = ? AND visible_at = ?",
                    [(flight.row, self._id, flight.deadline) for flight in flights],
                )
            self._end(flights)

    def requeue(self, deliveries: Sequence[Delivery], delay: float = 0.0) -> None:
        """:raises QueueUnavailable: they are still in flight; may be repeated."""
        check_delay(delay)
        flights = self._alive(deliveries)
        if flights:
            self._give_back(flights, delay)
            self._end(flights)

    def touch(self, deliveries: Sequence[Delivery]) -> None:
        """:raises QueueUnavailable: their timeouts are as they were; may be repeated."""
        flights = self._alive(deliveries)
        if not flights:
            return
        with self._queue._file.write() as connection:
            deadline = self._queue._clock.now() + self._visibility
            connection.executemany(
                "UPDATE messages SET visible_at = ? WHERE id = ? AND consumer = ? AND visible_at = ?",
                [(deadline, flight.row, self._id, flight.deadline) for flight in flights],
            )
        self._end(flights)
        for flight in flights:
            flight.deadline = deadline
            self._flights[flight] = None

    def restarts(self) -> int:
        return 0

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _consumers.discard(self)
        # Where this fails, the lock stays to be found free, and another consumer gives the messages back.
        with suppress(QueueUnavailable, OSError):
            if self._flights:
                self._give_back(list(self._flights), 0.0)
            (self._queue._locks / self._id).unlink()
        self._flights.clear()
        self._listener.close()
        os.close(self._lock)

    def _check_open(self) -> None:
        if self._closed:
            raise QueueUnavailable("This consumer is closed.")

    def _take(self, limit: int) -> list[Delivery]:
        self._drop_late()
        room = min(limit, self._max_in_flight - len(self._flights))
        if room < 1:
            return []
        ready = self._ready()
        if not ready:
            return []
        with self._queue._file.write() as connection:
            now = self._queue._clock.now()
            deadline = now + self._visibility
            rows = _choose(connection, ready, now, room)
            connection.executemany(
                "UPDATE messages SET visible_at = ?, attempts = attempts + 1, consumer = ? WHERE id = ?",
                [(deadline, self._id, row) for row in rows],
            )
            taken = []
            flights = []
            for row in rows:
                channel, body, attempts = connection.execute(
                    "SELECT channel, body, attempts FROM messages WHERE id = ?", (row,)
                ).fetchone()
                flight = _Flight(row, self._topics[channel], deadline)
                flights.append(flight)
                taken.append(Delivery(flight.topic, body, attempts, flight))
        # Only now: a transaction that failed took nothing.
        self._flights.update(dict.fromkeys(flights))
        return taken

    def _ready(self) -> list[int]:
        """The channels that have something visible. A read, so that many who were woken for one message don't queue
        up for the write lock."""
        if not self._topics:
            self._due = float("inf")
            return []
        with self._queue._file.read() as connection:
            dues = connection.execute(self._look, list(self._topics)).fetchall()
        now = self._queue._clock.now()
        ready = [channel for channel, due in dues if due is not None and due <= now]
        # Behind what is ready may be more, or something that is due soon: only another look will tell.
        self._due = 0.0 if ready else min((due for _, due in dues if due is not None), default=float("inf"))
        return ready

    def _drop_late(self) -> None:
        """Forgets what timed out: it is no longer this consumer's."""
        now = self._queue._clock.now()
        while self._flights:
            first = next(iter(self._flights))
            if first.deadline > now:
                break
            del self._flights[first]

    def _alive(self, deliveries: Sequence[Delivery]) -> list[_Flight]:
        """Those of the deliveries that are still in flight."""
        self._drop_late()
        flights = dict.fromkeys(delivery.handle for delivery in deliveries)
        return [flight for flight in flights if isinstance(flight, _Flight) and flight in self._flights]

    def _end(self, flights: Iterable[_Flight]) -> None:
        for flight in flights:
            del self._flights[flight]

    def _give_back(self, flights: Sequence[_Flight], delay: float) -> None:
        with self._queue._file.write() as connection:
            visible_at = self._queue._clock.now() + delay
            connection.executemany(
                "UPDATE messages SET visible_at = ?, consumer = NULL WHERE id = ? AND consumer = ? AND visible_at = ?",
                [(visible_at, flight.row, self._id, flight.deadline) for flight in flights],
            )
        self._due = 0.0
        self._queue._ring({flight.topic for flight in flights})

    def _patrol(self) -> None:
        """Once in a while gives back what is in flight of consumers whose process died: their locks are free."""
        now = self._queue._clock.now()
        if now - self._patrolled < _PATROL_S:
            return
        self._patrolled = now
        with _translated():
            for name in os.listdir(self._queue._locks):
                if name != self._id:
                    self._bury_if_dead(name)

    def _bury_if_dead(self, name: str) -> None:
        path = self._queue._locks / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._give_back_of(name)
            # Last: if this process dies before, another one does it all again.
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)

    def _give_back_of(self, consumer: str) -> None:
        with self._queue._file.read() as connection:
            # By way of the index: of a long backlog only what is delayed or in flight is looked at.
            rows = connection.execute(
                "SELECT messages.id, topic FROM channels CROSS JOIN messages "
                "ON channel = channels.id AND visible_at > ? WHERE consumer = ?",
                (self._queue._clock.now(), consumer),
            ).fetchall()
        if not rows:
            return
        with self._queue._file.write() as connection:
            now = self._queue._clock.now()
            connection.executemany(
                # Not those that timed out since the look, and are another's now.
                "UPDATE messages SET visible_at = ?, consumer = NULL WHERE id = ? AND consumer = ?",
                [(now, row, consumer) for row, _ in rows],
            )
        self._due = 0.0
        self._queue._ring({topic for _, topic in rows})

    def _leave_to_parent(self) -> None:
        """In a forked child: a descriptor kept open here would hold the lock of a parent that died."""
        self._closed = True
        os.close(self._lock)


def _choose(connection: sqlite3.Connection, channels: Sequence[int], now: float, room: int) -> list[int]:
    """Up to ``room`` visible messages, one of each channel in turn: no backlog keeps another topic waiting."""
    sources = [
        [
            row
            for (row,) in connection.execute(
                "SELECT id FROM messages WHERE channel = ? AND visible_at <= ? ORDER BY visible_at, id LIMIT ?",
                (channel, now, room),
            )
        ]
        for channel in random.sample(channels, min(room, len(channels)))
    ]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*sources))
    return list(itertools.islice((row for row in in_turn if row is not None), room))


def _channel(connection: sqlite3.Connection, topic: str, name: str) -> int | None:
    row = connection.execute("SELECT id FROM channels WHERE topic = ? AND name = ?", (topic, name)).fetchone()
    return row[0] if row else None


def _make_channel(connection: sqlite3.Connection, topic: str, name: str) -> int | None:
    if _channel(connection, topic, name) is None:
        kept = _channel(connection, topic, _NO_CHANNEL)
        if kept is None:
            connection.execute("INSERT INTO channels (topic, name) VALUES (?, ?)", (topic, name))
        else:
            # With its ID the channel takes over the messages, too.
            connection.execute("UPDATE channels SET name = ? WHERE id = ?", (name, kept))
    return _channel(connection, topic, name)


def _channels_of(connection: sqlite3.Connection, topic: str) -> list[int]:
    """All channels that get a message of this topic."""
    rows = connection.execute("SELECT id FROM channels WHERE topic = ?", (topic,)).fetchall()
    if rows:
        return [channel for (channel,) in rows]
    _make_channel(connection, topic, _NO_CHANNEL)
    return _channels_of(connection, topic)


def _rung(topic: str) -> str:
    """The topic as the bell knows it: the slash, which no topic has, keeps it from being a part of another."""
    return f"{topic}/"


def _lock_new(directory: Path) -> tuple[str, int]:
    """Makes and locks a new consumer's file: its name, and the descriptor that holds the lock."""
    directory.mkdir(mode=0o700, exist_ok=True)
    while True:
        name = f"{os.getpid()}-{secrets.token_hex(6)}"
        descriptor = os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Between making and locking it, a patrol may have found the lock free and removed the file.
            if (directory / name).exists():
                return name, descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise QueueUnavailable(f"The queue's consumers cannot be kept: {error}.") from error


_consumers: weakref.WeakSet[SqliteConsumer] = weakref.WeakSet()


def _after_fork() -> None:
    for consumer in list(_consumers):
        consumer._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
