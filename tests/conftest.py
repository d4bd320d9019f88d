"""What every test starts from: no setting of whoever runs the tests, and no chance in what Hypothesis tries in CI."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter
from hypothesis import settings

for name in [name for name in os.environ if name.startswith("MR_")]:
    del os.environ[name]

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


# --- what a platform runs on -------------------------------------------------------------------------------------


@contextmanager
def _cluster(directory: Path) -> Iterator[dict[str, str]]:
    import servers
    from servers.etcd import Etcd
    from servers.nsq import Nsqd

    servers.need("etcd-3.6", "nsq")
    with ExitStack() as stack:
        etcd = stack.enter_context(Etcd(directory / "etcd"))
        nsqd = stack.enter_context(Nsqd(directory / "nsqd"))
        http = nsqd.http_address.rpartition(":")[2]
        yield {"MR_KV_URL": etcd.url, "MR_QUEUE_URL": f"nsq://{nsqd.tcp_address}?http={http}"}


@contextmanager
def _backing(kind: str, directory: Path) -> Iterator[dict[str, str]]:
    if kind == "embedded":
        yield {}
    else:
        with _cluster(directory) as variables:
            yield variables


BACKINGS = ["embedded", "cluster"]


@pytest.fixture(params=BACKINGS)
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a fresh store and queue: the embedded ones (none), or real servers of this test's own."""
    with _backing(request.param, tmp_path) as variables:
        yield variables


@pytest.fixture(scope="module", params=BACKINGS)
def module_backing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The same for all tests of a module."""
    with _backing(request.param, tmp_path_factory.mktemp("backing")) as variables:
        yield variables


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """How many worlds the simulation lived through, and how often everything happened in them."""
    total: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "simulation":
                total.update(value)
    if total:
        seeds = total.pop("seeds")
        happened = ", ".join(f"{name} {number}" for name, number in sorted(total.items()))
        terminalreporter.write_line(f"simulation: {seeds} seeds; {happened}")
