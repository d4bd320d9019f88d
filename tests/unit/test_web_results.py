"""Results over HTTP in the forms that there are, over a platform in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_web_application import Blocked, Stack, done, is_problem, open_stack

from mr.errors import FilesUnavailable
from mr.model import keys
from mr.model.entities import Failure
from mr.model.records import Dataset, Done

LINES = "application/x-ndjson"
RESULT = "/request/words/last/result"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = open_stack(tmp_path)
    yield stack
    stack.front.stop()


def spill(stack: Stack, *pieces: str) -> Dataset:
    writer = stack.front.platform.files.create("some/file")
    for piece in pieces:
        writer.append(piece.encode())
    writer.settle()
    return Dataset(count=0, file="some/file")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (LINES, LINES),
        ("application/X-NDJSON", LINES),
        (f"{LINES}, application/json;q=0.5", LINES),
        (f"application/json, {LINES};q=0.5", "application/json"),
        (f"{LINES};q=0", "application/json"),
        ("*/*", "application/json"),
        ("text/plain", "application/json"),
        ("", "application/json"),
    ],
)
def test_lines_are_for_those_who_ask_for_them(stack: Stack, accept: str, kind: str) -> None:
    stack.succeed(stack.submit(), done(("a", 1), ((None, "é"), {"b": ["c, d", 1.0]})))
    answer = stack.client.get(RESULT, headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.content_type, answer.headers["Vary"]) == (200, kind, "Accept")
    if kind == LINES:
        assert answer.text == '["a",1]\n[[null,"é"],{"b":["c, d",1.0]}]\n'
        assert "Content-Length" not in answer.headers
    else:
        assert answer.text == '{"result": {"pairs": [["a", 1], [[null, "é"], {"b": ["c, d", 1.0]}]]}}\n'


def test_a_post_that_waits_is_answered_in_lines_too(stack: Stack) -> None:
    blocked = Blocked(stack, headers={"Accept": LINES})
    stack.succeed(blocked.request_id, done(("a", 1)))
    answer = blocked.answer()
    assert (answer.content_type, answer.text) == (LINES, '["a",1]\n')


@pytest.mark.parametrize("pieces", [[], ["[]"], ['[["a",1],["b",2]]', "[]", '[["c",[3,4]]]'], ["[]", '[["c",[3,4]]]']])
def test_a_spilled_result_is_put_together(stack: Stack, pieces: list[str]) -> None:
    stack.succeed(stack.submit(), Done(ok=True, nonce="n", output=spill(stack, *pieces)))
    answer = stack.client.get(RESULT, headers={"Accept": LINES})
    expected = [pair for piece in pieces for pair in json.loads(piece)]
    assert [json.loads(line) for line in answer.text.splitlines()] == expected


def test_partitions_are_merged_in_the_order_of_keys(stack: Stack) -> None:
    items: list[tuple[Any, Any]] = [(None, 0), (True, 1), (2, 2), (10, 3), ("a", 4), ("é", 5), ((1, "x"), {"v": [6]})]
    request_id = stack.submit()
    parts = [(keys.done("words", request_id, f"{request_id}.0.r{part}"), done(*items[part::3])) for part in range(3)]
    stack.succeed(request_id, Done(ok=True, nonce="n", partitions=3), *parts)
    lines = stack.client.get(RESULT, headers={"Accept": LINES}).text.splitlines()
    assert [json.loads(line)[1] for line in lines] == [0, 1, 2, 3, 4, 5, {"v": [6]}]


def test_a_result_is_read_a_piece_at_a_time(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def pieces(name: str) -> Iterator[bytes]:
        nonlocal given
        for number in range(1000):
            given += 1
            yield b'[["%d",1],["x",2]]' % number

    stack.succeed(stack.submit(), Done(ok=True, nonce="n", output=Dataset(count=0, file="f")))
    monkeypatch.setattr(stack.front.platform.files, "lines", pieces)
    for accept in (LINES, "application/json"):
        given = 0
        answer = stack.client.get(RESULT, headers={"Accept": accept})
        parts = iter(answer.iter_encoded())
        for _ in range(3):
            next(parts)
        assert given <= 4
        answer.close()


def test_what_goes_wrong_on_the_way_does_not_end_the_lines(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces(name: str) -> Iterator[bytes]:
        yield b'[["a",1]]'
        raise FilesUnavailable("The disk is gone.")

    stack.succeed(stack.submit(), Done(ok=True, nonce="n", output=Dataset(count=0, file="f")))
    monkeypatch.setattr(stack.front.platform.files, "lines", pieces)
    answer = stack.client.get(RESULT, headers={"Accept": LINES})
    # The server breaks the connection off where its application raises.
    with pytest.raises(FilesUnavailable):
        list(answer.iter_encoded())


def test_what_is_no_result_is_the_same_for_those_who_want_lines(stack: Stack) -> None:
    headers = {"Accept": LINES}
    request_id = stack.submit()
    running = stack.client.get(RESULT, headers=headers)
    assert (running.status_code, running.content_type) == (202, "application/json")
    stack.fail(request_id, Failure(exception_type="E", exception_message="no"))
    is_problem(stack.client.get(RESULT, headers=headers), 500, "handler-failed")
    stack.client.delete(f"/request/words/{stack.submit()}")
    is_problem(stack.client.get(RESULT, headers=headers), 409, "request-cancelled")
    stack.succeed(stack.submit(), Done(ok=True, nonce="n", output=Dataset(count=0, file="none")))
    is_problem(stack.client.get(RESULT, headers=headers), 503, "files-unavailable")


def test_what_another_writer_delivers_is_not_answered_but_stays_at_its_url(stack: Stack) -> None:
    blocked = Blocked(stack)
    key = keys.request("words", blocked.request_id)
    stack.put((key, msgspec.structs.replace(stack.request(blocked.request_id), writer="https://example.com/results")))
    stack.succeed(blocked.request_id, done(("a", 1)))
    answer = blocked.answer()
    assert (answer.status_code, answer.get_json()) == (200, {"result": {}})
    assert stack.client.get(RESULT).get_json() == {"result": {"pairs": [["a", 1]]}}
    assert stack.client.get(RESULT, headers={"Accept": LINES}).text == '["a",1]\n'


def test_a_failure_is_answered_whatever_would_have_been_delivered(stack: Stack) -> None:
    blocked = Blocked(stack)
    key = keys.request("words", blocked.request_id)
    stack.put((key, msgspec.structs.replace(stack.request(blocked.request_id), writer="https://example.com/results")))
    stack.fail(blocked.request_id, Failure(exception_type="E", exception_message="no"))
    is_problem(blocked.answer(), 500, "handler-failed")
