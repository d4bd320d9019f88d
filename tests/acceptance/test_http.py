"""The calls of a client, over HTTP, against the whole platform."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance.served import Answer, Served, served, until

FILES = {
    "jobs.yaml": """
steps:
  words: {map: words, combine: add, reduce: add}
  slow: {map: slow, reduce: add}
  fan: {map: fan, reduce: add}
  parts: {map: fan, reduce: add, partitions: 4}
  typed: {map: typed, reduce: add}
  raises: {map: raises, reduce: add}
  shared: {map: words, reduce: raises_too}
  wide: {map: wide, reduce: add}
  one_fails: {map: one_fails, reduce: add}
jobs:
  words: {step: words}
  slow: {step: slow}
  fan: {step: fan}
  parts: {step: parts}
  typed: {step: typed}
  raises: {step: raises}
  reducer_raises: {step: shared}
  wide: {step: wide}
""",
    "words.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, text in arguments:\n        for word in text.split():\n            yield word, 1\n"
    ),
    "slow.py": (
        "import time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    time.sleep(dict(arguments)['seconds'])\n    yield 'slept', 1\n"
    ),
    "fan.py": (
        "def mapper(arguments):\n    yield MrConfigureToMap('words')\n"
        "    for number in range(dict(arguments)['n']):\n        yield number, f'a b{number % 3}'\n"
    ),
    "typed.py": '''"""
Takes a number.

**
handler_type: mapper
parameters:
    - {name: count, type: integer}
    - {name: greeting, type: string, required: false, default: hello}
argument_spec:
    - {name: arguments, type: list}
"""

yield MrConfigureToReturn()
given = dict(arguments)
yield given["greeting"], given["count"] + 1
''',
    "raises.py": (
        "def helper(value):\n    return 1 / value\n\n\ndef mapper(arguments):\n"
        "    yield MrConfigureToReturn()\n    print('about to divide')\n    yield 'x', helper(0)\n"
    ),
    "raises_too.py": "def reducer(results):\n    for key, _ in results:\n        raise LookupError(f'no {key}')\n",
    "wide.py": (
        "def mapper(arguments):\n    yield MrConfigureToMap('one_fails')\n"
        "    for number in range(31):\n        yield number, number\n"
    ),
    "one_fails.py": (
        "import time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n    for _, number in arguments:\n"
        "        if number == 9:\n            raise ValueError\n        time.sleep(0.1)\n        yield 'n', 1\n"
    ),
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, module_backing: dict[str, str]) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("http"), FILES, MR_MAX_BODY_BYTES=200_000, **module_backing) as made:
        yield made


def problem(answer: Answer, status: int, slug: str) -> dict[str, object]:
    assert answer.status == status, answer
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    found: dict[str, object] = answer.json
    assert found["type"] == f"urn:jobx:{slug}", found
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found


def test_a_blocking_post_answers_with_the_reduced_pairs(platform: Served) -> None:
    answer = platform.post("words", text="to be or not to be")
    assert answer.status == 200
    assert answer.text == '{"result": {"pairs": [["be", 2], ["not", 1], ["or", 1], ["to", 2]]}}\n'
    assert answer.headers["X-MR-REQUEST-ID"]
    assert answer.headers["X-FULFILLED-BY"]


def test_keys_that_differ_as_json_are_different_and_in_order(platform: Served) -> None:
    answer = platform.post("fan", n=6)
    assert answer.pairs == [["a", 6], ["b0", 2], ["b1", 2], ["b2", 2]]


def test_partitions_do_not_change_the_answer(platform: Served) -> None:
    assert platform.post("parts", n=6).pairs == platform.post("fan", n=6).pairs


def test_a_post_that_does_not_block_says_where_to_look(platform: Served) -> None:
    answer = platform.post("words", "?blocking=false", text="a b")
    assert answer.status == 202
    accepted = answer.json
    assert accepted["result"] is None
    assert answer.headers["Location"].endswith(f"/request/w/{accepted['request_id']}")
    assert platform.result(accepted["request_id"]).pairs == [["a", 1], ["b", 1]]
    status = platform.status(accepted["request_id"])
    assert (status["state"], status["is_done"], status["is_blocking"]) == ("done", True, False)
    assert status["failed_invocation_id"] is None
    assert status["context"]["requester_ip"] == "127.0.0.1"


def test_a_bounded_wait_ends_with_202_and_the_request_goes_on(platform: Served) -> None:
    answer = platform.post("slow", "?wait=0.3", seconds=1.5)
    assert answer.status == 202
    running = platform.get(f"/request/w/{answer.json['request_id']}/result")
    assert running.status == 202
    assert platform.result(answer.json["request_id"]).pairs == [["slept", 1]]


def test_a_deleted_request_is_cancelled_and_its_waiter_is_told(platform: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(platform.post, "slow", seconds=100)
        until(lambda: platform.get("/request/w/last").json.get("job_name") == "slow", explain=platform.log)
        request_id = platform.get("/request/w/last").json["request_id"]
        until(lambda: platform.get(f"/request/w/{request_id}/tree").text.count('"running"') >= 2, explain=platform.log)
        deleted = platform.call("DELETE", f"/request/w/{request_id}")
        assert deleted.status == 200
        assert deleted.json["state"] == "cancelled"
        problem(blocked.result(10), 409, "request-cancelled")
    again = platform.call("DELETE", f"/request/w/{request_id}")
    assert (again.status, again.json["state"]) == (200, "cancelled")
    problem(platform.get(f"/request/w/{request_id}/result"), 409, "request-cancelled")


def test_twenty_posts_with_one_key_are_one_request(platform: Served) -> None:
    body = json.dumps({"arguments": {"text": "x y x"}}).encode()

    def post(_: int) -> Answer:
        return platform.call("POST", "/job/w/words", body, Idempotency_Key="twenty")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.text for answer in answers} == {'{"result": {"pairs": [["x", 2], ["y", 1]]}}\n'}
    assert len({answer.headers["X-MR-REQUEST-ID"] for answer in answers}) == 1
    other = platform.call("POST", "/job/w/words", b'{"arguments": {"text": "z"}}', Idempotency_Key="twenty")
    problem(other, 422, "idempotency-mismatch")


def test_a_handler_that_raises_is_told_and_found_in_the_tree(platform: Served) -> None:
    answer = platform.post("raises", a=1)
    found = problem(answer, 500, "handler-failed")
    assert found["exception_type"] == "ZeroDivisionError"
    assert found["exception_message"] == "division by zero"
    assert str(found["invocation_id"]).startswith(str(found["request_id"]))
    assert answer.headers["X-MR-EXCEPTION-TYPE"] == "ZeroDivisionError"
    assert answer.headers["X-MR-EXCEPTION-MESSAGE"] == "division by zero"
    again = platform.get(f"/request/w/{found['request_id']}/result")
    assert again.json == answer.json
    tree = platform.jobx("request", "tree", str(found["request_id"])).stdout
    for part in ("ZeroDivisionError", "raises.py", "1 / value"):
        assert part in tree, tree
    invocation = platform.run("mr_kv_invocation_get", "w", str(found["invocation_id"])).stdout
    assert "about to divide" in invocation


def test_what_had_not_ended_with_a_failed_request_has_stopped(platform: Served) -> None:
    request_id = str(problem(platform.post("wide"), 500, "handler-failed")["request_id"])
    told = platform.jobx("request", "tree", request_id).stdout
    told += platform.run("mr_get_invocation_flat_list", "w", request_id).stdout
    told += platform.run("mr_get_invocation_graph", "w", request_id).stdout
    assert "stopped" in told
    assert "not begun" in told
    for state in ("running", "waiting", "reducing"):
        assert state not in told, told


def test_a_reducer_that_raises_fails_the_map_that_it_reduces(platform: Served) -> None:
    found = problem(platform.post("reducer_raises", text="word"), 500, "handler-failed")
    assert (found["exception_type"], found["exception_message"]) == ("LookupError", "no word")


def test_a_drawing_is_a_picture_of_the_invocations(platform: Served) -> None:
    request_id = platform.post("fan", n=3).headers["X-MR-REQUEST-ID"]
    answer = platform.get(f"/request/w/{request_id}/graph.svg")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("image/svg+xml")
    assert "fan" in "".join(xml.etree.ElementTree.fromstring(answer.text).itertext())
    dot = platform.get(f"/request/w/{request_id}/graph.dot")
    assert dot.text.startswith("digraph")
    assert platform.get(f"/request/w/{request_id}", Accept="image/svg+xml").headers["Content-Type"].startswith("image")


def test_parameters_are_checked_cast_and_filled_in(platform: Served) -> None:
    assert platform.post("typed", count=1).pairs == [["hello", 2]]
    assert platform.post("typed", count="41", greeting="hi").pairs == [["hi", 42]]


BAD = {
    "bad JSON": ("/job/w/words", b"{", 400, None),
    "NaN": ("/job/w/words", b'{"arguments": {"text": NaN}}', 400, None),
    "nested brackets": ("/job/w/words", b"[" * 100_000, 400, None),
    "too large": ("/job/w/words", b'{"arguments": {"text": "' + b"x" * 300_000 + b'"}}', 413, None),
    "unknown field": ("/job/w/words", b'{"argument": {}}', 400, "arguments"),
    "not an object": ("/job/w/words", b"[1]", 400, None),
    "missing parameter": ("/job/w/typed", b"{}", 400, "count"),
    "wrong type": ("/job/w/typed", b'{"arguments": {"count": "many"}}', 400, "count"),
    "unknown parameter": ("/job/w/typed", b'{"arguments": {"count": 1, "cuont": 2}}', 400, "cuont"),
    "unknown workflow": ("/job/none/words", b"{}", 404, "none"),
    "unknown job": ("/job/w/wrods", b"{}", 404, "words"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_problem_that_names_it(platform: Served, name: str) -> None:
    path, body, status, named = BAD[name]
    answer = platform.call("POST", path, body)
    found = problem(answer, status, answer.json["type"].rpartition(":")[2])
    if named:
        assert named in str(found["detail"]), found


def test_nothing_of_a_refused_post_is_recorded(platform: Served) -> None:
    before = platform.post("words", text="a").headers["X-MR-REQUEST-ID"]
    for path, body, _, _ in BAD.values():
        platform.call("POST", path, body)
    assert platform.get("/request/w/last").json["request_id"] == before


def test_what_is_not_there_is_not_found(platform: Served) -> None:
    assert platform.get("/request/w/nothing").status == 404
    assert platform.get("/nowhere").status == 404
    assert platform.call("PUT", "/job/w/words", b"{}").status == 405


def test_a_saved_change_is_live(platform: Served) -> None:
    assert platform.post("fan", n=1).pairs == [["a", 1], ["b0", 1]]
    platform.write({"add.py": FILES["add.py"].replace("sum(values)", "-sum(values)")})
    until(lambda: platform.post("slow", seconds=0).pairs == [["slept", -1]], 5, platform.log)
    platform.write({"add.py": "def reducer(results):\n    oops oops\n"})
    until(lambda: "add.py:2" in platform.log(), 5, platform.log)
    assert platform.post("slow", seconds=0).pairs == [["slept", -1]], "what was live before stays live"
    platform.write({"add.py": FILES["add.py"]})
    until(lambda: platform.post("slow", seconds=0).pairs == [["slept", 1]], 5, platform.log)


def test_health_and_readiness(platform: Served) -> None:
    assert platform.get("/healthz").status == 200
    assert platform.get("/readyz").status == 200
