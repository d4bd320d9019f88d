"""What handlers tell others while they run."""

from __future__ import annotations

import msgspec

from mr.engine.finish import handler_of
from mr.engine.ops import Change, Commit, Env, Flow, Write
from mr.engine.transitions import Hold
from mr.handlers.protocol import Told
from mr.model import deliveries

MAX_TEXT_BYTES = 20_000


def tell(env: Env, hold: Hold, number: int, message: Told) -> Flow[None]:
    """Has the ``number``-th message of an attempt delivered, as long as the attempt is the one that counts."""
    request = hold.scene.request
    if not request.notify:
        return
    text = message.text
    while len(msgspec.json.encode(text)) > MAX_TEXT_BYTES:
        # One transaction has it for every target.
        text = f"{text[: len(text) // 2]}…"
    payload = {
        "channel": message.channel,
        "level": message.level,
        "text": text,
        "handler_name": handler_of(hold, message),
        "invocation_id": hold.id,
    }
    now = env.clock()
    owed = deliveries.of_message(request, hold.id, hold.record.attempt, number, message.channel, payload, now)
    if owed:
        yield Commit(Change("tell", hold.fence(), tuple(Write(key, record) for key, record in owed)))
