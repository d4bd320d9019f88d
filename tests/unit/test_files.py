"""A directory of handlers and a jobs.yaml."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mr.errors import InvalidHandler, InvalidInput
from mr.handlers.files import read_directory

SPLIT = (
    "def mapper(arguments):\n    yield MrConfigureToReturn()\n    for key, text in arguments:\n        yield key, 1\n"
)
ADD = "def reducer(results):\n    for word, counts in results:\n        yield word, sum(counts)\n"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def problems(root: Path) -> list[str]:
    with pytest.raises(InvalidHandler) as caught:
        read_directory(root)
    return caught.value.problems


def test_a_directory_is_a_workflow(tmp_path: Path) -> None:
    jobs = """
steps:
  count: {map: split, combine: add, reduce: add, timeout: 30, max_attempts: 3, partitions: 4,
          max_failed_children: 10%, description: Counts.}
  plain: {map: split, reduce: add}
jobs:
  wordcount: {step: count, description: Words., writer: file, notify: "http://localhost/", retention: -1}
  other: {step: plain}
"""
    found = read_directory(write(tmp_path / "words", {"jobs.yaml": jobs, "split.py": SPLIT, "add.py": ADD}))
    assert found.workflow == "words"
    assert sorted(found.handlers) == ["add", "split"]
    count = found.steps["count"]
    assert (count.map_handler_name, count.combine_handler_name, count.reduce_handler_name) == ("split", "add", "add")
    assert (count.timeout_s, count.max_attempts, count.partitions, count.max_failed_children) == (30.0, 3, 4, "10%")
    plain = found.steps["plain"]
    assert (plain.combine_handler_name, plain.timeout_s, plain.max_attempts, plain.partitions) == ("", 0.0, 1, 1)
    job = found.jobs["wordcount"]
    assert (job.initial_step_name, job.writer, job.notify, job.retention_s) == (
        "count",
        "file",
        ["http://localhost/"],
        -1,
    )
    assert (found.jobs["other"].writer, found.jobs["other"].notify, found.jobs["other"].retention_s) == (
        None,
        [],
        None,
    )
    assert {entity.workflow_name for entity in [count, job, *found.handlers.values()]} == {"words"}
    assert found.skipped == []


def test_handlers_are_named_by_their_path_and_what_is_skipped_is_named(tmp_path: Path) -> None:
    files = {"map/test/split.py": SPLIT, "add.py": ADD, "notes.txt": "x", "_draft.py": "(", ".hidden/a.py": "(",
             "__pycache__/add.pyc": b"\0", "map/_old.py": "("}  # fmt: skip
    found = read_directory(write(tmp_path, files), "words")
    assert {name: handler.path for name, handler in found.handlers.items()} == {
        "add": "add.py",
        "map_test_split": "map/test/split.py",
    }
    assert found.skipped == [".hidden/", "__pycache__/", "_draft.py", "map/_old.py", "notes.txt"]


def test_the_workflow_is_named_in_the_file_or_by_the_directory(tmp_path: Path) -> None:
    root = write(tmp_path / "a b", {"jobs.yaml": "workflow: words\n"})
    assert read_directory(root).workflow == "words"
    assert read_directory(root, "given").workflow == "given"
    write(root, {"jobs.yaml": "steps: {}\n"})
    assert "'a b'" in problems(root)[0]


def test_what_holds_for_all_requests_of_a_workflow_stands_beside_its_jobs(tmp_path: Path) -> None:
    jobs = """
writer: file:out/words.jsonl?format=jsonl
notify: [failed:mailto:ops@example.com, https://hooks.example.com/jobx]
retention: 600
outgoing_allow: 10.0.0.0/8
"""
    assert read_directory(write(tmp_path, {"jobs.yaml": jobs}), "words").policies == {
        "writer": "file:out/words.jsonl?format=jsonl",
        "notify": ("failed:mailto:ops@example.com", "https://hooks.example.com/jobx"),
        "retention_s": 600,
        "outgoing_allow": ("10.0.0.0/8",),
    }
    assert read_directory(write(tmp_path, {"jobs.yaml": "jobs: {}\n"}), "words").policies == {}
    wrong = "writer: files\nnotify: ada\nretention: -2\noutgoing_allow:\n  - 10.0.0.0/99\n"
    told = problems(write(tmp_path, {"jobs.yaml": wrong}))
    for line, part in enumerate(("no writer 'files'", "'ada' is no https URL", "from -1 up", "10.0.0.0/99"), 1):
        assert any(one.startswith(f"jobs.yaml:{line}: ") and part in one for one in told), (part, told)
    assert len(told) == 4


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    jobs = """
workflow: words words
step: {}
steps:
  count:
    map: spilt
    combine: split
    reduce: broken
    timeot: 3
    timeout: soon
    max_attempts: 0
    max_failed_children: 101%
  half: {map: add}
  7: {}
jobs:
  wordcount: {step: cuont, writer: files, retention: 1.5}
  empty:
"""
    files = {"jobs.yaml": jobs, "split.py": SPLIT, "add.py": ADD, "broken.py": "def reducer(:\n", "latin.py": b"\n\xff"}
    told = problems(write(tmp_path, files))
    for expected in [
        "broken.py:1: ",
        "latin.py:2: It is not UTF-8.",
        "jobs.yaml:2: The workflow name 'words words'",
        "jobs.yaml:3: jobs.yaml has no setting 'step'. Did you mean 'steps'?",
        "jobs.yaml:6: There is no handler 'spilt' to map with. Did you mean 'split'?",
        "jobs.yaml:7: The handler 'split' is a mapper, and cannot be used to combine.",
        "jobs.yaml:9: A step has no setting 'timeot'. Did you mean 'timeout'?",
        "jobs.yaml:10: 'timeout' has to be a number of seconds, not 'soon'.",
        "jobs.yaml:11: 'max_attempts' has to be a whole number from 1 up, not 0.",
        "jobs.yaml:12: 'max_failed_children' has to be a count or a percentage like '10%', not '101%'.",
        "jobs.yaml:13: The handler 'add' is a reducer, and cannot be used to map.",
        "jobs.yaml:13: The step 'half' names no handler to reduce with",
        "jobs.yaml:14: The name 7 is not text. Put quotes around it.",
        "jobs.yaml:16: There is no step 'cuont'. Did you mean 'count'?",
        "jobs.yaml:16: There is no writer 'files'. There are: inline, file",
        "jobs.yaml:16: 'retention' has to be a whole number from -1 up, not 1.5.",
        "jobs.yaml:17: The job 'empty' names no step to start with ('step: STEP').",
    ]:
        assert any(line.startswith(expected) for line in told), (expected, told)
    assert len(told) == 17


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: {count: {map: split\njobs: {}\n", "jobs.yaml:2: This is not YAML"),
        ("steps: [a]\n", "jobs.yaml:1: 'steps' has to be a mapping"),
        ("", "jobs.yaml:1: It is empty. Write steps and jobs, as in 'steps: "),
        ("# nothing yet\n", "jobs.yaml:1: It is empty."),
        ("- a\n", "jobs.yaml:1: jobs.yaml has to be a mapping"),
        ("steps: {a: 1}\n", "jobs.yaml:1: A step has to be a mapping"),
        ("? [a]\n: 1\n", "jobs.yaml:1: This is not YAML"),
        ("x: &x [*x]\n", "jobs.yaml:1: jobs.yaml has no setting 'x'"),
        ("workflow: !!python/object:os.system x\n", "jobs.yaml:1: This is not YAML"),
        ("a: \x07\n", "jobs.yaml:1: There is a character"),
        ("\xff", "jobs.yaml:1: It is not UTF-8."),
        ("{" * 3000, "jobs.yaml:1: This is not YAML"),
    ],
)
def test_a_strange_jobs_file_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    assert problems(write(tmp_path, {"jobs.yaml": text.encode("latin-1")}))[0].startswith(told)


def test_two_files_cannot_give_one_handler(tmp_path: Path) -> None:
    write(tmp_path, {"a/b.py": ADD, "a_b.py": ADD})
    assert problems(tmp_path) == ["a_b.py:1: a/b.py gives a handler 'a_b' already."]


def test_a_file_too_large_and_a_name_that_cannot_be_are_problems(tmp_path: Path) -> None:
    told = problems(write(tmp_path, {"big.py": b"#" * (1024 * 1024 + 1), "a b.py": ADD}))
    assert [line.partition(" ")[0] for line in told] == ["a", "big.py:1:"]


def test_what_is_no_file_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, {"add.py": ADD})
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = read_directory(tmp_path, "words")
    assert list(found.handlers) == ["add"]
    assert found.skipped == ["gone.py", "loop", "pipe.py"]


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"There is no directory '.*nowhere'\.$"):
        read_directory(tmp_path / "nowhere")


def test_files_that_are_saved_while_they_are_read_are_no_crash(tmp_path: Path) -> None:
    write(tmp_path, {"jobs.yaml": "steps: {count: {map: split, reduce: add}}\n", "split.py": SPLIT, "add.py": ADD})
    over = threading.Event()

    def save() -> None:
        number = 0
        while not over.is_set():
            number += 1
            fresh = tmp_path / "split.py~"
            fresh.write_text(SPLIT)
            (tmp_path / "split.py").unlink()
            fresh.rename(tmp_path / "split.py")
            (tmp_path / "add.py").write_text(ADD + "#" * (number % 7000))

    editor = threading.Thread(target=save)
    editor.start()
    try:
        whole = 0
        for _ in range(2000):
            try:
                whole += len(read_directory(tmp_path, "words").handlers) == 2
            except InvalidHandler as error:
                assert error.problems
            if whole >= 50:
                break
    finally:
        over.set()
        editor.join()
    assert whole
