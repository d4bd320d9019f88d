"""A directory of this machine as a tree: links, other things that are no files, what a kill leaves, and paths."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mr.fs.local_tree import LocalTree
from mr.fs.shared import Folder, WorkflowFolder, workflow_files
from mr.fs.tree import Parts, Stat
from mr.fs.writers import Unfinished

OPERATIONS: dict[str, Callable[[Folder, str], Any]] = {
    "mkdir": lambda files, path: files.mkdir(path, exist_ok=True),
    "cp from": lambda files, path: files.cp(path, "mine"),
    "cp to": lambda files, path: files.cp("file", path),
    "mv from": lambda files, path: files.mv(path, "mine"),
    "mv to": lambda files, path: files.mv("file", path),
    "rmdir": lambda files, path: files.rmdir(path),
    "get_stat": lambda files, path: files.get_stat(path),
    "get_filesize": lambda files, path: files.get_filesize(path),
    "exists": lambda files, path: files.exists(path),
    "isfile": lambda files, path: files.isfile(path),
    "isdir": lambda files, path: files.isdir(path),
    "ls": lambda files, path: files.ls(path),
    "cpr from": lambda files, path: files.cpr(path, "mine"),
    "cpr to": lambda files, path: files.cpr("directory", path, exist_ok=True),
    **{f"open {mode}": lambda files, path, mode=mode: files.open(path, mode).close() for mode in "rwxa"},
}
REMOVING: dict[str, Callable[[Folder, str], Any]] = {
    "rm": lambda files, path: files.rm(path),
    "rm recursive": lambda files, path: files.rm(path, recursive=True),
}


def read(files: Folder, path: str) -> str:
    with files.open(path) as file:
        return str(file.read())


class Place:
    """A workflow's files on a directory, and a secret beside the directory."""

    def __init__(self, directory: Path, tree: type[LocalTree] = LocalTree) -> None:
        self.outside = directory / "outside"
        (self.outside / "below").mkdir(parents=True)
        (self.outside / "secret").write_text("secret")
        (self.outside / "below" / "secret").write_text("secret")
        self.tree = tree(directory / "root")
        self.files = WorkflowFolder(lambda: self.tree, "words", "r1", Unfinished())
        self.root = directory / "root" / "words" / "shared"
        for path in ("file", "directory/file"):
            with self.files.open(path, "w") as file:
                file.write("mine")

    def is_untouched(self) -> bool:
        names = {path.relative_to(self.outside).as_posix() for path in self.outside.rglob("*")}
        texts = {path.read_text() for path in self.outside.rglob("*") if path.is_file()}
        return names == {"secret", "below", "below/secret"} and texts == {"secret"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- links -------------------------------------------------------------------------------------------------------


def links_of(place: Place) -> dict[str, str]:
    """Names of links, and where they lead."""
    return {
        "to_directory": str(place.outside),
        "to_file": str(place.outside / "secret"),
        "relative": "../../../outside",
        "up": "..",
        "root": "/",
        "into_proc": "/proc/self/root",
        "loop": "loop",
        "dangling": str(place.outside / "new"),
        "inside": "directory",
        "to_spills": "../r1",
        "chained": "to_directory",
    }


def test_no_operation_follows_a_link(place: Place) -> None:
    for name, goal in links_of(place).items():
        (place.root / name).symlink_to(goal)
    for name in links_of(place):
        for what, operate in OPERATIONS.items():
            for path in (name, f"{name}/secret", f"{name}/below/secret", f"{name}/new/deep"):
                with pytest.raises(PermissionError) as caught:
                    operate(place.files, path)
                    pytest.fail(f"{what} followed {path}")
                assert caught.value.filename == path, what
                assert "link" in str(caught.value)
        for what, operate in REMOVING.items():
            with pytest.raises(PermissionError):
                operate(place.files, f"{name}/secret")
                pytest.fail(f"{what} followed {name}")
    assert place.is_untouched()
    assert read(place.files, "directory/file") == "mine"


def test_links_are_shown_removed_and_moved_with_what_they_are_in(place: Place) -> None:
    (place.root / "directory" / "link").symlink_to(place.outside)
    assert [(one.name, one.kind) for one in place.files.entries("directory")] == [("file", "file"), ("link", "link")]
    with pytest.raises(PermissionError):
        place.files.cpr("directory", "copy")
    assert "link" not in place.files.ls("copy")
    place.files.mv("directory", "moved")
    assert place.files.ls("moved") == ["file", "link"]
    place.files.rm("moved/link")
    assert place.files.ls("moved") == ["file"]
    (place.root / "moved" / "link").symlink_to(place.outside)
    place.files.rm("moved", recursive=True)
    assert place.files.ls() == ["copy", "file"]
    assert place.is_untouched()


def test_what_is_above_the_top_may_be_links_and_the_top_may_not(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "root")
    files = workflow_files(LocalTree(tmp_path / "linked"), "words")
    assert read(files, "file") == "mine"
    (tmp_path / "root" / "other").mkdir()
    (tmp_path / "root" / "other" / "shared").symlink_to(place.outside)
    others = workflow_files(place.tree, "other")
    for operate in (others.ls, lambda: others.open("secret"), lambda: others.open("new", "w")):
        with pytest.raises(PermissionError):
            operate()
    assert place.is_untouched()


class SwappedTree(LocalTree):
    """After every look at it a directory is replaced by a link that leads out."""

    swap: Callable[[], None] = staticmethod(lambda: None)

    def stat(self, path: Parts) -> Stat:
        found = super().stat(path)
        self.swap()
        return found


@pytest.mark.parametrize("name", [*OPERATIONS, *REMOVING])
def test_a_link_made_between_check_and_use_is_not_followed(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path, SwappedTree)
    for path in ("d/secret", "d/below/secret"):
        (place.root / path).parent.mkdir(parents=True, exist_ok=True)
        (place.root / path).write_text("mine")

    def swap() -> None:
        if not (place.root / "d").is_symlink():
            (place.root / "d").rename(place.root / "away")
            (place.root / "d").symlink_to(place.outside)

    assert isinstance(place.tree, SwappedTree)
    place.tree.swap = swap  # type: ignore[method-assign]
    for path in ("d/secret", "d/below"):
        try:
            ({**OPERATIONS, **REMOVING})[name](place.files, path)
        except OSError as error:
            known = (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
            assert isinstance(error, known), error
    assert place.is_untouched()
    for mine in place.root.glob("mine*"):
        assert "secret" not in mine.read_text() if mine.is_file() else True


@pytest.mark.parametrize("swapped", ["link", "pipe"])
@pytest.mark.parametrize("mode", ["r", "a", "w", "x"])
def test_a_file_that_is_no_more_between_check_and_use_is_not_opened(tmp_path: Path, mode: str, swapped: str) -> None:
    place = Place(tmp_path, SwappedTree)
    path = place.root / "mine"

    def swap() -> None:
        path.unlink(missing_ok=True)
        if swapped == "link":
            path.symlink_to(place.outside / "secret")
        else:
            os.mkfifo(path)

    if mode != "x":
        path.write_text("mine")
    assert isinstance(place.tree, SwappedTree)
    if mode in "ra":
        place.tree.swap = swap  # type: ignore[method-assign]
        with pytest.raises(OSError, match="link" if swapped == "link" else "neither"):
            place.files.open("mine", mode).close()
    else:
        file = place.files.open("mine", mode)
        swap()
        if mode == "x":
            with pytest.raises(FileExistsError):
                file.close()
        else:
            # What it replaces is the link, or the pipe.
            file.close()
            assert path.read_text() == "" and not path.is_symlink()
    assert place.is_untouched()


def test_a_directory_that_is_swapped_for_a_link_all_the_time_leads_nobody_out(place: Place) -> None:
    (place.root / "d").mkdir()
    (place.root / "d" / "secret").write_text("mine")
    (place.root / "link").symlink_to(place.outside)
    is_over = threading.Event()

    def swap() -> None:
        names = (place.root / "d", place.root / "link", place.root / "kept")
        while not is_over.is_set():
            for source, target in ((0, 2), (1, 0), (0, 1), (2, 0)):
                while True:
                    with suppress(OSError):
                        names[source].rename(names[target])
                        break
                    # A writer made a directory where there was none for a moment.
                    shutil.rmtree(names[target], ignore_errors=True)

    swapping = threading.Thread(target=swap)
    swapping.start()
    outcomes: dict[str, int] = {}
    try:
        for number in range(600):
            try:
                outcome = read(place.files, "d/secret")
                with place.files.open(f"d/new{number % 5}", "w") as file:
                    file.write("written")
                place.files.rm(f"d/new{number % 5}")
            except OSError as error:
                outcome = type(error).__name__
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    finally:
        is_over.set()
        swapping.join()
    assert "secret" not in outcomes
    assert place.is_untouched()


# --- other things ------------------------------------------------------------------------------------------------


def test_what_is_neither_a_file_nor_a_directory_is_refused_and_not_waited_for(place: Place) -> None:
    os.mkfifo(place.root / "pipe")
    assert place.files.get_stat("pipe").kind == "other"
    for mode in "rwa":
        with pytest.raises(OSError, match="neither a file") as caught:
            place.files.open("pipe", mode).close()
            pytest.fail(mode)
        assert caught.value.errno == errno.EINVAL
    place.files.rm("pipe")


def test_names_that_are_no_text_are_listed_and_removed_with_their_directory(place: Place) -> None:
    (place.root / "d").mkdir()
    for name in (b"\xff", b"a\nb"):
        (Path(os.fsdecode(os.fsencode(place.root) + b"/d/" + name))).write_text("")
    assert place.files.ls("d") == ["a\nb", "\udcff"]
    with pytest.raises(OSError, match="control character"):
        place.files.open("d/\udcff")
    place.files.rm("d", recursive=True)
    assert "d" not in place.files.ls()


def test_a_disk_that_says_no_is_told_by_the_path_that_was_given(place: Place) -> None:
    files = workflow_files(place.tree, "words")
    (place.root.parent / "partial").write_text("in the way of what is not whole yet")
    with pytest.raises(NotADirectoryError) as caught:
        files.open("new", "w")
    assert caught.value.filename == "new"


# --- what a kill leaves ------------------------------------------------------------------------------------------


def test_a_killed_writer_leaves_nothing_that_is_seen_and_what_it_left_goes_with_the_request(place: Place) -> None:
    process = os.fork()
    if process == 0:
        file = place.files.open("file", "w")
        file.write("x" * 1_000_000)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert read(place.files, "file") == "mine"
    [left] = (place.root.parent / "r1" / "partial").iterdir()
    assert left.stat().st_size == 1_000_000


def test_what_was_left_long_ago_is_tidied_away(place: Place) -> None:
    files = workflow_files(place.tree, "words")
    files.tidy(time.time())
    for name in ("old", "new"):
        files.open(name, "w").close()
        (place.root.parent / "partial" / name).write_text("left")
    os.utime(place.root.parent / "partial" / "old", (1.0, 1.0))
    files.tidy(time.time() - 3600)
    assert [path.name for path in (place.root.parent / "partial").iterdir()] == ["new"]
