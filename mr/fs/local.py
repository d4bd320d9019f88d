"""A directory of this machine as the shared filesystem."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from mr.errors import FilesUnavailable
from mr.findings import Finding
from mr.fs.base import Files, Usage, Writer
from mr.local.disk import examine_space

_IDENTITY = ".identity"


class _LocalWriter(Writer):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise FilesUnavailable(f"{path} cannot be written: {error}") from error

    def append(self, line: bytes) -> None:
        try:
            self._file.write(line)
            self._file.write(b"\n")
        except OSError as error:
            raise FilesUnavailable(f"{self._path} cannot be written: {error}") from error

    def settle(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self._path)
            _sync_directory(self._path.parent)
        except OSError as error:
            raise FilesUnavailable(f"{self._path} cannot be written: {error}") from error

    def discard(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    """Without it a power cut may take back the new name, though not what is in the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LocalFiles(Files):
    """``root`` is made when the first file is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def create(self, name: str) -> Writer:
        return _LocalWriter(self._root / name)

    def lines(self, name: str) -> Iterator[bytes] | None:
        try:
            file = (self._root / name).open("rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FilesUnavailable(f"{self._root / name} cannot be read: {error}") from error

        def read() -> Iterator[bytes]:
            with file:
                for line in file:
                    yield line.rstrip(b"\n")

        return read()

    def remove_tree(self, name: str) -> None:
        try:
            shutil.rmtree(self._root / name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise FilesUnavailable(f"{self._root / name} cannot be removed: {error}") from error

    def usage(self, name: str) -> Usage:
        number = size = 0

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise FilesUnavailable(f"{error.filename} cannot be read: {error}") from error

        for directory, _, files in os.walk(self._root / name, onerror=refuse):
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    size += os.lstat(os.path.join(directory, file)).st_size
                    number += 1
        return Usage(number, size)

    def identity(self) -> str:
        path = self._root / _IDENTITY
        try:
            if not path.exists():
                self._root.mkdir(parents=True, exist_ok=True)
                mine = path.with_name(f"{_IDENTITY}.{secrets.token_hex(4)}")
                mine.write_text(secrets.token_hex(16))
                # Of several who try at once, one wins, also on a network filesystem, and nobody reads half of it.
                with contextlib.suppress(FileExistsError):
                    os.link(mine, path)
                mine.unlink()
            return path.read_text()
        except OSError as error:
            raise FilesUnavailable(f"{path} cannot be made: {error}") from error

    def examine(self) -> list[Finding]:
        return [examine_space(self._root)]
