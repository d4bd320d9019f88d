"""The one edge between commands and people: where errors become a message and an exit code.

0: done. 1: the platform said no; one message on standard error says what, where it looked and what to do. 2: usage.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mr.config import Config, warnings
from mr.errors import InvalidConfig, InvalidHandler, InvalidName, JobxError
from mr.urls import masked_url

if TYPE_CHECKING:
    from mr.engine.shell import Platform
    from mr.kv.base import Store

_CONFIG = "mr.config"
_DATA_DIR = "mr.data_dir"
_LOOKED_IN = "mr.looked_in"

_SETTINGS = {"help_option_names": ["-h", "--help"]}


class _Example(click.Command):
    """Shows an example at the end of its help. With ``data_dir`` it takes the option of that name."""

    def __init__(self, *args: Any, example: str = "", data_dir: bool = False, **options: Any) -> None:
        options.setdefault("context_settings", _SETTINGS)
        super().__init__(*args, **options)
        self.example = example
        self.has_data_dir = False
        if data_dir:
            self.take_data_dir()

    def take_data_dir(self) -> None:
        if not self.has_data_dir:
            self.has_data_dir = True
            self.params.append(_data_dir_option())

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.splitlines():
                    formatter.write(f"  {line}\n")


class Command(_Example):
    """A command whose errors are told by the edge."""

    def invoke(self, ctx: click.Context) -> Any:
        with told(ctx):
            return super().invoke(ctx)


class Group(_Example, click.Group):
    """Commands under one name. With ``data_dir`` each of them takes that option, too."""

    command_class = Command

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if self.has_data_dir and isinstance(cmd, _Example):
            cmd.take_data_dir()
        super().add_command(cmd, name)


def _data_dir_option() -> click.Option:
    def hold(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.meta[_DATA_DIR] = os.path.abspath(value)

    text = "Where everything is kept, as with `jobx dev --data-dir`.  [default: MR_DATA_DIR]"
    return click.Option(["--data-dir"], metavar="D", help=text, callback=hold, expose_value=False)


@contextmanager
def told(ctx: click.Context) -> Iterator[None]:
    """Has an error of the platform end the program with a message and 1."""
    try:
        yield
    except JobxError as error:
        say(message_of(error, ctx.meta.get(_LOOKED_IN)))
        raise click.exceptions.Exit(1) from None


def message_of(error: JobxError, looked_in: str | None = None) -> str:
    text = str(error)
    if isinstance(error, InvalidHandler):
        number = len(error.problems)
        return f"{text}\nThere {'is a problem' if number == 1 else f'are {number} problems'}: nothing was changed."
    if looked_in is None or isinstance(error, InvalidConfig | InvalidName):
        return f"Error: {text}"
    return f"Error: {text} (Looked in {looked_in}.)"


def say(text: str) -> None:
    """A message for whoever looks on, beside the output."""
    # What handlers and names hold is not for the terminal to obey.
    plain = "".join(char if char.isprintable() or char == "\n" else " " for char in text)
    click.echo(plain, err=True)


def config(*, is_quiet: bool = False) -> Config:
    """The configuration of this program; the first time, unless ``is_quiet``, warnings are told.

    :raises InvalidConfig: a variable has a value that JobX cannot run with.
    """
    meta = click.get_current_context().meta
    if _CONFIG not in meta:
        if not is_quiet:
            warn(os.environ)
        meta[_CONFIG] = Config.read(environment())
    found: Config = meta[_CONFIG]
    return found


def environment() -> dict[str, str]:
    """The environment of this program, with what its options say instead."""
    given = dict(os.environ)
    context = click.get_current_context(silent=True)
    if context is not None and _DATA_DIR in context.meta:
        given["MR_DATA_DIR"] = context.meta[_DATA_DIR]
    return given


def warn(environ: Any) -> None:
    for text in warnings(environ):
        say(f"Warning: {text}")


def looks_in(found: Config) -> None:
    """What goes wrong from here on has to do with the store of that configuration."""
    click.get_current_context().meta[_LOOKED_IN] = f"the store {masked_url(found.kv_url)}"


def looks_in_files(workflow: str, found: Config) -> None:
    """What goes wrong from here on has to do with a workflow's files."""
    place = f"the files of {workflow}, below {masked_url(found.fs_url)}"
    click.get_current_context().meta[_LOOKED_IN] = place


def check_data_dir(found: Config) -> None:
    """
    :raises InvalidConfig: the option names a directory in which nothing was ever kept.
    """
    given = click.get_current_context().meta.get(_DATA_DIR)
    if given is not None and found.is_embedded and not found.kv_path.exists():
        raise InvalidConfig(f"There is nothing of JobX in {given}. Give the --data-dir of `jobx dev`.", "MR_DATA_DIR")


def prefix() -> str:
    """What stands before commands that are to look where this one does."""
    given = click.get_current_context().meta.get(_DATA_DIR)
    return "" if given is None else f"MR_DATA_DIR={shlex.quote(given)} "


def store(*, creates: bool = False) -> Store:
    """The store, closed when the command ends. Only one that ``creates`` begins a new one with --data-dir.

    :raises InvalidConfig, StoreUnavailable: it cannot be opened.
    """
    from mr import app

    found = config()
    looks_in(found)
    if not creates:
        check_data_dir(found)
    opened = app.open_store(found)
    click.get_current_context().call_on_close(opened.close)
    return opened


def platform() -> Platform:
    """Store, queue and files, closed when the command ends.

    :raises InvalidConfig, StoreUnavailable, QueueUnavailable: they cannot be opened.
    """
    from mr import app

    found = config()
    looks_in(found)
    check_data_dir(found)
    opened = app.open_platform(found)
    click.get_current_context().call_on_close(opened.close)
    return opened


def is_terminal() -> bool:
    return sys.stdout.isatty()
