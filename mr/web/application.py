"""The WSGI application: the views, who may use them, and the one place where errors become answers."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from mr.errors import JobxError, WorkflowNotFound
from mr.web.access import ANYONE, Access, Caller, Need
from mr.web.front import Front
from mr.web.limits import WorkflowFull
from mr.web.problems import ForeignOrigin, HandlerFailed, document, facts_of, header_text
from mr.web.proxies import Proxies, check_forwarded
from mr.web.views import Views, url_of

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"

FRONT = "jobx"
"""Under this name the application's ``extensions`` have its front end."""


def create_app(front: Front) -> Flask:
    """The application over a started front end."""
    # static_folder would serve files; there are none to serve.
    app = Flask("mr.web", static_folder=None)
    needs = Views(front).register(app)
    fulfilled_by = f"{socket.gethostname()}:{os.getpid()}"
    app.extensions[FRONT] = front
    app.wsgi_app = Proxies(app.wsgi_app, front.config.trusted_proxies)  # type: ignore[method-assign]

    @app.before_request
    def guard() -> None:
        check_forwarded(request.environ)
        check_caller(front.access, needs)
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


def check_caller(access: Access, needs: Mapping[str, Need]) -> None:
    """Finds out who asks, for the views, and whether that one may. ``needs`` has what each endpoint takes.

    :raises Unauthorized, Forbidden: that one may not.
    :raises StoreUnavailable: that cannot be told now.
    """
    # A URL at which there is nothing says so to those who could use others.
    need = Need.TOKEN if request.endpoint is None else needs.get(request.endpoint)
    g.need, g.caller = need, ANYONE
    if need is not Need.NOTHING:
        g.caller = access.caller(request.headers.get("Authorization", ""), request.remote_addr or "")
        g.caller.check(need, (request.view_args or {}).get("workflow"))


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
    response = problem(error.slug, error.status, detail_of(error), facts_of(error))
    if request_id := getattr(error, "request_id", None):
        g.request_id = request_id
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="jobx"'
    elif error.status == 503:
        response.headers["Retry-After"] = "1"
    elif isinstance(error, WorkflowFull):
        response.headers["Retry-After"] = str(error.retry_after_s)
    elif error.status == 504 and request_id:
        response.headers["Location"] = url_of((request.view_args or {}).get("workflow", ""), request_id)
    if isinstance(error, HandlerFailed):
        response.headers["X-MR-EXCEPTION-TYPE"] = header_text(error.exception_type)
        response.headers["X-MR-EXCEPTION-MESSAGE"] = header_text(error.exception_message)
    return response


def detail_of(error: JobxError) -> str:
    """What an error says, without what is not for whoever asks."""
    caller: Caller | None = g.get("caller")
    if isinstance(error, WorkflowNotFound) and caller is not None and not caller.sees_all_workflows:
        # Its hint names those that there are.
        return str(WorkflowNotFound(error.kind, error.name))
    return str(error)


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
