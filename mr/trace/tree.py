"""The invocations of a request as a tree that stays small, however many there are.

Invocations are listed in order of their identifiers, in which everything below an invocation follows it directly. So
one pass builds the tree, and a wide fan-out is folded while it is read: counted, timed, its failing invocations and a
few samples kept, and everything else forgotten.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import msgspec

from mr.errors import InvocationNotFound, RequestNotFound
from mr.kv.base import Store
from mr.model import ids, keys
from mr.model.entities import Direction, Invocation, Record, Request, decode
from mr.model.keeping import as_kept
from mr.model.records import Seal
from mr.trace import data as datasets
from mr.trace.data import PREVIEW, Cut, Preview, ReadDataset, inline

FOLD = 8
"""More invocations than that of one parent are folded."""
SAMPLES = 3
FAILING = 20
"""How many failing invocations of a folded group are kept one by one."""
KEPT = 2000
"""Above so many kept invocations below one group it is folded, however narrow it is, unless told otherwise."""

KEYS = 50
"""For how many that failed the key of their argument is looked up."""

_PAGE = 200

R = TypeVar("R", bound=Record)


class Times(NamedTuple):
    """Seconds from start to end, of those that ended: median, 90th percentile and longest."""

    p50: float
    p90: float
    longest: float


@dataclass
class Node:
    """One invocation that is kept, with what is below it: its children, then its reduces, each a group."""

    record: Invocation
    seal: Seal | None = None
    groups: list[Group] = field(default_factory=list)
    data: dict[str, Preview] | None = None
    key: str | None = None
    """JSON text of the key that a child which failed was given."""
    size: int = 1
    """Kept invocations from here down."""
    room: int = KEPT

    @property
    def is_failing(self) -> bool:
        """Whether it, or something kept below it, has failed."""
        return self.record.state == "failed" or any(group.failing for group in self.groups)

    @property
    def children(self) -> Group | None:
        return next((group for group in self.groups if group.direction == "map"), None)

    @property
    def reduces(self) -> Group | None:
        return next((group for group in self.groups if group.direction == "reduce"), None)

    @property
    def seconds(self) -> float | None:
        """From the start of its last attempt to its end; None until then."""
        return seconds_of(self.record)


@dataclass
class Group:
    """The invocations of one parent that are of one step and direction.

    ``states`` counts all of them by state, those that nobody has begun as ``ready``, or ``not begun`` once the request
    has ended; what was under way then has ``stopped``. ``nodes`` are all that were begun
    or, of a folded group, those that fail (at most ``FAILING``) and a few samples; ``below`` then says what is directly
    below all of them, added up by step and direction, and so on downwards. ``failing`` counts those that failed or
    have a failure below them.
    """

    step_name: str
    direction: Direction
    total: int = 0
    states: Counter[str] = field(default_factory=Counter)
    failing: int = 0
    times: Times | None = None
    is_folded: bool = False
    nodes: list[Node] = field(default_factory=list)
    below: list[Group] = field(default_factory=list)
    room: int = KEPT
    """Above so many kept invocations below it the group is folded."""
    _seconds: array[float] = field(default_factory=lambda: array("d"), repr=False)
    _size: int = 0
    _kept: Counter[bool] = field(default_factory=Counter, repr=False)

    @property
    def failing_nodes(self) -> list[Node]:
        return [node for node in self.nodes if node.is_failing]

    def fold(self) -> None:
        if not self.is_folded:
            self.is_folded = True
            nodes, self.nodes, self._size = self.nodes, [], 0
            self._kept.clear()
            for node in nodes:
                self._keep(node)

    def add(self, node: Node) -> None:
        self.total += 1
        self.states[node.record.state] += 1
        self.failing += node.is_failing
        if node.seconds is not None:
            self._seconds.append(node.seconds)
        for group in node.groups:
            _merge(self.below, group)
            group.close()
        self._keep(node)
        if not self.is_folded and (len(self.nodes) > FOLD or self._size > self.room):
            self.fold()

    def _keep(self, node: Node) -> None:
        is_failing = node.is_failing
        if self.is_folded:
            kept = self._kept[is_failing]
            has_room = self._size + node.size <= self.room
            # One that fails is always shown, or nobody would find it.
            if kept >= (FAILING if is_failing else SAMPLES) or not (has_room or (is_failing and not kept)):
                return
        self._kept[is_failing] += 1
        self.nodes.append(node)
        self._size += node.size

    def expect(self, total: int) -> None:
        """There are so many; those that were not seen wait to be begun."""
        if total > self.total:
            self.states["ready"] += total - self.total
            self.total = total
        if self.total > FOLD:
            self.fold()

    def close(self) -> None:
        """No more will be added: what only adding needs is let go."""
        self.times = _times(self._seconds)
        self._seconds = array("d")
        self.nodes.sort(key=lambda node: _place(node.record.invocation_id))
        if self.is_folded:
            for group in self.below:
                group.close()
        else:
            self.below = []


@dataclass(frozen=True)
class Tree:
    """A request and its invocations, or those from ``below`` one of them. ``root`` is None where they are gone already.

    ``states`` counts all invocations, also those that nobody has begun; ``now`` is when this was read, in seconds since
    the epoch.
    """

    request: Request
    root: Node | None
    states: Counter[str]
    now: float
    below: str | None = None

    @property
    def total(self) -> int:
        return sum(self.states.values())


def load(
    store: Store,
    workflow: str,
    request_id: str,
    *,
    below: str | None = None,
    kept: int = KEPT,
    data: bool = False,
    cut: Cut = PREVIEW,
    read_dataset: ReadDataset = inline,
) -> Tree:
    """The tree of a request, as far as it has come, or that from the invocation ``below`` on.

    About ``kept`` invocations are kept one by one. With ``data`` every one of them gets its datasets, as much as
    ``cut`` says; those in files need ``read_dataset``.

    :raises RequestNotFound: there is no such request.
    :raises InvocationNotFound: nothing is there to begin below.
    """
    key = keys.request(workflow, request_id)
    [entry] = store.get([key])
    now = time.time()
    if entry is None:
        raise RequestNotFound("request", request_id, f"It is none of the workflow {workflow!r}, or was removed.")
    [request] = as_kept(store, [decode(Request, key, entry.value)])
    rows = _rows(store, workflow, request_id, below)
    if request.is_done:
        rows = ((as_it_ended(record), seal) for record, seal in rows)
    root = _build(rows, below or request.invocation_id, kept)
    states: Counter[str] = Counter()
    if root is not None:
        if request.is_done:
            _end(root.groups)
        states[root.record.state] += 1
        for group in root.groups:
            _add_states(states, group)
        _attach(store, root, _seal_of_parent(store, root.record), _Wanted(data, cut, read_dataset))
    elif below is not None:
        raise InvocationNotFound("invocation", below, "What nobody has begun, or what was removed, has no record.")
    return Tree(request, root, states, now, below)


def as_it_ended(record: Invocation) -> Invocation:
    """What was under way when its request ended has ``stopped``; the store keeps how far it had come."""
    if record.state in ("done", "failed"):
        return record
    return msgspec.structs.replace(record, state="stopped")


def _end(groups: list[Group]) -> None:
    """Those that nobody had begun when the request ended never will be."""
    for group in groups:
        if never := group.states.pop("ready", 0):
            group.states["not begun"] = never
        _end(group.below)
        for node in group.nodes:
            _end(node.groups)


def seconds_of(record: Invocation | Request) -> float | None:
    """How long it took; None while it has not ended or nobody knows when it began."""
    began = record.started_timestamp if isinstance(record, Invocation) else record.began_timestamp
    if began is None or record.ended_timestamp is None:
        return None
    # Two machines may have had a say in it, and their clocks differ.
    return max(0.0, record.ended_timestamp - began)


# --- building --------------------------------------------------------------------------------------------------


def _entries(store: Store, prefix: str, kind: type[R], below: str | None) -> Iterator[tuple[str, R]]:
    """The identifiers of invocations and what is stored of each: of all, or of that one and everything below it."""
    after = ""
    while page := store.list(f"{prefix}{below or ''}", after=after, limit=_PAGE):
        for entry in page:
            invocation_id = entry.key[len(prefix) :]
            # A dot comes before all that may follow in the identifier of another one that begins alike.
            if below is not None and invocation_id != below and not invocation_id.startswith(f"{below}."):
                return
            yield invocation_id, decode(kind, entry.key, entry.value)
        after = page[-1].key


def _rows(store: Store, workflow: str, request_id: str, below: str | None) -> Iterator[tuple[Invocation, Seal | None]]:
    """Every invocation with its seal: both are listed in the same order, so a page of each is held."""
    seals = _entries(store, keys.seal(workflow, request_id, ""), Seal, below)
    sealed = next(seals, None)
    for invocation_id, record in _entries(store, keys.invocation(workflow, request_id, ""), Invocation, below):
        while sealed is not None and sealed[0] < invocation_id:
            sealed = next(seals, None)
        yield record, sealed[1] if sealed is not None and sealed[0] == invocation_id else None


def _build(rows: Iterator[tuple[Invocation, Seal | None]], top: str, kept: int) -> Node | None:
    path: list[Node] = []
    root: Node | None = None
    for record, seal in rows:
        if record.error is None and (record.stdout or record.stderr):
            record = msgspec.structs.replace(record, stdout="", stderr="")
        while path and not record.invocation_id.startswith(path[-1].record.invocation_id + "."):
            _close(path)
        if path:
            if _belongs(record, path[-1]):
                path.append(Node(record, seal, room=kept))
        elif root is None and record.invocation_id == top:
            root = Node(record, seal, room=kept)
            path.append(root)
    while path:
        _close(path)
    return root


def _belongs(record: Invocation, parent: Node) -> bool:
    """Whether it is one that counts: children of attempts that lost, and orphans of a cleanup, do not."""
    if ids.parent_of(record.invocation_id) != parent.record.invocation_id:
        return False
    if parent.seal is None or ids.is_reduce(record.invocation_id):
        return True
    return (
        ids.nonce_of(record.invocation_id) == parent.seal.nonce
        and ids.slot_of(record.invocation_id) < parent.seal.children
    )


def _close(path: list[Node]) -> None:
    """Everything below the last node of the path was seen."""
    node = path.pop()
    if node.seal is not None and node.seal.children:
        _group(node, node.seal.step_name, "map").expect(node.seal.children)
    if node.record.direction == "map" and node.record.state in ("reducing", "done"):
        _group(node, node.record.step_name, "reduce").expect(node.record.partitions)
    node.groups.sort(key=lambda group: group.direction)
    node.size += sum(group._size for group in node.groups)
    if path:
        parent = path[-1]
        _group(parent, node.record.step_name, node.record.direction).add(node)
    else:
        for group in node.groups:
            group.close()


def _group(node: Node, step_name: str, direction: Direction) -> Group:
    for group in node.groups:
        if group.direction == direction and group.step_name == step_name:
            return group
    group = Group(step_name, direction, room=node.room)
    node.groups.append(group)
    return group


def _merge(into: list[Group], group: Group) -> None:
    """Adds up what is below the members of a group."""
    for one in into:
        if (one.direction, one.step_name) == (group.direction, group.step_name):
            break
    else:
        one = Group(group.step_name, group.direction, is_folded=True)
        into.append(one)
    one.total += group.total
    one.states.update(group.states)
    one.failing += group.failing
    one._seconds.extend(group._seconds)
    for inner in group.below:
        _merge(one.below, inner)


def _times(seconds: array[float]) -> Times | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return Times(ordered[round(0.5 * last)], ordered[round(0.9 * last)], ordered[last])


def _place(invocation_id: str) -> int:
    return ids.partition_of(invocation_id) if ids.is_reduce(invocation_id) else ids.slot_of(invocation_id)


def _add_states(states: Counter[str], group: Group) -> None:
    states.update(group.states)
    for inner in group.below if group.is_folded else [inner for node in group.nodes for inner in node.groups]:
        _add_states(states, inner)


# --- data ------------------------------------------------------------------------------------------------------


@dataclass
class _Wanted:
    data: bool
    cut: Cut
    read_dataset: ReadDataset
    keys: int = KEYS


def _seal_of_parent(store: Store, record: Invocation) -> Seal | None:
    if ids.is_root(record.invocation_id) or record.direction == "reduce":
        return None
    key = keys.seal(record.workflow_name, record.request_id, ids.parent_of(record.invocation_id))
    [entry] = store.get([key])
    return None if entry is None else decode(Seal, key, entry.value)


def _attach(store: Store, node: Node, seal_of_parent: Seal | None, wanted: _Wanted) -> None:
    record = node.record
    if record.state == "failed" and record.direction == "map" and seal_of_parent is not None and wanted.keys:
        wanted.keys -= 1
        pair = datasets.argument_of(store, record, seal_of_parent, wanted.read_dataset)
        node.key = None if pair is None else datasets.key_of(pair)
    if wanted.data:
        node.data = datasets.previews(store, record, seal_of_parent, wanted.read_dataset, wanted.cut)
    for group in node.groups:
        if wanted.data or group.failing:
            for child in group.nodes:
                _attach(store, child, node.seal, wanted)
