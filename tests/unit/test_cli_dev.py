"""The parts of `jobx dev` that need no children: where it listens, and what it notices in a directory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_runs import ADD, JOBS, Commands
from trace_requests import put

from mr.cli import dev
from mr.cli.dev import Address, Watched, choose, listen, tell_what_goes_on
from mr.cli.lock import DevLock
from mr.cli.supervisor import ending
from mr.config import Config
from mr.errors import Conflict, InvalidConfig, InvalidInput, StoreUnavailable
from mr.kv.memory import MemoryStore
from mr.model import catalog, ids, keys
from mr.model.records import Mark

# --- the address -------------------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def config(**environ: str) -> Config:
    return Config.read({"HOME": "/nowhere", **environ})


def test_without_a_port_the_next_free_one_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "FIRST_PORT", taken)
    with listen(choose(config(), None, None)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        assert taken < listener.getsockname()[1] < taken + 1000


def test_a_given_port_that_is_taken_is_an_error_that_names_it(taken: int) -> None:
    for address in (choose(config(), None, taken), choose(config(MR_BIND=f"127.0.0.1:{taken}"), None, None)):
        with pytest.raises(InvalidConfig, match=f"127.0.0.1:{taken} .*in use"):
            listen(address)


def test_port_0_is_any_that_is_free(taken: int) -> None:
    with listen(choose(config(), None, 0)) as listener:
        assert listener.getsockname()[1] not in (0, taken, dev.FIRST_PORT)


def test_options_go_before_settings() -> None:
    bound = config(MR_BIND="127.0.0.2:9000")
    assert choose(bound, None, None)[:2] == ("127.0.0.2", 9000)
    assert choose(bound, "127.0.0.3", None)[:2] == ("127.0.0.3", 9000)
    assert choose(bound, None, 9001)[:2] == ("127.0.0.2", 9001)
    assert choose(config(), "::1", None) == Address("::1", None)


def test_a_unix_socket_is_not_for_dev() -> None:
    with pytest.raises(InvalidConfig, match="MR_BIND"):
        choose(config(MR_BIND="unix:/run/x.sock"), None, None)


def test_a_host_of_another_machine_is_an_error() -> None:
    with pytest.raises(InvalidConfig, match=r"192\.0\.2\.1"):
        listen(Address("192.0.2.1", None))
    with pytest.raises(InvalidConfig, match=r"nowhere\.invalid"):
        listen(Address("nowhere.invalid", None))


def test_a_public_host_without_tokens_is_refused(tmp_path: Path) -> None:
    done = Commands(tmp_path).jobx("dev", "--host", "0.0.0.0", "--port", "0")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "MR_API_TOKENS" in done.stderr
    assert "With --host 0.0.0.0 other machines can reach JobX, on any port" in done.stderr
    assert "MR_BIND" not in done.stderr
    assert "on port 8123," in Commands(tmp_path).jobx("dev", "--host", "0.0.0.0", "--port", "8123").stderr
    assert "MR_BIND is '0.0.0.0:9000'" in Commands(tmp_path).jobx("dev", MR_BIND="0.0.0.0:9000").stderr


def test_nothing_is_written_where_a_given_port_is_taken(tmp_path: Path, taken: int) -> None:
    commands = Commands(tmp_path)
    done = commands.jobx("dev", str(commands.words()), "--port", str(taken))
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"127.0.0.1:{taken} (--port {taken})" in done.stderr
    assert not list((tmp_path / "data").glob("*.sqlite*"))


def test_a_directory_that_is_not_there_is_named_without_a_line(tmp_path: Path) -> None:
    done = Commands(tmp_path).jobx("dev", "nodir", "--port", "0")
    assert (done.exit_code, done.stderr) == (1, "Error: There is no directory 'nodir'.\n")


# --- one at a time -----------------------------------------------------------------------------------------------


def test_a_workflow_is_served_from_one_directory(tmp_path: Path) -> None:
    first, second = DevLock(tmp_path / "data"), DevLock(tmp_path / "data")
    first.take("words", str(tmp_path / "here"))
    first.take("words", str(tmp_path / "here"))
    second.take("others", "there")
    with pytest.raises(Conflict) as told:
        second.take("words", "there")
    assert str(told.value) == (
        f"`jobx dev` already serves the workflow 'words' from {tmp_path / 'here'} (process {os.getpid()}). Stop it, "
        "or use --data-dir."
    )
    DevLock(tmp_path / "elsewhere").take("words", "there")
    first.take("renamed", "here")
    second.take("words", "there")
    first.close()
    second.close()


def test_what_is_started_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = DevLock(tmp_path)
    lock.take("words", "here")
    assert not os.get_inheritable(lock._fd)
    lock.close()


def test_requests_that_go_on_are_counted() -> None:
    store = MemoryStore()
    said: list[str] = []
    tell_what_goes_on(store, (), said.append)
    for workflow in ("words", "words", "shop"):
        put(store, {keys.live(workflow, ids.new_request_id(workflow, 0.0)): Mark()})
    tell_what_goes_on(store, (), said.append)
    tell_what_goes_on(store, ("shop",), said.append)
    assert said == ["3 requests go on.", "1 request goes on."]


# --- the directory -----------------------------------------------------------------------------------------------


class Watching:
    """A watched directory, a store, and what was said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = MemoryStore()
        self.said: list[str] = []
        self.watched = Watched(str(directory), self.store, DevLock(directory.parent / "locks"), self.said.append)

    def look(self) -> list[str]:
        """What is said once it has looked twice, as it takes only what has settled."""
        self.said.clear()
        for _ in range(2):
            self.watched._next = 0.0
            self.watched.look()
        return self.said

    def source(self) -> str:
        manifest = catalog.read(self.store, "words").manifest
        return catalog.read_handlers(self.store, manifest)["add"].source_code


@pytest.fixture
def watching(tmp_path: Path) -> Watching:
    one = Watching(Commands(tmp_path).words())
    one.watched.begin()
    return one


def test_a_directory_is_applied_at_the_beginning(watching: Watching) -> None:
    assert "words: create job wordcount" in watching.said
    assert watching.look() == []


def test_a_directory_that_is_not_there_is_an_error_at_the_beginning(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="There is no directory"):
        Watching(tmp_path / "nothere").watched.begin()


def overwrite(directory: Path) -> None:
    (directory / "add.py").write_text(ADD.replace("sum", "max"))


def overwrite_alike(directory: Path) -> None:
    """Same size and, as a coarse clock may have it, the same time."""
    before = (directory / "add.py").stat()
    (directory / "add.py").write_text(ADD.replace("sum", "max"))
    os.utime(directory / "add.py", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(directory: Path) -> None:
    """As most editors save."""
    (directory / ".add.py.swp").write_text(ADD.replace("sum", "max"))
    (directory / ".add.py.swp").replace(directory / "add.py")


@pytest.mark.parametrize("save", [overwrite, overwrite_alike, replace])
def test_a_saved_change_is_applied_and_told(watching: Watching, save: Callable[[Path], None]) -> None:
    save(watching.directory)
    assert watching.look() == ["words: update handler add"]
    assert "max" in watching.source()
    assert watching.look() == []


def test_files_that_come_and_go_are_noticed(watching: Watching) -> None:
    (watching.directory / "deep").mkdir()
    (watching.directory / "deep" / "most.py").write_text(ADD)
    assert watching.look() == ["words: create handler deep_most"]
    (watching.directory / "deep" / "most.py").unlink()
    assert watching.look() == ["words: delete handler deep_most"]


def test_a_file_still_being_written_is_waited_for(watching: Watching) -> None:
    watching.said.clear()
    for length in range(1, 5):
        (watching.directory / "add.py").write_text(ADD[:length])
        watching.watched._next = 0.0
        watching.watched.look()
    assert watching.said == []
    assert "sum" in watching.source()
    overwrite(watching.directory)
    assert watching.look() == ["words: update handler add"]


def test_every_problem_of_a_change_is_told_and_what_was_there_stays(watching: Watching) -> None:
    (watching.directory / "add.py").write_text("def reducer(")
    (watching.directory / "jobs.yaml").write_text("steps: {count: {map: splt, reduce: add}}\n")
    [said] = watching.look()
    assert "add.py:1:" in said
    assert "jobs.yaml:1:" in said
    assert said.count("nothing was changed") == 1
    assert "sum" in watching.source()
    assert watching.look() == []


def test_a_directory_that_vanishes_is_told_once_and_may_come_back(watching: Watching) -> None:
    away = watching.directory.with_name("away")
    watching.directory.rename(away)
    [said] = watching.look()
    assert said == f"Error: There is no directory '{watching.directory}'. Nothing was changed."
    assert watching.look() == []
    assert "sum" in watching.source()
    overwrite(away)
    away.rename(watching.directory)
    assert watching.look() == ["words: update handler add", "words: all right again."]


def test_going_back_to_the_old_text_is_told_as_well(watching: Watching) -> None:
    (watching.directory / "add.py").write_text("def reducer(")
    assert watching.look()
    (watching.directory / "add.py").write_text(ADD)
    assert watching.look() == ["words: all right again."]
    overwrite(watching.directory)
    assert watching.look() == ["words: update handler add"]


@pytest.mark.parametrize(("text", "told"), [(None, "is missing"), ("# soon\n", "is empty"), ("steps:\n", "no steps")])
def test_a_jobs_file_that_goes_takes_nothing_away(watching: Watching, text: str | None, told: str) -> None:
    jobs = watching.directory / "jobs.yaml"
    jobs.unlink()
    if text is not None:
        jobs.write_text(text)
    [said] = watching.look()
    assert "jobs.yaml" in said
    assert told in said.replace("It is", "is")
    assert "othing was changed." in said
    assert list(catalog.read(watching.store, "words").manifest.jobs) == ["wordcount"]
    jobs.write_text(JOBS)
    assert watching.look() == ["words: all right again."]


def test_paths_of_problems_can_be_opened_from_here(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(watching.directory.parent)
    (watching.directory / "add.py").write_text("def reducer(")
    assert watching.look()[0].startswith("words/add.py:1: ")
    monkeypatch.chdir(watching.directory)
    (watching.directory / "add.py").write_text("def  reducer(")
    assert watching.look()[0].startswith("add.py:1: ")


def test_a_store_that_refuses_is_tried_again(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise StoreUnavailable("The store is away.")

    with monkeypatch.context() as patched:
        patched.setattr(watching.store, "get", refuse)
        overwrite(watching.directory)
        assert "The store is away. The change of" in watching.look()[0]
    assert watching.look() == ["words: update handler add"]


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with exit code 0"), (3, "ended with exit code 3"), (-9, "was ended by SIGKILL")]
)
def test_how_a_child_ended_is_told_in_words(code: int, words: str) -> None:
    assert ending(code) == words
