"""The classic commands for workflows, handlers, steps and jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_runs import ADD, SPLIT, Commands

from mr import app
from mr.cli import handlers, jobs, steps, workflows
from mr.config import Config
from mr.errors import StoreUnavailable
from mr.kv.base import Store


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@pytest.fixture
def words(commands: Commands) -> Commands:
    commands.create_words()
    return commands


def test_created_entities_are_printed_and_read_back_alike(words: Commands) -> None:
    created = words.run(jobs.create, "words", "other", "Also", "count", "--retention", "60", "--writer", "inline")
    assert json.loads(created.stdout) == {
        "entity_name": "job",
        "primary_key": "other",
        "data": {
            "job_name": "other",
            "workflow_name": "words",
            "description": "Also",
            "initial_step_name": "count",
            "writer": "inline",
            "retention_s": 60,
        },
    }
    assert words.printed(jobs.get, "words", "other") == json.loads(created.stdout)
    assert words.printed(workflows.get, "words")["data"]["description"] == "Counts words"
    assert words.printed(handlers.get, "words", "split")["data"]["source_code"] == SPLIT
    assert words.run(handlers.get, "words", "split", "--source").stdout == SPLIT


def test_a_step_takes_its_policies(words: Commands) -> None:
    policies = ("--timeout", "1.5", "--max-attempts", "3", "--partitions", "4", "--max-failed-children", "10%")
    created = words.printed(steps.create, "words", "other", "d", "split", "add", "add", *policies)["data"]
    assert created["combine_handler_name"] == "add"
    assert (created["timeout_s"], created["max_attempts"], created["partitions"]) == (1.5, 3, 4)
    assert created["max_failed_children"] == "10%"
    plain = words.printed(steps.get, "words", "count")["data"]
    assert (plain["timeout_s"], plain["max_attempts"], plain["partitions"]) == (0, 1, 1)
    assert plain["max_failed_children"] == 0


@pytest.mark.parametrize("value", ["101%", "-1", "some", "1.5"])
def test_a_tolerance_that_is_none_is_usage(words: Commands, value: str) -> None:
    arguments = ("words", "x", "", "split", "", "add", f"--max-failed-children={value}")
    assert words.run(steps.create, *arguments).exit_code == 2


def test_creating_what_is_there_unchanged_says_so(words: Commands) -> None:
    for command, arguments, stdin in (
        (workflows.create, ("words", "Counts words"), ""),
        (handlers.create, ("words", "add", "", "python", "reducer"), ADD),
        (steps.create, ("words", "count", "", "split", "", "add"), ""),
        (jobs.create, ("words", "wordcount", "", "count"), ""),
    ):
        again = words.run(command, *arguments, stdin=stdin)
        assert again.exit_code == 0
        assert "is there already, unchanged" in again.stderr
        assert set(json.loads(again.stdout)) == {"entity_name", "primary_key", "data"}


def test_creating_what_is_there_with_other_content_says_how_to_change_it(words: Commands) -> None:
    said = words.said(jobs.create, "words", "wordcount", "Another", "count")
    assert "with another description" in said
    assert "mr_kv_job_delete words wordcount" in said
    said = words.said(steps.create, "words", "count", "", "split", "add", "add")
    assert "combine_handler_name" in said
    assert "mr_kv_step_set_handler words count" in said
    said = words.said(handlers.create, "words", "add", "", "python", "reducer", stdin=ADD.replace("sum", "max"))
    assert "with another source_code" in said
    assert "mr_kv_handler_store words" in said
    assert "exists" in words.said(workflows.create, "words", "Another")


def test_what_is_referred_to_is_not_deleted(words: Commands) -> None:
    assert "step count" in words.said(handlers.delete, "words", "add")
    assert "job wordcount" in words.said(steps.delete, "words", "count")
    said = words.said(workflows.delete, "words")
    for referrer in ("job wordcount", "step count", "handler add", "handler split"):
        assert referrer in said


def test_a_workflow_is_deleted_from_the_top_down(words: Commands) -> None:
    for command, arguments in (
        (jobs.delete, ("words", "wordcount")),
        (steps.delete, ("words", "count")),
        (handlers.delete, ("words", "add")),
        (handlers.delete, ("words", "split")),
        (workflows.delete, ("words",)),
    ):
        done = words.run(command, *arguments)
        assert (done.exit_code, done.stdout) == (0, "")
        assert "is deleted" in done.stderr
    assert words.run(workflows.list_all).stdout == ""


def test_an_error_says_what_where_and_what_to_do(words: Commands) -> None:
    said = words.said(jobs.get, "words", "wordcont")
    assert said.count("\n") == 1
    assert "'wordcont'" in said
    assert "There are: wordcount" in said
    assert f"sqlite://{words.directory}/data/kv.sqlite" in said
    assert "There are: words" in words.said(steps.list_all, "wrds")


def test_where_it_looked_is_told_without_the_password(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Config) -> Store:
        raise StoreUnavailable("Nobody answers. Is it started?")

    monkeypatch.setattr(app, "open_store", refuse)
    environ = {"MR_KV_URL": "etcd://me:hidden@127.0.0.1:1", "MR_QUEUE_URL": "nsq://127.0.0.1:1"}
    done = commands.run(workflows.list_all, **environ)
    assert done.exit_code == 1
    assert done.stderr == ("Error: Nobody answers. Is it started? (Looked in the store etcd://me:***@127.0.0.1:1.)\n")


def test_an_unknown_variable_is_a_warning_beside_the_output(words: Commands) -> None:
    done = words.run(workflows.list_all, MR_RETENTON_S="1")
    assert done.exit_code == 0
    assert done.stdout == "words\tCounts words\n"
    assert "Did you mean MR_RETENTION_S?" in done.stderr


def test_a_bad_setting_ends_the_command(commands: Commands) -> None:
    done = commands.run(workflows.list_all, MR_RUNNERS="many")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "MR_RUNNERS is 'many'" in done.stderr


def test_bad_names_and_sources_are_refused(words: Commands) -> None:
    assert "characters other than" in words.said(workflows.create, "a/b", "")
    assert "characters other than" in words.said(jobs.create, "words", "a b", "", "count")
    assert "never closed" in words.said(handlers.create, "words", "x", "", "python", "mapper", stdin="def f(")
    assert "no source on standard input" in words.said(handlers.create, "words", "x", "", "python", "mapper")
    assert "'nothere'" in words.said(jobs.create, "words", "x", "", "nothere")
    assert words.run(handlers.create, "words", "x", "", "python", "mapr", stdin="x").exit_code == 2


def test_lists_are_columns_between_tabs_in_a_pipe_and_json_on_demand(words: Commands) -> None:
    assert words.run(steps.list_all, "words").stdout == "count\tsplit\t\tadd\t\n"
    assert words.run(jobs.list_all, "words").stdout == "wordcount\tcount\t\n"
    rows = [line.split("\t")[:4] for line in words.run(handlers.list_all, "words").stdout.splitlines()]
    assert rows == [["add", "reducer", "python", "none"], ["split", "mapper", "python", "none"]]
    [shown] = words.printed(steps.list_all, "words", "--json")
    assert shown == words.printed(steps.get, "words", "count")


def test_a_step_gets_other_handlers(words: Commands) -> None:
    words.printed(handlers.create, "words", "most", "", "python", "reducer", stdin=ADD.replace("sum", "max"))
    changed = words.printed(steps.set_handler, "words", "count", "-r", "most", "-c", "add")["data"]
    assert (changed["reduce_handler_name"], changed["combine_handler_name"]) == ("most", "add")
    assert words.printed(steps.set_handler, "words", "count", "-c", "")["data"]["combine_handler_name"] == ""
    assert words.printed(steps.get, "words", "count")["data"]["reduce_handler_name"] == "most"
    assert "is a reducer" in words.said(steps.set_handler, "words", "count", "-m", "most")
    assert "'nothere'" in words.said(steps.set_handler, "words", "count", "-m", "nothere")
    assert "There are: count" in words.said(steps.set_handler, "words", "cont", "-m", "split")
    assert words.run(steps.set_handler, "words", "count").exit_code == 2


def test_handlers_are_replaced_in_every_step(words: Commands) -> None:
    words.printed(handlers.create, "words", "most", "", "python", "reducer", stdin=ADD.replace("sum", "max"))
    words.printed(steps.create, "words", "again", "", "split", "add", "add")
    simulated = words.run(steps.update_handlers, "words", "reducer", "add", "most", "-s")
    assert simulated.stdout.splitlines() == ["again: reducer add -> most", "count: reducer add -> most"]
    assert words.printed(steps.get, "words", "again")["data"]["reduce_handler_name"] == "add"
    assert words.run(steps.update_handlers, "words", "reducer", "add", "most").exit_code == 0
    again = words.printed(steps.get, "words", "again")["data"]
    assert (again["reduce_handler_name"], again["combine_handler_name"]) == ("most", "add")


# --- mr_kv_handler_store -----------------------------------------------------------------------------------------


@pytest.fixture
def directory(words: Commands) -> Path:
    """As a classic one: handlers alone."""
    found = words.words("files")
    (found / "jobs.yaml").unlink()
    return found


def stored(words: Commands, directory: Path, *options: str) -> list[str]:
    done = words.run(handlers.store_directory, "words", str(directory), *options)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_a_directory_becomes_the_handlers(words: Commands, directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "deep" / "most.py").write_text(ADD)
    (directory / "add.py").write_text(ADD.replace("sum", "max"))
    words.printed(handlers.create, "words", "gone", "", "python", "reducer", stdin=ADD)
    lines = stored(words, directory)
    assert lines == ["new deep_most", "updated add", "deleted gone", "1 new, 1 updated, 1 deleted, 1 unchanged"]
    assert "max" in words.run(handlers.get, "words", "add", "--source").stdout
    assert stored(words, directory) == ["0 new, 0 updated, 0 deleted, 3 unchanged"]
    assert stored(words, directory, "-f")[-1] == "0 new, 3 updated, 0 deleted, 0 unchanged"


def test_simulating_changes_nothing(words: Commands, directory: Path) -> None:
    (directory / "add.py").write_text(ADD.replace("sum", "max"))
    assert stored(words, directory, "--simulate_only")[0] == "updated add"
    assert "sum" in words.run(handlers.get, "words", "add", "--source").stdout


def test_a_handler_without_a_file_that_is_referred_to_is_named_and_kept(words: Commands, directory: Path) -> None:
    (directory / "add.py").unlink()
    done = words.run(handlers.store_directory, "words", str(directory))
    assert done.exit_code == 0
    assert "add (used by step count)" in done.stderr
    assert words.run(handlers.get, "words", "add", "--source").stdout == ADD


def test_skipped_names_are_told(words: Commands, directory: Path) -> None:
    (directory / "_helper.py").write_text("x")
    (directory / "notes.txt").write_text("x")
    done = words.run(handlers.store_directory, "words", str(directory))
    assert done.stderr.splitlines() == ["Skipped: _helper.py", "Skipped: notes.txt"]


def test_all_problems_are_told_and_nothing_is_stored(words: Commands, directory: Path) -> None:
    (directory / "add.py").write_text(ADD.replace("sum", "max"))
    (directory / "one.py").write_text("def f(")
    (directory / "two.py").write_text('"""\n**\nhandler_type: nothing\n"""\nyield 1\n')
    said = words.said(handlers.store_directory, "words", str(directory))
    assert "one.py:1:" in said
    assert "two.py:3:" in said
    assert "2 problems" in said
    assert words.run(handlers.get, "words", "add", "--source").stdout == ADD


def test_a_workflow_that_is_not_there_is_not_made(words: Commands, directory: Path) -> None:
    assert "'others'" in words.said(handlers.store_directory, "others", str(directory))
