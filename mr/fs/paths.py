"""Paths as handlers and people give them, checked."""

from __future__ import annotations

import errno
import os
import re

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255

_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\\\\\ud800-\udfff]")


def parts_of(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names that a path is made of; none for ``.`` and the empty path.

    :raises TypeError: it is no text.
    :raises PermissionError: it is absolute or has ``..`` in it, wherever that leads.
    :raises OSError: ``EINVAL``: it has a character that no name may have; ``ENAMETOOLONG``.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"A path is text, not {type(text).__name__}: {text!r}")
    if text.startswith("/"):
        raise _forbidden(text, "Absolute paths lead out of these files: give one that is relative to them")
    found = _REFUSED.search(text)
    if found:
        what = f"No name may have a control character, a backslash or half a surrogate pair in it: {found.group()!r}"
        raise OSError(errno.EINVAL, what, text)
    names = tuple(name for name in text.split("/") if name not in ("", "."))
    if ".." in names:
        raise _forbidden(text, "'..' may lead out of these files: name what you mean from their top")
    if len(text.encode()) > MAX_PATH_BYTES or any(len(name.encode()) > MAX_NAME_BYTES for name in names):
        limits = f"A path has at most {MAX_PATH_BYTES} bytes and a name {MAX_NAME_BYTES}"
        raise OSError(errno.ENAMETOOLONG, limits, text)
    return names


def _forbidden(path: str, why: str) -> PermissionError:
    return PermissionError(errno.EACCES, why, path)
