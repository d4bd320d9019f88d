"""What only the HTTP side can go wrong with, and how every error is told: as ``application/problem+json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mr.errors import JobxError
from mr.model.entities import Failure
from mr.trace.why import Why, look_of

MAX_HEADER_CHARS = 1024

FACTS = (
    "parameter",
    "scope",
    "limit",
    "limit_name",
    "current",
    "request_id",
    "invocation_id",
    "exception_type",
    "exception_message",
    "place",
    "source_line",
    "look",
    "unreachable",
)
"""Attributes of errors that a problem shows."""


class Unauthorized(JobxError):
    """The request takes an API token, and has none that is good."""

    slug = "unauthorized"
    status = 401


class Forbidden(JobxError):
    """The request's API token is good, but not for this; ``scope`` is the one that it lacks, if that is it."""

    slug = "forbidden"
    status = 403

    def __init__(self, message: str, scope: str | None = None) -> None:
        super().__init__(message)
        self.scope = scope


class ForeignOrigin(JobxError):
    """A browser sent the request for a page of another site."""

    slug = "foreign-origin"
    status = 403


class WaitedTooLong(JobxError):
    """A blocking POST reached the longest wait; its request goes on."""

    slug = "waited-too-long"
    status = 504

    def __init__(self, request_id: str, seconds: float) -> None:
        super().__init__(
            f"The request did not end within {seconds:g} s (MR_MAX_WAIT_S). It goes on: ask for its result later, "
            "or POST with ?blocking=false."
        )
        self.request_id = request_id


class NotReady(JobxError):
    """Something that this front end needs does not answer; ``unreachable`` names what."""

    slug = "not-ready"
    status = 503

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(" ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.unreachable = list(reasons)


UNKNOWN = Failure(exception_type="Unknown", exception_message="The record of what failed is gone.")


class HandlerFailed(JobxError):
    """A request failed because a handler did. ``place`` and ``source_line`` are the handler's own, ``look`` is the
    command that tells all of it."""

    slug = "handler-failed"

    def __init__(self, why: Why) -> None:
        failure = why.told or UNKNOWN
        self.request_id = why.request.request_id
        self.invocation_id = why.request.failed_invocation_id or ""
        self.exception_type = failure.exception_type
        self.exception_message = sanitised(failure.exception_message)
        self.place = None if why.place is None else str(why.place)
        self.source_line = None if why.place is None else why.place.source_line or None
        self.look = look_of(self.request_id)
        place = f" ({self.place})" if self.place and self.place not in self.exception_message else ""
        super().__init__(f"{self.exception_type}: {self.exception_message}{place} - for the whole story: {self.look}")


_OF_THE_HOST = re.compile(r"(?:/[^/\s'\":]+)*/(?:site-packages|dist-packages|lib/python3[.][0-9]+)/")


def sanitised(message: str) -> str:
    """A message for who may not know the host: without where its libraries are."""
    return _OF_THE_HOST.sub("…/", message)


def document(slug: str, status: int, detail: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a problem (RFC 9457)."""
    return {
        "type": f"urn:jobx:{slug}",
        "title": slug.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        **facts,
    }


def facts_of(error: JobxError) -> dict[str, Any]:
    found = {name: getattr(error, name, None) for name in FACTS}
    return {name: fact for name, fact in found.items() if fact is not None}


def header_text(text: str) -> str:
    """One line of printable ASCII, at most :data:`MAX_HEADER_CHARS` long, for the value of a header."""
    # Cut first: a message may be very long, and escapes only make it longer.
    ascii_text = text[:MAX_HEADER_CHARS].encode("ascii", "backslashreplace").decode()
    plain = "".join(char if " " <= char <= "~" else " " for char in ascii_text)
    return " ".join(plain.split())[:MAX_HEADER_CHARS]
