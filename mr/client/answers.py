"""What a server answers, as far as programs need it; what a newer one adds is passed over."""

from __future__ import annotations

import msgspec

from mr.model.progress import Waiting


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was accepted; ``url`` is its status."""

    workflow_name: str
    request_id: str
    url: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a handler failed, with the handler's own lines of the traceback."""

    exception_type: str
    exception_message: str
    traceback: str = ""
    attempt: int = 0
    handler_name: str = ""


class RootProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the root is: ``ended`` of its ``children`` did, with the ``failed`` ones. None: not known yet."""

    state: str
    children: int | None
    ended: int
    failed: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How a request stands. ``state`` is ``running``, ``done``, ``failed`` or ``cancelled``; times are seconds since
    1970."""

    request_id: str
    workflow_name: str
    job_name: str
    state: str
    is_done: bool
    created_timestamp: float
    ended_timestamp: float | None
    expires_timestamp: float | None = None
    name: str = ""
    failed_invocation_id: str | None = None
    progress: RootProgress | None = None
    waiting_for: list[Waiting] = []
    detail: str | None = None
    """What can be done about what it waits for."""
    error: Failure | None = None
    url: str = ""
    links: dict[str, str] = {}
