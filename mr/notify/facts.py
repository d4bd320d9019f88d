"""What is told, as plain values: the data of a webhook, and what the templates of mails are filled with.

Every kind has the same fields each time, None or empty where there is nothing to tell. All of it is bounded and without
characters that a terminal would obey: what handlers say is theirs, and is read by people who did not write them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol

from mr.kv.base import Store
from mr.model.deliveries import Delivery
from mr.model.entities import Failure, Request
from mr.model.places import Place

MAX_MESSAGE_BYTES = 4000
MAX_TEXT_BYTES = 20_000
"""Of a handler's message."""
MAX_TRACEBACK_BYTES = 16_000
MAX_STOPS = 12
"""Of a way that is longer, the first and the last ones are told."""
MAX_ID_CHARS = 1000
MAX_NAMES = 100
"""Of handlers that were changed, in each of three ways."""

_FIRST_STOPS = 2


class Stop(Protocol):
    """An invocation on the way to the one that failed."""

    @property
    def invocation_id(self) -> str: ...
    @property
    def step_name(self) -> str: ...
    @property
    def direction(self) -> str: ...
    @property
    def number(self) -> int | None: ...
    @property
    def siblings(self) -> int | None: ...


class Why(Protocol):
    """Why a request failed, as whoever traces it says."""

    @property
    def path(self) -> Sequence[Stop]: ...
    @property
    def failure(self) -> Failure | None: ...
    @property
    def summary(self) -> str: ...
    @property
    def place(self) -> Place | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def handler_name(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def commands(self) -> Sequence[str]: ...


Explain = Callable[[Store, Request], Why]


# --- what is told of a request -----------------------------------------------------------------------------------


def of_request(delivery: Delivery, request: Request | None, why: Why | None, public_url: str) -> dict[str, Any]:
    """The end of a request. ``request`` is as it is now, None where it was removed; ``why`` is for one that failed.

    What ran again since then says nothing of how it ended before: ``since`` tells that, and the rest is left out.
    """
    state = delivery.event.rpartition(".")[2]
    is_as_told = (
        request is not None and request.is_done and request.state == state and _epoch(delivery) == request.epoch
    )
    ended = request.ended_timestamp if is_as_told and request is not None else None
    facts = _about(delivery, request, public_url)
    facts["state"] = state
    facts["result_url"] = f"{facts['url']}/result" if is_as_told and state == "done" and facts["url"] else None
    facts["created_timestamp"] = None if request is None else moment(request.created_timestamp)
    facts["ended_timestamp"] = moment(delivery.created_timestamp if ended is None else ended)
    facts["seconds"] = None
    if request is not None and ended is not None:
        facts["seconds"] = round(max(0.0, ended - request.began_timestamp), 3)
    facts["since"] = "removed" if request is None else None if is_as_told else "redriven"
    facts["error"], facts["path"], facts["path_omitted"] = None, [], 0
    if is_as_told and why is not None and why.failure is not None:
        facts["error"] = _error(why, why.failure)
        facts["path"] = [_stop(stop) for stop in _ends(why.path)]
        facts["path_omitted"] = max(0, len(why.path) - MAX_STOPS)
    facts["commands"] = [] if request is None else _commands(request, why)
    return facts


def of_message(delivery: Delivery, request: Request | None, public_url: str) -> dict[str, Any]:
    """What a handler said to ``NOTIFY``, ``EMAIL`` or ``HTTP``."""
    payload = delivery.payload or {}
    facts = _about(delivery, request, public_url)
    facts["timestamp"] = moment(delivery.created_timestamp)
    facts["channel"] = plain_line(str(payload.get("channel", "")), 20)
    facts["level"] = plain_line(str(payload.get("level", "info")), 20).lower()
    facts["text"] = plain(str(payload.get("text", "")), MAX_TEXT_BYTES)
    facts["handler_name"] = plain_line(str(payload.get("handler_name", "")), 200)
    facts["invocation_id"] = _id(str(payload.get("invocation_id", "")))
    facts["commands"] = [] if request is None else _commands(request, None)
    return facts


def of_handlers(delivery: Delivery) -> dict[str, Any]:
    """Which handlers of a workflow are new, updated and deleted: how many, and the first names of each."""
    payload = delivery.payload or {}
    names = {kind: [str(name) for name in payload.get(kind) or []] for kind in ("new", "updated", "deleted")}
    return {
        "workflow_name": delivery.workflow_name,
        "timestamp": moment(delivery.created_timestamp),
        "counts": payload.get("counts") or {kind: len(of_kind) for kind, of_kind in names.items()},
        **{kind: [plain_line(name, 200) for name in sorted(of_kind)[:MAX_NAMES]] for kind, of_kind in names.items()},
        "commands": [f"mr_kv_handler_list {delivery.workflow_name}"],
    }


def traceback_of(why: Why | None) -> str:
    """For people who are told by mail."""
    return "" if why is None or why.failure is None else plain(why.failure.traceback, MAX_TRACEBACK_BYTES)


def _about(delivery: Delivery, request: Request | None, public_url: str) -> dict[str, Any]:
    workflow, request_id = delivery.workflow_name, delivery.request_id
    return {
        "workflow_name": workflow,
        "job_name": None if request is None else request.job_name,
        "request_id": request_id,
        "name": None if request is None else plain_line(request.name, 800) or None,
        "url": f"{public_url}/request/{workflow}/{request_id}" if public_url and request is not None else None,
    }


def _epoch(delivery: Delivery) -> int:
    """How often the request had been run again when it ended in this way."""
    parts = delivery.delivery_id.split("_")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _error(why: Why, failure: Failure) -> dict[str, Any]:
    return {
        "exception_type": plain_line(failure.exception_type, 200),
        "exception_message": plain(failure.exception_message, MAX_MESSAGE_BYTES),
        "summary": plain(why.summary, MAX_MESSAGE_BYTES) or None,
        "place": None if why.place is None else plain_line(str(why.place), 500),
        "source_line": None if why.place is None else plain_line(why.place.source_line, 500) or None,
        "key": None if why.key is None else plain_line(why.key, 500),
        "handler_name": why.handler_name or None,
        "invocation_id": _id(why.path[-1].invocation_id) if why.path else None,
        "attempt": why.attempt,
        "attempts": why.attempts or None,
    }


def _ends(path: Sequence[Stop]) -> list[Stop]:
    if len(path) <= MAX_STOPS:
        return list(path)
    return [*path[:_FIRST_STOPS], *path[-(MAX_STOPS - _FIRST_STOPS) :]]


def _stop(stop: Stop) -> dict[str, Any]:
    return {
        "invocation_id": _id(stop.invocation_id),
        "step_name": stop.step_name,
        "direction": stop.direction,
        "number": stop.number,
        "siblings": stop.siblings,
    }


def _commands(request: Request, why: Why | None) -> list[str]:
    if why is None:
        return [f"jobx request tree {request.workflow_name} {request.request_id}"]
    commands = dict.fromkeys([f"jobx request why {request.request_id}", *why.commands])
    return [command for command in commands if len(command) <= 2 * MAX_ID_CHARS]


def _id(text: str) -> str | None:
    """An ID is told as a whole or not at all."""
    return text if 0 < len(text) <= MAX_ID_CHARS else None


# --- text --------------------------------------------------------------------------------------------------------


def moment(timestamp: float) -> str:
    """ISO 8601, in UTC."""
    told = datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")
    return told.replace("+00:00", "Z")


def plain(text: str, limit: int) -> str:
    """Without control characters, and with an ellipsis where it had more than ``limit`` bytes."""
    cut = text[:limit].expandtabs(4)
    shown = "".join(char if char.isprintable() or char == "\n" else _escaped(char) for char in cut).strip("\n")
    encoded = shown.encode("utf-8", "replace")
    if len(encoded) <= limit and len(text) <= limit:
        return shown
    return f"{encoded[: limit - 3].decode('utf-8', 'ignore')}…"


def plain_line(text: str, limit: int) -> str:
    return " ".join(plain(text, limit).split())


def _escaped(char: str) -> str:
    # Lines of other systems end in two characters.
    return "" if char == "\r" else char.encode("unicode_escape").decode()
