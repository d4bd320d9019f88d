"""Made-up facts of every kind, to try templates with: of each kind as much, and as little, as there may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

EVENTS = ("done", "failed", "cancelled", "message", "handlers")
"""What mails there are: the names that templates begin with."""

_REQUEST: dict[str, Any] = {
    "workflow_name": "words",
    "job_name": "wordcount",
    "request_id": "1hq8y2nk3xw0c5t9e7",
    "name": "nightly run",
    "url": "https://jobx.example.com/request/words/1hq8y2nk3xw0c5t9e7",
    "result_url": None,
    "created_timestamp": "2030-01-31T10:11:12.131Z",
    "ended_timestamp": "2030-01-31T10:11:13.365Z",
    "seconds": 1.234,
    "since": None,
    "error": None,
    "traceback": "",
    "path": [],
    "path_omitted": 0,
    "commands": ["jobx request tree words 1hq8y2nk3xw0c5t9e7"],
}

_ERROR: dict[str, Any] = {
    "exception_type": "ValueError",
    "exception_message": "invalid literal for int() with base 10: '<none>'",
    "summary": "TooManyFailures: 3 of 12 children failed",
    "place": "words/parse.py:12",
    "source_line": "number = int(line)",
    "key": '"2030-01"',
    "handler_name": "parse",
    "invocation_id": "1hq8y2nk3xw0c5t9e7.0.abcdefgh-3",
    "attempt": 2,
    "attempts": 2,
}

_PATH = [
    {"invocation_id": "r.0", "step_name": "count", "direction": "map", "number": None, "siblings": None},
    {"invocation_id": "r.0.a-3", "step_name": "parse", "direction": "map", "number": 3, "siblings": 12},
    {"invocation_id": "r.0.a-3.r1", "step_name": "parse", "direction": "reduce", "number": 1, "siblings": 4},
]

_LITTLE = {"job_name": None, "name": None, "url": None, "created_timestamp": None, "seconds": None}


def all_of_them() -> Iterator[tuple[str, dict[str, Any]]]:
    """The names of mails, with facts; each name several times."""
    for state in ("done", "failed", "cancelled"):
        full = {**_REQUEST, "state": state}
        if state == "done":
            full["result_url"] = f"{full['url']}/result"
        if state == "failed":
            full |= {"error": _ERROR, "path": _PATH, "traceback": "Traceback …\nValueError: no", "path_omitted": 2}
            bare = dict.fromkeys(
                ("summary", "place", "source_line", "key", "handler_name", "invocation_id", "attempts")
            )
            yield state, {**_of(full), "error": {**_ERROR, **bare}, "path": [], "traceback": "", "path_omitted": 0}
        yield state, _of(full)
        yield state, _of({**_REQUEST, **_LITTLE, "state": state, "since": "removed", "commands": []})
        yield state, _of({**_REQUEST, "state": state, "since": "redriven"})
    about = {name: _REQUEST[name] for name in ("workflow_name", "job_name", "request_id", "name", "url", "commands")}
    message = {
        **about,
        "timestamp": "2030-01-31T10:11:12.131Z",
        "channel": "NOTIFY",
        "level": "warning",
        "text": "3 lines were skipped:\n1, 2 and 3",
        "handler_name": "parse",
        "invocation_id": "r.0",
    }
    yield "message", _of(message)
    bare = {"job_name": None, "name": None, "url": None, "commands": [], "text": "", "handler_name": ""}
    yield "message", _of({**message, **bare, "invocation_id": None})
    handlers = {
        "workflow_name": "words",
        "timestamp": "2030-01-31T10:11:12.131Z",
        "counts": {"new": 1, "updated": 120, "deleted": 0},
        "new": ["parse"],
        "updated": ["add", "count"],
        "deleted": [],
        "commands": ["mr_kv_handler_list words"],
    }
    yield "handlers", _of(handlers)


def _of(facts: dict[str, Any]) -> dict[str, Any]:
    return {"event": "sample", "delivery_id": "1hq8y2nk3xw0c5t9e7_0_0", **facts}
