"""``jobx fs``: the files that a workflow keeps, and those of a request."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

import click

from mr.cli import output
from mr.cli.edge import Group, config, looks_in_files, say, store
from mr.cli.requests import find
from mr.errors import InvalidInput
from mr.fs.paths import parts_of
from mr.fs.shared import Folder, scratch_files, workflow_files
from mr.fs.tree import Stat
from mr.fs.trees import open_tree
from mr.model import catalog
from mr.model.names import check_workflow_name

_PIECE_BYTES = 1024 * 1024
_BROKEN_OFF_S = 24 * 3600
"""What a command that was killed has left unfinished is removed after so long."""


@click.group("fs", cls=Group, data_dir=True, example="$ jobx fs put words names.csv\n$ jobx fs ls words")
def group() -> None:
    """Look at a workflow's files, and bring them in and out.

    They are what its handlers have as FS. A PATH is relative to them; with --scratch, to FS.scratch of a request.
    """


_scratch_option = click.option(
    "--scratch", metavar="ID|last", help="The files of that request, which go with it, not those of the workflow."
)
_recursive_option = click.option("-r", "--recursive", is_flag=True, help="Directories with all that is in them.")


@group.command("ls", example="$ jobx fs ls words data --recursive")
@click.argument("workflow")
@click.argument("path", default=".")
@_recursive_option
@_scratch_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_files(workflow: str, path: str, recursive: bool, scratch: str | None, as_json: bool) -> None:
    """List a directory, or show one file."""
    files = _files(workflow, scratch)
    with _asked():
        found = files.get_stat(path)
        shown = [(found.name, found)]
        if found.is_directory:
            shown = list(_below(files, path, "", recursive))
    if as_json:
        output.document([{**one._asdict(), "name": _readable(name)} for name, one in shown])
    else:
        output.table(["name", "kind", "size", "modified"], (_row(name, one) for name, one in shown), right=["size"])


@group.command("put", example="$ jobx fs put words names.csv data/names.csv\n$ sort names | jobx fs put words - names")
@click.argument("workflow")
@click.argument("source")
@click.argument("path", required=False)
@_recursive_option
@_scratch_option
def put(workflow: str, source: str, path: str | None, recursive: bool, scratch: str | None) -> None:
    """Bring in a file of this machine; `-` is standard input.

    A file is seen when it is whole, and replaces one that is there. PATH is its new name, by default its own; where
    that is a directory, or ends with a slash, it is put into it.
    """
    if source == "-" and (path is None or path.endswith("/")):
        raise click.UsageError("Standard input has no name: give PATH.")
    if source == "-" and recursive:
        raise click.UsageError("Standard input is no directory: leave out --recursive.")
    files = _files(workflow, scratch)
    brought = [_Brought(source, "", False)] if source == "-" else _of_here(source, recursive)
    name = os.path.basename(os.path.abspath(source))
    with _asked():
        target = name if path is None else path
        if source != "-" and path is not None and (path.endswith("/") or files.isdir(path)):
            target = f"{path}/{name}"
        files.tidy(time.time() - _BROKEN_OFF_S)
        # Nothing is put if something cannot be.
        for one in brought:
            parts_of(_joined(target, one.name))
        size = sum(_put(files, one, _joined(target, one.name)) for one in brought)
    _say_done("Put", [one for one in brought if not one.is_directory], size)


@group.command("get", example="$ jobx fs get words data/names.csv\n$ jobx fs get words names - | wc -l")
@click.argument("workflow")
@click.argument("path")
@click.argument("target", required=False)
@_recursive_option
@_scratch_option
def get(workflow: str, path: str, target: str | None, recursive: bool, scratch: str | None) -> None:
    """Bring a file to this machine; `-` is standard output.

    TARGET is its new name, by default its own; where that is a directory, the file is put into it. A file that is there
    is replaced when the new one is whole.
    """
    files = _files(workflow, scratch)
    with _asked():
        found = files.get_stat(path)
    if found.is_directory and (not recursive or target == "-"):
        hint = "a directory does not go to standard output" if recursive else "give --recursive"
        raise InvalidInput(f"{path!r} is a directory: {hint}.")
    if target == "-":
        with _asked(), files.open(path, "rb") as source, click.open_file("-", "wb") as out:
            shutil.copyfileobj(source, out, _PIECE_BYTES)
        return
    # The top of the files has no name of its own.
    name = (parts_of(path) or (workflow,))[-1]
    goal = name if target is None else target
    if target is not None and (target.endswith("/") or os.path.isdir(target)):
        goal = os.path.join(target, name)
    with _asked():
        wanted = [("", found)]
        if found.is_directory:
            wanted += _below(files, path, "", recursive=True)
    size = sum(_get(files, _joined(path, name), one, _joined(goal, name)) for name, one in wanted)
    _say_done("Got", [one for _, one in wanted if one.is_file], size)


@group.command("rm", example="$ jobx fs rm words data/names.csv old --recursive")
@click.argument("workflow")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@_recursive_option
@click.option("-f", "--force", is_flag=True, help="What is not there is no error.")
@_scratch_option
def remove(workflow: str, paths: tuple[str, ...], recursive: bool, force: bool, scratch: str | None) -> None:
    """Remove files; with --recursive, directories with all that is in them."""
    files = _files(workflow, scratch)
    with _asked():
        kinds = {path: _kind(files, path) for path in paths}
    for path, kind in kinds.items():
        if kind is None and not force:
            raise InvalidInput(f"{path!r}: No such file or directory. Nothing was removed.")
        if kind == "directory" and not recursive:
            raise InvalidInput(f"{path!r} is a directory: give --recursive. Nothing was removed.")
    for path in paths:
        # One may be in another that is gone by now.
        with _asked(), suppress(FileNotFoundError):
            files.rm(path, recursive)


# --- what they share -------------------------------------------------------------------------------------------------


def _files(workflow: str, scratch: str | None) -> Folder:
    """
    :raises WorkflowNotFound, RequestNotFound, RequestExpired: there is none of that name.
    :raises InvalidConfig: there is no driver for the shared filesystem.
    """
    check_workflow_name(workflow)
    found = config()
    tree = open_tree(found.fs_url)
    if scratch is not None:
        request = find(store(), workflow, scratch)
        files = scratch_files(tree, workflow, request.request_id)
    else:
        files = workflow_files(tree, workflow)
        with _asked():
            is_begun = files.is_begun()
        # What is left of a workflow that was deleted can still be removed; a mistyped one is told.
        if not is_begun:
            catalog.read(store(), workflow, found.workflow_names)
    looks_in_files(workflow, found)
    return files


@contextmanager
def _asked(what: str = "") -> Iterator[None]:
    """Has what the filesystem refuses end the command with a message."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = what or (f"{_readable(os.fspath(error.filename))!r}: " if error.filename else "")
        raise InvalidInput(f"{name}{error.strerror or error}.") from error


@contextmanager
def _here(path: str) -> Iterator[None]:
    with _asked(f"{path} on this machine: "):
        yield


def _kind(files: Folder, path: str) -> str | None:
    """A link is something that can be removed, too."""
    above, _, name = path.rstrip("/").rpartition("/")
    try:
        kinds = {one.name: one.kind for one in files.entries(above)}
    except (FileNotFoundError, NotADirectoryError):
        return None
    return kinds.get(name) or ("directory" if not parts_of(path) else None)


def _below(files: Folder, path: str, above: str, recursive: bool) -> Iterator[tuple[str, Stat]]:
    for one in files.entries(path):
        yield above + one.name, one
        if recursive and one.is_directory:
            yield from _below(files, f"{path}/{one.name}", f"{above}{one.name}/", recursive)


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if name else path


def _row(name: str, found: Stat) -> tuple[str, ...]:
    modified = ""
    if found.modified is not None:
        modified = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.modified))
    return _readable(name), found.kind, str(found.size) if found.is_file else "", modified


def _readable(name: str) -> str:
    """Names that did not come through here may be no text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _say_done(done: str, files: list[Any], size: int) -> None:
    say(f"{done} {len(files):,} file{'' if len(files) == 1 else 's'}, {size:,} byte{'' if size == 1 else 's'}.")


# --- this machine's side ---------------------------------------------------------------------------------------------


class _Brought(NamedTuple):
    """Something of this machine, and how it is called below what was named."""

    path: str
    name: str
    is_directory: bool


def _of_here(source: str, recursive: bool) -> list[_Brought]:
    """
    :raises InvalidInput: it is not there, or a directory that was not asked for.
    """
    if not os.path.isdir(source):
        with _here(source):
            os.stat(source)
        return [_Brought(source, "", False)]
    if not recursive:
        raise InvalidInput(f"{source} on this machine is a directory: give --recursive.")
    found = [_Brought(source, "", True)]
    with _here(source):
        for directory, below, files in os.walk(source, onerror=_raise):
            for name in sorted(below + files):
                path = os.path.join(directory, name)
                is_directory = os.path.isdir(path)
                if (is_directory and os.path.islink(path)) or not (is_directory or os.path.isfile(path)):
                    say(f"Skipped: {path} is neither a file nor a directory of its own.")
                    continue
                found.append(_Brought(path, os.path.relpath(path, source).replace(os.sep, "/"), is_directory))
    return found


def _raise(error: OSError) -> None:
    raise error


def _put(files: Folder, one: _Brought, target: str) -> int:
    """How many bytes it has."""
    if one.is_directory:
        files.mkdir(target, exist_ok=True)
        return 0
    with _here(one.path):
        source: IO[bytes] = click.open_file(one.path, "rb")
    with source, files.open(target, "wb") as goal:
        size = 0
        while True:
            with _here(one.path):
                piece = source.read(_PIECE_BYTES)
            if not piece:
                return size
            size += goal.write(piece)


def _get(files: Folder, path: str, found: Stat, target: str) -> int:
    """How many bytes it has."""
    if found.is_directory:
        with _here(target):
            os.makedirs(target, exist_ok=True)
        return 0
    if not found.is_file:
        say(f"Skipped: {path} is a {found.kind}.")
        return 0
    with _asked():
        source = files.open(path, "rb")
    with source, _here(target):
        # What a link leads to is what is meant.
        goal = os.path.realpath(target)
        if os.path.exists(goal) and not os.path.isfile(goal):
            with open(goal, "wb") as special:
                return _copied(source, special)
        partial = os.path.join(os.path.dirname(goal), f".jobx-{secrets.token_hex(4)}.part")
        try:
            with open(partial, "xb") as file:
                size = _copied(source, file)
            os.replace(partial, goal)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        return size


def _copied(source: IO[bytes], target: IO[bytes]) -> int:
    size = 0
    while True:
        with _asked():
            piece = source.read(_PIECE_BYTES)
        if not piece:
            return size
        size += target.write(piece)
