"""A tree as a drawing, made by graphviz (https://graphviz.org/doc/info/lang.html)."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Iterator
from typing import Literal

from mr.errors import DrawingFailed, GraphvizMissing
from mr.model.entities import Invocation, Request
from mr.trace.text import duration, folded_line, one_line
from mr.trace.tree import Group, Node, Tree, seconds_of

Format = Literal["svg", "png"]

TIMEOUT_S = 30.0
_MESSAGE_CHARACTERS = 200

_FILLS = {"done": "#e6f4ea", "failed": "#fce8e6", "ready": "#f1f3f4", "stopped": "#f1f3f4"}
_UNDER_WAY = "#e8f0fe"
_RED = "#c5221f"

_MAP = 'color="#1a73e8"'
_REDUCE = 'color="#188038", style=dashed'
_STORAGE = 'color="#80868b", style=dotted'


def dot(tree: Tree) -> str:
    """The tree in graphviz's language.

    Solid edges map, dashed ones bring reduced data to the reduce of the parent, dotted ones go through storage: a
    mapper's combined pairs to its own reduce, and the arguments and result of the request. A wide fan-out is one box.
    """
    return "\n".join([*_lines(tree), ""])


def render(dot_text: str, fmt: Format) -> bytes:
    """The drawing of it.

    :raises GraphvizMissing: the program ``dot`` is not there.
    :raises DrawingFailed: it could not draw that, or not in time.
    """
    try:
        done = subprocess.run(
            ["dot", f"-T{fmt}"],
            input=dot_text.encode("utf-8", "replace"),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise GraphvizMissing(
            "Drawings are made by graphviz, and there is no program 'dot' on the PATH. Install it; on Debian and "
            "Ubuntu: apt-get install graphviz"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DrawingFailed(
            f"Graphviz did not finish the drawing within {TIMEOUT_S:g} s. Look at the tree as text instead."
        ) from error
    except OSError as error:
        raise DrawingFailed(f"Graphviz's dot cannot be run: {error}. Install it again.") from error
    if done.returncode:
        said = one_line(done.stderr.decode("utf-8", "replace"), 500)
        raise DrawingFailed(f"Graphviz's dot ended with {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


def quoted(text: str) -> str:
    """A string of graphviz's language that shows exactly this text; line breaks are kept."""
    text = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    # A backslash begins an escape such as \N, and an ampersand an entity.
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;").replace("\n", "\\n")
    return f'"{text}"'


def _lines(tree: Tree) -> Iterator[str]:
    request = tree.request
    yield f"digraph {quoted(request.request_id)} {{"
    yield '  graph [rankdir=TB, fontname="Helvetica", fontsize=10, labelloc=b, label='
    yield f"    {quoted('solid: map    dashed: reduce    dotted: through storage')}];"
    yield '  node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=11, margin="0.12,0.06"];'
    yield '  edge [fontname="Helvetica", fontsize=9, arrowsize=0.7];'
    seconds = seconds_of(request)
    took = "" if seconds is None else f" in {duration(seconds)}"
    label = f"{request.workflow_name}/{request.job_name}\n{request.request_id}\n{request.state}{took}"
    yield f"  request [shape=cylinder, label={quoted(label)}, fillcolor={quoted(_fill(request.state))}];"
    if tree.root is not None:
        yield from _node(tree.root, request)
        yield f"  request -> {quoted(tree.root.record.invocation_id)} [{_STORAGE}];"
        if request.state == "done" and tree.root.reduces is not None:
            for source in _outputs(tree.root):
                yield f"  {quoted(source)} -> request [{_STORAGE}, constraint=false];"
    yield "}"


def _node(node: Node, request: Request) -> Iterator[str]:
    record = node.record
    name = record.invocation_id
    yield f"  {quoted(name)} [{_looks(record, request)}];"
    children, reduces = node.children, node.reduces
    for group in (children, reduces):
        if group is not None:
            yield from _group(name, group, request)
    own = [] if reduces is None else _names(name, reduces)
    if children is None:
        for reduce in own:
            yield f"  {quoted(name)} -> {quoted(reduce)} [{_STORAGE}];"
        return
    for child in _names(name, children):
        yield f"  {quoted(name)} -> {quoted(child)} [{_MAP}];"
    for source in _sources(name, children):
        for reduce in own:
            yield f"  {quoted(source)} -> {quoted(reduce)} [{_REDUCE}];"


def _group(parent: str, group: Group, request: Request) -> Iterator[str]:
    for node in _shown(group):
        yield from _node(node, request)
    if group.is_folded or group.total > len(group.nodes):
        lines = [folded_line(one).plain for one in (group, *_all_below(group))]
        under_way = "stopped" if request.is_done else "running"
        state = "failed" if group.states["failed"] else "done" if group.states["done"] == group.total else under_way
        if not group.is_folded:
            state = "ready"
            lines = [f"{group.step_name} {group.direction}", f"{group.total - len(group.nodes):,} not begun"]
        label = quoted("\n".join(line.replace("  ", "\n") for line in lines))
        border = f', color="{_RED}"' if state == "failed" else ""
        looks = f'shape=box3d, style=filled, label={label}, fillcolor="{_fill(state)}"{border}'
        yield f"  {quoted(_folded_name(parent, group))} [{looks}];"


def _all_below(group: Group) -> Iterator[Group]:
    for below in group.below:
        yield below
        yield from _all_below(below)


def _shown(group: Group) -> list[Node]:
    return group.failing_nodes if group.is_folded else group.nodes


def _folded_name(parent: str, group: Group) -> str:
    return f"{parent}/{group.direction}/{group.step_name}"


def _names(parent: str, group: Group) -> list[str]:
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
    return [] if reduces is None else _names(node.record.invocation_id, reduces)


def _looks(record: Invocation, request: Request) -> str:
    state = record.state
    seconds = seconds_of(record)
    lines = [f"{record.step_name} {record.direction}", state if seconds is None else f"{state} in {duration(seconds)}"]
    if record.attempt > 1:
        lines.append(f"attempt {record.attempt}")
    border = ""
    if record.state == "failed":
        border = f', color="{_RED}", penwidth=2'
        if record.error is not None:
            message = one_line(record.error.exception_message, _MESSAGE_CHARACTERS)
            lines.append(_wrapped(f"{record.error.exception_type}: {message}"))
    tooltip = quoted(record.invocation_id)
    return f'label={quoted(chr(10).join(lines))}, fillcolor="{_fill(state)}", tooltip={tooltip}{border}'


def _wrapped(text: str, width: int = 48) -> str:
    """In lines of at most that many characters; graphviz itself never breaks one."""
    return "\n".join(textwrap.wrap(text, width))


def _fill(state: str) -> str:
    return _FILLS.get(state, _UNDER_WAY)
