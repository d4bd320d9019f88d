"""Which URLs the platform may be made to call.

Whoever may name a URL has the platform, which stands inside somebody's network, send to it. So a URL leads to the
public only, unless the operator allows more; what is checked are the addresses that are then connected to, so that a
name cannot lead elsewhere by the time it is used; and what different programs read differently is refused.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import idna

from mr.errors import DeliveryFailed, ForbiddenURL, InvalidInput
from mr.outgoing import connection
from mr.outgoing.addresses import Address, Network, plain, special

MAX_URL_CHARS = 2048

LookUp = Callable[[str, int, float], list[str]]
"""Takes a host, a port and the seconds it may take; gives the host's addresses or raises OSError."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?")
_PORTS = {"https": 443, "http": 80}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LOCAL_ENDS = tuple(
    f".{zone}"
    for zone in ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa", "onion", "invalid")
)

ALLOW = "Who operates JobX can allow it (MR_OUTGOING_ALLOW, or the workflow's list)."


class Destination(NamedTuple):
    """Where a checked URL leads: connect to ``addresses``, which were checked, and to nothing else.

    ``host`` is what TLS verifies: ASCII, lower case, an IPv6 address without its brackets. ``path`` is what stands in
    the request line: path and query.
    """

    url: str
    host: str
    port: int
    is_tls: bool
    addresses: tuple[str, ...]
    path: str

    @property
    def authority(self) -> str:
        """Host and port, as in the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.is_tls else "http"] else f"{host}:{self.port}"


class _Entry(NamedTuple):
    """One of the allow-list: a name or a network, at one port or (None) at all."""

    name: str
    network: Network | None
    port: int | None


class _Parts(NamedTuple):
    origin: str
    """To show: what comes after it may be secret."""
    scheme: str
    host: str
    address: Address | None
    """Where the host is one."""
    port: int
    path: str


class Guard:
    """Lets a URL out that is https and leads to public addresses only, or to what ``allow`` names.

    An entry is a host (``hooks.internal``), a host and port (``127.0.0.1:8080``, ``[::1]:8080``), an address or a
    network (``10.1.0.0/16``). It grants plain http and private addresses, to itself alone. A name grants whatever local
    addresses it has, loopback included; link-local and metadata addresses have to be named themselves.

    :raises InvalidInput: an entry is none of these.
    """

    def __init__(self, allow: Sequence[str] = (), *, look_up: LookUp = connection.look_up) -> None:
        self._entries = tuple(_parse_entry(text) for text in allow)
        self._look_up = look_up

    def check_form(self, url: str) -> None:
        """What can be told of a URL without asking for its host's addresses.

        :raises ForbiddenURL: it is none that may be called; the message says why.
        """
        parts = _parse(url)
        if parts.address is not None:
            self._judge(parts, [parts.address])
        elif not self._names(parts) and not self._networks(parts):
            self._judge_name(parts)

    def check(self, url: str, *, seconds: float = 10.0) -> Destination:
        """Where the URL leads. Asks once for the addresses of its host, and checks every one.

        :raises ForbiddenURL: it may not be called; the message says why.
        :raises DeliveryFailed: the host's addresses could not be had.
        """
        self.check_form(url)
        parts = _parse(url)
        addresses = [parts.address] if parts.address is not None else self._addresses(parts, seconds)
        self._judge(parts, addresses)
        texts = tuple(dict.fromkeys(map(str, addresses)))
        return Destination(url, parts.host, parts.port, parts.scheme == "https", texts, parts.path)

    def _addresses(self, parts: _Parts, seconds: float) -> list[Address]:
        try:
            found = [ipaddress.ip_address(text) for text in self._look_up(parts.host, parts.port, seconds)]
        except (OSError, ValueError) as error:
            raise DeliveryFailed(f"{parts.host} cannot be reached: {connection.reason(error)}.") from error
        if not found:
            raise DeliveryFailed(f"{parts.host} cannot be reached: it has no address.")
        return found

    def _judge(self, parts: _Parts, addresses: list[Address]) -> None:
        is_named = self._names(parts)
        networks = self._networks(parts)
        is_all_listed = True
        for address in addresses:
            if any(plain(address) in network for network in networks):
                continue
            is_all_listed = False
            found = special(address)
            if found is not None and not (is_named and found.is_local):
                which = f"{address} is" if parts.address is not None else f"{parts.host} leads to {address},"
                raise _forbidden(parts.origin, f"{which} {found.words}", ALLOW)
        if not is_named and not is_all_listed:
            self._judge_name(parts)

    def _judge_name(self, parts: _Parts) -> None:
        """For a host that nothing on the allow-list grants."""
        if parts.scheme != "https":
            raise _forbidden(parts.origin, "it is not https", ALLOW)
        if parts.address is None and ("." not in parts.host or parts.host.endswith(_LOCAL_ENDS)):
            raise _forbidden(parts.origin, f"{parts.host} is a name in somebody's own network", ALLOW)

    def _names(self, parts: _Parts) -> bool:
        return any(entry.name == parts.host and entry.port in (None, parts.port) for entry in self._entries)

    def _networks(self, parts: _Parts) -> list[Network]:
        return [entry.network for entry in self._entries if entry.network and entry.port in (None, parts.port)]


def check_allowed(value: object) -> tuple[str, ...]:
    """Entries of a :class:`Guard`, from one text or a list of them.

    :raises InvalidInput: one of them is none.
    """
    entries = (value,) if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, str) for entry in entries):
        raise InvalidInput("What may be called is a list of hosts, host:port and networks.", "outgoing_allow")
    Guard(entries)
    return tuple(dict.fromkeys(entries))


def _forbidden(url: str, why: str, what_to_do: str = "") -> ForbiddenURL:
    return ForbiddenURL(f"{url} is not called: {why}.{' ' if what_to_do else ''}{what_to_do}", "url")


# --- reading ----------------------------------------------------------------------------------------------------------


def _parse(url: str) -> _Parts:
    """Reads what every program reads alike, and refuses the rest."""
    shown = ascii(url[:60]) + ("…" if len(url) > 60 else "")
    if len(url) > MAX_URL_CHARS:
        raise _forbidden(shown, f"it has {len(url)} characters, more than {MAX_URL_CHARS}")
    if not url.isprintable() or any(char.isspace() or char == "\\" for char in url):
        raise _forbidden(shown, "it has a space, a backslash or a control character", "Percent-encode it.")
    if "#" in url:
        raise _forbidden(shown, "it has a fragment (#…), which no server would see", "Leave that out.")
    read = _URL.fullmatch(url)
    if read is None:
        raise _forbidden(shown, "it is no URL with a host", "Write it as https://host/path.")
    scheme, authority = read["scheme"].lower(), read["authority"]
    if scheme not in _PORTS:
        raise _forbidden(shown, f"its scheme is {scheme}", "Write it as https://host/path.")
    if "@" in authority:
        raise _forbidden(
            f"{scheme}://…@{authority.rpartition('@')[2]}",
            "it has a name or password before its host",
            "Leave that out: what is sent is signed.",
        )
    path = (read["path"] or "/") + (read["query"] or "")
    if not path.isascii():
        raise _forbidden(shown, "its path or query has characters other than ASCII", "Percent-encode them.")
    origin = f"{scheme}://{authority}"
    try:
        name, address, port = _parse_authority(authority)
    except ValueError as error:
        raise _forbidden(origin, str(error)) from None
    return _Parts(origin, scheme, name, address, port or _PORTS[scheme], path)


def _parse_authority(text: str) -> tuple[str, Address | None, int | None]:
    """A host as it is compared, looked up and sent, the address that it may be, and a port if there is one.

    :raises ValueError: it is none that every program would read alike; the text says why.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 address stands between [ and ], with a port after it or nothing")
        address = _parse_ipv6(host)
        return str(address), address, _parse_port(rest[1:]) if rest else None
    host, colon, port = text.partition(":")
    if ":" in port:
        raise ValueError(f"{text!r} has several colons (an IPv6 address stands between [ and ])")
    number = _parse_port(port) if colon else None
    name = _parse_name(host)
    if not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return name, None, number
    # A last label that is a number makes all of it an address, in one of many notations.
    try:
        return name, ipaddress.IPv4Address(name), number
    except ValueError:
        pass
    try:
        meant = f" (it may be read as {socket.inet_ntoa(socket.inet_aton(name))})"
    except OSError:
        meant = ""
    raise ValueError(f"{name!r} is no IPv4 address of four decimal numbers{meant}")


def _parse_ipv6(text: str) -> ipaddress.IPv6Address:
    if "%" in text:
        raise ValueError("its IPv6 address has a zone, which means something on one machine only")
    try:
        return ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is no IPv6 address") from None


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError(f"{text!r} is no port from 1 to 65535")
    return int(text)


def _parse_name(text: str) -> str:
    """In ASCII and lower case, as DNS has it."""
    if not text:
        raise ValueError("it names no host")
    name = text
    if not text.isascii():
        try:
            name = idna.encode(text, uts46=True).decode()
        except (idna.IDNAError, UnicodeError) as error:
            raise ValueError(f"{text!r} is no host's name ({error})") from None
    name = name.lower()
    if name.endswith("."):
        raise ValueError(f"{name!r} ends in a dot: write it without")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ValueError(f"{name[:80]!r} is no host's name")
    return name


def _parse_entry(text: str) -> _Entry:
    """
    :raises InvalidInput: it is none.
    """
    try:
        if "/" in text:
            return _Entry("", ipaddress.ip_network(text), None)
        if text.count(":") > 1 and not text.startswith("["):
            return _Entry("", ipaddress.ip_network(_parse_ipv6(text)), None)
        name, address, port = _parse_authority(text)
    except ValueError as error:
        raise InvalidInput(
            f"{text!r} cannot be on the list of what outgoing URLs may reach: {error}. Name a host (hooks.internal), a "
            "host and port (127.0.0.1:8080), an address or a network (10.1.0.0/16).",
            "outgoing_allow",
        ) from None
    return _Entry(name, None, port) if address is None else _Entry("", ipaddress.ip_network(plain(address)), port)
