"""Any filesystem that fsspec has a client for as a tree.

A technology's module makes the client and, where the technology needs it, overrides what can be done better.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO, Literal

from fsspec import AbstractFileSystem

from mr.fs.tree import Draft, Kind, Parts, Stat, Tree, link_refused


class FsspecTree(Tree):
    """``root`` is a path of the filesystem's own, as a bucket and a prefix.

    A file is written on this machine and sent when it is whole; what is added to one is sent with all that it has, so
    that of two who add at once one may win. Moving a directory moves its files one by one. Nothing that fsspec reads as
    a pattern (``*``, ``?``, ``[``) is one here.
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def stat(self, path: Parts) -> Stat:
        for end in range(1, len(path)):
            # Object stores have neither directories nor a way to say that a file is no directory.
            with suppress(FileNotFoundError):
                _check_directory(self._look(path[:end]))
        return self._look(path)

    def list(self, path: Parts) -> list[Stat]:
        _check_directory(self.stat(path))
        found = self._filesystem.ls(self._name(path), detail=True, refresh=True)
        return [_stat(info) for info in found if info["name"].rstrip("/") != self._name(path)]

    def make_directory(self, path: Parts) -> None:
        with suppress(FileNotFoundError):
            self.stat(path)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._filesystem.makedirs(self._name(path), exist_ok=True)

    def read(self, path: Parts) -> BinaryIO:
        _check_file(self.stat(path))
        file: BinaryIO = self._filesystem.open(self._name(path), "rb")
        return file

    def write(self, path: Parts, mode: Literal["w", "x", "a"], partial: Parts) -> Draft:
        self._make_above(path)
        file = tempfile.NamedTemporaryFile(prefix="jobx-", buffering=0)  # noqa: SIM115 it is the draft's to close
        try:
            with suppress(FileNotFoundError):
                _check_file(self.stat(path))
                if mode == "a":
                    with self.read(path) as before:
                        while piece := before.read(io.DEFAULT_BUFFER_SIZE * 32):
                            file.write(piece)
        except BaseException:
            file.close()
            raise
        return _Unsent(self, file, path, is_new=mode == "x")

    def publish(self, file: str, path: Parts, is_new: bool) -> None:
        """Sends a file of this machine."""
        self._make_above(path)
        if is_new:
            with suppress(FileNotFoundError):
                self._look(path)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.send(file, self._name(path))

    def send(self, file: str, name: str) -> None:
        """To be overridden where a file that is sent can be seen in part."""
        self._filesystem.put_file(file, name)

    def rename(self, path: Parts, to: Parts) -> None:
        if to[: len(path)] == path and len(to) > len(path):
            raise OSError(errno.EINVAL, "A directory cannot be moved into itself")
        found = self.stat(path)
        self._make_above(to)
        if found.is_directory:
            self._filesystem.makedirs(self._name(to), exist_ok=True)
            for below in self.list(path):
                self.rename((*path, below.name), (*to, below.name))
            self._filesystem.rmdir(self._name(path))
        elif path != to:
            self._filesystem.cp_file(self._name(path), self._name(to))
            self._filesystem.rm_file(self._name(path))

    def remove_file(self, path: Parts) -> None:
        if self.stat(path).is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._filesystem.rm_file(self._name(path))

    def remove_directory(self, path: Parts) -> None:
        if self.list(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        self._filesystem.rmdir(self._name(path))

    def _name(self, path: Parts) -> str:
        return "/".join((self._root, *path))

    def _look(self, path: Parts) -> Stat:
        return _stat(self._filesystem.info(self._name(path)))

    def _make_above(self, path: Parts) -> None:
        if len(path) > 1:
            with suppress(FileNotFoundError):
                _check_directory(self.stat(path[:-1]))
                return
            self._filesystem.makedirs(self._name(path[:-1]), exist_ok=True)


class _Unsent(Draft):
    def __init__(self, tree: FsspecTree, file: Any, path: Parts, is_new: bool) -> None:
        self.fd = os.dup(file.fileno())
        self._tree, self._file, self._path, self._is_new = tree, file, path, is_new

    def publish(self) -> None:
        self._tree.publish(self._file.name, self._path, self._is_new)
        self.discard()

    def discard(self) -> None:
        with suppress(OSError):
            self._file.close()


def _check_directory(found: Stat) -> None:
    if found.kind == "link":
        raise link_refused()
    if not found.is_directory:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _check_file(found: Stat) -> None:
    if found.kind == "link":
        raise link_refused()
    if found.is_directory:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _stat(info: dict[str, Any]) -> Stat:
    name = info["name"].rstrip("/").rpartition("/")[2]
    modified = info.get("mtime", info.get("LastModified", info.get("created")))
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    kind: Kind = info["type"] if info["type"] in ("file", "directory") else "other"
    if info.get("islink"):
        kind = "link"
    return Stat(name, kind, int(info.get("size") or 0) if kind == "file" else 0, modified)
