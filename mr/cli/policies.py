"""Options that say what becomes of a request's end: who gets the result, who is told, how long it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mr.errors import InvalidInput
from mr.model.deliveries import check_targets, check_writer
from mr.web.posts import MAX_RETENTION_S


def _checked(check: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value in (None, ()):
            return value
        try:
            return check(value)
        except InvalidInput as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


def _check_allowed(value: Any) -> Any:
    from mr.outgoing.guard import check_allowed

    return check_allowed(value)


def writer(otherwise: str) -> Callable[[Any], Any]:
    return click.option(
        "--writer",
        metavar="W",
        callback=_checked(check_writer),
        help="What delivers the result: inline, file, email, http, file:PATH, mailto:NAME@HOST or https://HOST/PATH; "
        f"{otherwise}, if not given.",
    )


def notify(beside: str) -> Callable[[Any], Any]:
    return click.option(
        "--notify",
        metavar="TARGET",
        multiple=True,
        callback=_checked(check_targets),
        help="Who is told of a request's end: https://HOST/PATH or mailto:NAME@HOST; of one kind of end alone, as in "
        f"failed:mailto:NAME@HOST. May be repeated{beside}.",
    )


def retention(otherwise: str) -> Callable[[Any], Any]:
    return click.option(
        "--retention",
        "retention_s",
        type=click.IntRange(-1, MAX_RETENTION_S),
        metavar="S",
        help=f"How many seconds an ended request is kept, 60 at least; -1: for ever. {otherwise}",
    )


outgoing_allow = click.option(
    "--outgoing-allow",
    metavar="HOST",
    multiple=True,
    callback=_checked(_check_allowed),
    help="A host, host:port or network that results and notifications may go to although it is private, or without "
    "TLS. May be repeated.",
)
