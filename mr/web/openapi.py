"""The description of the HTTP interface, in OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from mr import __version__
from mr.web import schemas
from mr.web.front import LAST, MAX_KEY_CHARS
from mr.web.schemas import Schema, ref

Part = dict[str, Any]

_PROBLEM = "application/problem+json"

_ABOUT = """\
POST to a job's URL and get the reduced answer back.

Every error is `application/problem+json` (RFC 9457): its `type` says which it is, its `detail` what to do. A POST with
an `Idempotency-Key` may be repeated: it begins one request, however often it arrives."""


@lru_cache(maxsize=4)
def document(root: str = "/") -> Part:
    """``root`` is the URL below which everything is."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "JobX", "version": __version__, "description": _ABOUT, "license": _LICENSE},
        "servers": [{"url": root}],
        "security": [{"token": []}, {}],
        "tags": [{"name": "jobs"}, {"name": "requests"}, {"name": "server"}],
        "paths": _paths(),
        "components": {
            "schemas": schemas.components(),
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": _RESPONSES,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token (`jobx token create`). Without any, JobX serves its machine alone.",
                }
            },
        },
    }


_LICENSE = {"name": "MIT", "identifier": "MIT"}

# --- parts --------------------------------------------------------------------------------------------------------


def _reference(kind: str, name: str) -> Part:
    return {"$ref": f"#/components/{kind}/{name}"}


def _parameter(place: str, name: str, description: str, schema: Schema) -> Part:
    is_required = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, "description": description, "schema": schema, **is_required}


_TRUTH: Schema = {"enum": ["true", "false", "1", "0"]}

_PARAMETERS: dict[str, Part] = {
    "workflow": _parameter("path", "workflow", "The workflow's name.", schemas.TEXT),
    "job": _parameter("path", "job", "The job's name.", schemas.TEXT),
    "request_id": _parameter(
        "path", "request_id", f"The request's ID, or `{LAST}` for the newest of the workflow.", schemas.TEXT
    ),
    "blocking": _parameter("query", "blocking", "Whether to wait for the result.", {**_TRUTH, "default": "true"}),
    "wait": _parameter(
        "query",
        "wait",
        "How many seconds to wait at most (and never longer than MR_MAX_WAIT_S); the answer is 202 then.",
        schemas.SECONDS,
    ),
    "data": _parameter("query", "data", "Also the beginnings of the datasets.", {**_TRUTH, "default": "false"}),
    "idempotency_key": _parameter(
        "header",
        "Idempotency-Key",
        "The same key with the same body is the same request, for 24 hours or the retention, the longer.",
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS},
    ),
    "last_event_id": _parameter("header", "Last-Event-ID", "The event that was received last.", schemas.TEXT),
}

_HEADERS: dict[str, Part] = {
    "request": {"description": "The request's ID.", "schema": schemas.TEXT},
    "fulfilled_by": {"description": "The host and the process that answered.", "schema": schemas.TEXT},
    "location": {"description": "The request's status.", "schema": {"type": "string", "format": "uri"}},
    "retry_after": {"description": "In how many seconds to try again.", "schema": {"type": "integer", "minimum": 1}},
    "exception_type": {"description": "As in the problem.", "schema": schemas.TEXT},
    "exception_message": {"description": "As in the problem, in printable ASCII.", "schema": schemas.TEXT},
    "www_authenticate": {"description": "How to show a token.", "schema": schemas.TEXT},
    "allow": {"description": "What can be asked for.", "schema": schemas.TEXT},
}

_NAMES = {
    "request": "X-MR-REQUEST-ID",
    "fulfilled_by": "X-FULFILLED-BY",
    "location": "Location",
    "retry_after": "Retry-After",
    "exception_type": "X-MR-EXCEPTION-TYPE",
    "exception_message": "X-MR-EXCEPTION-MESSAGE",
    "www_authenticate": "WWW-Authenticate",
    "allow": "Allow",
}


def _headers(*names: str) -> Part:
    return {_NAMES[name]: _reference("headers", name) for name in ("fulfilled_by", *names)}


def _answer(description: str, *headers: str, **content: Schema) -> Part:
    """``content`` has what is answered, by the name of its type."""
    shown = {"content": {_TYPES[name]: {"schema": schema} for name, schema in content.items()}} if content else {}
    return {"description": description, "headers": _headers(*headers), **shown}


_TYPES = {
    "json": "application/json",
    "lines": "application/x-ndjson",
    "events": "text/event-stream",
    "html": "text/html",
    "svg": "image/svg+xml",
    "png": "image/png",
    "dot": "text/vnd.graphviz",
}


def _problem(description: str, *headers: str, slugs: tuple[str, ...]) -> Part:
    schema = {"allOf": [ref("Problem"), {"properties": {"type": {"enum": [f"urn:jobx:{slug}" for slug in slugs]}}}]}
    told = _headers("request", *headers)
    return {"description": description, "headers": told, "content": {_PROBLEM: {"schema": schema}}}


_RESPONSES: dict[str, Part] = {
    "Invalid": _problem(
        "The input cannot be taken as it is; `parameter` names the part.",
        slugs=("invalid-input", "invalid-http", "invalid-pair", "forbidden-url"),
    ),
    "Unauthorized": _problem("This takes a token.", "www_authenticate", slugs=("unauthorized",)),
    "Forbidden": _problem("The token is not for this.", slugs=("forbidden", "foreign-origin")),
    "NotFound": _problem(
        "There never was such a workflow, job or request.",
        slugs=("workflow-not-found", "job-not-found", "request-not-found", "not-found"),
    ),
    "MethodNotAllowed": _problem("This is not done here.", "allow", slugs=("method-not-allowed",)),
    "Conflict": _problem("The request does not allow that.", slugs=("request-cancelled", "conflict", "request-runs")),
    "NotRedriven": _problem(
        "The request runs, or nothing in it has failed, or the workflow lacks what it needs.",
        slugs=("request-runs", "nothing-to-redrive", "steps-missing"),
    ),
    "Gone": _problem("The request has ended, and what belonged to it was removed.", slugs=("request-expired",)),
    "TooLarge": _problem("The body is larger than `limit` bytes.", slugs=("too-large",)),
    "Mismatch": _problem("The key was used before, with another body.", slugs=("idempotency-mismatch",)),
    "Full": _problem("The workflow has enough to do; nothing was accepted.", "retry_after", slugs=("workflow-full",)),
    "Failed": _problem(
        "The request failed, because a handler did (`handler-failed`); or JobX went wrong itself.",
        "exception_type",
        "exception_message",
        slugs=("handler-failed", "internal", "corrupt-record", "invalid-transaction"),
    ),
    "Internal": _problem(
        "JobX went wrong itself.", slugs=("internal", "corrupt-record", "invalid-transaction", "drawing-failed")
    ),
    "GraphvizMissing": _problem("Graphviz is not installed on the server.", slugs=("graphviz-missing",)),
    "Unavailable": _problem(
        "Something cannot be reached now; nothing was changed, but with `outcome-unknown`, where nobody knows.",
        "retry_after",
        slugs=(
            "store-unavailable",
            "queue-unavailable",
            "files-unavailable",
            "outcome-unknown",
            "too-many-streams",
            "unavailable",
        ),
    ),
    "NotReady": _problem("`unreachable` names what cannot be used now.", "retry_after", slugs=("not-ready",)),
    "WaitedTooLong": _problem("The longest wait is over; the request goes on.", "location", slugs=("waited-too-long",)),
}

_EVERYWHERE = {"405": "MethodNotAllowed", "500": "Internal"}
_GUARDED = {"401": "Unauthorized", "403": "Forbidden", "503": "Unavailable", **_EVERYWHERE}
_OF_REQUEST = {"400": "Invalid", "404": "NotFound", "410": "Gone", **_GUARDED}


def _operation(
    name: str,
    summary: str,
    answers: dict[str, Part],
    problems: dict[str, str],
    *parameters: str,
    tag: str = "requests",
    **others: Any,
) -> Part:
    responses = answers | {status: _reference("responses", problem) for status, problem in problems.items()}
    taken = {"parameters": [_reference("parameters", one) for one in parameters]} if parameters else {}
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        **taken,
        **others,
        "responses": dict(sorted(responses.items())),
    }


# --- what there is ------------------------------------------------------------------------------------------------

_LINE: Schema = {"type": "string", "description": "`[key,value]` a line: JSON lists of two."}
_BINARY: Schema = {"contentMediaType": "image/png"}

_RESULT = _answer(
    "The result. Lines are sent as they are read, without a length: an answer in chunks that ends without the last "
    "chunk is not whole.",
    "request",
    json=ref("Result"),
    lines=_LINE,
)
_RUNS = _answer("The request runs.", "request", "location", json=ref("Accepted"))
_STATUS = _answer("How it stands.", "request", json=ref("Status"))


def _paths() -> dict[str, Part]:
    of_request = ("workflow", "request_id")
    one = "/request/{workflow}/{request_id}"
    return {
        "/job/{workflow}/{job}": {
            "post": _operation(
                "post",
                "Begin a request, and wait for its result.",
                {"200": _RESULT, "202": _RUNS},
                {
                    **_OF_REQUEST,
                    "409": "Conflict",
                    "413": "TooLarge",
                    "422": "Mismatch",
                    "429": "Full",
                    "500": "Failed",
                    "504": "WaitedTooLong",
                },
                "workflow",
                "job",
                "blocking",
                "wait",
                "idempotency_key",
                tag="jobs",
                requestBody={
                    "description": "Read as JSON, whatever its type says.",
                    "content": {"application/json": {"schema": ref("Post")}},
                },
            )
        },
        one: {
            "get": _operation(
                "show",
                "How a request stands: as JSON, as a page for a browser, or its drawing.",
                {
                    "200": _answer(
                        "How it stands.",
                        "request",
                        json=ref("Status"),
                        html=schemas.TEXT,
                        svg=schemas.TEXT,
                        png=_BINARY,
                    )
                },
                {**_OF_REQUEST, "501": "GraphvizMissing"},
                *of_request,
            ),
            "delete": _operation(
                "cancel", "End a request, if it runs. May be repeated.", {"200": _STATUS}, _OF_REQUEST, *of_request
            ),
        },
        f"{one}/redrive": {
            "post": _operation(
                "redrive",
                "Run again what failed in an ended request, or was not done. Finishes a redrive that was cut short.",
                {"202": _answer("It runs again.", "request", "location", json=ref("Status"))},
                {**_OF_REQUEST, "409": "NotRedriven", "413": "TooLarge"},
                *of_request,
                requestBody={
                    "description": "Read as JSON, whatever its type says; may be empty.",
                    "content": {"application/json": {"schema": ref("Redrive")}},
                },
            )
        },
        f"{one}/result": {
            "get": _operation(
                "result",
                "The result, as a blocking POST answers it.",
                {"200": _RESULT, "202": _RUNS},
                {**_OF_REQUEST, "409": "Conflict", "500": "Failed"},
                *of_request,
            )
        },
        f"{one}/events": {
            "get": _operation(
                "events",
                "The progress of a request until it ends, as server-sent events.",
                {
                    "200": _answer(
                        "Events named `progress` and, as the last, `end`; the data of each is a `Progress`. A stream "
                        "that closes without `end` was broken off: ask again, with `Last-Event-ID`.",
                        "request",
                        events={
                            "type": "string",
                            "contentMediaType": "application/json",
                            "contentSchema": ref("Progress"),
                        },
                    ),
                    "204": _answer("The client has had the last event.", "request"),
                },
                _OF_REQUEST,
                *of_request,
                "last_event_id",
            )
        },
        f"{one}/tree": {
            "get": _operation(
                "tree",
                "The invocations of a request.",
                {"200": _answer("The tree.", "request", json=ref("Tree"))},
                _OF_REQUEST,
                *of_request,
                "data",
            )
        },
        **{
            f"{one}/graph.{form}": {
                "get": _operation(
                    f"graph_{form}",
                    f"The invocations of a request, drawn as {form.upper()}.",
                    {"200": _answer("The drawing.", "request", **{form: schema})},
                    _OF_REQUEST | ({"501": "GraphvizMissing"} if form != "dot" else {}),
                    *of_request,
                )
            }
            for form, schema in (("svg", schemas.TEXT), ("png", _BINARY), ("dot", schemas.TEXT))
        },
        "/": {
            "get": _operation(
                "home",
                "What there is.",
                {"200": _answer("An overview.", json=schemas.HOME)},
                _GUARDED,
                tag="server",
            )
        },
        "/openapi.json": {
            "get": _operation(
                "openapi",
                "This description.",
                {"200": _answer("An OpenAPI document.", json={"type": "object"})},
                {"400": "Invalid", **_GUARDED},
                tag="server",
            )
        },
        "/healthz": {
            "get": _operation(
                "healthz",
                "Whether this process answers.",
                {"200": _answer("It does.", json=schemas.HEALTH)},
                _EVERYWHERE,
                tag="server",
                security=[],
            )
        },
        "/readyz": {
            "get": _operation(
                "readyz",
                "Whether requests can be taken.",
                {"200": _answer("They can.", json=schemas.READINESS)},
                {**_EVERYWHERE, "503": "NotReady"},
                tag="server",
                security=[],
            )
        },
    }
