"""The trees that the contract of files is held against. A new driver is a line in ``DRIVERS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from mr.fs.fsspec_tree import FsspecTree
from mr.fs.local_tree import LocalTree
from mr.fs.memory import MemoryTree
from mr.fs.tree import Tree


def _fsspec(directory: Path) -> Tree:
    """What any client of fsspec gives, on the one that needs no server."""
    (directory / "root").mkdir()
    return FsspecTree(LocalFileSystem(), str(directory / "root"))


DRIVERS: dict[str, Callable[[Path], Tree]] = {
    "local": lambda directory: LocalTree(directory / "root"),
    "memory": lambda directory: MemoryTree(),
    "fsspec": _fsspec,
}
