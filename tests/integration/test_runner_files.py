"""``FS`` in handlers: what they find of it, and what is left of their files however they end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from runner_harness import Outcome, handler, play, task

from mr.fs.local_tree import LocalTree
from mr.fs.shared import Folder, scratch_files, workflow_files
from mr.handlers.pool import RunnerPool
from mr.model.entities import Handler


class Platform:
    """Runs handlers on a pool that has files."""

    def __init__(self, directory: Path) -> None:
        self.url = f"file://{directory / 'files'}"
        tree = LocalTree(directory / "files")
        self.files: Folder = workflow_files(tree, "words")
        self.scratch: Folder = scratch_files(tree, "words", "request-1")
        self.partial = directory / "files" / "words" / "request-1" / "partial"

    def run(self, *tasks: Handler | tuple[Handler, dict[str, object]]) -> list[Outcome]:
        async def main() -> list[Outcome]:
            pool = RunnerPool(1, fs_url=self.url)
            await pool.start()
            try:
                pairs = [one if isinstance(one, tuple) else (one, {}) for one in tasks]
                return [await play(pool, task(one, **more)) for one, more in pairs]  # type: ignore[arg-type]
            finally:
                await pool.close()

        return asyncio.run(main())

    def read(self, path: str) -> str:
        with self.files.open(path) as file:
            return str(file.read())


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def test_mapper_combiner_and_reducer_have_the_same_files(platform: Platform) -> None:
    mapper = handler("""
    with FS.open("data/a", "w") as file:
        file.write("from the mapper")
    with FS.scratch.open("b", "w") as file:
        file.write("scratch")
    yield MrConfigureToReturn()
    yield "ls", FS.ls("data")
    """)
    reducer = handler(
        """
    def reducer(results):
        for key, values in results:
            with FS.open("data/a") as file, FS.scratch.open("b") as other:
                yield key, [file.read(), other.read()]
    """,
        "reducer",
    )
    seen = ["from the mapper", "scratch"]

    async def main() -> list[Outcome]:
        pool = RunnerPool(1, fs_url=platform.url)
        await pool.start()
        try:
            combined = await play(pool, task(mapper, reducer))
            return [combined, await play(pool, task(reducer), [[["x", 1]]])]
        finally:
            await pool.close()

    combined, reduced = asyncio.run(main())
    assert combined.output == [["ls", seen]]
    assert reduced.output == [["x", seen]]


def test_a_request_has_scratch_files_of_its_own(platform: Platform) -> None:
    look = handler("""
    before = FS.scratch.ls()
    FS.scratch.mkdir("d", exist_ok=True)
    FS.mkdir("shared", exist_ok=True)
    yield MrConfigureToReturn()
    yield FS.ls(), before
    """)
    outcomes = platform.run(look, look, (look, {"request_id": "request-2"}), (look, {"workflow_name": "other"}))
    shared = ["shared"]
    assert [one.output for one in outcomes] == [[[shared, []]], [[shared, ["d"]]], [[shared, []]], [[shared, []]]]


def test_files_cost_nothing_who_does_not_use_them_and_little_who_does(platform: Platform) -> None:
    source = """
    import sys
    %s
    yield MrConfigureToReturn()
    for name in ("fsspec", "asyncio", "mr.fs.local_tree", "mr.config"):
        yield name, name in sys.modules
    """
    unused, used = platform.run(handler(source % ""), handler(source % 'FS.open("a", "w").close()'))
    none = [["asyncio", False], ["fsspec", False], ["mr.fs.local_tree", False]]
    assert [pair for pair in unused.output if pair[0] != "mr.config"] == none
    assert [pair for pair in used.output if pair[0] != "mr.config"] == [*none[:2], ["mr.fs.local_tree", True]]


def test_what_a_handler_that_ends_well_has_not_closed_is_closed(platform: Platform) -> None:
    source = """
    kept = [FS.open("kept", "w"), FS.scratch.open("kept", "w")]
    kept.append(kept)
    for file in kept[:2]:
        file.write("kept")
    yield MrConfigureToReturn()
    """
    [outcome] = platform.run(handler(source))
    assert outcome.finished.fatal is False
    assert platform.read("kept") == "kept"
    assert platform.scratch.ls() == ["kept"]


FAILURES = {
    "raises": ("1 / 0", "ZeroDivisionError"),
    "exits": ("import sys; sys.exit(3)", "HandlerExited"),
    "breaks the contract": ("yield 'no pair'", "HandlerContractError"),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "HandlerKilled"),
    "ends its process": ("import os; os._exit(1)", "HandlerExited"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_handler_that_fails_leaves_nothing_of_what_it_had_not_closed(platform: Platform, how: str) -> None:
    source = f"""
    yield MrConfigureToReturn()
    with FS.open("closed", "w") as file:
        file.write("closed")
    open_one = FS.open("new", "w")
    open_one.write("half")
    in_block = FS.open("old", "w")
    with in_block, FS.scratch.open("new", "wb") as other:
        in_block.write("half")
        other.write(b"half")
        other.flush()
        {FAILURES[how][0]}
    """
    with platform.files.open("old", "w") as file:
        file.write("old")
    well = handler('yield MrConfigureToReturn()\nFS.open("well", "w").close()\n')
    failed, fine = platform.run(handler(source), well)
    assert failed.failure.exception_type == FAILURES[how][1]
    assert fine.finished
    assert platform.files.ls() == ["closed", "old", "well"]
    assert platform.read("old") == "old"
    assert platform.scratch.ls() == []
    is_killed = how in ("is killed", "ends its process")
    assert len(list(platform.partial.iterdir())) == (3 if is_killed else 0)


def test_a_file_that_cannot_be_kept_at_the_end_fails_the_attempt(platform: Platform) -> None:
    source = """
    yield MrConfigureToReturn()
    late = FS.open("a", "x")
    with FS.open("a", "x") as first:
        first.write("first")
    """
    [outcome] = platform.run(handler(source))
    assert outcome.failure.exception_type == "FileExistsError"
    assert platform.read("a") == "first"


def test_a_path_that_leads_out_fails_at_the_handlers_line(platform: Platform) -> None:
    with workflow_files(LocalTree(Path(platform.url.removeprefix("file://"))), "other").open("secret", "w") as file:
        file.write("secret")
    source = """
    yield MrConfigureToReturn()
    for key, path in arguments:
        yield path, FS.open(path).read()
    """
    for path in ("../../other/shared/secret", "/etc/passwd", "../request-1/scratch/x"):

        async def main(path: str = path) -> Outcome:
            pool = RunnerPool(1, fs_url=platform.url)
            await pool.start()
            try:
                return await play(pool, handler(source, path="words/read.py"), [[["path", path]]])
            finally:
                await pool.close()

        failure = asyncio.run(main()).failure
        assert failure.exception_type == "PermissionError"
        assert path in failure.exception_message
        assert 'File "words/read.py", line 4' in failure.traceback
        assert "mr/fs" not in failure.traceback


def test_what_a_runner_knows_of_the_platform_is_not_in_its_environment(platform: Platform) -> None:
    source = """
    import os
    yield MrConfigureToReturn()
    yield "names", sorted(name for name in os.environ if name.startswith("MR_"))
    """
    [outcome] = platform.run(handler(source))
    assert outcome.output == [["names", []]]


def test_a_child_of_a_handler_publishes_nothing_of_its_own_accord(platform: Platform) -> None:
    source = """
    import os
    yield MrConfigureToReturn()
    file = FS.open("a", "w")
    file.write("whole")
    child = os.fork()
    if child == 0:
        try:
            file.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    yield "seen", FS.exists("a")
    """
    [outcome] = platform.run(handler(source))
    assert outcome.output == [["seen", False]]
    assert platform.read("a") == "whole"
