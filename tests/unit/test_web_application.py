"""What every URL answers, over a platform in memory. Ends of requests are written as the engine would write them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mr.config import Config
from mr.engine.ops import Env
from mr.engine.shell import Platform
from mr.errors import QueueUnavailable, StoreUnavailable
from mr.fs.local import LocalFiles
from mr.handlers.header import read_handler
from mr.kv.base import Entry, Outcome, Put, Txn
from mr.kv.memory import MemoryStore
from mr.model import catalog, ids, keys, pairs
from mr.model.catalog import Draft
from mr.model.entities import Failure, Invocation, Job, Record, Request, Step, decode, encode
from mr.model.records import Dataset, Done, Idempotency
from mr.queue.base import Message
from mr.queue.memory import MemoryQueue
from mr.web.application import create_app
from mr.web.front import Front

DEADLINE_S = 20.0

MAPPER = "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
REDUCER = "def reducer(results):\n    yield from ()\n"
TYPED = (
    '"""\n**\nhandler_type: mapper\nparameters:\n'
    "    - {name: text, type: string, description: what to count}\n"
    "    - {name: times, type: integer, default: 2}\n"
    '"""\nyield MrConfigureToReturn()\n'
)


class FrailStore(MemoryStore):
    """A store that can be away."""

    is_away = False

    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        self._check()
        return super().get(keys)

    def commit(self, txns: Sequence[Txn]) -> list[Outcome]:
        self._check()
        return super().commit(txns)

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable("The store is away.")


class FrailQueue(MemoryQueue):
    """A queue that can be away."""

    is_away = False

    def publish(self, messages: Sequence[Message]) -> None:
        if self.is_away:
            raise QueueUnavailable("The queue is away.")
        super().publish(messages)


class Stack(NamedTuple):
    front: Front
    store: FrailStore
    queue: FrailQueue
    client: FlaskClient

    def request(self, request_id: str) -> Request:
        key = keys.request("words", request_id)
        [entry] = self.store.get([key])
        assert entry is not None
        return decode(Request, key, entry.value)

    def put(self, *records: tuple[str, Record], deletes: tuple[str, ...] = ()) -> None:
        self.store.commit([Txn(puts=tuple(Put(key, encode(record)) for key, record in records), deletes=deletes)])

    def end(self, request_id: str, state: Any, *records: tuple[str, Record], failed: str | None = None) -> None:
        ended = msgspec.structs.replace(
            self.request(request_id),
            state=state,
            is_done=True,
            failed_invocation_id=failed,
            ended_timestamp=time.time(),
        )
        self.put((keys.request("words", request_id), ended), *records, deletes=(keys.live("words", request_id),))

    def succeed(self, request_id: str, done: Done, *records: tuple[str, Record]) -> None:
        self.end(request_id, "done", (keys.result("words", request_id), done), *records)

    def fail(self, request_id: str, failure: Failure) -> None:
        key = keys.invocation("words", request_id, ids.root_of(request_id))
        [entry] = self.store.get([key])
        assert entry is not None
        root = msgspec.structs.replace(decode(Invocation, key, entry.value), state="failed", error=failure)
        self.end(request_id, "failed", (key, root), failed=root.invocation_id)

    def submit(self, **options: Any) -> str:
        """The ID of a new request."""
        answer = self.client.post("/job/words/wordcount?blocking=false", **options)
        assert answer.status_code == 202, answer.text
        request_id: str = answer.get_json()["request_id"]
        return request_id

    def running(self) -> list[str]:
        return [entry.key.rpartition("/")[2] for entry in self.store.list(keys.LIVE)]


def step(name: str, mapper: str) -> Step:
    return Step(
        step_name=name,
        workflow_name="words",
        description="",
        map_handler_name=mapper,
        combine_handler_name="",
        reduce_handler_name="add",
        timeout_s=0,
        max_attempts=1,
        partitions=1,
        max_failed_children=0,
    )


def fill(draft: Draft) -> None:
    for name, source in (("split", MAPPER), ("typed", TYPED), ("add", REDUCER)):
        draft.handlers[name] = read_handler("words", name, source, f"{name}.py")
    draft.steps["count"], draft.steps["typed"] = step("count", "split"), step("typed", "typed")
    for name, first, retention_s in (("wordcount", "count", None), ("typed", "typed", None), ("brief", "count", 5)):
        draft.jobs[name] = Job(
            job_name=name, workflow_name="words", description="", initial_step_name=first, retention_s=retention_s
        )


def open_stack(directory: Path, **settings: str) -> Stack:
    config = Config.read({"MR_DATA_DIR": str(directory), "MR_MAX_WAIT_S": f"{DEADLINE_S}", **settings})
    store, queue = FrailStore(), FrailQueue()
    catalog.change(store, "words", fill, create=True)
    front = Front(Platform(store, queue, LocalFiles(directory / "files")), config, Env.of(config))
    front.start()
    return Stack(front, store, queue, create_app(front).test_client())


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    opened: list[Stack] = []

    def open_one(**settings: str) -> Stack:
        opened.append(open_stack(tmp_path, **settings))
        return opened[-1]

    yield open_one
    for stack in opened:
        stack.front.stop()


@pytest.fixture
def stack(stacks: Callable[..., Stack]) -> Stack:
    return stacks()


def eventually(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.002)


def inline(*items: tuple[Any, Any]) -> Dataset:
    text = pairs.pairs_text(items)
    return Dataset(count=len(items), pairs=msgspec.Raw(text), bytes=len(text))


def done(*items: tuple[Any, Any]) -> Done:
    return Done(ok=True, nonce="n", output=inline(*items))


def is_problem(answer: TestResponse, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json"), answer.text
    problem: dict[str, Any] = json.loads(answer.text)
    assert problem["type"] == f"urn:jobx:{slug}", problem
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


class Blocked:
    """A POST that waits, in a thread of its own, once its request is there."""

    def __init__(self, stack: Stack, path: str = "/job/words/wordcount", **options: Any) -> None:
        before = set(stack.running())
        self._answer: TestResponse | None = None

        def post() -> None:
            self._answer = stack.client.application.test_client().post(path, **options)

        self._thread = threading.Thread(target=post, daemon=True)
        self._thread.start()
        eventually(lambda: bool(set(stack.running()) - before))
        [self.request_id] = set(stack.running()) - before

    def answer(self) -> TestResponse:
        self._thread.join(DEADLINE_S)
        assert self._answer is not None, "it is still blocked"
        return self._answer


# --- posting --------------------------------------------------------------------------------------------------------


def test_a_post_that_does_not_block_is_accepted_with_its_place(stack: Stack) -> None:
    answer = stack.client.post(
        "/job/words/wordcount?blocking=false", data=b'{"arguments": {"b": 1, "a": [2]}, "name": "n"}'
    )
    assert answer.status_code == 202
    body = answer.get_json()
    request_id = body["request_id"]
    assert body == {"request_id": request_id, "url": answer.headers["Location"], "result": None}
    assert answer.headers["Location"].endswith(f"/request/words/{request_id}")
    assert answer.headers["X-MR-REQUEST-ID"] == request_id
    assert answer.headers["X-FULFILLED-BY"]
    request = stack.request(request_id)
    assert (request.state, request.is_blocking, request.name, request.retention_s) == ("running", False, "n", 3600)
    assert request.context == {"requester_ip": "127.0.0.1"}
    key = keys.dataset("words", request_id, request.invocation_id, "arguments")
    [entry] = stack.store.get([key])
    assert entry is not None
    arguments = decode(Dataset, key, entry.value)
    assert (arguments.count, bytes(arguments.pairs or b"")) == (2, b'[["b",1],["a",[2]]]')


def test_a_blocking_post_answers_when_its_request_ends(stack: Stack) -> None:
    blocked = Blocked(stack, data=b"")
    stack.succeed(blocked.request_id, done(("be", 2), (("a", 1), {"x": [None]})))
    answer = blocked.answer()
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert answer.text == '{"result": {"pairs": [["be", 2], [["a", 1], {"x": [null]}]]}}\n'
    assert answer.headers["X-MR-REQUEST-ID"] == blocked.request_id
    assert stack.request(blocked.request_id).is_blocking


def test_an_end_is_told_by_the_watch(stacks: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mr.web.following.Ends.check", lambda self: None)
    stack = stacks()
    blocked = Blocked(stack)
    stack.succeed(blocked.request_id, done())
    assert blocked.answer().status_code == 200


def test_an_end_that_the_watch_was_not_told_is_found_by_looking(
    stacks: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mr.web.following.Ends.changed", lambda self, event: None)
    stack = stacks()
    blocked = Blocked(stack)
    stack.succeed(blocked.request_id, done())
    assert blocked.answer().text == '{"result": {"pairs": []}}\n'


def test_a_wait_that_was_bounded_by_the_client_ends_as_accepted(stack: Stack) -> None:
    answer = stack.client.post("/job/words/wordcount?wait=0.05")
    assert answer.status_code == 202
    assert stack.request(answer.get_json()["request_id"]).state == "running"


def test_a_wait_that_was_not_bounded_ends_with_504_and_the_request_goes_on(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_WAIT_S="0.05")
    answer = stack.client.post("/job/words/wordcount")
    problem = is_problem(answer, 504, "waited-too-long")
    assert answer.headers["Location"].endswith(f"/request/words/{problem['request_id']}")
    assert answer.headers["X-MR-REQUEST-ID"] == problem["request_id"]
    assert stack.request(problem["request_id"]).state == "running"


def test_a_longer_wait_than_the_longest_is_clipped(stacks: Callable[..., Stack]) -> None:
    assert stacks(MR_MAX_WAIT_S="0.05").client.post("/job/words/wordcount?wait=1000").status_code == 202


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "soon", "", "0x1"])
def test_a_wait_has_to_be_seconds(stack: Stack, wait: str) -> None:
    problem = is_problem(stack.client.post(f"/job/words/wordcount?wait={wait}"), 400, "invalid-input")
    assert problem["parameter"] == "wait"
    assert not stack.running()


@pytest.mark.parametrize("query", ["blocking=perhaps", "blocking=", "blokcing=false", "blocking=1&blocking=0"])
def test_query_parameters_are_checked(stack: Stack, query: str) -> None:
    problem = is_problem(stack.client.post(f"/job/words/wordcount?{query}"), 400, "invalid-input")
    assert problem["parameter"] == query.partition("=")[0]
    assert not stack.running()


@pytest.mark.parametrize("blocking", ["false", "0", "False"])
def test_blocking_is_a_truth_value(stack: Stack, blocking: str) -> None:
    assert stack.client.post(f"/job/words/wordcount?blocking={blocking}").status_code == 202


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"arguments": NaN}', None),
        (b"[" * 100_000, None),
        (b'{"arguments": {"a": "\\ud800"}}', None),
        (b'{"arguments": {"a": 1, "a": 2}}', None),
        (b'{"arguments": [1]}', "arguments"),
        (b'{"arguments": "a"}', "arguments"),
        (b'{"argument": {}}', "argument"),
        (b'{"writer": "fax"}', "writer"),
        (b'{"writer": "file:../a"}', "writer"),
        (b'{"writer": "mongodb"}', "writer"),
        (b'{"notify": "ftp://a"}', "notify"),
        (b'{"notify": ["mailto:nobody"]}', "notify"),
        (b'{"notify": "https://user:secret@a"}', "notify"),
        (b'{"input": ["file:///a"]}', "input"),
        (b'{"output": "file:///a"}', "output"),
        (b'{"name": 5}', "name"),
        (b'{"retention_s": 1.5}', "retention_s"),
        (b'{"retention_s": true}', "retention_s"),
        (b'{"retention_s": -2}', "retention_s"),
        (b'{"retention_s": 1e30}', "retention_s"),
    ],
)
def test_a_body_that_cannot_be_taken_is_refused_before_anything_is_recorded(
    stack: Stack, body: bytes, parameter: str | None
) -> None:
    problem = is_problem(stack.client.post("/job/words/wordcount", data=body), 400, "invalid-input")
    assert problem.get("parameter") == parameter
    assert not stack.store.list(keys.REQUESTS)


def test_an_unknown_field_is_told_with_the_nearest(stack: Stack) -> None:
    problem = is_problem(stack.client.post("/job/words/wordcount", data=b'{"argumets": {}}'), 400, "invalid-input")
    assert "Did you mean 'arguments'?" in problem["detail"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/json", ""])
def test_the_body_is_json_whatever_its_type_says(stack: Stack, content_type: str) -> None:
    request_id = stack.submit(data=b'{"name": "x"}', content_type=content_type)
    assert stack.request(request_id).name == "x"


@pytest.mark.parametrize(
    ("job", "asked", "kept"),
    [("wordcount", None, 3600), ("brief", None, 60), ("brief", 70, 70), ("wordcount", 0, 60), ("wordcount", -1, -1)],
)
def test_the_retention_is_the_posts_or_the_jobs_or_the_platforms(
    stack: Stack, job: str, asked: int | None, kept: int
) -> None:
    answer = stack.client.post(f"/job/words/{job}?blocking=false", json={"retention_s": asked})
    assert stack.request(answer.get_json()["request_id"]).retention_s == kept


def test_declared_parameters_are_checked_and_cast(stack: Stack) -> None:
    path = "/job/words/typed?blocking=false"
    answer = stack.client.post(path, json={"arguments": {"text": "a", "times": "3"}})
    root = ids.root_of(answer.get_json()["request_id"])
    key = keys.dataset("words", ids.request_of(root), root, "arguments")
    [entry] = stack.store.get([key])
    assert entry is not None
    assert bytes(decode(Dataset, key, entry.value).pairs or b"") == b'[["text","a"],["times",3]]'
    for arguments, parameter in (
        ({}, "text"),
        ({"text": 5}, "text"),
        ({"text": "a", "times": "x"}, "times"),
        ({"text": "a", "more": 1}, "more"),
    ):
        problem = is_problem(stack.client.post(path, json={"arguments": arguments}), 400, "invalid-input")
        assert problem["parameter"] == parameter


def test_a_body_over_the_limit_is_413_however_it_is_sent(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_BODY_BYTES="100")
    unknown_length: dict[str, Any] = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    for environ in ({}, unknown_length):
        for size, status in ((100, 202), (101, 413)):
            answer = stack.client.post(
                "/job/words/wordcount?blocking=false", data=b"{}".ljust(size), environ_overrides=environ
            )
            assert answer.status_code == status
        problem = is_problem(answer, 413, "too-large")
        assert problem["limit"] == 100
        assert "MR_MAX_BODY_BYTES" in problem["detail"]


# --- what is not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workflow", ["wrods", "a b", "é", "x" * 200, "%2e%2e", "a\x00b"])
def test_an_unknown_workflow_is_404_with_those_that_there_are(stack: Stack, workflow: str) -> None:
    problem = is_problem(stack.client.post(f"/job/{workflow}/wordcount"), 404, "workflow-not-found")
    assert "words" in problem["detail"]


@pytest.mark.parametrize("job", ["wordcuont", "a b", "é\n", "x" * 200])
def test_an_unknown_job_is_404_with_those_that_there_are(stack: Stack, job: str) -> None:
    problem = is_problem(stack.client.post(f"/job/words/{job}"), 404, "job-not-found")
    assert "wordcount" in problem["detail"]


def test_a_workflow_that_is_not_served_here_is_not_there(stacks: Callable[..., Stack]) -> None:
    problem = is_problem(
        stacks(MR_WORKFLOW_NAMES="other").client.post("/job/words/wordcount"), 404, "workflow-not-found"
    )
    assert "other" in problem["detail"]


def test_a_changed_workflow_is_live_at_once(stack: Stack) -> None:
    stack.submit()

    def add(draft: Draft) -> None:
        draft.jobs["second"] = msgspec.structs.replace(draft.jobs["wordcount"], job_name="second")

    def remove(draft: Draft) -> None:
        del draft.jobs["second"]

    catalog.change(stack.store, "words", add)
    assert stack.client.post("/job/words/second?blocking=false").status_code == 202
    catalog.change(stack.store, "words", remove)
    eventually(lambda: stack.client.post("/job/words/second?blocking=false").status_code == 404)
    catalog.change(stack.store, "new", lambda draft: None, create=True)
    is_problem(stack.client.post("/job/new/x"), 404, "job-not-found")


def test_a_change_is_told_by_the_watch(stacks: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mr.web.catalogs.Catalogs.check", lambda self: None)
    change_and_see(stacks())


def test_a_change_that_the_watch_was_not_told_is_found_by_looking(
    stacks: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mr.web.catalogs.Catalogs.changed", lambda self, event: None)
    change_and_see(stacks())


def change_and_see(stack: Stack) -> None:
    before = stack.request(stack.submit()).manifest

    def change(draft: Draft) -> None:
        draft.steps["count"] = msgspec.structs.replace(draft.steps["count"], max_attempts=2)

    catalog.change(stack.store, "words", change)
    eventually(lambda: stack.request(stack.submit()).manifest != before)


@pytest.mark.parametrize(
    "path", ["/nothing", "/job/words", "/request/words", "/request/words/last/graph.gif", "/job//x"]
)
def test_another_url_is_a_problem(stack: Stack, path: str) -> None:
    is_problem(stack.client.get(path), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/job/words/wordcount", {"POST", "OPTIONS"}),
        ("PUT", "/request/words/last", {"GET", "HEAD", "DELETE", "OPTIONS"}),
        ("POST", "/healthz", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_another_method_is_405_with_those_allowed(stack: Stack, method: str, path: str, allowed: set[str]) -> None:
    answer = stack.client.open(path, method=method)
    is_problem(answer, 405, "method-not-allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_failed_request_says_why_in_body_and_headers(stack: Stack) -> None:
    blocked = Blocked(stack)
    message = "é\r\nX-Injected: 1\x00 " + "long " * 1000
    stack.fail(blocked.request_id, Failure(exception_type="ValueError", exception_message=message, traceback="t"))
    for answer in (blocked.answer(), stack.client.get(f"/request/words/{blocked.request_id}/result")):
        problem = is_problem(answer, 500, "handler-failed")
        assert problem["request_id"] == blocked.request_id
        assert problem["invocation_id"] == f"{blocked.request_id}.0"
        assert (problem["exception_type"], problem["exception_message"]) == ("ValueError", message)
        assert answer.headers["X-MR-EXCEPTION-TYPE"] == "ValueError"
        told = answer.headers["X-MR-EXCEPTION-MESSAGE"]
        assert told.startswith("\\xe9 X-Injected: 1 long long")
        assert told.isascii()
        assert told.isprintable()
        assert len(told) <= 1024
        assert "X-Injected" not in answer.headers


PLACED = (
    "Traceback (most recent call last):\n"
    '  File "split.py", line 7, in mapper\n'
    "    yield json.loads(text)\n"
    '  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode\n'
    "    raise JSONDecodeError()\n"
    "ValueError: no JSON"
)


def test_a_failed_request_says_where_and_what_tells_more(stack: Stack) -> None:
    blocked = Blocked(stack)
    failure = Failure(exception_type="ValueError", exception_message="no JSON", traceback=PLACED, handler_name="split")
    stack.fail(blocked.request_id, failure)
    problem = is_problem(blocked.answer(), 500, "handler-failed")
    look = f"jobx request why {blocked.request_id}"
    assert (problem["place"], problem["source_line"], problem["look"]) == ("split.py:7", "yield json.loads(text)", look)
    assert problem["detail"] == f"ValueError: no JSON (split.py:7) - for the whole story: {look}"
    assert "decoder.py" not in str(problem)
    status = stack.client.get(f"/request/words/{blocked.request_id}").get_json()
    assert status["error"]["exception_message"] == "no JSON"
    assert (status["why"]["place"], status["why"]["look"]) == ("split.py:7", look)
    assert [stop["invocation_id"] for stop in status["why"]["path"]] == [f"{blocked.request_id}.0"]


def test_a_place_that_the_message_has_is_not_told_twice(stack: Stack) -> None:
    blocked = Blocked(stack)
    failure = Failure(exception_type="E", exception_message="split.py:7: no pair", traceback=PLACED)
    stack.fail(blocked.request_id, failure)
    problem = is_problem(blocked.answer(), 500, "handler-failed")
    assert problem["detail"].startswith("E: split.py:7: no pair - for")


def test_a_client_is_not_told_where_the_host_has_its_libraries(stack: Stack) -> None:
    blocked = Blocked(stack)
    message = "no 'x' in '/srv/jobx/venv/lib/python3.11/site-packages/mr/data.txt' nor /data/x"
    stack.fail(blocked.request_id, Failure(exception_type="OSError", exception_message=message))
    answer = blocked.answer()
    problem = is_problem(answer, 500, "handler-failed")
    assert problem["exception_message"] == "no 'x' in '…/mr/data.txt' nor /data/x"
    assert "/srv" not in answer.text + str(answer.headers)


def test_the_page_of_a_failed_request_shows_the_line(stack: Stack) -> None:
    name = stack.submit()
    message = "<script>alert(1)</script> \x1b[2J"
    stack.fail(name, Failure(exception_type="ValueError", exception_message=message, traceback=PLACED))
    page = stack.client.get(f"/request/words/{name}", headers={"Accept": "text/html"}).text
    for part in (
        "<b>split.py:7</b>",
        "<code>yield json.loads(text)</code>",
        "&lt;script&gt;alert(1)",
        f"jobx request why {name}",
    ):
        assert part in page
    assert "<script" not in page
    stack.submit()
    assert "jobx request why" not in stack.client.get("/request/words/last", headers={"Accept": "text/html"}).text


def test_cancelling_wakes_who_waits_and_may_be_repeated(stack: Stack) -> None:
    blocked = Blocked(stack)
    for _ in range(2):
        answer = stack.client.delete(f"/request/words/{blocked.request_id}")
        assert (answer.status_code, answer.get_json()["state"]) == (200, "cancelled")
    is_problem(blocked.answer(), 409, "request-cancelled")
    is_problem(stack.client.get(f"/request/words/{blocked.request_id}/result"), 409, "request-cancelled")


def test_a_request_that_ended_stays_as_it_is_when_it_is_cancelled(stack: Stack) -> None:
    request_id = stack.submit()
    stack.succeed(request_id, done(("a", 1)))
    assert stack.client.delete("/request/words/last").get_json()["state"] == "done"
    assert stack.client.get("/request/words/last/result").status_code == 200


def test_the_result_of_a_running_request_is_accepted(stack: Stack) -> None:
    request_id = stack.submit()
    answer = stack.client.get(f"/request/words/{request_id}/result")
    assert (answer.status_code, answer.get_json()["request_id"]) == (202, request_id)


def test_the_partitions_of_a_result_are_merged_in_the_order_of_keys(stack: Stack) -> None:
    request_id = stack.submit()
    items: list[tuple[Any, Any]] = [(None, 0), (True, 1), (2, 2), (10, 3), ("a", 4), ("é", 5), ((1, "x"), {"v": [6]})]
    parts = [(keys.done("words", request_id, f"{request_id}.0.r{part}"), done(*items[part::3])) for part in range(3)]
    stack.succeed(request_id, Done(ok=True, nonce="n", partitions=3), *parts)
    answer = stack.client.get("/request/words/last/result")
    assert answer.get_json()["result"]["pairs"] == json.loads(pairs.pairs_text(items))
    assert '["é", 5], [[1, "x"], {"v": [6]}]]}}' in answer.text


@pytest.mark.parametrize("lines", [[], ["[]"], ['[["a",1],["b",2]]', "[]", '[["c",[3,4]]]'], ["[]", '[["c",[3,4]]]']])
def test_a_spilled_result_is_put_together(stack: Stack, lines: list[str]) -> None:
    request_id = stack.submit()
    writer = stack.front.platform.files.create("some/file")
    for line in lines:
        writer.append(line.encode())
    writer.settle()
    stack.succeed(request_id, Done(ok=True, nonce="n", output=Dataset(count=0, file="some/file")))
    answer = stack.client.get("/request/words/last/result")
    assert answer.get_json() == {"result": {"pairs": [pair for line in lines for pair in json.loads(line)]}}


def test_a_spilled_result_that_is_gone_is_503(stack: Stack) -> None:
    stack.succeed(stack.submit(), Done(ok=True, nonce="n", output=Dataset(count=0, file="none")))
    is_problem(stack.client.get("/request/words/last/result"), 503, "files-unavailable")


def test_an_expired_request_is_410_and_one_that_never_was_is_404(stack: Stack) -> None:
    request_id = stack.submit()
    stack.end(request_id, "expiring")
    is_problem(stack.client.get(f"/request/words/{request_id}"), 410, "request-expired")
    stack.put(deletes=(keys.request("words", request_id),))
    for what in ("", "/result", "/tree", "/graph.svg"):
        answer = stack.client.get(f"/request/words/{request_id}{what}")
        is_problem(answer, 410, "request-expired")
        assert answer.headers["X-MR-REQUEST-ID"] == request_id
    is_problem(stack.client.delete(f"/request/words/{request_id}"), 410, "request-expired")
    mistyped = request_id[:-1] + ("a" if request_id[-1] != "a" else "b")
    for name in (mistyped, "x", "é", "a%0d%0aX-Injected:%201", "last"):
        is_problem(stack.client.get(f"/request/words/{name}"), 404, "request-not-found")
    is_problem(stack.client.get(f"/request/wrods/{request_id}"), 404, "workflow-not-found")
    is_problem(stack.client.get("/request/wrods/last"), 404, "workflow-not-found")


# --- how a request stands -------------------------------------------------------------------------------------------


def test_who_may_read_a_request_is_not_told_what_it_takes_to_call_its_targets(stack: Stack) -> None:
    request_id = stack.submit()
    key = keys.request("words", request_id)
    [entry] = stack.store.get([key])
    assert entry is not None
    targets = ["failed:https://hooks.example.com/services/SECRET", "mailto:a@example.com", "https://example.com"]
    writer = "https://results.example.com/in?key=SECRET"
    stack.put((key, msgspec.structs.replace(decode(Request, key, entry.value), notify=targets, writer=writer)))
    shown = stack.client.get(f"/request/words/{request_id}").get_json()
    assert shown["notify"] == ["failed:https://hooks.example.com/…", "mailto:a@example.com", "https://example.com"]
    assert shown["writer"] == "https://results.example.com/…"
    assert "SECRET" not in stack.client.get(f"/request/words/{request_id}/tree").text


def test_the_status_is_the_request_with_its_progress_and_links(stack: Stack) -> None:
    request_id = stack.submit()
    stack.submit()
    root_id = ids.root_of(request_id)
    key = keys.invocation("words", request_id, root_id)
    [entry] = stack.store.get([key])
    assert entry is not None
    # One of five was kept by a redrive.
    waiting = msgspec.structs.replace(
        decode(Invocation, key, entry.value), state="waiting", mapped_count=5, epoch=1, need=4
    )
    counts = [keys.count("words", request_id, root_id, 1, shard) for shard in (0, 0, 3)]
    stack.put((key, waiting), (keys.failed("words", request_id, root_id, 1, 3), Done(ok=False, nonce="n")))
    for count in counts:
        stack.put((count, Done(ok=True, nonce="n")))
    for accept in (None, "*/*", "application/json", "application/json, text/html;q=0.5", "text/plain"):
        answer = stack.client.get(f"/request/words/{request_id}", headers={} if accept is None else {"Accept": accept})
        assert answer.content_type == "application/json"
    status = answer.get_json()
    assert status["request_id"] == request_id
    assert (status["state"], status["is_done"], status["error"]) == ("running", False, None)
    assert status["progress"] == {"state": "waiting", "children": 5, "ended": 4, "failed": 1}
    assert status["url"].endswith(f"/request/words/{request_id}")
    assert status["links"]["result"] == f"{status['url']}/result"


def test_last_is_the_newest_request_of_the_workflow(stack: Stack) -> None:
    made = [stack.submit() for _ in range(3)]
    for path in ("", "/result", "/tree"):
        assert stack.client.get(f"/request/words/last{path}").headers["X-MR-REQUEST-ID"] == max(made)


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


def test_a_browser_gets_a_page_in_which_nothing_can_run(stack: Stack) -> None:
    request_id = stack.submit(json={"name": "<script>alert(1)</script>"})
    message = "<img src=x onerror=alert(1)>"
    stack.fail(request_id, Failure(exception_type="E", exception_message=message, traceback=f"E: {message}"))
    answer = stack.client.get(f"/request/words/{request_id}", headers={"Accept": BROWSER})
    assert answer.content_type == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in answer.text
    assert "<img" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "&lt;img src=x onerror=alert(1)&gt;" in answer.text
    assert request_id in answer.text


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/*", "image/svg+xml"),
        ("image/png", "image/png"),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "image/svg+xml"),
        ("image/avif,image/webp,*/*", "image/svg+xml"),
    ],
)
def test_who_asks_for_a_picture_gets_the_drawing(
    stack: Stack, accept: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mr.trace.graphviz.render", lambda text, form: f"{form}: {text}".encode())
    stack.submit()
    answer = stack.client.get("/request/words/last", headers={"Accept": accept})
    assert answer.content_type.partition(";")[0] == kind
    assert "digraph" in answer.text


def test_drawings_without_graphviz_are_501_but_its_text_is_there(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    stack.submit()
    for form in ("svg", "png"):
        is_problem(stack.client.get(f"/request/words/last/graph.{form}"), 501, "graphviz-missing")
    assert stack.client.get("/request/words/last/graph.dot").text.startswith("digraph")


def test_the_tree_has_data_where_it_is_asked_for(stack: Stack) -> None:
    stack.submit(json={"arguments": {"a": 1}})
    assert stack.client.get("/request/words/last/tree").get_json()["root"]["step_name"] == "count"
    tree = stack.client.get("/request/words/last/tree?data=true").get_json()
    assert tree["root"]["data"]["arguments"]["pairs"] == [["a", 1]]
    is_problem(stack.client.get("/request/words/last/tree?deta=1"), 400, "invalid-input")


# --- idempotency ----------------------------------------------------------------------------------------------------

KEY = {"Idempotency-Key": "once"}


def test_twins_are_one_request_and_wait_for_it_together(stack: Stack) -> None:
    first = Blocked(stack, json={}, headers=KEY)
    answers: list[TestResponse] = []

    def post() -> None:
        client = stack.client.application.test_client()
        answers.append(client.post("/job/words/wordcount", json={}, headers=KEY))

    twins = [threading.Thread(target=post, daemon=True) for _ in range(10)]
    for twin in twins:
        twin.start()
    stack.succeed(first.request_id, done(("a", 1)))
    for twin in twins:
        twin.join(DEADLINE_S)
    answers.append(first.answer())
    assert len(answers) == 11
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, '{"result": {"pairs": [["a", 1]]}}\n')}
    assert {answer.headers["X-MR-REQUEST-ID"] for answer in answers} == {first.request_id}
    assert len(stack.store.list(keys.REQUESTS)) == 1


def test_another_body_under_the_same_key_is_422(stack: Stack) -> None:
    stack.submit(json={"arguments": {"a": 1}}, headers=KEY)
    answer = stack.client.post("/job/words/wordcount", json={"arguments": {"a": 2}}, headers=KEY)
    is_problem(answer, 422, "idempotency-mismatch")


def test_a_key_holds_for_its_job_and_a_day(stack: Stack) -> None:
    first = stack.submit(headers=KEY)
    assert stack.submit(headers=KEY) == first
    other = stack.client.post("/job/words/brief?blocking=false", headers=KEY)
    assert other.get_json()["request_id"] != first
    [entry, _] = stack.store.list(keys.idempotencies("words"))
    held = decode(Idempotency, entry.key, entry.value).expires_timestamp - time.time()
    assert 86400 - 60 < held <= 86400
    kept = stack.client.post(
        "/job/words/wordcount?blocking=false", json={"retention_s": 200_000}, headers={"Idempotency-Key": "2"}
    )
    assert kept.status_code == 202
    records = [decode(Idempotency, entry.key, entry.value) for entry in stack.store.list(keys.idempotencies("words"))]
    assert max(record.expires_timestamp for record in records) - time.time() > 199_000


def test_a_key_whose_request_is_gone_is_410(stack: Stack) -> None:
    request_id = stack.submit(headers=KEY)
    stack.put(deletes=(keys.request("words", request_id), keys.live("words", request_id)))
    for query in ("", "?blocking=false"):
        is_problem(stack.client.post(f"/job/words/wordcount{query}", headers=KEY), 410, "request-expired")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_has_a_length(stack: Stack, key: str) -> None:
    answer = stack.client.post("/job/words/wordcount", headers={"Idempotency-Key": key})
    assert is_problem(answer, 400, "invalid-input")["parameter"] == "Idempotency-Key"
    assert not stack.running()


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_tokens_are_asked_for_wherever_there_is_something_to_see(stacks: Callable[..., Stack]) -> None:
    client = stacks(MR_API_TOKENS="first,second").client
    for header in ({}, {"Authorization": "Bearer third"}, {"Authorization": "Basic first"}, {"Authorization": "first"}):
        for path in ("/", "/request/words/last", "/nothing"):
            answer = client.get(path, headers=header)
            is_problem(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert client.post("/job/words/wordcount", headers=header).status_code == 401
        assert client.get("/healthz", headers=header).status_code == 200
        assert client.get("/readyz", headers=header).status_code == 200
    for token in ("first", "second"):
        assert client.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost.evil.example", "http://localhost:1", "[", ""]
)
def test_a_page_of_another_site_cannot_post_or_cancel(stack: Stack, origin: str) -> None:
    is_problem(stack.client.post("/job/words/wordcount", headers={"Origin": origin}), 403, "foreign-origin")
    is_problem(stack.client.delete("/request/words/last", headers={"Origin": origin}), 403, "foreign-origin")
    assert not stack.running()


def test_a_page_of_this_server_can_post(stack: Stack) -> None:
    stack.submit(headers={"Origin": "http://localhost"})


def test_nobody_but_a_trusted_proxy_says_who_asked(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_TRUSTED_PROXIES="127.0.0.1", MR_ALLOW_ANONYMOUS="1")
    asked = stack.submit(headers={"X-Forwarded-For": "6.6.6.6, 10.1.2.3"})
    assert stack.request(asked).context["requester_ip"] == "10.1.2.3"
    stack = stacks()
    asked = stack.submit(headers={"X-Forwarded-For": "6.6.6.6"})
    assert stack.request(asked).context["requester_ip"] == "127.0.0.1"


# --- when something is away -----------------------------------------------------------------------------------------


def test_a_store_that_refuses_is_503_and_nothing_is_accepted(stack: Stack) -> None:
    stack.submit()
    stack.store.is_away = True
    answer = stack.client.post("/job/words/wordcount")
    is_problem(answer, 503, "store-unavailable")
    assert answer.headers["Retry-After"] == "1"
    problem = is_problem(stack.client.get("/readyz"), 503, "not-ready")
    assert problem["unreachable"] == ["store"]
    assert stack.client.get("/healthz").status_code == 200
    stack.store.is_away = False
    assert len(stack.running()) == 1
    assert stack.client.get("/readyz").status_code == 200


def test_who_waits_while_the_store_is_away_is_answered_when_it_is_back(stack: Stack) -> None:
    blocked = Blocked(stack)
    stack.store.is_away = True
    stack.front._ends.wake_all()
    time.sleep(1.2)  # for longer than the follower is patient: it has to begin anew
    stack.store.is_away = False
    stack.succeed(blocked.request_id, done())
    assert blocked.answer().status_code == 200


def test_a_queue_that_is_away_costs_no_request(stack: Stack) -> None:
    stack.queue.is_away = True
    stack.submit()
    assert is_problem(stack.client.get("/readyz"), 503, "not-ready")["unreachable"] == ["queue"]


def test_files_that_cannot_be_written_are_told(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("no directory")
    assert is_problem(stack.client.get("/readyz"), 503, "not-ready")["unreachable"] == ["files"]


def test_a_mistake_of_ours_is_500_that_tells_nothing_but_its_number(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*arguments: object) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(stack.front, "check_ready", break_down)
    answer = stack.client.get("/readyz")
    problem = is_problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert problem["incident"] in caplog.text


def test_who_waits_is_told_when_the_server_stops(stack: Stack) -> None:
    blocked = Blocked(stack)
    stack.front.drain()
    answer = blocked.answer()
    assert (answer.status_code, answer.get_json()["request_id"]) == (202, blocked.request_id)
    assert stack.client.post("/job/words/wordcount").status_code == 202
    is_problem(stack.client.get("/readyz"), 503, "not-ready")
