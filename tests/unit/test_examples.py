"""What the example workflows answer, by an engine of one page that has no store, no queue and no processes."""

from __future__ import annotations

import collections
import inspect
import logging
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mr.handlers.files import read_directory

HANDLERS = Path(__file__).resolve().parents[2] / "handlers"

Pair = tuple[Any, Any]
Body = Callable[..., Iterable[Any]]


class ToMap(str):
    """The step that a mapper maps to."""


class ToReturn:
    """Says that a mapper returns its pairs."""


class Workflow:
    """A directory of handlers and what it takes to run them in this process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.jobs = yaml.safe_load((directory / "jobs.yaml").read_text())
        self.invocations = 0

    def post(self, job: str, **arguments: Any) -> list[Pair]:
        return self.run(self.jobs["jobs"][job]["step"], list(arguments.items()))

    def run(self, step_name: str, arguments: list[Pair]) -> list[Pair]:
        """One map invocation and its reduce: what its parent gets of it."""
        self.invocations += 1
        step = self.jobs["steps"][step_name]
        session: dict[str, Any] = {}
        yielded = iter(self.load(step["map"], "arguments", session)(arguments))
        way = next(yielded)
        if isinstance(way, ToMap):
            pairs = [pair for child in yielded for pair in self.run(str(way), [child])]
        else:
            assert isinstance(way, ToReturn)
            pairs = list(yielded)
            if "combine" in step:
                pairs = list(self.load(step["combine"], "results", session)(group(pairs)))
        return list(self.load(step["reduce"], "results", session)(group(pairs)))

    def load(self, name: str, parameter: str, session: dict[str, Any]) -> Body:
        path = self.directory / f"{name}.py"
        source = path.read_text()
        scope: dict[str, Any] = {
            "MrConfigureToMap": ToMap,
            "MrConfigureToReturn": ToReturn,
            "LOG": logging.getLogger(name),
            "S_GET": session.__getitem__,
            "S_SET": session.__setitem__,
        }
        if not re.search(r"^def (mapper|combiner|reducer)\(", source, re.MULTILINE):
            docstring = inspect.cleandoc(source.split('"""')[1])
            yaml.safe_load(docstring.partition("\n**\n")[2])
            source = f"def body({parameter}):\n{textwrap.indent(source, '    ')}"
        exec(compile(source, str(path), "exec"), scope)
        found: Body = next(scope[each] for each in ("body", "mapper", "combiner", "reducer") if each in scope)
        return found


def group(pairs: Iterable[Pair]) -> Iterator[tuple[Any, Iterator[Any]]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    for key in sorted(groups):
        yield key, iter(groups[key])


def test_words_are_counted() -> None:
    answer = Workflow(HANDLERS / "words").post("wordcount", text="to be or not to be")
    assert answer == [("be", 2), ("not", 1), ("or", 1), ("to", 2)]


def test_the_commonest_names_of_a_tree_are_ranked(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "one.py").write_text("b = a\n# a comment with a name\nprint(a, b, 'c')\n")
    (tmp_path / "package" / "two.py").write_text("a = 1")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\na = '\xe4'\n")
    (tmp_path / "broken.py").write_bytes(b"a = '\xe4'\n")
    (tmp_path / "test" / "skipped.py").write_text("skipped = 1\n")
    (tmp_path / "notes.txt").write_text("no Python\n")

    workflow = Workflow(HANDLERS / "stdlib_names")
    answer = dict(workflow.post("commonest_names", path=str(tmp_path)))

    assert workflow.invocations == 1 + 5
    assert answer == {
        "files": 4,
        "lines": 6,
        "unreadable": 1,
        (1, "a"): 4,
        (2, "b"): 2,
        (3, "print"): 1,
    }


def test_at_most_twenty_names_are_ranked_and_equals_come_by_name(tmp_path: Path) -> None:
    (tmp_path / "many.py").write_text("".join(f"n{number:02} = 1\n" for number in range(30)))
    answer = dict(Workflow(HANDLERS / "stdlib_names").post("commonest_names", path=str(tmp_path)))
    ranked = [key for key in answer if isinstance(key, tuple)]
    assert ranked == [(place + 1, f"n{place:02}") for place in range(20)]


def test_an_empty_tree_answers_nothing(tmp_path: Path) -> None:
    assert Workflow(HANDLERS / "stdlib_names").post("commonest_names", path=str(tmp_path)) == []


def test_a_tree_that_is_not_there_fails_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no directory"):
        Workflow(HANDLERS / "stdlib_names").post("commonest_names", path=str(tmp_path / "gone"))


def test_without_a_path_the_standard_library_is_walked() -> None:
    workflow = Workflow(HANDLERS / "stdlib_names")
    mapper = workflow.load("walk", "arguments", {})
    way, *children = mapper([("path", "")])
    names = collections.Counter(name for name, _ in children)
    assert way == "count"
    assert 200 < len(names) < 1500
    assert names["json/decoder.py"] == 1


def test_the_tree_reduces_each_level_by_a_reducer_of_its_own() -> None:
    workflow = Workflow(HANDLERS / "tree")
    answer = workflow.post("warmest_places", regions=["north", "south"], stations=3)
    assert workflow.invocations == 1 + 2 + 6
    assert [place for place, _ in answer] == [1, 2]
    assert {found["region"] for _, found in answer} == {"north", "south"}
    assert answer[0][1]["mean"] >= answer[1][1]["mean"]
    assert all(found["station"].startswith(found["region"]) for _, found in answer)


def test_a_region_without_stations_leaves_the_others_alone() -> None:
    assert Workflow(HANDLERS / "tree").post("warmest_places", stations=0) == []


@pytest.mark.parametrize("directory", sorted(HANDLERS.glob("*/")), ids=lambda path: path.name)
def test_an_example_is_a_workflow_that_can_be_applied(directory: Path) -> None:
    workflow = read_directory(directory)
    assert workflow.jobs
    assert workflow.skipped == []
    used = {
        name
        for step in workflow.steps.values()
        for name in (step.map_handler_name, step.combine_handler_name, step.reduce_handler_name)
    }
    assert workflow.handlers.keys() == used - {""}
