"""A running platform tells a real mail server and a real HTTP listener what became of requests.

With ``JOBX_FULL=1`` the listener that is down is so for a minute, and not just until it was missed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from servers.hooks import Hook, Hooks
from servers.mail import MailServer, Received

from mr.outgoing import signing
from tests.acceptance.served import Served, served, until

DOWN_S = 60 if os.environ.get("JOBX_FULL") == "1" else 0

JOBS = """
outgoing_allow: [127.0.0.1]
notify: ["handlers:http://{hooks}/hook", "handlers:mailto:dev@example.com"]
steps:
  fan: {{map: fan, reduce: add}}
  leaf: {{map: leaf, reduce: add}}
  say: {{map: say, reduce: add}}
jobs:
  fan: {{step: fan, notify: ["failed:mailto:job@example.com"]}}
  say: {{step: say}}
"""
FILES = {
    "fan.py": """
def mapper(arguments):
    yield MrConfigureToMap("leaf")
    for _, numbers in arguments:
        for number in numbers:
            yield number, number
""",
    "leaf.py": """
def mapper(arguments):
    yield MrConfigureToReturn()
    for key, number in arguments:
        yield "sum", 60 // number
""",
    "add.py": """
def reducer(results):
    for key, values in results:
        yield key, sum(values)
""",
    "say.py": """
def mapper(arguments):
    yield MrConfigureToReturn()
    NOTIFY.info("%d lines were skipped", 3)
    EMAIL.warning("by mail alone")
    HTTP.info("by webhook alone")
    yield "sum", 1
""",
}


class Told:
    """A platform, and those whom it tells."""

    def __init__(self, platform: Served, hooks: Hooks, post_office: MailServer) -> None:
        self.platform, self.hooks, self.post_office = platform, hooks, post_office

    def post(self, job: str, *notify: str, **arguments: Any) -> str:
        body = json.dumps({"arguments": arguments, "notify": notify, "name": "nightly"}).encode()
        answer = self.platform.call("POST", f"/job/w/{job}?blocking=false", body)
        assert answer.status == 202, answer
        return str(answer.json["request_id"])

    def hooks_of(self, request_id: str, number: int = 1) -> list[Hook]:
        """Those of a request, each ID once, when there are so many."""
        found: dict[str, Hook] = {}

        def are_there() -> bool:
            for hook in list(self.hooks.received):
                if hook.webhook_id.startswith(request_id):
                    found[hook.webhook_id] = hook
            return len(found) >= number

        until(are_there, 30, self.platform.log)
        return list(found.values())

    def mails_of(self, request_id: str, number: int = 1) -> list[Received]:
        found: list[Received] = []

        def are_there() -> bool:
            found[:] = [mail for mail in list(self.post_office.received) if mail.message["X-REQUEST-ID"] == request_id]
            return len(found) >= number

        until(are_there, 30, self.platform.log)
        return found

    def owes(self) -> list[Any]:
        found: list[Any] = json.loads(self.platform.jobx("delivery", "list", "w", "--json").stdout)
        return [one["data"] for one in found]


@pytest.fixture(scope="module")
def told(module_backing: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with Hooks() as hooks, MailServer() as post_office:
        files = {**FILES, "jobs.yaml": JOBS.format(hooks=hooks.address)}
        settings = {
            **module_backing,
            "MR_EMAIL_SMTP_HOSTNAME": post_office.address,
            "MR_EMAIL_SMTP_SECURITY": "none",
            "MR_EMAIL_SMTP_FROM_EMAIL": "jobx@example.com",
            "MR_PUBLIC_URL": "https://jobx.example.com",
        }
        with served(tmp_path_factory.mktemp("told"), files, "--runners", "2", **settings) as platform:
            yield Told(platform, hooks, post_office)


def body_of(mail: Received, kind: str = "plain") -> str:
    part = mail.message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def test_a_request_that_is_done_is_told_by_webhook_and_by_mail(told: Told) -> None:
    request_id = told.post("fan", told.hooks.url, "mailto:ops@example.com", numbers=[1, 2, 3])
    [hook] = told.hooks_of(request_id)
    [secret] = told.platform.jobx("webhook", "secret", "w").stdout.split()
    signing.verify(secret, hook.headers, hook.body, time.time())
    assert hook.json["type"] == "request.done"
    data = hook.json["data"]
    assert (data["state"], data["job_name"], data["name"]) == ("done", "fan", "nightly")
    path = data["result_url"].removeprefix("https://jobx.example.com")
    assert told.platform.get(path).pairs == [["sum", 110]]
    [mail] = told.mails_of(request_id)
    assert (mail.recipients, mail.message["Subject"]) == (["ops@example.com"], "[JobX] w/fan is done: nightly")
    assert f"jobx request tree w {request_id}" in body_of(mail)


def test_a_request_that_failed_is_told_with_the_way_to_what_failed(told: Told) -> None:
    request_id = told.post("fan", told.hooks.url, "done:mailto:ops@example.com", numbers=[0])
    [hook] = told.hooks_of(request_id)
    assert hook.json["type"] == "request.failed"
    error, path = hook.json["data"]["error"], hook.json["data"]["path"]
    assert (error["exception_type"], error["place"]) == ("ZeroDivisionError", "leaf.py:5")
    assert error["source_line"] == 'yield "sum", 60 // number'
    assert [(stop["step_name"], stop["number"]) for stop in path] == [("fan", None), ("leaf", 0)]
    [mail] = told.mails_of(request_id)
    assert mail.recipients == ["job@example.com"], "whom the job tells of failures, and nobody who hears of others"
    text = body_of(mail)
    assert '    at leaf.py:5:  yield "sum", 60 // number\n' in text
    assert "    fan map\n      leaf map 0 (one of 1)   <-- failed\n" in text
    for command in hook.json["data"]["commands"]:
        assert f"    {command}\n" in text
    assert "leaf.py" in body_of(mail, "html")


def test_what_handlers_say_is_sent_to_those_whom_the_request_tells(told: Told) -> None:
    request_id = told.post("say", f"message:{told.hooks.url}", "message:mailto:ops@example.com")
    hooks, mails = told.hooks_of(request_id, 2), told.mails_of(request_id, 2)
    assert sorted(hook.json["data"]["text"] for hook in hooks) == ["3 lines were skipped", "by webhook alone"]
    assert {hook.json["type"] for hook in hooks} == {"message"}
    subjects = sorted(str(mail.message["Subject"]) for mail in mails)
    assert subjects == ["[JobX] w/say: 3 lines were skipped", "[JobX] w/say: by mail alone"]
    assert "(warning)" in body_of(next(mail for mail in mails if "alone" in mail.message["Subject"]))


def test_changed_handlers_are_news(told: Told) -> None:
    def news(names: dict[str, list[str]]) -> bool:
        hooks = [hook.json for hook in list(told.hooks.received) if hook.json["type"] == "handlers.changed"]
        return any({kind: hook["data"][kind] for kind in names} == names for hook in hooks)

    told.platform.write({"fan.py": f"# changed\n{FILES['fan.py']}", "more.py": FILES["add.py"]})
    told.platform.jobx("apply", str(told.platform.workflow))
    until(lambda: news({"new": ["more"], "updated": ["fan"], "deleted": []}), 30, told.platform.log)

    def is_mailed() -> bool:
        mails = list(told.post_office.received)
        return any(mail.message["Subject"] == "[JobX] w: 1 handlers new, 1 updated, 0 deleted" for mail in mails)

    until(is_mailed, 30, told.platform.log)


def test_a_listener_that_is_down_for_a_while_gets_it_after(told: Told) -> None:
    with Hooks() as late:
        late.stop()
        began = time.monotonic()
        request_id = told.post("fan", late.url, numbers=[1])
        until(lambda: any(one.get("attempts") for one in told.owes()), 30, told.platform.log)
        until(lambda: time.monotonic() >= began + DOWN_S, DOWN_S + 1)
        [owed] = told.owes()
        assert late.address in owed["last_error"]
        late.start()
        [hook] = late.wait_for(1)
        assert hook.webhook_id == owed["delivery_id"] == f"{request_id}_0_0"
        until(lambda: not told.owes(), 30, told.platform.log)


def test_what_nobody_takes_is_dead_until_it_is_sent_again(told: Told) -> None:
    with Hooks() as gone:
        gone.answer = lambda hook: 410
        request_id = told.post("fan", gone.url, numbers=[1])
        until(lambda: any(one["is_dead"] for one in told.owes()), 30, told.platform.log)
        listed = told.platform.jobx("delivery", "list", "--dead").stdout
        assert listed.startswith(f"{request_id}_0_0\tw\trequest.done\thttp://{gone.address}/…\t1\tdead\t")
        assert "410" in listed
        gone.answer = lambda hook: 204
        told.platform.jobx("delivery", "resend", "w", "--all")
        until(lambda: not told.owes(), 30, told.platform.log)
        first, second = gone.received
        assert (first.webhook_id, first.body) == (second.webhook_id, second.body)


def test_a_target_that_the_platform_never_tells_is_refused(told: Told) -> None:
    answer = told.platform.call("POST", "/job/w/fan", b'{"notify": ["https://169.254.169.254/"]}')
    assert (answer.status, answer.json["parameter"]) == (400, "notify")
