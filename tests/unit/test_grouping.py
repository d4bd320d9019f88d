"""Concurrent callers share what they write, each gets its own answer, and nobody is left behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from mr.engine.grouping import Groups
from mr.errors import InvalidTransaction, StoreUnavailable

DEADLINE_S = 20.0


def run(callers: int, groups: Groups[int, int], rounds: int = 1) -> list[int | Exception]:
    answers: list[int | Exception] = []

    def call(first: int) -> None:
        for item in range(first, first + rounds):
            try:
                answers.append(groups.do(item))
            except Exception as error:
                answers.append(error)

    threads = [threading.Thread(target=call, args=(number * rounds,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "a caller was left behind"
    return answers


def test_everybody_gets_the_answer_to_their_own_item() -> None:
    sizes: list[int] = []

    def carry_out(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return [10 * item for item in items]

    answers = run(8, Groups(carry_out, most=4), rounds=200)
    assert sorted(answers, key=repr) == sorted((10 * item for item in range(1600)), key=repr)
    assert max(sizes) <= 4
    assert sum(sizes) == 1600


def test_those_who_come_while_a_group_is_carried_out_make_up_the_next_one() -> None:
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def carry_out(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        if len(sizes) == 1:
            begun.set()
            assert go_on.wait(DEADLINE_S)
        return items

    groups: Groups[int, int] = Groups(carry_out)
    first = threading.Thread(target=groups.do, args=(0,), daemon=True)
    first.start()
    assert begun.wait(DEADLINE_S)
    others = [threading.Thread(target=groups.do, args=(number,), daemon=True) for number in range(1, 11)]
    for other in others:
        other.start()
    while len(groups._waiting) < 10:
        assert first.is_alive()
    go_on.set()
    for thread in [first, *others]:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert sizes == [1, 10]


def test_one_that_fails_does_not_fail_the_others_of_its_group() -> None:
    def carry_out(items: Sequence[int]) -> Sequence[int]:
        if 3 in items:
            raise InvalidTransaction("three")
        return items

    answers = run(8, Groups(carry_out))
    assert sorted(answer for answer in answers if isinstance(answer, int)) == [0, 1, 2, 4, 5, 6, 7]
    assert [str(answer) for answer in answers if isinstance(answer, Exception)] == ["three"]


def test_an_outage_is_told_to_the_whole_group_at_once() -> None:
    calls: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def carry_out(items: Sequence[int]) -> Sequence[int]:
        calls.append(len(items))
        if len(calls) == 1:
            begun.set()
            assert go_on.wait(DEADLINE_S)
            return items
        raise StoreUnavailable("gone")

    groups: Groups[int, int] = Groups(carry_out)
    first = threading.Thread(target=groups.do, args=(0,), daemon=True)
    first.start()
    assert begun.wait(DEADLINE_S)
    threading.Timer(0.2, go_on.set).start()
    answers = run(6, groups)
    first.join(DEADLINE_S)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 6
    assert calls == [1, 6] or sum(calls) == 7


def test_a_leader_that_is_stopped_hands_on() -> None:
    class Stopped(BaseException):
        pass

    calls: list[int] = []

    def carry_out(items: Sequence[int]) -> Sequence[int]:
        calls.append(len(items))
        if len(calls) == 1:
            raise Stopped
        return items

    groups: Groups[int, int] = Groups(carry_out)
    with pytest.raises(Stopped):
        groups.do(1)
    assert run(2, groups) in ([0, 1], [1, 0])
