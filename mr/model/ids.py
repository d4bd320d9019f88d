"""Identifiers. They are URL-safe, and an invocation's contains those of its ancestors and its request.

A request is ``<time><random><check>``: it sorts by the time of its making, so that the newest is the last one of a
listing, and its check character tells a mistyped identifier from that of a request that is gone. The root invocation
is ``<request>.0``; the n-th child of an invocation ``<parent>.<nonce>-<n>``, with the nonce of the mapper attempt that
yielded it; the j-th reduce of an invocation ``<map>.r<j>``.
"""

from __future__ import annotations

import secrets
import time
import zlib
from base64 import b32encode

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_CHARS = 9  # 45 bits of milliseconds: until the year 3084
_RANDOM_CHARS = 8


def _base32(number: int, width: int) -> str:
    return "".join(_ALPHABET[(number >> 5 * place) & 31] for place in range(width - 1, -1, -1))


def _check(workflow_name: str, body: str) -> str:
    return _ALPHABET[zlib.crc32(f"{workflow_name}/{body}".encode()) & 31]


def new_nonce() -> str:
    """40 random bits."""
    return b32encode(secrets.token_bytes(5)).decode().lower()


def new_request_id(workflow_name: str, now: float | None = None) -> str:
    """A new identifier for a request of that workflow; ``now`` is in seconds since the epoch."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    body = _base32(milliseconds, _TIME_CHARS) + _base32(secrets.randbits(5 * _RANDOM_CHARS), _RANDOM_CHARS)
    return body + _check(workflow_name, body)


def is_request_id(workflow_name: str, text: str) -> bool:
    """Whether this can be the identifier of a request of that workflow."""
    return (
        len(text) == _TIME_CHARS + _RANDOM_CHARS + 1
        and all(char in _ALPHABET for char in text)
        and _check(workflow_name, text[:-1]) == text[-1]
    )


def request_of(invocation_id: str) -> str:
    return invocation_id.partition(".")[0]


def root_of(request_id: str) -> str:
    return f"{request_id}.0"


def is_root(invocation_id: str) -> bool:
    return invocation_id.count(".") == 1


def is_reduce(invocation_id: str) -> bool:
    return invocation_id.rpartition(".")[2].startswith("r") and "-" not in invocation_id.rpartition(".")[2]


def parent_of(invocation_id: str) -> str:
    """Of a child, its parent; of a reduce, the map invocation whose data it reduces."""
    return invocation_id.rpartition(".")[0]


def map_of(invocation_id: str) -> str:
    """The map invocation itself, or the one that a reduce belongs to."""
    return parent_of(invocation_id) if is_reduce(invocation_id) else invocation_id


def ancestors_of(map_id: str) -> list[str]:
    """The map invocations above one, its parent first."""
    found = []
    while not is_root(map_id):
        map_id = parent_of(map_id)
        found.append(map_id)
    return found


def child_of(parent_id: str, nonce: str, slot: int) -> str:
    return f"{parent_id}.{nonce}-{slot}"


def reduce_of(map_id: str, partition: int) -> str:
    return f"{map_id}.r{partition}"


def slot_of(child_id: str) -> int:
    return int(child_id.rpartition("-")[2])


def nonce_of(child_id: str) -> str:
    return child_id.rpartition(".")[2].partition("-")[0]


def partition_of(reduce_id: str) -> int:
    return int(reduce_id.rpartition(".r")[2])


def depth_of(invocation_id: str) -> int:
    """0 for the root, 1 for its children and so on; of a reduce, that of its map."""
    return map_of(invocation_id).count(".") - 1
