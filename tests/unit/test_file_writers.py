"""Files that are seen whole or not at all: when they are published, and when never."""

from __future__ import annotations

import errno
import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest

from mr.fs.tree import Draft
from mr.fs.writers import BinaryWriter, TextWriter, Unfinished, WholeFile


class _Noted(Draft):
    def __init__(self, path: str, problem: OSError | None = None) -> None:
        self.fd = os.open(path, os.O_WRONLY)
        self.ends: list[str] = []
        self._problem = problem

    def publish(self) -> None:
        self.ends.append("published")
        if self._problem is not None:
            raise self._problem

    def discard(self) -> None:
        self.ends.append("discarded")


def opened(draft: Draft, unfinished: Unfinished | None = None) -> TextWriter:
    return TextWriter(BinaryWriter(WholeFile(draft, "its name", "w"), unfinished or Unfinished()), "utf-8")


@pytest.fixture
def draft(tmp_path: Path) -> _Noted:
    (tmp_path / "draft").touch()
    return _Noted(str(tmp_path / "draft"))


def test_closing_publishes_once(draft: _Noted) -> None:
    with opened(draft) as file:
        file.write("x")
    file.close()
    file.abandon()
    assert draft.ends == ["published"]
    with suppress(OSError):
        os.fstat(draft.fd)
        pytest.fail("the descriptor is open")


def test_a_file_that_nobody_has_any_more_is_published(draft: _Noted) -> None:
    opened(draft).write("x")
    gc.collect()
    assert draft.ends == ["published"]


@pytest.mark.parametrize("is_text", [True, False])
def test_what_cannot_be_published_when_nobody_has_it_any_more_is_told_at_the_end(is_text: bool) -> None:
    unfinished = Unfinished()
    draft = _Noted("/dev/full")
    if is_text:
        opened(draft, unfinished).write("x")
    else:
        BinaryWriter(WholeFile(draft, "its name", "w"), unfinished).write(b"x")
    gc.collect()
    assert draft.ends == ["discarded"]
    with pytest.raises(OSError) as caught:
        unfinished.close()
    assert caught.value.errno == errno.ENOSPC
    unfinished.close()


def test_what_was_abandoned_is_written_to_in_vain(draft: _Noted) -> None:
    file = opened(draft)
    file.write("x")
    file.abandon()
    file.abandon()
    assert (draft.ends, file.closed) == (["discarded"], True)


def test_a_file_that_could_not_be_written_is_not_published_though_its_writer_goes_on() -> None:
    draft = _Noted("/dev/full")
    file = opened(draft)
    with pytest.raises(OSError):
        file.write("x" * 1_000_000)
        file.flush()
    with pytest.raises(OSError) as caught:
        file.close()
    assert caught.value.errno == errno.ENOSPC
    assert draft.ends == ["discarded"]


def test_what_cannot_be_published_is_discarded_and_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "draft").touch()
    draft = _Noted(str(tmp_path / "draft"), OSError(errno.ENOSPC, "No space", "some inner name"))
    with pytest.raises(OSError) as caught, opened(draft) as file:
        file.write("x")
    assert caught.value.filename == "its name"
    assert draft.ends == ["published", "discarded"]


def test_a_forked_child_neither_writes_nor_publishes_anything_of_its_parents(draft: _Noted, tmp_path: Path) -> None:
    file = opened(draft)
    file.write("buffered")
    process = os.fork()
    if process == 0:
        with suppress(OSError):
            file.close()
            os._exit(1)
        os._exit(len(draft.ends))
    assert os.waitpid(process, 0)[1] == 0
    file.close()
    assert draft.ends == ["published"]
    assert (tmp_path / "draft").read_text() == "buffered"


def test_one_that_cannot_be_closed_at_the_end_takes_the_others_with_it(tmp_path: Path) -> None:
    (tmp_path / "draft").touch()
    drafts = [_Noted(str(tmp_path / "draft"), OSError(errno.EIO, "No")) for _ in range(3)]
    unfinished = Unfinished()
    files = [opened(draft) for draft in drafts]
    for file in files:
        unfinished.add(file)
    with pytest.raises(OSError):
        unfinished.close()
    assert sorted(draft.ends for draft in drafts) == [["discarded"], ["discarded"], ["published", "discarded"]]
    unfinished.close()
