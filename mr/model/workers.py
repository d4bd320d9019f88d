"""Which workers there are: what each says of itself, under its lease, once for every workflow that it serves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mr.kv.base import Store
from mr.model import keys
from mr.model.entities import Record, decode


class Registration(Record, frozen=True, kw_only=True):
    """A live worker. Times are by its own clock; ``files`` tells one shared filesystem from another, empty: unknown."""

    worker_name: str
    host: str
    pid: int
    version: str
    capabilities: list[str]
    runners: int
    channel: str
    started_timestamp: float
    registered_timestamp: float
    files: str = ""


class Seen(NamedTuple):
    """A live worker, and the workflows that it serves."""

    registration: Registration
    workflows: tuple[str, ...]


def of_workflow(store: Store, workflow_name: str) -> list[Registration]:
    """The live workers of a workflow, in order of name."""
    return [registration for _, registration in _read(store, keys.workers(workflow_name))]


def everyone(store: Store, served: Sequence[str] = ()) -> list[Seen]:
    """All live workers, in order of name. With ``served``, nothing of other workflows is asked for."""
    found: dict[str, Registration] = {}
    workflows: dict[str, list[str]] = {}
    for prefix in map(keys.workers, sorted(served)) if served else [keys.WORKERS]:
        for key, registration in _read(store, prefix):
            name = registration.worker_name
            found[name] = registration
            workflows.setdefault(name, []).append(key.split("/")[1])
    return [Seen(found[name], tuple(workflows[name])) for name in sorted(found)]


def offered(registrations: Iterable[Registration]) -> frozenset[str]:
    """The capabilities that at least one of them has."""
    return frozenset(capability for registration in registrations for capability in registration.capabilities)


def _read(store: Store, prefix: str) -> Iterable[tuple[str, Registration]]:
    after = ""
    while page := store.list(prefix, after=after):
        for entry in page:
            yield entry.key, decode(Registration, entry.key, entry.value)
        after = page[-1].key
