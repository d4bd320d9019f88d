"""Results by mail, by HTTP and by a class of one's own; and which writers a platform has."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from results_stored import JOB, WORKFLOW, Stored
from servers.hooks import Hooks
from servers.mail import MailServer, Received
from trace_requests import put

from mr.errors import DeliveryFailed, InvalidInput
from mr.model import keys, secrets
from mr.model.entities import Workflow
from mr.outgoing import signing
from mr.results import mail, own
from mr.results.writing import check, examine

PAIRS = [("be", 2), ("ä\u2028", [None, {"x": 1.5}])]
TEXT = '{"result": {"pairs": [["be", 2], ["ä\u2028", [null, {"x": 1.5}]]]}}\n'


@pytest.fixture(scope="module")
def hooks() -> Iterator[Hooks]:
    with Hooks() as started:
        yield started


@pytest.fixture(scope="module")
def post_office() -> Iterator[MailServer]:
    with MailServer() as started:
        yield started


@pytest.fixture
def stored(hooks: Hooks, post_office: MailServer, tmp_path: Path) -> Stored:
    hooks.received.clear()
    hooks.answer = lambda hook: 204
    post_office.received.clear()
    post_office.refuse.clear()
    return Stored(
        tmp_path,
        MR_OUTGOING_ALLOW=hooks.address,
        MR_EMAIL_SMTP_HOSTNAME=post_office.address,
        MR_EMAIL_SMTP_SECURITY="none",
        MR_EMAIL_SMTP_FROM_EMAIL="jobx@example.com",
        MR_PUBLIC_URL="https://jobx.example.com",
    )


# --- mail -----------------------------------------------------------------------------------------------------------


def parts_of(received: Received) -> tuple[str, list[tuple[str, str, bytes]]]:
    """The text, and the attachments."""
    body = received.message.get_body(("plain",))
    assert body is not None
    attached = [
        (str(part.get_filename()), part.get_content_type(), part.get_payload(decode=True))
        for part in received.message.iter_attachments()
    ]
    return str(body.get_content()).replace("\r\n", "\n"), attached  # type: ignore[return-value]


def test_a_result_is_mailed_as_an_attachment_with_the_facts(stored: Stored, post_office: MailServer) -> None:
    request_id = stored.request(PAIRS, name="nightly\r\nBcc: x@example.com")
    stored.write(request_id, "mailto:a@example.com,b@example.com")
    [received] = post_office.received
    text, attached = parts_of(received)
    message = received.message
    assert received.recipients == ["a@example.com", "b@example.com"]
    assert message["Subject"].strip() == "[JobX] words/wordcount is done: its result (nightly Bcc: x@example.com)"
    assert (message["X-REQUEST-ID"], message["X-WORKFLOW-NAME"], message["X-JOB-NAME"]) == (request_id, WORKFLOW, JOB)
    assert message["Message-ID"] == f"<{request_id}_0_0@example.com>"
    assert attached == [("result.json", "application/json", TEXT.encode())]
    assert f"Result:   https://jobx.example.com/request/words/{request_id}/result\n" in text
    assert "Ended:    2023-11-14 22:13:22 UTC\n" in text
    assert text.endswith(
        "The result has 2 pairs and is attached as result.json. "
        "The platform keeps it, too until 2023-11-14 23:13:20 UTC.\n"
    )


def test_a_result_that_is_too_large_is_linked_and_its_first_pairs_shown(
    stored: Stored, post_office: MailServer
) -> None:
    long = "x" * (mail.MAX_ATTACHED_BYTES // 1000)
    pairs = [(f"key{n}", f"\x1b{long}") for n in range(1000)]
    request_id = stored.request(pairs, spilled=True, expires_timestamp=None)
    stored.write(request_id, "mailto:a@example.com")
    text, attached = parts_of(post_office.received[0])
    assert attached == []
    assert "The result has 1,000 pairs, and with more than 7 MB it is too large to be attached." in text
    assert "The platform keeps it: see above where." in text
    assert f"/request/words/{request_id}/result\n" in text
    shown = [line for line in text.splitlines() if line.startswith('    ["key')]
    assert len(shown) == 20 and shown[0].startswith('    ["key0","\\u001bxxx')
    assert {len(line) for line in shown} == {4 + 200 + 1}


def test_the_mail_list_and_the_address_may_be_the_platforms(stored: Stored, post_office: MailServer) -> None:
    stored.settings["MR_RESULT_EMAIL_WRITER_TO_LIST"] = "ops@example.com, dev@example.com"
    del stored.settings["MR_PUBLIC_URL"]
    request_id = stored.request([])
    stored.write(request_id, "email")
    [received] = post_office.received
    text, _ = parts_of(received)
    assert received.recipients == ["ops@example.com", "dev@example.com"]
    assert f"Result:   GET /request/words/{request_id}/result\n" in text
    assert "The result has 0 pairs and is attached" in text


def test_a_mail_that_is_refused_is_tried_again_or_final_as_the_server_says(
    stored: Stored, post_office: MailServer
) -> None:
    request_id = stored.request(PAIRS)
    post_office.refuse["a@example.com"] = "451 later"
    with pytest.raises(DeliveryFailed, match="451") as failed:
        stored.write(request_id, "mailto:a@example.com")
    assert not failed.value.is_final
    post_office.refuse["a@example.com"] = "550 no such user"
    with pytest.raises(DeliveryFailed, match="550") as failed:
        stored.write(request_id, "mailto:a@example.com")
    assert failed.value.is_final


# --- HTTP -----------------------------------------------------------------------------------------------------------


def test_a_result_is_posted_with_what_it_belongs_to_and_signed(stored: Stored, hooks: Hooks) -> None:
    request_id = stored.request(PAIRS)
    stored.write(request_id, hooks.url)
    [hook] = hooks.received
    assert hook.body.decode() == TEXT
    named = {name: hook.headers[name] for name in ("x-request-id", "x-workflow-name", "x-job-name", "idempotency-key")}
    assert named == {
        "x-request-id": request_id,
        "x-workflow-name": WORKFLOW,
        "x-job-name": JOB,
        "idempotency-key": f"{request_id}_0_0",
    }
    assert hook.headers["content-type"] == "application/json"
    signing.verify(secrets.of_workflow(stored.store, WORKFLOW), hook.headers, hook.body, time.time())


def test_a_large_result_is_sent_in_chunks_and_signed_all_the_same(stored: Stored, hooks: Hooks) -> None:
    pairs = [(n, "x" * 1000) for n in range(3000)]
    stored.write(stored.request(pairs[::2], pairs[1::2], spilled=True), hooks.url)
    [hook] = hooks.received
    assert hook.headers["transfer-encoding"] == "chunked"
    assert json.loads(hook.body)["result"]["pairs"] == [list(pair) for pair in pairs]
    signing.verify(secrets.of_workflow(stored.store, WORKFLOW), hook.headers, hook.body, time.time())


def test_the_url_may_be_the_platforms_and_the_host_the_workflows(stored: Stored, hooks: Hooks) -> None:
    stored.settings["MR_RESULT_HTTP_WRITER_SERVER_URL"] = hooks.url
    del stored.settings["MR_OUTGOING_ALLOW"]
    request_id = stored.request(PAIRS)
    with pytest.raises(DeliveryFailed, match=r"127\.0\.0\.1") as failed:
        stored.write(request_id, "http")
    assert failed.value.is_final and hooks.received == []
    allowed = Workflow(workflow_name=WORKFLOW, description="", outgoing_allow=[hooks.address])
    put(stored.store, {keys.workflow(WORKFLOW): allowed})
    stored.write(request_id, "http")
    assert len(hooks.received) == 1


@pytest.mark.parametrize(("status", "is_final"), [(500, False), (302, False), (410, True)])
def test_a_server_that_does_not_take_it_is_tried_again(
    stored: Stored, hooks: Hooks, status: int, is_final: bool
) -> None:
    hooks.answer = lambda hook: status
    with pytest.raises(DeliveryFailed, match=str(status)) as failed:
        stored.write(stored.request(PAIRS), hooks.url)
    assert failed.value.is_final is is_final


# --- a class --------------------------------------------------------------------------------------------------------

OWN = """
    from mr.errors import DeliveryFailed
    from mr.results.base import ResultWriter

    written = []

    class Collector(ResultWriter):
        def write(self, request, pairs):
            written.append((request.request_id, request.job_name, list(pairs)))

    class Breaks(ResultWriter):
        def write(self, request, pairs):
            raise KeyError(next(pairs)[0])

    class Leaves(ResultWriter):
        def write(self, request, pairs):
            raise SystemExit(3)

    class Refuses(ResultWriter):
        def write(self, request, pairs):
            raise DeliveryFailed("never", is_final=True)

    class Other:
        pass

    class Abstract(ResultWriter):
        pass
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "own_writers.py").write_text(textwrap.dedent(OWN))
    (tmp_path / "modules" / "broken_writers.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield "own_writers"
    for name in ("own_writers", "broken_writers"):
        sys.modules.pop(name, None)


def test_a_class_of_ones_own_is_given_the_request_and_its_pairs(stored: Stored, own_module: str) -> None:
    request_id = stored.request([(["a", 1], "x")], [("b", 2)])
    stored.write(request_id, f"class:{own_module}.Collector")
    assert sys.modules[own_module].written == [(request_id, JOB, [("b", 2), (("a", 1), "x")])]


@pytest.mark.parametrize(
    ("name", "reason", "is_final"),
    [
        ("own_writers.Breaks", "raised KeyError: 'be'", False),
        ("own_writers.Leaves", "raised SystemExit: 3", False),
        ("own_writers.Refuses", "never", True),
        ("own_writers.Abstract", "raised TypeError", False),
        ("own_writers.Missing", "there is no Missing in own_writers", False),
        ("own_writers.Other", "is no subclass of mr.results.base.ResultWriter", False),
        ("broken_writers.Any", "No module named 'nothing_of_that_name'", False),
    ],
)
def test_whatever_goes_wrong_in_a_class_is_told_and_tried_again(
    stored: Stored, own_module: str, name: str, reason: str, is_final: bool
) -> None:
    with pytest.raises(DeliveryFailed, match=reason) as failed:
        stored.write(stored.request(PAIRS), f"class:{name}")
    assert failed.value.is_final is is_final


# --- what a platform is set up for ------------------------------------------------------------------------------------


def test_what_a_platform_has_is_taken(stored: Stored, own_module: str, hooks: Hooks) -> None:
    stored.settings["MR_RESULT_HTTP_WRITER_SERVER_URL"] = hooks.url
    stored.settings["MR_RESULT_EMAIL_WRITER_TO_LIST"] = "ops@example.com"
    for writer in (
        "", "inline", "file", "file:a/{request_id}.csv?directory=1", "email", "mailto:a@example.com,b@example.com",
        "http", "https://example.com/x", hooks.url, f"class:{own_module}.Collector",
    ):  # fmt: skip
        check(stored.config, writer)
    check(stored.config, "http://10.1.2.3/", ["10.0.0.0/8"])


@pytest.mark.parametrize(
    ("writer", "unset", "reason"),
    [
        ("file", "MR_RESULT_FILE_WRITER_OUTPUT_PATH", "MR_RESULT_FILE_WRITER_OUTPUT_PATH"),
        ("file:x", "MR_RESULT_FILE_WRITER_OUTPUT_PATH", "MR_RESULT_FILE_WRITER_OUTPUT_PATH"),
        ("mailto:a@example.com", "MR_EMAIL_SMTP_HOSTNAME", "MR_EMAIL_SMTP_HOSTNAME"),
        ("mailto:a@example.com", "MR_EMAIL_SMTP_FROM_EMAIL", "MR_EMAIL_SMTP_FROM_EMAIL"),
        ("email", "", "MR_RESULT_EMAIL_WRITER_TO_LIST"),
        ("http", "", "MR_RESULT_HTTP_WRITER_SERVER_URL"),
        ("http://example.com/", "", "https"),
        ("https://169.254.169.254/", "", "169.254.169.254"),
        ("class:own_writers.Other", "", "no subclass"),
        ("class:no.such.Module", "", "cannot be imported"),
    ],
)
def test_what_a_platform_does_not_have_is_refused_and_says_what_is_missing(
    stored: Stored, own_module: str, writer: str, unset: str, reason: str
) -> None:
    stored.settings.pop(unset, None)
    with pytest.raises(InvalidInput, match=reason) as refused:
        check(stored.config, writer)
    assert refused.value.parameter == "writer"


def test_who_may_be_sent_mail_may_be_sent_results(stored: Stored) -> None:
    stored.settings["MR_EMAIL_ALLOW"] = "@example.com"
    check(stored.config, "mailto:a@example.com")
    with pytest.raises(InvalidInput, match=r"a@example\.org"):
        check(stored.config, "mailto:a@example.org")


def test_the_settings_name_is_that_of_the_class(stored: Stored) -> None:
    stored.settings[own.SETTING] = "own_writers.Collector"
    assert stored.config.result_writer_fq_class == "class:own_writers.Collector"


def test_the_doctor_is_told_of_a_writer_that_is_not_set_up_and_of_a_directory_that_is_none(stored: Stored) -> None:
    found = examine(stored.config)
    assert [(one.level, one.check) for one in found] == [("ok", "results"), ("ok", "disk")]
    stored.settings[own.SETTING] = "http"
    (stored.output).write_text("")
    found = examine(stored.config)
    assert [(one.level, one.check) for one in found] == [("problem", "results"), ("problem", "results")]
    assert "MR_RESULT_HTTP_WRITER_SERVER_URL is not set" in found[0].text
    assert f"{stored.output}, which this user cannot write to" in found[1].text
    assert all(one.advice for one in found)
