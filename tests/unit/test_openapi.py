"""The description of the HTTP interface, and whether the server does what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from described import Description
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_web_application import Blocked, Stack, done, open_stack
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from mr import __version__
from mr.model.entities import Failure
from mr.model.records import Dataset, Done
from mr.web import events, openapi


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    opened: list[Stack] = []

    def open_one(**settings: str) -> Stack:
        opened.append(open_stack(tmp_path, **settings))
        return opened[-1]

    yield open_one
    for stack in opened:
        stack.front.stop()


@pytest.fixture(scope="module")
def description() -> Description:
    return Description(openapi.document())


def paths_of(rule: Rule) -> set[str]:
    """The paths of OpenAPI that a rule stands for."""
    text = re.sub(r"<(\w+)>", r"{\1}", rule.rule)
    choice = re.search(r"<any\(([\w, ]+)\):\w+>", text)
    if choice is None:
        return {text}
    return {text.replace(choice[0], one.strip()) for one in choice[1].split(",")}


def test_the_description_is_one_of_openapi() -> None:
    problems = [
        f"{error.json_path}: {error.message}" for error in OpenAPIV31SpecValidator(openapi.document()).iter_errors()
    ]
    assert not problems


def test_every_route_is_described_and_nothing_else(stacks: Callable[..., Stack], description: Description) -> None:
    rules = stacks().client.application.url_map.iter_rules()
    served = {
        (method, path)
        for rule in rules
        for path in paths_of(rule)
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    assert served == description.operations()


def test_it_is_served_below_where_the_server_is(stacks: Callable[..., Stack]) -> None:
    client = stacks().client
    answer = client.get("/openapi.json")
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    document = answer.get_json()
    assert document == json.loads(json.dumps(openapi.document()))
    assert (document["info"]["version"], document["servers"]) == (__version__, [{"url": "/"}])
    assert client.get("/openapi.json", base_url="http://localhost/below").get_json()["servers"] == [{"url": "/below"}]
    assert client.get("/").get_json()["description"] == "/openapi.json"


def test_every_part_that_is_named_is_used(description: Description) -> None:
    text = json.dumps(description.document)
    for kind, parts in description.document["components"].items():
        if kind != "securitySchemes":
            assert [name for name in parts if f'"#/components/{kind}/{name}"' not in text] == []


class Asked:
    """Asks, and compares each answer with what is described."""

    def __init__(self, stack: Stack, description: Description) -> None:
        self.stack, self._description = stack, description

    def check(self, method: str, url: str, answer: TestResponse, status: int) -> TestResponse:
        assert answer.status_code == status, answer.text
        self._description.check(method, url, status, answer.headers, answer.data)
        return answer

    def __call__(self, method: str, url: str, status: int, **options: Any) -> TestResponse:
        return self.check(method, url, self.stack.client.open(url, method=method, **options), status)

    def blocked(self, **options: Any) -> Blocked:
        return Blocked(self.stack, **options)


@pytest.fixture
def ask(stacks: Callable[..., Stack], description: Description) -> Asked:
    return Asked(stacks(), description)


JOB = "/job/words/wordcount"
LAST = "/request/words/last"


def test_what_a_post_is_answered(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    for ending, status in (
        (lambda name: ask.stack.succeed(name, done(("a", 1), (("b", None), [{}]))), 200),
        (lambda name: ask.stack.fail(name, Failure(exception_type="E", exception_message="no")), 500),
        (lambda name: ask.stack.client.delete(f"/request/words/{name}"), 409),
    ):
        blocked = ask.blocked()
        ending(blocked.request_id)
        ask.check("POST", JOB, blocked.answer(), status)
    ask("POST", f"{JOB}?blocking=false", 202)
    ask("POST", f"{JOB}?wait=0", 202)
    ask("POST", JOB, 400, data="{")
    ask("POST", JOB, 400, data='{"nothing": 1}')
    ask("POST", f"{JOB}?blocking=perhaps", 400)
    ask("POST", JOB, 403, headers={"Origin": "http://elsewhere"})
    ask("POST", JOB, 401, headers={"Authorization": "Bearer wrong"})
    ask("POST", "/job/words/nothing", 404)
    ask("POST", "/job/nothing/nothing", 404)
    ask("GET", JOB, 405)
    ask("POST", JOB, 413, data=b" " * (2 << 20))
    key = {"Idempotency-Key": "k"}
    ask("POST", f"{JOB}?blocking=false", 202, data="{}", headers=key)
    ask("POST", f"{JOB}?blocking=false", 422, data='{"name": "other"}', headers=key)
    name = ask.stack.running()[-1]
    ask.stack.end(name, "expiring")
    ask("POST", JOB, 410, data="{}", headers=key)
    monkeypatch.setattr("mr.web.front.Front.post", _broken)
    ask("POST", JOB, 500)


def _broken(*arguments: Any, **options: Any) -> None:
    raise RuntimeError("broken")


def test_what_a_slow_and_full_platform_answers(stacks: Callable[..., Stack], description: Description) -> None:
    ask = Asked(stacks(MR_MAX_OPEN_REQUESTS="1", MR_MAX_WAIT_S="0.01"), description)
    ask("POST", JOB, 504)
    ask("POST", JOB, 429)


def test_what_a_platform_answers_whose_store_is_away(ask: Asked) -> None:
    name = ask.stack.submit()
    ask("GET", "/readyz", 200)
    ask.stack.queue.is_away = ask.stack.store.is_away = True
    ask("POST", JOB, 503)
    for what in ("", "/result", "/events", "/tree", "/graph.svg"):
        ask("GET", f"/request/words/{name}{what}", 503)
    ask("GET", "/readyz", 503)
    ask("GET", "/healthz", 200)


def test_what_there_is_of_a_request(ask: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ask.stack.submit()
    url = f"/request/words/{name}"
    ask("GET", url, 200)
    ask("GET", url, 200, headers={"Accept": "text/html"})
    ask("GET", f"{url}/result", 202)
    ask("GET", f"{url}/tree?data=true", 200)
    ask("GET", f"{url}/graph.dot", 200)
    ask.stack.fail(name, Failure(exception_type="E", exception_message="no", traceback='  File "a.py", line 1, in x'))
    ask("GET", url, 200)
    ask("GET", f"{url}/tree", 200)
    ask("GET", f"{url}/result", 500)
    event = ask("GET", f"{url}/events", 200)
    progress = json.loads(event.text.partition("data: ")[2])
    ask._description.validate(progress, {"$ref": "#/components/schemas/Progress"})
    ended = {"Last-Event-ID": event.text.partition("id: ")[2].partition("\n")[0]}
    ask("GET", f"{url}/events", 204, headers=ended)
    ask("DELETE", url, 200)
    ask("GET", f"{url}?nothing=1", 400)
    ask("DELETE", f"{url}?nothing=1", 400)
    for what in ("result", "events", "tree", "graph.svg", "graph.dot", "graph.png"):
        ask("GET", f"{url}/{what}?nothing=1", 400)
        ask("GET", f"/request/words/nothing/{what}", 404)
        ask("GET", f"/request/nothing/last/{what}", 404)
        ask("POST", f"{url}/{what}", 405)
    ask("POST", url, 405)
    monkeypatch.setattr(events, "MAX_STREAMS", 0)
    ask.stack.submit()
    ask("GET", f"{LAST}/events", 503)
    ask.stack.end(name, "expiring")
    for what in ("", "/result", "/events", "/tree", "/graph.svg", "/graph.dot", "/graph.png"):
        ask("GET", f"{url}{what}", 410)
    ask("DELETE", url, 410)


def test_what_a_result_is(ask: Asked) -> None:
    ask.stack.succeed(ask.stack.submit(), done(("a", 1)))
    ask("GET", f"{LAST}/result", 200)
    ask("GET", f"{LAST}/result", 200, headers={"Accept": "application/x-ndjson"})
    ask.stack.succeed(ask.stack.submit(), Done(ok=True, nonce="n", output=Dataset(count=0, file="none")))
    ask("GET", f"{LAST}/result", 503)
    ask.stack.client.delete(f"/request/words/{ask.stack.submit()}")
    ask("GET", f"{LAST}/result", 409)


def test_drawings_without_graphviz(ask: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask.stack.submit()
    ask("GET", f"{LAST}/graph.svg", 200)
    ask("GET", f"{LAST}/graph.png", 200)
    monkeypatch.setenv("PATH", str(tmp_path))
    ask("GET", f"{LAST}/graph.svg", 501)
    ask("GET", f"{LAST}/graph.png", 501)
    ask("GET", f"{LAST}/graph.dot", 200)
    ask("GET", LAST, 501, headers={"Accept": "image/png"})


def test_the_server_itself(ask: Asked) -> None:
    for path in ("/", "/openapi.json", "/healthz", "/readyz"):
        ask("GET", path, 200)
        ask("DELETE", path, 405)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"arguments": None},
        {"arguments": {"a": [1]}, "name": "n", "retention_s": -1, "writer": "inline", "notify": []},
        {"notify": "failed:https://example.com/hook", "writer": "https://example.com/results"},
    ],
)
def test_bodies_that_are_described_are_taken(ask: Asked, description: Description, body: Any) -> None:
    description.validate(body, {"$ref": "#/components/schemas/Post"})
    ask("POST", f"{JOB}?blocking=false", 202, data=json.dumps(body))


@pytest.mark.parametrize("body", [[], {"more": 1}, {"arguments": []}, {"retention_s": -2}, {"name": 5}, {"input": []}])
def test_bodies_that_are_not_described_are_refused(ask: Asked, description: Description, body: Any) -> None:
    with pytest.raises(AssertionError, match=r"\$"):
        description.validate(body, {"$ref": "#/components/schemas/Post"})
    ask("POST", f"{JOB}?blocking=false", 400, data=json.dumps(body))
