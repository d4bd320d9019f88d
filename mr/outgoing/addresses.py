"""Which IP addresses are public, by a list of its own.

`ipaddress.is_global` is no guard: it calls 224.0.0.1 global, and forms of IPv6 that carry the address of an IPv4 host
such as 127.0.0.1 inside. Of IPv6 only what is assigned for the public (2000::/3) is let through, less what is special
in it. After the IANA registries of special-purpose addresses.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Special(NamedTuple):
    """``is_local``: of somebody's own network, which may well have services that are meant to be called."""

    words: str
    is_local: bool = False


def _special(network: str, words: str, is_local: bool = False) -> tuple[Network, Special]:
    return ipaddress.ip_network(network), Special(words, is_local)


# The first that fits tells what an address is.
SPECIAL = (
    _special("169.254.169.254/32", "the metadata service of a cloud"),
    _special("169.254.170.2/32", "the metadata service of a cloud"),
    _special("100.100.100.200/32", "the metadata service of a cloud"),
    _special("192.0.0.192/32", "the metadata service of a cloud"),
    _special("168.63.129.16/32", "the metadata service of a cloud"),
    _special("0.0.0.0/32", "the unspecified address, which leads to this machine"),
    _special("0.0.0.0/8", "an address of this network, which may lead to this machine"),
    _special("10.0.0.0/8", "a private address", True),
    _special("100.64.0.0/10", "an address shared by a provider's customers", True),
    _special("127.0.0.0/8", "a loopback address", True),
    _special("169.254.0.0/16", "a link-local address"),
    _special("172.16.0.0/12", "a private address", True),
    _special("192.0.0.0/24", "an address reserved for protocols"),
    _special("192.0.2.0/24", "an address for documentation"),
    _special("192.31.196.0/24", "an address of a name server for private addresses"),
    _special("192.52.193.0/24", "an address of a relay"),
    _special("192.88.99.0/24", "an address of a relay"),
    _special("192.168.0.0/16", "a private address", True),
    _special("192.175.48.0/24", "an address of a name server for private addresses"),
    _special("198.18.0.0/15", "an address for benchmarks", True),
    _special("198.51.100.0/24", "an address for documentation"),
    _special("203.0.113.0/24", "an address for documentation"),
    _special("224.0.0.0/4", "a multicast address"),
    _special("255.255.255.255/32", "the broadcast address"),
    _special("240.0.0.0/4", "a reserved address"),
    _special("fd00:ec2::254/128", "the metadata service of a cloud"),
    _special("fd20:ce::254/128", "the metadata service of a cloud"),
    _special("::/128", "the unspecified address, which leads to this machine"),
    _special("::1/128", "a loopback address", True),
    _special("::ffff:0:0:0/96", "an IPv6 form of an IPv4 address (translated)"),
    _special("::/96", "an IPv6 form of an IPv4 address (compatible)"),
    _special("64:ff9b:1::/48", "an IPv6 form of an IPv4 address (NAT64)"),
    _special("100::/64", "an address that discards"),
    _special("2001::/32", "an IPv6 form of an IPv4 address (Teredo)"),
    _special("2001:2::/48", "an address for benchmarks"),
    _special("2001::/23", "an address reserved for protocols"),
    _special("2001:db8::/32", "an address for documentation"),
    _special("2002::/16", "an IPv6 form of an IPv4 address (6to4)"),
    _special("2620:4f:8000::/48", "an address of a name server for private addresses"),
    _special("3fff::/20", "an address for documentation"),
    _special("5f00::/16", "an address for segment routing"),
    _special("fc00::/7", "a private (unique local) address", True),
    _special("fe80::/10", "a link-local address"),
    _special("fec0::/10", "a site-local address", True),
    _special("ff00::/8", "a multicast address"),
)

_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The upper half of an interface's ID that carries an IPv4 address in its lower."""


def plain(address: Address) -> Address:
    """The IPv4 address where it was written as one of IPv6 (``::ffff:10.0.0.1``), which leads to the same host."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def special(address: Address) -> Special | None:
    """What is special about an address; None for a public one."""
    address = plain(address)
    if address in _NAT64:
        # What an IPv4 host is called in a network that has IPv6 only: it is as public as that host is.
        carried = special(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return carried and Special(f"an IPv6 form (NAT64) of {carried.words}")
    for network, found in SPECIAL:
        if address in network:
            return found
    if isinstance(address, ipaddress.IPv6Address):
        if int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
            return Special("an IPv6 form of an IPv4 address (ISATAP)")
        if address not in _PUBLIC_V6:
            return Special("an address that is not assigned to the public")
    return None
