"""Signatures of webhooks, as Standard Webhooks has them (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping, Sequence

from mr.errors import InvalidInput, InvalidSignature

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"

_SECRET = "whsec_"
_VERSION = "v1,"


def sign(secret: str | Sequence[str], webhook_id: str, timestamp: int, body: bytes | Iterable[bytes]) -> str:
    """The value of ``webhook-signature``; with several secrets (while one replaces another) one signature each.

    A body in pieces is consumed.

    :raises InvalidInput: a secret is none, or the ID is not what can be signed and sent.
    """
    # What is signed is joined with dots: one in the ID would leave open where it ends.
    if not webhook_id or "." in webhook_id or not all("!" <= char <= "~" for char in webhook_id):
        raise InvalidInput(f"A webhook's ID is plain text without spaces and dots, not {webhook_id!r}.", ID)
    return " ".join(_signatures(secret, webhook_id, str(int(timestamp)), body))


def signed(
    secret: str | Sequence[str], webhook_id: str, timestamp: int, body: bytes | Iterable[bytes]
) -> dict[str, str]:
    """The three headers; ``timestamp`` is that of this attempt, in Unix seconds.

    :raises InvalidInput: see :func:`sign`.
    """
    return {
        ID: webhook_id,
        TIMESTAMP: str(int(timestamp)),
        SIGNATURE: sign(secret, webhook_id, timestamp, body),
    }


def verify(
    secrets: str | Sequence[str], headers: Mapping[str, str], body: bytes, now: float, tolerance_s: float = 300
) -> None:
    """Returns where one of the signatures is of one of the secrets, and its time near ``now`` (Unix seconds).

    :raises InvalidSignature: it is not so; the message says what is wrong.
    :raises InvalidInput: a secret is none.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if not given.get(name)]
    if missing:
        raise InvalidSignature(f"It has no header {' and no '.join(missing)}.", missing[0])
    timestamp = given[TIMESTAMP]
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise InvalidSignature(f"Its {TIMESTAMP}, {timestamp[:40]!r}, is no number of seconds since 1970.", TIMESTAMP)
    apart = int(timestamp) - now
    if abs(apart) > tolerance_s:
        when = "old" if apart < 0 else "ahead of this machine's clock"
        raise InvalidSignature(f"It is {abs(apart):.0f} s {when}; {tolerance_s:g} s are tolerated.", TIMESTAMP)
    wanted = _signatures(secrets, given[ID], timestamp, body)
    for signature in given[SIGNATURE].split():
        # Every comparison is made, and takes as long whatever it finds.
        if any([hmac.compare_digest(signature.encode("utf-8", "replace"), one.encode()) for one in wanted]):
            return
    if _VERSION not in given[SIGNATURE]:
        raise InvalidSignature(f"None of its signatures is of the kind {_VERSION.rstrip(',')}.", SIGNATURE)
    raise InvalidSignature(
        "None of its signatures is right: it was signed with another secret, or changed on its way.", SIGNATURE
    )


def _signatures(
    secrets: str | Sequence[str], webhook_id: str, timestamp: str, body: bytes | Iterable[bytes]
) -> list[str]:
    head = f"{webhook_id}.{timestamp}.".encode("utf-8", "surrogatepass")
    keys = [secrets] if isinstance(secrets, str) else secrets
    codes = [hmac.new(_key(secret), head, "sha256") for secret in keys]
    for piece in [body] if isinstance(body, bytes) else body:
        for code in codes:
            code.update(piece)
    return [_VERSION + base64.b64encode(code.digest()).decode() for code in codes]


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_SECRET), validate=True) if secret.startswith(_SECRET) else b""
    except (binascii.Error, ValueError):
        key = b""
    if not 24 <= len(key) <= 64:
        raise InvalidInput(f"A webhook's secret is {_SECRET} followed by 24 to 64 bytes in base64.", "secret")
    return key
