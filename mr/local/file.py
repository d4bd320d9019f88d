"""One SQLite file that many processes, threads and greenlets of a machine write, fairly and without surprises."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from mr.errors import JobxError
from mr.findings import Finding, size
from mr.local.disk import examine_space, is_networked

# Only programs that know nothing of the lock file can make SQLite itself wait.
_BUSY_S = 5.0

# A checkpoint costs two waits for the disk, whatever its size; at SQLite's 1,000 pages they would be most of the work.
_CHECKPOINT_PAGES = 4000
_WAL_BYTES_KEPT = 64 << 20

_HINTS = {
    "disk is full": "free some space on its disk",
    "readonly": "this user, or its filesystem, does not allow writing",
    "malformed": "it is damaged: restore it, or move it away to begin anew",
    "not a database": "something else stands there: move it away, or choose another path",
    "locked": "another program keeps it locked",
    "unable to open": "see that its directory exists and is writable",
    "I/O error": "its disk or filesystem fails",
}


class SqliteFile:
    """A SQLite database in WAL mode.

    Readers never wait. Writers take turns by an ``flock`` on a file beside the database: with SQLite's own busy
    timeout, which polls, processes that write all the time starve each other for seconds. Checkpoints happen within
    a turn, too.

    :param path: where the file is, or will be; its directory is made, for this user only, if it is missing.
    :param schema: statements that make the tables of a new file.
    :param kind: what the file holds, as in ``"store"``; a file of another kind is refused.
    :param version: of the schema; a file of another version is refused.
    :param unavailable: what is raised, for this and for whatever SQLite or the filesystem says later.
    """

    def __init__(
        self, path: str | os.PathLike[str], schema: str, *, kind: str, version: int, unavailable: type[JobxError]
    ) -> None:
        # Absolute, so that a process may change its working directory.
        self.path = Path(path).absolute()
        self._kind = kind
        # SQLite has 31 bits to tell kinds of files apart.
        self._mark = zlib.crc32(f"jobx {kind}".encode()) >> 1
        self._version = version
        self._unavailable = unavailable
        self._turn = threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._writer: sqlite3.Connection | None = None
        self._durable: bool | None = None
        self._closed = False
        self._lock = -1
        with self._translated(OSError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = self._open_lock()
            try:
                with self._turn, self._translated(), self._flocked():
                    self._prepare(schema)
            except BaseException:
                os.close(self._lock)
                raise
        _files.add(self)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading, this caller's alone while it is lent. Each statement reads one snapshot.

        For several statements over one snapshot execute ``BEGIN`` first; the transaction ends with the block.
        """
        with self._translated():
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._connect(readonly=True)
            try:
                yield connection
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            except BaseException:
                connection.close()
                raise
            # Whoever closes the file empties the list after setting the flag, so look again after adding.
            self._readers.append(connection)
            if self._closed:
                self._close_readers()

    @contextmanager
    def write(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection inside a write transaction, which is committed at the end of the block.

        An exception rolls it back. ``durable``: the commit waits until the disk has it; without, it survives the
        death of every process, but the newest ones may be undone by a power cut (never some of one only). Blocks
        until it is this caller's turn, and is not reentrant.
        """
        with self._turn, self._translated(), self._flocked():
            connection = self._writer or self._open_writer()
            try:
                if durable is not self._durable:
                    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
            except BaseException as error:
                self._roll_back(connection, error)
                raise

    def examine(self) -> list[Finding]:
        """How it is with the file and its disk."""
        what = self._kind
        try:
            with self.read() as connection:
                (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            bytes_taken = sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*"))
        except (JobxError, OSError) as error:
            return [Finding("problem", what, str(error), "Until it can be read, nothing works: see to its disk.")]
        text = f"SQLite {sqlite3.sqlite_version}, {self.path}, {size(bytes_taken)}, journal mode {mode}."
        found = [Finding("ok", what, text)]
        if is_networked(self.path):
            advice = "Put it on a disk of this machine (MR_DATA_DIR): it relies on locks that such filesystems lose."
            found = [Finding("problem", what, f"{self.path} is on a network filesystem.", advice)]
        return [*found, examine_space(self.path)]

    def close(self) -> None:
        """Lets go of all connections, except those lent, which go when they are given back. May be repeated."""
        if self._closed:
            return
        with self._turn:
            self._closed = True
            _files.discard(self)
            # The last connection to be closed checkpoints: that, too, is done in turn.
            with self._flocked(closing=True):
                self._close_readers()
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
            os.close(self._lock)

    def _prepare(self, schema: str) -> None:
        if not self.path.exists():
            # For this user only, like the directory, which may be older and open to others. Exclusively: closing a
            # descriptor of a database that this process has open would drop its POSIX locks.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        # What is not ours must not even be switched to WAL.
        connection = self._connect(readonly=True)
        try:
            is_new = self._identify(connection)
        finally:
            connection.close()
        connection = self._open_writer()
        if is_new:
            try:
                connection.executescript(
                    f"BEGIN IMMEDIATE; {schema}; "
                    f"PRAGMA application_id = {self._mark}; PRAGMA user_version = {self._version}; COMMIT"
                )
            except BaseException:
                connection.close()
                self._writer = None
                raise

    def _identify(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is new; refuses one that is neither new nor ours."""
        (mark,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if mark == version == tables == 0:
            return True
        if mark != self._mark:
            raise self._unavailable(
                f"{self.path} is a SQLite file, but not a {self._kind} of JobX. Move it away, or choose another path."
            )
        if version != self._version:
            raise self._unavailable(
                f"The {self._kind} {self.path} has format {version}, and this JobX knows format "
                f"{self._version} only. Use the JobX that wrote it, or begin anew at another path."
            )
        return False

    def _connect(self, *, readonly: bool) -> sqlite3.Connection:
        if self._closed:
            raise self._unavailable(f"The {self._kind} {self.path} was closed.")
        connection = sqlite3.connect(
            # mode=rw: a file that was taken away must not come back empty.
            f"file:{quote(str(self.path))}?mode=rw",
            uri=True,
            timeout=_BUSY_S,
            isolation_level=None,
            cached_statements=256,
            # Lent to one thread at a time, but not always to the one that made it.
            check_same_thread=False,
        )
        try:
            if readonly:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_writer(self) -> sqlite3.Connection:
        connection = self._connect(readonly=False)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise self._unavailable(f"The filesystem of {self.path} cannot share a SQLite file between processes.")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        except BaseException:
            connection.close()
            raise
        self._writer, self._durable = connection, None
        return connection

    def _roll_back(self, connection: sqlite3.Connection, error: BaseException) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as second:
            error = second
        if isinstance(error, sqlite3.Error):
            # After a disk that failed, say, a fresh connection has no state to mistrust.
            connection.close()
            self._writer = None

    def _close_readers(self) -> None:
        with suppress(IndexError):
            while True:
                self._readers.pop().close()

    def _open_lock(self) -> int:
        return os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _flocked(self, closing: bool = False) -> Iterator[None]:
        if self._closed and not closing:
            raise self._unavailable(f"The {self._kind} {self.path} was closed.")
        with self._translated(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    @contextmanager
    def _translated(self, kind: type[Exception] = sqlite3.Error) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake in this program
        except kind as error:
            hint = next((hint for words, hint in _HINTS.items() if words in str(error)), "")
            raise self._unavailable(
                f"The {self._kind} {self.path} cannot be used: {error}{f' ({hint})' if hint else ''}."
            ) from error

    def _leave_to_parent(self) -> None:
        """In a forked child: starts over, since SQLite connections must neither be used nor closed there."""
        _abandoned.extend(self._readers)
        if self._writer is not None:
            _abandoned.append(self._writer)
        self._readers = []
        self._writer = None
        self._turn = threading.Lock()
        # The lock is shared with the parent as long as the descriptor is, and would outlive its death.
        inherited, self._lock = self._lock, -1
        os.close(inherited)
        self._lock = self._open_lock()


_files: weakref.WeakSet[SqliteFile] = weakref.WeakSet()
_abandoned: list[sqlite3.Connection] = []


def _after_fork() -> None:
    for file in list(_files):
        file._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
