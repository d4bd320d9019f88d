"""``mr_get_request_sessions``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import msgspec

from mr.cli import output
from mr.cli.edge import Command, say, store
from mr.cli.requests import find
from mr.kv.base import Store
from mr.model import keys
from mr.model.entities import Invocation, decode
from mr.model.records import Session

_PAGE = 200
_SHOWN_CHARACTERS = 200


@click.command(cls=Command, example="$ mr_get_request_sessions words last")
@click.argument("workflow")
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, with values in full.")
def sessions(workflow: str, request_id: str, as_json: bool) -> None:
    """Show what the invocations of a request have in their sessions; `last` is the newest of the workflow.

    A session is written when its mapper, with its combiner, has ended.
    """
    opened = store()
    request = find(opened, workflow, request_id)
    found = list(_sessions(opened, workflow, request.request_id))
    if as_json:
        output.document(found)
        return
    output.table(["invocation", "step", "name", "value"], (row for one in found for row in _rows(one)))
    if not found:
        say(f"No invocation of {request.request_id} has set anything in its session.")


def _sessions(opened: Store, workflow: str, request_id: str) -> Iterator[dict[str, Any]]:
    """Those that hold something, in the order of their invocations' IDs."""
    prefix = keys.session(workflow, request_id, "")
    after = ""
    while page := opened.list(prefix, after=after, limit=_PAGE):
        after = page[-1].key
        names = [entry.key.removeprefix(prefix) for entry in page]
        invocations = opened.get([keys.invocation(workflow, request_id, name) for name in names])
        for name, entry, invocation in zip(names, page, invocations, strict=True):
            values = msgspec.json.decode(decode(Session, entry.key, entry.value).values)
            if values:
                step = None if invocation is None else decode(Invocation, invocation.key, invocation.value).step_name
                yield {"invocation_id": name, "step_name": step, "values": values}


def _rows(one: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in sorted(one["values"].items()):
        text = msgspec.json.encode(value).decode()
        if len(text) > _SHOWN_CHARACTERS:
            text = f"{text[:_SHOWN_CHARACTERS]}… ({len(text):,} characters)"
        yield one["invocation_id"], one["step_name"] or "", name, text
