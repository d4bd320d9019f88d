"""Requests in a store, as the engine would have left them, for tests of what shows them."""

from __future__ import annotations

from typing import Any

import msgspec

from mr.kv.base import Put, Store, Txn
from mr.model import ids, keys
from mr.model.entities import Direction, Failure, Invocation, Record, Request, decode, encode
from mr.model.records import Dataset, Done, Seal, Session
from mr.trace import tree

WORKFLOW = "shop"
NONCE = "abcdefgh"
BEGAN = 1_700_000_000.0


def put(store: Store, records: dict[str, Record]) -> None:
    items = list(records.items())
    for start in range(0, len(items), 100):
        page = tuple(Put(key, encode(record)) for key, record in items[start : start + 100])
        store.commit([Txn(puts=page)])


class Story:
    """One request. Every method adds records; nothing is in the store before :meth:`tell`."""

    def __init__(self, store: Store, workflow: str = WORKFLOW, now: float = BEGAN) -> None:
        self.store, self.workflow = store, workflow
        self.id = ids.new_request_id(workflow, now)
        self.root = ids.root_of(self.id)
        self.records: dict[str, Record] = {}
        self.request(state="running")

    def request(self, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "request_id": self.id,
            "workflow_name": self.workflow,
            "job_name": "revenue",
            "invocation_id": self.root,
            "context": {},
            "is_blocking": True,
            "is_done": changes.get("state") != "running",
            "failed_invocation_id": None,
            "state": "running",
            "manifest": "0",
            "created_timestamp": BEGAN,
            "ended_timestamp": None if changes.get("state") == "running" else BEGAN + 2,
        }
        self.records[keys.request(self.workflow, self.id)] = Request(**{**fields, **changes})

    def invocation(self, invocation_id: str, step: str, state: str = "done", took: float = 0.01, **more: Any) -> str:
        direction: Direction = "reduce" if ids.is_reduce(invocation_id) else "map"
        has_ended = state in ("done", "failed")
        fields: dict[str, Any] = {
            "invocation_id": invocation_id,
            "request_id": self.id,
            "workflow_name": self.workflow,
            "parent_invocation_id": None if ids.is_root(invocation_id) else ids.parent_of(invocation_id),
            "step_name": step,
            "direction": direction,
            "state": state,
            "attempt": 0 if state == "ready" else 1,
            "mapped_count": 0 if direction == "map" and state in ("done", "reducing") else None,
            "error": None,
            "worker": None if state == "ready" else "host-1",
            "created_timestamp": BEGAN,
            "started_timestamp": None if state == "ready" else BEGAN,
            "ended_timestamp": BEGAN + took if has_ended else None,
            "partitions": 1 if direction == "map" and state in ("done", "reducing") else 0,
        }
        self.records[keys.invocation(self.workflow, self.id, invocation_id)] = Invocation(**{**fields, **more})
        return invocation_id

    def leaf(self, invocation_id: str, step: str, took: float = 0.01) -> str:
        """A map that returned, with its reduce, both done."""
        self.invocation(invocation_id, step, took=took)
        self.invocation(ids.reduce_of(invocation_id, 0), step, took=took)
        return invocation_id

    def failure(self, invocation_id: str, step: str, message: str = "no", **more: Any) -> str:
        error = failed(message)
        return self.invocation(invocation_id, step, "failed", error=error, **more)

    def seal(self, invocation_id: str, step: str, children: int, bounds: list[int] | None = None) -> None:
        self.records[keys.seal(self.workflow, self.id, invocation_id)] = Seal(
            nonce=NONCE,
            step_name=step,
            children=children,
            bounds=[0] if bounds is None else bounds,
            epoch=0,
            tolerated=0,
            shielded=False,
            open=True,
        )

    def child(self, parent: str, slot: int) -> str:
        return ids.child_of(parent, NONCE, slot)

    def dataset(self, key: str, pairs: list[Any]) -> None:
        text = msgspec.json.encode(pairs)
        self.records[key] = Dataset(count=len(pairs), pairs=msgspec.Raw(text), bytes=len(text))

    def output(self, invocation_id: str, pairs: list[Any]) -> None:
        text = msgspec.json.encode(pairs)
        dataset = Dataset(count=len(pairs), pairs=msgspec.Raw(text), bytes=len(text))
        key = keys.done(self.workflow, self.id, invocation_id)
        self.records[key] = Done(ok=True, nonce=NONCE, output=dataset)

    def session(self, invocation_id: str, values: dict[str, Any]) -> None:
        key = keys.session(self.workflow, self.id, invocation_id)
        self.records[key] = Session(values=msgspec.Raw(msgspec.json.encode(values)))

    def told(self) -> tuple[Store, Request]:
        """The store and the request in it, once all is told."""
        self.tell()
        return self.store, found_request(self)

    def tell(self) -> str:
        put(self.store, self.records)
        return self.id


def failed(message: str = "no") -> Failure:
    traceback = (
        "Traceback (most recent call last):\n"
        '  File "shop/orders.py", line 5, in mapper\n'
        "    yield region, amount / 0\n"
        f"ZeroDivisionError: {message}"
    )
    return Failure(
        exception_type="ZeroDivisionError",
        exception_message=message,
        traceback=traceback,
        attempt=1,
        handler_name="orders",
    )


def load(story: Story) -> tree.Tree:
    return tree.load(story.store, story.workflow, story.tell())


def found_request(story: Story) -> Request:
    key = keys.request(story.workflow, story.tell())
    [entry] = story.store.get([key])
    assert entry is not None
    return decode(Request, key, entry.value)


def shop(story: Story, children: int = 2) -> None:
    """Two levels, all done."""
    story.invocation(story.root, "regions", mapped_count=children, took=1.5)
    story.seal(story.root, "region", children)
    for slot in range(children):
        story.leaf(story.child(story.root, slot), "region", took=0.02)
    story.invocation(ids.reduce_of(story.root, 0), "regions")
    story.request(state="done")


def fail_child(story: Story, slot: int, message: str = "division by zero", **more: Any) -> str:
    """Lets one of the children of :func:`shop` have failed, and the request with it."""
    child = story.child(story.root, slot)
    story.failure(child, "region", message, **more)
    story.records.pop(keys.invocation(story.workflow, story.id, ids.reduce_of(child, 0)), None)
    story.request(state="failed", failed_invocation_id=child)
    return child
