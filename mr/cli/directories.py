"""``jobx apply`` and ``jobx diff``: a directory as a workflow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mr.cli import deliveries, output
from mr.cli.edge import Command, say, store
from mr.errors import InvalidHandler
from mr.model import catalog
from mr.model.catalog import Difference, Draft

if TYPE_CHECKING:
    from mr.handlers.files import Directory
    from mr.kv.base import Store


def read(directory: str, workflow: str | None = None) -> Directory:
    """What a directory says. Its problems name files by paths that an editor opens from here.

    :raises InvalidInput: there is no such directory.
    :raises InvalidHandler: with all problems of all files.
    """
    from mr.handlers.files import read_directory

    try:
        return read_directory(directory, workflow)
    except InvalidHandler as error:
        place = _from_here(directory)
        raise InvalidHandler([_placed(place, problem) for problem in error.problems]) from None


def _from_here(directory: str) -> str:
    """Relative where the directory is below the current one."""
    path = os.path.relpath(directory)
    return os.path.abspath(directory) if path.split(os.sep)[0] == os.pardir else path


def _placed(place: str, problem: str) -> str:
    if place == os.curdir:
        return problem
    # What has to do with the directory as a whole is told of ".".
    return f"{place}{problem[1:]}" if problem.startswith(".:") else os.path.join(place, problem)


def bring_in(opened: Store, found: Directory, *, dry: bool = False) -> list[Difference]:
    """Makes the store equal to a directory, whole or not at all; answers what that changes."""

    def edit(draft: Draft) -> None:
        draft.handlers, draft.steps, draft.jobs = dict(found.handlers), dict(found.steps), dict(found.jobs)
        # What an operator has set stays, where the directory says nothing of it.
        draft.limits = draft.limits if found.limits is None else found.limits
        draft.policies = draft.policies._replace(**found.policies)

    return catalog.change(opened, found.workflow, edit, create=True, dry=dry)


def lines(workflow: str, differences: list[Difference]) -> list[str]:
    return [
        f"{workflow}: {action} {kind}{'' if kind == 'workflow' else f' {name}'}" for action, kind, name in differences
    ]


def _run(directory: str, as_json: bool, dry: bool) -> None:
    found = read(directory)
    opened = store(creates=True)
    differences = bring_in(opened, found, dry=dry)
    for path in found.skipped:
        say(f"Skipped: {path}")
    if differences and not dry:
        deliveries.warn(opened, found.workflow)
    if as_json:
        output.document({"workflow": found.workflow, "changes": [change._asdict() for change in differences]})
        return
    for line in lines(found.workflow, differences):
        click.echo(line)
    if not differences:
        click.echo(f"{found.workflow}: nothing to change")


@click.command(cls=Command, data_dir=True, example="$ jobx apply words")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
def apply(directory: str, as_json: bool) -> None:
    """Make a workflow in the store equal to a directory.

    It is changed whole or, where anything in the directory has a problem, not at all.
    """
    _run(directory, as_json, dry=False)


@click.command(cls=Command, data_dir=True, example="$ jobx diff words")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
def diff(directory: str, as_json: bool) -> None:
    """Say what `jobx apply` would change."""
    _run(directory, as_json, dry=True)
