"""URLs of servers, files and directories, taken apart. Nothing here connects to anything."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

MASK = "***"
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")

DEFAULT_PORTS = {"etcd": 2379, "etcds": 2379, "nsq": 4150, "nsqlookup": 4161}
_CERTIFICATES = frozenset({"ca", "cert", "key"})
OPTIONS = {
    "etcd": frozenset[str](),
    "etcds": _CERTIFICATES,
    "nsq": frozenset({"http", "tls", "secret"}) | _CERTIFICATES,
    "nsqlookup": frozenset({"http", "tls", "secret"}) | _CERTIFICATES,
}


class Servers(NamedTuple):
    """A cluster URL in its parts. Options are those of the URL's query."""

    scheme: str
    addresses: tuple[tuple[str, int], ...]
    username: str
    password: str
    options: dict[str, str]


def parse_servers(url: str) -> Servers:
    """A cluster URL in its parts.

    :raises ValueError: it is none; the text says why.
    """
    parts = split_url(url)
    if parts.path not in ("", "/") or parts.fragment:
        raise ValueError(f"a {parts.scheme} URL ends after its hosts, with options as in ?name=value")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    if userinfo and parts.scheme.startswith("nsq"):
        raise ValueError("NSQ has no users: give ?secret=… instead")
    username, _, password = userinfo.partition(":")
    if password and not username:
        raise ValueError("a password needs a name before it, as in name:password@")
    port = DEFAULT_PORTS[parts.scheme]
    addresses = tuple(address(host, port) for host in comma_separated(hosts))
    if not addresses:
        raise ValueError(f"name a server, as in {parts.scheme}://127.0.0.1:{port}")
    if any(number == 0 for _, number in addresses):
        raise ValueError("0 is no port to connect to")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = OPTIONS[parts.scheme]
    for name in options:
        if name not in known:
            has = f"its options are {', '.join(sorted(known))}" if known else "it has no options (etcds has)"
            raise ValueError(f"a {parts.scheme} URL has no option {name!r}: {has}")
    _check_options(parts.scheme, options)
    return Servers(parts.scheme, addresses, unquote(username), unquote(password), options)


def _check_options(scheme: str, options: dict[str, str]) -> None:
    http = options.get("http", "1")
    if not (re.fullmatch("[0-9]{1,5}", http) and 0 < int(http) < 65536):
        raise ValueError(f"http is the port of nsqd's HTTP interface, not {http!r}")
    tls = options.get("tls", "0")
    if tls not in ("0", "1"):
        raise ValueError(f"tls is 1 or 0, not {tls!r}")
    if "key" in options and "cert" not in options:
        raise ValueError("key is that of a certificate: give cert, too")
    if scheme == "etcds" and "cert" in options and "key" not in options:
        raise ValueError("cert needs the key that is its own: give key, too")
    if scheme.startswith("nsq") and tls == "0" and _CERTIFICATES & options.keys():
        raise ValueError(f"{', '.join(sorted(_CERTIFICATES & options.keys()))} without tls=1 would not be used")


def local_path(url: str) -> Path:
    """The path in ``sqlite:///path`` or ``file:///path``.

    :raises ValueError: it has none, or more than that.
    """
    parts = split_url(url)
    if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
        raise ValueError(f"give {parts.scheme}:// and an absolute path, as in {parts.scheme}:///var/lib/jobx")
    return Path(unquote(parts.path))


def split_url(url: str) -> SplitResult:
    if "://" not in url:
        raise ValueError("give a URL, with its scheme and ://")
    return urlsplit(url)


def address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[v6]:port`` or, where there is a default port, the host alone."""
    matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@?#\s]+))(?::([0-9]{1,5}))?", text)
    if not matched:
        raise ValueError(f"{text!r} is not HOST:PORT")
    v6, host, port = matched.groups()
    if v6:
        host = str(ipaddress.IPv6Address(v6))
    elif not HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a host")
    if port is None and default_port is None:
        raise ValueError(f"{text!r} has no port")
    number = int(port) if port is not None else cast(int, default_port)
    if number > 65535:
        raise ValueError(f"{number} is no port")
    return host, number


def comma_separated(text: str) -> tuple[str, ...]:
    """The parts in order, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def masked_url(url: str) -> str:
    """The URL without what would let its reader in."""
    if not re.match(r"(file|sqlite):", url):
        # Up to the last @: a password with a slash in it makes a wrong URL, which an error is about to show.
        url = re.sub(r"(://[^:@]*):.*@", rf"\1:{MASK}@", url)
    url = re.sub(r"([?&]secret=)[^&#]*", rf"\1{MASK}", url)
    # A Tahoe directory's name is all that it takes to read, and often to write, it.
    return re.sub(r"^(tahoe://[^/?#]*/)[^?#]+", rf"\1{MASK}", url)
