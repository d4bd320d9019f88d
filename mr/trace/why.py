"""Why a request failed: the way from its root to the invocation that did, and what that one said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from mr.kv.base import Store
from mr.model import ids, keys
from mr.model.entities import Direction, Failure, Handler, Invocation, InvocationState, Request, decode
from mr.model.places import Place, place_of
from mr.model.records import FailedChild, Manifest, Seal
from mr.trace.data import ReadDataset, argument_of, inline, key_of

TAIL_LINES = 20
TAIL_CHARACTERS = 4000

_PAGE = 200


@dataclass(frozen=True)
class Stop:
    """An invocation on the way. ``number`` is which child, or which partition, it is, from 0, of ``siblings``."""

    invocation_id: str
    step_name: str
    direction: Direction
    state: InvocationState
    attempt: int
    number: int | None = None
    siblings: int | None = None

    def __str__(self) -> str:
        """``region map 3 (one of 10,000)``."""
        number = "" if self.number is None else f" {self.number}"
        among = "" if self.siblings is None else f" (one of {self.siblings:,})"
        return f"{self.step_name} {self.direction}{number}{among}"


@dataclass(frozen=True)
class Why:
    """What is known of a failure.

    ``failure`` is None where nothing failed, or what did is gone. ``path`` leads from the root to the invocation that
    failed first: below a parent that had more failing children than it tolerates it is one of them, and ``told`` is
    what is said of the parent, or the same as ``failure``. ``key`` is the JSON text of the key that it was given, where
    that is known. ``stdout`` and ``stderr`` are the ends of what the handler printed. ``is_tolerated``: the request did
    not fail with it.
    """

    request: Request
    path: list[Stop] = field(default_factory=list)
    failure: Failure | None = None
    told: Failure | None = None
    place: Place | None = None
    key: str | None = None
    handler_name: str = ""
    attempt: int = 0
    attempts: int = 0
    """How many the step allows; 0 where that is not known."""
    worker: str = ""
    stdout: str = ""
    stderr: str = ""
    is_tolerated: bool = False
    commands: list[str] = field(default_factory=list)
    """What shows more of it."""

    @property
    def summary(self) -> str:
        """What the parent says that failed with more than this; empty where there is none."""
        if self.told is None or self.told == self.failure:
            return ""
        return f"{self.told.exception_type}: {self.told.exception_message}"

    @property
    def invocation_id(self) -> str | None:
        return self.path[-1].invocation_id if self.path else None


def look_of(request_id: str) -> str:
    """The command that tells why a request failed."""
    return f"jobx request why {request_id}"


def explain(store: Store, request: Request, read_dataset: ReadDataset = inline) -> Why:
    """Why it failed; of one that did not fail, a failure that it tolerated or is about to repeat, if there is one.

    Reads a few records, however large the request is. ``read_dataset`` finds the key also among many in a file.

    :raises StoreUnavailable: it cannot be told now.
    """
    first = request.failed_invocation_id or _tolerated(store, request)
    record = None if first is None else _invocation(store, request, first)
    if record is None or record.error is None:
        return Why(request, commands=_commands(request, None))
    told = record.error
    while (below := _below(store, request, record)) is not None:
        record = below
    return _why(store, request, record, told, read_dataset)


def _why(store: Store, request: Request, record: Invocation, told: Failure, read_dataset: ReadDataset) -> Why:
    failure = record.error
    manifest = _manifest(store, request)
    step = None if manifest is None else manifest.steps.get(record.step_name)
    path, key = _path(store, request, record, read_dataset)
    assert failure is not None
    return Why(
        request,
        path=path,
        failure=failure,
        told=told,
        place=_place(store, request, manifest, failure),
        key=key,
        handler_name=failure.handler_name,
        attempt=failure.attempt,
        attempts=0 if step is None else step.max_attempts,
        worker=record.worker or "",
        stdout=_tail(record.stdout),
        stderr=_tail(record.stderr),
        is_tolerated=request.state != "failed",
        commands=_commands(request, record),
    )


def _commands(request: Request, record: Invocation | None) -> list[str]:
    workflow, request_id = request.workflow_name, request.request_id
    commands = [f"jobx request tree {workflow} {request_id}"]
    if record is not None:
        commands.append(f"mr_kv_invocation_get {workflow} {record.invocation_id}")
    return [*commands, f"mr_draw_invocation_graph {workflow} {request_id} -o {request_id}.svg"]


# --- finding it --------------------------------------------------------------------------------------------------


def _invocation(store: Store, request: Request, invocation_id: str) -> Invocation | None:
    key = keys.invocation(request.workflow_name, request.request_id, invocation_id)
    [entry] = store.get([key])
    return None if entry is None else decode(Invocation, key, entry.value)


def _tolerated(store: Store, request: Request) -> str | None:
    of_all_parents = keys.failed(request.workflow_name, request.request_id, "", 0, 0).removesuffix("/0/0")
    for entry in store.list(of_all_parents, limit=1):
        return decode(FailedChild, entry.key, entry.value).invocation_id
    root = _invocation(store, request, request.invocation_id)
    return None if root is None or root.error is None else root.invocation_id


def _below(store: Store, request: Request, record: Invocation) -> Invocation | None:
    """The reduce, or one of the children, that a map invocation failed with; None where it failed itself."""
    if record.direction == "reduce" or record.error is None:
        return None
    for reduce in _reduces(store, request, record):
        if reduce.state == "failed" and reduce.error == record.error:
            return reduce
    # What fails by itself has a handler that did.
    if record.error.handler_name:
        return None
    at = (request.workflow_name, request.request_id, record.invocation_id, record.epoch)
    shards = store.list(keys.failed(*at, 0).removesuffix("0"), limit=_PAGE)
    for entry in sorted(shards, key=lambda entry: int(entry.key.rpartition("/")[2])):
        child = _invocation(store, request, decode(FailedChild, entry.key, entry.value).invocation_id)
        if child is not None and child.error is not None:
            return child
    return None


def _reduces(store: Store, request: Request, record: Invocation) -> Iterator[Invocation]:
    at = (request.workflow_name, request.request_id)
    for start in range(0, record.partitions, _PAGE):
        names = range(start, min(start + _PAGE, record.partitions))
        for entry in store.get([keys.invocation(*at, ids.reduce_of(record.invocation_id, j)) for j in names]):
            if entry is not None:
                yield decode(Invocation, entry.key, entry.value)


def _path(
    store: Store, request: Request, record: Invocation, read_dataset: ReadDataset
) -> tuple[list[Stop], str | None]:
    """The way to it, and the key that its map invocation was given."""
    workflow, request_id = request.workflow_name, request.request_id
    map_id = ids.map_of(record.invocation_id)
    above = ids.ancestors_of(map_id)[::-1]
    names = [*above, map_id]
    entries = store.get([keys.invocation(workflow, request_id, name) for name in names])
    found = store.get([keys.seal(workflow, request_id, name) for name in above])
    seals = {
        name: decode(Seal, entry.key, entry.value)
        for name, entry in zip(above, found, strict=True)
        if entry is not None
    }
    records = [decode(Invocation, entry.key, entry.value) for entry in entries if entry is not None]
    partitions = next((one.partitions for one in records if one.invocation_id == map_id), None)
    children = {name: seal.children for name, seal in seals.items()}
    if record.direction == "reduce":
        records.append(record)
    pair = None
    if record.direction == "map" and above and (seal := seals.get(above[-1])) is not None:
        pair = argument_of(store, record, seal, read_dataset)
    return [_stop(one, children, partitions) for one in records], None if pair is None else key_of(pair)


def _stop(record: Invocation, children: dict[str, int], partitions: int | None) -> Stop:
    name = record.invocation_id
    number = siblings = None
    if ids.is_reduce(name):
        if partitions is not None and partitions > 1:
            number, siblings = ids.partition_of(name), partitions
    elif not ids.is_root(name):
        number, siblings = ids.slot_of(name), children.get(ids.parent_of(name))
    return Stop(name, record.step_name, record.direction, record.state, record.attempt, number, siblings)


# --- what is known of it -----------------------------------------------------------------------------------------


def _manifest(store: Store, request: Request) -> Manifest | None:
    key = keys.manifest(request.workflow_name, request.manifest)
    [entry] = store.get([key])
    return None if entry is None else decode(Manifest, key, entry.value)


def _place(store: Store, request: Request, manifest: Manifest | None, failure: Failure) -> Place | None:
    """Where it failed; the source is asked where the traceback does not show the line."""
    place = place_of(failure.traceback)
    version = None if manifest is None else manifest.handlers.get(failure.handler_name)
    if place is None or place.source_line or version is None:
        return place
    key = keys.source(request.workflow_name, version)
    [entry] = store.get([key])
    if entry is None:
        return place
    handler = decode(Handler, key, entry.value)
    lines = handler.source_code.splitlines()
    if (handler.path or handler.handler_name) != place.path or not 0 < place.line <= len(lines):
        return place
    return place._replace(source_line=lines[place.line - 1].strip())


def _tail(text: str) -> str:
    """The last lines of what was printed."""
    lines = text.rstrip("\n").splitlines()
    tail = "\n".join(lines[-TAIL_LINES:])[-TAIL_CHARACTERS:]
    return f"…\n{tail}" if len(tail) < len(text.rstrip("\n")) else tail


def as_json(why: Why) -> dict[str, Any]:
    """All of it, for ``json.dumps``; records as they are stored."""
    shown = {name: value for name, value in vars(why).items() if name not in ("path", "place", "request")}
    shown["place"] = None if why.place is None else str(why.place)
    shown["source_line"] = None if why.place is None else why.place.source_line
    shown["path"] = [asdict(stop) for stop in why.path]
    found: dict[str, Any] = msgspec.to_builtins({"request": why.request, **shown})
    return found
