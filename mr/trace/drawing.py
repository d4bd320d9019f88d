"""A tree as a drawing in graphviz's language (https://graphviz.org/doc/info/lang.html).

Labels are its HTML-like ones (https://graphviz.org/doc/info/shapes.html#html). Whatever users named or said goes
through :func:`escaped` or :func:`quoted`.
"""

from __future__ import annotations

import html
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mr.kv.base import Store
from mr.model.entities import Invocation
from mr.model.places import place_of
from mr.trace import tree as trees
from mr.trace.page import UNBROKEN, one_line, plain
from mr.trace.text import counts, duration, number_of
from mr.trace.tree import Group, Node, Tree, seconds_of

KEPT = 120
"""So many invocations are about what one can look at."""

FAILING_LISTED = 12
FAILING_DRAWN = 4
MESSAGE_CHARACTERS = 240
LINE_CHARACTERS = 46

_BAR_WIDTH = 230

_FILLS = {"done": "#e6f4ea", "failed": "#fce8e6", "ready": "#ffffff", "not begun": "#ffffff", "stopped": "#f1f3f4"}
_STRONG = {"done": "#34a853", "failed": "#d93025", "ready": "#dadce0", "not begun": "#dadce0", "stopped": "#9aa0a6"}
_UNDER_WAY = ("#e8f0fe", "#4285f4")
_BORDERS = {"done": "#81c995", "failed": "#d93025"}
_BORDER = "#9aa0a6"
_INK, _FAINT, _RED = "#202124", "#5f6368", "#b31412"

_MAP = 'class="map", color="#1a73e8"'
_REDUCE = 'class="reduce", color="#188038", style=dashed'
_STORAGE = 'class="storage", color="#80868b", style=dotted, penwidth=1.6'
_BESIDE = f'class="beside", color="{_RED}", dir=none, penwidth=1.6'

_GAP = "\xa0" * 3

_LEGEND = (_GAP * 3).join(
    f'<FONT COLOR="{color}"><B>{sample}</B></FONT>{_GAP}{text}'
    for color, sample, text in (
        ("#1a73e8", "───▶", "map: a child for each pair"),
        ("#188038", "─ ─ ▶", "reduce: reduced pairs of the children"),
        ("#80868b", "· · · ▶", "storage: arguments, combined pairs, result"),
    )
)


def load(store: Store, workflow: str, request_id: str) -> Tree:
    """The tree of a request, folded so far that it can be looked at as a drawing.

    :raises RequestNotFound: there is no such request.
    """
    return trees.load(store, workflow, request_id, kept=KEPT)


def dot(tree: Tree) -> str:
    """The tree in graphviz's language.

    Solid blue edges map; dashed green ones bring reduced pairs to the reduce of the parent; dotted grey ones go through
    storage: a mapper's combined pairs to its own reduce, and the arguments and the result of the request. A wide
    fan-out is one box, and those of it that failed are listed beside it.
    """
    return "\n".join([*_Drawing(tree).lines(), ""])


def quoted(text: str) -> str:
    """A string of graphviz's language that shows exactly this text; line breaks are kept."""
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    # A backslash begins an escape such as \N, and an ampersand an entity.
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;").replace("\n", "\\n")
    return f'"{text}"'


def escaped(text: str) -> str:
    """Text for an HTML-like label that shows exactly this; what cannot be seen is shown as an escape."""
    # A backslash begins an escape such as \N here, too.
    return html.escape(plain(text)).replace("\\", "\\\\").replace("\n", _BREAK)


_BREAK = '<BR ALIGN="LEFT"/>'


def _small(text: str, color: str = _FAINT) -> str:
    return f'<FONT POINT-SIZE="10" COLOR="{color}">{text}</FONT>'


def _head(text: str) -> str:
    # All of it is bold: where a viewer's font is wider than the one that was measured, a change of it would overlap.
    return f"<B>{escaped(text)}</B>"


def _label(lines: list[str]) -> str:
    return f"<{''.join(line + _BREAK for line in lines)}>"


def _colors(state: str) -> tuple[str, str]:
    return _FILLS.get(state, _UNDER_WAY[0]), _BORDERS.get(state, _BORDER if state in _FILLS else _UNDER_WAY[1])


def _box(state: str, label: str, more: str = "") -> str:
    fill, border = _colors(state)
    width = 2 if state == "failed" else 1
    kind = state.replace(" ", "-")
    return f'class="{kind}", label={label}, fillcolor="{fill}", color="{border}", penwidth={width}{more}'


def _wrapped(text: str) -> list[str]:
    """In lines of a width that reads well; graphviz itself never breaks one."""
    return [_small(escaped(line), _RED) for line in textwrap.wrap(text, LINE_CHARACTERS)]


@dataclass(frozen=True)
class _Drawing:
    tree: Tree

    def lines(self) -> Iterator[str]:
        request = self.tree.request
        yield f"digraph {quoted(request.request_id)} {{"
        yield '  graph [rankdir=TB, bgcolor="white", pad=0.3, nodesep=0.22, ranksep=0.42, labelloc=b,'
        yield f'    fontname="Helvetica,Arial,sans-serif", fontsize=10, fontcolor="{_FAINT}",'
        yield f"    label=<<BR/>{_LEGEND}>, tooltip={quoted(request.request_id)}];"
        yield '  node [shape=box, style="rounded,filled", fontname="Helvetica,Arial,sans-serif", fontsize=12,'
        yield f'    fontcolor="{_INK}", margin="0.22,0.09"];'
        yield '  edge [arrowsize=0.7, fontname="Helvetica,Arial,sans-serif", fontsize=9, fontcolor="#5f6368"];'
        yield f"  request [shape=cylinder, style=filled, {_box(request.state, self._title())}];"
        root = self.tree.root
        if root is not None:
            yield from self._node(root)
            yield f"  request -> {quoted(root.record.invocation_id)} [{_STORAGE}];"
            if request.state == "done":
                label = _label(["<B>result</B>"])
                yield f"  result [shape=cylinder, style=filled, {_box(request.state, label)}];"
                for source in _outputs(root):
                    yield f"  {quoted(source)} -> result [{_STORAGE}];"
        yield "}"

    def _title(self) -> str:
        request, now = self.tree.request, self.tree.now
        lines = [f"<B>{escaped(f'{request.workflow_name}/{request.job_name}')}</B>"]
        if request.name:
            lines += [f"<I>{escaped(line)}</I>" for line in textwrap.wrap(one_line(request.name, 120), LINE_CHARACTERS)]
        lines.append(_small(escaped(request.request_id)))
        seconds = seconds_of(request)
        if seconds is not None:
            lines.append(_small(f"{request.state} in {duration(seconds)}"))
        elif not request.is_done:
            lines.append(_small(f"running for {duration(max(0.0, now - request.began_timestamp))}"))
        else:
            lines.append(_small(escaped(request.state)))
        total = self.tree.total
        lines.append(_small(f"{total:,} invocation{'' if total == 1 else 's'}"))
        if len(self.tree.states) > 1:
            lines.append(_small(_counted(self.tree.states)))
        return _label(lines)

    def _node(self, node: Node) -> Iterator[str]:
        name = node.record.invocation_id
        looks = _box(node.record.state, _label(self._lines_of(node)), f", tooltip={quoted(name)}")
        yield f"  {quoted(name)} [{looks}];"
        children, reduces = node.children, node.reduces
        for group in (children, reduces):
            if group is not None:
                yield from self._group(name, group)
        own = [] if reduces is None else _entries(name, reduces)
        if children is None:
            for reduce in own:
                yield f"  {quoted(name)} -> {quoted(reduce)} [{_STORAGE}];"
            return
        failing = {one.record.invocation_id for one in children.failing_nodes}
        for child in _entries(name, children):
            yield f"  {quoted(name)} -> {quoted(child)} [{_MAP}{', penwidth=2' if child in failing else ''}];"
        for source in _sources(name, children):
            for reduce in own:
                yield f"  {quoted(source)} -> {quoted(reduce)} [{_REDUCE}];"

    def _lines_of(self, node: Node) -> list[str]:
        record = node.record
        number = number_of(record)
        lines = [_head(f"{record.step_name} {record.direction}{'' if number is None else f' {number}'}")]
        if node.key is not None:
            lines.append(_small(escaped(node.key), _INK))
        lines.append(_small(", ".join(escaped(fact) for fact in self._facts(record))))
        if record.error is not None and record.state == "failed":
            lines += _wrapped(_told(record, MESSAGE_CHARACTERS))
            place = place_of(record.error.traceback)
            if place is not None:
                lines.append(_small(f"<B>{escaped(str(place))}</B>", _RED))
        return lines

    def _facts(self, record: Invocation) -> list[str]:
        seconds = seconds_of(record)
        state: str = "waiting for children" if record.state == "waiting" else record.state
        if seconds is not None:
            state = f"{state} in {duration(seconds)}"
        elif record.state == "running" and record.started_timestamp is not None:
            state = f"{state} for {duration(max(0.0, self.tree.now - record.started_timestamp))}"
        facts = [state]
        if record.attempt > 1:
            facts.append(f"attempt {record.attempt}")
        if record.lost:
            facts.append(f"{record.lost} worker{'' if record.lost == 1 else 's'} lost")
        return facts

    def _group(self, parent: str, group: Group) -> Iterator[str]:
        for node in _shown(group):
            yield from self._node(node)
        name = quoted(_folded_name(parent, group))
        if group.is_folded:
            yield f"  {name} [{_box(_state_of(group, self.tree), _folded_label(group), ', peripheries=2')}];"
            if group.failing > len(_shown(group)):
                beside = quoted(f"{_folded_name(parent, group)}/failing")
                yield f"  {beside} [{_box('failed', _failing_label(group))}];"
                yield f"  {{ rank=same; {name} -> {beside} [{_BESIDE}]; }}"
        elif group.total > len(group.nodes):
            state = "not begun" if self.tree.request.is_done else "ready"
            left = _label(
                [
                    _head(f"{group.step_name} {group.direction}"),
                    _small(f"{group.total - len(group.nodes):,} not begun"),
                ]
            )
            looks = _box(state, left, ', style="rounded,dashed"')
            yield f"  {name} [{looks}];"


# --- boxes of many -----------------------------------------------------------------------------------------------


def _folded_label(group: Group) -> str:
    rows = []
    for depth, one in _with_below(group, 0):
        indent = _small("\xa0" * 6 * depth) if depth else ""
        rows.append(_row(indent + _head(f"{one.step_name} {one.direction} x {one.total:,}")))
        if not depth:
            rows.append(f'<TR><TD ALIGN="LEFT">{_bar(one)}</TD></TR>')
        rows.append(_row(indent + _small(_counted(one.states))))
        if one.times is not None:
            p50, p90, longest = map(duration, one.times)
            rows.append(_row(indent + _small(f"p50 {p50}, p90 {p90}, max {longest}")))
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="2">{"".join(rows)}</TABLE>>'


def _with_below(group: Group, depth: int) -> Iterator[tuple[int, Group]]:
    yield depth, group
    for below in group.below:
        yield from _with_below(below, depth + 1)


def _row(*cells: str) -> str:
    return "".join(["<TR>", *(f'<TD ALIGN="LEFT">{cell}</TD>' for cell in cells), "</TR>"])


def _bar(group: Group) -> str:
    """How many are how far, as a bar. Few among many are seen, too."""
    cells = []
    for state, count in sorted(group.states.items(), key=lambda item: _BAR_ORDER.get(item[0], 2)):
        width = max(4, round(_BAR_WIDTH * count / max(1, group.total)))
        color = _STRONG.get(state, _UNDER_WAY[1])
        cells.append(f'<TD WIDTH="{width}" HEIGHT="8" FIXEDSIZE="TRUE" BGCOLOR="{color}"></TD>')
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{"".join(cells)}</TR></TABLE>'


_BAR_ORDER = {"failed": 0, "done": 1, "stopped": 3, "ready": 4, "not begun": 4}


def _failing_label(group: Group) -> str:
    listed = [node for node in group.failing_nodes if node not in _shown(group)][:FAILING_LISTED]
    rows = [_row(f'<FONT COLOR="{_RED}"><B>{group.failing:,} with failures</B></FONT>', "", "")]
    for node in listed:
        record = node.record
        number = number_of(record)
        place = None if record.error is None else place_of(record.error.traceback)
        told = _told(record, 2 * LINE_CHARACTERS)
        rows.append(
            _row(
                _small(escaped(f"{'' if number is None else number} {node.key or ''}".strip()), _INK),
                _small(escaped(told) + "\xa0" * (len(told) // 8), _RED),
                "" if place is None else _small(escaped(str(place)), _RED),
            )
        )
    left_out = group.failing - len(listed) - len(_shown(group))
    if left_out > 0:
        rows.append(_row(_small(f"and {left_out:,} more"), "", ""))
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="8" CELLPADDING="0">{"".join(rows)}</TABLE>>'


def _told(record: Invocation, limit: int) -> str:
    error = record.error
    if error is None:
        return f"{record.state}, with failures below"
    return one_line(f"{error.exception_type}: {error.exception_message}", limit)


def _state_of(group: Group, tree: Tree) -> str:
    if group.states["done"] == group.total:
        return "done"
    if tree.request.is_done and group.states["done"] + group.states["failed"] == group.total:
        return "done" if tree.request.state == "done" else "failed"
    return "stopped" if tree.request.is_done else "running"


def _counted(states: Counter[str]) -> str:
    return escaped(counts(states).plain.replace(UNBROKEN, " "))


# --- what is connected -------------------------------------------------------------------------------------------


def _shown(group: Group) -> list[Node]:
    """Drawn one by one: all, or of a folded group those that fail for what is below them."""
    if not group.is_folded:
        return group.nodes
    return [node for node in group.failing_nodes if node.children is not None][:FAILING_DRAWN]


def _folded_name(parent: str, group: Group) -> str:
    return f"{parent}/{group.direction}/{group.step_name}"


def _entries(parent: str, group: Group) -> list[str]:
    names = [node.record.invocation_id for node in _shown(group)]
    if group.is_folded or group.total > len(group.nodes):
        names.append(_folded_name(parent, group))
    return names


def _sources(parent: str, children: Group) -> list[str]:
    """Where the data of children comes from: their reduces, or the box that they are folded to."""
    names = [source for node in _shown(children) for source in _outputs(node)]
    if children.is_folded:
        names.append(_folded_name(parent, children))
    return names


def _outputs(node: Node) -> list[str]:
    """What holds its reduced data; nothing of one that failed."""
    if node.record.state == "failed":
        return []
    reduces = node.reduces
    return [] if reduces is None else _entries(node.record.invocation_id, reduces)
