"""A tree as a drawing, and what graphviz makes of it."""

from __future__ import annotations

import re
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from trace_requests import WORKFLOW, Story, fail_child, failed, load, shop

from mr.errors import DrawingFailed, GraphvizMissing
from mr.kv.memory import MemoryStore
from mr.model import ids
from mr.trace import drawing, graphviz, text

SVG = "{http://www.w3.org/2000/svg}"

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="needs graphviz; on Debian and Ubuntu: apt-get install graphviz"
)


@pytest.fixture
def story() -> Story:
    return Story(MemoryStore())


def texts(svg: bytes) -> str:
    root = xml.etree.ElementTree.fromstring(svg)
    return "\n".join((element.text or "").strip() for element in root.iter(f"{SVG}text"))


def boxes(svg: bytes) -> list[str]:
    """The state of each."""
    looks = [(g.get("class") or "").split() for g in xml.etree.ElementTree.fromstring(svg).iter(f"{SVG}g")]
    return [kinds[1] for kinds in looks if kinds[:1] == ["node"]]


@needs_dot
def test_the_drawing_is_an_image_of_every_invocation(story: Story) -> None:
    shop(story)
    source = drawing.dot(load(story))
    svg = graphviz.render(source, "svg")
    assert boxes(svg) == ["done"] * 8
    assert graphviz.render(source, "png").startswith(b"\x89PNG")


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
def test_a_wide_fan_out_is_one_box_with_those_that_failed_beside_it(story: Story) -> None:
    shop(story, children=300)
    for slot in range(100, 250, 10):
        fail_child(story, slot, f"message {slot}")
    source = drawing.dot(load(story))
    svg = graphviz.render(source, "svg")
    shown = texts(svg).splitlines()
    for line in (
        "region map x 300",
        "15 failed, 285 done",
        "15 failed, 572 done",
        "p50 20 ms, p90 20 ms, max 20 ms",
        "15 with failures",
        "100",
        "ZeroDivisionError: message 100",
        "ZeroDivisionError: message 210",
        "shop/orders.py:5",
        "and 3 more",
    ):
        assert line in shown, line
    assert "ZeroDivisionError: message 220" not in shown
    assert sorted(boxes(svg)) == ["done", "done", "failed", "failed", "failed"]
    assert edges(source, 'class="beside"') == 1
    assert len(source) < 10_000


def test_one_of_many_that_fails_for_what_is_below_it_is_drawn_with_that(story: Story) -> None:
    shop(story, children=300)
    story.request(state="failed")
    for slot in range(30):
        child = story.child(story.root, slot)
        story.invocation(child, "region", "failed", error=failed("too many"), mapped_count=2)
        story.seal(child, "store", 2)
        story.failure(story.child(child, 0), "store", f"below {slot}")
    source = drawing.dot(load(story))
    drawn = [line for line in source.splitlines() if "ZeroDivisionError: below" in line]
    assert len(drawn) == 4
    assert "30 with failures" in source


def test_what_has_not_begun_is_a_box(story: Story) -> None:
    story.invocation(story.root, "split", "waiting", mapped_count=5)
    story.seal(story.root, "region", 5)
    story.invocation(story.child(story.root, 0), "region", "running")
    source = drawing.dot(load(story))
    assert "4 not begun" in source
    assert edges(source, 'class="map"') == 2


def test_a_tree_of_many_levels_is_folded_so_far_that_it_can_be_looked_at(story: Story) -> None:
    def grow(parent: str, depth: int) -> None:
        story.invocation(parent, "split", mapped_count=7 if depth else 0)
        if depth:
            story.seal(parent, "split", 7)
            for slot in range(7):
                grow(story.child(parent, slot), depth - 1)

    grow(story.root, 3)
    story.request(state="done")
    source = drawing.dot(drawing.load(story.store, WORKFLOW, story.tell()))
    assert len(source.splitlines()) < 150
    assert "split map x 343" in source


@needs_dot
def test_the_name_of_the_request_is_shown(story: Story) -> None:
    shop(story)
    story.request(state="done", name='<script>alert("1")</script>')
    svg = graphviz.render(drawing.dot(load(story)), "svg")
    assert '<script>alert("1")</script>' in texts(svg).splitlines()
    assert b"<script" not in svg


@needs_dot
def test_a_drawing_refers_to_nothing_elsewhere(story: Story) -> None:
    shop(story, children=20)
    fail_child(story, 3)
    svg = graphviz.render(drawing.dot(load(story)), "svg")
    without_names_of_namespaces = re.sub(rb' xmlns(:\w+)?="[^"]*"', b"", svg)
    assert b"://" not in without_names_of_namespaces
    assert b"<!" not in svg
    tags = {element.tag.removeprefix(SVG) for element in xml.etree.ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "g", "title", "a", "polygon", "path", "polyline", "ellipse", "text"}


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
    svg = graphviz.render(drawing.dot(found), "svg")
    shown = "".join(texts(svg).split())
    expected = "".join(text.one_line(error.exception_message, 200).split())
    assert expected.rstrip("…") in shown
    assert sorted(boxes(svg)) == ["done"] * 4 + ["failed"] * 2


def test_without_graphviz_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GraphvizMissing, match="apt-get install graphviz"):
        graphviz.render("digraph {}", "svg")
    assert GraphvizMissing.status == 501


@needs_dot
def test_what_graphviz_cannot_draw_is_an_error() -> None:
    with pytest.raises(DrawingFailed, match="syntax error"):
        graphviz.render("digraph {", "svg")


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """A program named dot that does something else."""
    program = tmp_path / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_a_drawing_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(graphviz, "TIMEOUT_S", 0.2)
    with pytest.raises(DrawingFailed, match=r"0\.2 s"):
        graphviz.render("digraph {}", "svg")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's memory like that")
def test_a_drawing_has_only_so_much_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, f"exec {sys.executable} -c 'bytes(1 << 31)'")
    with pytest.raises(DrawingFailed, match=r"MemoryError.*1024 MiB"):
        graphviz.render("digraph {}", "svg")
