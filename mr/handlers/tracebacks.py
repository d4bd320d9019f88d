"""Tracebacks as the author of a handler wants them: the handler's own lines, without the platform's."""

from __future__ import annotations

import os
import traceback

import mr

MAX_CHARACTERS = 64 * 1024

_ours = os.path.dirname(os.path.abspath(mr.__file__)) + os.sep


def handler_traceback(error: BaseException) -> str:
    """The traceback's text, without frames of the platform, at most 64 Ki characters."""
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
    except Exception as failure:
        return f"{type(error).__name__} (its traceback cannot be shown: {type(failure).__name__})"
    _strip(told)
    place = getattr(error, "place", None)
    if not told.stack and isinstance(place, tuple):
        told.stack = traceback.StackSummary.from_list([traceback.FrameSummary(*place)])
    return shortened("".join(told.format()).rstrip("\n"), MAX_CHARACTERS)


def shortened(text: str, limit: int) -> str:
    """The text, or its head and tail and a word on what is missing between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def _strip(told: traceback.TracebackException) -> None:
    seen: set[int] = set()
    queue = [told]
    while queue:
        one = queue.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one.stack:
            frames = [frame for frame in one.stack if not frame.filename.startswith(_ours)]
            one.stack = traceback.StackSummary.from_list(frames)
        queue += [other for other in (one.__cause__, one.__context__) if other is not None]
        queue += getattr(one, "exceptions", None) or []
