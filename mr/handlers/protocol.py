"""What a worker and its runners say to each other: msgpack frames over a socket pair.

A frame is a 4-byte big-endian length and that many bytes of one message of the unions below. Pairs travel as JSON
text, ``[[key, value], …]``, so that a worker can pass them on without reading them. The runner is not trusted:
whatever does not decode costs it its life.
"""

from __future__ import annotations

import msgspec

from mr.model.entities import Handler


class _Frame(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """Base of all frames."""


# --- worker to runner ------------------------------------------------------------------------------------------


class Task(_Frame, frozen=True, kw_only=True, tag=True, array_like=True):
    """Run one handler. Its input follows as ``Input`` frames; the last one says so.

    ``handler`` or ``combiner`` are None when the runner has their version already (see ``handler_version``).
    ``session`` is JSON text of an object: what a reducer reads, and what a mapper starts with. ``partitions`` > 1 makes
    a reducer see only the keys of its ``partition``. ``wall_s`` bounds this task in seconds; the limits of the pool
    hold beside it. The end of the task carries its ``task_id``.
    """

    task_id: int
    kind: str
    """``map`` or ``reduce``."""
    handler_name: str
    handler_version: str
    handler: Handler | None
    combiner_version: str = ""
    combiner: Handler | None = None
    workflow_name: str
    request_id: str
    invocation_id: str
    attempt: int = 1
    session: bytes = b"{}"
    partition: int = 0
    partitions: int = 1
    wall_s: float = 0.0


class Input(_Frame, frozen=True):
    """Some input pairs, each item JSON text of a list of pairs. A mapper's arguments, or what a reducer reduces."""

    items: list[bytes]
    last: bool


# --- runner to worker ------------------------------------------------------------------------------------------


class Direction(_Frame, frozen=True):
    """The mapper's first yield. ``step_name`` is where it maps to; empty: it returns."""

    step_name: str


class Children(_Frame, frozen=True):
    """Pairs that a mapping mapper yielded, each item JSON text of one ``[key, value]``."""

    pairs: list[bytes]


class Output(_Frame, frozen=True):
    """Reduced or combined pairs: JSON text of a list of pairs, a piece of the whole, in order."""

    pairs: bytes
    count: int


class Told(_Frame, frozen=True):
    """What a handler logged for others: ``channel`` is NOTIFY, EMAIL or HTTP."""

    channel: str
    level: str
    text: str
    handler_name: str = ""


class Finished(_Frame, frozen=True):
    """The handler came to its end. ``session`` is what it set, JSON text of an object."""

    session: bytes
    stdout: str
    stderr: str
    fatal: bool = False
    """The runner is of no use any more: the handler left something behind that cannot be undone."""
    task_id: int = 0


class Failed(_Frame, frozen=True):
    """The handler raised, or was ended. The worker makes this one itself when the runner cannot."""

    exception_type: str
    exception_message: str
    traceback: str
    stdout: str
    stderr: str
    fatal: bool = False
    """The runner is of no use any more."""
    task_id: int = 0
    handler_name: str = ""
    """The one that raised; empty where the worker says it, which only knows the task."""


Event = Direction | Children | Output | Told | Finished | Failed
