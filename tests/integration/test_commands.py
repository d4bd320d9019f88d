"""The installed programs: exit codes, what goes to which stream, and that every name is there."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

PROGRAMS = Path(sys.executable).parent

CLASSIC = sorted(one.name for one in entry_points(group="console_scripts") if one.value.startswith("mr.cli."))

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run_program(name: str, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAMS / name, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MR_DATA_DIR": str(tmp_path / "data"), **environ},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run_program


def test_the_classic_names_are_installed() -> None:
    for group, actions in {
        "workflow": "create delete get list",
        "job": "create delete get list",
        "step": "create delete get list set_handler update_handlers",
        "handler": "create delete get list store",
        "request": "create get list cancel",
        "invocation": "get",
    }.items():
        for action in actions.split():
            assert f"mr_kv_{group}_{action}" in CLASSIC
    for name in (
        "jobx",
        "mr_get_invocation_graph",
        "mr_get_invocation_flat_list",
        "mr_draw_invocation_graph",
        "mr_start_worker",
    ):
        assert name in CLASSIC


@pytest.mark.parametrize("name", CLASSIC)
def test_help_shows_an_example(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    example = done.stdout.partition("\nExample:\n")[2]
    assert name in example


def test_output_and_messages_go_apart(run: Run) -> None:
    done = run("mr_kv_workflow_create", "words", "Counts words", MR_UNHEARD_OF="1")
    assert done.returncode == 0
    assert json.loads(done.stdout)["primary_key"] == "words"
    assert done.stderr.startswith("Warning: MR_UNHEARD_OF")
    again = run("mr_kv_workflow_create", "words", "Counts words")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "already" in again.stderr
    other = run("mr_kv_workflow_create", "words", "Something else")
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.count("\n") == 1


def test_usage_is_2(run: Run) -> None:
    for name, arguments in (("mr_kv_workflow_create", ["words"]), ("jobx", ["nothere"]), ("jobx", ["dev", "--port=x"])):
        done = run(name, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage:" in done.stderr


def test_a_store_that_cannot_be_opened_is_1_without_a_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no directory")
    done = run("mr_kv_workflow_list")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "data") in done.stderr


def test_the_source_of_a_handler_comes_from_standard_input(run: Run) -> None:
    assert run("mr_kv_workflow_create", "words", "").returncode == 0
    source = "def reducer(results):\n    return results\n"
    done = run("mr_kv_handler_create", "words", "same", "é", "python", "reducer", "-r", "gpu", stdin=source)
    assert done.returncode == 0
    shown = json.loads(done.stdout)["data"]
    assert (shown["source_code"], shown["required_capability"], shown["description"]) == (source, "gpu", "é")


def test_files_in_the_current_directory_do_not_stand_in_for_modules(run: Run, tmp_path: Path) -> None:
    """A directory of handlers may well hold a ``queue.py``."""
    for name in ("queue", "json", "yaml", "mr"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    done = run("jobx", "server", MR_BIND="0.0.0.0:0")
    assert done.returncode == 1
    assert "MR_API_TOKENS" in done.stderr
    done = run("jobx", "server", MR_BIND="192.0.2.1:1", MR_ALLOW_ANONYMOUS="1")
    assert done.returncode == 1
    assert "192.0.2.1" in done.stderr
    assert "the wrong module" not in done.stderr


def test_a_reader_that_goes_away_is_no_error_to_speak_of(tmp_path: Path) -> None:
    script = f"{PROGRAMS}/jobx config --json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"[", b"")


def test_on_a_terminal_a_list_is_a_table(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "xterm-256color", "COLUMNS": "160"}
    program = subprocess.Popen([PROGRAMS / "jobx", "config"], env=environ, stdout=theirs)
    os.close(theirs)
    shown = b""
    # A terminal that nobody holds any more answers with an error instead of an end.
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert program.wait(60) == 0
    lines = shown.decode().splitlines()
    assert any("setting" in line and "source" in line for line in lines)
    assert any("MR_CHANNEL" in line and "general_worker" in line for line in lines)
    assert "\t" not in shown.decode()
