"""How a request stands, as those are told who watch it."""

from __future__ import annotations

import msgspec


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """Everything is written, also what holds its default; what a newer server adds is passed over."""


class Counts(_Told, frozen=True, kw_only=True):
    """Of the map invocations, the root among them.

    ``sealed``: all that there are so far. ``ready``: those that nobody has begun. ``running``: those that somebody
    runs, or reduces, right now. ``ended``: those that did, with the ``failed`` ones. Others wait for their children.
    """

    sealed: int
    ready: int
    running: int
    ended: int
    failed: int


class StepCounts(_Told, frozen=True, kw_only=True):
    """The same of one step, as far as that is known by step."""

    step_name: str
    sealed: int
    ended: int
    failed: int


class Waiting(_Told, frozen=True, kw_only=True):
    """A capability that a handler requires and that no live worker offers; ``since`` in seconds since the epoch."""

    capability: str
    step: str
    direction: str
    handler: str
    since: float


class Cause(_Told, frozen=True, kw_only=True):
    """Why a request failed. ``place`` is the handler's line, as ``words/split.py:7``, where it is known."""

    exception_type: str
    exception_message: str
    place: str | None
    invocation_id: str
    handler_name: str


class Progress(_Told, frozen=True, kw_only=True):
    """One look at a request.

    ``state`` is ``running``, ``done``, ``failed``, ``cancelled`` or, where everything of it was removed meanwhile,
    ``expired``. ``elapsed_s`` ends with the request. ``rate`` is how many invocations end a second: lately while it
    runs, None until that is known, and in all once it has ended.

    ``is_whole``: the counts are those of the whole tree. Of one with very many mapping invocations they are of the root
    and its children alone, but for ``running``.
    """

    request_id: str
    workflow_name: str
    job_name: str
    state: str
    elapsed_s: float
    counts: Counts
    is_whole: bool
    steps: list[StepCounts]
    rate: float | None
    waiting_for: list[Waiting]
    detail: str | None
    """What can be done about what it waits for."""
    error: Cause | None

    @property
    def has_ended(self) -> bool:
        return self.state != "running"

    def is_like(self, other: Progress) -> bool:
        """Whether nothing happened between the two, but for the time that passed."""
        return msgspec.structs.replace(self, elapsed_s=other.elapsed_s, rate=other.rate) == other
