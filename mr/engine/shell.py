"""Carries out the operations of flows against a real store, queue and filesystem.

``Shell`` is the blocking one, for threads and greenlets: front ends and commands. A worker's shell, which also runs
handlers, builds on the same ``Platform``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from mr.engine import ops
from mr.engine.grouping import Groups
from mr.errors import CorruptRecord, DeliveryFailed, OutcomeUnknown, QueueUnavailable, StoreUnavailable
from mr.fs.base import Files, Writer
from mr.kv.base import Entry, Outcome, Put, Store, Txn, Verdict
from mr.model import keys
from mr.model.deliveries import Delivery
from mr.model.entities import Handler, Record, decode, encode
from mr.model.records import Dataset, Manifest
from mr.queue.base import Message, Queue

T = TypeVar("T")

log = logging.getLogger(__name__)


def to_txn(change: ops.Change) -> Txn:
    puts = tuple(Put(write.key, encode(write.record), write.lease) for write in change.writes)
    return Txn(change.compares, puts, change.deletes, change.durable)


def to_message(wake: ops.Wake) -> Message:
    body = {"request": wake.request_id, "invocation": wake.invocation_id, "chunk": wake.chunk}
    return Message(topic(wake.workflow_name, wake.direction, wake.capability), json.dumps(body).encode(), wake.delay)


def topic(workflow: str, direction: str, capability: str) -> str:
    return f"mr.{workflow}.{direction}.{capability}"


class Body(msgspec.Struct, frozen=True):
    """What a message says."""

    request: str
    invocation: str
    chunk: int = 0


def to_read(key: str, kind: type[Record] | None, entry: Entry | None) -> ops.Read[Any]:
    if entry is None:
        return ops.Read(key, None)
    record = None if kind is None else decode(kind, key, entry.value)
    return ops.Read(key, record, entry.created, entry.modified, entry.version)


def settle(outcome: Outcome, doubtful: bool) -> ops.Committed:
    return ops.Committed(outcome.verdict is Verdict.COMMITTED, outcome.revision, outcome.versions, doubtful)


class Platform:
    """The store, the queue and the files, and what is the same however operations are carried out.

    ``deliver`` is what result writers and notifications hang on: it delivers, or raises DeliveryFailed.
    """

    _CACHED = 256

    def __init__(
        self,
        store: Store,
        queue: Queue,
        files: Files,
        deliver: Callable[[Delivery], None] | None = None,
    ) -> None:
        self.store, self.queue, self.files = store, queue, files
        self.deliver = deliver
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()
        self._handlers: OrderedDict[str, Handler] = OrderedDict()
        self._chunks: OrderedDict[str, ops.Read[Any]] = OrderedDict()
        self._writers: dict[str, Writer] = {}

    def perform(self, op: ops.Op) -> Any:
        """Carries out any operation but Commit and those of runners.

        :raises StoreUnavailable, FilesUnavailable: nothing was changed.
        """
        if isinstance(op, ops.Get):
            return self.get(op)
        if isinstance(op, ops.List):
            entries = self.store.list(op.prefix, after=op.after, limit=op.limit, keys_only=op.kind is None)
            return [to_read(entry.key, op.kind, entry) for entry in entries]
        if isinstance(op, ops.Publish):
            # Nothing is lost with a message: the sweep sends it again.
            with contextlib.suppress(QueueUnavailable):
                self.queue.publish([to_message(wake) for wake in op.wakes])
            return None
        if isinstance(op, ops.LoadManifest):
            return self.manifest(op.workflow_name, op.version)
        if isinstance(op, ops.Deliver):
            return self._try_to_deliver(op.delivery)
        return self._perform_on_files(op)

    def _try_to_deliver(self, delivery: Delivery) -> ops.Undelivered | None:
        if self.deliver is None:
            return ops.Undelivered("Nothing here delivers.")
        try:
            self.deliver(delivery)
        except DeliveryFailed as error:
            return ops.Undelivered(str(error), error.is_final, error.retry_after_s or 0.0, error.spares_place)
        except StoreUnavailable:
            raise
        except Exception as error:
            # What goes wrong with one is no reason to try it without a pause, or for ever.
            log.exception("the delivery %s went wrong", delivery.delivery_id)
            return ops.Undelivered(f"{type(error).__name__}: {error}", spares_place=True)
        return None

    def _perform_on_files(self, op: ops.Op) -> Any:
        if isinstance(op, ops.Spill):
            writer = self._writers.get(op.name)
            if writer is None:
                writer = self._writers[op.name] = self.files.create(op.name)
            writer.append(op.piece)
            return None
        if isinstance(op, ops.Settle):
            writer = self._writers.pop(op.name)
            try:
                writer.settle()
            finally:
                writer.discard()
            return None
        if isinstance(op, ops.ReadDataset):
            return self.read_dataset(op.dataset)
        if isinstance(op, ops.RemoveFiles):
            self.files.remove_tree(f"{op.workflow_name}/{op.request_id}")
            return None
        raise TypeError(f"not an operation of this shell: {op!r}")

    def discard(self, names: Iterable[str]) -> None:
        """Forgets files in the making; those that were settled are none of them any more."""
        for name in names:
            writer = self._writers.pop(name, None)
            if writer is not None:
                writer.discard()

    def read_dataset(self, dataset: Dataset) -> list[bytes] | None:
        if dataset.file is None:
            return [bytes(dataset.pairs)]
        lines = self.files.lines(dataset.file)
        return None if lines is None else list(lines)

    def get(self, op: ops.Get) -> list[ops.Read[Any]]:
        reads: list[ops.Read[Any]] | None = self.known(op)
        if reads is None:
            entries = self.store.get([key for key, _ in op.wants])
            reads = [to_read(key, kind, entry) for (key, kind), entry in zip(op.wants, entries, strict=True)]
            self.keep(op, reads)
        return reads

    def known(self, op: ops.Op) -> Any:
        """The answer to a question that was answered before and has no other; None where the store must be asked."""
        if isinstance(op, ops.Get):
            found = self._chunks.get(op.wants[0][0]) if len(op.wants) == 1 else None
            return None if found is None else [found]
        if isinstance(op, ops.LoadManifest):
            return self._manifests.get(keys.manifest(op.workflow_name, op.version))
        if isinstance(op, ops.ReadDataset) and op.dataset.file is None:
            return self.read_dataset(op.dataset)
        return None

    def keep(self, op: ops.Get, reads: list[ops.Read[Any]]) -> None:
        """Datasets never change once written, and a chunk is read by every one of its children."""
        [(key, _), *others] = op.wants
        if not others and key.startswith("chunk/") and reads[0].record is not None:
            self._chunks[key] = reads[0]
            if len(self._chunks) > self._CACHED:
                self._chunks.popitem(last=False)

    def manifest(self, workflow: str, version: str) -> Manifest:
        """A manifest by its name, from a cache where it was read before.

        :raises CorruptRecord: there is none of that name, though something refers to it.
        """
        key = keys.manifest(workflow, version)
        manifest = self._manifests.get(key)
        if manifest is None:
            [entry] = self.store.get([key])
            if entry is None:
                raise CorruptRecord(key, "the manifest that a request runs on is missing")
            manifest = self._manifests[key] = decode(Manifest, key, entry.value)
            if len(self._manifests) > self._CACHED:
                self._manifests.popitem(last=False)
        return manifest

    def known_handler(self, workflow: str, version: str) -> Handler | None:
        """A handler by its version, if it was read before."""
        return self._handlers.get(keys.source(workflow, version))

    def handler(self, workflow: str, version: str) -> Handler:
        """A handler by its version, from a cache where it was read before.

        :raises CorruptRecord: there is none, though a manifest names it.
        """
        key = keys.source(workflow, version)
        handler = self._handlers.get(key)
        if handler is None:
            [entry] = self.store.get([key])
            if entry is None:
                raise CorruptRecord(key, "a handler that a manifest names is missing")
            handler = self._handlers[key] = decode(Handler, key, entry.value)
            if len(self._handlers) > self._CACHED:
                self._handlers.popitem(last=False)
        return handler

    def close(self) -> None:
        """Lets go of everything. May be repeated."""
        self.queue.close()
        self.store.close()


class Shell:
    """Runs flows to their end, blocking. What concurrent ones write is written together.

    An unknown outcome is repeated for ``patience`` seconds before it is given up.
    """

    def __init__(self, platform: Platform, patience: float = 5.0) -> None:
        self.platform = platform
        self._patience = patience
        self._commits: Groups[Txn, Outcome] = Groups(platform.store.commit)
        self._messages: Groups[Sequence[ops.Wake], None] = Groups(self._publish)

    def run(self, flow: ops.Flow[T], request_id: str | None = None) -> T:
        """The flow's answer.

        :raises StoreUnavailable: the store refused; nothing was changed.
        :raises OutcomeUnknown: it never said; ``request_id`` is handed on.
        """
        spilled: set[str] = set()
        try:
            return self._run(flow, request_id, spilled)
        finally:
            self.platform.discard(spilled)

    def _run(self, flow: ops.Flow[T], request_id: str | None, spilled: set[str]) -> T:
        answer: Any = None
        problem: Exception | None = None
        while True:
            try:
                op = flow.send(answer) if problem is None else flow.throw(problem)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                problem = None
                if isinstance(op, ops.Spill):
                    spilled.add(op.name)
                if isinstance(op, ops.Commit):
                    answer = self._commit(op.change, request_id)
                elif isinstance(op, ops.Publish):
                    answer = self._messages.do(op.wakes)
                else:
                    answer = self.platform.perform(op)
            except Exception as error:
                problem = error

    def _publish(self, several: Sequence[Sequence[ops.Wake]]) -> Sequence[None]:
        self.platform.perform(ops.Publish(tuple(wake for wakes in several for wake in wakes)))
        return [None] * len(several)

    def _commit(self, change: ops.Change, request_id: str | None) -> ops.Committed:
        txn = to_txn(change)
        deadline = time.monotonic() + self._patience
        pause, doubtful = 0.01, False
        while True:
            try:
                outcome = self._commits.do(txn)
                if outcome.verdict is not Verdict.UNKNOWN:
                    return settle(outcome, doubtful)
                doubtful = True
            except StoreUnavailable:
                # This try changed nothing; an earlier one may have.
                if not doubtful:
                    raise
            if time.monotonic() > deadline:
                message = (
                    "The store did not say whether the change was made. Ask for the request before sending it again."
                )
                raise OutcomeUnknown(message, request_id)
            time.sleep(pause)
            pause = min(0.5, 2 * pause)
