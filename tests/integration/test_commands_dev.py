"""``jobx dev`` as it is installed: what it prints, keeps running, applies, and leaves behind."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.command_harness import (
    ADD,
    BIN,
    DEADLINE_S,
    JOBS,
    Running,
    all_gone,
    wait_for,
    write_words,
)

PROGRAM = BIN / "jobx"


class Dev(Running):
    """A running ``jobx dev``."""

    port: str

    def __init__(self, directory: Path, *arguments: str, **environ: str) -> None:
        self.directory = directory
        super().__init__(directory, ["jobx", "dev", *arguments], **environ)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=DEADLINE_S)

    def until_ready(self) -> Dev:
        self.wait_until_ready()
        prefix, _, self.port = self.output.all[0].rpartition(":")
        assert prefix == "JobX is ready at http://127.0.0.1"
        return self

    def begin_slow(self, seconds: float) -> str:
        """The path of a request whose handler sleeps, and is asleep."""
        status, answer = self.call("POST", "/job/words/slow?blocking=false", {"arguments": {"a": seconds}})
        assert status == 202
        request_id = answer["request_id"]
        wait_for(lambda: "running" in self.jobx("request", "tree", request_id).splitlines()[1], "the handler runs")
        return str(request_id)

    def jobx(self, *arguments: str) -> str:
        done = subprocess.run(
            [PROGRAM, *arguments], env=self.environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.port))) == 0

    def end(self) -> int:
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_words(tmp_path)


Start = Callable[..., Dev]


@pytest.fixture
def start(tmp_path: Path, words: Path) -> Iterator[Start]:
    started: list[Dev] = []

    def start_one(*arguments: str, **environ: str) -> Dev:
        started.append(Dev(tmp_path, *(arguments or ("words", "--port", "0")), **environ))
        return started[-1]

    yield start_one
    for one in started:
        one.close()


def test_once_it_is_ready_requests_are_answered_and_it_stops_in_order(start: Start) -> None:
    dev = start().until_ready()
    assert dev.count() == [["be", 2], ["not", 1], ["or", 1], ["to", 2]]
    assert "count reduce done" in dev.jobx("request", "tree", "last")
    below = dev.below()
    # Whoever reads the output gets the one line, whatever children may print.
    errors = os.readlink(f"/proc/{dev.process.pid}/fd/2")
    assert {os.readlink(f"/proc/{child.pid}/fd/1") for child in dev.children()} == {errors}
    dev.process.terminate()
    assert dev.end() == 0
    assert all_gone(below)
    assert dev.output.end() == dev.output.all[:1]
    assert "words: create job wordcount" in dev.errors.end()


def test_ctrl_c_reaches_the_whole_terminal_and_still_stops_in_order(start: Start) -> None:
    dev = start().until_ready()
    # Children that got it as well would not end in order.
    assert dev.process.pid not in {os.getpgid(child.pid) for child in dev.children()}
    os.killpg(dev.process.pid, signal.SIGINT)
    assert dev.end() == 0
    assert [line for line in dev.errors.end() if not line.startswith("words: create")] == []


def test_when_it_stops_no_more_is_taken_and_what_runs_may_finish(start: Start) -> None:
    dev = start().until_ready()
    request_id = dev.begin_slow(2.0)
    dev.process.terminate()
    wait_for(lambda: not dev.is_listening(), "nothing listens")
    assert dev.process.poll() is None
    assert dev.end() == 0
    assert "slow map done" in dev.jobx("request", "tree", request_id)


def test_when_it_stops_clients_that_wait_are_answered(start: Start) -> None:
    dev = start().until_ready()
    dev.begin_slow(2.0)
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(dev.call, "POST", "/job/words/slow", {"arguments": {"b": 60}})
        wait_for(lambda: dev.jobx("request", "list").count("running") == 2, "both are accepted")
        dev.process.terminate()
        status, answer = waiting.result(DEADLINE_S)
    assert status == 202
    assert answer["request_id"]


def test_a_second_signal_does_not_wait(start: Start) -> None:
    dev = start().until_ready()
    dev.begin_slow(60.0)
    below = dev.below()
    dev.process.terminate()
    wait_for(lambda: not dev.is_listening(), "nothing listens")
    dev.process.terminate()
    assert dev.process.wait(3) == 1
    wait_for(lambda: all_gone(below), "all children have gone", 3)


def test_it_can_be_stopped_before_it_is_ready(start: Start) -> None:
    dev = start()
    wait_for(lambda: len(dev.children()) == 2, "both are started")
    below = dev.below()
    dev.process.terminate()
    assert dev.end() == 0
    assert dev.output.end() == []
    wait_for(lambda: all_gone(below), "all children have gone", 3)


def test_when_it_is_killed_its_children_end_within_a_second_and_the_port_is_free(start: Start) -> None:
    dev = start().until_ready()
    dev.begin_slow(60.0)
    below = dev.below()
    # Front end and its process, worker, runners and what makes them.
    assert len(below) >= 5
    dev.process.kill()
    wait_for(lambda: all_gone(below), "all children have gone", 1.0)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(dev.port)))
        again.listen()


def test_children_end_also_when_it_is_killed_while_they_start(start: Start) -> None:
    dev = start()
    wait_for(lambda: len(dev.children()) == 2, "both are started")
    below = dev.below()
    dev.process.kill()
    wait_for(lambda: all_gone(below), "all children have gone", 1.0)


@pytest.mark.parametrize(("part", "title"), [("mr.cli.serve", "front end"), ("mr.cli.programs", "worker")])
def test_a_child_that_dies_is_started_again_on_the_same_port(start: Start, part: str, title: str) -> None:
    dev = start().until_ready()
    dev.count()
    first = dev.child(part)
    first.kill()
    wait_for(lambda: dev.errors.have(f"The {title} was ended by SIGKILL; it is started again in 0.1 s."), "it is told")
    # Clients that come meanwhile wait: the socket has stayed open.
    assert dev.count("again") == [["again", 1]]
    assert dev.child(part).pid != first.pid
    dev.process.terminate()
    assert dev.end() == 0


def test_a_saved_change_is_live_within_a_second(start: Start, words: Path) -> None:
    dev = start().until_ready()
    dev.count("a a")
    (words / "add.py").write_text(ADD.replace("sum(counts)", "10 * sum(counts)"))
    wait_for(lambda: dev.count("a a") == [["a", 20]], "the change is live", 1.0)
    wait_for(lambda: dev.errors.have("words: update handler add"), "it is told")


def test_a_broken_change_is_told_and_the_old_version_stays(start: Start, words: Path) -> None:
    dev = start().until_ready()
    (words / "add.py").write_text("def reducer(")
    (words / "split.py").write_text("x = 1\n")
    wait_for(lambda: dev.errors.have("There are 2 problems: nothing was changed."), "it is told")
    assert dev.errors.have("add.py:1:")
    assert dev.errors.have("split.py:")
    assert dev.count("a a") == [["a", 2]]


def test_a_directory_that_cannot_be_read_ends_it_with_every_problem(start: Start, words: Path) -> None:
    (words / "add.py").write_text("def reducer(")
    (words / "split.py").write_text("x = 1\n")
    dev = start()
    assert dev.end() == 1
    assert dev.output.end() == []
    said = "\n".join(dev.errors.end())
    assert "add.py:1:" in said
    assert "split.py:" in said


def test_a_given_port_that_is_taken_ends_it(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        dev = start("words", "--port", str(port))
        assert dev.end() == 1
    assert f"127.0.0.1:{port}" in "\n".join(dev.errors.end())
    assert not dev.errors.have("words: create"), "nothing is written before it is known that it can begin"
    assert dev.output.end() == []


def test_it_runs_without_a_directory_and_beside_another(start: Start) -> None:
    first = start().until_ready()
    second = start("--port", "0").until_ready()
    assert first.port != second.port
    assert second.count("a") == [["a", 1]]


def test_a_second_one_of_the_same_workflow_is_refused_until_the_first_has_gone(start: Start, words: Path) -> None:
    first = start().until_ready()
    second = start()
    assert second.end() == 1
    [said] = second.errors.end()
    assert f"already serves the workflow 'words' from {words} (process {first.process.pid})" in said
    first.process.kill()
    first.end()
    third = start().until_ready()
    assert third.count("a") == [["a", 1]]


def test_children_that_cannot_start_end_it(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dev = start(MR_QUEUE_URL=f"sqlite://{tmp_path}/file/queue.sqlite")
    assert dev.end() == 1
    assert dev.output.end() == []
    said = "\n".join(dev.errors.end())
    assert str(tmp_path / "file") in said
    assert "JobX cannot start" in said
    assert "Traceback" not in said


def test_files_named_like_modules_do_no_harm(start: Start, words: Path, tmp_path: Path) -> None:
    for name in ("queue", "json", "select"):
        (words / f"{name}.py").write_text(ADD)
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    dev = start().until_ready()
    assert dev.count("a") == [["a", 1]]
    assert not dev.errors.have("the wrong module")


@pytest.mark.parametrize("slip", ["missing", "empty"])
def test_a_jobs_file_that_goes_takes_nothing_away(start: Start, words: Path, slip: str) -> None:
    dev = start("words", "--port", "0").until_ready()
    jobs = words / "jobs.yaml"
    if slip == "missing":
        jobs.unlink()
    else:
        jobs.write_text("")
    told = "jobs.yaml is missing" if slip == "missing" else "jobs.yaml:1: It is empty."
    wait_for(lambda: dev.errors.have(told), "it is told")
    assert dev.count("a b a") == [["a", 2], ["b", 1]]
    jobs.write_text(JOBS)
    wait_for(lambda: dev.errors.have("words: all right again."), "it is told")
    assert not dev.errors.have("delete")


def test_a_directory_that_is_not_there_is_named(start: Start) -> None:
    dev = start("wrods", "--port", "0")
    assert dev.end() == 1
    assert any("There is no directory 'wrods'" in line for line in dev.errors.end())
