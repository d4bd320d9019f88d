"""Redrive on real stores and queues, with real workers: what is run again, what is not, and what cuts it short."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mr.engine import ops
from mr.engine.redrive import redrive
from mr.errors import NothingToRedrive, RequestNotFound, RequestRuns, StepsMissing
from mr.model import catalog, ids, keys
from tests.integration.worker_harness import Bench, bench, until

JOBS = """
steps:
  world: {map: world, reduce: add, max_failed_children: LIMIT}
  land: {map: land, reduce: add, max_failed_children: LIMIT, partitions: 2}
  town: {map: town, reduce: add}
jobs: {census: {step: world}}
"""
WORLD = """
def mapper(arguments):
    yield MrConfigureToMap("land")
    (_, (lands, towns, wrong, path)), = arguments
    NOTE
    for land in range(lands):
        yield land, [[land * towns + number for number in range(towns)], wrong, path]
"""
LAND = """
def mapper(arguments):
    yield MrConfigureToMap("town")
    for land, (towns, wrong, path) in arguments:
        NOTE
        S_SET("path", path)
        for number in towns:
            yield number, [wrong, path]
"""
TOWN = """
def mapper(arguments):
    yield MrConfigureToReturn()
    for number, (wrong, path) in arguments:
        NOTE
        S_SET("path", path)
        if number in wrong:
            raise ValueError(f"town {number} is wrong")
        yield "towns", 1
        yield "sum", number
"""
ADD = """
def reducer(results):
    path = S_GET("path")
    NOTE
    for key, values in results:
        yield key, sum(values)
"""
NOTE = """with open(path, "a") as file: file.write(ctx.invocation_id + "\\n")"""
MENDED = TOWN.replace("if number in wrong:", "if False:")


def files(town: str = TOWN, limit: str = "0") -> dict[str, str]:
    world = WORLD.replace("NOTE", NOTE + "\n    S_SET('path', path)")
    named = {"world.py": world, "land.py": LAND, "town.py": town, "add.py": ADD}
    return {
        "jobs.yaml": JOBS.replace("LIMIT", limit),
        **{name: text.replace("NOTE", NOTE) for name, text in named.items()},
    }


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, module_backing: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("platform"), **module_backing) as made:
        yield made


class Census:
    """A request, and what was run of it."""

    def __init__(self, platform: Bench, directory: Path, lands: int, towns: int, wrong: list[int]) -> None:
        self.platform, self.path, self.number = platform, directory / "ran", lands * towns
        self.id = platform.submit("census", args=[lands, towns, wrong, str(self.path)])

    def ran(self) -> Counter[str]:
        return Counter(self.path.read_text().split()) if self.path.exists() else Counter()

    def is_right(self, without: tuple[int, ...] = ()) -> bool:
        found = set(range(self.number)) - set(without)
        pairs = dict(self.platform.pairs(self.id))
        return pairs == {"towns": len(found), "sum": sum(found)}


@pytest.fixture(scope="module")
def worked(platform: Bench) -> Bench:
    platform.apply(files())
    platform.worker()
    return platform


def town_of(invocation_id: str, towns: int) -> int:
    *_, land, town = ids.map_of(invocation_id).split(".")
    return int(land.rpartition("-")[2]) * towns + int(town.rpartition("-")[2])


def test_what_was_tolerated_is_run_again_and_reduced_again_above_it(worked: Bench, tmp_path: Path) -> None:
    wrong = [3, 50, 51, 99, 100, 170, 199]  # none of the fourth land
    worked.apply(files(limit="10"))
    census = Census(worked, tmp_path, 5, 40, wrong)
    assert worked.wait(census.id).state == "done"
    assert census.is_right(without=tuple(wrong))
    before = census.ran()
    worked.apply(files(MENDED))
    begun = worked.redrive(census.id)
    assert (begun.state, begun.epoch, begun.manifest) == ("running", 1, catalog.read(worked.store, "w").version)
    assert worked.wait(census.id).state == "done"
    assert census.is_right()
    again = census.ran() - before
    assert set(again.values()) == {1}
    depths = Counter((ids.is_reduce(one), ids.depth_of(one)) for one in again)
    # The towns that failed with their reduces, both partitions of four lands, and the world's reduce.
    assert depths == {(False, 2): 7, (True, 2): 7, (True, 1): 8, (True, 0): 1}
    assert sorted(town_of(one, 40) for one in again if not ids.is_reduce(one)) == wrong
    with pytest.raises(NothingToRedrive, match="nothing in it has failed"):
        worked.redrive(census.id)


def test_of_a_failed_request_what_was_done_is_kept(worked: Bench, tmp_path: Path) -> None:
    worked.apply(files())
    census = Census(worked, tmp_path, 3, 20, [30])
    failed = worked.wait(census.id)
    assert failed.state == "failed"
    done = {key.rpartition("/")[2] for key in done_of(worked, census.id)}
    before = census.ran()
    # Where nothing is mended, it fails as before.
    assert worked.redrive(census.id, is_same_manifest=True).manifest == failed.manifest
    assert worked.wait(census.id).failed_invocation_id == failed.failed_invocation_id
    attempts = [
        one.attempt for one in worked.invocations(census.id) if one.invocation_id == failed.failed_invocation_id
    ]
    assert attempts == [2]
    worked.apply(files(MENDED))
    worked.redrive(census.id)
    assert worked.wait(census.id).state == "done"
    assert census.is_right()
    again = census.ran() - before
    assert not {ids.map_of(one) for one in again} & done
    assert not [key for key in worked.store.list(keys.redrives("w"))]


def done_of(platform: Bench, request_id: str) -> list[str]:
    prefix = f"done/w/{request_id}/"
    return [entry.key for entry in platform.store.list(prefix, limit=10_000) if b'"ok":true' in entry.value]


def test_a_cancelled_request_goes_on_where_it_was(worked: Bench, tmp_path: Path) -> None:
    worked.apply(files(TOWN.replace("NOTE", "NOTE\n        import time; time.sleep(0.02)")))
    census = Census(worked, tmp_path, 3, 30, [])
    until(lambda: len(done_of(worked, census.id)) > 10, 30, worked.log)
    assert worked.cancel(census.id).state == "cancelled"
    done = {key.rpartition("/")[2] for key in done_of(worked, census.id)}
    before = census.ran()
    worked.redrive(census.id)
    assert worked.wait(census.id).state == "done"
    assert census.is_right()
    assert not {ids.map_of(one) for one in census.ran() - before} & done


def test_it_is_refused_where_there_is_nothing_to_run(worked: Bench, tmp_path: Path) -> None:
    worked.apply(files())
    census = Census(worked, tmp_path, 1, 1, [0])
    with pytest.raises(RequestRuns, match="has not ended"):
        worked.redrive(census.id)
    worked.wait(census.id)
    renamed = {name: text.replace("town:", "village:").replace('"town"', '"village"') for name, text in files().items()}
    worked.apply(renamed)
    with pytest.raises(StepsMissing, match=r"'town'.*--same-manifest"):
        worked.redrive(census.id)
    assert worked.request(census.id).state == "failed"
    with pytest.raises(RequestNotFound):
        worked.redrive(ids.new_request_id("w"))


def cut(platform: Bench, request_id: str, commits: int, **changes: Any) -> bool:
    """Redrives as far as so many commits go, as if its process were killed then. Whether it came to its end."""
    env = replace(platform.env, settings=replace(platform.env.settings, page=8), **changes)
    flow = redrive(env, "w", request_id, catalog.read(platform.store, "w").version)
    answer: Any = None
    while commits:
        try:
            op = flow.send(answer)
        except StopIteration:
            return True
        commits -= isinstance(op, ops.Commit)
        perform = platform.platform.perform
        answer = platform.shell._commit(op.change, None) if isinstance(op, ops.Commit) else perform(op)
    return False


def test_wherever_it_is_cut_short_the_same_command_finishes_it(worked: Bench, tmp_path: Path) -> None:
    has_ended, commits = False, 0
    states = []
    while not has_ended:
        commits += 1
        (tmp_path / str(commits)).mkdir()
        worked.apply(files(limit="1"))
        census = Census(worked, tmp_path / str(commits), 2, 3, [1, 5])
        assert worked.wait(census.id).state == "done"
        worked.apply(files(MENDED))
        before = census.ran()
        has_ended = cut(worked, census.id, commits)
        if worked.request(census.id).is_redriving:
            assert not worked.request(census.id).is_done
            states.append(worked.redrive(census.id).epoch)
        assert worked.wait(census.id).state == "done"
        assert census.is_right()
        # Two towns and their reduces, the partitions of two lands, the world's reduce.
        assert sorted((census.ran() - before).values()) == [1] * 9
    # It begins and puts back, several pages of it.
    assert states == [1] * len(states)
    assert len(states) > 2


def test_one_that_nobody_finishes_is_finished_by_the_sweep_or_cancelled(worked: Bench, tmp_path: Path) -> None:
    def a_minute_ago() -> float:
        return time.time() - 60

    for is_cancelled in (False, True):
        (tmp_path / str(is_cancelled)).mkdir()
        worked.apply(files())
        census = Census(worked, tmp_path / str(is_cancelled), 1, 3, [1])
        worked.wait(census.id)
        worked.apply(files(MENDED))
        cut(worked, census.id, 1, clock=time.time if is_cancelled else a_minute_ago)
        if is_cancelled:
            assert worked.request(census.id).is_redriving
            assert worked.cancel(census.id).state == "cancelled"
            assert not worked.store.list(keys.redrives("w"))
            worked.redrive(census.id)
        assert worked.wait(census.id).state == "done"
        assert census.is_right()
