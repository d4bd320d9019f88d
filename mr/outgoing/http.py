"""POSTs to the outside, within a fixed time and to checked addresses only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mr.outgoing.guard import Guard

MAX_ANSWER_BYTES = 64 * 1024


class Answer(NamedTuple):
    """What a server answered; of a longer body the first ``MAX_ANSWER_BYTES``. Names of headers are in lower case."""

    status: int
    body: bytes
    headers: dict[str, str]


def post(
    url: str,
    body: bytes | Iterable[bytes],
    headers: Mapping[str, str],
    guard: Guard,
    *,
    seconds: float = 10.0,
    ca: str = "",
) -> Answer:
    """What the server answered, which is a 2xx. An iterable body is sent chunked, and consumed once.

    ``seconds`` bound all of it: look-up, connecting, TLS, sending and reading. Redirects are not followed and proxies
    not used. ``ca`` is a file of certificates to trust instead of the system's.

    :raises ForbiddenURL: the guard does not let it out.
    :raises DeliveryFailed: there was no 2xx in time. Final is what cannot become better: a 410, and headers
        that HTTP cannot carry.
    """
    raise NotImplementedError
