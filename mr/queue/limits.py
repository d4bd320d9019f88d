"""What every driver refuses before it talks to its queue, so that a mistake reads alike on all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from mr.errors import InvalidInput, InvalidName, TooLarge
from mr.queue.base import Message

# NSQ's own limit; a topic that works on the embedded queue must work on the cluster's too.
_NAME = re.compile(r"[.a-zA-Z0-9_-]{1,64}")


def check_topics(topics: Iterable[str]) -> None:
    """:raises InvalidName: one of the topics is not 1 to 64 of ``[.a-zA-Z0-9_-]``."""
    for topic in topics:
        _check_name("topic", topic)


def check_consumer(channel: str, max_in_flight: int, visibility: float) -> None:
    """:raises InvalidInput: a consumer cannot be made of this; ``InvalidName`` where the channel's name is to blame."""
    _check_name("channel", channel)
    if max_in_flight < 1:
        raise InvalidInput(f"A consumer must be allowed at least one message in flight, not {max_in_flight}.")
    if not (visibility > 0 and math.isfinite(visibility)):
        raise InvalidInput(f"A visibility timeout is a number of seconds above 0, not {visibility}.")


def check_messages(messages: Sequence[Message], max_body_bytes: int) -> None:
    """:raises InvalidName: a topic's name is not allowed.
    :raises TooLarge: a body is over the limit.
    :raises InvalidInput: a body is empty, which NSQ does not take, or a delay is not a number of seconds from 0 up.
    """
    check_topics({message.topic for message in messages})
    for message in messages:
        if not message.body:
            raise InvalidInput(f"A message for {message.topic!r} has an empty body.")
        if len(message.body) > max_body_bytes:
            raise TooLarge(
                f"A message for {message.topic!r} has {len(message.body)} bytes; at most {max_body_bytes} are allowed.",
                max_body_bytes,
            )
        check_delay(message.delay)


def check_delay(delay: float) -> None:
    """:raises InvalidInput: the delay is not a number of seconds from 0 up."""
    if not (delay >= 0 and math.isfinite(delay)):
        raise InvalidInput(f"A delay is a number of seconds from 0 up, not {delay}.")


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidName(f"The {kind} {name!r} is not 1 to 64 of the characters [.a-zA-Z0-9_-].", kind)
