"""``mr_kv_request_create``: a POST without HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mr.cli import output, policies
from mr.cli.edge import Command, platform, say
from mr.cli.requests import find, front
from mr.errors import InvalidInput
from mr.model import catalog, keys
from mr.model.entities import Invocation, Parameter, Request, decode

if TYPE_CHECKING:
    from mr.engine.shell import Platform
    from mr.kv.base import Store

_FIRST_PAUSE_S = 0.02
_LAST_PAUSE_S = 0.5


@click.command(
    cls=Command,
    example='$ mr_kv_request_create words wordcount -a text "to be or not to be"\n'
    '$ mr_kv_request_create words wordcount -a text "let it be" --name song --wait 10',
)
@click.argument("workflow")
@click.argument("job")
@click.option(
    "-a",
    "--argument",
    "given",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="An argument. Where the job declares its parameters, the value is cast to the declared type; otherwise it is "
    "JSON if it can be read as JSON, and text if not. May be repeated.",
)
@click.option("--name", metavar="NAME", help="What the request is called where requests are listed.")
@policies.writer("the job's, the workflow's or the platform's")
@policies.notify(", and adds to those of job and workflow")
@policies.retention("The job's, the workflow's or the platform's, if not given.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0),
    metavar="S",
    help="Wait up to so many seconds for its end. Then what is printed is the ended request, and the exit code is 0 if "
    "it is done, 1 if it failed, was cancelled or still runs.",
)
def create(
    workflow: str,
    job: str,
    given: tuple[tuple[str, str], ...],
    name: str | None,
    writer: str | None,
    notify: Sequence[str],
    retention_s: int | None,
    wait_s: float | None,
) -> None:
    """Submit a request, and print it. It is worked on by whatever workers there are.

    It is turned away like a POST where the workflow has as much to do as it may have.
    """
    names = [name for name, _ in given]
    for one in names:
        if names.count(one) > 1:
            raise click.UsageError(f"The argument {one!r} is given twice.")
    opened = platform()
    declared = _declared(opened, workflow, job)
    post: dict[str, Any] = {"arguments": {one: _value(declared.get(one), value) for one, value in given}}
    for field, wish in (("name", name), ("writer", writer), ("notify", list(notify)), ("retention_s", retention_s)):
        if wish not in (None, []):
            post[field] = wish
    taker = front(opened)
    context = {"requester_ip": "127.0.0.1"}
    submitted = taker.post(workflow, job, json.dumps(post).encode(), wait_s=0, is_blocking=False, context=context)
    request = taker.request(workflow, submitted.request_id)
    if wait_s is not None:
        request = _wait(opened.store, request, wait_s)
    output.entity("request", request.request_id, request)
    if wait_s is not None and request.state != "done":
        say(_what_became(opened.store, request, wait_s))
        raise click.exceptions.Exit(1)


def _wait(opened: Store, request: Request, seconds: float) -> Request:
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_S
    while not request.is_done and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(_LAST_PAUSE_S, 1.5 * pause)
        request = find(opened, request.workflow_name, request.request_id)
    return request


def _what_became(opened: Store, request: Request, wait_s: float) -> str:
    workflow, request_id = request.workflow_name, request.request_id
    if not request.is_done:
        return f"The request {request_id} still runs after {wait_s:g} s: jobx request tree {workflow} {request_id}"
    why = ""
    if request.failed_invocation_id is not None:
        key = keys.invocation(workflow, request_id, request.failed_invocation_id)
        [entry] = opened.get([key])
        error = None if entry is None else decode(Invocation, key, entry.value).error
        if error is not None:
            why = f" {error.exception_type}: {error.exception_message} (jobx request why {workflow} {request_id})"
    return f"The request {request_id} {'has failed' if request.state == 'failed' else f'is {request.state}'}.{why}"


def _declared(opened: Platform, workflow: str, job: str) -> dict[str, Parameter]:
    """What the job's first mapper declares, by name; nothing where there is no such job, which submitting tells."""
    manifest = catalog.read(opened.store, workflow).manifest
    if job not in manifest.jobs:
        return {}
    version = manifest.handlers[manifest.steps[manifest.jobs[job].initial_step_name].map_handler_name]
    return {parameter.name: parameter for parameter in opened.handler(workflow, version).parameters}


def _value(parameter: Parameter | None, text: str) -> Any:
    """The text as it is for a declared type, which it will be cast to; of others what it says as JSON, if it does."""
    from mr.web import strict_json

    if parameter is not None and parameter.type != "any":
        return text
    try:
        return strict_json.parse(text.encode("utf-8", "surrogateescape"))
    except InvalidInput:
        return text
