"""Trees: what they hold of small requests, and how little of large ones."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from trace_requests import NONCE, WORKFLOW, Story, failed

from mr.errors import RequestNotFound
from mr.kv.memory import MemoryStore
from mr.model import ids, keys
from mr.model.records import Dataset
from mr.trace import document, drawing, text, tree
from mr.trace.data import PREVIEW
from mr.trace.tree import Group, Node


@pytest.fixture
def story() -> Story:
    return Story(MemoryStore())


def load(story: Story) -> tree.Tree:
    return tree.load(story.store, WORKFLOW, story.tell())


def fan_out(story: Story, children: int, failing: tuple[int, ...] = ()) -> None:
    story.invocation(story.root, "regions", mapped_count=children, need=children, took=2)
    story.seal(story.root, "region", children)
    for slot in range(children):
        child = story.child(story.root, slot)
        if slot in failing:
            story.failure(child, "region")
        else:
            story.leaf(child, "region", took=slot / 1000)
    story.invocation(ids.reduce_of(story.root, 0), "regions")
    story.request(state="done")


def slots(group: Group) -> list[int]:
    return [ids.slot_of(node.record.invocation_id) for node in group.nodes]


def children_of(node: Node | None) -> Group:
    assert node is not None
    assert node.children is not None
    return node.children


def test_a_request_that_is_not_there_is_not_found() -> None:
    with pytest.raises(RequestNotFound, match="abc"):
        tree.load(MemoryStore(), WORKFLOW, "abc")


def test_a_request_whose_invocations_are_gone_has_no_root(story: Story) -> None:
    found = load(story)
    assert found.root is None
    assert found.total == 0
    assert document.as_json(found)["root"] is None
    assert "gone" in text.render(found)
    assert drawing.dot(found)


def test_children_come_in_order_of_their_slots_and_before_reduces(story: Story) -> None:
    fan_out(story, 8)
    found = load(story)
    assert found.root is not None
    assert [group.direction for group in found.root.groups] == ["map", "reduce"]
    assert slots(children_of(found.root)) == list(range(8))
    assert found.total == 18
    assert [len(node.groups) for node in children_of(found.root).nodes] == [1] * 8


def test_children_that_nobody_has_begun_are_counted_as_ready(story: Story) -> None:
    story.invocation(story.root, "regions", "waiting", mapped_count=5)
    story.seal(story.root, "region", 5)
    story.leaf(story.child(story.root, 3), "region")
    found = load(story)
    group = children_of(found.root)
    assert group.states == {"ready": 4, "done": 1}
    assert group.total == 5
    assert found.total == 7
    assert "4 not begun" in text.render(found)


def test_reduces_that_nobody_has_begun_are_counted_as_ready(story: Story) -> None:
    story.invocation(story.root, "count", "reducing", partitions=3)
    story.invocation(ids.reduce_of(story.root, 1), "count", "running")
    found = load(story)
    assert found.root is not None
    assert found.root.reduces is not None
    assert found.root.reduces.states == {"ready": 2, "running": 1}


def test_children_of_an_attempt_that_lost_do_not_count(story: Story) -> None:
    fan_out(story, 2)
    story.leaf(ids.child_of(story.root, "zzzzzzzz", 0), "region")
    story.leaf(story.child(story.root, 7), "region")
    found = load(story)
    assert slots(children_of(found.root)) == [0, 1]
    assert found.total == 6


def test_many_children_are_folded_and_those_that_fail_are_kept(story: Story) -> None:
    fan_out(story, 12, failing=(4, 10))
    group = children_of(load(story).root)
    assert group.is_folded
    assert group.states == {"done": 10, "failed": 2}
    # In order of slots, and not of identifiers.
    assert [ids.slot_of(node.record.invocation_id) for node in group.failing_nodes] == [4, 10]
    assert len(group.nodes) == 2 + tree.SAMPLES
    [below] = group.below
    assert (below.step_name, below.direction, below.total) == ("region", "reduce", 10)


@pytest.mark.parametrize(("children", "is_folded"), [(8, False), (9, True)])
def test_more_than_eight_are_folded_also_before_they_are_begun(story: Story, children: int, is_folded: bool) -> None:
    story.invocation(story.root, "regions", "waiting", mapped_count=children)
    story.seal(story.root, "region", children)
    story.leaf(story.child(story.root, 0), "region")
    group = children_of(load(story).root)
    assert group.is_folded is is_folded
    assert group.states == {"done": 1, "ready": children - 1}


def test_what_was_printed_is_kept_of_failures_only(story: Story) -> None:
    fan_out(story, 1)
    story.failure(story.child(story.root, 0), "region", stdout="before it broke")
    story.invocation(ids.reduce_of(story.root, 0), "regions", stdout="all is well")
    shown = json.dumps(document.as_json(load(story)))
    assert "before it broke" in shown
    assert "all is well" not in shown


def test_folding_is_the_same_whether_the_number_was_known_before(story: Story) -> None:
    fan_out(story, 30, failing=(4,))
    del story.records[keys.seal(WORKFLOW, story.id, story.root)]
    group = children_of(load(story).root)
    assert group.is_folded
    assert (group.total, len(group.nodes)) == (30, 1 + tree.SAMPLES)
    assert [below.total for below in group.below] == [29]


def test_times_are_percentiles_of_those_that_ended(story: Story) -> None:
    fan_out(story, 101)
    times = children_of(load(story).root).times
    assert times is not None
    assert times == pytest.approx((0.050, 0.090, 0.100))


def test_a_child_is_kept_for_a_failure_far_below_it(story: Story) -> None:
    fan_out(story, 50)
    middle = story.child(story.root, 33)
    del story.records[keys.invocation(WORKFLOW, story.id, ids.reduce_of(middle, 0))]
    story.invocation(middle, "region", "waiting", mapped_count=20)
    story.seal(middle, "store", 20)
    for slot in range(20):
        story.leaf(story.child(middle, slot), "store")
    del story.records[keys.invocation(WORKFLOW, story.id, ids.reduce_of(story.child(middle, 9), 0))]
    story.failure(story.child(middle, 9), "store")
    story.request(state="failed")
    group = children_of(load(story).root)
    [kept] = group.failing_nodes
    assert kept.record.invocation_id == middle
    [inner] = children_of(kept).failing_nodes
    assert inner.record.invocation_id == story.child(middle, 9)
    below = {(one.step_name, one.direction): one for one in group.below}
    assert {name: one.total for name, one in below.items()} == {("region", "reduce"): 49, ("store", "map"): 20}
    assert [one.total for one in below["store", "map"].below] == [19]


def test_of_many_failures_a_few_are_kept_and_all_counted(story: Story) -> None:
    fan_out(story, 500, failing=tuple(range(0, 500, 2)))
    found = load(story)
    group = children_of(found.root)
    assert group.failing == 250
    assert len(group.failing_nodes) == tree.FAILING
    assert f"{250 - tree.FAILING} more with failures" in text.render(found)


def test_a_tree_that_is_narrow_everywhere_and_very_large_is_folded(story: Story) -> None:
    def grow(parent: str, depth: int) -> None:
        if depth == 0:
            story.leaf(parent, "leaf")
            return
        story.invocation(parent, f"level{depth}", mapped_count=8)
        story.seal(parent, f"level{depth - 1}" if depth > 1 else "leaf", 8)
        for slot in range(8):
            grow(story.child(parent, slot), depth - 1)
        story.invocation(ids.reduce_of(parent, 0), f"level{depth}")

    grow(story.root, 4)
    found = load(story)
    assert found.total == len(story.records) - 1 - (1 + 8 + 64 + 512)
    assert found.root is not None
    assert found.root.size <= tree.KEPT + 10
    assert len(text.render(found).splitlines()) <= tree.KEPT + 20


def test_twenty_thousand_children_take_little_room(story: Story) -> None:
    story.invocation(story.root, "regions", "waiting", mapped_count=20_000)
    story.seal(story.root, "region", 20_000)
    for slot in range(20_000):
        story.invocation(story.child(story.root, slot), "region", took=slot / 1000, stdout="x" * 1000)
    story.tell()
    tracemalloc.start()
    found = tree.load(story.store, WORKFLOW, story.id)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert children_of(found.root).total == 20_000
    # The records themselves, held all at once, would be over 40 MB.
    assert peak < 5_000_000
    assert len(text.render(found)) < 2000
    assert len(json.dumps(document.as_json(found))) < 20_000
    assert len(drawing.dot(found)) < 5000


def test_data_shows_what_went_in_and_out(story: Story) -> None:
    fan_out(story, 3)
    root, middle = story.root, story.child(story.root, 1)
    story.seal(root, "region", 3, bounds=[0, 1])
    story.dataset(keys.dataset(WORKFLOW, story.id, root, "arguments"), [["a", 1]])
    story.dataset(keys.chunk(WORKFLOW, story.id, root, NONCE, 0), [["north", [1]]])
    story.dataset(keys.chunk(WORKFLOW, story.id, root, NONCE, 1), [["south", [2]], ["west", "w" * 1000]])
    story.dataset(keys.dataset(WORKFLOW, story.id, middle, "post_combine"), [["south", n] for n in range(30)])
    story.output(middle, [["south", 435]])
    found = tree.load(story.store, WORKFLOW, story.tell(), data=True)
    shown = document.as_json(found)["root"]
    assert shown["data"]["arguments"] == {"count": 1, "bytes": 9, "pairs": [["a", 1]], "cut": {}}
    children = shown["groups"][0]["nodes"]
    assert [child["data"]["arguments"]["pairs"][0][0] for child in children[:2]] == ["north", "south"]
    [cut] = children[2]["data"]["arguments"]["pairs"]
    assert cut.startswith('["west","www') and cut.endswith("…")
    assert children[2]["data"]["arguments"]["cut"] == {0: 1011}
    assert children[1]["data"]["post_combine"]["count"] == 30
    assert children[1]["data"]["post_combine"]["pairs"] == [["south", n] for n in range(PREVIEW.pairs or 0)]
    assert children[1]["data"]["post_reduce"]["pairs"] == [["south", 435]]
    json.dumps(shown)


def test_data_in_files_is_read_by_who_can(story: Story) -> None:
    fan_out(story, 1)
    key = keys.dataset(WORKFLOW, story.id, story.root, "arguments")
    story.records[key] = Dataset(count=3, file="some/file", bytes=30)
    story.tell()
    pieces = {"some/file": [b'[["a",1],["b",2]]', b'[["c",3]]']}
    found = tree.load(
        story.store, WORKFLOW, story.id, data=True, read_dataset=lambda dataset: pieces.get(dataset.file or "")
    )
    assert found.root is not None
    assert found.root.data is not None
    assert found.root.data["arguments"].pairs == [["a", 1], ["b", 2], ["c", 3]]
    alone = tree.load(story.store, WORKFLOW, story.id, data=True)
    assert alone.root is not None
    assert alone.root.data is not None
    assert alone.root.data["arguments"].pairs == []


def test_json_keeps_what_a_failure_says(story: Story) -> None:
    fan_out(story, 1, failing=(0,))
    [child] = document.as_json(load(story))["root"]["groups"][0]["nodes"]
    assert child["error"]["exception_message"] == failed().exception_message
    assert 'File "shop/orders.py", line 5' in child["error"]["traceback"]
