"""Files and directories that appear whole, or not at all, below a directory that nothing leads out of.

What is being written is a *draft*: it stands in a directory ``.writing`` beside what is finished, with a lock file that
its writer has locked for as long as it lives. So the next writer can tell what one that was killed has left, and
removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Literal, NamedTuple

from mr.errors import DeliveryFailed

STAGING = ".writing"
MARKER = ".delivery"
"""A file in every finished directory, which says by which delivery it was made."""

_LOCK, _OLD = ".lock", ".old"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_TRIES = 10
_FILES_BY_THEMSELVES = 100


class Draft(NamedTuple):
    """What is being written: a file or a directory of that name in the directory ``staging``, a descriptor."""

    staging: int
    name: str


# --- directories ----------------------------------------------------------------------------------------------------


@contextmanager
def directory(root: str, parts: Sequence[str]) -> Iterator[int]:
    """A descriptor of the directory with those names below ``root``. What is missing is made.

    :raises DeliveryFailed: one of them is a link, a file, or a directory that is a finished result itself.
    :raises OSError: it cannot be opened or made.
    """
    os.makedirs(root, exist_ok=True)
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for depth, part in enumerate(parts):
            child = _child(current, part, os.path.join(root, *parts[: depth + 1]))
            os.close(current)
            current = child
        yield current
    finally:
        os.close(current)


def _child(parent: int, name: str, path: str) -> int:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        pass
    else:
        os.fsync(parent)
    try:
        child = os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            what = f"{path} is a link or a file: results are written into directories only."
            raise DeliveryFailed(what, spares_place=True) from error
        raise
    if made_by(child, ".") is not None:
        os.close(child)
        raise DeliveryFailed(f"{path} is a result itself: nothing else is written into it.", is_final=True)
    return child


def made_by(parent: int, name: str) -> str | None:
    """The delivery that made that directory; None where it is something else, or nothing."""
    try:
        marker = os.open(f"{name}/{MARKER}", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError:
        return None
    with open(marker, encoding="utf-8", errors="replace") as file:
        return file.read(1000).strip()


# --- drafts -----------------------------------------------------------------------------------------------------------


@contextmanager
def draft(root: str, workflow: str, kind: Literal["file", "directory"]) -> Iterator[Draft]:
    """Room for something new, which is removed at the end unless it was settled.

    :raises OSError: there is none.
    """
    with directory(root, [workflow, STAGING]) as staging:
        _remove_abandoned(staging)
        name, lock = _locked(staging)
        try:
            if kind == "directory":
                os.mkdir(name, dir_fd=staging)
            else:
                os.close(create(staging, name))
            yield Draft(staging, name)
        finally:
            _discard(staging, name)
            os.close(lock)


def create(parent: int, name: str) -> int:
    """A descriptor to write a new file by.

    :raises FileExistsError: there is one of that name.
    """
    return os.open(name, _NEW, 0o666, dir_fd=parent)


@contextmanager
def inside(made: Draft) -> Iterator[int]:
    """A descriptor of a draft that is a directory."""
    descriptor = os.open(made.name, _DIRECTORY, dir_fd=made.staging)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(staging: int) -> tuple[str, int]:
    while True:
        name = secrets.token_hex(8)
        lock = os.open(f"{name}{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=staging)
        # Some network filesystems have no locks: there nothing is ever taken for abandoned.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return name, lock
        # Somebody took it for abandoned before it was locked.
        os.close(lock)


def _remove_abandoned(staging: int) -> None:
    with os.scandir(staging) as entries:
        locks = [entry.name for entry in entries if entry.name.endswith(_LOCK)]
    for file in locks:
        with suppress(OSError):
            lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW, dir_fd=staging)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _discard(staging, file.removesuffix(_LOCK))
            finally:
                os.close(lock)


def _discard(staging: int, name: str) -> None:
    for leftover in (name, f"{name}{_OLD}"):
        remove(staging, leftover)
    with suppress(FileNotFoundError):
        os.unlink(f"{name}{_LOCK}", dir_fd=staging)


def remove(parent: int, name: str) -> None:
    """A file, or a directory and everything in it; links are removed and not followed. May be repeated."""
    try:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            os.unlink(name, dir_fd=parent)
            return
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            while names := _some(descriptor):
                for one in names:
                    remove(descriptor, one)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _some(descriptor: int) -> list[str]:
    # What is removed while it is listed may hide others.
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in islice(entries, 10_000)]


# --- settling -----------------------------------------------------------------------------------------------------


def settle_file(made: Draft, target: int, name: str) -> None:
    """Gives a file its name, which another file may have had before. It was synced by whoever wrote it.

    :raises OSError: that cannot be; of a directory of that name, ``IsADirectoryError``.
    """
    os.replace(made.name, name, src_dir_fd=made.staging, dst_dir_fd=target)
    os.fsync(target)


def settle_directory(made: Draft, target: int, name: str, delivery_id: str) -> None:
    """Gives a directory its name, and has everything in it on the disk before.

    What the same delivery has made already stays. A directory of another delivery is replaced: between the two there
    is, for a moment, none of that name.

    :raises DeliveryFailed: something else stands there.
    :raises OSError: it cannot be.
    """
    with inside(made) as descriptor:
        with open(create(descriptor, MARKER), "w") as marker:
            marker.write(f"{delivery_id}\n")
        _sync(descriptor)
    for _ in range(_TRIES):
        try:
            os.rename(made.name, name, src_dir_fd=made.staging, dst_dir_fd=target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            os.fsync(target)
            return
        maker = made_by(target, name)
        if maker == delivery_id:
            return
        if maker is None and _exists(target, name):
            raise DeliveryFailed(
                f"There is something that no result writer has made in the place of {name!r}: it is not replaced.",
                is_final=True,
            )
        remove(made.staging, f"{made.name}{_OLD}")
        with suppress(FileNotFoundError):
            os.rename(name, f"{made.name}{_OLD}", src_dir_fd=target, dst_dir_fd=made.staging)
    raise DeliveryFailed(f"Others write {name!r} all the time.")


def _exists(parent: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def _sync(directory: int) -> None:
    """Has every file in it on the disk. One by one, a thousand of them take a second."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in islice(entries, _FILES_BY_THEMSELVES + 1)]
    if len(names) > _FILES_BY_THEMSELVES and _sync_filesystem(directory):
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            file = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                os.fsync(file)
            finally:
                os.close(file)
    os.fsync(directory)


def _sync_filesystem(descriptor: int) -> bool:
    """Linux's ``syncfs``, which Python does not have; False where there is none.

    :raises OSError: something could not be written.
    """
    library = ctypes.CDLL(None, use_errno=True)
    syncfs = getattr(library, "syncfs", None)
    if syncfs is None:
        return False
    if syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return True
