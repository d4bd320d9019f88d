"""Results by mail."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import islice

from mr.config import Config
from mr.model.entities import Request
from mr.model.pairs import pair_text
from mr.outgoing.mail import Attachment, Mail
from mr.outgoing.settings import mailer
from mr.results import texts
from mr.results.reading import Result

MAX_ATTACHED_BYTES = 7_000_000
"""With what encoding adds it stays below 10,240,000 bytes, which is what Postfix takes unless it is told otherwise."""

NAME = "result.json"
_SECONDS = 120.0
_FIRST_PAIRS = 20
_SHOWN_CHARS = 200


def send(config: Config, to: Sequence[str], result: Result, delivery_id: str) -> None:
    """Returns once the mail server has taken it.

    :raises InvalidInput: this platform sends no mail.
    :raises DeliveryFailed: the mail was not taken.
    :raises FilesUnavailable: the result cannot be read.
    """
    sender = mailer(config, seconds=_SECONDS)
    request = result.request
    attached = _whole(result)
    sender.send(
        Mail(
            to,
            _subject(request),
            _text(config, result, attached),
            attachments=[] if attached is None else [Attachment(NAME, attached, "application/json")],
            headers=headers(request),
            delivery_id=delivery_id,
        )
    )


def headers(request: Request) -> dict[str, str]:
    """What tells a program, of mails and of POSTs, which result it gets."""
    return {
        "X-REQUEST-ID": request.request_id,
        "X-WORKFLOW-NAME": request.workflow_name,
        "X-JOB-NAME": request.job_name,
    }


def _whole(result: Result) -> bytes | None:
    """The text of the result, unless it is too large."""
    text = bytearray()
    for piece in texts.text(result.files, result.parts):
        text += piece
        if len(text) > MAX_ATTACHED_BYTES:
            return None
    return bytes(text)


def _subject(request: Request) -> str:
    name = _one_line(request.name)
    return f"[JobX] {request.workflow_name}/{request.job_name} is done: its result{f' ({name})' if name else ''}"


def _text(config: Config, result: Result, attached: bytes | None) -> str:
    request = result.request
    path = f"/request/{request.workflow_name}/{request.request_id}"
    facts = {
        "Workflow": request.workflow_name,
        "Job": request.job_name,
        "Request": request.request_id,
        "Name": _one_line(request.name),
        "Accepted": _moment(request.created_timestamp),
        "Ended": _moment(request.ended_timestamp),
        "Page": f"{config.public_url}{path}" if config.public_url else "",
        "Result": f"{config.public_url}{path}/result" if config.public_url else f"GET {path}/result",
    }
    lines = [f"{request.workflow_name}/{request.job_name} is done.", ""]
    lines += [f"{name + ':':<10}{value}" for name, value in facts.items() if value]
    until = f" until {_moment(request.expires_timestamp)}" if request.expires_timestamp is not None else ""
    pairs = f"{result.count:,} pair{'' if result.count == 1 else 's'}"
    if attached is not None:
        lines += ["", f"The result has {pairs} and is attached as {NAME}. The platform keeps it, too{until}."]
    else:
        first = [pair_text(key, value) for key, value in islice(result.pairs(), _FIRST_PAIRS)]
        lines += [
            "",
            f"The result has {pairs}, and with more than {MAX_ATTACHED_BYTES // 1_000_000} MB it is too large to be "
            f"attached. The platform keeps it{until}: see above where.",
            "",
            f"Its first {len(first)} pairs, each cut after {_SHOWN_CHARS} characters:",
            "",
            *(f"    {_cut(line)}" for line in first),
        ]
    return "\n".join(lines) + "\n"


def _moment(timestamp: float | None) -> str:
    return "" if timestamp is None else f"{datetime.fromtimestamp(timestamp, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _cut(line: str) -> str:
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line[: _SHOWN_CHARS + 1])
    return plain if len(plain) <= _SHOWN_CHARS else f"{plain[:_SHOWN_CHARS]}…"
