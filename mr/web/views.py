"""What each URL does. Views answer with data or raise; errors become problems in one place (see ``application``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
from flask import Flask, Response, g, request

from mr import __version__
from mr.errors import InvalidInput
from mr.model.entities import Request
from mr.web.front import Front, Status
from mr.web.problems import WaitedTooLong

JSON = "application/json"
HTML = "text/html"

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_LOCAL_PEERS = ("", "127.0.0.1", "::1")


class Views:
    """All views, over one front end."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def register(self, app: Flask) -> None:
        rules: list[tuple[str, str, Callable[..., Response]]] = [
            ("/", "GET", self.home),
            ("/healthz", "GET", self.healthz),
            ("/readyz", "GET", self.readyz),
            ("/job/<workflow>/<job>", "POST", self.post),
            ("/request/<workflow>/<request_id>", "GET", self.show),
            ("/request/<workflow>/<request_id>", "DELETE", self.cancel),
            ("/request/<workflow>/<request_id>/result", "GET", self.result),
        ]
        for rule, method, view in rules:
            app.add_url_rule(rule, f"{method} {rule}", view, methods=[method])

    # --- jobs -------------------------------------------------------------------------------------------------------

    def post(self, workflow: str, job: str) -> Response:
        asked = query("blocking", "wait")
        is_blocking = read_truth("blocking", asked.get("blocking", "true"))
        longest = self._front.config.max_wait_s
        wait_s = min(longest, read_seconds("wait", asked["wait"])) if "wait" in asked else longest
        submitted = self._front.post(
            workflow,
            job,
            request.get_data(cache=False),
            wait_s=wait_s if is_blocking else 0.0,
            is_blocking=is_blocking,
            idempotency_key=request.headers.get("Idempotency-Key"),
            context={"requester_ip": requester_ip()},
        )
        g.request_id = submitted.request_id
        if is_blocking and submitted.ended is not None:
            return self._ended(submitted.ended)
        if is_blocking and "wait" not in asked and not self._front.is_draining:
            raise WaitedTooLong(submitted.request_id, longest)
        return running(workflow, submitted.request_id)

    def _ended(self, ended: Request) -> Response:
        return Response(self._front.result(ended), 200, content_type=JSON)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _request(self, workflow: str, request_id: str, *parameters: str) -> Request:
        query(*parameters)
        if request_id != "last":
            g.request_id = request_id
        found = self._front.request(workflow, request_id)
        g.request_id = found.request_id
        return found

    def show(self, workflow: str, request_id: str) -> Response:
        status = self._front.status(self._request(workflow, request_id))
        return as_json(status_document(status))

    def result(self, workflow: str, request_id: str) -> Response:
        found = self._request(workflow, request_id)
        return self._ended(found) if found.is_done else running(workflow, found.request_id)

    def cancel(self, workflow: str, request_id: str) -> Response:
        cancelled = self._front.cancel(self._request(workflow, request_id))
        return as_json(status_document(self._front.status(cancelled)))

    # --- the server -------------------------------------------------------------------------------------------------

    def home(self) -> Response:
        return as_json(
            {
                "name": "JobX",
                "version": __version__,
                "post": "/job/<workflow>/<job>",
                "requests": "/request/<workflow>/<request_id or last>",
                "result": "/request/<workflow>/<request_id>/result",
                "health": "/healthz",
                "readiness": "/readyz",
            }
        )

    def healthz(self) -> Response:
        return as_json({"status": "ok"})

    def readyz(self) -> Response:
        self._front.check_ready()
        return as_json({"status": "ready"})


# --- answers ----------------------------------------------------------------------------------------------------------


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        msgspec.json.format(msgspec.json.encode(value), indent=0) + b"\n", status, headers, content_type=JSON
    )


def url_of(workflow: str, request_id: str, what: str = "") -> str:
    return f"{request.scheme}://{request.host}{request.root_path}/request/{workflow}/{request_id}{what}"


def running(workflow: str, request_id: str) -> Response:
    url = url_of(workflow, request_id)
    return as_json({"request_id": request_id, "url": url, "result": None}, 202, {"Location": url})


def status_document(status: Status) -> dict[str, Any]:
    """The request as it is stored, with how far it is, why it failed, and where to go from here."""
    found = status.request
    document: dict[str, Any] = msgspec.to_builtins(found)
    document["progress"] = None if status.progress is None else status.progress._asdict()
    document["error"] = None if status.failure is None else msgspec.to_builtins(status.failure)
    url = url_of(found.workflow_name, found.request_id)
    document["url"] = url
    document["links"] = {"result": f"{url}/result"}
    return document


# --- what was asked ---------------------------------------------------------------------------------------------------


def query(*known: str) -> dict[str, str]:
    """The query parameters.

    :raises InvalidInput: one is unknown, or given twice.
    """
    found: dict[str, str] = {}
    for name, values in request.args.lists():
        if name not in known:
            there = f"There are: {', '.join(known)}." if known else "There are none here."
            raise InvalidInput(f"There is no query parameter {name!r}. {there}", name)
        if len(values) > 1:
            raise InvalidInput(f"The query parameter {name!r} is given {len(values)} times.", name)
        found[name] = values[0]
    return found


def read_truth(name: str, text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise InvalidInput(f"{name!r} is {text!r}: give true or false.", name)
    return _TRUTHS[text.lower()]


def read_seconds(name: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidInput(f"{name!r} is {text!r}: give a number of seconds from 0 up.", name)
    return seconds


def requester_ip() -> str:
    """Who asked: the peer, or, where that is a proxy of this machine, whom the proxy names."""
    peer = request.remote_addr or ""
    forwarded = request.headers.get("X-Forwarded-For", "")
    if peer in _LOCAL_PEERS and forwarded:
        return forwarded.rpartition(",")[2].strip()[:64]
    return peer
