"""A tree as text: for a terminal, with colours, or plain, for files and pipes."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text
from rich.tree import Tree as RichTree

from mr.model import ids
from mr.model.entities import Failure, Invocation, Request
from mr.trace.tree import Group, Node, Tree, seconds_of

MESSAGE_CHARACTERS = 1000
TRACEBACK_LINES = 40

_PIPE_WIDTH = 10_000
"""Wide enough that nothing is wrapped where nobody looks at a screen."""

_STYLES = {"done": "green", "failed": "bold red", "running": "cyan", "waiting": "cyan", "reducing": "cyan"}


def render(tree: Tree, width: int | None = None, *, is_colored: bool = False) -> str:
    """The tree of a request, a line an invocation; more than eight of one parent are folded to one line.

    ``width`` is in columns (None: lines are not wrapped); ``is_colored`` adds the escapes of a terminal.
    """
    top = RichTree(_request_line(tree))
    told: set[str] = set()
    if tree.root is None:
        top.add(Text("its invocations are gone", style="dim"))
    else:
        _add_node(top, tree.root, tree.request, told)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width or _PIPE_WIDTH,
        force_terminal=is_colored,
        color_system="standard" if is_colored else None,
        legacy_windows=False,
        highlight=False,
        _environ={},
    )
    console.print(top)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def flat(tree: Tree) -> Iterator[str]:
    """Every invocation on a line of its own, indented under its parent, none folded; read from the store as it goes.

    Siblings come in the order of their identifiers' text.
    """
    for record in tree.walk():
        depth = record.invocation_id.count(".") - 1
        parts = [record.invocation_id, record.step_name, record.direction, record.state]
        parts += _facts(record)
        if record.error is not None:
            parts.append(f"{record.error.exception_type}: {one_line(record.error.exception_message, 200)}")
        yield f"{'  ' * depth}{'  '.join(parts)}"


def duration(seconds: float) -> str:
    """Seconds in few characters: ``12 ms``, ``1.23 s``, ``2 min 5 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def plain(text: str) -> str:
    """Without characters that a terminal would obey: what handlers say is theirs, not the platform's."""
    # No line separators of Unicode either: they would break lines where nobody counts them.
    return "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in text.expandtabs(4))


def one_line(text: str, limit: int) -> str:
    joined = " ".join(plain(text[: 2 * limit]).split("\n"))
    return joined if len(joined) <= limit and len(text) <= 2 * limit else f"{joined[: limit - 1]}…"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


# --- lines -----------------------------------------------------------------------------------------------------


def _request_line(tree: Tree) -> Text:
    request = tree.request
    line = Text.assemble(
        (f"{request.workflow_name}/{request.job_name} ", "bold"),
        f"{request.request_id}  ",
        (request.state, _STYLES.get(request.state, "yellow")),
    )
    seconds = seconds_of(request)
    if seconds is not None:
        line.append(f" in {duration(seconds)}")
    line.append(f", {tree.total:,} invocation{'' if tree.total == 1 else 's'}")
    if request.name:
        line.append(f"  {one_line(request.name, 80)}", style="dim")
    return line


def _add_node(branch: RichTree, node: Node, request: Request, told: set[str]) -> None:
    record = node.record
    line = Text.assemble((f"{record.step_name} ", "bold"), f"{record.direction} ", _number(record))
    state = record.state
    line.append(state, style=_STYLES.get(state, "yellow"))
    facts = _facts(record)
    if facts:
        line.append(f"  {', '.join(facts)}", style="dim")
    inner = branch.add(line)
    if record.error is not None and not _is_told_below(node):
        _add_failure(inner, record, record.error, told)
    for name, preview in (node.data or {}).items():
        inner.add(Text(f"{name}: {preview.count:,} pairs, {preview.bytes:,} bytes", style="dim"))
    for group in node.groups:
        _add_group(inner, group, request, told)


def _number(record: Invocation) -> str:
    """Which of its parent's it is, from 0; nothing for the root and for an only reduce."""
    if ids.is_reduce(record.invocation_id):
        partition = ids.partition_of(record.invocation_id)
        return f"{partition} " if partition else ""
    return "" if ids.is_root(record.invocation_id) else f"{ids.slot_of(record.invocation_id)} "


def _facts(record: Invocation) -> list[str]:
    facts = []
    seconds = seconds_of(record)
    if seconds is not None:
        facts.append(duration(seconds))
    if record.mapped_count:
        facts.append(f"{record.mapped_count:,} child{'' if record.mapped_count == 1 else 'ren'}")
    if record.attempt > 1:
        facts.append(f"attempt {record.attempt}")
    if record.lost:
        facts.append(f"{record.lost} worker{'' if record.lost == 1 else 's'} lost")
    if record.state == "running" and record.worker:
        facts.append(f"on {record.worker}")
    return facts


def _is_told_below(node: Node) -> bool:
    """A map fails with its reduce, and says the same."""
    reduces = node.reduces
    return reduces is not None and any(
        one.record.state == "failed" and one.record.error == node.record.error for one in reduces.nodes
    )


def _add_failure(branch: RichTree, record: Invocation, error: Failure, told: set[str]) -> None:
    what = "failed" if record.state == "failed" else f"attempt {error.attempt} failed"
    message = one_line(error.exception_message, MESSAGE_CHARACTERS)
    text = Text(f"{error.exception_type}: {message}" if message else error.exception_type, style="red")
    if record.state != "failed":
        text = Text.assemble((f"{what}: ", "yellow"), text)
    if error.handler_name:
        text.append(f"  (handler {error.handler_name})", style="dim")
    if error.traceback in told:
        text.append("  traceback as above", style="dim")
    elif error.traceback:
        told.add(error.traceback)
        text.append("\n")
        text.append(_traceback(error.traceback), style="dim")
    branch.add(text)


def _traceback(text: str) -> str:
    lines = plain(text).rstrip("\n").split("\n")
    # The last frames and the exception are what one looks for.
    left_out = len(lines) - TRACEBACK_LINES
    if left_out > 0:
        lines = [lines[0], f"… {left_out} lines left out …", *lines[-TRACEBACK_LINES + 1 :]]
    return "\n".join(lines)


def _add_group(branch: RichTree, group: Group, request: Request, told: set[str]) -> None:
    if not group.is_folded:
        for node in group.nodes:
            _add_node(branch, node, request, told)
        if group.total > len(group.nodes):
            waiting = f"{group.step_name} {group.direction}: {group.total - len(group.nodes):,} not begun"
            branch.add(Text(waiting, style="dim"))
        return
    inner = branch.add(folded_line(group))
    for node in group.failing_nodes:
        _add_node(inner, node, request, told)
    left_out = group.failing - len(group.failing_nodes)
    if left_out > 0:
        inner.add(Text(f"… and {left_out:,} more with failures", style="red"))
    _add_below(inner, group)


def _add_below(branch: RichTree, group: Group) -> None:
    for below in group.below:
        _add_below(branch.add(folded_line(below)), below)


def folded_line(group: Group) -> Text:
    """``region map x 1,000: 990 done, 10 failed  p50 12 ms, p90 20 ms, max 1.20 s``."""
    line = Text.assemble((f"{group.step_name} ", "bold"), f"{group.direction} x {group.total:,}: ")
    for index, (state, count) in enumerate(sorted(group.states.items())):
        line.append(f"{', ' if index else ''}{count:,} ")
        line.append(state, style=_STYLES.get(state, "yellow"))
    if group.times is not None:
        p50, p90, longest = map(duration, group.times)
        line.append(f"  p50 {p50}, p90 {p90}, max {longest}", style="dim")
    return line
