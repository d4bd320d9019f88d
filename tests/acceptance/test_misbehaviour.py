"""Handlers that misbehave cost their own request, with a type that says what they did, and nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from tests.acceptance.served import Served, served, until

HEAD = "import ctypes, os, signal, socket, stat, sys, time\n\ndef mapper(arguments):\n    yield MrConfigureToReturn()\n"
BODIES = {
    "loops": "while True:\n        pass",
    "ignores_sigterm": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    while True:\n        time.sleep(1)",
    "exits": "os._exit(3)",
    "says_goodbye": "sys.exit(4)",
    "segfaults": "ctypes.string_at(0)",
    "eats_memory": "hoard = []\n    while True:\n        hoard.append(bytearray(b'x' * (64 * 1024 * 1024)))",
    "prints": (
        "line = 'x' * 1023 + '\\n'\n    for _ in range(1024 * 1024):\n        sys.stdout.write(line)\n"
        "    yield 'printed', 1"
    ),
    "forks": "while True:\n        try:\n            os.fork()\n        except OSError:\n            pass",
    "writes_rubbish": (
        "for fd in range(3, 2000):\n        try:\n            if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "                os.write(fd, b'\\xff' * 4096)\n        except OSError:\n            pass\n"
        "    time.sleep(60)"
    ),
    "returns": "return 5",
    "yields_no_pair": "yield 1, 2, 3",
    "yields_nan": "yield 'x', float('nan')",
}
EXPECTED = {
    "loops": {"HandlerTimeout"},
    "ignores_sigterm": {"HandlerTimeout"},
    "exits": {"HandlerExited"},
    "says_goodbye": {"HandlerExited"},
    "segfaults": {"HandlerKilled"},
    "eats_memory": {"HandlerOutOfMemory"},
    "forks": {"HandlerKilled", "HandlerTimeout"},
    "writes_rubbish": {"HandlerContractError", "HandlerKilled"},
    "returns": {"HandlerContractError"},
    "yields_no_pair": {"HandlerContractError"},
    "yields_nan": {"HandlerContractError"},
    "no_direction": {"HandlerContractError"},
}
STEPS = "".join(
    # What comes to an end by itself is given the time for it.
    f"  {name}: {{map: {name}, reduce: add, timeout: {60 if name in ('prints', 'good') else 3}}}\n"
    for name in [*BODIES, "no_direction", "good"]
)
JOBS = "".join(f"  {name}: {{step: {name}}}\n" for name in [*BODIES, "no_direction", "good"])
FILES = {
    "jobs.yaml": f"steps:\n{STEPS}jobs:\n{JOBS}",
    "add.py": "def reducer(results):\n    for key, values in results:\n        yield key, sum(values)\n",
    "good.py": HEAD + "    yield 'good', 1\n",
    "no_direction.py": "def mapper(arguments):\n    yield 'pair', 1\n",
    **{f"{name}.py": f"{HEAD}    {body}\n" for name, body in BODIES.items()},
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, module_backing: dict[str, str]) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("misbehaviour"), FILES, "--runners", "2", **module_backing) as made:
        yield made


def worker_of(platform: Served) -> int:
    [worker] = [one.pid for one in platform.children(recursive=False) if "worker" in " ".join(one.cmdline())]
    return worker


@pytest.mark.parametrize("name", EXPECTED)
def test_a_misbehaving_handler_costs_its_own_request(platform: Served, name: str) -> None:
    worker = worker_of(platform)
    answer = platform.post(name)
    assert answer.status == 500, answer.text
    problem = answer.json
    assert problem["type"] == "urn:jobx:handler-failed"
    assert problem["exception_type"] in EXPECTED[name], problem
    assert answer.headers["X-MR-EXCEPTION-TYPE"] == problem["exception_type"]
    assert problem["exception_message"]
    assert problem["invocation_id"].startswith(problem["request_id"])
    assert platform.post("good").pairs == [["good", 1]]
    assert worker_of(platform) == worker, "the worker itself had to be started again"


def test_a_handler_that_prints_a_gigabyte_is_heard_in_part(platform: Served) -> None:
    before = psutil.Process(worker_of(platform)).memory_info().rss
    answer = platform.post("prints")
    assert answer.pairs == [["printed", 1]]
    request_id = answer.headers["X-MR-REQUEST-ID"]
    stored = platform.run("mr_kv_invocation_get", "w", f"{request_id}.0").stdout
    assert "xxxx" in stored
    assert len(stored) < 100_000
    assert psutil.Process(worker_of(platform)).memory_info().rss < before + 64 * 1024 * 1024


def test_nothing_of_a_misbehaving_handler_stays_behind(platform: Served) -> None:
    for name in ("forks", "loops", "exits"):
        platform.post(name)

    def runners() -> int:
        return len(psutil.Process(worker_of(platform)).children(recursive=True))

    assert platform.post("good").pairs == [["good", 1]]
    until(lambda: runners() <= 4, 10, platform.log)


def test_the_tree_shows_the_file_and_the_line(platform: Served) -> None:
    answer = platform.post("no_direction")
    tree = platform.jobx("request", "tree", answer.headers["X-MR-REQUEST-ID"]).stdout
    assert "no_direction.py" in tree
    assert "HandlerContractError" in tree
    assert "line 2" in tree or ":2" in tree
