"""The bell by which processes wake each other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mr.local.bell import Bell

LONG_S = 20.0


@pytest.fixture
def bell(tmp_path: Path) -> Iterator[Bell]:
    bell = Bell(tmp_path / "bells")
    yield bell
    bell.close()


def test_a_ring_is_heard_by_those_who_wait_for_such_names(bell: Bell) -> None:
    some, every, none = bell.listen(["a/", "b"]), bell.listen([""]), bell.listen([])
    bell.ring(["c", "a/1"])
    assert [some.wait(LONG_S), every.wait(LONG_S), none.wait(0)] == [True, True, False]
    bell.ring(["a", "c"])
    assert [some.wait(0), every.wait(LONG_S), none.wait(0)] == [False, True, False]
    for listener in (some, every, none):
        listener.close()


def test_a_listener_that_comes_within_one_tick_of_the_directorys_stamp_is_rung(bell: Bell, tmp_path: Path) -> None:
    first = bell.listen(["x"])
    bell.ring(["x"])
    now = time.time_ns()
    os.utime(tmp_path / "bells", ns=(now, now))
    bell.ring(["x"])
    second = bell.listen(["x"])
    os.utime(tmp_path / "bells", ns=(now, now))
    bell.ring(["x"])
    assert second.wait(0)
    first.close()
    second.close()


def test_interests_change_and_the_descriptor_stays(bell: Bell) -> None:
    listener = bell.listen(["a"])
    bell.ring(["b"])
    before = listener.fileno()
    listener.change(["b"])
    bell.ring(["a"])
    assert not listener.wait(0)
    bell.ring(["b"])
    assert listener.wait(LONG_S)
    assert listener.fileno() == before
    listener.close()


def test_many_rings_wait_for_nobody_and_are_heard_as_one(bell: Bell) -> None:
    deaf, awake = bell.listen(["x"]), bell.listen(["x"])
    for _ in range(2000):
        bell.ring(["x"])
        assert awake.wait(LONG_S), "one listener that does not listen kept the ring from another"
    assert deaf.wait(0)
    assert not deaf.wait(0)
    deaf.close()
    awake.close()


def test_a_forked_child_leaves_the_listeners_of_its_parent_alone(bell: Bell, tmp_path: Path) -> None:
    listener = bell.listen(["x"])
    files = set((tmp_path / "bells").iterdir())
    pid = os.fork()
    if pid == 0:
        listener.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert set((tmp_path / "bells").iterdir()) == files
    bell.ring(["x"])
    assert listener.wait(LONG_S)
    listener.close()
    assert list((tmp_path / "bells").iterdir()) == []
