"""Asking servers over HTTP how they are: a short question, a short wait, and the time that it took."""

from __future__ import annotations

import http.client
import ssl
import time
from typing import NamedTuple

_TIMEOUT_S = 3.0
_MOST_BYTES = 32 << 20


class Answer(NamedTuple):
    """``asked`` and ``answered`` are the times here, ``date`` is that of the server as it told it."""

    status: int
    body: bytes
    date: str
    asked: float
    answered: float


def ask(host: str, port: int, path: str, tls: ssl.SSLContext | None = None) -> Answer:
    """
    :raises OSError, http.client.HTTPException: no server answers there, or none that speaks HTTP.
    """
    if tls is None:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=tls)
    try:
        connection.connect()
        asked = time.time()
        connection.request("GET", path)
        response = connection.getresponse()
        answered = time.time()
        return Answer(response.status, response.read(_MOST_BYTES), response.headers.get("Date", ""), asked, answered)
    finally:
        connection.close()
