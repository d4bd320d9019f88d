"""A whole platform on servers that ask who is there: etcd with certificates and a user, nsqd with TLS and a secret."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import servers
from servers.certificates import Authority
from servers.etcd import Etcd
from servers.nsq import AuthServer, Nsqd

from tests.acceptance.served import BIN, served
from tests.acceptance.test_levels import ANSWER, COUNTRIES, FILES

USER, PASSWORD, SECRET = "jobx", "a p@ss/word", "an nsq secret"
ENDS_S = 30
"""In which a command that cannot begin has to end, with room for a busy machine."""


class Secured(NamedTuple):
    kv_url: str
    queue_url: str
    stranger: Path
    """A certificate authority that knows none of the servers."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    servers.need("etcd-3.6", "nsq")
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory / "authority")
    with ExitStack() as stack:
        etcd = stack.enter_context(Etcd(directory / "etcd", tls=authority, client_certificates=True))
        for command in (
            ("user", "add", "root:root"),
            ("user", "grant-role", "root", "root"),
            ("role", "add", "everything"),
            ("role", "grant-permission", "everything", "--prefix=true", "readwrite", ""),
            ("user", "add", f"{USER}:{PASSWORD}"),
            ("user", "grant-role", USER, "everything"),
            ("auth", "enable"),
        ):
            etcd.ctl(*command)
        auth = stack.enter_context(AuthServer(SECRET))
        nsqd = stack.enter_context(Nsqd(directory / "nsqd", tls=authority, auth=auth))
        yield Secured(
            etcd.url.replace("etcds://", f"etcds://{USER}:a%20p%40ss%2Fword@"),
            f"nsq://{nsqd.tcp_address}?tls=1&ca={authority.ca}&secret=an%20nsq%20secret",
            Authority(directory / "stranger").ca,
        )


def test_a_request_is_done_with_certificates_a_user_tls_and_a_secret(tmp_path: Path, secured: Secured) -> None:
    with served(tmp_path, FILES, MR_KV_URL=secured.kv_url, MR_QUEUE_URL=secured.queue_url) as platform:
        countries = {name: cities for name, cities in COUNTRIES.items() if cities}
        assert platform.post("census", countries=countries).pairs == ANSWER
        assert platform.get("/readyz").status == 200
        doctor = platform.jobx("doctor", check=False)
        for secret in (PASSWORD, SECRET, "a%20p%40ss"):
            assert secret not in platform.log() + doctor.stdout + doctor.stderr


def without(url: str, option: str) -> str:
    """The URL without that option."""
    base, _, query = url.partition("?")
    left = [part for part in query.split("&") if part and part.partition("=")[0] != option]
    return f"{base}?{'&'.join(left)}" if left else base


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("password", f"does not let the user '{USER}' in"),
        ("certificate", "wants a certificate of its clients"),
        ("etcd's authority", "its certificate is not trusted"),
        ("secret", "the secret in the URL is wrong"),
        ("no secret", "wants a secret"),
        ("no TLS", "add tls=1"),
        ("nsqd's authority", "is not trusted"),
    ],
)
def test_who_is_not_let_in_is_told_so_and_ends(tmp_path: Path, secured: Secured, wrong: str, told: str) -> None:
    kv, queue = secured.kv_url, secured.queue_url
    if wrong == "password":
        kv = kv.replace("a%20p%40ss", "guess")
    elif wrong == "certificate":
        kv = without(without(kv, "cert"), "key")
    elif wrong == "etcd's authority":
        kv = f"{without(kv, 'ca')}&ca={secured.stranger}"
    elif wrong == "secret":
        queue = queue.replace("an%20nsq%20secret", "guess")
    elif wrong == "no secret":
        queue = without(queue, "secret")
    elif wrong == "no TLS":
        queue = without(without(queue, "tls"), "ca")
    else:
        queue = f"{without(queue, 'ca')}&ca={secured.stranger}"
    settings = {"MR_DATA_DIR": str(tmp_path / "data"), "MR_KV_URL": kv, "MR_QUEUE_URL": queue, "PATH": "/usr/bin:/bin"}
    doctor = subprocess.run(
        [str(BIN / "jobx"), "doctor"], env=settings, capture_output=True, text=True, timeout=ENDS_S, check=False
    )
    said = doctor.stdout + doctor.stderr
    assert doctor.returncode == 1, said
    assert told in said
    assert "Traceback" not in said
    assert PASSWORD not in said
    assert "guess" not in said
