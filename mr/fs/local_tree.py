"""A directory of this machine as a tree, or one that several machines have mounted."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from mr.fs.tree import Draft, Kind, Parts, Stat, Tree, irregular, link_refused

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK somebody's pipe would be waited at.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class LocalTree(Tree):
    """``root`` is made when something is first written.

    Every name below it is opened by itself, in the directory that was opened before it, and as what it is: the kernel
    refuses a link whenever it was made, so there is nothing between a check and its use. The root, and what is above
    it, may be links. All who write have to be on one filesystem: files are renamed into their places.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def stat(self, path: Parts) -> Stat:
        if not path:
            return _stat(".", os.stat(self._root))
        with self._directory(path[:-1]) as above:
            return _stat(path[-1], os.stat(path[-1], dir_fd=above, follow_symlinks=False))

    def list(self, path: Parts) -> list[Stat]:
        found = []
        with self._directory(path) as directory, os.scandir(directory) as entries:
            for entry in entries:
                # It may have been removed since.
                with suppress(FileNotFoundError):
                    found.append(_stat(entry.name, entry.stat(follow_symlinks=False)))
        return found

    def make_directory(self, path: Parts) -> None:
        with self._directory(path[:-1], make=True) as above:
            os.mkdir(path[-1], dir_fd=above)
            os.fsync(above)

    def read(self, path: Parts) -> BinaryIO:
        with self._directory(path[:-1]) as above:
            return io.BufferedReader(io.FileIO(_open_file(path[-1], os.O_RDONLY, above), "rb"))

    def write(self, path: Parts, mode: Literal["w", "x", "a"], partial: Parts) -> Draft:
        with self._directory(path[:-1], make=True) as above:
            if mode == "a":
                return _Appended(_open_file(path[-1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, above))
        name = secrets.token_hex(8)
        with self._directory(partial, make=True) as directory:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o666, dir_fd=directory)
        return _Partial(self, fd, (*partial, name), path, is_new=mode == "x")

    def publish(self, partial: Parts, path: Parts, is_new: bool) -> None:
        """Gives a file that is whole its name; one of that name is replaced, unless it is to be new."""
        with self._directory(partial[:-1]) as source, self._directory(path[:-1], make=True) as above:
            if is_new:
                # Unlike a rename, this fails where there is one.
                os.link(partial[-1], path[-1], src_dir_fd=source, dst_dir_fd=above, follow_symlinks=False)
                os.unlink(partial[-1], dir_fd=source)
            else:
                os.rename(partial[-1], path[-1], src_dir_fd=source, dst_dir_fd=above)
            # Without it a power cut may take back the new name, though not what is in the file.
            os.fsync(above)

    def rename(self, path: Parts, to: Parts) -> None:
        if to[: len(path)] == path and len(to) > len(path):
            raise OSError(errno.EINVAL, "A directory cannot be moved into itself")
        with self._directory(path[:-1]) as source, self._directory(to[:-1], make=True) as above:
            os.rename(path[-1], to[-1], src_dir_fd=source, dst_dir_fd=above)
            os.fsync(above)

    def remove_file(self, path: Parts) -> None:
        with self._directory(path[:-1]) as above:
            os.unlink(path[-1], dir_fd=above)

    def remove_directory(self, path: Parts) -> None:
        with self._directory(path[:-1]) as above:
            os.rmdir(path[-1], dir_fd=above)

    def tidy(self, partial: Parts, before: float) -> None:
        with suppress(FileNotFoundError):
            for found in self.list(partial):
                if found.modified is not None and found.modified < before:
                    self.remove_file((*partial, found.name))

    @contextmanager
    def _directory(self, path: Parts, make: bool = False) -> Iterator[int]:
        """A descriptor of a directory, reached without following a link below the root."""
        fd = self._open_root(make)
        try:
            for name in path:
                below = _open_directory(name, fd, make)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _open_root(self, make: bool) -> int:
        flags = _DIRECTORY & ~os.O_NOFOLLOW
        try:
            return os.open(self._root, flags)
        except FileNotFoundError:
            if not make:
                raise
        self._root.mkdir(parents=True, exist_ok=True)
        return os.open(self._root, flags)


class _Partial(Draft):
    """Becomes visible when it is whole. A process that is killed leaves it where it was begun."""

    def __init__(self, tree: LocalTree, fd: int, partial: Parts, path: Parts, is_new: bool) -> None:
        self.fd = fd
        self._tree, self._partial, self._path, self._is_new = tree, partial, path, is_new

    def publish(self) -> None:
        os.fsync(self.fd)
        self._tree.publish(self._partial, self._path, self._is_new)

    def discard(self) -> None:
        with suppress(OSError):
            self._tree.remove_file(self._partial)


class _Appended(Draft):
    """What is written to the end of a file is there at once."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def publish(self) -> None:
        os.fsync(self.fd)

    def discard(self) -> None:
        pass


def _open_directory(name: str, above: int, make: bool) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=above)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        raise _link_error(name, above, error) from None
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
        os.fsync(above)
    return _open_directory(name, above, make=False)


def _open_file(name: str, flags: int, above: int) -> int:
    try:
        fd = os.open(name, flags | _FILE, 0o666, dir_fd=above)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise irregular() from None
        raise _link_error(name, above, error) from None
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise irregular()
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _link_error(name: str, above: int, error: OSError) -> OSError:
    """The error as the user is to have it: that of a link differs with what it was opened as."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        with suppress(OSError):
            if stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                return link_refused()
    return error


def _stat(name: str, found: os.stat_result) -> Stat:
    kind: Kind = "other"
    if stat.S_ISREG(found.st_mode):
        return Stat(name, "file", found.st_size, found.st_mtime)
    if stat.S_ISDIR(found.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(found.st_mode):
        kind = "link"
    return Stat(name, kind, 0, found.st_mtime)
