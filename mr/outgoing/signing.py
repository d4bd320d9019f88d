"""Signatures of webhooks, as Standard Webhooks has them (https://www.standardwebhooks.com)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ID = "webhook-id"
TIMESTAMP = "webhook-timestamp"
SIGNATURE = "webhook-signature"


def new_secret() -> str:
    """``whsec_`` and base64 of 32 random bytes."""
    raise NotImplementedError


def sign(secret: str | Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``; with several secrets (while one replaces another) one signature each.

    :raises InvalidInput: a secret is none, or the ID is empty or has a dot.
    """
    raise NotImplementedError


def signed(secret: str | Sequence[str], webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers."""
    raise NotImplementedError


def verify(
    secrets: str | Sequence[str], headers: Mapping[str, str], body: bytes, now: float, tolerance_s: float = 300
) -> None:
    """Returns where one of the signatures is of one of the secrets, and its time near ``now`` (Unix seconds).

    :raises InvalidSignature: it is not so; the message says what is wrong.
    :raises InvalidInput: a secret is none.
    """
    raise NotImplementedError
