"""The body of a POST to a job."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from mr.errors import InvalidInput
from mr.model.deliveries import check_targets, check_writer
from mr.web import strict_json

MAX_RETENTION_S = 10 * 366 * 86400
MIN_RETENTION_S = 60
MAX_NAME_CHARS = 200

_FIELDS = ("arguments", "input", "output", "writer", "notify", "retention_s", "name")
_FUTURE = ("input", "output")

SAME, NEWEST = "same", "newest"
"""The manifest that a request ran on, and that of now: what a redrive may run on."""


class Post(NamedTuple):
    """What was asked for. ``retention_s`` and ``writer`` are None where job, workflow or platform decide, ``notify``
    adds to theirs; ``name`` is for people."""

    arguments: dict[str, Any]
    retention_s: int | None
    name: str
    writer: str | None
    notify: list[str]


def parse(body: bytes) -> Post:
    """An empty body has no arguments.

    :raises InvalidInput: it is not strict JSON, no object, or has fields that a POST has not; ``parameter`` names one.
    """
    value = strict_json.parse(body) if body.strip() else {}
    if not isinstance(value, dict):
        raise InvalidInput('The body has to be a JSON object, as in {"arguments": {"name": "value"}}.')
    for field in value:
        if field not in _FIELDS:
            raise InvalidInput(f"A POST has no field {field!r}. {_nearest(field)}", field)
    for field in _FUTURE:
        if value.get(field) is not None:
            raise InvalidInput(f"This version of JobX does not take {field!r} yet: leave it out.", field)
    return Post(
        _arguments(value.get("arguments")),
        _retention(value.get("retention_s")),
        _name(value.get("name")),
        None if value.get("writer") is None else check_writer(value["writer"]),
        check_targets(value.get("notify")),
    )


def parse_redrive(body: bytes) -> bool:
    """Whether a redrive is to run on the manifest that the request ran on; without a body on the newest.

    :raises InvalidInput: it is not strict JSON, or asks for anything else.
    """
    value = strict_json.parse(body) if body.strip() else {}
    if not isinstance(value, dict):
        raise InvalidInput('The body has to be a JSON object, as in {"manifest": "same"}, or empty.')
    for field in value:
        if field != "manifest":
            raise InvalidInput(f"A redrive has no field {field!r}, only 'manifest'.", field)
    manifest = value.get("manifest", NEWEST)
    if manifest not in (SAME, NEWEST):
        raise InvalidInput(f"'manifest' has to be {SAME!r} or {NEWEST!r}, not {manifest!r}.", "manifest")
    return bool(manifest == SAME)


def _nearest(field: str) -> str:
    nearest = difflib.get_close_matches(field, _FIELDS, n=1)
    if nearest:
        return f"Did you mean {nearest[0]!r}?"
    return f"There are: {', '.join(_FIELDS)}. What the job works on goes into 'arguments'."


def _arguments(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput('\'arguments\' has to be an object, as in {"name": "value"}.', "arguments")
    return value


def _retention(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= MAX_RETENTION_S:
        raise InvalidInput(
            f"'retention_s' has to be a whole number of seconds up to {MAX_RETENTION_S}, or -1 for ever.", "retention_s"
        )
    return value


def _name(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MAX_NAME_CHARS:
        raise InvalidInput(f"'name' has to be text of at most {MAX_NAME_CHARS} characters.", "name")
    return value
