"""How transactions share requests to etcd."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr.errors import InvalidTransaction
from mr.kv.base import Compare, Put, Txn
from mr.kv.etcd.groups import MAX_REQUEST_BYTES, check_sizes, plan

keys = st.sets(st.sampled_from("abcdefgh"), max_size=3)
txns = st.builds(
    lambda read, put, deleted: Txn(
        tuple(Compare("version", key, 0) for key in sorted(read)),
        tuple(Put(key, b"") for key in sorted(put)),
        tuple(sorted(deleted - put)),
    ),
    keys,
    keys,
    keys,
)


def written(txn: Txn) -> set[str]:
    return {put.key for put in txn.puts} | set(txn.deletes)


def touched(txn: Txn) -> set[str]:
    return written(txn) | {compare.key for compare in txn.compares}


def one_put(name: str, size: int = 0) -> Txn:
    return Txn(puts=(Put(name, bytes(size)),))


@given(st.lists(txns, max_size=40))
def test_those_that_have_to_do_with_each_other_keep_their_order_in_requests_of_their_own(batch: list[Txn]) -> None:
    requests = plan(batch)
    place_of = {place: number for number, places in enumerate(requests) for place in places}
    assert sorted(place for places in requests for place in places) == list(range(len(batch)))
    for late, txn in enumerate(batch):
        for early, other in enumerate(batch[:late]):
            if written(txn) & touched(other) or touched(txn) & written(other):
                assert place_of[early] < place_of[late]


def test_those_that_only_look_at_the_same_share_a_request() -> None:
    batch = [Txn((Compare("version", "live", 1),), (Put(f"k{n}", b""),)) for n in range(64)]
    assert plan(batch) == [list(range(64))]


@given(st.lists(st.tuples(st.integers(1, 128), st.integers(0, 128)), max_size=60))
def test_a_request_keeps_within_the_operations_that_etcd_takes(shapes: list[tuple[int, int]]) -> None:
    batch = [
        Txn(
            tuple(Compare("version", f"{n}/{m}", 0) for m in range(compares)),
            tuple(Put(f"{n}/{m}", b"") for m in range(puts)),
        )
        for n, (compares, puts) in enumerate(shapes)
    ]
    for places in plan(batch):
        largest = max(max(shapes[place]) for place in places)
        assert len(places) == 1 or len(places) + largest <= 128


@given(st.lists(st.integers(0, 1_000_000), max_size=30))
def test_a_request_keeps_within_the_bytes_that_etcd_takes(sizes: list[int]) -> None:
    batch = [one_put(f"k{n}", size) for n, size in enumerate(sizes)]
    for places in plan(batch):
        assert sum(len(batch[place].puts[0].value) for place in places) <= MAX_REQUEST_BYTES


def test_a_request_is_filled_up_by_later_ones() -> None:
    batch = [one_put("a"), one_put("a"), one_put("b"), one_put("a"), one_put("c", 900_000), one_put("d", 900_000)]
    assert plan(batch) == [[0, 2, 4], [1, 5], [3]]


def test_nothing_takes_no_request() -> None:
    assert plan([]) == []


def test_what_no_request_can_hold_is_refused_by_its_keys_and_size() -> None:
    check_sizes([Txn(puts=(Put("a", bytes(999_999)), Put("b", bytes(499_000))))])
    with pytest.raises(InvalidTransaction, match=r"puts 'a', 'b' has \d+ bytes; etcd takes 1500000 at a time"):
        check_sizes([one_put("c"), Txn(puts=(Put("a", bytes(1_000_000)), Put("b", bytes(500_000))))])
