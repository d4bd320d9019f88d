"""Which names the platform allows. They become parts of store keys, topics and URLs, so they are plain.

A workflow's name is at most 32 characters and a capability's at most 16, because both stand in the name of a topic,
which NSQ limits to 64.
"""

from __future__ import annotations

import re

from mr.errors import InvalidName

MAX_WORKFLOW_NAME = 32
MAX_CAPABILITY = 16
MAX_NAME = 128

_allowed = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def check_name(kind: str, name: object, limit: int = MAX_NAME) -> str:
    """The name as it is. ``kind`` is for the message, ``limit`` is in characters.

    :raises InvalidName: it is no text, empty, too long or has a character outside ``A-Z a-z 0-9 _ -``.
    """
    if not isinstance(name, str):
        raise InvalidName(f"The {kind} name {name!r} is not text. Put quotes around it.", kind)
    if not name:
        raise InvalidName(f"The {kind} name is empty.", kind)
    if len(name) > limit:
        raise InvalidName(
            f"The {kind} name {name[:40]!r}… has {len(name)} characters; at most {limit} are allowed.", kind
        )
    if not _allowed.fullmatch(name):
        raise InvalidName(f"The {kind} name {name!r} has characters other than letters, digits, '_' and '-'.", kind)
    return name


def check_workflow_name(name: object) -> str:
    """:raises InvalidName: see :func:`check_name`; at most 32 characters."""
    return check_name("workflow", name, MAX_WORKFLOW_NAME)


def check_capability(name: object) -> str:
    """:raises InvalidName: see :func:`check_name`; at most 16 characters."""
    return check_name("capability", name, MAX_CAPABILITY)


def check_job_name(name: object) -> str:
    """:raises InvalidName: see :func:`check_name`."""
    return check_name("job", name)


def check_step_name(name: object) -> str:
    """:raises InvalidName: see :func:`check_name`."""
    return check_name("step", name)


def check_handler_name(name: object) -> str:
    """:raises InvalidName: see :func:`check_name`."""
    return check_name("handler", name)
