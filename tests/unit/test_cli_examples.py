"""What a command's help shows does what it says, where what the README makes is there."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_runs import SPLIT, Commands
from test_reference import COMMANDS
from trace_requests import BEGAN, Story

from mr.kv.base import Put, Txn
from mr.model import catalog, deliveries
from mr.model.entities import encode

SERVING = {
    "jobx dev",
    "jobx worker",
    "jobx server",
    "mr_start_worker",
    "mr_start_gunicorn_dev",
    "mr_start_gunicorn_prod",
    "mr_http_notification_listen",
}
"""They do not end by themselves: tests that start them run what they show."""

OF_A_SHELL = ("$(", " | ", "--url", "--wait", "request watch", "doctor")
"""Nor can these be run here: they are of several programs, or take somebody who works."""

A_REQUEST = "1hq8y2nk3xw0c5t9e7"
A_TOKEN = "4f1c09"


def examples() -> Iterator[tuple[str, str]]:
    """Names of commands, and lines that their help shows of them."""
    for name, command in COMMANDS.items():
        for line in getattr(command, "example", "").removeprefix("$ ").split("\n$ "):
            # That of a group is shown of its commands; the one of all, of one that serves.
            is_own = name != "jobx" and f"{name} " in f"{line} "
            if is_own and name not in SERVING and not any(part in line for part in OF_A_SHELL):
                yield name, line


EXAMPLES = {line: name for name, line in examples()}


class Prepared:
    """The README's workflow, a failed request that owes something, and what the examples of ``…_create`` make."""

    def __init__(self, directory: Path) -> None:
        self.commands, self.request_id = Commands(directory), ""
        self.jobx("apply", str(self.commands.words()))
        (directory / "names.csv").write_text("ada\n")
        for target in ("names.csv", "data/names.csv", "names", "old/names.csv"):
            self.jobx("fs", "put", "words", str(directory / "names.csv"), target)
        self.token_id = self.jobx("token", "create", "x", "--scope", "read").split("_")[1]
        for line, name in EXAMPLES.items():
            if re.fullmatch("mr_kv_(handler|step|job|workflow)_create", name):
                self.run(name, line)
        store = self.commands.store()
        manifest = catalog.read(store, "words").version
        story = Story(store, "words", BEGAN)
        story.request(state="failed", job_name="wordcount", failed_invocation_id=story.root, manifest=manifest)
        story.failure(story.root, "count")
        self.request_id = story.tell()
        owed = deliveries.Delivery(
            delivery_id=f"{self.request_id}_0_0",
            workflow_name="words",
            request_id=self.request_id,
            kind="notification",
            event="request.failed",
            target="https://hooks.example.com/",
            created_timestamp=BEGAN,
            due_timestamp=BEGAN,
            buried_timestamp=BEGAN,
        )
        store.commit([Txn(puts=(Put(f"dead/words/{self.request_id}/0_0", encode(owed)),))])
        store.close()

    def jobx(self, *arguments: str) -> str:
        done = self.commands.jobx(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    def run(self, name: str, line: str) -> None:
        command, _, source = line.partition(" < ")
        words = command.replace(A_REQUEST, self.request_id).replace(A_TOKEN, self.token_id) if source == "" else command
        environ = dict(re.findall(r"(MR_\w+)=(\S+) ", words))
        arguments = shlex.split(words)[len(environ) :]
        # Each is a program of its own, or all of jobx.
        start = COMMANDS["jobx"] if arguments[0] == "jobx" else COMMANDS[name]
        done = self.commands.run(start, *arguments[1:], stdin=SPLIT if source else "", **environ)
        assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_can_be_run_where_the_readme_was_followed(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    here = tmp_path / "here"
    shutil.copytree(prepared.commands.directory, here)
    monkeypatch.chdir(here)
    own = copy.copy(prepared)
    own.commands = Commands(here)
    own.run(EXAMPLES[line], line)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 60
