"""Running commands in this process, on a store of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner, Result

from mr.cli import handlers, jobs, steps, workflows
from mr.cli.main import main
from mr.kv.sqlite import SqliteStore

SPLIT = """def mapper(arguments):
    yield MrConfigureToReturn()
    for key, text in arguments:
        for word in text.split():
            yield word, 1
"""
ADD = """def reducer(results):
    for word, counts in results:
        yield word, sum(counts)
"""
JOBS = "steps: {count: {map: split, reduce: add}}\njobs: {wordcount: {step: count}}\n"


class _OwnStore(SqliteStore):
    def __del__(self) -> None:
        self.close()


class Commands:
    """Commands on the store under one data directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environ = {"MR_DATA_DIR": str(directory / "data")}

    def run(self, command: click.Command, *arguments: str, stdin: str = "", **environ: str) -> Result:
        return CliRunner(env={**self.environ, **environ}).invoke(command, list(arguments), input=stdin)

    def jobx(self, *arguments: str, **environ: str) -> Result:
        return self.run(main, *arguments, **environ)

    def printed(self, command: click.Command, *arguments: str, stdin: str = "") -> Any:
        """The JSON that a command prints which succeeds."""
        done = self.run(command, *arguments, stdin=stdin)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def said(self, command: click.Command, *arguments: str, stdin: str = "") -> str:
        """What a command that is refused says."""
        done = self.run(command, *arguments, stdin=stdin)
        assert done.exit_code == 1, done.output
        assert done.stdout == ""
        return done.stderr

    def store(self) -> SqliteStore:
        """Closed by itself when nobody has it any more."""
        return _OwnStore(self.directory / "data" / "kv.sqlite")

    def words(self, name: str = "words") -> Path:
        """A workflow as a directory."""
        directory = self.directory / name
        directory.mkdir()
        (directory / "jobs.yaml").write_text(JOBS)
        (directory / "split.py").write_text(SPLIT)
        (directory / "add.py").write_text(ADD)
        return directory

    def create_words(self) -> None:
        """The same workflow by the classic commands."""
        for command, arguments, stdin in (
            (workflows.create, ("words", "Counts words"), ""),
            (handlers.create, ("words", "split", "", "python", "mapper", "-a", "arguments", "list"), SPLIT),
            (handlers.create, ("words", "add", "", "python", "reducer"), ADD),
            (steps.create, ("words", "count", "", "split", "", "add"), ""),
            (jobs.create, ("words", "wordcount", "", "count"), ""),
        ):
            self.printed(command, *arguments, stdin=stdin)
