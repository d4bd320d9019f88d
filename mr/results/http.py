"""Results POSTed to a URL."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from mr.outgoing import http, signing
from mr.outgoing.guard import Guard
from mr.results import texts
from mr.results.mail import headers
from mr.results.reading import Result

IDEMPOTENCY_KEY = "Idempotency-Key"

_WHOLE_BYTES = 1024 * 1024
"""What is not longer is sent with its length, which some servers want; the rest in chunks."""

_SECONDS = 10.0
_BYTES_A_SECOND = 1024 * 1024
_LAST_SECONDS = 600.0


def post(url: str, result: Result, guard: Guard, secrets: Sequence[str], delivery_id: str) -> None:
    """Returns once the server has taken it. A larger result is given more time, for 1 MiB a second at least.

    It is signed as notifications are, whatever its size: a result is read twice, and the first time for its signature.

    :raises ForbiddenURL: the guard does not let it out.
    :raises DeliveryFailed: it was not taken.
    :raises FilesUnavailable: the result cannot be read.
    """
    size = 0

    def weighed() -> Iterator[bytes]:
        nonlocal size
        for piece in texts.text(result.files, result.parts):
            size += len(piece)
            yield piece

    signed = signing.signed(secrets, delivery_id, int(time.time()), weighed())
    body = texts.text(result.files, result.parts)
    http.post(
        url,
        b"".join(body) if size <= _WHOLE_BYTES else body,
        {"Content-Type": "application/json", IDEMPOTENCY_KEY: delivery_id, **headers(result.request), **signed},
        guard,
        seconds=min(_LAST_SECONDS, _SECONDS + size / _BYTES_A_SECOND),
    )
