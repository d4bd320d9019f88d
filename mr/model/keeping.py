"""What was asked of requests while they ran, and their own records cannot say yet."""

from __future__ import annotations

from collections.abc import Sequence

from mr.kv.base import Store
from mr.model import keys
from mr.model.entities import Request, decode
from mr.model.records import Keep


def as_kept(store: Store, requests: Sequence[Request]) -> list[Request]:
    """The requests, those that run with the name and retention that they are to have: see :mod:`mr.engine.keep`."""
    running = [request for request in requests if not request.is_done]
    entries = store.get([keys.kept(request.workflow_name, request.request_id) for request in running])
    wishes = {
        request.request_id: decode(Keep, entry.key, entry.value)
        for request, entry in zip(running, entries, strict=True)
        if entry is not None
    }
    return [wishes[one.request_id].of(one) if one.request_id in wishes else one for one in requests]
