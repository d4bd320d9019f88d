"""``jobx fs`` and ``mr_get_request_sessions``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_runs import Commands
from click.testing import Result

from mr.cli import sessions, submitting
from mr.cli.main import main
from mr.fs.local_tree import LocalTree
from mr.fs.shared import workflow_files
from mr.kv.base import Put, Txn
from mr.model import keys


class Files:
    """A workflow and a directory that commands run in."""

    def __init__(self, directory: Path) -> None:
        self.here = directory / "here"
        self.here.mkdir()
        self.commands = Commands(directory)
        assert self.commands.jobx("apply", str(self.commands.words())).exit_code == 0
        self.root = directory / "data" / "files" / "words"
        self.files = workflow_files(LocalTree(directory / "data" / "files"), "words")

    def fs(self, *arguments: str, stdin: str = "") -> Result:
        return self.commands.run(main, "fs", *arguments, stdin=stdin)

    def said(self, *arguments: str, stdin: str = "") -> str:
        """What a command that is refused says."""
        done = self.fs(*arguments, stdin=stdin)
        assert (done.exit_code, done.stdout) == (1, ""), done.output
        assert done.stderr.count("\n") == 1
        return done.stderr

    def text(self, path: str) -> str:
        with self.files.open(path) as file:
            return str(file.read())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    files = Files(tmp_path)
    monkeypatch.chdir(files.here)
    return files


def test_a_file_goes_in_and_out(files: Files) -> None:
    Path("a.txt").write_text("hällo")
    done = files.fs("put", "words", "a.txt")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "Put 1 file, 6 bytes.\n")
    assert files.text("a.txt") == "hällo"
    assert files.fs("put", "words", "a.txt", "d/e/b").exit_code == 0
    assert files.fs("put", "words", "a.txt", "d").exit_code == 0
    assert files.fs("put", "words", "a.txt", "new/").exit_code == 0
    assert files.files.ls("d") == ["a.txt", "e"] and files.files.ls("new") == ["a.txt"]
    assert files.fs("get", "words", "d/e/b").stderr == "Got 1 file, 6 bytes.\n"
    assert Path("b").read_text() == "hällo"
    Path("into").mkdir()
    for target, path in (("into", "into/b"), ("c", "c"), (str(files.here / "c"), "c")):
        assert files.fs("get", "words", "d/e/b", target).exit_code == 0
        assert Path(path).read_text() == "hällo"
    assert sorted(os.listdir()) == ["a.txt", "b", "c", "into"]


def test_standard_input_and_output_are_dashes(files: Files) -> None:
    assert files.fs("put", "words", "-", "d/a", stdin="one\ntwo\n").exit_code == 0
    done = files.fs("get", "words", "d/a", "-")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "one\ntwo\n", "")
    for arguments in (("-",), ("-", "d/"), ("-", "d", "-r")):
        assert files.fs("put", "words", *arguments).exit_code == 2
    assert "is a directory" in files.said("get", "words", "d", "-", "-r")
    Path("-").write_text("a file of that name")
    assert files.fs("put", "words", "./-").exit_code == 0
    assert files.text("-") == "a file of that name"


def test_directories_go_in_and_out_when_asked(files: Files) -> None:
    for name, text in (("tree/a", "1"), ("tree/b/c", "2"), ("tree/b/.hidden", "3")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("tree/empty").mkdir()
    Path("tree/link").symlink_to("a")
    Path("tree/away").symlink_to("/")
    os.mkfifo("tree/pipe")
    assert "--recursive" in files.said("put", "words", "tree")
    done = files.fs("put", "words", "tree", "-r")
    assert done.stderr.splitlines() == [
        "Skipped: tree/away is neither a file nor a directory of its own.",
        "Skipped: tree/pipe is neither a file nor a directory of its own.",
        "Put 4 files, 4 bytes.",
    ]
    listed = files.fs("ls", "words", "-r").stdout.splitlines()
    names = ["tree", "tree/a", "tree/b", "tree/b/.hidden", "tree/b/c", "tree/empty", "tree/link"]
    assert [line.split("\t")[0] for line in listed] == names
    assert files.fs("put", "words", "tree", "tree", "-r").exit_code == 0
    assert files.files.ls("tree/tree") == ["a", "b", "empty", "link"]
    files.files.rm("tree/tree", recursive=True)
    assert "--recursive" in files.said("get", "words", "tree", "copy")
    assert files.fs("get", "words", "tree", "copy", "-r").stderr == "Got 4 files, 4 bytes.\n"
    found = {path.relative_to("copy").as_posix() for path in Path("copy").rglob("*")}
    assert found == {"a", "b", "b/.hidden", "b/c", "empty", "link"}
    assert files.fs("get", "words", ".", "all", "-r").exit_code == 0
    assert Path("all/tree/b/c").read_text() == "2"


def test_what_is_there_is_listed(files: Files) -> None:
    assert files.fs("ls", "words").stdout == ""
    files.fs("put", "words", "-", "d/a", stdin="12345")
    os.symlink("/", files.root / "shared" / "d" / "link")
    (files.root / "shared" / os.fsdecode(b"\xff\n")).write_text("")
    rows = [line.split("\t") for line in files.fs("ls", "words", "d").stdout.splitlines()]
    assert [row[:3] for row in rows] == [["a", "file", "5"], ["link", "link", ""]]
    shown = json.loads(files.fs("ls", "words", "-r", "--json").stdout)
    assert [(one["name"], one["kind"], one["size"]) for one in shown] == [
        ("d", "directory", 0),
        ("d/a", "file", 5),
        ("d/link", "link", 0),
        ("\\udcff\n", "file", 0),
    ]
    assert all(one["modified"] > 1_600_000_000 for one in shown)
    [one] = json.loads(files.fs("ls", "words", "d/a", "--json").stdout)
    assert (one["name"], one["kind"]) == ("a", "file")


def test_files_are_removed_all_or_none_of_them(files: Files) -> None:
    for path in ("a", "b", "d/c", "d/e/f"):
        files.fs("put", "words", "-", path)
    assert "nope" in files.said("rm", "words", "a", "nope")
    assert "--recursive" in files.said("rm", "words", "a", "d")
    assert files.files.ls() == ["a", "b", "d"]
    assert files.fs("rm", "words", "a", "nope", "-f").exit_code == 0
    assert files.files.ls() == ["b", "d"]
    assert files.fs("rm", "words", "d", "d/c", "b", "-r").exit_code == 0
    assert files.files.ls() == []
    assert "top of these files" in files.said("rm", "words", ".", "-r")
    files.fs("put", "words", "-", "d/c")
    os.symlink("/", files.root / "shared" / "d" / "link")
    assert files.fs("rm", "words", "d/link").exit_code == 0
    assert files.files.ls("d") == ["c"]


def test_what_leads_out_is_refused(files: Files) -> None:
    Path("a").write_text("a")
    os.makedirs(files.root / "shared")
    os.symlink("/etc", files.root / "shared" / "link")
    for path in ("../x", "/etc/passwd", "a/../../x", "link/passwd", "a\nb"):
        for arguments in (
            ("ls", "words", path),
            ("put", "words", "a", path),
            ("put", "words", "-", path),
            ("get", "words", path, "here"),
            ("get", "words", path, "-"),
            ("rm", "words", path),
            ("rm", "words", path, "-rf"),
        ):
            said = files.said(*arguments)
            assert "Looked in the files of words, below file://" in said, arguments
    assert not Path("here").exists()
    assert sorted(path.name for path in files.root.parent.iterdir()) == ["words"]


def test_a_put_that_cannot_be_whole_puts_nothing(files: Files) -> None:
    for name in ("tree/a", "tree/z\\z"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    assert "backslash" in files.said("put", "words", "tree", "-r")
    assert files.files.ls() == []
    assert "nothere on this machine: No such file" in files.said("put", "words", "nothere")


def test_a_get_that_fails_leaves_what_was_there(files: Files) -> None:
    files.fs("put", "words", "-", "a", stdin="new")
    Path("linked").write_text("old")
    Path("link").symlink_to("linked")
    assert files.fs("get", "words", "a", "link").exit_code == 0
    assert Path("link").is_symlink() and Path("linked").read_text() == "new"
    assert files.fs("get", "words", "a", "/dev/null").exit_code == 0
    assert not Path("/dev/null").is_file()
    assert "on this machine" in files.said("get", "words", "a", "no/such/place")
    assert "on this machine" in files.said("get", "words", "a", "linked/x")
    assert sorted(os.listdir()) == ["link", "linked"]


def test_a_workflow_has_to_be_there_unless_its_files_are(files: Files) -> None:
    for arguments in (("ls", "wrds"), ("put", "wrds", "-", "a"), ("get", "wrds", "a"), ("rm", "wrds", "a")):
        said = files.said(*arguments)
        assert "There are: words" in said or "Did you mean" in said
        assert "Looked in the store" in said
    assert "characters other than" in files.said("ls", "../words")
    assert not files.root.exists()
    (files.root.parent / "deleted" / "shared").mkdir(parents=True)
    (files.root.parent / "deleted" / "shared" / "left").write_text("")
    assert files.fs("rm", "deleted", "left").exit_code == 0


def test_a_filesystem_without_a_driver_is_refused(files: Files) -> None:
    done = files.commands.run(main, "fs", "ls", "words", MR_FS_URL="s3://bucket/x")
    assert done.exit_code == 1
    assert "MR_FS_URL" in done.stderr and "file:///PATH" in done.stderr


def test_scratch_files_are_those_of_a_request(files: Files) -> None:
    assert "has none" in files.said("ls", "words", "--scratch", "last")
    made = files.commands.printed(submitting.create, "words", "wordcount", "-a", "text", "x")["primary_key"]
    assert files.fs("put", "words", "-", "a", "--scratch", "last", stdin="x").exit_code == 0
    assert (files.root / made / "scratch" / "a").read_text() == "x"
    assert files.fs("ls", "words", "--scratch", made).stdout.startswith("a\tfile\t1\t")
    assert files.files.ls() == []


def test_what_a_killed_put_left_is_removed_a_day_later(files: Files) -> None:
    left = files.root / "partial" / "left"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    files.fs("put", "words", "-", "a")
    assert left.exists()
    os.utime(left, (1.0, 1.0))
    files.fs("put", "words", "-", "a")
    assert not left.exists()


# --- sessions ----------------------------------------------------------------------------------------------------


def test_sessions_are_shown_by_invocation(files: Files) -> None:
    commands = files.commands
    assert "has none" in commands.said(sessions.sessions, "words", "last")
    made = commands.printed(submitting.create, "words", "wordcount", "-a", "text", "x")["primary_key"]
    done = commands.run(sessions.sessions, "words", "last")
    assert (done.exit_code, done.stdout) == (0, "")
    assert made in done.stderr
    values = {f"{made}.0": {"seen": ["ä", 1], "long": "x" * 1000}, f"{made}.0.abcdefgh-1": {"a\tb": None}}
    puts = tuple(
        Put(keys.session("words", made, name), json.dumps({"values": value}).encode()) for name, value in values.items()
    )
    store = commands.store()
    store.commit([Txn(puts=puts)])
    store.close()
    shown = commands.printed(sessions.sessions, "words", made, "--json")
    assert {one["invocation_id"]: one["values"] for one in shown} == values
    assert [one["step_name"] for one in shown] == ["count", None]
    rows = [line.split("\t") for line in commands.run(sessions.sessions, "words", made).stdout.splitlines()]
    assert rows[0][:3] == [f"{made}.0", "count", "long"]
    assert rows[0][3].endswith("… (1,002 characters)")
    assert rows[1:] == [[f"{made}.0", "count", "seen", '["ä",1]'], [f"{made}.0.abcdefgh-1", "", "a b", "null"]]
    assert "mistyped" in commands.said(sessions.sessions, "words", "nope")
