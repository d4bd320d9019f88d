"""API tokens: ``jobx_<id>_<secret>``, of which the store keeps the ID and a digest of the secret.

A secret has 256 random bits, so its digest needs no salt and no slow hash: there is nothing to guess from.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

from mr.errors import AlreadyExists, InvalidInput, TokenNotFound
from mr.kv.base import Compare, Put, Store, Txn
from mr.model import keys
from mr.model.catalog import settle
from mr.model.entities import decode, encode
from mr.model.names import check_workflow_name
from mr.model.records import Scope, Token

SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_DESCRIPTION_CHARS = 200

_PREFIX = "jobx_"
_ID_BYTES = 5
_SECRET_BYTES = 32
_TEXT = re.compile(rf"{_PREFIX}([0-9a-f]{{{2 * _ID_BYTES}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})")
_PAGE = 500
_SHOWN = 50


class Parts(NamedTuple):
    """What a token's text has in it."""

    token_id: str
    secret: str


def parse(text: str) -> Parts | None:
    """None: it is no token of this form."""
    matched = _TEXT.fullmatch(text)
    return None if matched is None else Parts(*matched.groups())


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def is_expired(token: Token, now: float) -> bool:
    return token.expires_timestamp is not None and now >= token.expires_timestamp


def create(
    store: Store,
    description: str,
    scopes: Sequence[Scope],
    workflow_names: Sequence[str] = (),
    expires_timestamp: float | None = None,
) -> tuple[Token, str]:
    """A new token, and its text, which nobody can read again.

    :raises InvalidInput: the description is empty or too long, there is no scope, or the token would have expired.
    :raises InvalidName: that is no workflow's name.
    :raises OutcomeUnknown: the store never said whether it took it.
    """
    now = time.time()
    if not description.strip() or len(description) > MAX_DESCRIPTION_CHARS:
        raise InvalidInput(
            f"A token's description has 1 to {MAX_DESCRIPTION_CHARS} characters: say who uses it.", "description"
        )
    if not scopes:
        raise InvalidInput(f"A token needs a scope: {', '.join(SCOPES)}.", "scope")
    if expires_timestamp is not None and expires_timestamp <= now:
        raise InvalidInput("The token would have expired already.", "expires")
    secret = secrets.token_hex(_SECRET_BYTES)
    token = Token(
        token_id=secrets.token_hex(_ID_BYTES),
        description=description,
        secret_sha256=digest(secret),
        scopes=[scope for scope in SCOPES if scope in scopes],
        workflow_names=sorted({check_workflow_name(name) for name in workflow_names}),
        created_timestamp=now,
        expires_timestamp=expires_timestamp,
    )
    key = keys.token(token.token_id)
    txn = Txn((Compare("version", key, 0, "free"),), (Put(key, encode(token)),), durable=True)
    if not settle(store, txn) and find(store, token.token_id) != token:
        raise AlreadyExists(f"There is a token {token.token_id!r} already. Try again: the next has another ID.")
    return token, f"{_PREFIX}{token.token_id}_{secret}"


def stored(store: Store) -> Iterator[Token]:
    """All tokens, also expired ones, in order of ID."""
    after = ""
    while page := store.list(keys.TOKENS, after=after, limit=_PAGE):
        for entry in page:
            yield decode(Token, entry.key, entry.value)
        after = page[-1].key


def any_stored(store: Store) -> bool:
    return bool(store.list(keys.TOKENS, limit=1, keys_only=True))


def find(store: Store, start: str) -> Token:
    """The one token whose ID begins like that; the text of a token names it as well.

    :raises TokenNotFound: there is none.
    :raises InvalidInput: there are several.
    """
    token_id = start.removeprefix(_PREFIX).partition("_")[0].lower()
    everything = list(stored(store))
    found = [token for token in everything if token_id and token.token_id.startswith(token_id)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidInput(f"Several tokens begin with {token_id!r}: {_named(found)}. Give more of the ID.", "token")
    # What was given may have a secret in it.
    raise TokenNotFound(
        "token", token_id[: 2 * _ID_BYTES], f"There are: {_named(everything)}." if everything else "There are none."
    )


def _named(tokens: Sequence[Token]) -> str:
    shown = [f"{token.token_id} ({token.description})" for token in tokens[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else "")


def revoke(store: Store, token: Token) -> None:
    """The token is none any more. May be repeated.

    :raises OutcomeUnknown: the store never said whether it did it.
    """
    settle(store, Txn(deletes=(keys.token(token.token_id),), durable=True))
