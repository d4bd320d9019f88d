"""One ``jobx dev`` a workflow and data directory: two would take each other's changes back."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from mr.errors import Conflict, InvalidConfig


class DevLock:
    """The right to serve a workflow from a directory. It ends with the process that took it, however that ends."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._workflow = ""
        self._fd = -1

    def take(self, workflow: str, directory: str) -> None:
        """Takes the right for a workflow, and gives back that for another. May be repeated.

        :raises Conflict: another process has it.
        :raises InvalidConfig: nothing can be written in the data directory.
        """
        if workflow == self._workflow:
            return
        path = self._data_dir / f"dev-{workflow}.lock"
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not inherited by what is started: a child that outlived us would hold the lock.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidConfig(f"{path} cannot be written: {error.strerror}. Choose another --data-dir.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with open(fd, encoding="utf-8", errors="replace") as file:
                process, _, other = file.read().partition("\n")
            told = f" from {other} (process {process})" if other else ""
            raise Conflict(
                f"`jobx dev` already serves the workflow {workflow!r}{told}. Stop it, or use --data-dir."
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n{os.path.abspath(directory)}".encode("utf-8", "surrogateescape"))
        self.close()
        self._workflow, self._fd = workflow, fd

    def close(self) -> None:
        # The file stays: who removed it could remove one that another process has locked by now.
        if self._fd >= 0:
            os.close(self._fd)
            self._workflow, self._fd = "", -1
