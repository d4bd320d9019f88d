"""Who the client is, where a proxy stands between: its word is taken if it is one of ours, and nobody else's."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mr.config import UNIX_PEER
from mr.errors import InvalidInput

log = logging.getLogger(__name__)

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]

UNNAMED = "unknown"
"""The address of a client that a proxy of ours did not name."""

_MALFORMED = "jobx.malformed"
_UNIX_PEERS = ("", "unix:")
"""The address of a Unix socket's peer, as gunicorn and as nginx write it."""

_FOR, _PROTO, _HOST = "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"
_SIGNS = ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP", "HTTP_FORWARDED", "HTTP_VIA")
"""What says that there was a proxy, though it named nobody in ``X-Forwarded-For``."""

_ADDRESS = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?|([0-9A-Fa-f:.]+)")
_HOST_AND_PORT = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class Proxies:
    """WSGI middleware. Behind it address, scheme and host of the client are those that a trusted proxy tells.

    ``trusted`` are addresses, networks, and ``unix`` for whoever is connected through a Unix socket. The client is the
    last of ``X-Forwarded-For`` that is none of them; what stands before it anybody may have written. Of the other
    headers the last value counts. An untrusted peer's headers change nothing.
    """

    def __init__(self, application: Application, trusted: Sequence[str]) -> None:
        self._application = application
        self._trusts_unix = UNIX_PEER in trusted
        self._networks = [ipaddress.ip_network(one) for one in trusted if one != UNIX_PEER]
        self._has_warned = False

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR", "")
        if self._is_trusted(peer):
            try:
                environ.update(self._told(environ, peer))
            except InvalidInput as error:
                environ[_MALFORMED] = error
        elif "HTTP_X_FORWARDED_FOR" in environ and not self._has_warned:
            self._has_warned = True
            log.warning("An X-Forwarded-For was ignored: MR_TRUSTED_PROXIES does not have who sent it. peer=%s", peer)
        return self._application(environ, start_response)

    def _is_trusted(self, address: str) -> bool:
        if address in _UNIX_PEERS:
            return self._trusts_unix
        if not self._networks:
            return False
        try:
            parsed = parse(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def _told(self, environ: Environ, peer: str) -> Environ:
        """
        :raises InvalidInput: a header cannot be read.
        """
        told = {"REMOTE_ADDR": self._client(environ, peer)}
        if proto := last(environ, _PROTO):
            if proto.lower() not in ("http", "https"):
                raise malformed(_PROTO, "http or https")
            told["wsgi.url_scheme"] = proto.lower()
        if host := last(environ, _HOST):
            if not _HOST_AND_PORT.fullmatch(host):
                raise malformed(_HOST, "a host, or HOST:PORT")
            told["HTTP_HOST"] = host
        return told

    def _client(self, environ: Environ, peer: str) -> str:
        passed = [one.strip() for one in environ.get("HTTP_X_FORWARDED_FOR", "").split(",") if one.strip()]
        if not passed:
            return UNNAMED if any(sign in environ for sign in _SIGNS) else peer
        for address in reversed(passed):
            if not self._is_trusted(address):
                break
        if address in _UNIX_PEERS:
            # Whoever is connected to the socket of a proxy in front of ours.
            return "" if self._trusts_unix else UNNAMED
        try:
            return str(parse(address))
        except ValueError:
            raise malformed(_FOR, "IP addresses, separated by commas") from None


def last(environ: Environ, name: str) -> str:
    value: str = environ.get(f"HTTP_{name.upper().replace('-', '_')}", "")
    return value.rpartition(",")[2].strip()


def malformed(name: str, wanted: str) -> InvalidInput:
    return InvalidInput(f"The proxy sent an {name} that cannot be read: it has to be {wanted}.", name)


def parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address, with or without a port. One of IPv4 that is written as one of IPv6 is the same.

    :raises ValueError: it is none.
    """
    matched = _ADDRESS.fullmatch(address)
    if matched is None:
        raise ValueError(f"{address!r} is no IP address")
    parsed = ipaddress.ip_address(next(group for group in matched.groups() if group is not None))
    return getattr(parsed, "ipv4_mapped", None) or parsed


def is_local(address: str) -> bool:
    """Whether a client of that address, as it stands behind :class:`Proxies`, is on this machine."""
    if address in _UNIX_PEERS:
        return True
    try:
        return parse(address).is_loopback
    except ValueError:
        return False


def check_forwarded(environ: Environ) -> None:
    """
    :raises InvalidInput: a trusted proxy sent what cannot be read.
    """
    if error := environ.get(_MALFORMED):
        raise error
