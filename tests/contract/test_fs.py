"""What files of workflows promise, held against each driver."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from fs_drivers import DRIVERS

from mr.fs.shared import Folder, WorkflowFolder, workflow_files
from mr.fs.tree import Tree
from mr.fs.writers import Unfinished


@pytest.fixture(params=list(DRIVERS))
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return DRIVERS[request.param](tmp_path)


def handlers_files(tree: Tree, workflow: str = "words", request_id: str = "r1") -> WorkflowFolder:
    return WorkflowFolder(lambda: tree, workflow, request_id, Unfinished())


@pytest.fixture
def files(tree: Tree) -> WorkflowFolder:
    return handlers_files(tree)


def put(files: Folder, path: str, text: str = "x") -> None:
    with files.open(path, "w") as file:
        file.write(text)


def read(files: Folder, path: str) -> str:
    with files.open(path) as file:
        return str(file.read())


def everything(files: Folder, path: str = ".") -> dict[str, str | None]:
    """All paths below one, with what is in files."""
    found: dict[str, str | None] = {}
    for name in files.ls(path):
        below = name if path == "." else f"{path}/{name}"
        if files.isdir(below):
            found[below] = None
            found |= everything(files, below)
        else:
            found[below] = read(files, below)
    return found


# --- reading and writing -----------------------------------------------------------------------------------------


def test_nothing_is_there_at_first(files: WorkflowFolder) -> None:
    assert files.ls() == files.ls(".") == files.ls("") == []
    assert files.exists(".") and files.isdir(".") and not files.isfile(".")
    assert files.get_stat(".").is_directory


def test_text_is_utf8_unless_said_otherwise(files: WorkflowFolder) -> None:
    put(files, "a", "hällo\n")
    with files.open("a", "rb") as file:
        assert file.read() == "hällo\n".encode()
    with files.open("b", "wt", encoding="latin-1", newline="\r\n") as file:
        file.write("ä\n")
    with files.open("b", "rb") as file:
        assert file.read() == b"\xe4\r\n"
    with files.open("b", encoding="ascii", errors="replace") as file:
        assert file.read() == "\ufffd\n"


def test_bytes_are_kept_as_they_are(files: WorkflowFolder) -> None:
    data = bytes(range(256)) * 2000
    with files.open("a", "wb") as file:
        for start in range(0, len(data), 777):
            file.write(data[start : start + 777])
    with files.open("a", "rb") as file:
        assert file.read(10) == data[:10]
        assert file.seek(-3, 2) == len(data) - 3
        assert file.read() == data[-3:]
        file.seek(0)
        assert file.read() == data
    assert files.get_filesize("a") == len(data)


def test_lines_are_read_one_by_one(files: WorkflowFolder) -> None:
    put(files, "a", "1\n2\n3")
    with files.open("a") as file:
        assert list(file) == ["1\n", "2\n", "3"]


def test_two_readers_have_a_place_each(files: WorkflowFolder) -> None:
    put(files, "a", "abcd")
    with files.open("a") as one, files.open("a") as other:
        assert (one.read(2), other.read(), one.read()) == ("ab", "abcd", "cd")


def test_directories_above_something_new_are_made(files: WorkflowFolder) -> None:
    put(files, "a/b/c")
    put(files, "s")
    files.cp("s", "d/e")
    files.mv("s", "f/g/h")
    files.cpr("d", "i/j")
    files.mkdir("k/l")
    assert [path for path, text in everything(files).items() if text is None] == [
        *("a", "a/b", "d", "f", "f/g", "i", "i/j", "k", "k/l")
    ]
    files.rm("a/b/c")
    assert files.isdir("a/b")


def test_a_file_is_seen_when_it_is_closed(files: WorkflowFolder) -> None:
    file = files.open("d/a", "w")
    file.write("new" * 100_000)
    file.flush()
    assert files.ls("d") == []
    file.close()
    assert read(files, "d/a") == "new" * 100_000
    file.close()


def test_whoever_reads_a_file_keeps_what_it_was(files: WorkflowFolder) -> None:
    put(files, "a", "old" * 10_000)
    with files.open("a", "w") as file, files.open("a") as reader:
        file.write("new")
        assert read(files, "a") == "old" * 10_000
        reader.read(1)
    assert read(files, "a") == "new"


def test_a_block_that_fails_leaves_what_was_there(files: WorkflowFolder) -> None:
    put(files, "a", "old")
    for mode in ("w", "wb"):
        for path in ("a", "b"):
            with pytest.raises(ZeroDivisionError), files.open(path, mode) as file:
                file.write("new" if mode == "w" else b"new")
                1 / 0  # noqa: B018
    assert everything(files) == {"a": "old"}


def test_a_file_that_is_to_be_new_is(files: WorkflowFolder) -> None:
    with files.open("a", "x") as file:
        file.write("1")
    with pytest.raises(FileExistsError):
        files.open("a", "x")
    late = files.open("b", "xb")
    late.write(b"late")
    put(files, "b", "first")
    with pytest.raises(FileExistsError) as caught:
        late.close()
    assert caught.value.filename == "b"
    assert everything(files) == {"a": "1", "b": "first"}


def test_what_is_added_comes_last(files: WorkflowFolder) -> None:
    for mode, text in (("a", "1\n"), ("a", "2\n"), ("at", "3\n")):
        with files.open("d/log", mode) as file:
            file.write(text)
    with files.open("d/log", "ab") as file:
        file.write(b"4\n")
    assert read(files, "d/log") == "1\n2\n3\n4\n"


def test_modes_are_those_of_open_but_one_at_a_time(files: WorkflowFolder) -> None:
    put(files, "a")
    for mode in ("r+", "w+b", "a+"):
        with pytest.raises(io.UnsupportedOperation):
            files.open("a", mode)
    for mode in ("", "b", "rw", "z", "rbt", "rr", "U"):
        with pytest.raises(ValueError, match="mode"):
            files.open("a", mode)
    with pytest.raises(ValueError, match="text"):
        files.open("a", "rb", encoding="utf-8")
    for mode in "rw":
        with pytest.raises(LookupError):
            files.open("a", mode, encoding="nope")
    assert everything(files) == {"a": "x"}


def test_what_is_open_at_the_end_is_closed_or_forgotten(tree: Tree) -> None:
    unfinished = Unfinished()
    files = WorkflowFolder(lambda: tree, "words", "r1", unfinished)
    kept = files.open("kept", "w")
    kept.write("kept")
    unfinished.close()
    assert kept.closed
    put(files, "old", "old")
    lost = [files.open("lost", "w"), files.open("old", "wb"), files.scratch.open("lost", "w")]
    unfinished.abandon()
    assert all(file.closed for file in lost)
    assert everything(files) == {"kept": "kept", "old": "old"}
    assert files.scratch.ls() == []


# --- looking -----------------------------------------------------------------------------------------------------


def test_names_are_listed_in_order(files: WorkflowFolder) -> None:
    for name in ("b", "a", "ä", "B", "c/d", "c/e/f"):
        put(files, name)
    assert files.ls() == ["B", "a", "b", "c", "ä"]
    assert files.ls("c") == ["d", "e"]
    with pytest.raises(NotADirectoryError):
        files.ls("a")
    with pytest.raises(FileNotFoundError):
        files.ls("nope")


def test_what_is_known_of_a_file(files: WorkflowFolder) -> None:
    put(files, "d/a", "12345")
    found = files.get_stat("d/a")
    assert (found.name, found.kind, found.size) == ("a", "file", 5)
    assert found.modified is not None and found.modified > 1_600_000_000
    assert (files.get_stat("d").kind, files.get_stat("d").size) == ("directory", 0)
    assert [(one.name, one.kind) for one in files.entries()] == [("d", "directory")]
    with pytest.raises(IsADirectoryError):
        files.get_filesize("d")
    for missing, kind in (("nope", FileNotFoundError), ("d/nope/x", FileNotFoundError), ("d/a/x", NotADirectoryError)):
        for look in (files.get_stat, files.get_filesize, files.open, files.rm, files.ls):
            with pytest.raises(kind) as caught:
                look(missing)  # type: ignore[operator]
            assert caught.value.filename == missing


def test_what_is_there(files: WorkflowFolder) -> None:
    put(files, "d/a")
    seen = {path: (files.exists(path), files.isfile(path), files.isdir(path)) for path in ("d", "d/a", "d/a/x", "e/f")}
    assert seen == {
        "d": (True, False, True),
        "d/a": (True, True, False),
        "d/a/x": (False, False, False),
        "e/f": (False, False, False),
    }


def test_a_path_may_be_written_in_more_than_one_way(files: WorkflowFolder) -> None:
    put(files, "./a//b/./c/")
    assert everything(files) == {"a": None, "a/b": None, "a/b/c": "x"}
    assert files.isfile(PurePosixPath("a/b/c"))  # type: ignore[arg-type]


# --- changing ----------------------------------------------------------------------------------------------------


def test_a_directory_is_made_once(files: WorkflowFolder) -> None:
    files.mkdir("a/b")
    for path in ("a/b", "a", "."):
        with pytest.raises(FileExistsError):
            files.mkdir(path)
        files.mkdir(path, exist_ok=True)
    put(files, "f")
    for exist_ok in (False, True):
        with pytest.raises(FileExistsError):
            files.mkdir("f", exist_ok=exist_ok)
    with pytest.raises(NotADirectoryError):
        files.mkdir("f/g")


def test_only_an_empty_directory_is_removed_as_such(files: WorkflowFolder) -> None:
    put(files, "a/f")
    with pytest.raises(OSError) as caught:
        files.rmdir("a")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOTEMPTY, "a")
    files.rm("a/f")
    files.rmdir("a")
    assert files.ls() == []
    with pytest.raises(FileNotFoundError):
        files.rmdir("a")
    put(files, "f")
    with pytest.raises(NotADirectoryError):
        files.rmdir("f")


def test_a_directory_is_removed_with_all_that_is_in_it_when_asked(files: WorkflowFolder) -> None:
    for path in ("a/b/c/f", "a/b/g", "a/h", "ab", "other/f"):
        put(files, path)
    files.mkdir("a/empty")
    with pytest.raises(IsADirectoryError):
        files.rm("a")
    files.rm("a", recursive=True)
    files.rm("ab", recursive=True)
    assert everything(files) == {"other": None, "other/f": "x"}
    with pytest.raises(FileNotFoundError):
        files.rm("a", recursive=True)


def test_names_are_no_patterns(files: WorkflowFolder) -> None:
    for path in ("ab", "a*", "a?", "[ab]", "d*/x", "dd/x", "a::b", "%2e%2e", "~", "{a,b}"):
        put(files, path, path)
    files.rm("a*")
    files.rm("d*", recursive=True)
    files.cp("a?", "[a]")
    files.mv("[ab]", "**")
    files.cpr("dd", "d?")
    assert everything(files) == {
        **{path: path for path in ("%2e%2e", "a::b", "a?", "ab", "dd/x", "{a,b}", "~")},
        **{"**": "[ab]", "[a]": "a?", "d?": None, "d?/x": "dd/x", "dd": None},
    }


def test_a_file_is_copied(files: WorkflowFolder) -> None:
    put(files, "a", "a" * 3_000_000)
    put(files, "b", "b")
    put(files, "d/f")
    files.cp("a", "b")
    assert read(files, "b") == "a" * 3_000_000
    for source, target in (("a", "d"), ("d", "a"), ("d", "new")):
        with pytest.raises(IsADirectoryError):
            files.cp(source, target)
    with pytest.raises(FileNotFoundError) as caught:
        files.cp("nope", "b")
    assert caught.value.filename == "nope"
    with pytest.raises(NotADirectoryError) as denied:
        files.cp("a", "b/c")
    assert denied.value.filename == "b/c"
    files.cp("a", "a")
    assert files.get_filesize("a") == 3_000_000


def test_a_directory_is_copied_with_all_that_is_in_it(files: WorkflowFolder) -> None:
    put(files, "a/f", "1")
    put(files, "a/b/g", "2")
    files.mkdir("a/empty")
    files.cpr("a", "c")
    assert everything(files, "c") == {"c/b": None, "c/b/g": "2", "c/empty": None, "c/f": "1"}
    with pytest.raises(FileExistsError):
        files.cpr("a", "c")
    put(files, "c/f", "other")
    put(files, "c/own", "own")
    files.cpr("a", "c", exist_ok=True)
    assert everything(files, "c") == {"c/b": None, "c/b/g": "2", "c/empty": None, "c/f": "1", "c/own": "own"}
    files.cpr("a/f", "file")
    assert read(files, "file") == "1"
    for target in ("a", "a/b", "a/new"):
        with pytest.raises(OSError) as caught:
            files.cpr("a", target, exist_ok=True)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(FileExistsError):
        files.cpr("a", "file", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        files.cpr("nope", "new")


def test_files_and_directories_are_moved(files: WorkflowFolder) -> None:
    put(files, "a", "1")
    put(files, "b", "2")
    put(files, "d/e/f", "3")
    files.mv("a", "b")
    files.mv("d", "g/h")
    assert everything(files) == {"b": "1", "g": None, "g/h": None, "g/h/e": None, "g/h/e/f": "3"}
    files.mv("b", "b")
    files.mv("g", "g")
    with pytest.raises(IsADirectoryError):
        files.mv("b", "g")
    for target in ("b", "g/h"):
        files.mkdir("empty", exist_ok=True)
        with pytest.raises(FileExistsError):
            files.mv("empty", target)
    with pytest.raises(FileNotFoundError):
        files.mv("nope", "x")
    with pytest.raises(OSError) as caught:
        files.mv("g", "g/h/i")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(NotADirectoryError):
        files.mv("g", "b/c")


def test_a_directory_is_never_written_over_nor_a_file_written_below(files: WorkflowFolder) -> None:
    files.mkdir("d")
    put(files, "f")
    for mode in "wxa":
        with pytest.raises(IsADirectoryError):
            files.open("d", mode)
        with pytest.raises(NotADirectoryError):
            files.open("f/g/h", mode)
    with pytest.raises(IsADirectoryError):
        files.open("d")
    assert everything(files) == {"d": None, "f": "x"}


def test_the_top_stays(files: WorkflowFolder) -> None:
    put(files, "a")
    refused: list[Callable[[], Any]] = [
        lambda: files.rm(".", recursive=True),
        lambda: files.rm("", recursive=True),
        lambda: files.rmdir("./"),
        lambda: files.mv(".", "x"),
    ]
    for act in refused:
        with pytest.raises(PermissionError):
            act()
    assert everything(files) == {"a": "x"}


def test_writers_side_by_side_do_not_mix(files: WorkflowFolder) -> None:
    texts = [str(number) * 50_000 for number in range(8)]

    def work(text: str) -> None:
        files.mkdir("d", exist_ok=True)
        put(files, "d/same", text)
        put(files, f"d/e/{text[0]}", text)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, texts))
    assert read(files, "d/same") in texts
    assert [read(files, f"d/e/{text[0]}") for text in texts] == texts


# --- confinement -------------------------------------------------------------------------------------------------

FORBIDDEN = [
    *(
        "..",
        "../",
        "../x",
        "../../etc/passwd",
        "a/..",
        "a/../b",
        "a/../../x",
        "./..",
        ".//../x",
        "a/./../../x",
        "a/b/..",
    ),
    *("../shared", "../../other/shared/secret", "../r2/scratch/secret", "../r1/spilled", "d/../../../other"),
    *("/", "//", "/etc/passwd", "/tmp", "/words/shared/secret", "///etc", "/..", "/./a", "//host/share"),
]
ODD = [
    *("\0", "a\0", "a\0/../b", "a\nb", "a\r", "\x1b[2J", "a\tb", "\x7f", "a\x85b", "\x9bm", "\udc80", "a/\ud800"),
    *("..\\", "..\\..\\etc", "a\\b", "C:\\Windows", "\\\\host\\share", "\x01../x"),
]
TOO_LONG = ["a" * 256, "ä" * 128, "d/" + "a" * 256, "a/" * 513, "x/" * 5000 + "y"]
HARMLESS = [
    *("%2e%2e/secret", "..%2f..%2fsecret", "\uff0e\uff0e/secret", "\u2025/secret"),
    *("...", "..a", "a..", ".../x", "~", "~root/x"),
    *("file:///etc/passwd", "memory://words/shared/x", "C:/Windows", "$HOME/x", "`id`", "-rf", "a;b", "a::b", "*"),
    *(".hidden", " ", "a ", "con", "名前", "a" * 255),
]

OPERATIONS: dict[str, Callable[[Folder, str], Any]] = {
    "mkdir": lambda files, path: files.mkdir(path),
    "mkdir exist_ok": lambda files, path: files.mkdir(path, exist_ok=True),
    "ls": lambda files, path: files.ls(path),
    "entries": lambda files, path: files.entries(path),
    "cp from": lambda files, path: files.cp(path, "mine"),
    "cp to": lambda files, path: files.cp("a/b", path),
    "cpr from": lambda files, path: files.cpr(path, "mine"),
    "cpr to": lambda files, path: files.cpr("a", path, exist_ok=True),
    "rm": lambda files, path: files.rm(path),
    "rm recursive": lambda files, path: files.rm(path, recursive=True),
    "rmdir": lambda files, path: files.rmdir(path),
    "mv from": lambda files, path: files.mv(path, "mine"),
    "mv to": lambda files, path: files.mv("a/b", path),
    "get_stat": lambda files, path: files.get_stat(path),
    "get_filesize": lambda files, path: files.get_filesize(path),
    "exists": lambda files, path: files.exists(path),
    "isfile": lambda files, path: files.isfile(path),
    "isdir": lambda files, path: files.isdir(path),
    **{f"open {mode}": lambda files, path, mode=mode: files.open(path, mode) for mode in ("r", "rb", "w", "x", "ab")},
}


@pytest.fixture
def guarded(tree: Tree, files: WorkflowFolder) -> WorkflowFolder:
    """A workflow's files, and beside them what is none of its handlers' business."""
    put(files, "a/b", "mine")
    put(files.scratch, "a/b", "mine")
    put(handlers_files(tree, "other"), "secret", "other")
    put(handlers_files(tree, "words", "r2").scratch, "secret", "other request")
    return files


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.ENAMETOOLONG])
def test_paths_that_lead_out_are_refused_by_every_operation(guarded: WorkflowFolder, tree: Tree, number: int) -> None:
    paths = {errno.EACCES: FORBIDDEN, errno.EINVAL: ODD, errno.ENAMETOOLONG: TOO_LONG}[number]
    for path in paths:
        for name, operate in OPERATIONS.items():
            for folder in (guarded, guarded.scratch):
                with pytest.raises(OSError) as caught:
                    operate(folder, path)
                    pytest.fail(f"{name} took {path!r}")
                assert caught.value.errno == number, (name, path)
                assert caught.value.filename == path
                assert isinstance(caught.value, PermissionError) == (number == errno.EACCES)
    assert everything(guarded) == everything(guarded.scratch) == {"a": None, "a/b": "mine"}
    assert everything(handlers_files(tree, "other")) == {"secret": "other"}
    assert everything(handlers_files(tree, "words", "r2").scratch) == {"secret": "other request"}
    assert sorted(one.name for one in tree.list(())) == ["other", "words"]


def test_paths_that_only_look_so_stay_inside(guarded: WorkflowFolder, tree: Tree) -> None:
    for path in HARMLESS:
        assert not guarded.exists(path), path
        put(guarded, path, path)
        assert read(guarded, path) == path
        guarded.rm(path)
    assert everything(handlers_files(tree, "other")) == {"secret": "other"}
    assert sorted(one.name for one in tree.list(())) == ["other", "words"]
    assert sorted(one.name for one in tree.list(("words",))) == ["r1", "r2", "shared"]


def test_a_path_is_text(guarded: WorkflowFolder) -> None:
    for path in (b"a", 1, None, ["a"]):
        for operate in OPERATIONS.values():
            with pytest.raises(TypeError):
                operate(guarded, path)  # type: ignore[arg-type]


def test_each_has_files_of_its_own(tree: Tree) -> None:
    places = [
        handlers_files(tree),
        handlers_files(tree).scratch,
        handlers_files(tree, request_id="r2").scratch,
        handlers_files(tree, "other"),
        handlers_files(tree, "other").scratch,
    ]
    for number, place in enumerate(places):
        put(place, "same", str(number))
    assert [everything(place) for place in places] == [{"same": str(number)} for number in range(5)]
    assert read(handlers_files(tree, request_id="r2"), "same") == read(workflow_files(tree, "words"), "same") == "0"
    assert {one.name for one in tree.list(("words", "r1"))} <= {"scratch", "partial"}


def test_a_url_without_a_driver_is_refused_with_those_that_there_are() -> None:
    from mr.errors import InvalidConfig
    from mr.fs.trees import open_tree

    for url in ("s3://bucket/x", "tahoe://node/uri", "memory://", "ftp://host/x", "", "/var/files"):
        with pytest.raises(InvalidConfig, match="file:///PATH"):
            open_tree(url)
