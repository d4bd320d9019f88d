"""What the engine needs of a shared filesystem: files that are written once and appear whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from mr.findings import Finding


class Writer(ABC):
    """A file in the making. Nobody sees it until it is settled."""

    @abstractmethod
    def append(self, line: bytes) -> None:
        """Adds a line; ``line`` has no line break in it.

        :raises FilesUnavailable: it could not be written.
        """

    @abstractmethod
    def settle(self) -> None:
        """Makes it visible under its name, whole. A file of that name is replaced.

        :raises FilesUnavailable: it could not be written.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forgets what was written. May be repeated, also after :meth:`settle`, where it does nothing."""


class Usage(NamedTuple):
    """How many files there are, and how many bytes in them."""

    files: int
    bytes: int


class Files(ABC):
    """A tree of files, named by paths of ``/``-separated parts. Safe to use from several threads and processes."""

    @abstractmethod
    def create(self, name: str) -> Writer:
        """Begins a file.

        :raises FilesUnavailable: it cannot be written there.
        """

    @abstractmethod
    def lines(self, name: str) -> Iterator[bytes] | None:
        """The lines of a file, without their breaks; None when there is none of that name.

        :raises FilesUnavailable: it cannot be read.
        """

    @abstractmethod
    def remove_tree(self, name: str) -> None:
        """Removes everything below a name. May be repeated.

        :raises FilesUnavailable: something could not be removed.
        """

    @abstractmethod
    def usage(self, name: str) -> Usage:
        """What is below a name, also what is not settled yet.

        :raises FilesUnavailable: it cannot be read.
        """

    def identity(self) -> str:
        """Tells this tree from others, on whichever machine one asks; empty where there is no way to tell.

        :raises FilesUnavailable: it cannot be read or written.
        """
        return ""

    def examine(self) -> list[Finding]:
        """What its technology can say about its health, within seconds. It raises nothing."""
        return []
