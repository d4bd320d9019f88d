"""Signatures of webhooks, against the example that the libraries of Standard Webhooks are tested with."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest

from mr.errors import InvalidInput, InvalidSignature
from mr.model.secrets import new_secret
from mr.outgoing import signing

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
WEBHOOK_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
OTHER = new_secret()

HEADERS = {"webhook-id": WEBHOOK_ID, "webhook-timestamp": str(TIMESTAMP), "webhook-signature": SIGNATURE}


def refusal(headers: dict[str, str], body: bytes = BODY, now: float = TIMESTAMP, tolerance_s: float = 300) -> str:
    with pytest.raises(InvalidSignature) as refused:
        signing.verify(SECRET, headers, body, now, tolerance_s)
    assert refused.value.status == 401
    return str(refused.value)


def test_the_published_example() -> None:
    assert signing.signed(SECRET, WEBHOOK_ID, TIMESTAMP, BODY) == HEADERS
    signing.verify(SECRET, HEADERS, BODY, TIMESTAMP)


def test_what_is_signed_is_id_time_and_body() -> None:
    key = base64.b64decode(OTHER.removeprefix("whsec_"))
    digest = hmac.new(key, b"a_1.17.\x00\xff", hashlib.sha256).digest()
    assert signing.sign(OTHER, "a_1", 17, b"\x00\xff") == f"v1,{base64.b64encode(digest).decode()}"


def test_while_a_secret_replaces_another_both_sign_and_either_verifies() -> None:
    both = signing.signed([OTHER, SECRET], WEBHOOK_ID, TIMESTAMP, BODY)
    assert both["webhook-signature"].split() == [signing.sign(OTHER, WEBHOOK_ID, TIMESTAMP, BODY), SIGNATURE]
    for known in (SECRET, OTHER, [new_secret(), OTHER]):
        signing.verify(known, both, BODY, TIMESTAMP)
    with pytest.raises(InvalidSignature):
        signing.verify([new_secret(), new_secret()], both, BODY, TIMESTAMP)


def test_signatures_of_other_kinds_are_passed_over() -> None:
    signing.verify(SECRET, HEADERS | {"webhook-signature": f"v1a,AAAA v2,é {SIGNATURE} v1,x"}, BODY, TIMESTAMP)
    assert "of the kind v1" in refusal(HEADERS | {"webhook-signature": SIGNATURE.replace("v1,", "v2,")})


def test_names_of_headers_have_no_case() -> None:
    signing.verify(SECRET, {name.title(): value for name, value in HEADERS.items()}, BODY, TIMESTAMP)


@pytest.mark.parametrize("name", HEADERS)
def test_a_missing_header_is_named(name: str) -> None:
    assert name in refusal({key: value for key, value in HEADERS.items() if key != name})
    assert name in refusal(HEADERS | {name: ""})


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": WEBHOOK_ID + "x"},
        {"webhook-timestamp": str(TIMESTAMP + 1)},
        {"webhook-signature": SIGNATURE[:-2] + "A="},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,\udcff"},
        {"webhook-id": "\udcff"},
    ],
)
def test_a_change_is_seen(changed: dict[str, str]) -> None:
    assert "None of its signatures is right" in refusal(HEADERS | changed)


def test_a_changed_body_is_seen() -> None:
    assert "None of its signatures is right" in refusal(HEADERS, BODY + b" ")


def test_what_is_old_or_of_the_future_is_refused() -> None:
    for now in (TIMESTAMP - 300, TIMESTAMP + 300):
        signing.verify(SECRET, HEADERS, BODY, now)
    assert "301 s old" in refusal(HEADERS, now=TIMESTAMP + 301)
    assert "ahead of this machine's clock" in refusal(HEADERS, now=TIMESTAMP - 301)
    assert "2 s old; 1 s are tolerated" in refusal(HEADERS, now=TIMESTAMP + 2, tolerance_s=1)


@pytest.mark.parametrize("text", ["now", "-1", "1.5", "1e9", "١٢٣", "9" * 400, " "])
def test_a_time_that_is_no_number_is_refused(text: str) -> None:
    assert "webhook-timestamp" in refusal(HEADERS | {"webhook-timestamp": text})


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ", "whsec_!fKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
     "whsec_" + base64.b64encode(bytes(23)).decode(), "whsec_" + base64.b64encode(bytes(65)).decode()],
)  # fmt: skip
def test_a_secret_that_is_none_is_refused_and_not_shown(secret: str) -> None:
    for attempt in (
        lambda: signing.sign(secret, WEBHOOK_ID, TIMESTAMP, BODY),
        lambda: signing.verify([SECRET, secret], HEADERS, BODY, TIMESTAMP),
    ):
        with pytest.raises(InvalidInput) as refused:
            attempt()
        assert "24 to 64 bytes" in str(refused.value)
        assert len(secret) < 8 or secret not in str(refused.value)


@pytest.mark.parametrize("webhook_id", ["", "a.b", "a b", "a\r\nb", "é"])
def test_an_id_that_would_leave_open_where_it_ends_is_not_signed(webhook_id: str) -> None:
    with pytest.raises(InvalidInput):
        signing.sign(SECRET, webhook_id, TIMESTAMP, BODY)
