"""The commands that begin, find, show and cancel requests; apply and diff; config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from cli_runs import ADD, Commands
from trace_requests import Story

from mr.cli import handlers, invocations, requests, submitting, workflows
from mr.cli.main import main
from mr.model import ids, keys

PARAMETERS = '''"""
**
handler_type: mapper
parameters:
    - {name: text, type: string}
    - {name: times, type: integer, default: 1}
    - {name: options, type: object, required: false}
    - {name: anything, required: false}
"""
yield MrConfigureToReturn()
'''


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@pytest.fixture
def words(commands: Commands) -> Commands:
    assert commands.jobx("apply", str(commands.words())).exit_code == 0
    return commands


def create(commands: Commands, *arguments: str) -> dict[str, Any]:
    shown: dict[str, Any] = commands.printed(submitting.create, "words", "wordcount", *arguments)
    return shown


def arguments_of(commands: Commands, request_id: str) -> dict[str, Any]:
    shown = commands.printed(invocations.graph, "words", request_id, "--json")
    return dict(shown["root"]["data"]["arguments"]["pairs"])


# --- apply, diff, config -----------------------------------------------------------------------------------------


def test_apply_makes_the_store_equal_to_the_directory(words: Commands) -> None:
    directory = words.directory / "words"
    (directory / "most.py").write_text(ADD.replace("sum", "max"))
    (directory / "jobs.yaml").write_text("steps: {most: {map: split, reduce: most}}\njobs: {mostwords: {step: most}}\n")
    (directory / "add.py").unlink()
    expected = [
        "words: create handler most",
        "words: delete handler add",
        "words: create step most",
        "words: delete step count",
        "words: create job mostwords",
        "words: delete job wordcount",
    ]
    assert words.jobx("diff", str(directory)).stdout.splitlines() == expected
    assert words.jobx("apply", str(directory)).stdout.splitlines() == expected
    assert words.jobx("apply", str(directory)).stdout == "words: nothing to change\n"
    shown = words.jobx("diff", str(directory), "--json")
    assert json.loads(shown.stdout) == {"workflow": "words", "changes": []}


def test_apply_tells_all_problems_and_changes_nothing(words: Commands) -> None:
    directory = words.directory / "words"
    (directory / "add.py").write_text("def reducer(")
    (directory / "more.py").write_text("x = 1\n")
    (directory / "jobs.yaml").write_text("steps: {count: {map: splt, reduce: add}}\n")
    done = words.jobx("apply", str(directory))
    assert (done.exit_code, done.stdout) == (1, "")
    for part in ("add.py:1:", "more.py:", "jobs.yaml:1:", "Did you mean 'split'?", "3 problems"):
        assert part in done.stderr
    assert create(words)["data"]["state"] == "running"


def test_a_directory_that_is_not_there_is_a_problem(commands: Commands) -> None:
    done = commands.jobx("apply", "nothere")
    assert done.exit_code == 1
    assert done.stderr == "Error: There is no directory 'nothere'.\n"


def test_config_shows_every_setting_and_its_source(commands: Commands) -> None:
    shown = commands.jobx("config", "--json", MR_RUNNERS="3", MR_API_TOKENS="hidden")
    settings = {one["name"]: one for one in json.loads(shown.stdout)}
    assert settings["MR_RUNNERS"] == {"name": "MR_RUNNERS", "value": "3", "source": "environment"}
    assert settings["MR_CHANNEL"]["source"] == "default"
    assert "hidden" not in shown.output
    assert "MR_RUNNERS\t3\tenvironment" in commands.jobx("config", MR_RUNNERS="3").stdout.splitlines()


# --- beginning one -----------------------------------------------------------------------------------------------


def test_a_submitted_request_is_printed_and_kept(words: Commands) -> None:
    shown = create(words, "-a", "text", "to be")
    assert shown["entity_name"] == "request"
    assert shown["primary_key"] == shown["data"]["request_id"]
    assert shown["data"]["is_blocking"] is False
    assert words.printed(requests.classic_get, "words", "last") == shown


def test_undeclared_arguments_are_json_where_they_can_be(words: Commands) -> None:
    given = ("-a", "n", "3", "-a", "list", "[1, 2]", "-a", "text", "to be", "-a", "quoted", '"3"', "-a", "nan", "NaN")
    shown = create(words, *given)
    assert arguments_of(words, shown["primary_key"]) == {
        "n": 3,
        "list": [1, 2],
        "text": "to be",
        "quoted": "3",
        "nan": "NaN",
    }


def test_declared_types_decide_what_a_value_is(words: Commands) -> None:
    directory = words.directory / "words"
    (directory / "split.py").write_text(PARAMETERS)
    assert words.jobx("apply", str(directory)).exit_code == 0
    shown = create(words, "-a", "text", "3", "-a", "options", '{"a": 1}', "-a", "anything", "[1]")
    expected = {"text": "3", "times": 1, "options": {"a": 1}, "anything": [1]}
    assert arguments_of(words, shown["primary_key"]) == expected
    said = words.said(submitting.create, "words", "wordcount", "-a", "text", "x", "-a", "times", "many")
    assert "'times' has to be an integer" in said
    assert "'text'" in words.said(submitting.create, "words", "wordcount")
    assert "Did you mean 'text'?" in words.said(submitting.create, "words", "wordcount", "-a", "txt", "x")


def test_only_jobs_that_are_there_are_submitted_to(words: Commands) -> None:
    assert "Did you mean 'wordcount'?" in words.said(submitting.create, "words", "wordcont")
    assert "There are: words" in words.said(submitting.create, "wrds", "wordcount")
    twice = words.run(submitting.create, "words", "wordcount", "-a", "x", "1", "-a", "x", "2")
    assert twice.exit_code == 2


# --- finding -----------------------------------------------------------------------------------------------------


def tell(commands: Commands, workflow: str, now: float, state: str = "done") -> str:
    store = commands.store()
    try:
        story = Story(store, workflow, now)
        story.request(state=state)
        story.leaf(story.root, "count")
        return story.tell()
    finally:
        store.close()


@pytest.fixture
def several(words: Commands) -> list[str]:
    """IDs of requests of two workflows, the newest first."""
    assert words.jobx("apply", str(words.words("others"))).exit_code == 0
    states = ["done", "failed", "running", "done"]
    workflows = ["words", "others", "words", "others"]
    made = [tell(words, workflows[n], 1000.0 + n, states[n]) for n in range(4)]
    return made[::-1]


def listed(commands: Commands, *arguments: str) -> list[str]:
    done = commands.jobx("request", "list", *arguments)
    assert done.exit_code == 0, done.output
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


def test_requests_are_listed_newest_first(words: Commands, several: list[str]) -> None:
    assert listed(words) == several
    assert listed(words, "words") == several[1::2]
    assert listed(words, "--limit", "3") == several[:3]
    assert listed(words, "--state", "done") == [several[0], several[3]]
    assert listed(words, "--state", "done", "--state", "failed", "--limit", "2") == [several[0], several[2]]
    done = words.run(requests.classic_list, "others", "--json")
    assert [one["primary_key"] for one in json.loads(done.stdout)] == several[0::2]


def test_listing_goes_on_beyond_a_page(words: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_PAGE", 2)
    made = [tell(words, "words", 1000.0 + n) for n in range(7)]
    assert listed(words) == made[::-1]


def test_a_request_is_found_without_its_workflow(words: Commands, several: list[str]) -> None:
    for request_id in several:
        shown = json.loads(words.jobx("request", "get", request_id).stdout)
        assert shown["primary_key"] == request_id
    assert several[0] in words.jobx("request", "get", "last").stdout
    assert several[1] in words.jobx("request", "get", "words", "last").stdout
    assert several[1] in words.jobx("request", "tree", f"{several[1]}.0").stdout
    assert "none" not in words.jobx("request", "get", "words", several[1]).stderr


def test_what_is_not_found_says_why(words: Commands, several: list[str]) -> None:
    store = words.store()
    removed = ids.new_request_id("words")
    store.close()
    for where, reason in (
        (["words", removed], "retention is over"),
        ([removed], "retention is over"),
        (["words", "abc"], "is it mistyped?"),
        (["é/ü"], "is it mistyped?"),
        (["others", several[1]], "others"),
        (["nothere", "last"], "There are: others, words"),
    ):
        done = words.jobx("request", "get", *where)
        assert (done.exit_code, done.stdout) == (1, "")
        assert reason in done.stderr
    assert words.jobx("request", "get").exit_code == 2
    assert words.jobx("request", "get", "a", "b", "c").exit_code == 2


def test_last_of_nothing_says_what_to_do(words: Commands) -> None:
    done = words.jobx("request", "tree", "last")
    assert done.exit_code == 1
    assert "POST to a job" in done.stderr


# --- showing and cancelling --------------------------------------------------------------------------------------


def test_the_tree_is_text_json_or_flat(words: Commands, several: list[str]) -> None:
    shown = words.jobx("request", "tree", "last").stdout.splitlines()
    assert shown[1:] == ["└── count map done  10 ms", "    └── count reduce done  10 ms"]
    assert json.loads(words.jobx("request", "tree", "last", "--json").stdout)["total"] == 2
    flat = words.run(invocations.flat_list, "others", "last").stdout
    assert flat == words.jobx("request", "tree", "others", "last", "--flat").stdout
    assert [line.split()[0] for line in flat.splitlines()] == [f"{several[0]}.0", f"{several[0]}.0.r0"]


def test_an_invocation_is_printed(words: Commands, several: list[str]) -> None:
    shown = words.printed(invocations.get, "words", f"{several[1]}.0.r0")
    assert (shown["entity_name"], shown["data"]["direction"]) == ("invocation", "reduce")
    assert "nobody has begun" in words.said(invocations.get, "words", f"{several[1]}.0.abcdefgh-7")
    assert "mistyped" in words.said(invocations.get, "words", "abc.0")


def test_a_drawing_goes_to_a_file_or_on(words: Commands, several: list[str], tmp_path: Path) -> None:
    dot = words.run(invocations.draw, "words", "last", "--format", "dot")
    assert dot.stdout.startswith(f'digraph "{several[1]}" {{')
    target = tmp_path / "request.dot"
    done = words.run(invocations.draw, "words", "last", "--format", "dot", "-o", str(target))
    assert (done.exit_code, done.stdout) == (0, "")
    assert target.read_text() == dot.stdout
    refused = words.run(invocations.draw, "words", "last", "--format", "dot", "-o", str(tmp_path))
    assert refused.exit_code == 1
    assert "cannot be written" in refused.stderr


def test_a_missing_graphviz_says_what_to_install(words: Commands, several: list[str], tmp_path: Path) -> None:
    done = words.run(invocations.draw, "words", "last", PATH=str(tmp_path))
    assert done.exit_code == 1
    assert "apt-get install graphviz" in done.stderr


def test_cancelling_ends_a_running_request_once(words: Commands) -> None:
    request_id = create(words)["primary_key"]
    done = words.jobx("request", "cancel", "last")
    assert json.loads(done.stdout)["data"]["state"] == "cancelled"
    assert done.stderr == ""
    again = words.run(requests.classic_cancel, "words", request_id)
    assert again.exit_code == 0
    assert "is cancelled" in again.stderr
    store = words.store()
    assert store.get([keys.live("words", request_id)]) == [None]
    store.close()


# --- help --------------------------------------------------------------------------------------------------------


def all_commands() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = [("jobx", main)]
    for name, command in main.commands.items():
        found.append((f"jobx {name}", command))
        if isinstance(command, click.Group):
            found += [(f"jobx {name} {inner}", one) for inner, one in command.commands.items()]
    return found


@pytest.mark.parametrize(("name", "command"), all_commands(), ids=lambda one: one if isinstance(one, str) else "")
def test_help_shows_an_example_of_the_command(commands: Commands, name: str, command: click.Command) -> None:
    done = commands.run(command, "--help")
    assert done.exit_code == 0
    example = done.stdout.partition("\nExample:\n")[2]
    assert name in example


def test_what_was_made_by_hand_is_brought_in_once_though_it_runs_alike(commands: Commands) -> None:
    commands.printed(workflows.create, "words", "")
    commands.printed(handlers.create, "words", "add", "Adds up", "python", "reducer", stdin=ADD)
    directory = str(commands.words())
    assert "words: update handler add" in commands.jobx("apply", directory).stdout
    assert commands.jobx("apply", directory).stdout == "words: nothing to change\n"


def test_a_data_directory_that_is_mistyped_is_told_and_not_made(words: Commands, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    for command in (("request", "list"), ("request", "cancel", "last"), ("fs", "ls", "words"), ("token", "list")):
        done = words.jobx(*command, "--data-dir", str(wrong))
        assert (done.exit_code, done.stdout) == (1, ""), command
        assert f"nothing of JobX in {wrong}" in done.stderr
    assert not wrong.exists()
    assert words.jobx("token", "create", "me", "--scope", "read", "--data-dir", str(wrong)).exit_code == 0


def test_what_to_look_at_next_is_looked_for_in_the_same_data_directory(words: Commands) -> None:
    request_id = create(words)["primary_key"]
    where = str(words.directory / "data")
    words.jobx("request", "cancel", request_id)
    told = words.jobx("request", "why", request_id, "--data-dir", where).stderr
    assert f"See: MR_DATA_DIR={where} jobx request tree words {request_id}" in told
