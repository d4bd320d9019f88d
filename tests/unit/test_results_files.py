"""Results as files: what appears, what never does, and what is left behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from results_stored import JOB, WORKFLOW, Stored

from mr.errors import DeliveryFailed, InvalidInput
from mr.fs.local import LocalFiles
from mr.results import drafts
from mr.results.writing import check

PAIRS = [("be", 2), ("not", 1), ("or", 1), ("to", 2)]
STAGING = f"{WORKFLOW}/{drafts.STAGING}/"


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return Stored(tmp_path)


# --- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "extension", "text"),
    [
        ("text", "txt", "be 2\nnot 1\nor 1\nto 2\n"),
        ("jsonl", "jsonl", '["be",2]\n["not",1]\n["or",1]\n["to",2]\n'),
        ("csv", "csv", "key,value\r\nbe,2\r\nnot,1\r\nor,1\r\nto,2\r\n"),
    ],
)
def test_a_result_is_a_file_of_its_workflow_in_the_platforms_format(
    stored: Stored, form: str, extension: str, text: str
) -> None:
    stored.settings["MR_RESULT_FILE_WRITER_FORMAT"] = form
    request_id = stored.request(PAIRS)
    stored.write(request_id, "file")
    assert stored.tree() == {f"{WORKFLOW}/{request_id}.{extension}": text, STAGING: ""}


def test_no_pairs_are_an_empty_file(stored: Stored) -> None:
    request_id = stored.request([])
    stored.write(request_id, "file")
    assert stored.tree()[f"{WORKFLOW}/{request_id}.txt"] == ""


def test_partitions_and_spilled_outputs_are_merged_by_key(stored: Stored) -> None:
    numbers = [(n, n) for n in range(1000)]
    stored.write(stored.request(numbers[::2], numbers[1::2], spilled=True), "file:x.jsonl")
    assert [json.loads(line)[0] for line in stored.tree()[f"{WORKFLOW}/x.jsonl"].splitlines()] == list(range(1000))


@pytest.mark.parametrize(
    ("target", "name", "begins"),
    [
        ("file:report.csv", "report.csv", "key,value\r\n"),
        ("file:report.csv?format=text", "report.csv", "be 2\n"),
        ("file:a/b/report.ndjson", "a/b/report.ndjson", '["be",2]\n'),
        ("file:{job}/{workflow}/{request_id}", f"{JOB}/{WORKFLOW}/ID", "be 2\n"),
        ("file:résumé (1)", "résumé (1)", "be 2\n"),
    ],
)
def test_a_path_of_ones_own_is_below_the_workflows_directory(
    stored: Stored, target: str, name: str, begins: str
) -> None:
    request_id = stored.request(PAIRS)
    stored.write(request_id, target)
    assert stored.tree()[f"{WORKFLOW}/{name.replace('ID', request_id)}"].startswith(begins)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("file:{date}/x", "there is no {date}"),
        ("file:.writing/x", "begins with a dot"),
        ("file:a/.hidden", "begins with a dot"),
        ("file:{job}{job}{job}", "longer than 255 bytes"),
        ("file:" + 200 * "ä", "longer than 255 bytes"),
    ],
)
def test_a_path_that_can_be_none_is_refused_at_the_post_and_when_it_is_written(
    stored: Stored, target: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        check(stored.config, target)
    assert refused.value.parameter == "writer"
    if "{job}" not in target:
        with pytest.raises(DeliveryFailed, match=reason):
            stored.write(stored.request(PAIRS), target)
    assert stored.tree() == {}


def test_a_file_is_replaced_by_the_next_result_and_has_the_umasks_permissions(stored: Stored) -> None:
    before = os.umask(0o027)
    try:
        stored.write(stored.request([("a", 1)]), "file:latest.txt")
        stored.write(stored.request([("b", 2)]), "file:latest.txt")
        stored.write(stored.request([("c", 3)]), "file:all?directory=1")
    finally:
        os.umask(before)
    root = stored.output / WORKFLOW
    assert (root / "latest.txt").read_text() == "b 2\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in root.rglob("*") if path.name != drafts.STAGING}
    assert modes.pop("all") == 0o750
    assert set(modes.values()) == {0o640}


def test_a_result_that_is_gone_is_a_final_failure(stored: Stored) -> None:
    for request_id in (stored.request(PAIRS, state="expiring"), "0" * 18):
        with pytest.raises(DeliveryFailed, match="no result any more") as failed:
            stored.write(request_id, "file")
        assert failed.value.is_final


def test_a_result_that_cannot_be_read_leaves_nothing_and_is_tried_again(stored: Stored) -> None:
    request_id = stored.request([("a", 1)], [("b", 2)], spilled=True)
    (stored.directory / "files" / WORKFLOW / request_id / "1").unlink()
    for target in ("file", "file:x?directory=1"):
        with pytest.raises(DeliveryFailed, match="is not there") as failed:
            stored.write(request_id, target)
        assert not failed.value.is_final
    assert stored.tree() == {STAGING: ""}


# --- a directory ----------------------------------------------------------------------------------------------------


def read_directory(path: Path) -> list[tuple[Any, str]]:
    """Its keys, with what is in the file of each, by the index."""
    index = [json.loads(line) for line in (path / "_index.jsonl").read_text().splitlines()]
    others = {child.name for child in path.iterdir()} - {"_index.jsonl", drafts.MARKER}
    assert others == {line["file"] for line in index} and len(others) == len(index)
    return [(line["key"], (path / line["file"]).read_bytes().decode()) for line in index]


def test_a_directory_has_a_file_a_key_and_an_index(stored: Stored) -> None:
    stored.settings["MR_RESULT_FILE_WRITER_WRITE_AS_DIRECTORY"] = "1"
    request_id = stored.request([("to", 2), ("../be", "a\nb"), (["x", 1], None), ("to", {"again": 3}), (1, 1), ("", 0)])
    stored.write(request_id, "file")
    path = stored.output / WORKFLOW / request_id
    assert read_directory(path) == [
        ("to", '2\n{"again":3}\n'),
        ("../be", "a\\nb\n"),
        (["x", 1], "null\n"),
        (1, "1\n"),
        ("", "0\n"),
    ]
    assert {"to.txt", "=1.txt"} <= {child.name for child in path.iterdir()}
    assert {name.split("/")[0] for name in stored.tree()} == {WORKFLOW}


@pytest.mark.parametrize(("form", "text"), [("jsonl", '"a,b"\n2\n'), ("csv", 'value\r\n"a,b"\r\n2\r\n')])
def test_a_file_of_a_directory_has_the_values_in_the_format(stored: Stored, form: str, text: str) -> None:
    stored.write(stored.request([("k", "a,b"), ("k", 2)]), f"file:d?directory=1&format={form}")
    assert read_directory(stored.output / WORKFLOW / "d") == [("k", text)]


def test_a_directory_without_keys_is_there_all_the_same(stored: Stored) -> None:
    stored.write(stored.request([]), "file:d?directory=1")
    assert read_directory(stored.output / WORKFLOW / "d") == []


def test_the_same_delivery_leaves_a_directory_as_it_is_and_another_replaces_it(stored: Stored) -> None:
    path = stored.output / WORKFLOW / "d"
    first, second = stored.request([("a", 1), ("b", 1)]), stored.request([("b", 2)])
    stored.write(first, "file:d?directory=1")
    inode = path.stat().st_ino
    stored.write(first, "file:d?directory=1")
    assert path.stat().st_ino == inode
    (path / "somebodys").mkdir()
    (path / "somebodys" / "file").write_text("")
    stored.write(second, "file:d?directory=1")
    assert read_directory(path) == [("b", "2\n")]
    assert STAGING in stored.tree()


def test_of_two_who_write_for_the_same_delivery_at_once_the_first_counts(stored: Stored) -> None:
    request_id = stored.request([("a", 1)], spilled=True)
    path = stored.output / WORKFLOW / "d"
    inodes = []

    class Overtaken(LocalFiles):
        def lines(self, name: str) -> Iterator[bytes] | None:
            if not path.exists():
                stored.files = LocalFiles(stored.directory / "files")
                stored.write(request_id, "file:d?directory=1")
                inodes.append(path.stat().st_ino)
            return super().lines(name)

    stored.files = Overtaken(stored.directory / "files")
    stored.write(request_id, "file:d?directory=1")
    assert [path.stat().st_ino] == inodes
    assert read_directory(path) == [("a", "1\n")]
    assert STAGING in stored.tree()


def test_many_who_write_one_directory_at_once_leave_one_that_is_whole(stored: Stored) -> None:
    requests = [stored.request([(f"k{n}", value) for n in range(30)]) for value in range(4)]
    problems: list[BaseException] = []

    def write(request_id: str) -> None:
        try:
            for attempt in range(5):
                stored.write(request_id, "file:d?directory=1", f"{request_id}_{attempt}")
                stored.write(request_id, "file:f.txt")
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(request_id,)) for request_id in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len({text for _, text in read_directory(stored.output / WORKFLOW / "d")}) == 1
    assert len({line.split()[1] for line in stored.tree()[f"{WORKFLOW}/f.txt"].splitlines()}) == 1
    assert STAGING in stored.tree()


# --- what is not to be touched --------------------------------------------------------------------------------------


def test_what_others_have_put_there_is_not_replaced(stored: Stored) -> None:
    root = stored.output / WORKFLOW
    (root / "reports").mkdir(parents=True)
    (root / "reports" / "mine").write_text("precious")
    (root / "file").write_text("precious")
    before = stored.tree()
    request_id = stored.request(PAIRS)
    for target in ("file:reports", "file:reports?directory=1", "file:file?directory=1"):
        with pytest.raises(DeliveryFailed) as failed:
            stored.write(request_id, target)
        assert failed.value.is_final
    with pytest.raises(DeliveryFailed, match="is a link or a file"):
        stored.write(request_id, "file:file/x")
    assert stored.tree() == {**before, STAGING: ""}


def test_nothing_is_written_into_another_result(stored: Stored) -> None:
    stored.write(stored.request(PAIRS), "file:d?directory=1")
    with pytest.raises(DeliveryFailed, match="is a result itself"):
        stored.write(stored.request(PAIRS), "file:d/x.txt")


def test_links_lead_nowhere(stored: Stored, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    (stored.output / WORKFLOW).mkdir(parents=True)
    for name, to in (("away", outside), ("dangling", tmp_path / "nowhere")):
        (stored.output / WORKFLOW / name).symlink_to(to)
    (stored.output / WORKFLOW / "one.txt").symlink_to(outside / "file")
    request_id = stored.request(PAIRS)
    for target in ("file:away/x.txt", "file:dangling/x.txt", "file:away?directory=1", "file:dangling?directory=1"):
        with pytest.raises(DeliveryFailed):
            stored.write(request_id, target)
    stored.write(request_id, "file:one.txt")
    assert not (stored.output / WORKFLOW / "one.txt").is_symlink()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "theirs"}
    assert not (tmp_path / "nowhere").exists()


def test_a_linked_workflow_is_refused_and_a_linked_output_path_is_not(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    (tmp_path / "disk").mkdir()
    stored.output.symlink_to(tmp_path / "disk")
    stored.write(stored.request(PAIRS), "file:x")
    assert (tmp_path / "disk" / WORKFLOW / "x").exists()
    (tmp_path / "disk" / WORKFLOW).rename(tmp_path / "moved")
    (tmp_path / "disk" / WORKFLOW).symlink_to(tmp_path / "moved")
    with pytest.raises(DeliveryFailed, match="is a link or a file"):
        stored.write(stored.request(PAIRS), "file:y")


# --- disks that are full, and writers that are killed ---------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full: what goes beyond cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("target", ["file:x.txt", "file:x.txt?directory=1"])
def test_what_has_no_room_on_the_disk_leaves_what_was_there_and_is_tried_again(stored: Stored, target: str) -> None:
    stored.write(stored.request([("a", 1)]), target)
    before = stored.tree()
    request_id = stored.request([("a", "long" * 2000)])
    with files_of_at_most(4096), pytest.raises(DeliveryFailed, match="cannot be written") as failed:
        stored.write(request_id, target)
    assert not failed.value.is_final
    assert stored.tree() == before
    stored.write(request_id, target)
    assert stored.tree() != before


def test_an_output_path_that_cannot_be_made_is_tried_again(stored: Stored) -> None:
    stored.output.write_text("")
    with pytest.raises(DeliveryFailed, match="cannot be written") as failed:
        stored.write(stored.request(PAIRS), "file")
    assert not failed.value.is_final


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from results_stored import Stored
from mr.fs.local import LocalFiles

class Endless(LocalFiles):
    def lines(self, name):
        for number in range(10):
            yield b'[["%d","x"]]' % number
        print("begun", flush=True)
        while True:
            os.read(0, 1)

stored = Stored(Path(sys.argv[2]))
stored.files = LocalFiles(stored.directory / "files")
request = stored.request([("a", 1)], spilled=True)
stored.files = Endless(stored.directory / "files")
stored.write(request, sys.argv[3])
"""


@pytest.mark.parametrize("target", ["file:x", "file:x?directory=1"])
def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_a_living_one_writes_is_not(
    stored: Stored, target: str
) -> None:
    begin = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(stored.directory), target]
    with subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        try:
            assert writer.stdout.readline() == b"begun\n"
            stored.write(stored.request([("other", 1)]), "file:other.txt")
            staging = stored.output / WORKFLOW / drafts.STAGING
            assert len(list(staging.iterdir())) == 2, "what is written by a living writer, and its lock"
        finally:
            writer.kill()
    assert not (stored.output / WORKFLOW / "x").exists()
    stored.write(stored.request([("other", 2)]), "file:other.txt")
    assert stored.tree() == {f"{WORKFLOW}/other.txt": "other 2\n", STAGING: ""}


def test_a_hundred_thousand_pairs_take_no_more_memory_than_a_thousand(stored: Stored) -> None:
    def peak(pairs: int) -> int:
        request_id = stored.request([(f"key{n}", "x" * 20) for n in range(pairs)], spilled=True)
        tracemalloc.start()
        try:
            stored.write(request_id, "file:big.txt")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(100_000) < peak(1000) + 200_000
    with (stored.output / WORKFLOW / "big.txt").open() as file:
        assert sum(1 for _ in file) in (1000, 100_000)
