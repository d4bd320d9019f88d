"""Files that are being written and are seen whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import weakref
from contextlib import suppress
from types import TracebackType
from typing import Any

from mr.fs.tree import Draft

_BUFFER_BYTES = 64 * 1024


class WholeFile(io.FileIO):
    """The file under a writer: it publishes its draft when it is closed, unless it was abandoned before.

    ``path`` is what it is called in errors.
    """

    def __init__(self, draft: Draft, path: str, mode: str) -> None:
        super().__init__(draft.fd, mode)
        self._draft, self._path = draft, path
        # A process that a handler forked has copies of its files, with what is in their buffers.
        self._owner = os.getpid()
        self._is_open = True
        self._broken: OSError | None = None

    def write(self, data: Any, /) -> int:
        if os.getpid() != self._owner:
            raise OSError(errno.EBADF, "This file is written by the process that has opened it", self._path)
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
    """What is written when nobody has it any more is published, too; ``unfinished`` hears of it if that fails."""

    raw: WholeFile

    def __init__(self, whole: WholeFile, unfinished: Unfinished) -> None:
        super().__init__(whole, _BUFFER_BYTES)
        self.unfinished = unfinished

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

    def __del__(self) -> None:
        try:
            self.close()
        except OSError as error:
            self.unfinished.lose(error)


class TextWriter(io.TextIOWrapper):
    """As a binary one."""

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

    def __del__(self) -> None:
        try:
            self.close()
        except OSError as error:
            self.buffer.unfinished.lose(error)
        except ValueError:
            # It never came to be: its encoding is unknown.
            pass


class Unfinished:
    """The writers that are open, so that the end of a handler is the end of what it has open."""

    def __init__(self) -> None:
        self._writers: weakref.WeakSet[BinaryWriter | TextWriter] = weakref.WeakSet()
        self._lost: OSError | None = None

    def add(self, writer: BinaryWriter | TextWriter) -> None:
        self._writers.add(writer)

    def lose(self, error: OSError) -> None:
        """A writer that nobody had any more could not publish what was written."""
        self._lost = self._lost or error

    def close(self) -> None:
        """Publishes what is still open.

        :raises OSError: something could not be written, now or when nobody had it any more.
        """
        if self._writers or self._lost is not None:
            writers, lost = self._take()
            try:
                for writer in writers:
                    writer.close()
                if lost is not None:
                    raise lost
            except BaseException:
                for writer in writers:
                    writer.abandon()
                raise

    def abandon(self) -> None:
        """Forgets what is still open. Raises nothing."""
        writers, _ = self._take()
        for writer in writers:
            writer.abandon()

    def _take(self) -> tuple[list[BinaryWriter | TextWriter], OSError | None]:
        writers, self._writers = list(self._writers), weakref.WeakSet()
        lost, self._lost = self._lost, None
        return writers, lost
