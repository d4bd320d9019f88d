"""Names of files for keys: safe on any filesystem, and never one for two keys.

A string of small letters, digits, ``-``, ``_`` and dots between them is its own name; null, booleans and numbers are
``=`` and their JSON. Every other key, so also what differs from another by case alone, is what of it can be read,
``~`` and 128 bits of its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re

from mr.model.pairs import Key, key_text

_PLAIN = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*")
_MAX_CHARS = 100
_SHOWN_BYTES = 60
_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{number}" for device in ("com", "lpt") for number in range(10))}
"""What some systems take for a device, whatever follows after a dot."""


def name_of(key: Key) -> str:
    if isinstance(key, str):
        if len(key) <= _MAX_CHARS and _PLAIN.fullmatch(key) and key.partition(".")[0] not in _RESERVED:
            return key
    elif not isinstance(key, list | tuple):
        name = f"={key_text(key)}"
        if len(name) <= _MAX_CHARS:
            return name
    text = key_text(key)
    digest = base64.b32encode(hashlib.sha256(text.encode()).digest()[:16]).decode().rstrip("=").lower()
    return f"{_shown(key if isinstance(key, str) else text)}~{digest}"


def _shown(text: str) -> str:
    readable = "".join(char if char.isalnum() or char in "-_" else "_" for char in text[:_SHOWN_BYTES])
    # No name looks like an option of a command.
    return f"{readable[:1].replace('-', '_')}{readable[1:]}".encode()[:_SHOWN_BYTES].decode(errors="ignore")
