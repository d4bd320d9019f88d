"""Bodies that say for themselves when and for whom they are: nsqd defers nothing for longer than an hour.

A message with a longer delay travels in an envelope. Whoever gets it before it is due defers it again; whoever consumes
on another channel than the one that it is for lets it go. A body that happens to look like an envelope gets one, too.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_MARK = b"\x00mr.later\x00"
# When it is due, in seconds since the epoch; how many deliveries before that are nobody's; the channel's length.
_HEAD = struct.Struct(">dHB")


class Letter(NamedTuple):
    """``due`` is in seconds since the epoch, ``hops`` the number of deliveries that only defer again, ``channel`` empty
    if it is for all of them."""

    due: float
    hops: int
    channel: str
    body: bytes


def is_sealed(body: bytes) -> bool:
    """Whether the body is an envelope, or looks like one."""
    return body.startswith(_MARK)


def seal(letter: Letter) -> bytes:
    channel = letter.channel.encode()
    head = _HEAD.pack(letter.due, min(letter.hops, 0xFFFF), len(channel))
    return b"".join((_MARK, head, channel, letter.body))


def unseal(body: bytes) -> Letter:
    """
    :raises ValueError: it is marked as one, and is none.
    """
    head = len(_MARK) + _HEAD.size
    if len(body) <= head:
        raise ValueError("the envelope is cut off")
    due, hops, length = _HEAD.unpack_from(body, len(_MARK))
    channel = body[head : head + length].decode()
    return Letter(due, hops, channel, body[head + length :])
