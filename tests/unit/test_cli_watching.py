"""``jobx request watch`` in this process; what runs meanwhile is in the acceptance tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cli_runs import Commands

from mr.cli import submitting, watching
from mr.errors import StoreUnavailable
from mr.kv.base import Put, Txn
from mr.model import keys
from mr.model.entities import Failure, Invocation, Request, decode, encode
from mr.model.progress import Counts, Progress, StepCounts
from mr.web.looks import Looker


@pytest.fixture
def words(tmp_path: Path) -> Commands:
    commands = Commands(tmp_path)
    commands.create_words()
    return commands


def submit(commands: Commands) -> str:
    return str(commands.printed(submitting.create, "words", "wordcount")["primary_key"])


def end(commands: Commands, request_id: str, state: Any, error: Failure | None = None) -> None:
    """As the engine would."""
    store = commands.store()
    key = keys.request("words", request_id)
    root_key = keys.invocation("words", request_id, f"{request_id}.0")
    found, root = (entry for entry in store.get([key, root_key]) if entry is not None)
    request = msgspec.structs.replace(
        decode(Request, key, found.value),
        state=state,
        is_done=True,
        failed_invocation_id=None if error is None else f"{request_id}.0",
        ended_timestamp=decode(Request, key, found.value).created_timestamp + 2,
    )
    failed = msgspec.structs.replace(decode(Invocation, root_key, root.value), error=error, state="failed")
    puts = (Put(key, encode(request)), *([Put(root_key, encode(failed))] if error is not None else []))
    store.commit([Txn(puts=puts, deletes=(keys.live("words", request_id),))])
    store.close()


def test_one_that_is_done_is_told_in_a_line(words: Commands) -> None:
    request_id = submit(words)
    end(words, request_id, "done")
    for where in (["last"], ["words", "last"], [request_id]):
        done = words.jobx("request", "watch", *where)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "words/wordcount done, 2.00 s: 1 of 1 ended\n", "")


def test_one_that_failed_ends_the_command_so(words: Commands) -> None:
    request_id = submit(words)
    trace = 'Traceback (most recent call last):\n  File "split.py", line 4, in mapper\n    x\nValueError: no\x1b[2J'
    end(
        words,
        request_id,
        "failed",
        Failure(exception_type="ValueError", exception_message="no\x1b[2J", traceback=trace),
    )
    done = words.jobx("request", "watch", "last")
    assert (done.exit_code, done.stdout) == (1, "words/wordcount failed, 2.00 s: 1 of 1 ended, 1 failed\n")
    assert done.stderr.splitlines() == [
        f"The request {request_id} failed: ValueError: no [2J (split.py:4)",
        f"For the whole story: jobx request why {request_id}",
    ]


def test_one_that_was_cancelled_ends_the_command_so(words: Commands) -> None:
    request_id = submit(words)
    end(words, request_id, "cancelled")
    done = words.jobx("request", "watch", "last")
    assert (done.exit_code, done.stderr) == (1, f"The request {request_id} was cancelled.\n")


def test_events_are_json_a_line(words: Commands) -> None:
    request_id = submit(words)
    end(words, request_id, "done")
    done = words.jobx("request", "watch", "last", "--json")
    assert done.exit_code == 0
    [event] = [json.loads(line) for line in done.stdout.splitlines()]
    assert (event["request_id"], event["state"], event["counts"]["ended"]) == (request_id, "done", 1)


def looks(monkeypatch: pytest.MonkeyPatch, *found: Progress | BaseException) -> None:
    """What each look sees."""
    coming: Iterator[Progress | BaseException] = iter(found)

    def look(looker: Looker) -> Progress:
        one = next(coming)
        if isinstance(one, BaseException):
            raise one
        return one

    monkeypatch.setattr(Looker, "look", look)
    monkeypatch.setattr(watching, "_AWAY_S", 0.0)
    monkeypatch.setattr(Looker, "pause_s", 0.0)


def progress(state: str = "running", ended: int = 0, **changes: Any) -> Progress:
    found = Progress(
        request_id="r",
        workflow_name="words",
        job_name="wordcount",
        state=state,
        elapsed_s=1.0,
        counts=Counts(sealed=4, ready=1, running=1, ended=ended, failed=0),
        is_whole=True,
        steps=[StepCounts(step_name="count", sealed=4, ended=ended, failed=0)],
        rate=None,
        waiting_for=[],
        detail=None,
        error=None,
    )
    return msgspec.structs.replace(found, **changes)


def test_there_is_a_line_when_something_changed(words: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(words)
    looks(monkeypatch, progress(), progress(elapsed_s=2.0), progress(ended=1, elapsed_s=3.0), progress("done", 4))
    done = words.jobx("request", "watch", "last")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "words/wordcount running, 1.00 s",
        "words/wordcount running, 3.00 s",
        "words/wordcount done, 1.00 s",
    ]


def test_a_store_that_goes_away_is_waited_for(words: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(words)
    looks(monkeypatch, progress(), StoreUnavailable("away"), StoreUnavailable("away"), progress("done", 4))
    done = words.jobx("request", "watch", "last")
    assert (done.exit_code, done.stderr.count("does not answer")) == (0, 1)


def test_ctrl_c_is_130(words: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = submit(words)
    looks(monkeypatch, progress(), KeyboardInterrupt())
    done = words.jobx("request", "watch", "last")
    assert (done.exit_code, done.stderr) == (
        130,
        f"Nobody watches any more, but the request goes on. To end it: jobx request cancel {request_id}\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing"], 1, "is it mistyped?"),
        (["words", "nothing"], 1, "is it mistyped?"),
        (["wrods", "last"], 1, "There is no workflow 'wrods'"),
        ([], 2, "Missing argument"),
        (["a", "b", "c"], 2, "a workflow at most"),
        (["last", "--url", "http://127.0.0.1:1"], 2, "A server is asked for a request of a workflow"),
        (["words", "last", "--url", "127.0.0.1"], 1, "is no URL of a server"),
    ],
)
def test_what_cannot_be_watched_is_said(words: Commands, arguments: list[str], code: int, said: str) -> None:
    submit(words)
    done = words.jobx("request", "watch", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


def test_a_line_says_what_there_is_to_say() -> None:
    assert watching.line(progress()) == "words/wordcount running, 1.00 s: 0 of 4 ended, 1 running, 1 ready"
    steps = [StepCounts(step_name=name, sealed=4, ended=2, failed=0) for name in ("fan", "count")]
    counts = Counts(sealed=8, ready=0, running=0, ended=4, failed=1)
    several = progress(steps=steps, counts=counts, rate=12.345, detail="Nobody has\x1b 'gpu'.")
    assert watching.line(several) == (
        "words/wordcount running, 1.00 s: fan 2/4, count 2/4, 1 failed, 12.3 a second. Nobody has\\x1b 'gpu'."
    )
    assert watching.line(msgspec.structs.replace(several, is_whole=False, detail=None, rate=None)) == (
        "words/wordcount running, 1.00 s: 4 of 8 ended, 1 failed"
    )
