"""What is owed to others: an ended request's result and notifications, messages of handlers, news of changed handlers.

Each is one record under ``delivery/…``, committed together with what it tells of, and deleted once it was delivered;
what could not be delivered in time becomes ``dead/…``. Who is told is named by a *target*: ``https://host/path`` or
``mailto:who@example.com``, where an event may come first, as in ``failed:mailto:who@example.com``: then only that is
told.
How a result is delivered is named by a *writer*: see :func:`check_writer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

from mr.errors import InvalidInput
from mr.model import keys
from mr.model.entities import Record, Request

Kind = Literal["result", "notification", "message", "handlers"]

EVENTS = ("done", "failed", "cancelled", "message", "handlers")
"""What a target may be limited to."""

HANDLERS = "handlers"
"""The subject of news that handlers were changed, where others have the ID of a request."""

MAX_TARGETS = 8
"""Of one request, job or workflow each."""

MAX_TARGET_CHARS = 2048
FORMATS = ("text", "jsonl", "csv")
INLINE = "inline"
_NAMED = (INLINE, "file", "email", "http")
_ADDRESS = re.compile(r"[^\s@<>\",;:\x00-\x1f\x7f]+@[^\s@<>\",;:/\x00-\x1f\x7f]+")


class Delivery(Record, frozen=True, kw_only=True):
    """``target`` has no event before it. Times are seconds since 1970; ``payload`` is what a message says."""

    delivery_id: str
    workflow_name: str
    request_id: str | None
    kind: Kind
    event: str
    target: str
    created_timestamp: float
    due_timestamp: float
    attempts: int = 0
    last_error: str = ""
    payload: dict[str, Any] | None = None
    buried_timestamp: float | None = None
    """When it was given up."""
    resent_timestamp: float | None = None
    """When somebody had it sent again: from then on it is tried for as long as in the beginning."""


class Target(NamedTuple):
    """``event`` is empty where everything is told."""

    event: str
    url: str

    @property
    def is_mail(self) -> bool:
        return self.url.startswith("mailto:")

    def hears(self, event: str) -> bool:
        return self.event in ("", event)


def parse_target(text: str) -> Target:
    first, colon, rest = text.partition(":")
    return Target(first, rest) if colon and first in EVENTS else Target("", text)


def shown_target(text: str) -> str:
    """A target or a writer as others may see it: what leads to a webhook is often all that it takes to call it, so of
    a URL its host is shown."""
    event, url = parse_target(text)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return text
    rest = "/…" if parts.path.strip("/") or parts.query else ""
    return f"{event}{':' if event else ''}{parts.scheme}://{parts.netloc}{rest}"


def as_shown(request: Request) -> Request:
    """A request as those see it who may read it, and not what it may call."""
    writer, notify = shown_target(request.writer), [shown_target(text) for text in request.notify]
    return msgspec.structs.replace(request, writer=writer, notify=notify)


def check_targets(value: object, parameter: str = "notify") -> list[str]:
    """A list of targets, each once, from one text or a list of them; None has none.

    :raises InvalidInput: something in it is no target.
    """
    if value is None:
        return []
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise InvalidInput(f"{parameter!r} has to be a target or a list of them. {_TARGETS}", parameter)
    for text in given:
        if not isinstance(text, str):
            raise InvalidInput(f"{parameter!r} has {text!r}, which is no text. {_TARGETS}", parameter)
        _check_target(text, parameter)
    targets = list(dict.fromkeys(given))
    if len(targets) > MAX_TARGETS:
        raise InvalidInput(f"{parameter!r} has {len(targets)} targets; at most {MAX_TARGETS} are allowed.", parameter)
    return targets


_TARGETS = (
    "A target is https://HOST/PATH or mailto:NAME@HOST, with one of the events "
    f"{', '.join(EVENTS)} before it where only that is to be told, as in failed:mailto:NAME@HOST."
)


def _check_target(text: str, parameter: str) -> None:
    url = parse_target(text).url
    if url.startswith("mailto:"):
        if not is_address(url.removeprefix("mailto:")):
            raise InvalidInput(f"{text!r} names no mail address. {_TARGETS}", parameter)
    else:
        check_url(url, parameter)


def is_address(text: str) -> bool:
    return len(text) <= 254 and _ADDRESS.fullmatch(text) is not None


def check_url(url: str, parameter: str) -> str:
    """What can be seen without looking a name up; who connects to it checks the rest.

    :raises InvalidInput: it is no ``http`` or ``https`` URL of a host, or has a user's name in it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidInput(f"{url[:200]!r} is no URL: {error}. {_TARGETS}", parameter) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{url[:200]!r} is no https URL. {_TARGETS}", parameter)
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("A URL that others are told by may not have a user or a password in it.", parameter)
    if len(url) > MAX_TARGET_CHARS or not url.isprintable() or " " in url:
        raise InvalidInput(
            f"A URL has at most {MAX_TARGET_CHARS} characters, and no blanks or control characters.", parameter
        )
    return url


class Writer(NamedTuple):
    """How a result is delivered. ``kind`` is inline, file, email, http or class.

    ``place``: the path below the platform's directory, the recipients (separated by commas), the URL, or the class;
    empty where the platform's settings say. ``options`` are those of a file: ``format`` and ``directory``.
    """

    kind: str
    place: str = ""
    options: Mapping[str, str] = {}


def parse_writer(text: str) -> Writer:
    """See :func:`check_writer`, which refuses what cannot be read here."""
    if text in ("", INLINE):
        return Writer(INLINE)
    if text in _NAMED:
        return Writer(text)
    scheme, _, rest = text.partition(":")
    if scheme == "file":
        path, _, query = rest.partition("?")
        return Writer("file", path, dict(parse_qsl(query, keep_blank_values=True)))
    if scheme == "mailto":
        return Writer("email", rest)
    if scheme == "class":
        return Writer("class", rest)
    return Writer("http", text)


def check_writer(value: object, parameter: str = "writer") -> str:
    """A writer: ``inline``, or ``file``, ``email`` or ``http`` as the platform's settings say, or one of
    ``file:PATH[?format=text|jsonl|csv&directory=1]``, ``mailto:NAME@HOST,…`` and ``https://HOST/PATH``.

    :raises InvalidInput: it is none.
    """
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{parameter!r} has to be text. {_WRITERS}", parameter)
    if value == "mongodb":
        raise InvalidInput("This version of JobX has no writer 'mongodb' yet.", parameter)
    if value in _NAMED:
        return value
    writer = parse_writer(value)
    if writer.kind == "file":
        _check_file(value, writer, parameter)
    elif writer.kind == "email":
        addresses = writer.place.split(",")
        if not all(map(is_address, addresses)) or len(addresses) > MAX_TARGETS:
            raise InvalidInput(f"{value[:200]!r} does not name 1 to {MAX_TARGETS} mail addresses.", parameter)
    elif writer.kind == "class":
        raise InvalidInput(
            "A writer of your own is chosen by the platform alone (MR_RESULT_WRITER_FQ_CLASS).", parameter
        )
    elif "://" not in value:
        raise InvalidInput(f"There is no writer {value[:200]!r}. {_WRITERS}", parameter)
    else:
        check_url(value, parameter)
    return value


_WRITERS = f"There are: {', '.join(_NAMED)}, file:PATH, mailto:NAME@HOST and https://HOST/PATH."


def _check_file(text: str, writer: Writer, parameter: str) -> None:
    parts = writer.place.split("/")
    if len(writer.place) > 1024 or not writer.place.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise InvalidInput(
            f"{text[:200]!r}: the path has to be one below the platform's directory for results, without '..'.",
            parameter,
        )
    for name, value in writer.options.items():
        if name not in ("format", "directory"):
            raise InvalidInput(f"{text[:200]!r}: there is no option {name!r}, only format and directory.", parameter)
        if name == "format" and value not in FORMATS:
            raise InvalidInput(
                f"{text[:200]!r}: there is no format {value!r}. There are: {', '.join(FORMATS)}.", parameter
            )
        if name == "directory" and value not in ("0", "1"):
            raise InvalidInput(f"{text[:200]!r}: 'directory' is 0 or 1.", parameter)


# --- what is owed -----------------------------------------------------------------------------------------------------


class Owed(NamedTuple):
    key: str
    record: Delivery


def of_end(request: Request) -> list[Owed]:
    """What is owed when that request, as it ended, has ended: its result if there is one, and notifications."""
    assert request.ended_timestamp is not None
    event = request.state
    wanted: list[tuple[Kind, str]] = []
    if request.writer and event == "done":
        wanted.append(("result", request.writer))
    targets = [parse_target(text) for text in request.notify]
    wanted += [("notification", target.url) for target in targets if target.hears(event)]
    names = [f"{request.epoch}.{number}" for number in range(len(wanted))]
    return [
        _owed(request.workflow_name, request.request_id, name, kind, f"request.{event}", url, request.ended_timestamp)
        for name, (kind, url) in zip(names, wanted, strict=True)
    ]


def of_message(
    request: Request, invocation_id: str, attempt: int, number: int, channel: str, payload: dict[str, Any], now: float
) -> list[Owed]:
    """What is owed for the ``number``-th message of an attempt. ``channel`` is NOTIFY (all targets), EMAIL or HTTP."""
    targets = [target for target in map(parse_target, request.notify) if target.hears("message")]
    if channel != "NOTIFY":
        targets = [target for target in targets if target.is_mail is (channel == "EMAIL")]
    workflow, request_id = request.workflow_name, request.request_id
    return [
        _owed(
            workflow,
            request_id,
            f"m.{invocation_id}.{attempt}.{number}.{place}",
            "message",
            "message",
            target.url,
            now,
            payload,
        )
        for place, target in enumerate(targets)
    ]


def of_handlers(workflow: str, notify: Iterable[str], version: str, payload: dict[str, Any], now: float) -> list[Owed]:
    """What is owed when the handlers of a workflow were changed to those of that manifest."""
    heard = [target for target in map(parse_target, notify) if target.hears("handlers")]
    return [
        _owed(
            workflow,
            None,
            f"{version}.{int(now * 1000)}.{place}",
            "handlers",
            "handlers.changed",
            target.url,
            now,
            payload,
        )
        for place, target in enumerate(heard)
    ]


def _owed(
    workflow: str,
    request_id: str | None,
    name: str,
    kind: Kind,
    event: str,
    url: str,
    now: float,
    payload: dict[str, Any] | None = None,
) -> Owed:
    subject = request_id or HANDLERS
    record = Delivery(
        # What is signed joins ID, time and body with dots: one in the ID would leave open where it ends.
        delivery_id=f"{subject}.{name}".replace(".", "_"),
        workflow_name=workflow,
        request_id=request_id,
        kind=kind,
        event=event,
        target=url,
        created_timestamp=now,
        due_timestamp=now,
        payload=payload,
    )
    return Owed(keys.delivery(workflow, subject, name), record)


def dead_key(key: str) -> str:
    """Where a delivery goes that is given up."""
    return f"dead/{key.partition('/')[2]}"


def live_key(key: str) -> str:
    """Where one that was given up goes when it is to be tried again."""
    return f"delivery/{key.partition('/')[2]}"


def given_up(delivery: Delivery, error: str, now: float) -> Delivery:
    return msgspec.structs.replace(
        delivery, attempts=delivery.attempts + 1, last_error=error[:1000], buried_timestamp=now
    )


def union(*several: Sequence[str]) -> list[str]:
    """All targets of several lists, each once."""
    return list(dict.fromkeys(text for targets in several for text in targets))
