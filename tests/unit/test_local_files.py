"""Files of this machine as the shared filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from mr.errors import FilesUnavailable
from mr.fs.local import LocalFiles


def lines(files: LocalFiles, name: str) -> list[bytes] | None:
    found = files.lines(name)
    return None if found is None else list(found)


def test_a_file_appears_whole_when_it_is_settled(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path / "root")
    writer = files.create("w/r/one")
    writer.append(b"[1]")
    writer.append(b"[2]")
    assert lines(files, "w/r/one") is None
    writer.settle()
    assert lines(files, "w/r/one") == [b"[1]", b"[2]"]


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    writer = files.create("w/r/one")
    writer.append(b"[1]")
    writer.discard()
    writer.discard()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_discarding_a_settled_file_does_nothing(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    writer = files.create("one")
    writer.append(b"[1]")
    writer.settle()
    writer.discard()
    assert lines(files, "one") == [b"[1]"]


def test_two_attempts_at_one_name_do_not_mix(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    one, other = files.create("x"), files.create("x")
    one.append(b"[1]")
    other.append(b"[2]")
    other.settle()
    one.settle()
    assert lines(files, "x") == [b"[1]"]


def test_a_tree_is_removed_as_often_as_one_likes(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    for name in ("w/r/a", "w/r/b", "w/s/a"):
        files.create(name).settle()
    files.remove_tree("w/r")
    files.remove_tree("w/r")
    assert lines(files, "w/r/a") is None
    assert lines(files, "w/s/a") == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FilesUnavailable, match="file/x"):
        LocalFiles(tmp_path / "file").create("x")
