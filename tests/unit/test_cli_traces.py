"""The commands that show a request's invocations, and why it failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import Commands
from trace_requests import NONCE, Story, fail_child, shop

from mr.cli import invocations, traces
from mr.config import Config
from mr.kv.sqlite import SqliteStore
from mr.model import keys
from mr.model.records import Dataset

WORKFLOW = "words"


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    commands = Commands(tmp_path)
    assert commands.jobx("apply", str(commands.words())).exit_code == 0
    return commands


@pytest.fixture
def story(commands: Commands) -> Iterator[Story]:
    store = SqliteStore(Config.read(commands.environ).kv_path)
    yield Story(store, WORKFLOW)
    store.close()


def test_why_tells_the_path_the_line_and_the_output_in_one_command(commands: Commands, story: Story) -> None:
    shop(story, 40)
    child = fail_child(story, 17, stdout="half way\n", stderr="oh\n")
    story.tell()
    for where in (["last"], [WORKFLOW, story.id], [child]):
        done = commands.jobx("request", "why", *where)
        assert (done.exit_code, done.stderr) == (0, "")
        for part in (
            "regions map → region map 17 (one of 40)",
            "ZeroDivisionError: division by zero",
            "shop/orders.py:5\n                yield region, amount / 0\n",
            "half way",
            child,
        ):
            assert part in done.stdout
    told = json.loads(commands.jobx("request", "why", "last", "--json").stdout)
    assert (told["place"], told["source_line"]) == ("shop/orders.py:5", "yield region, amount / 0")
    assert told["path"][1]["siblings"] == 40


def test_why_of_what_did_not_fail_exits_with_1(commands: Commands, story: Story) -> None:
    shop(story)
    story.tell()
    done = commands.jobx("request", "why", "last")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"Nothing failed: the request {story.id} is done" in done.stderr


def test_the_tree_of_a_failed_request_begins_with_why(commands: Commands, story: Story) -> None:
    shop(story, 40)
    fail_child(story, 17)
    story.tell()
    lines = commands.jobx("request", "tree", "last").stdout.splitlines()
    assert lines[1] == "path     regions map → region map 17 (one of 40)"
    assert lines.index("invocations") < lines.index("└── regions map done  1.50 s, 40 children")


def test_there_are_colours_only_on_a_terminal_of_who_wants_them(
    commands: Commands, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop(story)
    story.tell()
    assert "\x1b[" not in commands.jobx("request", "tree", "last", FORCE_COLOR="1").stdout
    monkeypatch.setattr(traces, "is_terminal", lambda: True)
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "40", "NO_COLOR": ""}
    shown = commands.jobx("request", "tree", "last", **terminal).stdout
    assert "\x1b[32mdone" in shown
    assert "\x1b[" not in commands.jobx("request", "tree", "last", **{**terminal, "NO_COLOR": "1"}).stdout


def test_data_is_shown_on_demand_and_whole_where_that_is_said(commands: Commands, story: Story) -> None:
    shop(story)
    story.dataset(keys.chunk(WORKFLOW, story.id, story.root, NONCE, 0), [["north", 1], ["south", "s" * 2000]])
    story.tell()
    child = story.child(story.root, 1)
    assert "north" not in commands.jobx("request", "tree", "last").stdout
    cut = commands.jobx("request", "tree", "last", "--data").stdout
    assert '["north", 1]' in cut
    assert "s" * 2000 not in cut
    command = f"jobx request tree {WORKFLOW} {child} --data --whole"
    assert command in cut
    whole = commands.jobx(*command.split()[1:]).stdout
    assert "s" * 2000 in whole
    assert "north" not in whole
    assert cut == commands.run(invocations.graph, WORKFLOW, "last").stdout
    as_json = json.loads(commands.run(invocations.graph, WORKFLOW, "last", "--json").stdout)
    assert as_json["root"]["groups"][0]["nodes"][0]["data"]["arguments"]["pairs"] == [["north", 1]]


def test_data_in_the_shared_files_is_shown_and_gone_files_are_none(commands: Commands, story: Story) -> None:
    shop(story)
    name = f"{WORKFLOW}/{story.id}/some.arguments"
    for slot, file in ((0, name), (1, "gone/file")):
        key = keys.dataset(WORKFLOW, story.id, story.child(story.root, slot), "post_combine")
        story.records[key] = Dataset(count=3, file=file, bytes=30)
    story.tell()
    spilled = Config.read(commands.environ).fs_path / name
    spilled.parent.mkdir(parents=True)
    spilled.write_bytes(b'[["a", 1], ["b", 2]]\n[["c", 3]]\n')
    shown = commands.jobx("request", "tree", "last", "--data")
    assert shown.exit_code == 0
    for pair in ('["a", 1]', '["c", 3]', "… and 3 more pairs"):
        assert pair in shown.stdout


def test_options_that_exclude_each_other_are_refused(commands: Commands) -> None:
    for options in (["--flat", "--json"], ["--flat", "--data"], ["--whole"]):
        done = commands.jobx("request", "tree", "last", *options)
        assert (done.exit_code, done.stdout) == (2, "")
