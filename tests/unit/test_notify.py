"""Notifications to a real mail server and a real HTTP listener, of requests as the engine would have left them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from servers.hooks import Hooks
from servers.mail import MailServer
from trace_requests import BEGAN, WORKFLOW, Story

from mr.config import Config
from mr.engine import ops
from mr.engine.shell import Platform
from mr.errors import DeliveryFailed, InvalidInput, StoreUnavailable
from mr.fs.local import LocalFiles
from mr.kv.base import Put, Txn
from mr.kv.memory import MemoryStore
from mr.model import deliveries, keys, secrets
from mr.model.deliveries import Delivery
from mr.model.entities import Failure, Request, Workflow
from mr.notify import facts, mails, samples
from mr.notify.notifier import Notifier, check, examine, webhook
from mr.outgoing import signing
from mr.queue.memory import MemoryQueue
from mr.trace.why import explain

TRACEBACK = """Traceback (most recent call last):
  File "shop/orders.py", line 5, in mapper
    yield region, amount / 0
ZeroDivisionError: <b>none</b> of "it"
Bcc: all@example.com"""
FAILURE = Failure(
    exception_type="ZeroDivisionError",
    exception_message='<b>none</b> of "it"\nBcc: all@example.com',
    traceback=TRACEBACK,
    attempt=1,
    handler_name="orders",
)


@pytest.fixture(scope="module")
def hooks() -> Iterator[Hooks]:
    with Hooks() as started:
        yield started


@pytest.fixture(scope="module")
def post_office() -> Iterator[MailServer]:
    with MailServer() as started:
        yield started


@pytest.fixture
def config(hooks: Hooks, post_office: MailServer, tmp_path: Path) -> Config:
    hooks.received.clear()
    hooks.answer = lambda hook: 204
    post_office.received.clear()
    return Config.read(
        {
            "MR_DATA_DIR": str(tmp_path),
            "MR_OUTGOING_ALLOW": hooks.address,
            "MR_EMAIL_SMTP_HOSTNAME": post_office.address,
            "MR_EMAIL_SMTP_SECURITY": "none",
            "MR_EMAIL_SMTP_FROM_EMAIL": "JobX <jobx@example.com>",
            "MR_PUBLIC_URL": "https://jobx.example.com/",
        }
    )


@pytest.fixture
def story() -> Story:
    """A request whose third child of nine failed."""
    told = Story(MemoryStore())
    child = told.child(told.root, 2)
    told.request(state="failed", failed_invocation_id=child, name="nightly\trun")
    told.invocation(told.root, "split", "waiting", mapped_count=9)
    told.seal(told.root, "region", 9)
    told.invocation(child, "region", "failed", error=FAILURE)
    return told


def owed(story: Story, target: str, **changes: Any) -> Delivery:
    """What the request, which is put into the store as it is, owes that target."""
    key = keys.request(WORKFLOW, story.id)
    request = story.records[key]
    assert isinstance(request, Request)
    story.tell()
    [one] = deliveries.of_end(msgspec.structs.replace(request, notify=[target]))
    return msgspec.structs.replace(one.record, **changes)


def said(story: Story, target: str, **payload: str) -> Delivery:
    given = {"channel": "NOTIFY", "level": "info", "text": "hello", "handler_name": "orders", **payload}
    return owed(story, target, kind="message", event="message", payload=given)


def notifier(config: Config, story: Story) -> Notifier:
    return Notifier(config, story.store, explain)


def refused(config: Config, story: Story, delivery: Delivery) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        notifier(config, story).notify(delivery)
    return caught.value


def text_of(post_office: MailServer, kind: str = "plain") -> str:
    part = post_office.received[-1].message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


# --- webhooks ---------------------------------------------------------------------------------------------------------


def test_a_webhook_says_what_failed_and_where_and_is_signed(config: Config, story: Story, hooks: Hooks) -> None:
    delivery = owed(story, hooks.url)
    notifier(config, story).notify(delivery)
    [hook] = hooks.received
    known = secrets.of_workflow(story.store, WORKFLOW)
    signing.verify(known, hook.headers, hook.body, time.time())
    assert hook.webhook_id == delivery.delivery_id == f"{story.id}_0_0"
    assert hook.headers["content-type"] == "application/json"
    assert hook.headers["user-agent"].startswith("JobX/")
    data = hook.json["data"]
    assert (hook.json["type"], hook.json["timestamp"]) == ("request.failed", "2023-11-14T22:13:22.000Z")
    assert (data["request_id"], data["workflow_name"], data["job_name"]) == (story.id, WORKFLOW, "revenue")
    assert (data["state"], data["seconds"], data["since"], data["name"]) == ("failed", 2.0, None, "nightly run")
    assert data["url"] == f"https://jobx.example.com/request/{WORKFLOW}/{story.id}"
    assert data["result_url"] is None
    assert data["error"]["exception_type"] == "ZeroDivisionError"
    assert (data["error"]["place"], data["error"]["source_line"]) == ("shop/orders.py:5", "yield region, amount / 0")
    steps = [(stop["step_name"], stop["direction"], stop["number"], stop["siblings"]) for stop in data["path"]]
    assert steps == [("split", "map", None, None), ("region", "map", 2, 9)]
    assert data["path"][-1]["invocation_id"] == data["error"]["invocation_id"] == story.child(story.root, 2)
    assert data["commands"][0] == f"jobx request why {story.id}"
    assert "traceback" not in data


def test_every_try_has_the_same_id_and_body(config: Config, story: Story, hooks: Hooks) -> None:
    delivery = owed(story, hooks.url)
    for attempts in range(2):
        later = {"attempts": attempts, "due_timestamp": BEGAN + 99, "resent_timestamp": BEGAN + 100 * attempts}
        notifier(config, story).notify(msgspec.structs.replace(delivery, **later))
    first, second = hooks.received
    assert (first.body, first.webhook_id) == (second.body, second.webhook_id)


def test_secrets_that_replace_one_another_both_sign(config: Config, story: Story, hooks: Hooks) -> None:
    [old] = secrets.of_workflow(story.store, WORKFLOW)
    [new, _] = secrets.rotate(story.store, WORKFLOW)
    notifier(config, story).notify(owed(story, hooks.url))
    [hook] = hooks.received
    for secret in (old, new):
        signing.verify(secret, hook.headers, hook.body, time.time())


def test_an_end_that_is_done_names_its_result(config: Config, story: Story, hooks: Hooks) -> None:
    story.request(state="done")
    notifier(config, story).notify(owed(story, hooks.url))
    data = hooks.received[0].json["data"]
    assert data["result_url"] == f"https://jobx.example.com/request/{WORKFLOW}/{story.id}/result"
    assert (data["error"], data["path"]) == (None, [])


@pytest.mark.parametrize(
    ("now", "since"),
    [
        ({"state": "running"}, "redriven"),
        ({"state": "failed", "epoch": 1}, "redriven"),
        ({"state": "expiring"}, "removed"),
    ],
)
def test_what_became_of_a_request_since_is_not_told_as_its_end(
    config: Config, story: Story, hooks: Hooks, now: dict[str, Any], since: str
) -> None:
    delivery = owed(story, hooks.url)
    story.request(failed_invocation_id=story.child(story.root, 2), **now)
    story.tell()
    notifier(config, story).notify(delivery)
    data = hooks.received[0].json["data"]
    assert (data["state"], data["since"], data["error"], data["path"]) == ("failed", since, None, [])
    assert data["ended_timestamp"] == facts.moment(delivery.created_timestamp)


def test_a_body_stays_small_however_much_there_is_to_tell(config: Config, hooks: Hooks) -> None:
    story = Story(MemoryStore())
    deep = story.root
    for _ in range(60):
        story.invocation(deep, "s" * 128, "waiting", mapped_count=9)
        deep = story.child(deep, 2**60)
    noisy = msgspec.structs.replace(FAILURE, exception_message='\x1b[31m\\"\n\u2028é' * 5_000)
    story.invocation(deep, "s" * 128, "failed", error=noisy)
    story.request(state="failed", failed_invocation_id=deep, name='\\"' * 100)
    delivery = owed(story, hooks.url)
    notifier(config, story).notify(delivery)
    [hook] = hooks.received
    assert len(hook.body) <= 64 * 1024
    data = hook.json["data"]
    assert len(data["path"]) == facts.MAX_STOPS and data["path_omitted"] == 61 - facts.MAX_STOPS
    assert data["error"]["exception_message"].endswith("…")
    assert all(char.isprintable() or char == "\n" for char in data["error"]["exception_message"])
    names = ["n" * 128] * 1000
    changed = msgspec.structs.replace(
        delivery, kind="handlers", payload={"new": names, "updated": names, "deleted": names}
    )
    said = msgspec.structs.replace(delivery, kind="message", payload={"text": '"\\\n' * 100_000})
    assert len(webhook(changed, facts.of_handlers(changed))) <= 64 * 1024
    assert len(webhook(said, facts.of_message(said, None, ""))) <= 64 * 1024


def test_what_handlers_say_is_told(config: Config, story: Story, hooks: Hooks) -> None:
    notifier(config, story).notify(said(story, hooks.url, text="3 lines\x07 were skipped", level="WARNING"))
    document = hooks.received[0].json
    assert document["type"] == "message"
    assert document["data"]["text"] == "3 lines\\x07 were skipped"
    assert (document["data"]["level"], document["data"]["handler_name"]) == ("warning", "orders")
    assert (document["data"]["channel"], document["data"]["request_id"]) == ("NOTIFY", story.id)


def test_news_of_handlers_count_and_name_them(config: Config, story: Story, hooks: Hooks) -> None:
    payload = {"new": ["b", "a"], "updated": [], "deleted": ["c"]}
    [one] = deliveries.of_handlers(WORKFLOW, [f"handlers:{hooks.url}"], "v1", payload, BEGAN)
    notifier(config, story).notify(one.record)
    document = hooks.received[0].json
    assert (document["type"], document["timestamp"]) == ("handlers.changed", "2023-11-14T22:13:20.000Z")
    assert document["data"]["counts"] == {"new": 2, "updated": 0, "deleted": 1}
    assert (document["data"]["new"], document["data"]["deleted"]) == (["a", "b"], ["c"])


def test_that_it_failed_is_told_also_where_nobody_can_tell_why(config: Config, story: Story, hooks: Hooks) -> None:
    delivery = owed(story, hooks.url)
    broken = keys.invocation(WORKFLOW, story.id, story.child(story.root, 2))
    story.store.commit([Txn(puts=(Put(broken, b"{"),))])
    notifier(config, story).notify(delivery)
    data = hooks.received[0].json["data"]
    assert (data["state"], data["since"], data["error"], data["path"]) == ("failed", None, None, [])


def test_a_listener_that_refuses_is_asked_again(config: Config, story: Story, hooks: Hooks) -> None:
    hooks.answer = lambda hook: 503
    error = refused(config, story, owed(story, hooks.url))
    assert "503" in str(error) and not error.is_final


def test_whatever_goes_wrong_is_a_try_that_failed_but_a_store_that_is_away(story: Story) -> None:
    errors: list[Exception] = [ZeroDivisionError("a mistake of ours"), StoreUnavailable("away")]

    def fails(delivery: Delivery) -> None:
        raise errors.pop(0)

    platform = Platform(story.store, MemoryQueue(), LocalFiles(Path("/nowhere")), fails)
    wanted = ops.Deliver(owed(story, "https://example.com/"))
    assert platform.perform(wanted) == ops.Undelivered("ZeroDivisionError: a mistake of ours", spares_place=True)
    with pytest.raises(StoreUnavailable):
        platform.perform(wanted)


def test_a_url_that_may_not_be_called_is_final_until_somebody_allows_it(
    config: Config, story: Story, hooks: Hooks
) -> None:
    strict = replace(config, outgoing_allow=())
    delivery = owed(story, hooks.url)
    error = refused(strict, story, delivery)
    assert error.is_final and not hooks.received
    story.records[keys.workflow(WORKFLOW)] = Workflow(
        workflow_name=WORKFLOW, description="", outgoing_allow=[hooks.address]
    )
    story.tell()
    notifier(strict, story).notify(delivery)
    assert len(hooks.received) == 1


# --- mail -------------------------------------------------------------------------------------------------------------


def test_a_mail_says_what_failed_and_where_in_text_and_html(
    config: Config, story: Story, post_office: MailServer
) -> None:
    delivery = owed(story, "mailto:ops@example.com")
    notifier(config, story).notify(delivery)
    [mail] = post_office.received
    assert mail.recipients == ["ops@example.com"]
    assert mail.message["To"] == "ops@example.com"
    assert mail.message["Subject"] == f"[JobX] {WORKFLOW}/revenue failed with ZeroDivisionError: nightly run"
    assert mail.message["Message-ID"] == f"<{delivery.delivery_id}@example.com>"
    assert mail.message["X-REQUEST-ID"] == story.id
    assert mail.message["Bcc"] is None
    text = text_of(post_office)
    assert '    ZeroDivisionError: <b>none</b> of "it"\n    Bcc: all@example.com\n' in text
    assert "    at shop/orders.py:5:  yield region, amount / 0\n" in text
    assert "    split map\n      region map 2 (one of 9)   <-- failed\n" in text
    assert '      File "shop/orders.py", line 5, in mapper\n' in text
    assert f"    jobx request why {story.id}\n" in text
    assert f"https://jobx.example.com/request/{WORKFLOW}/{story.id}\n" in text
    html = text_of(post_office, "html")
    assert "&lt;b&gt;none&lt;/b&gt;" in html and "<b>none" not in html
    assert f'<a href="https://jobx.example.com/request/{WORKFLOW}/{story.id}"' in html


def test_every_mail_there_is_can_be_made() -> None:
    templates = mails.Templates()
    made = {name: templates.render(name, told) for name, told in samples.all_of_them()}
    assert sorted(made) == sorted(samples.EVENTS)
    for mail in made.values():
        assert mail.subject.startswith("[JobX] words")
        assert "  \n" not in mail.text and "None" not in mail.text and "None" not in mail.html


def test_samples_have_the_facts_that_there_are(config: Config, story: Story) -> None:
    """What templates are tried with is what they are given."""
    delivery = owed(story, "mailto:ops@example.com")
    [entry] = story.store.get([keys.request(WORKFLOW, story.id)])
    assert entry is not None
    request = msgspec.json.decode(entry.value, type=Request)
    payload: dict[str, Any] = {}
    given = {
        "failed": facts.of_request(delivery, request, explain(story.store, request), ""),
        "message": facts.of_message(delivery, request, ""),
        "handlers": facts.of_handlers(msgspec.structs.replace(delivery, payload=payload)),
    }
    for name, told in samples.all_of_them():
        if name in given:
            assert set(told) - {"event", "delivery_id", "traceback"} == set(given[name]), name
            if told.get("error"):
                assert set(told["error"]) == set(given[name]["error"])
            for stop in told.get("path", ()):
                assert set(stop) == set(given[name]["path"][0])


def test_a_message_is_a_mail_with_its_first_words_in_the_subject(
    config: Config, story: Story, post_office: MailServer
) -> None:
    notifier(config, story).notify(
        said(story, "mailto:ops@example.com", text="first\r\nBcc: x@example.com\n" + 500 * "y")
    )
    [mail] = post_office.received
    subject = str(mail.message["Subject"])
    assert subject.startswith(f"[JobX] {WORKFLOW}/revenue: first Bcc: x@example.com yyy")
    assert len(subject) == mails.MAX_SUBJECT_CHARS and subject.endswith("…")
    assert mail.message["Bcc"] is None
    assert "    first\n    Bcc: x@example.com\n" in text_of(post_office)


def test_templates_of_a_directory_replace_those_of_the_same_name(
    config: Config, story: Story, post_office: MailServer, tmp_path: Path
) -> None:
    (tmp_path / "failed.subject.j2").write_text("OH NO {{ job_name }}")
    (tmp_path / "failed.html.j2").write_text("<p>{{ error.exception_message if error }}</p>")
    own = replace(config, email_templates=str(tmp_path))
    notifier(own, story).notify(owed(story, "mailto:ops@example.com"))
    [mail] = post_office.received
    assert mail.message["Subject"] == "OH NO revenue"
    assert text_of(post_office, "html").startswith("<p>&lt;b&gt;none&lt;/b&gt; of &#34;it&#34;")
    assert f"jobx request why {story.id}" in text_of(post_office)
    assert [finding.level for finding in examine(own)] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("fine\n{% if %}", "failed.text.j2, line 2, cannot be used: TemplateSyntaxError"),
        ("fine\nfine\n{{ eror }}", "failed.text.j2, line 3, cannot be used: UndefinedError: 'eror' is undefined"),
        ("{{ error.nothing.at.all }}", "failed.text.j2, line 1, cannot be used: UndefinedError"),
        ("{{ 1 / 0 }}", "failed.text.j2, line 1, cannot be used: ZeroDivisionError"),
        ("\n{{ ''.__class__.__mro__ }}", "failed.text.j2, line 2, cannot be used: SecurityError"),
        ("{% include 'mine' %}", "failed.text.j2, line 1, cannot be used: TemplateNotFound"),
    ],
)
def test_a_broken_template_is_named_with_its_line_and_waits_to_be_mended(
    config: Config, story: Story, post_office: MailServer, tmp_path: Path, template: str, said: str
) -> None:
    path = tmp_path / "failed.text.j2"
    path.write_text(template)
    own = replace(config, email_templates=str(tmp_path))
    telling, delivery = notifier(own, story), owed(story, "mailto:ops@example.com")
    with pytest.raises(DeliveryFailed) as caught:
        telling.notify(delivery)
    assert f"{tmp_path}/{said}" in str(caught.value)
    assert not caught.value.is_final
    assert [finding.level for finding in examine(own)][:2] == ["ok", "problem"]
    assert not post_office.received
    path.write_text("mended")
    telling.notify(delivery)
    assert text_of(post_office) == "mended\n"


def test_the_doctor_names_a_template_that_replaces_nothing(config: Config, tmp_path: Path) -> None:
    (tmp_path / "faild.text.j2").write_text("")
    (tmp_path / "colours.j2").write_text("")
    found = examine(replace(config, email_templates=str(tmp_path)))
    assert [finding.level for finding in found] == ["ok", "warning"]
    assert "failed.text.j2" in found[1].text
    assert examine(replace(config, email_templates="/nowhere/at/all"))[1].level == "warning"


def test_a_platform_without_mail_says_so_and_tries_again(config: Config, story: Story) -> None:
    error = refused(replace(config, email_smtp_hostname=""), story, owed(story, "mailto:ops@example.com"))
    assert "MR_EMAIL_SMTP_HOSTNAME" in str(error) and not error.is_final


def test_mail_to_whom_none_may_go_is_final(config: Config, story: Story, post_office: MailServer) -> None:
    error = refused(replace(config, email_allow=("@example.org",)), story, owed(story, "mailto:ops@example.com"))
    assert "MR_EMAIL_ALLOW" in str(error) and error.is_final
    assert not post_office.received


# --- what is refused before it is owed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "changes", "said"),
    [
        ("mailto:ops@example.com", {"email_smtp_hostname": ""}, "MR_EMAIL_SMTP_HOSTNAME"),
        ("failed:mailto:ops@example.com", {"email_smtp_from_email": ""}, "MR_EMAIL_SMTP_FROM_EMAIL"),
        ("mailto:ops@example.com", {"email_allow": ("ceo@example.com",)}, "ops@example.com is not allowed"),
        ("done:https://127.0.0.1/", {}, "127.0.0.1"),
        ("http://example.com/", {}, "http"),
    ],
)
def test_targets_that_are_never_told_are_refused(
    config: Config, target: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        check(replace(config, **changes), ["https://example.com/hook", target])
    assert caught.value.parameter == "notify"


def test_targets_that_are_told_are_not_refused(config: Config, hooks: Hooks) -> None:
    check(config, ["https://example.com/hook", "failed:mailto:ops@example.com", f"done:{hooks.url}"])
    check(config, ["http://10.0.0.1/hook"], ["10.0.0.0/8"])


def test_a_webhook_is_json_of_three_fields(story: Story) -> None:
    delivery = owed(story, "https://example.com/")
    document = json.loads(webhook(delivery, facts.of_request(delivery, None, None, "")))
    assert sorted(document) == ["data", "timestamp", "type"]
