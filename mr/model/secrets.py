"""What a workflow's notifications are signed with, by the Standard Webhooks specification's form of secrets."""

from __future__ import annotations

import base64
import secrets

from mr.errors import InvalidInput
from mr.kv.base import Compare, Put, Store, Txn
from mr.model import keys
from mr.model.catalog import settle
from mr.model.entities import Record, decode, encode

PREFIX = "whsec_"
_BYTES = 32


class Signing(Record, frozen=True, kw_only=True):
    """``secrets`` signs everything with each of them, the newest first: receivers take any that they know."""

    secrets: list[str]


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def check_secret(text: str) -> str:
    """
    :raises InvalidInput: it is not ``whsec_`` and 24 to 64 bytes in base64.
    """
    try:
        size = len(base64.b64decode(text.removeprefix(PREFIX), validate=True)) if text.startswith(PREFIX) else 0
    except ValueError:
        size = 0
    if not 24 <= size <= 64:
        raise InvalidInput(f"A secret is {PREFIX} followed by 24 to 64 bytes in base64.", "secret")
    return text


def of_workflow(store: Store, workflow_name: str) -> list[str]:
    """The workflow's secrets, the newest first. The first time somebody asks, one is made."""
    key = keys.secret(workflow_name)
    while True:
        [entry] = store.get([key])
        if entry is not None:
            return decode(Signing, key, entry.value).secrets
        made = Signing(secrets=[new_secret()])
        settle(store, Txn((Compare("version", key, 0),), (Put(key, encode(made)),), (), durable=True))


def rotate(store: Store, workflow_name: str, secret: str | None = None, *, keep_old: bool = True) -> list[str]:
    """Puts a new secret before the newest old one, which still signs, too, unless ``keep_old`` is not set.

    :raises InvalidInput: ``secret`` is none.
    """
    chosen = new_secret() if secret is None else check_secret(secret)
    key = keys.secret(workflow_name)
    while True:
        [entry] = store.get([key])
        old = [] if entry is None or not keep_old else decode(Signing, key, entry.value).secrets[:1]
        now = [chosen, *(one for one in old if one != chosen)]
        compare = Compare("modified", key, 0 if entry is None else entry.modified)
        if settle(store, Txn((compare,), (Put(key, encode(Signing(secrets=now))),), (), durable=True)):
            return now
