"""``mr_kv_invocation_create`` and ``mr_kv_t_mapped_steps_add``: records that the engine does not read."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from mr.cli import output
from mr.cli.edge import Command, store
from mr.cli.requests import find
from mr.errors import Conflict, InvalidInput, InvocationNotFound, RequestExpired, RequestRuns, StepNotFound
from mr.kv.base import Compare, Put, Store, Txn
from mr.model import catalog, ids, keys
from mr.model.collections import KvTree
from mr.model.entities import Failure, Invocation, Request, decode, encode

_BY_HAND = "by hand"
_COLLECTION = "mapped_steps"


def _read(opened: Store, workflow: str, request_id: str) -> tuple[Request, Compare]:
    """A request with what says that it has not changed since.

    :raises RequestExpired: it is being removed.
    """
    found = find(opened, workflow, request_id)
    key = keys.request(workflow, found.request_id)
    [entry] = opened.get([key])
    request = None if entry is None else decode(Request, key, entry.value)
    if entry is None or request is None or request.state == "expiring":
        raise RequestExpired(f"The request {found.request_id!r} is being removed.")
    return request, Compare("modified", key, entry.modified, "request")


@click.command(
    "create",
    cls=Command,
    example="$ mr_kv_invocation_create words last count\n"
    '$ mr_kv_invocation_create words last count --error "the texts were unreadable"',
)
@click.argument("workflow")
@click.argument("request_id")
@click.argument("step")
@click.option("--parent", metavar="INVOCATION_ID", help="The map invocation above it; the root, if not given.")
@click.option("--error", metavar="TEXT", help="It failed, with that message; otherwise it is done.")
def create_invocation(workflow: str, request_id: str, step: str, parent: str | None, error: str | None) -> None:
    """Record a map invocation by hand, below one of a request that has ended; `last` is the newest.

    Nothing runs by it, and no result changes: it is for notes of what was done outside JobX, and for tools and their
    tests. mr_kv_invocation_get prints it, trees show what ran only, and it goes with its request.
    """
    opened = store()
    request, unchanged = _read(opened, workflow, request_id)
    if not request.is_done:
        raise RequestRuns(workflow, request.request_id)
    steps = catalog.read_manifest(opened, workflow, request.manifest).steps
    if step not in steps:
        raise StepNotFound("step", step, f"What the request ran on has: {', '.join(sorted(steps))}.")
    above = _parent(opened, request, parent or request.invocation_id)
    now = time.time()
    invocation_id = ids.child_of(above, ids.new_nonce(), 0)
    record = Invocation(
        invocation_id=invocation_id,
        request_id=request.request_id,
        workflow_name=workflow,
        parent_invocation_id=above,
        step_name=step,
        direction="map",
        state="done" if error is None else "failed",
        attempt=0,
        mapped_count=0,
        error=None if error is None else Failure(exception_type="ByHand", exception_message=error),
        worker=_BY_HAND,
        created_timestamp=now,
        started_timestamp=now,
        ended_timestamp=now,
    )
    live = Compare("version", keys.live(workflow, request.request_id), 0, "live")
    put = Put(keys.invocation(workflow, request.request_id, invocation_id), encode(record))
    if not catalog.settle(opened, Txn((unchanged, live), (put,))):
        raise Conflict(f"The request {request.request_id} was changed meanwhile. Look, and try again.")
    output.entity("invocation", invocation_id, record)


def _parent(opened: Store, request: Request, invocation_id: str) -> str:
    """
    :raises InvocationNotFound, InvalidInput: nothing can be put below it.
    """
    where = f"For those that there are: mr_get_invocation_flat_list {request.workflow_name} {request.request_id}"
    if ids.request_of(invocation_id) != request.request_id:
        raise InvalidInput(f"{invocation_id!r} is no invocation of the request {request.request_id}. {where}", "parent")
    key = keys.invocation(request.workflow_name, request.request_id, invocation_id)
    [entry] = opened.get([key]) if key.isascii() and key.isprintable() else [None]
    if entry is None:
        raise InvocationNotFound("invocation", invocation_id, where)
    if decode(Invocation, key, entry.value).direction != "map":
        raise InvalidInput(f"{invocation_id!r} is a reduce: what it is put below has to be a map. {where}", "parent")
    return invocation_id


@click.command(
    cls=Command,
    example="$ mr_kv_t_mapped_steps_add words last files count\n"
    "$ mr_kv_t_mapped_steps_add words last files --value '{\"seen\": 2}'",
)
@click.argument("workflow")
@click.argument("request_id")
@click.argument("path", nargs=-1, required=True, metavar="STEP...")
@click.option("--value", "text", metavar="JSON", default="null", help="What to note there; null, if not given.")
def add_mapped_steps(workflow: str, request_id: str, path: tuple[str, ...], text: str) -> None:
    """Note in a request's tree of mapped steps that one step mapped to the next; `last` is the newest request.

    The tree is a collection for tools: it is printed as it is then, the engine does not read it, and it goes with its
    request.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--value is no JSON: {error}.") from None
    if not all(path):
        raise click.UsageError("The name of a step is empty.")
    opened = store()
    while True:
        request, unchanged = _read(opened, workflow, request_id)
        tree = KvTree(opened, keys.tree(workflow, request.request_id, _COLLECTION))
        # Else what is noted as the request ends could outlive it.
        if tree.set(path, value, (unchanged,)):
            break
    shown = {"entity_name": _COLLECTION, "primary_key": request.request_id, "data": _below(tree, ())}
    output.document(shown)


def _below(tree: KvTree, path: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for name in tree.children(path):
        here = (*path, name)
        found.append({"step": name, "value": tree.get(here), "mapped_to": _below(tree, here)})
    return found
