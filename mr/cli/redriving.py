"""``jobx request redrive`` and ``mr_kv_request_redrive``: running again just what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mr.cli import output
from mr.cli.edge import Command, platform, say
from mr.cli.requests import check_where, find, find_where, front
from mr.model.entities import Request

if TYPE_CHECKING:
    from mr.engine.shell import Platform


def _redrive(opened: Platform, request: Request, is_same_manifest: bool) -> None:
    again = front(opened).redrive(request, is_same_manifest)
    if again.is_done:
        say(f"The request {again.request_id} has ended again already: it is {again.state}.")
    output.entity("request", again.request_id, again)


def _same_manifest(command: Any) -> Any:
    option = click.option(
        "--same-manifest",
        is_flag=True,
        help="Run on the handlers and steps that the request ran on, not on those that the workflow has now.",
    )
    return option(command)


@click.command(
    "redrive", cls=Command, example="$ jobx request redrive last\n$ jobx request redrive words last --same-manifest"
)
@click.argument("where", nargs=-1, required=True, metavar="[WORKFLOW] ID|last", callback=check_where)
@_same_manifest
def redrive_request(where: tuple[str, ...], same_manifest: bool) -> None:
    """Run again what failed in an ended request, or was not done, and reduce again what is above it.

    What was done well is kept. It prints the request, which then runs; `jobx request watch` follows it.
    """
    opened = platform()
    _redrive(opened, find_where(opened.store, where), same_manifest)


@click.command("redrive", cls=Command, example="$ mr_kv_request_redrive words last")
@click.argument("workflow")
@click.argument("request_id")
@_same_manifest
def classic_redrive(workflow: str, request_id: str, same_manifest: bool) -> None:
    """Run again what failed in an ended request, or was not done; `last` is the newest of the workflow.

    What was done well is kept, and what is above what failed is reduced again.
    """
    opened = platform()
    _redrive(opened, find(opened.store, workflow, request_id), same_manifest)
