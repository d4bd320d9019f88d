"""A tree as text: for a terminal, with colours, or plain, for files and pipes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree as RichTree

from mr.model import ids
from mr.model.entities import Failure, Invocation, Request
from mr.model.places import place_of
from mr.trace.data import Preview
from mr.trace.page import UNBROKEN, Page
from mr.trace.page import one_line as one_line
from mr.trace.page import plain as plain
from mr.trace.tree import Group, Node, Tree, seconds_of

MESSAGE_CHARACTERS = 1000
TRACEBACK_LINES = 40

_STYLES = {"done": "green", "failed": "bold red", "running": "cyan", "waiting": "cyan", "reducing": "cyan"}

_ORDER = ["failed", "running", "waiting", "reducing", "ready", "done", "stopped", "not begun"]

Head = Callable[[Page], RenderableType]


def render(
    tree: Tree,
    width: int | None = None,
    *,
    is_colored: bool = False,
    encoding: str = "utf-8",
    head: Head | None = None,
) -> str:
    """The tree of a request, a line an invocation; more than eight of one parent are folded to one line.

    ``head`` makes what comes between the request and its tree. For the rest see Page.
    """
    page = Page(width, is_colored=is_colored, encoding=encoding)
    drawing = _Drawing(tree, page)
    title = request_line(tree.request, tree.now)
    title.append(f", {tree.total:,} invocation{'' if tree.total == 1 else 's'}")
    if len(tree.states) > 1:
        title.append(": ")
        title.append_text(counts(tree.states))
    if head is None:
        return page.write([drawing.of(title)])
    return page.write([title, head(page), drawing.of(Text("invocations", style="dim"))])


def duration(seconds: float) -> str:
    """Seconds in few characters: ``12 ms``, ``1.23 s``, ``2 min 5 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


# --- lines -----------------------------------------------------------------------------------------------------


def request_line(request: Request, now: float) -> Text:
    """``shop/revenue 1hq8y2nk3xw0c5t9e7 "weekly"  done in 2.00 s``."""
    line = Text.assemble((f"{request.workflow_name}/{request.job_name} ", "bold"), request.request_id)
    if request.name:
        line.append(f' "{one_line(request.name, 80)}"', style="italic")
    line.append("  ")
    line.append(request.state, style=_style(request.state))
    seconds = seconds_of(request)
    if seconds is not None:
        line.append(f" in {_time(seconds)}")
    elif not request.is_done:
        line.append(f" for {_time(max(0.0, now - request.began_timestamp))}")
    return line


def counts(states: Counter[str]) -> Text:
    """``2 failed, 9,998 done``, what needs a look first."""
    line = Text()
    for state in sorted(states, key=lambda state: (_ORDER.index(state) if state in _ORDER else len(_ORDER), state)):
        line.append(f"{', ' if line else ''}{states[state]:,}{UNBROKEN}")
        line.append(state.replace(" ", UNBROKEN), style=_style(state))
    return line


def folded_line(group: Group) -> Text:
    """``region map x 1,000: 10 failed, 990 done  p50 12 ms, p90 20 ms, max 1.20 s``."""
    line = Text.assemble((f"{group.step_name} ", "bold"), f"{group.direction} x{UNBROKEN}{group.total:,}: ")
    line.append_text(counts(group.states))
    if group.times is not None:
        p50, p90, longest = map(_time, group.times)
        line.append(f"  p50{UNBROKEN}{p50}, p90{UNBROKEN}{p90}, max{UNBROKEN}{longest}", style="dim")
    return line


def traceback_text(text: str) -> Text:
    lines = plain(text).rstrip("\n").split("\n")
    # The last frames and the exception are what one looks for.
    left_out = len(lines) - TRACEBACK_LINES
    if left_out > 0:
        lines = [lines[0], f"… {left_out} lines left out …", *lines[-TRACEBACK_LINES + 1 :]]
    return Text("\n".join(lines), style="dim")


def error_text(error: Failure) -> Text:
    message = one_line(error.exception_message, MESSAGE_CHARACTERS)
    name = one_line(error.exception_type, MESSAGE_CHARACTERS)
    return Text(f"{name}: {message}" if message else name, style="red")


def _style(state: str) -> str:
    return _STYLES.get(state, "yellow")


def _time(seconds: float) -> str:
    return duration(seconds).replace(" ", UNBROKEN)


def number_of(record: Invocation) -> int | None:
    """Which of its parent's it is, from 0; None for the root and for an only reduce."""
    if ids.is_reduce(record.invocation_id):
        return ids.partition_of(record.invocation_id) or None
    return None if ids.is_root(record.invocation_id) else ids.slot_of(record.invocation_id)


def _frames(traceback: str) -> str:
    """What two failures at the same place have in common: all but the messages."""
    return "\n".join(line for line in traceback.splitlines() if line.lstrip().startswith('File "'))


@dataclass
class _Drawing:
    """``told``: the frames of tracebacks that were shown."""

    tree: Tree
    page: Page
    told: set[str] = field(default_factory=set)

    def of(self, title: Text) -> RichTree:
        top = RichTree(title)
        if self.tree.root is None:
            top.add(Text("its invocations are gone", style="dim"))
        else:
            self._add_node(top, self.tree.root)
        return top

    def _add_node(self, branch: RichTree, node: Node) -> None:
        record = node.record
        number = number_of(record)
        line = Text.assemble((f"{record.step_name} ", "bold"), f"{record.direction} ")
        if number is not None:
            line.append(f"{number} ")
        if node.key is not None:
            line.append(f"{plain(node.key)} ", style="italic")
        line.append(record.state, style=_style(record.state))
        facts = self._facts(record)
        if facts:
            line.append(f"  {', '.join(facts)}", style="dim")
        inner = branch.add(line)
        if record.error is not None and not _is_told_below(node):
            self._add_failure(inner, record, record.error)
        for name, preview in (node.data or {}).items():
            self._add_data(inner, name, preview, record)
        for group in node.groups:
            self._add_group(inner, group)

    def _facts(self, record: Invocation) -> list[str]:
        facts = []
        seconds = seconds_of(record)
        if seconds is not None:
            facts.append(_time(seconds))
        elif record.state == "running" and record.started_timestamp is not None:
            facts.append(f"for {_time(max(0.0, self.tree.now - record.started_timestamp))}")
        if record.mapped_count:
            facts.append(f"{record.mapped_count:,} child{'' if record.mapped_count == 1 else 'ren'}")
        if record.attempt > 1:
            facts.append(f"attempt {record.attempt}")
        if record.lost:
            facts.append(f"{record.lost} worker{'' if record.lost == 1 else 's'} lost")
        if record.state in ("running", "failed") and record.worker:
            facts.append(f"on {record.worker}")
        if record.state == "ready" and record.retry_timestamp > self.tree.now:
            facts.append(f"again in {_time(record.retry_timestamp - self.tree.now)}")
        return facts

    def _add_failure(self, branch: RichTree, record: Invocation, error: Failure) -> None:
        text = error_text(error)
        if record.state != "failed":
            text = Text.assemble((f"attempt {error.attempt} failed: ", "yellow"), text)
        if error.handler_name:
            text.append(f"  (handler {error.handler_name})", style="dim")
        frames = _frames(error.traceback)
        if error.traceback and frames in self.told:
            place = place_of(error.traceback)
            text.append("  traceback as above" if place is None else f"  at {plain(str(place))}, as above", style="dim")
        elif error.traceback:
            self.told.add(frames)
            text.append("\n")
            text.append_text(traceback_text(error.traceback))
        branch.add(text)
        if record.state == "failed":
            # Whole, so that it can be copied, also where that is wider than the terminal.
            branch.add(self.page.whole(record.invocation_id, "dim"))

    def _add_group(self, branch: RichTree, group: Group) -> None:
        if not group.is_folded:
            for node in group.nodes:
                self._add_node(branch, node)
            if group.total > len(group.nodes):
                waiting = f"{group.step_name} {group.direction}: {group.total - len(group.nodes):,} not begun"
                branch.add(Text(waiting, style="dim"))
            return
        inner = branch.add(folded_line(group))
        for node in group.failing_nodes:
            self._add_node(inner, node)
        left_out = group.failing - len(group.failing_nodes)
        if left_out > 0:
            inner.add(Text(f"… and {left_out:,} more with failures", style="red"))
        samples = [node for node in group.nodes if not node.is_failing and node.data]
        if samples:
            sampled = inner.add(Text(f"{len(samples)} of those without", style="dim"))
            for node in samples:
                self._add_node(sampled, node)
        _add_below(inner, group)

    def _add_data(self, branch: RichTree, name: str, preview: Preview, record: Invocation) -> None:
        size = f"{preview.count:,} pair{'' if preview.count == 1 else 's'}, {preview.bytes:,} bytes"
        inner = branch.add(Text.assemble((name, "magenta"), (f"  {size}", "dim")))
        for place, pair in enumerate(preview.pairs):
            if (characters := preview.cut.get(place)) is None:
                inner.add(Text(plain(json.dumps(pair, ensure_ascii=False))))
            else:
                inner.add(Text.assemble(plain(pair), (f" cut: it has {characters:,} characters", "yellow")))
        left_out = preview.count - len(preview.pairs)
        if left_out > 0:
            inner.add(Text(f"… and {left_out:,} more pair{'' if left_out == 1 else 's'}", style="yellow"))
        if left_out > 0 or preview.cut:
            whole = f"jobx request tree {record.workflow_name} {record.invocation_id} --data --whole"
            inner.add(Text("for all of it: ", style="dim").append_text(self.page.whole(whole)))


def _is_told_below(node: Node) -> bool:
    """A map fails with its reduce, and says the same."""
    reduces = node.reduces
    return reduces is not None and any(
        one.record.state == "failed" and one.record.error == node.record.error for one in reduces.nodes
    )


def _add_below(branch: RichTree, group: Group) -> None:
    for below in group.below:
        _add_below(branch.add(folded_line(below)), below)
