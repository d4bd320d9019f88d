"""The ordered queue and the tree that are kept on a store."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr.errors import InvalidInput
from mr.kv.base import Store
from mr.kv.memory import MemoryStore
from mr.model.collections import KvQueue, KvTree


@pytest.fixture
def store() -> Iterator[Store]:
    made = MemoryStore()
    yield made
    made.close()


def test_items_come_in_the_order_of_their_appending(store: Store) -> None:
    queue = KvQueue(store, "q/a")
    assert [queue.append({"n": n}) for n in range(12)] == list(range(12))
    assert [item["n"] for item in queue] == list(range(12))
    assert len(queue) == 12


def test_queues_do_not_see_each_other(store: Store) -> None:
    one, other = KvQueue(store, "q/a"), KvQueue(store, "q/ab")
    one.append(1)
    other.append(2)
    assert list(one) == [1]
    assert list(other) == [2]


def test_appends_at_the_same_time_all_count(store: Store) -> None:
    queue = KvQueue(store, "q")
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(queue.append, range(80)))
    assert sorted(numbers) == list(range(80))
    assert sorted(queue) == list(range(80))


def test_a_queue_longer_than_a_page_is_whole(store: Store) -> None:
    queue = KvQueue(store, "q")
    for number in range(1203):
        queue.append(number)
    assert list(queue) == list(range(1203))


def test_a_tree_has_values_and_children(store: Store) -> None:
    tree = KvTree(store, "t")
    tree.set(("a",), 1)
    tree.set(("a", "b"), [2])
    tree.set(("c", "d"), None)
    assert tree.get(("a",)) == 1
    assert tree.get(("a", "b")) == [2]
    assert tree.get(("c",), "none") == "none"
    assert tree.children() == ["a", "c"]
    assert tree.children(("a",)) == ["b"]
    assert tree.children(("a", "b")) == []


def test_a_deleted_subtree_is_gone_and_its_neighbours_are_not(store: Store) -> None:
    tree = KvTree(store, "t")
    for path in (("a",), ("a", "b"), ("a", "b", "c"), ("ab",), ("a b",)):
        tree.set(path, 0)
    assert tree.delete(("a",)) == 3
    assert tree.children() == ["a b", "ab"]


def test_children_of_a_wide_and_deep_tree_are_each_told_once(store: Store) -> None:
    tree = KvTree(store, "t")
    for number in range(3):
        tree.set((f"x{number}",), 0)
        for below in range(700):
            tree.set((f"x{number}", str(below)), 0)
    tree.set(("x0-", "y"), 0)
    assert sorted(tree.children()) == ["x0", "x0-", "x1", "x2"]
    assert len(tree.children(("x1",))) == 700


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True))
def test_any_text_can_be_a_name(names: list[str]) -> None:
    store = MemoryStore()
    tree = KvTree(store, "t")
    for name in names:
        tree.set((name,), name)
    assert sorted(tree.children()) == sorted(names)
    assert [tree.get((name,)) for name in names] == names
    store.close()


def test_an_empty_name_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        KvTree(store, "t").set(("a", ""), 1)
