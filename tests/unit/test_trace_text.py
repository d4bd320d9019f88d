"""What people see of a tree: in a terminal, in a pipe, and drawn."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree
from pathlib import Path

import pytest
from trace_requests import WORKFLOW, Story, failed

from mr.errors import DrawingFailed, GraphvizMissing
from mr.kv.memory import MemoryStore
from mr.model import ids
from mr.trace import drawing, text, tree

SVG = "{http://www.w3.org/2000/svg}"

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="needs graphviz; on Debian and Ubuntu: apt-get install graphviz"
)


@pytest.fixture
def story() -> Story:
    return Story(MemoryStore())


def load(story: Story) -> tree.Tree:
    return tree.load(story.store, WORKFLOW, story.tell())


def shop(story: Story, children: int = 2) -> None:
    story.invocation(story.root, "regions", mapped_count=children, took=1.5)
    story.seal(story.root, "region", children)
    for slot in range(children):
        story.leaf(story.child(story.root, slot), "region", took=0.02)
    story.invocation(ids.reduce_of(story.root, 0), "regions")
    story.request(state="done")


def fail_child(story: Story, slot: int, message: str = "division by zero") -> None:
    child = story.child(story.root, slot)
    story.failure(child, "region", message)
    story.records.pop(f"entities/invocation/{WORKFLOW}/{story.id}/{ids.reduce_of(child, 0)}")
    story.request(state="failed", failed_invocation_id=child)


# --- text ------------------------------------------------------------------------------------------------------


def test_a_small_tree_has_a_line_for_each_invocation(story: Story) -> None:
    shop(story)
    assert text.render(load(story)).splitlines() == [
        f"shop/revenue {story.id}  done in 2.00 s, 6 invocations",
        "└── regions map done  1.50 s, 2 children",
        "    ├── region map 0 done  20 ms",
        "    │   └── region reduce done  20 ms",
        "    ├── region map 1 done  20 ms",
        "    │   └── region reduce done  20 ms",
        "    └── regions reduce done  10 ms",
    ]


def test_a_wide_fan_out_is_one_line(story: Story) -> None:
    shop(story, children=1200)
    lines = text.render(load(story)).splitlines()
    assert len(lines) == 5
    assert lines[2].strip("├─ ") == "region map x 1,200: 1,200 done  p50 20 ms, p90 20 ms, max 20 ms"
    assert "region reduce x 1,200: 1,200 done" in lines[3]


def test_a_failure_shows_the_handlers_own_line(story: Story) -> None:
    shop(story)
    fail_child(story, 1)
    shown = text.render(load(story))
    assert "region map 1 failed" in shown
    assert "ZeroDivisionError: division by zero  (handler orders)" in shown
    assert 'File "shop/orders.py", line 5, in mapper' in shown
    assert "yield region, amount / 0" in shown


def test_the_failing_one_of_many_is_named_under_their_line(story: Story) -> None:
    shop(story, children=40)
    fail_child(story, 17)
    shown = text.render(load(story))
    assert "region map x 40: 39 done, 1 failed" in shown
    assert "region map 17 failed" in shown
    assert "region map 16" not in shown


def test_the_same_traceback_is_shown_once(story: Story) -> None:
    shop(story, children=12)
    for slot in (3, 4, 5):
        fail_child(story, slot)
    shown = text.render(load(story))
    assert shown.count("shop/orders.py") == 1
    assert shown.count("traceback as above") == 2


def test_a_failed_reduce_tells_its_failure_once(story: Story) -> None:
    story.failure(story.root, "count", partitions=1)
    story.failure(ids.reduce_of(story.root, 0), "count")
    story.request(state="failed")
    lines = text.render(load(story)).splitlines()
    assert sum("ZeroDivisionError: no  (handler" in line for line in lines) == 1
    assert "count reduce failed" in lines[2]


def test_an_attempt_that_will_be_repeated_says_why(story: Story) -> None:
    story.invocation(story.root, "count", "ready", attempt=1, failures=1, error=failed("flaky"))
    assert "attempt 1 failed: ZeroDivisionError: flaky" in text.render(load(story))


def test_what_ran_when_its_request_ended_has_stopped(story: Story) -> None:
    story.invocation(story.root, "count", "running")
    assert "running" in text.render(load(story))
    assert "on host-1" in text.render(load(story))
    story.request(state="cancelled")
    assert "count map stopped" in text.render(load(story))


def test_what_a_handler_says_cannot_drive_the_terminal(story: Story) -> None:
    shop(story)
    fail_child(story, 0, "\x1b]0;title\x07 \x1b[2J [bold]x[/bold] \u202e\u2028 :smile:")
    for shown in (text.render(load(story)), "\n".join(text.flat(load(story)))):
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "\u202e" not in shown
        assert "\u2028" not in shown
        assert "[bold]x[/bold]" in shown
        assert ":smile:" in shown


def test_colours_are_for_terminals_only(story: Story) -> None:
    shop(story)
    assert "\x1b[" not in text.render(load(story))
    assert "\x1b[" in text.render(load(story), is_colored=True)


def test_a_narrow_terminal_wraps_and_a_pipe_does_not(story: Story) -> None:
    shop(story)
    fail_child(story, 0, "word " * 100)
    found = load(story)
    assert max(map(len, text.render(found, 60).splitlines())) <= 60
    assert any(len(line) > 400 for line in text.render(found).splitlines())


def test_the_flat_list_has_every_invocation(story: Story) -> None:
    shop(story, children=30)
    fail_child(story, 3)
    lines = list(text.flat(load(story)))
    assert len(lines) == 61
    assert lines[0].startswith(f"{story.root}  regions  map  done")
    assert all(line.startswith("  ") for line in lines[1:])
    [failing] = [line for line in lines if "failed" in line]
    assert failing.startswith(f"  {story.child(story.root, 3)}  region  map  failed")
    assert "ZeroDivisionError: division by zero" in failing
    below = [line for line in lines if line.startswith("    ")]
    assert len(below) == 29


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 ms"), (0.0123, "12 ms"), (0.9996, "1.00 s"), (59.99, "59.99 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


# --- drawings --------------------------------------------------------------------------------------------------


def texts(svg: bytes) -> str:
    root = xml.etree.ElementTree.fromstring(svg)
    return "\n".join(element.text or "" for element in root.iter(f"{SVG}text"))


@needs_dot
def test_the_drawing_is_an_image_of_every_invocation(story: Story) -> None:
    shop(story)
    source = drawing.dot(load(story))
    svg = drawing.render(source, "svg")
    boxes = [g for g in xml.etree.ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "node"]
    assert len(boxes) == 7
    assert drawing.render(source, "png").startswith(b"\x89PNG")


def edges(source: str, looks: str) -> int:
    return sum("->" in line and looks in line for line in source.splitlines())


def test_map_reduce_and_storage_edges_are_told_apart(story: Story) -> None:
    shop(story)
    source = drawing.dot(load(story))
    assert edges(source, "#1a73e8") == 2
    assert edges(source, "style=dashed") == 2
    # The request's arguments and result, and each child's combined pairs.
    assert edges(source, "style=dotted") == 4


def test_what_failed_brings_no_data(story: Story) -> None:
    shop(story)
    for child in (story.child(story.root, 0), ids.reduce_of(story.child(story.root, 0), 0)):
        story.failure(child, "region", partitions=1)
    assert edges(drawing.dot(load(story)), "style=dashed") == 1


@needs_dot
def test_a_wide_fan_out_is_one_box_and_what_failed_another(story: Story) -> None:
    shop(story, children=300)
    fail_child(story, 123)
    shown = texts(drawing.render(drawing.dot(load(story)), "svg"))
    assert "region map x 300: 299 done, 1 failed" in shown
    assert "ZeroDivisionError: division by zero" in shown
    assert len(drawing.dot(load(story)).splitlines()) < 25


@needs_dot
@pytest.mark.parametrize(
    "message",
    ['"quotes" and \\N \\G \\\\', "a&lt;b &amp; <b>c</b>", "]; evil [label=x", "x\x00y\x1bz", "\udc80", "é漢字" * 50],
)
def test_nothing_that_a_handler_says_escapes_its_label(story: Story, message: str) -> None:
    shop(story)
    fail_child(story, 0, message if message != "\udc80" else "surrogate")
    found = load(story)
    assert found.root is not None
    assert found.root.children is not None
    error = found.root.children.nodes[0].record.error
    assert error is not None
    svg = drawing.render(drawing.dot(found), "svg")
    shown = "".join(texts(svg).split())
    expected = "".join(text.one_line(error.exception_message, 200).split())
    assert expected.rstrip("…") in shown
    boxes = [g for g in xml.etree.ElementTree.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "node"]
    assert len(boxes) == 6


def test_without_graphviz_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GraphvizMissing, match="apt-get install graphviz"):
        drawing.render("digraph {}", "svg")
    assert GraphvizMissing.status == 501


@needs_dot
def test_what_graphviz_cannot_draw_is_an_error() -> None:
    with pytest.raises(DrawingFailed, match="syntax error"):
        drawing.render("digraph {", "svg")


def test_a_drawing_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "dot"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(drawing, "TIMEOUT_S", 0.2)
    with pytest.raises(DrawingFailed, match=r"0\.2 s"):
        drawing.render("digraph {}", "svg")
