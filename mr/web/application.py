"""The WSGI application: the views, who may use them, and the one place where errors become answers."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from mr.errors import JobxError
from mr.web.front import Front
from mr.web.problems import ForeignOrigin, HandlerFailed, Unauthorized, document, facts_of, header_text
from mr.web.views import Views, url_of

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"

FRONT = "jobx"
"""Under this name the application's ``extensions`` have its front end."""

_OPEN_PATHS = ("/healthz", "/readyz")
"""What those who have no token may ask: a load balancer has none."""


def create_app(front: Front) -> Flask:
    """The application over a started front end."""
    # static_folder would serve files; there are none to serve.
    app = Flask("mr.web", static_folder=None)
    Views(front).register(app)
    fulfilled_by = f"{socket.gethostname()}:{os.getpid()}"
    app.extensions[FRONT] = front
    tokens = [token.encode() for token in front.config.api_tokens]

    @app.before_request
    def guard() -> None:
        if tokens and request.path not in _OPEN_PATHS:
            check_token(tokens)
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            check_origin()

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers["X-FULFILLED-BY"] = fulfilled_by
        if request_id := g.get("request_id"):
            response.headers["X-MR-REQUEST-ID"] = request_id
        return response

    app.register_error_handler(Exception, answer_error)
    return app


def check_token(tokens: list[bytes]) -> None:
    """
    :raises Unauthorized: the request has none of these.
    """
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # All of them are compared, so that the time taken says nothing.
    matches = [hmac.compare_digest(given.strip().encode("utf-8", "replace"), token) for token in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthorized("Give one of the server's API tokens, as in 'Authorization: Bearer TOKEN'.")


def check_origin() -> None:
    """Bodies are read as JSON whatever their type says, so a page of another site could post without being asked.

    :raises ForeignOrigin: a browser says that it did.
    """
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
        raise ForeignOrigin(f"The request comes from a page of {header_text(origin)}, which is not this server.")


def answer_error(error: Exception) -> Response:
    if isinstance(error, JobxError):
        return answer_jobx_error(error)
    if isinstance(error, HTTPException):
        return answer_http_exception(error)
    incident = secrets.token_hex(6)
    log.error("An answer failed. incident=%s method=%s path=%s", incident, request.method, request.path, exc_info=error)
    detail = "JobX went wrong itself. Its log has more under the incident's number."
    return problem("internal", 500, detail, {"incident": incident})


def answer_jobx_error(error: JobxError) -> Response:
    if error.status >= 500 and not isinstance(error, HandlerFailed):
        log.warning("Answered %s: %s method=%s path=%s", error.status, error, request.method, request.path)
    response = problem(error.slug, error.status, str(error), facts_of(error))
    if request_id := getattr(error, "request_id", None):
        g.request_id = request_id
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="jobx"'
    elif error.status == 503:
        response.headers["Retry-After"] = "1"
    elif error.status == 504 and request_id:
        response.headers["Location"] = url_of((request.view_args or {}).get("workflow", ""), request_id)
    if isinstance(error, HandlerFailed):
        response.headers["X-MR-EXCEPTION-TYPE"] = header_text(error.exception_type)
        response.headers["X-MR-EXCEPTION-MESSAGE"] = header_text(error.exception_message)
    return response


def answer_http_exception(error: HTTPException) -> Response:
    """What Flask and Werkzeug say by themselves: no such URL, no such method."""
    status = error.code or 500
    if status == 404:
        response = problem("not-found", 404, f"There is nothing at {request.path}. GET / says what there is.", {})
    elif status == 405 and request.path.startswith("/job/"):
        detail = f"A job is posted to, as in: curl -d '{{\"arguments\": {{}}}}' {request.base_url}"
        response = problem("method-not-allowed", 405, detail, {})
    else:
        response = problem(error.name.lower().replace(" ", "-"), status, error.description or error.name, {})
    for name, value in error.get_headers(request.environ):
        if name.lower() not in ("content-type", "content-length"):
            response.headers[name] = value
    return response


def problem(slug: str, status: int, detail: str, facts: Mapping[str, object]) -> Response:
    body = msgspec.json.format(msgspec.json.encode(document(slug, status, detail, facts)), indent=0)
    return Response(body + b"\n", status, content_type=PROBLEM)
