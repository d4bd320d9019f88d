"""The entities of the platform, as they are stored: frozen, typed, JSON.

Fields without a default are always written, so that a person who reads the store sees them; the engine's own fields
come after them and are left out while they hold their default. Times are seconds since the epoch (UTC).
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from mr.errors import CorruptRecord

HandlerType = Literal["mapper", "combiner", "reducer"]
Direction = Literal["map", "reduce"]
RequestState = Literal["running", "done", "failed", "cancelled", "expiring"]
InvocationState = Literal["ready", "running", "waiting", "reducing", "done", "failed"]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all stored records."""


class Workflow(Record, frozen=True, kw_only=True):
    """Limits override the platform's (None: as the platform; 0: no limit). See mr.web.limits for what they count.

    ``writer`` and ``notify`` are as of :mod:`mr.model.deliveries`; ``outgoing_allow`` names hosts, ``host:port`` and
    networks that may be told although they are private, or without TLS.
    """

    workflow_name: str
    description: str
    max_open_requests: int | None = None
    max_invocations: int | None = None
    retention_s: int | None = None
    writer: str | None = None
    notify: list[str] = []
    outgoing_allow: list[str] = []


class Job(Record, frozen=True, kw_only=True):
    """What clients POST to. ``writer`` and ``retention_s`` override those of the workflow; ``notify`` adds to its."""

    job_name: str
    workflow_name: str
    description: str
    initial_step_name: str
    writer: str | None = None
    notify: list[str] = []
    retention_s: int | None = None


class Step(Record, frozen=True, kw_only=True):
    """Binds handlers and policies. ``combine_handler_name`` is empty where the default (group by key) serves.

    ``timeout_s`` bounds one attempt of a handler (0: the platform's limit); ``max_failed_children`` is a count or a
    percentage such as ``"10%"``.
    """

    step_name: str
    workflow_name: str
    description: str
    map_handler_name: str
    combine_handler_name: str
    reduce_handler_name: str
    timeout_s: float
    max_attempts: int
    partitions: int
    max_failed_children: int | str


class Parameter(Record, frozen=True, kw_only=True):
    """What a posted argument must look like. ``type`` is string, integer, number, boolean, list, object or any."""

    name: str
    type: str = "any"
    required: bool = True
    default: Any = None
    description: str = ""


class Argument(Record, frozen=True, kw_only=True):
    """What the body of a handler is given. ``type`` is ``list`` or ``iterator``."""

    name: str
    type: str = "list"


class Handler(Record, frozen=True, kw_only=True):
    """One body of source. ``version`` is a hash of everything that decides what runs; ``path`` is for tracebacks."""

    handler_name: str
    workflow_name: str
    description: str
    handler_type: HandlerType
    argument_spec: list[Argument]
    parameters: list[Parameter]
    required_capability: str
    source_type: str
    source_code: str
    version: str
    path: str = ""


class Failure(Record, frozen=True, kw_only=True):
    """Why an attempt failed. ``exception_type`` is the class's name or one of the platform's own."""

    exception_type: str
    exception_message: str
    traceback: str = ""
    attempt: int = 0
    handler_name: str = ""


class Request(Record, frozen=True, kw_only=True):
    """One accepted POST. ``manifest`` is the content hash of the steps and handlers that it runs on."""

    request_id: str
    workflow_name: str
    job_name: str
    invocation_id: str
    context: dict[str, Any]
    is_blocking: bool
    is_done: bool
    failed_invocation_id: str | None
    state: RequestState
    manifest: str
    created_timestamp: float
    ended_timestamp: float | None
    name: str = ""
    epoch: int = 0
    retention_s: int = 3600
    expires_timestamp: float | None = None
    redriven_timestamp: float | None = None
    """When it began to run again, if it did."""
    is_redriving: bool = False
    """It is being put back to where it can go on from: nothing of it runs yet."""
    is_kept: bool = False
    """Somebody said how long it is to be kept: what removes many at once leaves it."""
    writer: str = ""
    """What delivers its result (empty: it is only kept). Chosen when it was accepted, like ``notify``."""
    notify: list[str] = []
    """Who is told of its end."""

    @property
    def began_timestamp(self) -> float:
        """When it was accepted or, after a redrive, began to run again."""
        return self.redriven_timestamp or self.created_timestamp


class Invocation(Record, frozen=True, kw_only=True):
    """One map or one reduce of one step. ``mapped_count`` is the number of children (None until it is known)."""

    invocation_id: str
    request_id: str
    workflow_name: str
    parent_invocation_id: str | None
    step_name: str
    direction: Direction
    state: InvocationState
    attempt: int
    mapped_count: int | None
    error: Failure | None
    worker: str | None
    created_timestamp: float
    started_timestamp: float | None
    ended_timestamp: float | None

    failures: int = 0
    lost: int = 0
    retry_timestamp: float = 0.0
    epoch: int = 0
    need: int = 0
    partitions: int = 0
    nonce: str = ""
    stdout: str = ""
    stderr: str = ""


R = TypeVar("R", bound=Record)

_encoder = msgspec.json.Encoder()
_decoders: dict[type[Record], msgspec.json.Decoder[Any]] = {}


def encode(record: Record) -> bytes:
    return _encoder.encode(record)


def decode(kind: type[R], key: str, value: bytes) -> R:
    """The record of that kind in ``value``.

    :raises CorruptRecord: it is not JSON, or not of that shape.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        record: R = decoder.decode(value)
    except msgspec.DecodeError as error:
        raise CorruptRecord(key, str(error)) from error
    return record
