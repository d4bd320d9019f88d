"""docs/reference.rst is what the commands say of themselves, and they say enough."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

REPOSITORY = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    path = REPOSITORY / "scripts" / "reference"
    spec = spec_from_loader("reference", SourceFileLoader("reference", str(path)))
    assert spec is not None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


reference = load()
COMMANDS = {entry.name: entry.command for entry in reference.entries()}


def test_the_page_is_what_the_commands_say() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "Run scripts/reference."


def test_every_installed_program_is_on_the_page() -> None:
    assert len(reference.classic()) > 35
    assert reference.classic().keys() <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_tells_what_it_does_and_shows_an_example(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert getattr(command, "example", "").startswith("$ ")
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_of_its_command_and_can_be_read_by_it(name: str) -> None:
    program, *parts = name.split()
    assert program in COMMANDS[name].example
    assert " ".join(parts) in COMMANDS[name].example


def test_text_between_backticks_is_literal_and_nothing_else_is_markup() -> None:
    assert reference.rst("`a_b*` is *not* a_ or a_b|c, MR_...") == r"``a_b*`` is \*not\* a\_ or a_b\|c, MR\_..."


def test_what_is_not_given_is_told_of_an_option() -> None:
    option = click.Option(["-n", "--number"], type=int, default=3, show_default=True, help="How many.")
    assert (reference.option_line(option), reference.option_text(option)) == (
        "-n, --number INTEGER",
        "How many. Not given: 3.",
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_no_error_and_what_cannot_be_understood_exits_with_2(name: str) -> None:
    runner = CliRunner()
    helped = runner.invoke(COMMANDS[name], ["--help"])
    assert (helped.exit_code, helped.stderr) == (0, "")
    wrong = runner.invoke(COMMANDS[name], ["--no-such-option"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
