"""What a running request waits for because no live worker can do it: found when somebody asks, and kept nowhere.

While every capability that the workflow's handlers require is offered, that takes one read. Otherwise the tree of the
request is looked into, as far as a few reads go: those children last of which a fan-out gets to last, which are stuck
if any are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

from mr.kv.base import Entry, Store
from mr.model import ids, keys, workers
from mr.model.entities import Direction, Invocation, Record, Request, decode
from mr.model.records import Manifest, Seal
from mr.model.workers import Registration

_PAGE = 40
_READS = 25
_NAMED = 3

R = TypeVar("R", bound=Record)


class Need(NamedTuple):
    """A capability that a handler requires, and the step that binds the handler."""

    capability: str
    step: str
    direction: Direction
    handler: str


class Lack(NamedTuple):
    """A need that no live worker meets, and since about when there has been work that waits for it."""

    capability: str
    step: str
    direction: Direction
    handler: str
    since: float


def needs(manifest: Manifest) -> list[Need]:
    """What the steps of a manifest take, in order. A combiner runs where its mapper does."""
    found = []
    for name, step in sorted(manifest.steps.items()):
        handlers: tuple[tuple[Direction, str], ...] = (
            ("map", step.map_handler_name),
            ("reduce", step.reduce_handler_name),
        )
        for direction, handler in handlers:
            found.append(Need(manifest.capabilities[handler], name, direction, handler))
    return found


def waited_for(
    store: Store, request: Request, manifest: Manifest, registered: Iterable[Registration] | None = None
) -> list[Lack]:
    """What the request, which runs on that manifest, waits for and no live worker offers.

    ``registered`` are the live workers of the workflow, where they are known already.
    """
    if request.state != "running":
        return []
    if registered is None:
        registered = workers.of_workflow(store, request.workflow_name)
    offered = workers.offered(registered)
    unmet = [need for need in needs(manifest) if need.capability not in offered]
    return _Look(store, request, manifest, unmet).run() if unmet else []


def sentence(workflow: str, lacks: list[Lack]) -> str:
    """What people are told of it; empty where nothing is lacking."""
    if not lacks:
        return ""
    told = [
        f"{one.capability!r} (the {'mapper' if one.direction == 'map' else 'reducer'} {one.handler!r} of the step "
        f"{one.step!r} requires it)"
        for one in lacks[:_NAMED]
    ]
    more = [f"and {len(lacks) - _NAMED} more"] if len(lacks) > _NAMED else []
    names = ",".join(dict.fromkeys(one.capability for one in lacks))
    return (
        f"No live worker of the workflow {workflow!r} has the capability {', '.join(told + more)}. Start one with "
        f"MR_SYSTEM_CAPABILITIES={names}, and the request goes on by itself."
    )


class _Page(NamedTuple):
    """Some invocations of one step to look at, and since when they may have been ready."""

    invocation_ids: list[str]
    step: str
    since: float


class _Look:
    def __init__(self, store: Store, request: Request, manifest: Manifest, unmet: list[Need]) -> None:
        self._store, self._request = store, request
        self._unmet = {(need.step, need.direction): need for need in unmet}
        self._found: list[Lack] = []
        self._reads = _READS
        root = request.invocation_id
        first = _Page([root], manifest.jobs[request.job_name].initial_step_name, request.created_timestamp)
        self._open: list[Iterator[_Page]] = [iter([first])]

    def run(self) -> list[Lack]:
        while self._open and self._unmet and self._reads > 0:
            page = next(self._open[-1], None)
            if page is None:
                self._open.pop()
            else:
                self._look(page)
        return sorted(self._found)

    def _get(self, names: list[str]) -> list[Entry | None]:
        self._reads -= 1
        return self._store.get(names)

    def _at(self, invocation_id: str) -> tuple[str, str, str]:
        return self._request.workflow_name, self._request.request_id, invocation_id

    def _look(self, page: _Page) -> None:
        names = [
            name
            for one in page.invocation_ids
            for name in (keys.invocation(*self._at(one)), keys.own(*self._at(one)), keys.done(*self._at(one)))
        ]
        entries = self._get(names)
        for position, invocation_id in enumerate(page.invocation_ids):
            entry, own, done = entries[3 * position : 3 * position + 3]
            record = _decoded(Invocation, entry)
            if done is not None:
                continue
            if record is not None and record.state == "waiting":
                self._descend(record)
            elif record is not None and record.state == "reducing":
                self._open.append(_reduces(record))
            elif own is None and (record is None or record.state in ("ready", "running")):
                self._note(invocation_id, page, record)

    def _descend(self, parent: Invocation) -> None:
        sealed = _decoded(Seal, self._get([keys.seal(*self._at(parent.invocation_id))])[0])
        if sealed is not None and sealed.open:
            self._open.append(_children(parent, sealed))

    def _note(self, invocation_id: str, page: _Page, record: Invocation | None) -> None:
        """Nobody runs it, and it could be run."""
        need = self._unmet.pop((page.step, "reduce" if ids.is_reduce(invocation_id) else "map"), None)
        if need is None:
            return
        since = page.since
        if record is not None:
            since = max(_began(record), record.retry_timestamp)
        self._found.append(Lack(*need, since))


def _children(parent: Invocation, sealed: Seal) -> Iterator[_Page]:
    for slots in _from_the_end(sealed.children):
        children = [ids.child_of(parent.invocation_id, sealed.nonce, slot) for slot in slots]
        yield _Page(children, sealed.step_name, _began(parent))


def _reduces(record: Invocation) -> Iterator[_Page]:
    for partitions in _from_the_end(record.partitions):
        reduces = [ids.reduce_of(record.invocation_id, partition) for partition in partitions]
        yield _Page(reduces, record.step_name, _began(record))


def _from_the_end(number: int) -> Iterator[range]:
    for end in range(number, 0, -_PAGE):
        yield range(max(0, end - _PAGE), end)


def _began(record: Invocation) -> float:
    return record.started_timestamp or record.created_timestamp


def _decoded(kind: type[R], entry: Entry | None) -> R | None:
    return None if entry is None else decode(kind, entry.key, entry.value)
