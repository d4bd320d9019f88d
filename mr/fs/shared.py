"""The files of a workflow, as its handlers have them (``FS``) and ``jobx fs`` does.

They are at ``<workflow>/shared`` below the root of the shared filesystem. What is of one request is beside them, below
``<workflow>/<request>``, and goes with it: its scratch files, and files that are not whole yet.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import IO, Any, BinaryIO, Literal, cast

from mr.fs.paths import parts_of
from mr.fs.tree import Parts, Stat, Tree, irregular, link_refused
from mr.fs.writers import BinaryWriter, TextWriter, Unfinished, WholeFile

AnyPath = str | os.PathLike[str]

_PIECE_BYTES = 1024 * 1024
_ERRNO: dict[type[OSError], int] = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    PermissionError: errno.EACCES,
}


class Folder:
    """Files and directories below one directory, which nothing leads out of.

    A path is text, its names are separated by ``/``, and it is relative to this directory, which is ``.``. Absolute
    paths and ``..`` are a ``PermissionError``, and so is every symbolic link that a path leads over: links are shown by
    :meth:`ls`, can be removed and moved with what they are in, and are never followed. A path with a control character
    or a backslash is an ``OSError`` (``EINVAL``), as one is that is longer than 1,024 bytes or has a name longer than
    255 (``ENAMETOOLONG``). What goes wrong is otherwise what Python's own functions raise: ``FileNotFoundError``,
    ``FileExistsError``, ``IsADirectoryError``, ``NotADirectoryError`` and other kinds of ``OSError``.

    Directories that are missing above something new are made. What a file is written over is replaced, a directory
    never. An invocation may run more than once, so that what it has done may be done already when it runs again:
    writing a file anew and ``exist_ok=True`` bear that, appending does not.
    """

    def __init__(
        self, tree: Callable[[], Tree], top: Parts, partial: Parts, unfinished: Unfinished | None = None
    ) -> None:
        self._tree, self._top, self._partial = tree, top, partial
        self._unfinished = Unfinished() if unfinished is None else unfinished

    def __repr__(self) -> str:
        return f"<files of {'/'.join(self._top)}>"

    # --- looking -------------------------------------------------------------------------------------------------

    def ls(self, path: AnyPath = ".") -> list[str]:
        """The names in a directory, sorted.

        :raises FileNotFoundError, NotADirectoryError: there is no such directory.
        """
        return [found.name for found in self.entries(path)]

    def entries(self, path: AnyPath = ".") -> list[Stat]:
        """What :meth:`get_stat` says of each name in a directory, sorted; links are of kind ``link``.

        :raises FileNotFoundError, NotADirectoryError: there is no such directory.
        """
        with self._at(path) as place:
            return self._list(place)

    def get_stat(self, path: AnyPath) -> Stat:
        """``name``, ``kind`` (``file``, ``directory``, ``other``), ``size`` in bytes and ``modified`` since 1970.

        :raises FileNotFoundError, NotADirectoryError: it is not there.
        """
        with self._at(path) as place:
            return self._look(place)

    def get_filesize(self, path: AnyPath) -> int:
        """In bytes.

        :raises FileNotFoundError, IsADirectoryError: there is no such file.
        """
        with self._at(path) as place:
            return self._look_at_file(place).size

    def exists(self, path: AnyPath) -> bool:
        """Whether something is there. A path that is refused raises, as everywhere."""
        return self._kind(path) is not None

    def isfile(self, path: AnyPath) -> bool:
        return self._kind(path) == "file"

    def isdir(self, path: AnyPath) -> bool:
        return self._kind(path) == "directory"

    # --- files ---------------------------------------------------------------------------------------------------

    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A file, as of Python's ``open``; text is UTF-8 unless ``encoding`` says otherwise.

        ``w`` and ``x`` make a file that is seen when it is closed, whole, and is on the disk then; readers of an older
        one keep that. Where its ``with`` block, its handler or its process ends by an error, or the process is killed,
        nothing of it is ever seen. ``a`` adds to what is there at once. A file that is still open when its handler ends
        well is closed then.

        :raises FileNotFoundError, IsADirectoryError: there is no such file to read.
        :raises FileExistsError: with ``x``, now or when it is closed.
        :raises io.UnsupportedOperation: a mode with ``+``: a file is either read or written.
        """
        kind, is_text = _mode(mode)
        if not is_text and (encoding or errors or newline):
            raise ValueError("encoding, errors and newline are for text: leave them out, or the b of the mode")
        with self._at(path) as place:
            if kind == "r":
                file = self._read(place)
                try:
                    return io.TextIOWrapper(file, encoding or "utf-8", errors, newline) if is_text else file
                except BaseException:
                    file.close()
                    raise
            writer = self._write(place, cast(Literal["w", "x", "a"], kind), os.fspath(path))
        if not is_text:
            self._unfinished.add(writer)
            return writer
        try:
            text = TextWriter(cast(BinaryIO, writer), encoding or "utf-8", errors, newline)
        except BaseException:
            writer.abandon()
            raise
        self._unfinished.add(text)
        return text

    def cp(self, source: AnyPath, target: AnyPath) -> None:
        """Copies a file; ``target`` is its new path, and a file there is replaced.

        :raises FileNotFoundError: there is no ``source``.
        :raises IsADirectoryError: one of them is a directory.
        """
        with self._at(source) as place:
            self._look_at_file(place)
        with self._at(target) as to:
            self._refuse_directory(to)
        self._copy(place, to)

    def cpr(self, source: AnyPath, target: AnyPath, exist_ok: bool = False) -> None:
        """Copies a directory with all that is in it to a new path, or a file as :meth:`cp` does.

        With ``exist_ok`` ``target`` may be a directory, which then has both; files of the same name are replaced. Each
        file appears whole, the directory file by file.

        :raises FileExistsError: ``target`` is there.
        :raises PermissionError: a link is among what is to be copied.
        """
        with self._at(source) as place:
            found = self._look(place)
        if not found.is_directory:
            return self.cp(source, target)
        with self._at(target) as to:
            if to[: len(place)] == place:
                raise OSError(errno.EINVAL, "A directory cannot be copied into itself")
            self._make(to, exist_ok)
        for below, kind in self._walk(place):
            goal = (*to, *below[len(place) :])
            with self._at(self._named(goal)):
                if kind == "directory":
                    self._make(goal, exist_ok)
                    continue
                self._refuse_directory(goal)
            self._copy(below, goal)

    def mv(self, source: AnyPath, target: AnyPath) -> None:
        """Moves a file or a directory to a new path, in one step where the filesystem can; a file there is replaced.

        :raises FileNotFoundError: there is no ``source``.
        :raises IsADirectoryError: ``target`` is a directory, and ``source`` none.
        :raises FileExistsError: ``target`` is there, and ``source`` is a directory.
        """
        with self._at(source) as place:
            self._refuse_top(place)
            found = self._look(place)
        with self._at(target) as to:
            if found.is_directory and place != to and self._is_there(to):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if not found.is_directory:
                self._refuse_directory(to)
            if place != to:
                self._tree().rename(place, to)

    def rm(self, path: AnyPath, recursive: bool = False) -> None:
        """Removes a file or a link; with ``recursive`` also a directory with all that is in it.

        :raises FileNotFoundError: it is not there.
        :raises IsADirectoryError: it is a directory.
        """
        with self._at(path) as place:
            self._refuse_top(place)
            tree = self._tree()
            if not recursive or not tree.stat(place).is_directory:
                return tree.remove_file(place)
            below = list(self._walk(place))
            for one, kind in reversed(below):
                if kind == "directory":
                    tree.remove_directory(one)
                else:
                    tree.remove_file(one)
            tree.remove_directory(place)

    # --- directories ---------------------------------------------------------------------------------------------

    def mkdir(self, path: AnyPath, exist_ok: bool = False) -> None:
        """Makes a directory, and those above it that are missing.

        :raises FileExistsError: something is there; with ``exist_ok``, something other than a directory.
        """
        with self._at(path) as place:
            self._make(place, exist_ok)

    def rmdir(self, path: AnyPath) -> None:
        """Removes an empty directory.

        :raises FileNotFoundError, NotADirectoryError: there is none.
        :raises OSError: ``ENOTEMPTY``, something is in it.
        """
        with self._at(path) as place:
            self._refuse_top(place)
            self._look(place)
            self._tree().remove_directory(place)

    # --- for commands --------------------------------------------------------------------------------------------

    def is_begun(self) -> bool:
        """Whether anything was ever written here."""
        with self._at("."):
            try:
                self._tree().stat(self._top)
            except FileNotFoundError:
                return False
            return True

    def tidy(self, before: float) -> None:
        """Removes what was begun before that time, in seconds since 1970, and is not whole yet."""
        with self._at("."):
            self._tree().tidy(self._partial, before)

    # --- inside --------------------------------------------------------------------------------------------------

    @contextmanager
    def _at(self, path: AnyPath) -> Iterator[Parts]:
        """The place in the tree that a path means; what goes wrong there is told of the path as it was given."""
        parts = parts_of(path)
        try:
            yield (*self._top, *parts)
        except OSError as error:
            number = error.errno or next((_ERRNO[kind] for kind in type(error).__mro__ if kind in _ERRNO), errno.EIO)
            own = error.strerror if error.errno else None
            raise OSError(number, own or os.strerror(number), os.fspath(path)) from error.__cause__

    def _kind(self, path: AnyPath) -> str | None:
        try:
            return self.get_stat(path).kind
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _look(self, place: Parts) -> Stat:
        if place == self._top:
            # It is made when something is first written.
            return Stat(".", "directory")
        found = self._tree().stat(place)
        if found.kind == "link":
            raise link_refused()
        return found

    def _look_at_file(self, place: Parts) -> Stat:
        found = self._look(place)
        if found.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not found.is_file:
            raise irregular()
        return found

    def _is_there(self, place: Parts) -> bool:
        try:
            self._look(place)
        except FileNotFoundError:
            return False
        return True

    def _refuse_directory(self, place: Parts) -> bool:
        """Whether there is a file that would be written over."""
        try:
            self._look_at_file(place)
        except FileNotFoundError:
            return False
        return True

    def _refuse_top(self, place: Parts) -> None:
        if place == self._top:
            raise PermissionError(errno.EACCES, "The top of these files stays; name what is in it")

    def _list(self, place: Parts) -> list[Stat]:
        try:
            return sorted(self._tree().list(place), key=lambda found: found.name)
        except FileNotFoundError:
            if place != self._top:
                raise
            return []

    def _walk(self, place: Parts) -> Iterator[tuple[Parts, str]]:
        """All that is below a directory, each directory before what is in it."""
        waiting = [place]
        while waiting:
            above = waiting.pop()
            for found in self._list(above):
                below = (*above, found.name)
                yield below, found.kind
                if found.is_directory:
                    waiting.append(below)

    def _make(self, place: Parts, exist_ok: bool) -> None:
        if place == self._top and not exist_ok:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            self._tree().make_directory(place)
        except FileExistsError:
            if not exist_ok or not self._look(place).is_directory:
                raise

    def _read(self, place: Parts) -> BinaryIO:
        self._look_at_file(place)
        return self._tree().read(place)

    def _write(self, place: Parts, mode: Literal["w", "x", "a"], path: str) -> BinaryWriter:
        if self._refuse_directory(place) and mode == "x":
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        whole = WholeFile(self._tree().write(place, mode, self._partial), path, "a" if mode == "a" else "w")
        return BinaryWriter(whole, self._unfinished)

    def _copy(self, place: Parts, to: Parts) -> None:
        with self._at(self._named(place)):
            source = self._read(place)
        with source, self._at(self._named(to)), self._write(to, "w", self._named(to)) as target:
            shutil.copyfileobj(source, target, _PIECE_BYTES)

    def _named(self, place: Parts) -> str:
        return "/".join(place[len(self._top) :])


class WorkflowFolder(Folder):
    """The files of a workflow, which stay.

    ``scratch`` are files of the request, shared by all of its invocations; they are removed with the request.
    """

    def __init__(self, tree: Callable[[], Tree], workflow: str, request_id: str, unfinished: Unfinished) -> None:
        super().__init__(tree, (workflow, "shared"), (workflow, request_id, "partial"), unfinished)
        self._request = (workflow, request_id)

    @cached_property
    def scratch(self) -> Folder:
        return Folder(self._tree, (*self._request, "scratch"), self._partial, self._unfinished)


def workflow_files(tree: Tree, workflow: str) -> Folder:
    """Those that stay, for who is no handler."""
    return Folder(lambda: tree, (workflow, "shared"), (workflow, "partial"))


def scratch_files(tree: Tree, workflow: str, request_id: str) -> Folder:
    """Those of a request, for who is no handler."""
    return Folder(lambda: tree, (workflow, request_id, "scratch"), (workflow, request_id, "partial"))


def _mode(mode: str) -> tuple[str, bool]:
    """``r``, ``w``, ``x`` or ``a``, and whether it is text."""
    kinds = [letter for letter in mode if letter in "rwxa"]
    if "+" in mode:
        raise io.UnsupportedOperation(f"A file is either read or written here: {mode!r} is both")
    if len(kinds) != 1 or len(set(mode)) != len(mode) or set(mode) - {*kinds, "b", "t"} or {"b", "t"} <= set(mode):
        raise ValueError(f"A mode is r, w, x or a, with b for bytes or t for text, not {mode!r}")
    return kinds[0], "b" not in mode
