"""What a technology has to offer so that workflows can keep files on it: one class each."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import BinaryIO, Literal, NamedTuple

Parts = tuple[str, ...]
"""A path from the tree's root, in its names. None of them is empty, ``.``, ``..`` or has a ``/`` in it."""

Kind = Literal["file", "directory", "link", "other"]


def link_refused() -> PermissionError:
    """What is raised where a symbolic link is come upon."""
    return PermissionError(errno.EACCES, "It is a symbolic link, and links are not followed")


def irregular() -> OSError:
    """What is raised where something is a pipe, a device or the like."""
    return OSError(errno.EINVAL, "It is neither a file nor a directory")


class Stat(NamedTuple):
    """What is known of one name. ``size`` is in bytes, 0 but for files; ``modified`` in seconds since 1970."""

    name: str
    kind: Kind
    size: int = 0
    modified: float | None = None

    @property
    def is_file(self) -> bool:
        return self.kind == "file"

    @property
    def is_directory(self) -> bool:
        return self.kind == "directory"


class Draft(ABC):
    """A file that is being written, through the descriptor ``fd`` of a file on this machine."""

    fd: int

    @abstractmethod
    def publish(self) -> None:
        """Makes what was written last, and visible under its name. The descriptor is the caller's to close.

        :raises OSError: it could not be; nothing is visible.
        """

    @abstractmethod
    def discard(self) -> None:
        """Forgets what was written, as far as it is not visible yet. Raises nothing; may be repeated."""


class Tree(ABC):
    """Directories and files. Safe to use from several threads and processes; errors are of ``OSError``'s family.

    A symbolic link below the root is never followed: on the way to something it is a ``PermissionError``, and as the
    thing itself a name of kind ``link`` that can be removed.
    """

    @abstractmethod
    def stat(self, path: Parts) -> Stat:
        """:raises FileNotFoundError, NotADirectoryError: it is not there; a file is where a directory should be."""

    @abstractmethod
    def list(self, path: Parts) -> list[Stat]:
        """What is in a directory, in no order.

        :raises FileNotFoundError, NotADirectoryError: there is no such directory.
        """

    @abstractmethod
    def make_directory(self, path: Parts) -> None:
        """Makes it, and those above it that are missing.

        :raises FileExistsError, NotADirectoryError: something has its name, or a file that of one above it.
        """

    @abstractmethod
    def read(self, path: Parts) -> BinaryIO:
        """:raises FileNotFoundError, IsADirectoryError, NotADirectoryError: there is no such file."""

    @abstractmethod
    def write(self, path: Parts, mode: Literal["w", "x", "a"], partial: Parts) -> Draft:
        """Begins a file; directories above it that are missing are made.

        ``w`` replaces what is there, ``x`` needs nothing to be there when it is published, ``a`` adds to it.
        ``partial`` is a directory of the same tree for what is not whole yet, for trees that need one.

        :raises IsADirectoryError, NotADirectoryError: something else has its name, or that of a directory above it.
        """

    @abstractmethod
    def rename(self, path: Parts, to: Parts) -> None:
        """Moves a file or a directory, and makes what is missing above its new name; a file there is replaced.

        :raises OSError: ``EINVAL``, a directory was to be moved into itself.
        """

    @abstractmethod
    def remove_file(self, path: Parts) -> None:
        """Removes a file or a link.

        :raises FileNotFoundError, IsADirectoryError: there is none.
        """

    @abstractmethod
    def remove_directory(self, path: Parts) -> None:
        """Removes an empty directory.

        :raises OSError: ``ENOTEMPTY``, something is in it.
        """

    def tidy(self, partial: Parts, before: float) -> None:
        """Removes what was begun in ``partial`` before that time, in seconds since 1970, and never ended."""
        del partial, before
