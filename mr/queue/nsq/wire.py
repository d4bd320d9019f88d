"""What is said to nsqd and what it answers, whoever carries the bytes.

Commands are encoded by pynsq, but for those that there is one of for each message, and MPUB, which pynsq puts together
in quadratic time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from nsq import protocol

from mr.queue.nsq.settings import Settings

RESPONSE: int = protocol.FRAME_TYPE_RESPONSE
ERROR: int = protocol.FRAME_TYPE_ERROR
MESSAGE: int = protocol.FRAME_TYPE_MESSAGE

HEARTBEAT = b"_heartbeat_"
OK = b"OK"
CLOSED = b"CLOSE_WAIT"
CLOSE: bytes = b"CLS\n"
NOP: bytes = protocol.nop()

MESSAGE_HEAD = struct.Struct(">qH16s")
"""Of a message: when it was published, in nanoseconds; the attempts; its ID. The body follows."""

HEARTBEAT_S = 4
"""A consumer's connection from which nothing came for a few times as long is dead."""

_SIZE = struct.Struct(">i")
# More than nsqd ever sends, and less than what HTTP and TLS answers look like when they are read as a size.
_LARGEST_FRAME = 64 * 1024 * 1024
# Below nsqd's own default limit of 5 MiB a command.
_LARGEST_BATCH = 2 * 1024 * 1024

Frame = tuple[int, bytes]


class NsqError(Exception):
    """nsqd refuses, or is none. The text says what to do about it, as far as that is known."""


TROUBLE = (OSError, EOFError, UnicodeError, asyncio.TimeoutError, NsqError)
"""What is raised where there is no talking to a server; a host's name is encoded, too."""


class Identity(NamedTuple):
    """What nsqd says about itself."""

    max_rdy: int
    max_visibility_s: float
    wants_secret: bool


def greeting(settings: Settings, *, visibility: float | None = None) -> bytes:
    """The first bytes of a connection. With ``visibility`` it is one to consume on.

    Such a one has no output buffer at nsqd: with it, a message would wait for up to 25 ms, the least that nsqd allows.
    One to publish on has no heartbeats, so that it can rest unread.
    """
    name = socket.gethostname()
    features: dict[str, object] = {
        "client_id": name.partition(".")[0],
        "hostname": name,
        "user_agent": "jobx",
        "feature_negotiation": True,
        "tls_v1": settings.tls is not None,
        "heartbeat_interval": -1,
    }
    if visibility is not None:
        features |= {
            "heartbeat_interval": HEARTBEAT_S * 1000,
            "msg_timeout": round(visibility * 1000),
            "output_buffer_size": -1,
            "output_buffer_timeout": -1,
        }
    return bytes(protocol.MAGIC_V2 + protocol.identify(features))


def read_identity(answer: bytes, settings: Settings) -> Identity:
    """
    :raises NsqError: it is no answer of an nsqd, or this nsqd cannot be talked to with these settings.
    """
    try:
        said = json.loads(answer)
        identity = Identity(
            max_rdy=int(said["max_rdy_count"]),
            max_visibility_s=said["max_msg_timeout"] / 1000,
            wants_secret=bool(said["auth_required"]),
        )
        has_tls = bool(said["tls_v1"])
    except (ValueError, KeyError, TypeError) as error:
        raise NsqError(f"answers {answer[:80]!r}, which no nsqd of version 1 does") from error
    if settings.tls is not None and not has_tls:
        # Going on would send the secret in the clear.
        raise NsqError("does not offer TLS: start it with --tls-cert and --tls-key, or leave tls=1 out of the URL")
    if identity.wants_secret and not settings.secret:
        raise NsqError("wants a secret: give it in the URL as ?secret=…")
    return identity


def auth(settings: Settings) -> bytes:
    return bytes(protocol.auth(settings.secret.encode()))


def subscribe(topic: str, channel: str) -> bytes:
    return bytes(protocol.subscribe(topic, channel))


def ready(count: int) -> bytes:
    return b"RDY %d\n" % count


def finish(message: bytes) -> bytes:
    return b"FIN %s\n" % message


def requeue(message: bytes, delay: float = 0.0) -> bytes:
    """nsqd shortens what is over its limit."""
    return b"REQ %s %d\n" % (message, round(delay * 1000))


def touch(message: bytes) -> bytes:
    return b"TOUCH %s\n" % message


def publish(topic: str, bodies: Iterable[bytes]) -> Iterator[bytes]:
    """Commands that each are answered by OK."""
    batch: list[bytes] = []
    size = 0
    for body in bodies:
        if batch and size + len(body) > _LARGEST_BATCH:
            yield _mpub(topic, batch, size)
            batch, size = [], 0
        batch.append(body)
        size += len(body) + 4
    if batch:
        yield _mpub(topic, batch, size)


def _mpub(topic: str, bodies: Sequence[bytes], size: int) -> bytes:
    parts = [b"MPUB %s\n" % topic.encode(), _SIZE.pack(size + 4), _SIZE.pack(len(bodies))]
    for body in bodies:
        parts += (_SIZE.pack(len(body)), body)
    return b"".join(parts)


def publish_later(topic: str, body: bytes, delay: float) -> bytes:
    """A command that is answered by OK."""
    return bytes(protocol.dpub(topic, round(delay * 1000), body))


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """The whole frames in ``data``, and the rest of it.

    :raises NsqError: these are no frames.
    """
    frames = []
    start, end = 0, len(data)
    while end - start >= 8:
        (size,) = _SIZE.unpack_from(data, start)
        if not 4 <= size <= _LARGEST_FRAME:
            raise NsqError("does not speak NSQ's protocol: give the port of nsqd's --tcp-address")
        stop = start + 4 + size
        if stop > end:
            break
        frames.append((data[start + 7], data[start + 8 : stop]))
        start = stop
    return frames, data[start:]


_HINTS = {
    "TLS required": "add tls=1 to the URL",
    "E_AUTH_FAILED": "the secret in the URL is wrong, or nsqd's auth server does not answer",
    "E_UNAUTHORIZED": "the secret in the URL does not allow it",
}


def refusal(answer: bytes) -> NsqError:
    """What nsqd says in a frame of type ``ERROR``."""
    text = answer.decode(errors="replace")
    hints = [hint for sign, hint in _HINTS.items() if sign in text]
    return NsqError(f"refuses: {text}{''.join(f' ({hint})' for hint in hints)}")


_DELAY_LIMIT = re.compile(r"DPUB timeout \d+ out of range 0-(\d+)")


def delay_limit(error: NsqError) -> float | None:
    """The longest delay in seconds that this nsqd takes, if that is what the refusal was about."""
    found = _DELAY_LIMIT.search(str(error))
    return int(found[1]) / 1000 if found else None


def reason(error: BaseException) -> str:
    """Why there is no talking to a server, in words that go after its name."""
    if isinstance(error, NsqError):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"is not trusted: {error.verify_message} (the option ca names the authority's certificate)"
    if isinstance(error, ssl.SSLError):
        return f"refuses TLS: {error.reason or error} (the options cert and key name a client's certificate)"
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "does not answer"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "is not a host that can be found"
    if isinstance(error, EOFError):
        return "closed the connection"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be reached: {os.strerror(error.errno)}"
    return f"cannot be reached: {error or type(error).__name__}"
