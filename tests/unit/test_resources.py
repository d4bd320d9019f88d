"""What is shipped for operators says what the code says, and its parts fit each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mr.cli import gunicorns
from mr.config import Config, warnings
from mr.web import server

ROOT = Path(__file__).resolve().parents[2]
SITE = (ROOT / "nginx" / "jobx.conf").read_text()
WHOLE = (ROOT / "nginx" / "nginx.conf").read_text()
UNITS = ROOT / "resources" / "systemd"
SAMPLE = dict(re.findall(r"^#(MR_\w+)=(.*)$", (ROOT / "resources" / "jobx.env").read_text(), re.MULTILINE))
DERIVED = {"MR_DATA_DIR", "MR_KV_URL", "MR_QUEUE_URL", "MR_FS_URL", "MR_RUNNERS"}


def directive(name: str, text: str = SITE) -> str:
    [found] = set(re.findall(rf"^ *{name} ([^;]+);", text, re.MULTILINE))
    return str(found)


def test_the_sample_has_every_setting_with_its_default() -> None:
    settings = {setting.name: setting.value for setting in Config.read({"HOME": "/home/ada"}).describe()}
    assert SAMPLE.keys() == settings.keys()
    assert {name: SAMPLE[name] for name in settings if name not in DERIVED} == {
        name: value for name, value in settings.items() if name not in DERIVED
    }


def test_the_sample_may_be_uncommented_as_a_whole() -> None:
    assert warnings(SAMPLE) == []
    read = Config.read(SAMPLE)
    default = Config.read({"MR_DATA_DIR": SAMPLE["MR_DATA_DIR"], "MR_RUNNERS": SAMPLE["MR_RUNNERS"]})
    assert read == default


@pytest.mark.parametrize("path", ["jobx-server.service", "jobx-worker@.service"])
def test_units_set_nothing_that_is_unknown(path: str) -> None:
    [line] = re.findall(r"^Environment=(.*)$", (UNITS / path).read_text(), re.MULTILINE)
    environ = dict(part.split("=", 1) for part in line.split())
    assert warnings(environ) == []
    Config.read(environ).check_exposure()


def test_nginx_and_the_front_end_meet_at_the_same_sockets() -> None:
    [upstream] = re.findall(r"^    server (unix:\S+) max_fails=0;", SITE, re.MULTILINE)
    assert upstream == gunicorns.SOCKET
    [listened] = re.findall(r"^ListenStream=(.*)$", (UNITS / "jobx-server.socket").read_text(), re.MULTILINE)
    assert f"MR_BIND=unix:{listened} " in (UNITS / "jobx-server.service").read_text()
    assert f"unix:{listened}" in SITE
    [directory] = re.findall(r"^d (\S+) ", (UNITS / "jobx.tmpfiles.conf").read_text(), re.MULTILINE)
    assert Path(listened).parent == Path(directory)


def test_nginx_waits_longer_and_takes_more_than_the_front_end() -> None:
    config = Config.read({})
    waits = re.findall(r"^ *proxy_read_timeout (\d+)s;", SITE, re.MULTILINE)
    assert len(waits) == 1
    assert int(waits[0]) > config.max_wait_s
    assert 1024**2 * int(directive("client_max_body_size").removesuffix("m")) > config.max_body_bytes


def test_nginx_gives_up_an_idle_connection_before_the_front_end_does() -> None:
    [upstream] = re.findall(r"^upstream jobx \{.*?^\}", SITE, re.MULTILINE | re.DOTALL)
    assert int(directive("keepalive_timeout", upstream).removesuffix("s")) < server.KEEPALIVE_S


def test_there_is_room_for_a_thousand_waiting_requests_and_more() -> None:
    assert int(directive("worker_connections", WHOLE)) >= 2 * 1000 + 100
    assert int(directive("worker_rlimit_nofile", WHOLE)) >= int(directive("worker_connections", WHOLE))
    assert server.CONNECTIONS >= 1000 + 100
    [files] = re.findall(r"^LimitNOFILE=(\d+)$", (UNITS / "jobx-server.service").read_text(), re.MULTILINE)
    assert int(files) > server.CONNECTIONS


def test_settings_that_the_site_names_are_settings() -> None:
    named = set(re.findall(r"MR_[A-Z_]+", SITE))
    assert len(named) > 2
    assert warnings(dict.fromkeys(named, "")) == []
