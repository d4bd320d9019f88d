"""What a client raises. A server's problem is :class:`Refused`, or what says more; its fields are attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mr.errors import JobxError


class ClientError(JobxError):
    """Root of what a client raises."""


class Unreachable(ClientError):
    """There was no whole answer, also when it was asked for again: no server, or one that went away while it answered.

    A POST may have been accepted. Repeated with the same idempotency key it is the same request.
    """


class BrokenOff(Unreachable):
    """An answer began, and ended before it was whole."""


class StillRunning(ClientError, TimeoutError):
    """The request has not ended, in the time that it was waited for; it goes on."""

    def __init__(self, request_id: str, seconds: float | None = None) -> None:
        within = "" if seconds is None else f" within {seconds:g} s"
        super().__init__(f"The request {request_id} has not ended{within}. It goes on.")
        self.request_id = request_id


class Refused(ClientError):
    """The server said no; ``slug`` says what (``urn:jobx:<slug>``), ``detail`` says why, and what to do.

    ``facts`` has what else the problem told, such as ``parameter``, ``limit`` or ``request_id``.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.slug = str(problem.get("type", "")).removeprefix("urn:jobx:")
        self.detail = str(problem.get("detail") or f"The server answered with the status {status}.")
        self.facts = {name: fact for name, fact in problem.items() if name not in ("type", "title", "status", "detail")}
        super().__init__(self.detail)

    @property
    def request_id(self) -> str | None:
        found = self.facts.get("request_id")
        return found if isinstance(found, str) else None


class InvalidRequest(Refused):
    """What was sent cannot be taken as it is; ``parameter`` names the part, if one is to blame."""

    @property
    def parameter(self) -> str | None:
        found = self.facts.get("parameter")
        return found if isinstance(found, str) else None


class NotAllowed(Refused):
    """There is no token, or it is not good for this."""


class NotThere(Refused):
    """There never was such a workflow, job or request."""


class RequestGone(Refused):
    """The request has ended, and what belonged to it was removed."""


class JobCancelled(Refused):
    """The request was cancelled: it has no result."""


class Busy(Refused):
    """The server takes nothing more now, also after it was asked again."""


class JobFailed(Refused):
    """A handler failed, and the request with it. ``place`` is the handler's line, where it is known."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(status, problem)
        self.exception_type = str(problem.get("exception_type", ""))
        self.exception_message = str(problem.get("exception_message", ""))
        self.invocation_id = str(problem.get("invocation_id", ""))
        place = problem.get("place")
        self.place = place if isinstance(place, str) else None


_BY_SLUG: dict[str, type[Refused]] = {"handler-failed": JobFailed, "request-cancelled": JobCancelled}
_BY_STATUS: dict[int, type[Refused]] = {
    400: InvalidRequest,
    401: NotAllowed,
    403: NotAllowed,
    404: NotThere,
    410: RequestGone,
    413: InvalidRequest,
    422: InvalidRequest,
    429: Busy,
    503: Busy,
}


def refused(status: int, problem: Mapping[str, Any]) -> Refused:
    """The exception for a problem."""
    slug = str(problem.get("type", "")).removeprefix("urn:jobx:")
    return (_BY_SLUG.get(slug) or _BY_STATUS.get(status, Refused))(status, problem)
