"""A tree in the memory of one process, for tests: nobody else sees what is in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.memory import MemoryFileSystem

from mr.fs.fsspec_tree import FsspecTree
from mr.fs.tree import Parts


class _OwnMemory(MemoryFileSystem):  # type: ignore[misc]
    """Of its own: fsspec's is one for all of the process."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, Any] = {}
        self.pseudo_dirs = [""]


class MemoryTree(FsspecTree):
    def __init__(self) -> None:
        super().__init__(_OwnMemory(), "")

    def read(self, path: Parts) -> BinaryIO:
        with super().read(path):
            # Fsspec has all readers of a file share one position.
            return io.BytesIO(self._filesystem.cat_file(self._name(path)))

    def send(self, file: str, name: str) -> None:
        self._filesystem.pipe_file(name, Path(file).read_bytes())
