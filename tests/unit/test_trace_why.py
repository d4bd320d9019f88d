from __future__ import annotations

import pytest
from trace_requests import WORKFLOW, Story, failed

from mr.kv.memory import MemoryStore
from mr.model import ids, keys
from mr.model.entities import Failure, Request, decode
from mr.model.places import Place, place_of
from mr.model.records import FailedChild
from mr.trace.why import Why, explain


@pytest.fixture
def story() -> Story:
    return Story(MemoryStore())


def explained(story: Story) -> Why:
    key = keys.request(WORKFLOW, story.tell())
    [entry] = story.store.get([key])
    assert entry is not None
    return explain(story.store, decode(Request, key, entry.value))


def too_many(child: str, message: str) -> Failure:
    """What the engine says of a parent that tolerates fewer failures than it has."""
    message = f"3 of 9 children failed and 2 may; one is {child}: {message}"
    return Failure(exception_type="ZeroDivisionError", exception_message=message, attempt=1)


def note_failed(story: Story, child: str, shard: int = 0) -> None:
    key = keys.failed(WORKFLOW, story.id, ids.parent_of(child), 0, shard)
    story.records[key] = FailedChild(invocation_id=child, exception_type="ZeroDivisionError", exception_message="no")


def test_the_path_leads_from_the_root_to_the_child_that_failed(story: Story) -> None:
    child = story.child(story.root, 2)
    story.request(state="failed", failed_invocation_id=child)
    story.invocation(story.root, "split", "waiting", mapped_count=9)
    story.seal(story.root, "region", 9)
    story.failure(child, "region", stdout="before\n", stderr="".join(f"{n}\n" for n in range(100)), worker="host-7")
    why = explained(story)
    assert [(stop.step_name, stop.direction, stop.number, stop.siblings) for stop in why.path] == [
        ("split", "map", None, None),
        ("region", "map", 2, 9),
    ]
    assert why.invocation_id == child
    assert why.failure == failed()
    assert why.place == Place("shop/orders.py", 5, "yield region, amount / 0")
    assert (why.handler_name, why.attempt, why.worker) == ("orders", 1, "host-7")
    assert why.stdout == "before"
    assert why.stderr.splitlines() == ["…", *(str(n) for n in range(80, 100))]
    assert not why.is_tolerated
    assert why.commands[0] == f"jobx request tree {WORKFLOW} {story.id}"
    assert f"mr_kv_invocation_get {WORKFLOW} {child}" in why.commands


def test_a_map_that_failed_with_its_reduce_is_explained_by_the_reduce(story: Story) -> None:
    story.request(state="failed", failed_invocation_id=story.root)
    story.invocation(story.root, "split", "failed", error=failed(), partitions=3, stdout="of the map")
    story.invocation(ids.reduce_of(story.root, 0), "split")
    story.failure(ids.reduce_of(story.root, 1), "split", stdout="of the reduce")
    why = explained(story)
    assert [(stop.direction, stop.number, stop.siblings) for stop in why.path] == [
        ("map", None, None),
        ("reduce", 1, 3),
    ]
    assert why.stdout == "of the reduce"


def test_below_parents_with_too_many_failures_one_that_failed_itself_is_found(story: Story) -> None:
    child = story.child(story.root, 4)
    leaf = story.child(child, 1)
    story.request(state="failed", failed_invocation_id=story.root)
    story.invocation(story.root, "split", "failed", error=too_many(child, "x"), mapped_count=9)
    story.seal(story.root, "region", 9)
    story.invocation(child, "region", "failed", error=too_many(leaf, "no"), mapped_count=2)
    story.failure(leaf, "count")
    note_failed(story, child, 10)
    note_failed(story, leaf, 3)
    why = explained(story)
    assert [stop.step_name for stop in why.path] == ["split", "region", "count"]
    assert why.failure == failed()
    assert why.summary.startswith("ZeroDivisionError: 3 of 9 children failed and 2 may")


def test_a_tolerated_failure_is_explained_as_one(story: Story) -> None:
    child = story.child(story.root, 0)
    story.request(state="done")
    story.invocation(story.root, "split", mapped_count=2)
    story.failure(child, "region")
    note_failed(story, child)
    why = explained(story)
    assert why.is_tolerated
    assert why.invocation_id == child


def test_an_attempt_of_the_root_that_is_repeated_is_explained(story: Story) -> None:
    story.invocation(story.root, "split", "ready", error=failed(), failures=1)
    why = explained(story)
    assert why.is_tolerated
    assert why.failure == failed()


@pytest.mark.parametrize("state", ["running", "done", "cancelled"])
def test_where_nothing_failed_there_is_nothing_to_explain(story: Story, state: str) -> None:
    story.request(state=state)
    story.invocation(story.root, "split")
    why = explained(story)
    assert (why.failure, why.path) == (None, [])
    assert why.commands[0] == f"jobx request tree {WORKFLOW} {story.id}"


def test_an_invocation_that_is_gone_explains_nothing(story: Story) -> None:
    story.request(state="failed", failed_invocation_id=story.root)
    assert explained(story).failure is None


# --- places ----------------------------------------------------------------------------------------------------


def traceback(*frames: str) -> str:
    return "\n".join(["Traceback (most recent call last):", *frames, "ValueError: no"])


ORDERS = '  File "orders.py", line 7, in mapper\n    yield int(word)\n          ~~~^^^^^^'
LIBRARY = '  File "/usr/lib/python3/json/decoder.py", line 3, in decode\n    raise ValueError'


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (traceback(ORDERS), Place("orders.py", 7, "yield int(word)")),
        (traceback(ORDERS, LIBRARY), Place("orders.py", 7, "yield int(word)")),
        (traceback(ORDERS, '  File "<string>", line 1, in f'), Place("orders.py", 7, "yield int(word)")),
        (traceback('  File "orders.py", line 7, in mapper', LIBRARY), Place("orders.py", 7, "")),
        (traceback('  File "orders.py", line 7, in mapper'), Place("orders.py", 7, "")),
        ('  |   File "a b.py", line 2, in f\n  |     raise ValueError', Place("a b.py", 2, "raise ValueError")),
        (traceback(LIBRARY), None),
        ("", None),
    ],
)
def test_the_place_is_the_last_line_of_a_handler(told: str, expected: Place | None) -> None:
    assert place_of(told) == expected
