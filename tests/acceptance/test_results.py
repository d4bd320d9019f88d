"""A running platform delivers results as files, by mail, by HTTP and by a class of one's own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from servers.hooks import Hooks
from servers.mail import MailServer

from mr.outgoing import signing
from tests.acceptance.served import Answer, Served, served, until

JOBS = """
outgoing_allow: ["{hooks}"]
steps: {{count: {{map: count, reduce: add, partitions: 2}}}}
jobs:
  count: {{step: count}}
  filed: {{step: count, writer: "file:{{job}}/{{request_id}}.csv"}}
"""
FILES = {
    "count.py": """
def mapper(arguments):
    yield MrConfigureToReturn()
    for _, numbers in arguments:
        for number in range(numbers):
            yield f"Key {number}", number
""",
    "add.py": """
def reducer(results):
    for key, values in results:
        yield key, sum(values)
""",
}
OWN = """
import json, pathlib
from mr.results.base import ResultWriter

class Collector(ResultWriter):
    def write(self, request, pairs):
        path = pathlib.Path(__file__).with_name(f"{request.request_id}.json")
        path.with_suffix(".new").write_text(json.dumps(list(pairs)))
        path.with_suffix(".new").rename(path)
"""
PAIRS = [["Key 0", 0], ["Key 1", 1], ["Key 2", 2]]


class Delivering(NamedTuple):
    """A platform, and where it delivers. Whoever says nothing of a writer gets that of the class."""

    platform: Served
    hooks: Hooks
    post_office: MailServer
    output: Path
    own: Path

    def post(self, job: str, writer: str | None, numbers: int = 3, query: str = "") -> Answer:
        body: dict[str, Any] = {"arguments": {"numbers": numbers}}
        if writer is not None:
            body["writer"] = writer
        return self.platform.call("POST", f"/job/w/{job}{query}", json.dumps(body).encode())

    def delivered_by(self, job: str, writer: str | None, numbers: int = 3) -> str:
        """The ID of a request whose answer has no pairs, since they are delivered elsewhere, and are kept, too."""
        answer = self.post(job, writer, numbers)
        assert (answer.status, answer.json) == (200, {"result": {}})
        request_id = str(answer.headers["X-MR-REQUEST-ID"])
        assert self.platform.get(f"/request/w/{request_id}/result").pairs[:3] == PAIRS
        return request_id

    def until_file(self, path: Path) -> Path:
        until(path.exists, 30, self.platform.log)
        return path

    def owes(self) -> list[Any]:
        found: list[Any] = json.loads(self.platform.jobx("delivery", "list", "w", "--json").stdout)
        return [one["data"] for one in found]


@pytest.fixture(scope="module")
def delivering(module_backing: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivering]:
    directory = tmp_path_factory.mktemp("delivering")
    own = directory / "own"
    own.mkdir()
    (own / "own_writer.py").write_text(OWN)
    with Hooks() as hooks, MailServer() as post_office:
        files = {**FILES, "jobs.yaml": JOBS.format(hooks=hooks.address)}
        settings = {
            **module_backing,
            "MR_RESULT_FILE_WRITER_OUTPUT_PATH": directory / "output",
            "MR_RESULT_WRITER_FQ_CLASS": "own_writer.Collector",
            "MR_EMAIL_SMTP_HOSTNAME": post_office.address,
            "MR_EMAIL_SMTP_SECURITY": "none",
            "MR_EMAIL_SMTP_FROM_EMAIL": "jobx@example.com",
            "PYTHONPATH": os.pathsep.join([str(own), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        with served(directory, files, "--runners", "2", **settings) as platform:
            yield Delivering(platform, hooks, post_office, directory / "output" / "w", own)


def test_as_a_file(delivering: Delivering) -> None:
    request_id = delivering.delivered_by("count", "file")
    path = delivering.until_file(delivering.output / f"{request_id}.txt")
    assert path.read_text() == "Key\\s0 0\nKey\\s1 1\nKey\\s2 2\n"


def test_as_the_job_says(delivering: Delivering) -> None:
    request_id = delivering.delivered_by("filed", None)
    path = delivering.until_file(delivering.output / "filed" / f"{request_id}.csv")
    assert path.read_text() == "key,value\nKey 0,0\nKey 1,1\nKey 2,2\n"


def test_as_a_directory(delivering: Delivering) -> None:
    delivering.delivered_by("count", "file:by-key?directory=1&format=jsonl")
    index = delivering.until_file(delivering.output / "by-key") / "_index.jsonl"
    named = {line["key"]: line["file"] for line in map(json.loads, index.read_text().splitlines())}
    assert [(key, json.loads((index.parent / file).read_text())) for key, file in named.items()] == [
        (key, value) for key, value in PAIRS
    ]


def test_by_mail(delivering: Delivering) -> None:
    request_id = delivering.delivered_by("count", "mailto:ops@example.com")
    [mail] = delivering.post_office.wait_for(1)
    assert (mail.recipients, mail.message["X-REQUEST-ID"]) == (["ops@example.com"], request_id)
    [attached] = mail.message.iter_attachments()
    assert json.loads(attached.get_payload(decode=True))["result"]["pairs"] == PAIRS  # type: ignore[arg-type]


def test_by_http(delivering: Delivering) -> None:
    request_id = delivering.delivered_by("count", delivering.hooks.url)
    [hook] = delivering.hooks.wait_for(1)
    assert (hook.headers["x-request-id"], hook.headers["x-job-name"]) == (request_id, "count")
    assert hook.json["result"]["pairs"] == PAIRS
    [secret] = delivering.platform.jobx("webhook", "secret", "w").stdout.split()
    signing.verify(secret, hook.headers, hook.body, time.time())


def test_by_a_class_of_ones_own_unless_a_request_says_otherwise(delivering: Delivering) -> None:
    request_id = delivering.delivered_by("count", None)
    assert json.loads(delivering.until_file(delivering.own / f"{request_id}.json").read_text()) == PAIRS
    assert delivering.post("count", "inline").pairs == PAIRS


def test_a_writer_that_is_down_gets_it_when_it_is_up(delivering: Delivering) -> None:
    delivering.hooks.received.clear()
    delivering.hooks.stop()
    request_id = delivering.delivered_by("count", delivering.hooks.url)
    until(lambda: any(one.get("attempts") for one in delivering.owes()), 30, delivering.platform.log)
    assert delivering.platform.get(f"/request/w/{request_id}/result").pairs == PAIRS
    delivering.hooks.start()
    [hook] = delivering.hooks.wait_for(1)
    assert (hook.headers["x-request-id"], hook.json["result"]["pairs"]) == (request_id, PAIRS)
    until(lambda: not delivering.owes(), 30, delivering.platform.log)


def test_a_worker_that_is_killed_while_it_writes_leaves_nothing_and_the_next_one_writes_it(
    delivering: Delivering,
) -> None:
    def is_writing() -> bool:
        drafts = [path for path in delivering.output.glob(".writing/*") if path.is_dir()]
        return any(sum(1 for _ in path.iterdir()) > 100 for path in drafts)

    keys = 12_000
    answer = delivering.post("count", "file:many?directory=1", keys, "?blocking=false")
    until(is_writing, 60, delivering.platform.log, pause=0.001)
    assert delivering.platform.kill("worker") == 1
    target = delivering.output / "many"
    assert not target.exists()
    assert any(delivering.output.glob(".writing/*")), "what it left"
    delivering.until_file(target)
    assert sum(1 for _ in target.glob("*.txt")) == keys
    until(lambda: not delivering.owes(), 30, delivering.platform.log)
    assert not any(delivering.output.glob(".writing/*"))
    result = delivering.platform.get(f"/request/w/{answer.json['request_id']}/result")
    assert len(result.pairs) == keys


@pytest.mark.parametrize("writer", ["email", "http", "file:../x", "http://10.0.0.1/x", "class:os.path"])
def test_a_writer_that_the_platform_does_not_have_is_refused(delivering: Delivering, writer: str) -> None:
    answer = delivering.post("count", writer)
    assert (answer.status, answer.json["parameter"]) == (400, "writer")
