"""``jobx completion``: what a shell needs to complete names and options, of ``jobx`` and of the classic commands."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mr.cli.edge import Command, say

if TYPE_CHECKING:
    from click.shell_completion import ShellComplete

_DISTRIBUTION = "jobx-mapreduce"
_WHERE = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc, after compinit",
    "fish": "~/.config/fish/config.fish",
}


def programs() -> list[str]:
    """What the distribution installs, ``jobx`` first."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        scripts = distribution(_DISTRIBUTION).entry_points.select(group="console_scripts")
    except PackageNotFoundError:
        return ["jobx"]
    return sorted({script.name for script in scripts}, key=lambda name: (name != "jobx", name))


@click.command(cls=Command, example='$ eval "$(jobx completion bash)"\n$ jobx completion fish | source')
@click.argument("shell", type=click.Choice(list(_WHERE)))
def completion(shell: str) -> None:
    """Print what has a shell complete jobx and the classic commands.

    Put it where the shell begins: in bash, eval "$(jobx completion bash)" in ~/.bashrc.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    for name in programs():
        variable = f"_{name.replace('-', '_')}_COMPLETE".upper()
        click.echo(_source(found, name, variable))
    if os.isatty(1):
        say(f"This is for {_WHERE[shell]}: see jobx completion --help.")


def _source(found: type[ShellComplete], name: str, variable: str) -> str:
    shell = found(click.Command(name), {}, name, variable)
    # As Click's own `source`, without starting a bash for each program to ask how old it is.
    return shell.source_template % shell.source_vars()
