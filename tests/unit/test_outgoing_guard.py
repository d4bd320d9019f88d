"""The guard on outgoing URLs: what it refuses and why, and what an allow-list grants."""

from __future__ import annotations

import ipaddress

import pytest

from mr.errors import DeliveryFailed, ForbiddenURL, InvalidInput
from mr.outgoing.addresses import special
from mr.outgoing.guard import Guard

PUBLIC = "93.184.216.34"


class Names:
    """Answers look-ups, and counts them."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, seconds: float) -> list[str]:
        self.asked.append(host)
        return self.addresses


def refusal(url: str, *addresses: str, allow: tuple[str, ...] = ()) -> str:
    with pytest.raises(ForbiddenURL) as refused:
        Guard(allow, look_up=Names(*addresses or (PUBLIC,))).check(url)
    assert refused.value.status == 400
    return str(refused.value)


# --- by their form --------------------------------------------------------------------------------------------------


FORBIDDEN = [
    # What is no https URL with a host.
    ("", "no URL"),
    ("hooks.example.com/a", "no URL"),
    ("//hooks.example.com/a", "no URL"),
    ("https:hooks.example.com", "no URL"),
    ("https:/hooks.example.com", "no URL"),
    ("https:///a", "names no host"),
    ("https://?a", "names no host"),
    ("http://hooks.example.com/", "not https"),
    ("HTTP://hooks.example.com/", "not https"),
    ("ftp://hooks.example.com/", "scheme is ftp"),
    ("file:///etc/passwd", "scheme is file"),
    ("gopher://hooks.example.com:70/_x", "scheme is gopher"),
    ("javascript://hooks.example.com/%0aalert(1)", "scheme is javascript"),
    ("https://" + "a." * 1100 + "com/", "more than 2048"),
    # What different programs read differently.
    ("https://user@hooks.example.com/", "name or password"),
    ("https://user:secret@hooks.example.com/", "name or password"),
    ("https://hooks.example.com@127.0.0.1/", "name or password"),
    ("https://127.0.0.1\\@hooks.example.com/", "backslash"),
    ("https://hooks.example.com\\.evil.example/", "backslash"),
    ("https://hooks.example.com/#a", "fragment"),
    ("https://hooks.example.com#@127.0.0.1/", "fragment"),
    (" https://hooks.example.com/", "space"),
    ("https://hooks.example.com/a b", "space"),
    ("https://hooks.example.com/\ta", "control character"),
    ("https://hooks.example.com/\r\nHost: 127.0.0.1", "control character"),
    ("https://hooks.example.com/\x00", "control character"),
    ("https://hooks.example.com/\u2028", "control character"),
    ("https://hooks.exa\u200bmple.com/", "control character"),
    ("https://hooks.example.com/é", "Percent-encode"),
    ("https://hooks.example.com:0/", "no port"),
    ("https://hooks.example.com:65536/", "no port"),
    ("https://hooks.example.com:-1/", "no port"),
    ("https://hooks.example.com:44x/", "no port"),
    ("https://hooks.example.com:/", "no port"),
    ("https://hooks.example.com:٤٤٣/", "no port"),
    ("https://hooks.example.com:443:80/", "several colons"),
    # Hosts that are none.
    ("https://hooks.example.com./", "ends in a dot"),
    ("https://127.0.0.1./", "ends in a dot"),
    ("https://hooks..example.com/", "no host's name"),
    ("https://-hooks.example.com/", "no host's name"),
    ("https://hooks%2eexample.com/", "no host's name"),
    ("https://127.0.0.1%2f.example.com/", "no host's name"),
    ("https://hooks.example.com;a/", "no host's name"),
    ("https://" + "a" * 64 + ".example.com/", "no host's name"),
    ("https://℀.example.com/", "no host's name"),
    ("https://xn--.ä.example/", "no host's name"),
    # Names in somebody's own network.
    ("https://localhost/", "own network"),
    ("https://LOCALHOST:8443/", "own network"),
    ("https://ⓛocalhost/", "own network"),
    ("https://web.localhost/", "own network"),
    ("https://metadata/computeMetadata/v1/", "own network"),
    ("https://metadata.google.internal/", "own network"),
    ("https://printer.local/", "own network"),
    ("https://router.home.arpa/", "own network"),
    # IPv4, in its usual notation and in odd ones.
    ("https://127.0.0.1/", "loopback"),
    ("https://127.255.255.254/", "loopback"),
    ("https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/", "loopback"),
    ("https://127\u30020\u30020\u30021/", "loopback"),
    ("https://2130706433/", "read as 127.0.0.1"),
    ("https://0x7f000001/", "read as 127.0.0.1"),
    ("https://017700000001/", "read as 127.0.0.1"),
    ("https://127.1/", "read as 127.0.0.1"),
    ("https://127.0.1/", "read as 127.0.0.1"),
    ("https://0177.0.0.1/", "read as 127.0.0.1"),
    ("https://0x7f.0.0.0x1/", "read as 127.0.0.1"),
    ("https://127.0.0.01/", "read as 127.0.0.1"),
    ("https://4294967297/", "no IPv4 address"),
    ("https://256.256.256.256/", "no IPv4 address"),
    ("https://1.2.3.4.5/", "no IPv4 address"),
    ("https://0/", "read as 0.0.0.0"),
    ("https://0.0.0.0/", "unspecified"),
    ("https://0.1.2.3/", "this network"),
    ("https://10.0.0.1/", "private"),
    ("https://172.16.0.1/", "private"),
    ("https://172.31.255.255/", "private"),
    ("https://192.168.1.1/", "private"),
    ("https://100.64.0.1/", "shared by a provider's customers"),
    ("https://100.100.100.200/", "metadata"),
    ("https://169.254.169.254/latest/meta-data/", "metadata"),
    ("https://169.254.1.1/", "link-local"),
    ("https://168.63.129.16/", "metadata"),
    ("https://192.0.0.192/", "metadata"),
    ("https://192.0.0.1/", "reserved for protocols"),
    ("https://192.0.2.1/", "documentation"),
    ("https://198.51.100.1/", "documentation"),
    ("https://203.0.113.1/", "documentation"),
    ("https://192.88.99.1/", "relay"),
    ("https://198.18.0.1/", "benchmarks"),
    ("https://224.0.0.1/", "multicast"),
    ("https://239.255.255.255/", "multicast"),
    ("https://240.0.0.1/", "reserved"),
    ("https://255.255.255.255/", "broadcast"),
    # IPv6, and what carries an IPv4 address inside.
    ("https://::1/", "several colons"),
    ("https://[::1/", "between [ and ]"),
    ("https://[::1]a/", "between [ and ]"),
    ("https://[127.0.0.1]/", "no IPv6 address"),
    ("https://[hooks.example.com]/", "no IPv6 address"),
    ("https://[fe80::1%25eth0]/", "zone"),
    ("https://[fe80::1%eth0]/", "zone"),
    ("https://[::1]/", "loopback"),
    ("https://[0:0:0:0:0:0:0:1]/", "loopback"),
    ("https://[::]/", "unspecified"),
    ("https://[fd00:ec2::254]/", "metadata"),
    ("https://[fd12:3456::1]/", "unique local"),
    ("https://[fe80::1]/", "link-local"),
    ("https://[fec0::1]/", "site-local"),
    ("https://[ff02::1]/", "multicast"),
    ("https://[::ffff:127.0.0.1]/", "loopback"),
    ("https://[::ffff:a9fe:a9fe]/", "metadata"),
    ("https://[::ffff:0:127.0.0.1]/", "translated"),
    ("https://[::127.0.0.1]/", "compatible"),
    ("https://[::8.8.8.8]/", "compatible"),
    ("https://[64:ff9b::127.0.0.1]/", "NAT64"),
    ("https://[64:ff9b::a9fe:a9fe]/", "NAT64"),
    ("https://[64:ff9b:1::8.8.8.8]/", "NAT64"),
    ("https://[2002:7f00:1::]/", "6to4"),
    ("https://[2002:808:808::1]/", "6to4"),
    ("https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/", "Teredo"),
    ("https://[2a00:1450::5efe:127.0.0.1]/", "ISATAP"),
    ("https://[2a00:1450::200:5efe:127.0.0.1]/", "ISATAP"),
    ("https://[2001:db8::1]/", "documentation"),
    ("https://[3fff::1]/", "documentation"),
    ("https://[2001:2::1]/", "benchmarks"),
    ("https://[2001:10::1]/", "reserved for protocols"),
    ("https://[100::1]/", "discards"),
    ("https://[5f00::1]/", "segment routing"),
    ("https://[4000::1]/", "not assigned"),
]


@pytest.mark.parametrize(("url", "why"), FORBIDDEN, ids=[ascii(url[:60]) for url, _ in FORBIDDEN])
def test_a_url_is_refused_for_what_it_is_without_a_look_up(url: str, why: str) -> None:
    names = Names(PUBLIC)
    guard = Guard(look_up=names)
    for check in (guard.check_form, guard.check):
        with pytest.raises(ForbiddenURL) as refused:
            check(url)
        assert why in str(refused.value)
    assert names.asked == []


def test_a_refusal_shows_no_password_and_no_path() -> None:
    assert "secret" not in refusal("https://user:secret@hooks.example.com/")
    assert "secret" not in refusal("https://127.0.0.1/secret")


# --- by their addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "loopback"),
        ("10.1.2.3", "private"),
        ("169.254.169.254", "metadata"),
        ("0.0.0.0", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:10.1.2.3", "private"),
        ("64:ff9b::10.1.2.3", "NAT64"),
        ("fe80::1%eth0", "link-local"),
    ],
)
def test_a_name_is_refused_for_any_of_its_addresses(address: str, why: str) -> None:
    for addresses in ((address,), (PUBLIC, address), (address, PUBLIC), (PUBLIC, "2606:2800::1", address)):
        told = refusal("https://hooks.example.com/", *addresses)
        assert why in told
        assert str(ipaddress.ip_address(address)) in told


def test_a_public_name_is_looked_up_once_and_leads_to_what_was_checked() -> None:
    names = Names(PUBLIC, "2606:2800:21f::1", PUBLIC)
    found = Guard(look_up=names).check("https://Hooks.Example.com/a/b?c=d&e")
    assert names.asked == ["hooks.example.com"]
    assert (found.host, found.port, found.is_tls) == ("hooks.example.com", 443, True)
    assert found.addresses == (PUBLIC, "2606:2800:21f::1")
    assert (found.path, found.authority) == ("/a/b?c=d&e", "hooks.example.com")


@pytest.mark.parametrize(
    ("url", "host", "authority", "path"),
    [
        ("https://hooks.example.com", "hooks.example.com", "hooks.example.com", "/"),
        ("https://hooks.example.com?a", "hooks.example.com", "hooks.example.com", "/?a"),
        ("https://hooks.example.com:443/", "hooks.example.com", "hooks.example.com", "/"),
        ("https://hooks.example.com:8443/", "hooks.example.com", "hooks.example.com:8443", "/"),
        ("https://bücher.example/", "xn--bcher-kva.example", "xn--bcher-kva.example", "/"),
        ("https://faß.example/", "xn--fa-hia.example", "xn--fa-hia.example", "/"),
        ("https://ex。ample.com/", "ex.ample.com", "ex.ample.com", "/"),
        ("https://my_host.example.com/", "my_host.example.com", "my_host.example.com", "/"),
        ("https://93.184.216.34/", "93.184.216.34", "93.184.216.34", "/"),
        ("https://[2606:2800:021f::0001]:8443/", "2606:2800:21f::1", "[2606:2800:21f::1]:8443", "/"),
        ("https://[64:ff9b::93.184.216.34]/", "64:ff9b::5db8:d822", "[64:ff9b::5db8:d822]", "/"),
    ],
)
def test_a_public_url_is_let_out(url: str, host: str, authority: str, path: str) -> None:
    guard = Guard(look_up=Names(PUBLIC))
    guard.check_form(url)
    found = guard.check(url)
    assert (found.host, found.authority, found.path) == (host, authority, path)


def test_a_name_without_addresses_may_have_some_later() -> None:
    def fails(host: str, port: int, seconds: float) -> list[str]:
        raise OSError("no answer")

    for look_up in (fails, Names(), Names("nonsense")):
        with pytest.raises(DeliveryFailed, match=r"hooks\.example\.com cannot be reached") as failed:
            Guard(look_up=look_up).check("https://hooks.example.com/")
        assert not failed.value.is_final


def test_what_ipaddress_calls_global_and_is_not() -> None:
    for text in ("224.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"):
        address = ipaddress.ip_address(text)
        assert special(address) is not None
    assert special(ipaddress.ip_address(PUBLIC)) is None


# --- the allow-list ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allow", "url", "address"),
    [
        ("hooks.internal", "http://hooks.internal/", "10.1.2.3"),
        ("Hooks.Internal", "https://hooks.internal:8443/", "127.0.0.1"),
        ("hooks", "http://hooks:8080/", "192.168.0.9"),
        ("bücher.example", "http://xn--bcher-kva.example/", "fd00::9"),
        ("hooks.example.com", "http://hooks.example.com/", PUBLIC),
        ("hooks.internal:8080", "http://hooks.internal:8080/", "10.1.2.3"),
        ("127.0.0.1", "http://127.0.0.1:8080/", ""),
        ("127.0.0.1:8080", "http://127.0.0.1:8080/", ""),
        ("127.0.0.1", "http://localhost:8080/", "127.0.0.1"),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/", ""),
        ("::1", "http://[::1]:8080/", ""),
        ("[::1]", "http://[::1]:8080/", ""),
        ("[::1]:8080", "http://[::1]:8080/", ""),
        ("10.0.0.0/8", "http://hooks.internal/", "10.1.2.3"),
        ("fd00::/8", "http://[fd12::1]/", ""),
        ("169.254.0.0/16", "http://169.254.169.254/", ""),
    ],
)
def test_an_entry_grants_plain_http_and_private_addresses(allow: str, url: str, address: str) -> None:
    guard = Guard([allow], look_up=Names(address))
    guard.check_form(url)
    assert guard.check(url).url == url


@pytest.mark.parametrize(
    ("allow", "url", "address", "why"),
    [
        ("hooks.internal", "http://other.internal/", "10.1.2.3", "not https"),
        ("hooks.internal", "https://other.internal/", "10.1.2.3", "own network"),
        ("hooks.internal", "https://sub.hooks.internal/", "10.1.2.3", "own network"),
        ("hooks.internal:8080", "http://hooks.internal/", "10.1.2.3", "not https"),
        ("hooks.internal:8080", "https://hooks.internal/", "10.1.2.3", "own network"),
        ("hooks.internal", "http://10.1.2.3/", "", "private"),
        ("hooks.internal", "http://hooks.internal/", "169.254.169.254", "metadata"),
        ("hooks.internal", "http://hooks.internal/", "100.100.100.200", "metadata"),
        ("hooks.internal", "http://hooks.internal/", "0.0.0.0", "unspecified"),
        ("hooks.internal", "http://hooks.internal/", "224.0.0.1", "multicast"),
        ("127.0.0.1", "http://127.0.0.2/", "", "loopback"),
        ("127.0.0.1:8080", "http://127.0.0.1:8081/", "", "loopback"),
        ("127.0.0.1:8080", "http://localhost:8081/", "127.0.0.1", "not https"),
        ("127.0.0.0/8", "http://[::1]/", "", "loopback"),
        ("10.0.0.0/8", "http://hooks.example.com/", PUBLIC, "not https"),
        ("10.0.0.0/8", "https://hooks.example.com/", "192.168.0.1", "private"),
        ("10.0.0.0/8", "http://2130706433/", "", "read as 127.0.0.1"),
        ("hooks.example.com", "https://user@hooks.example.com/", PUBLIC, "name or password"),
    ],
)
def test_an_entry_grants_nothing_to_others(allow: str, url: str, address: str, why: str) -> None:
    assert why in refusal(url, address or PUBLIC, allow=(allow,))


def test_all_addresses_have_to_be_granted() -> None:
    assert "10.9.9.9" in refusal("http://hooks.internal/", "10.1.2.3", "10.9.9.9", allow=("10.1.0.0/16",))
    assert "not https" in refusal("http://hooks.example.com/", "10.1.2.3", PUBLIC, allow=("10.1.0.0/16",))


@pytest.mark.parametrize(
    "entry",
    [
        "", "*", "*.example.com", "https://hooks.internal", "hooks.internal/path", "10.0.0.1/8", "10.0.0.0/33", "127.1",
        "hooks.internal:0", "hooks.internal:x", "user@hooks.internal", "[::1", "[::1]:70000", "fe80::1%eth0", "a b",
    ],
)  # fmt: skip
def test_an_entry_that_is_none_is_refused(entry: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Guard([entry])
    assert repr(entry) in str(refused.value)
