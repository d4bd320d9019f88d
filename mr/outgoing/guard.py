"""Which URLs the platform may be made to call."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str, int, float], list[str]]
"""Takes a host, a port and the seconds it may take; gives the addresses of the host."""


class Destination(NamedTuple):
    """Where a checked URL leads: connect to ``addresses``, which were checked, and to nothing else.

    ``host`` is what TLS verifies: ASCII, lower case, an IPv6 address without its brackets.
    """

    url: str
    host: str
    port: int
    is_tls: bool
    addresses: tuple[str, ...]
    path: str
    """What stands in the request line: path and query."""

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        raise NotImplementedError


class Guard:
    """Lets a URL out that is https and leads to public addresses only, or to what ``allow`` names.

    An entry is a host (``hooks.internal``), a host and port (``127.0.0.1:8080``, ``[::1]:8080``), an address or a
    network (``10.1.0.0/16``); it grants plain http and private addresses, to itself alone.

    :raises InvalidInput: an entry is none of these.
    """

    def __init__(self, allow: Sequence[str] = (), *, look_up: LookUp | None = None) -> None:
        raise NotImplementedError

    def check_form(self, url: str) -> None:
        """What can be told of a URL without asking for its host's addresses.

        :raises ForbiddenURL: it is none that may be called; the message says why.
        """
        raise NotImplementedError

    def check(self, url: str, *, seconds: float = 10.0) -> Destination:
        """Where the URL leads. Asks once for the addresses of its host, and checks every one.

        :raises ForbiddenURL: it may not be called; the message says why.
        :raises DeliveryFailed: the host's addresses could not be had.
        """
        raise NotImplementedError
