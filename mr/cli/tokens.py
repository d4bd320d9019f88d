"""``jobx token …``."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, cast

import click
import msgspec

from mr.cli import output
from mr.cli.edge import Group, say, store
from mr.model import catalog, tokens
from mr.model.records import Scope, Token

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LONGEST_S = 100 * 366 * 86400


def _moment_of(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A duration from now, or a date, as seconds since the epoch."""
    if value is None:
        return None
    now = time.time()
    matched = re.fullmatch(r"([0-9]{1,10})([smhdw])", value)
    if matched:
        seconds = int(matched[1]) * UNITS[matched[2]]
        if not 0 < seconds <= LONGEST_S:
            raise click.BadParameter(f"{value!r} is too short or too long.", ctx, param)
        return now + seconds
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is neither a duration, as 90d or 12h, nor a date, as 2030-01-31.", ctx, param
        ) from None
    at = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if at <= now:
        raise click.BadParameter(f"{value!r} is in the past.", ctx, param)
    return at


@click.group(
    "token",
    cls=Group,
    data_dir=True,
    example='$ jobx token create "CI of the words team" --scope submit --workflow words --expires 90d\n'
    "$ jobx token list\n$ jobx token revoke 4f1c09",
)
def group() -> None:
    """Who may call over HTTP: make, list and revoke API tokens.

    Clients send one as `Authorization: Bearer TOKEN`. Commands need none: they go to the store itself.
    """


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@group.command(
    "create",
    example='$ jobx token create "CI of the words team" --scope submit --workflow words --expires 90d\n'
    '$ TOKEN=$(jobx token create "Dashboard" --scope read)',
)
@click.argument("description")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice(tokens.SCOPES),
    multiple=True,
    required=True,
    help="submit: post to jobs; see and cancel what was posted with this token. read: see every request. admin: "
    "everything. May be repeated.",
)
@click.option(
    "--workflow", "workflows", multiple=True, metavar="NAME", help="Only for that one; may be repeated. Default: all."
)
@click.option(
    "--expires", metavar="WHEN", callback=_moment_of, help="A duration, as 90d or 12h, or a date (UTC), as 2030-01-31."
)
@_json_option
def create(
    description: str, scopes: tuple[str, ...], workflows: tuple[str, ...], expires: float | None, as_json: bool
) -> None:
    """Make a token, and print it. It is shown this once: JobX keeps a digest of it.

    DESCRIPTION says who uses it.
    """
    opened = store(creates=True)
    is_first = not tokens.any_stored(opened)
    token, text = tokens.create(opened, description, cast("Sequence[Scope]", scopes), workflows, expires)
    existing = catalog.workflow_names(opened) if workflows else []
    for name in token.workflow_names:
        if name not in existing:
            say(f"There is no workflow {name!r} yet.")
    if is_first:
        say("This is the first token in the store: from now on everyone who calls over HTTP needs one.")
    if as_json:
        output.document(_shown(token, text))
    else:
        say(f"Token {token.token_id} ({token.description}); this is the only time that it is shown:")
        click.echo(text)


@group.command("list", example="$ jobx token list --json")
@_json_option
def list_all(as_json: bool) -> None:
    """List the tokens in the store, also those that have expired. Their secrets are not known."""
    found = sorted(tokens.stored(store()), key=lambda token: token.created_timestamp)
    if as_json:
        output.document([_shown(token) for token in found])
    else:
        output.table(["token", "description", "scopes", "workflows", "created", "expires"], map(_row, found))


@group.command("revoke", example="$ jobx token revoke 4f1c09")
@click.argument("token", metavar="ID")
@_json_option
def revoke(token: str, as_json: bool) -> None:
    """Have a token let nobody in any more, within a second. The beginning of its ID is enough, if no other has it."""
    opened = store()
    found = tokens.find(opened, token)
    tokens.revoke(opened, found)
    say(f"The token {found.token_id} ({found.description}) is revoked.")
    if not tokens.any_stored(opened):
        say("It was the last one in the store.")
    if as_json:
        output.document(_shown(found))


def _shown(token: Token, text: str | None = None) -> dict[str, Any]:
    data = msgspec.to_builtins(token)
    del data["secret_sha256"]
    if text is not None:
        data["token"] = text
    return {"entity_name": "token", "primary_key": token.token_id, "data": data}


def _row(token: Token) -> tuple[str, ...]:
    expires = "never" if token.expires_timestamp is None else _moment(token.expires_timestamp)
    return (
        token.token_id,
        token.description,
        ", ".join(token.scopes),
        ", ".join(token.workflow_names) or "all",
        _moment(token.created_timestamp),
        f"{expires} (expired)" if tokens.is_expired(token, time.time()) else expires,
    )


def _moment(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(timestamp))
