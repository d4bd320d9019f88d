"""``mr_start_gunicorn_dev`` and ``_prod`` as they are installed, and ``jobx server`` as systemd starts it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mr.cli import gunicorns
from mr.config import Bind, one_per_cpu
from mr.errors import InvalidConfig
from mr.web.listening import Listener
from tests.integration.command_harness import (
    BIN,
    DEADLINE_S,
    Running,
    all_gone,
    wait_for,
    write_words,
)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("jobx", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Started(Running):
    """One of the commands."""

    def __init__(self, directory: Path, *command: str, **environ: str) -> None:
        self.path = directory / "g.sock"
        super().__init__(directory, [*command], **{"MR_BIND": f"unix:{self.path}", **environ})

    def connection(self) -> http.client.HTTPConnection:
        return UnixConnection(self.path)

    def until_ready(self) -> Started:
        self.wait_until_ready()
        return self

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_S)


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    words = write_words(tmp_path)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MR_DATA_DIR": str(tmp_path / "data")}
    subprocess.run([BIN / "jobx", "apply", str(words)], env=environ, check=True, capture_output=True)
    started: list[Started] = []

    def start_one(*command: str, **environ: str) -> Started:
        started.append(Started(tmp_path, *command, **environ))
        return started[-1]

    yield start_one
    for one in started:
        one.close()


def test_the_front_end_and_its_worker_run_a_job_log_it_and_stop_in_order(start: Start) -> None:
    dev = start("mr_start_gunicorn_dev").until_ready()
    assert dev.output.all == [f"JobX is ready at unix:{dev.path}"]
    assert dev.count() == [["be", 2], ["not", 1], ["or", 1], ["to", 2]]
    wait_for(lambda: dev.errors.have("POST /job/words/wordcount HTTP/1.1 200"), "the answer is logged")
    wait_for(lambda: dev.errors.have("INFO mr.worker.worker"), "the worker tells what it does")
    below = dev.below()
    assert dev.stop() == 0
    assert all_gone(below)
    assert not dev.path.exists()
    assert len(dev.output.end()) == 1


def test_production_has_a_process_a_cpu_and_leaves_the_access_log_to_nginx(start: Start) -> None:
    prod = start("mr_start_gunicorn_prod").until_ready()
    assert prod.count() == [["be", 2], ["not", 1], ["or", 1], ["to", 2]]
    wait_for(lambda: len(prod.child("mr.cli.serve").children()) == one_per_cpu(), "one process a CPU")
    assert prod.stop() == 0
    assert not any("/job/" in line for line in prod.errors.end())


def test_processes_are_as_many_as_the_setting_says(start: Start) -> None:
    number = one_per_cpu() + 1
    prod = start("mr_start_gunicorn_prod", MR_WEB_PROCESSES=str(number)).until_ready()
    wait_for(lambda: len(prod.child("mr.cli.serve").children()) == number, "as many as asked for")


@pytest.mark.parametrize("command", ["mr_start_gunicorn_dev", "mr_start_gunicorn_prod"])
def test_there_is_no_worker_where_none_is_wanted(start: Start, command: str) -> None:
    alone = start(command, MR_CONSUME="0").until_ready()
    assert len(psutil.Process(alone.process.pid).children()) == 1
    assert alone.call("POST", "/job/words/wordcount?wait=0.2", {"arguments": {"text": "a"}})[0] == 202
    assert alone.stop() == 0


def test_it_listens_where_nginx_looks_unless_told_otherwise(start: Start) -> None:
    # Somebody may be using it: then the refusal names it.
    default = start("mr_start_gunicorn_dev", MR_BIND="", MR_CONSUME="0")
    wait_for(lambda: default.output.all or default.process.poll() is not None, "ready, or refused")
    assert gunicorns.SOCKET == "unix:/tmp/mr.gunicorn.sock"
    default.process.terminate()
    default.process.wait(DEADLINE_S)
    assert any(gunicorns.SOCKET in line for line in default.output.end() + default.errors.end())


def test_a_port_is_served_as_well(start: Start) -> None:
    dev = start("mr_start_gunicorn_dev", MR_BIND="127.0.0.1:0").until_ready()
    prefix, _, port = dev.output.all[0].rpartition(":")
    assert prefix == "JobX is ready at http://127.0.0.1"
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200


def test_a_socket_in_use_is_refused_and_its_server_goes_on(start: Start) -> None:
    first = start("mr_start_gunicorn_prod", MR_CONSUME="0").until_ready()
    second = start("mr_start_gunicorn_dev")
    assert second.process.wait(DEADLINE_S) == 1
    [line] = second.errors.end()
    assert f"MR_BIND is 'unix:{first.path}', and a server listens there already" in line
    assert first.call("GET", "/healthz")[0] == 200


def test_what_is_no_socket_is_left_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / "g.sock").write_text("precious")
    refused = start("mr_start_gunicorn_dev")
    assert refused.process.wait(DEADLINE_S) == 1
    assert refused.errors.end()[0].endswith("something else than a socket. Remove it, or choose another path.")
    assert (tmp_path / "g.sock").read_text() == "precious"


def test_bad_settings_are_refused_before_anything_starts(start: Start) -> None:
    for environ, part in (
        ({"MR_BIND": "0.0.0.0:0"}, "MR_ALLOW_ANONYMOUS=1"),
        ({"MR_WEB_PROCESSES": "many"}, "MR_WEB_PROCESSES is 'many'"),
        ({"MR_BIND": "unix:/nowhere/at/all.sock"}, "No such file or directory"),
    ):
        refused = start("mr_start_gunicorn_prod", **environ)
        assert refused.process.wait(DEADLINE_S) == 1
        [line] = refused.errors.end()
        assert part in line
        assert refused.output.end() == []


def test_when_it_is_killed_its_children_end_and_the_next_one_takes_the_socket(start: Start) -> None:
    first = start("mr_start_gunicorn_prod").until_ready()
    first.count()
    below = first.below()
    assert len(below) >= 5
    first.process.kill()
    wait_for(lambda: all_gone(below), "all children have gone", 1.0)
    assert first.path.is_socket()
    assert start("mr_start_gunicorn_dev").until_ready().count("a a") == [["a", 2]]


@pytest.mark.parametrize(("part", "title"), [("mr.cli.serve", "front end"), ("mr.cli.programs", "worker")])
def test_a_child_that_dies_is_started_again_and_no_client_is_refused(start: Start, part: str, title: str) -> None:
    dev = start("mr_start_gunicorn_dev").until_ready()
    dev.count()
    first = dev.child(part)
    first.kill()
    wait_for(lambda: dev.errors.have(f"The {title} was ended by SIGKILL; it is started again in 0.1 s."), "it is told")
    assert dev.count("again") == [["again", 1]]
    assert dev.child(part).pid != first.pid
    assert dev.stop() == 0


def test_a_front_end_that_was_told_to_stop_by_somebody_else_comes_back_at_the_same_path(start: Start) -> None:
    dev = start("mr_start_gunicorn_dev", MR_CONSUME="0").until_ready()
    dev.child("mr.cli.serve").terminate()
    wait_for(lambda: dev.errors.have("The front end ended with exit code 0"), "it is told")
    assert dev.call("GET", "/healthz")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_when_it_stops_clients_that_wait_are_answered(start: Start, number: signal.Signals) -> None:
    prod = start("mr_start_gunicorn_prod").until_ready()
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(prod.call, "POST", "/job/words/slow", {"arguments": {"b": 60}})
        wait_for(lambda: prod.call("GET", "/request/words/last")[0] == 200, "it is accepted")
        # As a terminal's Ctrl-C does it: to everybody.
        os.killpg(prod.process.pid, number)
        status, answer = waiting.result(DEADLINE_S)
    assert status == 202
    assert answer["request_id"]
    assert prod.process.wait(DEADLINE_S) == 0


def test_when_it_stops_nobody_is_let_in_to_wait_for_nothing(start: Start) -> None:
    dev = start("mr_start_gunicorn_dev").until_ready()
    _, accepted = dev.call("POST", "/job/words/slow?blocking=false", {"arguments": {"a": 3}})
    wait_for(
        lambda: dev.call("GET", accepted["url"].partition("jobx")[2])[1]["progress"]["state"] == "running", "it runs"
    )
    dev.process.terminate()
    wait_for(lambda: not dev.path.exists(), "the path has gone")
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        client.connect(str(dev.path))
    assert dev.child("mr.cli.programs").is_running(), "the handler is let finish"
    assert dev.process.wait(DEADLINE_S) == 0


def test_what_cannot_start_is_told_after_a_few_tries(start: Start, tmp_path: Path) -> None:
    (tmp_path / "data" / "kv.sqlite").write_bytes(b"no database, but some text" * 100)
    failed = start("mr_start_gunicorn_prod")
    assert failed.process.wait(DEADLINE_S) == 1
    # Gunicorn's own last words may come after it.
    assert "JobX cannot start: what was said above has to be put right first." in failed.errors.end()
    assert not failed.path.exists()


# --- the socket ----------------------------------------------------------------------------------------------------


def test_everybody_who_reaches_the_path_may_connect_whatever_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        with contextlib.closing(Listener(Bind(path=str(tmp_path / "s")))):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(mask)
    assert not (tmp_path / "s").exists()


def test_of_many_who_want_a_stale_socket_one_gets_it(tmp_path: Path) -> None:
    def take(path: Path) -> Listener | str:
        try:
            return Listener(Bind(path=str(path)))
        except InvalidConfig as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(100):
            path = tmp_path / f"s{turn}"
            with socket.socket(socket.AF_UNIX) as stale:
                stale.bind(str(path))
            answers = list(pool.map(take, [path] * 8))
            [winner] = [answer for answer in answers if isinstance(answer, Listener)]
            with contextlib.closing(winner), socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            refusals = [answer for answer in answers if isinstance(answer, str)]
            assert all("a server listens there already" in refusal for refusal in refusals), refusals


def test_a_path_that_somebody_else_took_over_is_not_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Listener(Bind(path=str(path)))
    path.unlink()
    with contextlib.closing(Listener(Bind(path=str(path)))):
        first.close()
        assert path.is_socket()


# --- systemd -------------------------------------------------------------------------------------------------------


def test_systemd_hears_when_requests_are_taken(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(tmp_path / "notify"))
        service.settimeout(DEADLINE_S)
        server = start("jobx", "server", NOTIFY_SOCKET=str(tmp_path / "notify"))
        # Gunicorn's own word would come before there is a process that takes requests.
        assert service.recv(4096).decode().splitlines() == ["READY=1", f"STATUS=Serving unix:{server.path}"]
        assert server.call("GET", "/healthz")[0] == 200


ACTIVATED = textwrap.dedent(
    """
    import os, socket, sys
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    if listener.fileno() != 3:
        os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": sys.argv[2]}
    os.execv(sys.argv[3], sys.argv[3:])
    """
)


def test_systemd_hands_over_its_socket_and_keeps_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "activated.py").write_text(ACTIVATED)
    given = tmp_path / "given"
    server = start("python", "activated.py", str(given), "1", str(BIN / "jobx"), "server", MR_BIND="127.0.0.1:1")
    server.path = given

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(given))
            return True
        return False

    wait_for(listens, "the socket is there")
    assert server.call("GET", "/readyz")[0] == 200
    assert server.stop() == 0
    assert given.is_socket()


def test_more_sockets_than_one_are_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "activated.py").write_text(ACTIVATED)
    server = start("python", "activated.py", str(tmp_path / "given"), "2", str(BIN / "jobx"), "server")
    assert server.process.wait(DEADLINE_S) == 1
    assert "systemd hands over 2 sockets" in server.errors.end()[-1]
