"""The invocations of a request as a tree that stays small, however many there are.

Invocations are listed in order of their identifiers, in which everything below an invocation follows it directly. So
one pass builds the tree, and a wide fan-out is folded while it is read: counted, timed, its failing invocations and a
few samples kept, and everything else forgotten.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from mr.errors import RequestNotFound
from mr.kv.base import Store
from mr.model import ids, keys
from mr.model.entities import Direction, Invocation, Record, Request, decode
from mr.model.records import Dataset, Done, Seal

FOLD = 8
"""More invocations than that of one parent are folded."""
SAMPLES = 3
FAILING = 20
"""How many failing invocations of a folded group are kept one by one."""
KEPT = 2000
"""Above so many kept invocations below one group it is folded, however narrow it is."""

PREVIEW_PAIRS = 10
PREVIEW_CHARACTERS = 400
PREVIEW_BYTES = 4 * 1024 * 1024
"""Datasets beyond that are not read for a preview."""

_PAGE = 200

ReadDataset = Callable[[Dataset], "list[bytes] | None"]
"""The pieces of a dataset, each JSON text of a list of pairs; None where its file is gone."""

R = TypeVar("R", bound=Record)


class Times(NamedTuple):
    """Seconds from start to end, of those that ended: median, 90th percentile and longest."""

    p50: float
    p90: float
    longest: float


@dataclass(frozen=True)
class Preview:
    """The beginning of a dataset. ``pairs`` are the first ones, JSON; ``bytes`` is the size of all ``count``."""

    count: int
    bytes: int
    pairs: list[Any]


@dataclass
class Node:
    """One invocation that is kept, with what is below it: its children, then its reduces, each a group."""

    record: Invocation
    seal: Seal | None = None
    groups: list[Group] = field(default_factory=list)
    data: dict[str, Preview] | None = None
    size: int = 1
    """Kept invocations from here down."""

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
        if not self.is_folded and (len(self.nodes) > FOLD or self._size > KEPT):
            self.fold()

    def _keep(self, node: Node) -> None:
        is_failing = node.is_failing
        if self.is_folded:
            kept = self._kept[is_failing]
            has_room = self._size + node.size <= KEPT
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
    """A request and its invocations. ``root`` is None where they are gone already.

    ``walk`` lists every invocation from the store, unfolded, each before those below it.
    """

    request: Request
    root: Node | None
    total: int
    """All invocations, also those that nobody has begun."""
    walk: Callable[[], Iterator[Invocation]] = field(repr=False)


def load(
    store: Store, workflow: str, request_id: str, *, data: bool = False, read_dataset: ReadDataset | None = None
) -> Tree:
    """The tree of a request, as far as it has come.

    With ``data`` every kept invocation gets previews of its datasets; those in files need ``read_dataset``.

    :raises RequestNotFound: there is no such request.
    """
    key = keys.request(workflow, request_id)
    [entry] = store.get([key])
    if entry is None:
        raise RequestNotFound("request", request_id, f"It is none of the workflow {workflow!r}, or was removed.")
    request = decode(Request, key, entry.value)
    rows = _rows(store, workflow, request_id)
    root = _build(((as_it_ended(record), seal) for record, seal in rows) if request.is_done else rows)
    if root is not None and request.is_done:
        _end(root.groups)
    if root is not None and data:
        _attach(store, root, None, read_dataset or _inline)

    def walk() -> Iterator[Invocation]:
        for _, record in _entries(store, keys.invocation(workflow, request_id, ""), Invocation):
            yield as_it_ended(record) if request.is_done else record

    total = 0 if root is None else 1 + sum(map(_count, root.groups))
    return Tree(request, root, total, walk)


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
    began = record.started_timestamp if isinstance(record, Invocation) else record.created_timestamp
    if began is None or record.ended_timestamp is None:
        return None
    # Two machines may have had a say in it, and their clocks differ.
    return max(0.0, record.ended_timestamp - began)


# --- building --------------------------------------------------------------------------------------------------


def _entries(store: Store, prefix: str, kind: type[R]) -> Iterator[tuple[str, R]]:
    after = ""
    while page := store.list(prefix, after=after, limit=_PAGE):
        for entry in page:
            yield entry.key[len(prefix) :], decode(kind, entry.key, entry.value)
        after = page[-1].key


def _rows(store: Store, workflow: str, request_id: str) -> Iterator[tuple[Invocation, Seal | None]]:
    """Every invocation with its seal: both are listed in the same order, so a page of each is held."""
    seals = _entries(store, keys.seal(workflow, request_id, ""), Seal)
    sealed = next(seals, None)
    for invocation_id, record in _entries(store, keys.invocation(workflow, request_id, ""), Invocation):
        while sealed is not None and sealed[0] < invocation_id:
            sealed = next(seals, None)
        yield record, sealed[1] if sealed is not None and sealed[0] == invocation_id else None


def _build(rows: Iterator[tuple[Invocation, Seal | None]]) -> Node | None:
    path: list[Node] = []
    root: Node | None = None
    for record, seal in rows:
        if record.error is None and (record.stdout or record.stderr):
            record = msgspec.structs.replace(record, stdout="", stderr="")
        while path and not record.invocation_id.startswith(path[-1].record.invocation_id + "."):
            _close(path)
        if path:
            if _belongs(record, path[-1]):
                path.append(Node(record, seal))
        elif root is None and ids.is_root(record.invocation_id):
            root = Node(record, seal)
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
    group = Group(step_name, direction)
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


def _count(group: Group) -> int:
    if group.is_folded:
        return group.total + sum(map(_count, group.below))
    return group.total + sum(_count(inner) for node in group.nodes for inner in node.groups)


# --- data ------------------------------------------------------------------------------------------------------


def _inline(dataset: Dataset) -> list[bytes] | None:
    return [bytes(dataset.pairs)] if dataset.file is None else None


def _attach(store: Store, node: Node, parent: Node | None, read_dataset: ReadDataset) -> None:
    record = node.record
    at = (record.workflow_name, record.request_id, record.invocation_id)
    if record.direction == "map":
        named = (keys.dataset(*at, "arguments"), keys.dataset(*at, "post_combine"), keys.done(*at))
    else:
        named = ("", "", keys.done(*at))
    found = {entry.key: entry for entry in store.get([key for key in named if key]) if entry is not None}
    node.data = {}
    if record.direction == "map" and parent is not None and parent.seal is not None:
        _attach_argument(store, node, parent.seal, read_dataset)
    for name, key in zip(("arguments", "post_combine"), named, strict=False):
        if key in found:
            node.data[name] = _preview(decode(Dataset, key, found[key].value), read_dataset)
    if named[2] in found:
        output = decode(Done, named[2], found[named[2]].value).output
        if output is not None:
            node.data["post_reduce"] = _preview(output, read_dataset)
    for group in node.groups:
        for child in group.nodes:
            _attach(store, child, node, read_dataset)


def _attach_argument(store: Store, node: Node, seal: Seal, read_dataset: ReadDataset) -> None:
    """A child's argument is one pair out of a chunk of its parent's."""
    record = node.record
    slot = ids.slot_of(record.invocation_id)
    number = bisect_right(seal.bounds, slot) - 1
    parent_id = ids.parent_of(record.invocation_id)
    key = keys.chunk(record.workflow_name, record.request_id, parent_id, seal.nonce, number)
    [entry] = store.get([key])
    if entry is None or node.data is None:
        return
    dataset = decode(Dataset, key, entry.value)
    pairs = _pairs(dataset, read_dataset, slot - seal.bounds[number] + 1)
    if len(pairs) > slot - seal.bounds[number]:
        pair = pairs[-1]
        node.data["arguments"] = Preview(1, len(bytes(pair)), [_shortened(pair)])


def _preview(dataset: Dataset, read_dataset: ReadDataset) -> Preview:
    pairs = _pairs(dataset, read_dataset, PREVIEW_PAIRS)
    return Preview(dataset.count, dataset.bytes, [_shortened(pair) for pair in pairs])


def _pairs(dataset: Dataset, read_dataset: ReadDataset, most: int) -> list[msgspec.Raw]:
    """The first pairs of a dataset; none where it is gone, or too large to be read for this."""
    if dataset.bytes > PREVIEW_BYTES:
        return []
    pairs: list[msgspec.Raw] = []
    for piece in read_dataset(dataset) or []:
        pairs += msgspec.json.decode(piece, type=list[msgspec.Raw])[: most - len(pairs)]
        if len(pairs) >= most:
            break
    return pairs


def _shortened(pair: msgspec.Raw) -> Any:
    """The pair itself or, where it is long, the beginning of its text."""
    text = bytes(pair).decode("utf-8", "replace")
    return msgspec.json.decode(pair) if len(text) <= PREVIEW_CHARACTERS else f"{text[: PREVIEW_CHARACTERS - 1]}…"


# --- as JSON ---------------------------------------------------------------------------------------------------


def as_json(tree: Tree) -> dict[str, Any]:
    """``{"request": {…}, "total": N, "root": node}``, for ``json.dumps``.

    A node has the fields of its invocation, ``seconds``, with data ``data`` (dataset name to ``count``, ``bytes`` and
    the first ``pairs``), and ``groups``; a group ``step_name``, ``direction``, ``total``, ``states``, ``failing``,
    ``times`` (``p50``, ``p90``, ``longest`` in seconds, or null), ``is_folded``, ``nodes`` and ``below`` (groups
    without nodes).
    """
    root = None if tree.root is None else _node_as_json(tree.root)
    return {"request": msgspec.to_builtins(tree.request), "total": tree.total, "root": root}


def _node_as_json(node: Node) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(node.record)
    shown["seconds"] = node.seconds
    if node.data is not None:
        shown["data"] = {name: asdict(preview) for name, preview in node.data.items()}
    shown["groups"] = [_group_as_json(group) for group in node.groups]
    return shown


def _group_as_json(group: Group) -> dict[str, Any]:
    return {
        "step_name": group.step_name,
        "direction": group.direction,
        "total": group.total,
        "states": dict(sorted(group.states.items())),
        "failing": group.failing,
        "times": None if group.times is None else group.times._asdict(),
        "is_folded": group.is_folded,
        "nodes": [_node_as_json(node) for node in group.nodes],
        "below": [_group_as_json(inner) for inner in group.below],
    }
