"""The engine's own records, beside the entities that people read."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from mr.model.entities import Job, Record, Request, Step, encode


class Mark(Record, frozen=True, kw_only=True):
    """A key whose being there, or whose version, is all that it says."""


class Owner(Record, frozen=True, kw_only=True):
    nonce: str
    worker: str


_NOT_INLINE = msgspec.Raw(b"")


class Dataset(Record, frozen=True, kw_only=True):
    """An ordered set of pairs: JSON text of a list inline, or the name of a spilled file.

    A spilled file holds lines, each JSON text of a list of pairs; the set is their concatenation.
    """

    count: int
    pairs: msgspec.Raw = _NOT_INLINE
    file: str | None = None
    bytes: int = 0


class Seal(Record, frozen=True, kw_only=True):
    """Makes the children of one mapper attempt the ones that count.

    ``bounds`` holds the first slot of every chunk, ``tolerated`` how many children may fail. Children are claimed only
    while it is ``open``. ``shielded``: this step, or one above, tolerates failures, so that a failed child is counted
    and does not end the request by itself. The child of slot n is counted in the shard n mod ``shards``; ``window``
    children are sent at once, as many of each shard. After a redrive ``needs`` has, by shard, how many children have to
    end again; the others were kept.
    """

    nonce: str
    step_name: str
    children: int
    bounds: list[int]
    epoch: int
    tolerated: int
    shielded: bool
    open: bool
    shards: int = 32
    window: int = 1000
    needs: tuple[int, ...] = ()

    def needed(self, shard: int) -> int:
        """How many children of that shard have to end, in its epoch."""
        return self.needs[shard] if self.needs else len(range(shard, self.children, self.shards))


class Done(Record, frozen=True, kw_only=True):
    """How an invocation ended. With ``partitions`` > 1 the output is that of its reduces, in order."""

    ok: bool
    nonce: str
    output: Dataset | None = None
    partitions: int = 1


class Load(Record, frozen=True, kw_only=True):
    """How many requests of a workflow run, and how many of their invocations have not ended.

    Of the latter those count whose parents have sealed them, whether they were sent yet or not, and the roots.
    """

    requests: int
    invocations: int


class Redrive(Record, frozen=True, kw_only=True):
    """A redrive that is being prepared."""

    begun_timestamp: float


class Session(Record, frozen=True, kw_only=True):
    values: msgspec.Raw


class FailedChild(Record, frozen=True, kw_only=True):
    """The newest of a shard's failed children, for the message of a parent that they bring down."""

    invocation_id: str
    exception_type: str
    exception_message: str


class Keep(Record, frozen=True, kw_only=True):
    """How long a request is to be kept, and what it is to be called (None: as before), said while it ran."""

    retention_s: int
    name: str | None = None

    def of(self, request: Request) -> Request:
        """How the request looks with that, while it runs."""
        name = request.name if self.name is None else self.name
        return msgspec.structs.replace(request, retention_s=self.retention_s, name=name, is_kept=True)


class Idempotency(Record, frozen=True, kw_only=True):
    request_id: str
    body_digest: str
    expires_timestamp: float


Scope = Literal["submit", "read", "admin"]


class Token(Record, frozen=True, kw_only=True):
    """An API token, without what only its holder knows. No ``workflow_names``: all workflows."""

    token_id: str
    description: str
    secret_sha256: str
    scopes: list[Scope]
    workflow_names: list[str]
    created_timestamp: float
    expires_timestamp: float | None


class Current(Record, frozen=True, kw_only=True):
    manifest: str


class Manifest(Record, frozen=True, kw_only=True):
    """All jobs, steps and handler versions of a workflow at one moment, named by content."""

    workflow_name: str
    jobs: dict[str, Job]
    steps: dict[str, Step]
    handlers: dict[str, str]
    """Handler name to version."""
    capabilities: dict[str, str]
    """Handler name to the capability that it requires."""

    def version(self) -> str:
        """The name by content: 128 bits of SHA-256 over the sorted content."""
        ordered = msgspec.structs.replace(
            self,
            jobs=dict(sorted(self.jobs.items())),
            steps=dict(sorted(self.steps.items())),
            handlers=dict(sorted(self.handlers.items())),
            capabilities=dict(sorted(self.capabilities.items())),
        )
        return hashlib.sha256(encode(ordered)).hexdigest()[:32]
