"""What is asked of a redrive, over HTTP and by command, on platforms that nobody works on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_runs import Commands
from test_web_application import Stack, done, is_problem, open_stack

from mr.cli import redriving, requests, submitting
from mr.engine import redrive
from mr.engine.ops import Change, Read
from mr.engine.shell import to_txn
from mr.kv.base import Put, Txn
from mr.model import catalog, deliveries, ids, keys
from mr.model.catalog import Draft
from mr.model.entities import Failure, Invocation, Request, decode, encode
from mr.model.records import Dataset, Done, Seal
from mr.queue.base import Message

FAILURE = Failure(exception_type="ValueError", exception_message="no", attempt=1)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    opened = open_stack(tmp_path)
    yield opened
    opened.front.stop()


def failed(stack: Stack) -> str:
    request_id = stack.submit()
    stack.fail(request_id, FAILURE)
    return request_id


def root_of(stack: Stack, request_id: str) -> Invocation:
    key = keys.invocation("words", request_id, ids.root_of(request_id))
    [entry] = stack.store.get([key])
    assert entry is not None
    return decode(Invocation, key, entry.value)


def test_a_failed_request_runs_again(stack: Stack) -> None:
    request_id = failed(stack)
    answer = stack.client.post(f"/request/words/{request_id}/redrive")
    assert answer.status_code == 202
    assert answer.headers["Location"].endswith(f"/request/words/{request_id}")
    assert answer.headers["X-MR-REQUEST-ID"] == request_id
    status = answer.get_json()
    assert (status["state"], status["is_done"], status["epoch"], status["error"]) == ("running", False, 1, None)
    assert stack.running() == [request_id]
    assert stack.client.get(f"/request/words/{request_id}/result").status_code == 202
    root = root_of(stack, request_id)
    assert (root.state, root.failures, root.error) == ("ready", 0, FAILURE)
    is_problem(stack.client.post(f"/request/words/{request_id}/redrive"), 409, "request-runs")


def test_what_the_end_left_goes(stack: Stack) -> None:
    request_id = failed(stack)
    expiring = msgspec.structs.replace(stack.request(request_id), expires_timestamp=2e9)
    was_done = msgspec.structs.replace(expiring, state="done", writer="http", notify=["https://example.com/"])
    (result, record), (notification, notice) = deliveries.of_end(was_done)
    stack.put((result, record), (deliveries.dead_key(result), record), (notification, notice))
    expire = keys.expire("words", 2e9, request_id)
    stack.put(
        (keys.request("words", request_id), expiring), (expire, done()), (keys.result("words", request_id), done())
    )
    assert stack.client.post("/request/words/last/redrive").status_code == 202
    again = stack.request(request_id)
    assert (again.expires_timestamp, again.ended_timestamp, again.failed_invocation_id) == (None, None, None)
    gone = [expire, keys.result("words", request_id), result, deliveries.dead_key(result)]
    assert stack.store.get(gone) == [None] * 4
    # That it had ended is still told.
    assert stack.store.get([notification]) != [None]


def test_it_is_said_why_a_request_is_not_redriven(stack: Stack) -> None:
    running = stack.submit()
    is_problem(stack.client.post(f"/request/words/{running}/redrive"), 409, "request-runs")
    stack.end(running, "expiring")
    is_problem(stack.client.post(f"/request/words/{running}/redrive"), 410, "request-expired")
    is_problem(stack.client.post("/request/words/x/redrive"), 404, "request-not-found")
    is_problem(stack.client.post("/request/wrods/last/redrive"), 404, "workflow-not-found")
    well = stack.submit()
    root = msgspec.structs.replace(root_of(stack, well), state="done", partitions=1, mapped_count=0)
    at = ("words", well, ids.root_of(well))
    stack.succeed(well, done(("a", 1)), (keys.done(*at), done(("a", 1))), (keys.invocation(*at), root))
    problem = is_problem(stack.client.post(f"/request/words/{well}/redrive"), 409, "nothing-to-redrive")
    assert "nothing in it has failed" in problem["detail"]
    assert stack.request(well).epoch == 0


def test_what_the_workflow_lacks_now_is_named_and_the_old_may_serve(stack: Stack) -> None:
    request_id = failed(stack)
    manifest = stack.request(request_id).manifest

    def drop(draft: Draft) -> None:
        for job in ("wordcount", "brief"):
            del draft.jobs[job]
        del draft.steps["count"]

    catalog.change(stack.store, "words", drop)
    problem = is_problem(stack.client.post(f"/request/words/{request_id}/redrive"), 409, "steps-missing")
    assert "the job 'wordcount', the step 'count'" in problem["detail"]
    assert stack.request(request_id).state == "failed"
    answer = stack.client.post(f"/request/words/{request_id}/redrive", json={"manifest": "same"})
    assert answer.get_json()["manifest"] == manifest


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        (b"[]", None),
        (b"{", None),
        (b'{"manifest": "old"}', "manifest"),
        (b'{"manifest": null}', "manifest"),
        (b'{"arguments": {}}', "arguments"),
    ],
)
def test_a_body_that_asks_for_anything_else_is_refused(stack: Stack, body: bytes, parameter: str | None) -> None:
    request_id = failed(stack)
    problem = is_problem(stack.client.post(f"/request/words/{request_id}/redrive", data=body), 400, "invalid-input")
    assert problem.get("parameter") == parameter
    is_problem(stack.client.post(f"/request/words/{request_id}/redrive?wait=1"), 400, "invalid-input")
    assert stack.request(request_id).epoch == 0


def begin(stack: Stack, request_id: str) -> None:
    """A redrive whose process dies as soon as it has begun."""
    key = keys.request("words", request_id)
    [entry] = stack.store.get([key])
    assert entry is not None
    read = Read(key, decode(Request, key, entry.value), entry.created, entry.modified, entry.version)
    stack.store.commit([to_txn(redrive.begin(read, stack.request(request_id).manifest, (), 0.0))])


def test_one_that_was_cut_short_runs_for_those_who_ask_and_is_finished_or_cancelled(stack: Stack) -> None:
    first, second = failed(stack), failed(stack)
    for request_id in (first, second):
        begin(stack, request_id)
        status = stack.client.get(f"/request/words/{request_id}").get_json()
        assert (status["state"], status["is_done"], status["is_redriving"]) == ("running", False, True)
        assert stack.client.get(f"/request/words/{request_id}/result").status_code == 202
    assert stack.client.post(f"/request/words/{first}/redrive").status_code == 202
    assert stack.client.delete(f"/request/words/{second}").get_json()["state"] == "cancelled"
    assert stack.running() == [first]
    assert not stack.store.list(keys.redrives("words"))
    assert [(stack.request(one).epoch, stack.request(one).is_redriving) for one in (first, second)] == [(1, False)] * 2


def test_many_partitions_are_put_back_a_page_at_a_time(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id, partitions = stack.submit(), 300
    root_id = ids.root_of(request_id)
    root = msgspec.structs.replace(root_of(stack, request_id), state="reducing", partitions=partitions, mapped_count=0)
    stack.end(request_id, "cancelled", (keys.invocation("words", request_id, root_id), root))
    puts = []
    for part in range(partitions):
        one = ids.reduce_of(root_id, part)
        running = msgspec.structs.replace(
            root, invocation_id=one, state="running", direction="reduce", lost=3, stdout="x" * 20_000
        )
        puts.append(Put(keys.invocation("words", request_id, one), encode(running)))
        if part % 3 == 0:
            puts.append(Put(keys.done("words", request_id, one), encode(Done(ok=True, nonce="n"))))
    for start in range(0, len(puts), 100):
        stack.store.commit([Txn(puts=tuple(puts[start : start + 100]))])
    pages: list[tuple[int, int]] = []
    make = redrive.page

    def measured(*given: Any) -> Change:
        change = make(*given)
        txn = to_txn(change)
        pages.append((len(txn.puts) + len(txn.deletes), sum(len(put.value) for put in txn.puts)))
        return change

    monkeypatch.setattr(redrive, "page", measured)
    assert stack.client.post(f"/request/words/{request_id}/redrive").status_code == 202
    # What etcd takes at a time.
    assert all(operations <= 128 and size <= 1_000_000 for operations, size in pages)
    assert len(pages) > 8
    records = [
        decode(Invocation, entry.key, entry.value)
        for entry in stack.store.list(keys.invocation("words", request_id, f"{root_id}.r"))
    ]
    again = {ids.partition_of(one.invocation_id) for one in records if (one.state, one.lost) == ("ready", 0)}
    assert again == {part for part in range(partitions) if part % 3}


def test_what_is_done_well_is_kept_and_the_first_others_of_each_shard_are_sent(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def publish(messages: Sequence[Message]) -> None:
        sent.extend(ids.slot_of(json.loads(message.body)["invocation"]) for message in messages)

    request_id = stack.submit()
    root_id = ids.root_of(request_id)
    children, shards = 40, 2
    sealed = Seal(
        nonce="abcdefgh",
        step_name="count",
        children=children,
        bounds=[0],
        epoch=0,
        tolerated=0,
        shielded=False,
        open=False,
        shards=shards,
        window=6,
    )
    root = msgspec.structs.replace(
        root_of(stack, request_id), state="failed", partitions=1, mapped_count=children, need=children
    )
    chunk = Dataset(count=children, pairs=msgspec.Raw(b"[]"))
    stack.end(
        request_id,
        "failed",
        (keys.invocation("words", request_id, root_id), root),
        (keys.seal("words", request_id, root_id), sealed),
        (keys.chunk("words", request_id, root_id, "abcdefgh", 0), chunk),
        failed=root_id,
    )
    well = {*range(0, 20), 21, 39}
    for slot in well:
        stack.put((keys.done("words", request_id, ids.child_of(root_id, "abcdefgh", slot)), done()))
    monkeypatch.setattr(stack.queue, "publish", publish)
    assert stack.client.post(f"/request/words/{request_id}/redrive").status_code == 202
    # Three of each of two shards.
    assert sorted(sent) == [20, 22, 23, 24, 25, 27]
    again = root_of(stack, request_id)
    assert (again.state, again.need, again.epoch) == ("waiting", children - len(well), 1)
    key = keys.seal("words", request_id, root_id)
    [entry] = stack.store.get([key])
    assert entry is not None
    opened = decode(Seal, key, entry.value)
    assert (opened.open, opened.epoch, opened.needs) == (True, 1, (10, 8))
    progress = stack.client.get(f"/request/words/{request_id}").get_json()["progress"]
    assert progress == {"state": "waiting", "children": children, "ended": len(well), "failed": 0}


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path) -> Commands:
    commands = Commands(tmp_path)
    commands.create_words()
    return commands


def create(words: Commands) -> str:
    return str(words.printed(submitting.create, "words", "wordcount", "-a", "text", "a b")["primary_key"])


def test_the_commands_run_a_request_again_and_say_why_not(words: Commands) -> None:
    request_id = create(words)
    assert "has not ended" in words.said(redriving.classic_redrive, "words", "last")
    words.printed(requests.classic_cancel, "words", request_id)
    shown: dict[str, Any] = json.loads(words.jobx("request", "redrive", "last").stdout)["data"]
    assert (shown["request_id"], shown["state"], shown["epoch"]) == (request_id, "running", 1)
    words.printed(requests.classic_cancel, "words", request_id)
    shown = words.printed(redriving.classic_redrive, "words", request_id, "--same-manifest")["data"]
    assert (shown["state"], shown["epoch"]) == ("running", 2)
    assert "mistyped" in words.said(redriving.classic_redrive, "words", "x")
    assert words.jobx("request", "redrive").exit_code == 2
