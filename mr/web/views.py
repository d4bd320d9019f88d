"""What each URL does. Views answer with data or raise; errors become problems in one place (see ``application``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
from flask import Flask, Response, g, request
from gunicorn.http.errors import ParseException

from mr import __version__
from mr.errors import InvalidInput, TooLarge
from mr.model import ids
from mr.model.deliveries import as_shown
from mr.model.entities import Request
from mr.results import texts
from mr.trace import drawing, graphviz
from mr.trace.document import as_json as tree_as_json
from mr.trace.text import render as render_tree
from mr.trace.tree import KEPT, Tree
from mr.trace.tree import load as load_tree
from mr.trace.why import Why, look_of
from mr.web import events, openapi, pages, posts, waiting
from mr.web.access import TOKEN_ID, Caller, Need
from mr.web.aside import aside
from mr.web.front import Front, Status
from mr.web.problems import UNKNOWN, WaitedTooLong, sanitised

JSON = "application/json"
NDJSON = "application/x-ndjson"
HTML = "text/html"
FORMS: dict[graphviz.Format, str] = {"svg": "image/svg+xml", "png": "image/png"}
DRAWINGS = {kind: form for form, kind in FORMS.items()}

LINKS = {"result": "result", "events": "events", "tree": "tree", "drawing": "graph.svg"}

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""What pages and drawings hold came from users: nothing in it may run, or fetch anything."""

PAGE_CHARS = 110

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class Views:
    """All views, over one front end."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._events = events.Events(front)

    def register(self, app: Flask) -> dict[str, Need]:
        """What each endpoint takes; one that has nothing here is refused to everybody."""
        rules: list[tuple[str, str, Need, Callable[..., Response]]] = [
            ("/", "GET", Need.TOKEN, self.home),
            ("/openapi.json", "GET", Need.TOKEN, self.openapi),
            ("/healthz", "GET", Need.NOTHING, self.healthz),
            ("/readyz", "GET", Need.NOTHING, self.readyz),
            ("/job/<workflow>/<job>", "POST", Need.SUBMIT, self.post),
            ("/request/<workflow>/<request_id>", "GET", Need.SEE, self.show),
            ("/request/<workflow>/<request_id>", "DELETE", Need.STEER, self.cancel),
            ("/request/<workflow>/<request_id>/redrive", "POST", Need.STEER, self.redrive),
            ("/request/<workflow>/<request_id>/result", "GET", Need.SEE, self.result),
            ("/request/<workflow>/<request_id>/events", "GET", Need.SEE, self.events),
            ("/request/<workflow>/<request_id>/tree", "GET", Need.SEE, self.tree),
            ("/request/<workflow>/<request_id>/graph.<any(svg, png, dot):form>", "GET", Need.SEE, self.graph),
        ]
        for rule, method, _, view in rules:
            app.add_url_rule(rule, f"{method} {rule}", view, methods=[method])
        return {f"{method} {rule}": need for rule, method, need, _ in rules}

    # --- jobs -------------------------------------------------------------------------------------------------------

    def post(self, workflow: str, job: str) -> Response:
        asked = query("blocking", "wait")
        is_blocking = read_truth("blocking", asked.get("blocking", "true"))
        longest = self._front.config.max_wait_s
        wait_s = min(longest, read_seconds("wait", asked["wait"])) if "wait" in asked else longest
        submitted = self._front.post(
            workflow,
            job,
            read_body(self._front.config.max_body_bytes),
            wait_s=wait_s if is_blocking else 0.0,
            is_blocking=is_blocking,
            idempotency_key=request.headers.get("Idempotency-Key"),
            context=context_of(g.caller),
        )
        g.request_id = submitted.request_id
        if is_blocking and submitted.ended is not None:
            return self._answered(submitted.ended)
        if is_blocking and "wait" not in asked and not self._front.is_draining:
            raise WaitedTooLong(submitted.request_id, longest)
        return running(workflow, submitted.request_id)

    def _answered(self, ended: Request) -> Response:
        """The result goes to whoever posted, or where the request's writer delivers it."""
        if ended.state == "done" and ended.writer:
            return as_json({"result": {}})
        return self._ended(ended)

    def _ended(self, ended: Request) -> Response:
        write, kind = (texts.lines, NDJSON) if wants_lines() else (texts.text, JSON)
        return Response(self._front.result(ended, write), 200, {"Vary": "Accept"}, content_type=kind)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _request(self, workflow: str, request_id: str, *parameters: str) -> Request:
        query(*parameters)
        # What is no ID may hold anything, and has no place in a header.
        if ids.is_request_id(workflow, request_id):
            g.request_id = request_id
        found = self._front.request(workflow, request_id)
        g.caller.check_request(g.need, found)
        g.request_id = found.request_id
        return found

    def show(self, workflow: str, request_id: str) -> Response:
        found = self._request(workflow, request_id)
        wanted = wanted_form()
        if wanted in DRAWINGS:
            response = self._drawing(found, DRAWINGS[wanted])
        elif wanted == HTML:
            response = self._page(self._front.status(found))
        else:
            response = as_json(status_document(self._front.status(found)))
        response.vary.add("Accept")
        return response

    def _page(self, status: Status) -> Response:
        tree = render_tree(self._tree(status.request), PAGE_CHARS)
        found = status.request
        html = pages.render(status, tree, links_of(found.workflow_name, found.request_id))
        return Response(html, content_type=f"{HTML}; charset=utf-8", headers={"Content-Security-Policy": POLICY})

    def tree(self, workflow: str, request_id: str) -> Response:
        """With ``?data=true`` also the beginnings of the datasets."""
        found = self._request(workflow, request_id, "data")
        with_data = read_truth("data", request.args.get("data", "false"))
        return as_json(tree_as_json(self._tree(found, with_data)))

    def graph(self, workflow: str, request_id: str, form: graphviz.Format | Literal["dot"]) -> Response:
        return self._drawing(self._request(workflow, request_id), form)

    def _drawing(self, found: Request, form: graphviz.Format | Literal["dot"]) -> Response:
        text = drawing.dot(self._tree(found, kept=drawing.KEPT))
        if form == "dot":
            return Response(text, content_type="text/vnd.graphviz; charset=utf-8")
        return Response(
            graphviz.render(text, form), content_type=FORMS[form], headers={"Content-Security-Policy": POLICY}
        )

    def _tree(self, found: Request, with_data: bool = False, kept: int = KEPT) -> Tree:
        platform = self._front.platform

        def load() -> Tree:
            return load_tree(
                platform.store,
                found.workflow_name,
                found.request_id,
                data=with_data,
                kept=kept,
                read_dataset=platform.read_dataset,
            )

        return aside(platform.store.local, load)

    def result(self, workflow: str, request_id: str) -> Response:
        found = self._request(workflow, request_id)
        return self._ended(found) if found.is_done else running(workflow, found.request_id)

    def events(self, workflow: str, request_id: str) -> Response:
        found = self._request(workflow, request_id)
        seen = request.headers.get("Last-Event-ID", "")
        if found.is_done and seen == events.end_of(found):
            # What tells a browser not to connect again.
            return Response(status=204)
        body: bytes | Iterator[bytes]
        if found.is_done:
            body = self._events.once(found)
        else:
            self._events.check()
            body = self._events.stream(found, seen)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Response(body, headers=headers, content_type=events.CONTENT_TYPE)

    def cancel(self, workflow: str, request_id: str) -> Response:
        cancelled = self._front.cancel(self._request(workflow, request_id))
        return as_json(status_document(self._front.status(cancelled)))

    def redrive(self, workflow: str, request_id: str) -> Response:
        found = self._request(workflow, request_id)
        is_same_manifest = posts.parse_redrive(read_body(self._front.config.max_body_bytes))
        again = self._front.redrive(found, is_same_manifest)
        location = {"Location": url_of(workflow, again.request_id)}
        return as_json(status_document(self._front.status(again)), 202, location)

    # --- the server -------------------------------------------------------------------------------------------------

    def home(self) -> Response:
        return as_json(
            {
                "name": "JobX",
                "version": __version__,
                "post": "/job/<workflow>/<job>",
                "requests": "/request/<workflow>/<request_id or last>",
                "result": "/request/<workflow>/<request_id>/result",
                "events": "/request/<workflow>/<request_id>/events",
                "description": "/openapi.json",
                "health": "/healthz",
                "readiness": "/readyz",
            }
        )

    def openapi(self) -> Response:
        query()
        return as_json(openapi.document(request.root_path or "/"))

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


def links_of(workflow: str, request_id: str) -> dict[str, str]:
    return {name: url_of(workflow, request_id, f"/{path}") for name, path in LINKS.items()}


def running(workflow: str, request_id: str) -> Response:
    url = url_of(workflow, request_id)
    return as_json({"request_id": request_id, "url": url, "result": None}, 202, {"Location": url})


def status_document(status: Status) -> dict[str, Any]:
    """The request as it is stored, with how far it is, what it waits for that nobody can do, why it failed, and where
    to go from here."""
    found = status.request
    document: dict[str, Any] = msgspec.to_builtins(as_shown(found))
    document["progress"] = None if status.progress is None else status.progress._asdict()
    document["waiting_for"] = [lack._asdict() for lack in status.waiting_for]
    document["detail"] = waiting.sentence(found.workflow_name, status.waiting_for) or None
    document["error"] = None
    if status.why is not None:
        document["error"] = error = msgspec.to_builtins(status.why.told or UNKNOWN)
        error["exception_message"] = sanitised(error["exception_message"])
    document["why"] = None if status.why is None else why_document(status.why)
    url = url_of(found.workflow_name, found.request_id)
    document["url"] = url
    document["links"] = links_of(found.workflow_name, found.request_id)
    return document


def why_document(why: Why) -> dict[str, Any]:
    """The way to the invocation that failed, the line of its handler, and the command that tells the rest."""
    return {
        "path": [msgspec.to_builtins(stop) for stop in why.path],
        "place": None if why.place is None else str(why.place),
        "source_line": None if why.place is None else why.place.source_line,
        "key": why.key,
        "look": look_of(why.request.request_id),
    }


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


def read_body(limit: int) -> bytes:
    """All of the body, whether or not its length was told; at most one byte beyond the limit is read.

    Werkzeug's own limit takes the beginning of a longer body, of a length that was not told, for the whole.

    :raises TooLarge: it has more than ``limit`` bytes.
    :raises InvalidInput: the client went away before the end.
    """
    length = request.content_length
    data = b""
    if length is None or length <= limit:
        stream = request.environ["wsgi.input"]
        try:
            if length is not None:
                data = stream.read(length)
            elif "wsgi.input_terminated" in request.environ:
                data = stream.read(limit + 1)
        except (OSError, ParseException) as error:
            raise InvalidInput(f"The body cannot be read: {error}.") from error
    if max(length or 0, len(data)) > limit:
        raise TooLarge(f"The body is larger than {limit} bytes (MR_MAX_BODY_BYTES).", limit)
    if len(data) < (length or 0):
        raise InvalidInput("The body is shorter than its Content-Length says.")
    return data


def wanted_form() -> str:
    """JSON unless something else is asked for; of pictures any, whichever kinds a browser lists for an image."""
    accepted = request.accept_mimetypes
    named = [kind.lower() for kind, quality in accepted if quality > 0]
    if JSON not in named and HTML not in named and any(kind.startswith("image/") for kind in named):
        return accepted.best_match([*DRAWINGS]) or next(iter(DRAWINGS))
    return accepted.best_match([JSON, HTML], default=JSON)


def wants_lines() -> bool:
    # Few do, and the others are to be told apart in no time.
    if NDJSON not in request.headers.get("Accept", "").lower():
        return False
    return request.accept_mimetypes.best_match([JSON, NDJSON]) == NDJSON


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


def context_of(caller: Caller) -> dict[str, str]:
    """Who asked, for the record of the request."""
    context = {"requester_ip": request.remote_addr or ""}
    return context if caller.token_id is None else {**context, TOKEN_ID: caller.token_id}
