"""What went wrong with a call, by what can be done about it: send it again, ask what became of it, or give up."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import grpc


class Failure(Exception):
    """Root of what a call to one server can end with; the text says what was seen."""


class Unsent(Failure):
    """The server had no part in it: it may be sent again, here or elsewhere, whatever it is."""


class Lost(Failure):
    """It was sent and not answered. It may have been carried out, and may be yet."""


class Why(Enum):
    """What a server can refuse for and the driver knows more to do about than to pass it on."""

    LEASE_GONE = "lease gone"
    TOO_LARGE = "too large"
    DENIED = "denied"
    FULL = "full"
    COMPACTED = "compacted"
    TOKEN = "token"
    NO_USERS = "no users"
    WRONG_PASSWORD = "wrong password"
    OTHER = "other"


class Refused(Failure):
    """The server said no. Nothing was changed."""

    def __init__(self, text: str, why: Why = Why.OTHER) -> None:
        super().__init__(text)
        self.why = why


# etcd tells its errors apart by their texts alone: many share a code. These are of rpctypes/error.go.
_REFUSALS = {
    "requested lease not found": Why.LEASE_GONE,
    "request is too large": Why.TOO_LARGE,
    "received message larger than max": Why.TOO_LARGE,
    "permission denied": Why.DENIED,
    "database space exceeded": Why.FULL,
    "required revision has been compacted": Why.COMPACTED,
    "invalid auth token": Why.TOKEN,
    "revision of auth store is old": Why.TOKEN,
    "user name is empty": Why.TOKEN,
    "authentication is not enabled": Why.NO_USERS,
    "authentication failed": Why.WRONG_PASSWORD,
}

# A member says these before it hands anything to the others. "leader changed" and "request timed out" come after that.
_BEFOREHAND = ("etcdserver: no leader", "etcdserver: too many requests", "rpc not supported for learner")

_NEVER_CONNECTED = ("failed to connect to all addresses", "errors resolving ", "DNS resolution failed")

_REFUSING_CODES = {
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}

# "last error: UNKNOWN: ipv4:127.0.0.1:2379: connection refused": of which the end is news.
_LAST_ERROR = re.compile(r".*last error: (?:[A-Z_]+: )?(?:ipv[46]:\S+: )?", re.DOTALL)


def failure_of(error: grpc.RpcError) -> Failure:
    """The failure that gRPC told of."""
    told: Any = error
    code, details = told.code(), told.details() or ""
    if (refusal := refusal_of(details)).why is not Why.OTHER:
        return refusal
    if any(text in details for text in _BEFOREHAND) or details.startswith(_NEVER_CONNECTED):
        return Unsent(_LAST_ERROR.sub("", details))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Lost("no answer in time")
    if code in _REFUSING_CODES:
        return refusal
    # A server that is stopping, no quorum, a connection that broke: all of them may have gone through.
    return Lost(details or f"gRPC says {code.name.lower()}")


def refusal_of(text: str) -> Refused:
    """What a server's text means, taken for a refusal."""
    for part, why in _REFUSALS.items():
        if part in text:
            return Refused(text, why)
    return Refused(text)
