"""Files that are being written and are seen whole or not at all."""

from __future__ import annotations

import io
import os
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any

from mr.fs.tree import Draft


class WholeFile(io.FileIO):
    """The file under a writer: it publishes its draft when it is closed, unless it was abandoned before.

    ``path`` is what it is called in errors.
    """

    def __init__(self, draft: Draft, path: str, mode: str) -> None:
        super().__init__(draft.fd, mode)
        self._draft, self._path = draft, path
        # A process that a handler forked has copies of its files, and they are not its own.
        self._owner = os.getpid()
        self._is_open = True
        self._broken: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # It cannot be whole any more, even where whoever wrote it catches this.
            self._broken = error
            raise

    def abandon(self) -> None:
        """Forgets what was written. What is written from now on goes nowhere. May be repeated."""
        if self._is_open:
            self._is_open = False
            self._draft.discard()

    def close(self) -> None:
        """
        :raises OSError: the file could not be written; nothing of it is seen.
        """
        try:
            if self._is_open and os.getpid() == self._owner:
                self._is_open = False
                self._publish()
        finally:
            super().close()

    def _publish(self) -> None:
        try:
            if self._broken is not None:
                raise self._broken
            self._draft.publish()
        except OSError as error:
            self._draft.discard()
            raise OSError(error.errno, error.strerror, self._path) from error.__cause__
        except BaseException:
            self._draft.discard()
            raise


class BinaryWriter(io.BufferedWriter):
    raw: WholeFile

    def __init__(self, whole: WholeFile) -> None:
        super().__init__(whole, 64 * 1024)

    def abandon(self) -> None:
        self.raw.abandon()
        with suppress(OSError, ValueError):
            self.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class TextWriter(io.TextIOWrapper):
    buffer: BinaryWriter

    def abandon(self) -> None:
        self.buffer.raw.abandon()
        with suppress(OSError, ValueError):
            self.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class Unfinished:
    """The writers that are open, so that the end of a handler is the end of what it has open."""

    def __init__(self) -> None:
        self._writers: weakref.WeakSet[BinaryWriter | TextWriter] = weakref.WeakSet()

    def add(self, writer: BinaryWriter | TextWriter) -> None:
        self._writers.add(writer)

    def close(self) -> None:
        """Publishes what is still open.

        :raises OSError: something could not be written.
        """
        if self._writers:
            writers = self._take()
            try:
                for writer in writers:
                    writer.close()
            except BaseException:
                for writer in writers:
                    writer.abandon()
                raise

    def abandon(self) -> None:
        """Forgets what is still open. Raises nothing."""
        for writer in self._take():
            writer.abandon()

    def _take(self) -> list[BinaryWriter | TextWriter]:
        writers, self._writers = list(self._writers), weakref.WeakSet()
        return writers
