"""What a URL says about NSQ: where it is, and what it takes to be let in."""

from __future__ import annotations

import ssl
from typing import NamedTuple

from mr.errors import InvalidConfig
from mr.urls import masked_url, parse_servers


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Settings(NamedTuple):
    """``addresses`` are those of nsqlookupd where ``is_lookup``, else of nsqd. ``http_port`` is where each nsqd is
    asked for statistics, if that was said."""

    addresses: tuple[Address, ...]
    is_lookup: bool
    tls: ssl.SSLContext | None
    secret: str
    http_port: int | None


def read_settings(url: str) -> Settings:
    """
    :raises InvalidConfig: the URL is wrong, or names certificates that cannot be read.
    """
    try:
        servers = parse_servers(url)
    except ValueError as error:
        raise InvalidConfig(f"The queue cannot be at {masked_url(url)}: {error}.", "MR_QUEUE_URL") from error
    options = servers.options
    return Settings(
        addresses=tuple(Address(host, port) for host, port in servers.addresses),
        is_lookup=servers.scheme == "nsqlookup",
        tls=_tls(options) if options.get("tls") == "1" else None,
        secret=options.get("secret", ""),
        http_port=int(options["http"]) if "http" in options else None,
    )


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """Trusts the authority in the file ``ca``, or those that the machine trusts. Names are always checked."""
    named = {name: options[name] for name in ("ca", "cert", "key") if options.get(name)}
    try:
        context = ssl.create_default_context(cafile=named.get("ca"))
        if "cert" in named:
            context.load_cert_chain(named["cert"], named.get("key"), password=_no_password)
    except (OSError, ValueError) as error:
        files = ", ".join(f"{name}={path}" for name, path in named.items()) or "the machine's own certificates"
        raise InvalidConfig(f"TLS for NSQ cannot be set up with {files}: {error}.", "MR_QUEUE_URL") from error
    return context


def _no_password() -> str:
    # Without this, OpenSSL would ask the terminal.
    raise ValueError("the key has a password; give one without")
