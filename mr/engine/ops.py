"""The operations that flows yield, and what they are answered with."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from mr.config import Config
from mr.handlers.protocol import Task
from mr.kv.base import Compare
from mr.model import ids
from mr.model.deliveries import Delivery
from mr.model.entities import Record
from mr.model.records import Dataset

R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Read(msgspec.Struct, Generic[R], frozen=True):
    """A record as it was read; where there is none, ``record`` is None and the numbers are 0."""

    key: str
    record: R | None
    created: int = 0
    modified: int = 0
    version: int = 0


class Write(NamedTuple):
    key: str
    record: Record
    lease: int = 0


class Change(NamedTuple):
    """A transaction in terms of records. ``name`` is that of its transition in the protocol's table."""

    name: str
    compares: tuple[Compare, ...]
    writes: tuple[Write, ...]
    deletes: tuple[str, ...] = ()
    durable: bool = False


class Committed(NamedTuple):
    """The definite end of a change. ``doubtful``: the outcome was unknown at least once, and a refusal may mean that
    an earlier try of the same change took effect. ``versions`` are the new versions, in the order of the writes."""

    ok: bool
    revision: int = 0
    versions: tuple[int, ...] = ()
    doubtful: bool = False


class Wake(NamedTuple):
    """A message that says: this invocation may have something to do. ``delay`` is in seconds."""

    workflow_name: str
    request_id: str
    invocation_id: str
    direction: str
    capability: str
    chunk: int = 0
    delay: float = 0.0


class HandBack(Exception):
    """Thrown into a flow by a worker that cannot run what it claimed: the invocation is given back, for others."""


# --- operations ---------------------------------------------------------------------------------------------------


class Get(NamedTuple):
    """Answered with a list of Read, all of one revision for up to 128 keys."""

    wants: tuple[tuple[str, type[Record]], ...]


class List(NamedTuple):
    """Answered with a list of Read in order of key. ``kind`` None reads keys only."""

    prefix: str
    kind: type[Record] | None
    after: str = ""
    limit: int = 500


class Commit(NamedTuple):
    """Answered with Committed, once the outcome is definite."""

    change: Change


class Publish(NamedTuple):
    """Answered with None. The messages may be lost."""

    wakes: tuple[Wake, ...]


class LoadManifest(NamedTuple):
    """Answered with the Manifest of that name."""

    workflow_name: str
    version: str


class Start(NamedTuple):
    """Hands a task with its input to a runner, once there is one free. Answered with None; ask NextEvent then.

    ``items``: JSON texts of lists of pairs.
    """

    task: Task
    handlers: tuple[str, ...]
    """Versions of the handlers that the task runs: the mapper's and the combiner's, or the reducer's."""
    items: list[bytes]


class NextEvent(NamedTuple):
    """Answered with the next event of the started task (see mr.handlers.protocol)."""


class Stop(NamedTuple):
    """Ends the started task: nobody wants its outcome any more. Answered with None."""


class Spill(NamedTuple):
    """Appends a piece (JSON text of a list of pairs) to a file of the attempt ``name``. Answered with None."""

    name: str
    piece: bytes


class Settle(NamedTuple):
    """Makes a spilled file durable and visible under ``name``. Answered with None."""

    name: str


class ReadDataset(NamedTuple):
    """Answered with the pieces of a dataset, a list of JSON texts; None where its file is gone."""

    dataset: Dataset


class RemoveFiles(NamedTuple):
    """Removes the spilled files of a request. Answered with None."""

    workflow_name: str
    request_id: str


class Deliver(NamedTuple):
    """Tries to deliver. Answered with None if that was done, and with Undelivered if not."""

    delivery: Delivery


class Undelivered(NamedTuple):
    """``is_final``: trying again is of no use. ``retry_after_s``: whoever refused it asks for so long a pause.
    ``spares_place``: nothing else for the same place needs to wait."""

    message: str
    is_final: bool = False
    retry_after_s: float = 0.0
    spares_place: bool = False


class Together(NamedTuple):
    """Runs flows side by side. Answered with None, once all have ended. For those whose ``Env`` says so."""

    flows: tuple[Flow[None], ...]


Op = (
    Get
    | List
    | Commit
    | Publish
    | LoadManifest
    | Start
    | NextEvent
    | Stop
    | Spill
    | Settle
    | ReadDataset
    | RemoveFiles
    | Deliver
    | Together
)

Flow = Generator[Op, Any, T]


@dataclass(frozen=True)
class Settings:
    """What the protocol leaves open. ``window``: how many children of one parent are sent at a time, at most."""

    shards: int = 32
    window: int = 1000
    chunk_items: int = 256
    chunk_bytes: int = 24 * 1024
    inline_bytes: int = 32 * 1024
    spill_bytes: int = 1024 * 1024
    session_bytes: int = 256 * 1024
    kept_output_chars: int = 48 * 1024
    page: int = 500
    max_lost: int = 20
    max_depth: int = 64
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    resend_idle_s: float = 1.5
    resend_first_s: float = 10.0
    resend_last_s: float = 300.0
    resend_vain_s: float = 3600.0
    """The longest pause where no live worker can run what is sent."""
    expire_s: float = 1.0
    """How long requests that are due are removed in one round of the sweep."""
    deliver_first_s: float = 2.0
    deliver_last_s: float = 3600.0
    delivery_s: float = 86400.0
    """How long a delivery is tried, from when it was owed."""
    dead_s: float = 30 * 86400.0
    """How long what could not be delivered is listed."""

    @classmethod
    def of(cls, config: Config) -> Settings:
        return cls(max_lost=config.max_lost, max_depth=config.max_depth, delivery_s=config.delivery_s)


@dataclass(frozen=True)
class Env:
    """Where flows get time, chance and identity from. ``jitter`` is uniform over [0, 1)."""

    settings: Settings
    clock: Callable[[], float]
    nonce: Callable[[], str]
    jitter: Callable[[], float]
    worker: str = ""
    lease: Callable[[], int] = lambda: 0
    """The worker's current lease."""
    capabilities: frozenset[str] = frozenset({"general"})
    runners: int = 1
    """How many invocations the worker runs at once."""
    at_hand: Callable[[str, tuple[str, ...]], float | None] = lambda workflow, handlers: None
    """How many invocations a worker has at hand for each of its runners, of those that take these versions of a mapper
    and a reducer, as far as it knows."""
    together: int = 1
    """How many flows run side by side, where a flow leads to others; 1: one after the other."""

    @classmethod
    def of(
        cls,
        config: Config,
        worker: str = "",
        lease: Callable[[], int] = lambda: 0,
        at_hand: Callable[[str, tuple[str, ...]], float | None] = lambda workflow, handlers: None,
    ) -> Env:
        """What flows run in outside of tests; ``lease`` gives the worker's current one."""
        capabilities = frozenset(config.system_capabilities)
        settings = Settings.of(config)
        return cls(
            settings, time.time, ids.new_nonce, random.random, worker, lease, capabilities, config.runners, at_hand
        )
