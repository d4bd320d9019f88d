"""Drawings, as a browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from trace_requests import WORKFLOW, Story, fail_child, shop

from mr.kv.memory import MemoryStore
from mr.model import keys
from mr.trace import drawing, graphviz

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs a browser; on Debian: apt-get install chromium"),
    pytest.mark.skipif(shutil.which("dot") is None, reason="needs graphviz; on Debian: apt-get install graphviz"),
]

MEASURE = """
const box = element => { const b = element.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
const told = [...document.querySelectorAll("svg")].map(svg => [...svg.querySelectorAll("g.node")].map(node => ({
    shape: box(node.querySelector("path, polygon, ellipse")),
    texts: [...node.querySelectorAll("text")].map(text => [text.textContent, ...box(text)]),
})));
document.body.innerHTML = "<pre id=told></pre>";
document.getElementById("told").textContent = JSON.stringify(told);
"""


def shown(drawings: list[bytes], directory: Path) -> Any:
    """Of each drawing its boxes, with their ``texts``; coordinates are left, top, right, bottom in pixels."""
    page = directory / "page.html"
    inner = b"".join(re.sub(rb"<\?xml.*?\?>", b"", svg) for svg in drawings)
    page.write_bytes(b"<meta charset=utf-8><body>" + inner + f"<script>{MEASURE}</script>".encode())
    done = subprocess.run(
        [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory / 'profile'}"),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout + done.stderr
    return json.loads(unescape(found[1]))


def svg_of(story: Story) -> bytes:
    source = drawing.dot(drawing.load(story.store, WORKFLOW, story.tell()))
    return graphviz.render(source, "svg")


def levels() -> Story:
    story = Story(MemoryStore())
    shop(story, 3)
    for slot in range(3):
        child = story.child(story.root, slot)
        story.seal(child, "store", 2)
        for number in range(2):
            story.leaf(story.child(child, number), "store")
    story.request(state="done", name="A name for people, as wide as it gets: " + "Wm" * 40)
    return story


def failing() -> Story:
    story = Story(MemoryStore())
    shop(story, 5)
    fail_child(story, 1, "A message that says at some length what is WRONG, and with which of all the things.")
    fail_child(story, 3, '<b>"&amp;" \\N ' + "漢字" * 40 + "W" * 60)
    return story


def wide() -> Story:
    story = Story(MemoryStore())
    shop(story, 2000)
    story.dataset(keys.chunk(WORKFLOW, story.id, story.root, "abcdefgh", 0), [[f"item-{n}", n] for n in range(2000)])
    for slot in range(0, 2000, 100):
        fail_child(story, slot, f"could not read what is in {slot}")
    return story


def test_what_is_written_is_in_its_box_and_no_box_is_over_another(tmp_path: Path) -> None:
    seen = shown([svg_of(story) for story in (levels(), failing(), wide())], tmp_path)
    assert [len(boxes) for boxes in seen] == [22, 11, 5]
    for boxes in seen:
        for one in boxes:
            left, top, right, bottom = one["shape"]
            for text, x, y, end, low in one["texts"]:
                assert left <= x and end <= right, (text, end - right)
                assert top <= y and low <= bottom, (text, low - bottom)
        for index, one in enumerate(boxes):
            left, top, right, bottom = one["shape"]
            for other in boxes[:index]:
                x, y, end, low = other["shape"]
                assert end <= left or right <= x or low <= top or bottom <= y
    text = " ".join(text for box in seen[1] for text, *_ in box["texts"])
    assert '<b>"&amp;" \\N' in text
