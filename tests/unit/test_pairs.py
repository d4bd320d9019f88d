"""Keys, groups and partitions."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr.model import pairs

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)


def test_one_and_its_lookalikes_are_four_keys_in_the_order_of_groups() -> None:
    grouped = pairs.group(
        [("1", "s"), (1.0, "f"), (True, "b"), (1, "i"), (None, "n"), ([1], "l"), (1, "j"), ((1,), "m")]
    )
    assert grouped == [(None, ["n"]), (True, ["b"]), (1, ["i", "j"]), (1.0, ["f"]), ("1", ["s"]), ((1,), ["l", "m"])]
    assert [type(key) for key, _ in grouped] == [type(None), bool, int, float, str, tuple]


def test_strings_are_ordered_by_code_point_and_lists_element_by_element() -> None:
    assert [key for key, _ in pairs.group([(k, 0) for k in ["ä", "z", "Z", "", "\U0001f600", "\uffff"]])] == [
        "", "Z", "z", "ä", "\uffff", "\U0001f600",
    ]  # fmt: skip
    listed: list[Any] = [["b"], ["a", "z"], ["a"], [], [2], [10], [None], [[1]], ["a", 1]]
    assert [key for key, _ in pairs.group([(k, 0) for k in listed])] == [
        (), (None,), (2,), (10,), ("a",), ("a", 1), ("a", "z"), ("b",), ((1,),),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key", [float("nan"), float("inf"), {"a": 1}, b"bytes", date(2020, 1, 1), [1, {2}], "\ud800", object()]
)
def test_a_bad_key_is_named(key: object) -> None:
    with pytest.raises(pairs.InvalidPair) as caught:
        pairs.key_text(key)
    assert str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        [float("-inf")],
        {1, 2},
        b"x",
        {"when": date(2020, 1, 1)},
        "\udfff",
        pytest.param(10**5000, id="huge"),
    ],
)
def test_a_value_that_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(pairs.InvalidPair):
        pairs.value_text(value)


def test_a_value_that_is_part_of_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(pairs.InvalidPair):
        pairs.value_text(value)


@pytest.mark.parametrize(
    "text",
    [
        "[[NaN, 1]]",
        "[[1, Infinity]]",
        "[[1, 1e999]]",
        "[[1]]",
        "{}x",
        "[1]",
        "7",
        pytest.param("[" * 100_000, id="deep"),
        "\xff",
    ],
)
def test_text_that_is_no_list_of_pairs_is_refused(text: str) -> None:
    with pytest.raises(pairs.InvalidPair):
        pairs.parse_pairs(text)
    with pytest.raises(pairs.InvalidPair):
        pairs.parse_pairs(text.encode("latin-1"))


@given(st.lists(st.tuples(keys, values)))
def test_pairs_come_back_as_they_were_written(written: list[tuple[Any, Any]]) -> None:
    text = pairs.pairs_text(written)
    read = pairs.parse_pairs(text)
    assert pairs.pairs_text(read) == text
    assert [value for _, value in read] == [value for _, value in written]


@given(keys, keys)
def test_keys_are_equal_when_and_only_when_their_text_is(one: Any, other: Any) -> None:
    same = pairs.key_text(one) == pairs.key_text(other)
    assert same == (pairs.order(one) == pairs.order(other) and json.dumps(one) == json.dumps(other))


@given(st.lists(st.tuples(keys, st.integers())))
def test_grouping_loses_nothing_keeps_arrival_and_does_not_depend_on_it_for_the_order(
    given_pairs: list[tuple[Any, int]],
) -> None:
    grouped = pairs.group(given_pairs)
    for key, found in grouped:
        text = pairs.key_text(key)
        assert found == [value for other, value in given_pairs if pairs.key_text(other) == text]
    assert sum(len(found) for _, found in grouped) == len(given_pairs)
    backwards = [pairs.key_text(key) for key, _ in pairs.group(reversed(given_pairs))]
    assert [pairs.key_text(key) for key, _ in grouped] == backwards


@given(st.lists(keys), st.integers(1, 9))
def test_every_key_is_in_exactly_one_partition(some: list[Any], partitions: int) -> None:
    kept = []
    for partition in range(partitions):
        groups: pairs.Groups[int] = pairs.Groups(partition, partitions)
        for key in some:
            groups.add(key, 1)
        kept += [found.text for found in groups.ordered()]
    assert sorted(kept) == sorted({pairs.key_text(key) for key in some})


def test_partitions_are_the_same_in_every_process_and_version() -> None:
    assert [pairs.partition_of(pairs.key_text(key), 7) for key in ["the", "whale", 1, 1.0, None, ["a", 2]]] == [
        3, 2, 2, 2, 5, 5,
    ]  # fmt: skip
    program = "from mr.model import pairs; print(pairs.partition_of(pairs.key_text('whale'), 7))"
    assert int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout) == 2


def test_partitions_are_about_even() -> None:
    counts = [0] * 8
    for number in range(8000):
        counts[pairs.partition_of(pairs.key_text(f"key-{number}"), 8)] += 1
    assert min(counts) > 800
