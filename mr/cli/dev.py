"""``jobx dev``: front end and worker in one command, with a directory whose every saved change is applied."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing, suppress
from typing import NamedTuple

import click

from mr.cli.directories import bring_in, lines, read
from mr.cli.edge import Command, looks_in, message_of, say, warn
from mr.cli.lock import DevLock
from mr.cli.supervisor import Child, Supervisor
from mr.config import Bind, Config
from mr.errors import InvalidConfig, InvalidHandler, InvalidInput, JobxError, StoreError, WorkflowNotFound
from mr.kv.base import Store
from mr.model import catalog, keys

FIRST_PORT = 8080
PORTS_TRIED = 1000
STORE_PAUSE_S = 1.0

_BACKLOG = 2048


@click.command(
    cls=Command, example="$ jobx dev words\n$ jobx dev words --port 0 --runners 4 --data-dir /tmp/words-data"
)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--host", metavar="H", help="Where to listen; 127.0.0.1, if not given.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="P",
    help=f"0: any that is free. Not given: the next free one from {FIRST_PORT}.",
)
@click.option("--runners", type=click.IntRange(1, 1024), metavar="N", help="How many handlers run at once.")
@click.option("--data-dir", metavar="D", help="Where everything is kept.")
def dev(directory: str | None, host: str | None, port: int | None, runners: int | None, data_dir: str | None) -> None:
    """Start front end and worker, with the workflow in DIR.

    Every change that is saved in DIR is applied; one that has a problem is told, and what was there before stays. The
    first line on standard output, `JobX is ready at URL`, comes once requests are taken. SIGINT or SIGTERM stop it.
    """
    warn(os.environ)
    environ = dict(os.environ)
    if runners is not None:
        environ["MR_RUNNERS"] = str(runners)
    if data_dir is not None:
        environ["MR_DATA_DIR"] = os.path.abspath(data_dir)
    config = Config.read(environ)
    address = choose(config, host, port)
    environ["MR_BIND"] = str(Bind(address.host, address.port or FIRST_PORT))
    config = Config.read(environ)
    check_exposure(config, address, host)
    code = run(config, environ, address, directory)
    if code:
        raise click.exceptions.Exit(code)


# --- the address -------------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """Where to listen. Without ``port``, at the next free one; ``asked`` is how a given one was."""

    host: str
    port: int | None
    asked: str = ""


def choose(config: Config, host: str | None, port: int | None) -> Address:
    """
    :raises InvalidConfig: the settings name a Unix socket.
    """
    is_set = "bind" in config.sources
    if config.bind.path and (host is None or port is None):
        raise InvalidConfig(
            f"MR_BIND is '{config.bind}', and `jobx dev` listens on a host's port. Unset it, or give --host and "
            "--port; `jobx server` and `jobx worker` serve a Unix socket.",
            "MR_BIND",
        )
    host = host or config.bind.host
    if port is not None:
        return Address(host, port, f"--port {port}")
    if is_set:
        return Address(host, config.bind.port, f"MR_BIND={config.bind}")
    return Address(host, None)


def check_exposure(config: Config, address: Address, host: str | None) -> None:
    """As the configuration does it, in the words of the option where that was given.

    :raises InvalidConfig: others than this machine could reach it, and it would let in everyone.
    """
    from mr import app

    try:
        config.check_exposure(lambda: app.has_tokens(config))
    except InvalidConfig:
        if host is None:
            raise
        port = "any port" if address.port == 0 else f"port {address.port or f'{FIRST_PORT} or the next free one'}"
        raise InvalidConfig(
            f"With --host {host} other machines can reach JobX, on {port}, and there are no API tokens. Make "
            "one with `jobx token create`, set MR_API_TOKENS, leave --host out, or set MR_ALLOW_ANONYMOUS=1 to let in "
            "everyone.",
            "MR_BIND",
        ) from None


def listen(address: Address) -> socket.socket:
    """A socket that listens there. It stays open as long as we run, so that a restarted front end loses no client.

    :raises InvalidConfig: the port is taken or forbidden, or the host is none of this machine.
    """
    if address.port is not None:
        try:
            return _listen(address.host, address.port)
        except OSError as error:
            shown = Bind(address.host, address.port)
            raise InvalidConfig(
                f"Nothing can listen on {shown} ({address.asked}): {error.strerror}. Choose another port, or leave it "
                f"out to have the next free one from {FIRST_PORT}.",
                "MR_BIND",
            ) from error
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        try:
            return _listen(address.host, port)
        except OSError as error:
            problem = error
            if isinstance(error, socket.gaierror) or error.errno not in _TAKEN:
                break
    raise InvalidConfig(
        f"Nothing can listen on {address.host} at a port from {FIRST_PORT}: {problem.strerror}. Give another --host, "
        "or --port 0 for any port.",
        "MR_BIND",
    ) from problem


_TAKEN = {errno.EADDRINUSE, errno.EACCES}


def _listen(host: str, port: int) -> socket.socket:
    [(family, kind, protocol, _, name), *_] = socket.getaddrinfo(
        host, port, socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM
    )
    listener = socket.socket(family, kind, protocol)
    try:
        # What a connection of the run before leaves behind does not keep the port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


# --- the directory -----------------------------------------------------------------------------------------------


Signature = dict[str, tuple[int, int, int, int]]


def signature(directory: str) -> Signature:
    """What tells one state of the files from the next: times, size and identity of everything that may be read."""
    found: Signature = {}
    waiting = [directory]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.name.startswith((".", "_")):
                        continue
                    with suppress(OSError):
                        one = entry.stat()
                        if not entry.is_dir():
                            found[entry.path] = (one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_ino)
                        elif not entry.is_symlink():
                            waiting.append(entry.path)
        except OSError:
            continue
    return found


class Watched:
    """A directory whose saved changes are applied. One that cannot be is told, and tried again when it is changed."""

    def __init__(self, directory: str, store: Store, lock: DevLock, say: Callable[[str], None]) -> None:
        self._directory, self._store, self._lock, self._say = directory, store, lock, say
        self._applied: Signature | None = None
        self._seen: Signature | None = None
        self._next = 0.0
        self._is_broken = False

    def begin(self) -> None:
        """Applies it for the first time.

        :raises InvalidInput: there is no such directory.
        :raises InvalidHandler: it cannot be read; all problems are told with it.
        :raises JobxError: it cannot be applied.
        """
        self._applied = self._seen = signature(self._directory)
        self._apply()

    def look(self) -> None:
        """Applies what was changed, once it has not changed since the last look: an editor may still be writing."""
        now = time.monotonic()
        if now < self._next:
            return
        found = signature(self._directory)
        # A tree of very many files is looked at less often.
        self._next = now + 10 * (time.monotonic() - now)
        is_settled, self._seen = found == self._seen, found
        if not is_settled or found == self._applied:
            return
        self._applied = found
        try:
            self._apply()
        except StoreError as error:
            self._say(f"{message_of(error)} The change of {self._directory} is tried again.")
            self._applied, self._next = None, time.monotonic() + STORE_PAUSE_S
        except InvalidHandler as error:
            self._is_broken = True
            self._say(message_of(error))
        except JobxError as error:
            self._is_broken = True
            self._say(f"{message_of(error)} Nothing was changed.")

    def _apply(self) -> None:
        found = read(self._directory)
        self._lock.take(found.workflow, self._directory)
        if not found.steps and has_steps(self._store, found.workflow):
            # A slow save, or a slip: as a change it would take every step and every job away.
            path = os.path.join(self._directory, "jobs.yaml")
            what = "has no steps" if os.path.exists(path) else "is missing"
            raise InvalidInput(
                f"{path} {what}: the steps and jobs of the workflow {found.workflow!r} would go with that. If it is "
                f"meant, run `jobx apply {self._directory}`."
            )
        for line in lines(found.workflow, bring_in(self._store, found)):
            self._say(line)
        if self._is_broken:
            self._is_broken = False
            self._say(f"{found.workflow}: all right again.")


def has_steps(store: Store, workflow: str) -> bool:
    try:
        return bool(catalog.read(store, workflow).manifest.steps)
    except WorkflowNotFound:
        return False


def tell_what_goes_on(store: Store, workflows: Collection[str], say: Callable[[str], None]) -> None:
    """Requests that an earlier run left are worked on at once, which may be a surprise."""
    found = store.count(keys.LIVE) if not workflows else sum(store.count(keys.live(name, "")) for name in workflows)
    if found:
        say("1 request goes on." if found == 1 else f"{found:,} requests go on.")


# --- the supervisor ----------------------------------------------------------------------------------------------


def run(config: Config, environ: Mapping[str, str], address: Address, directory: str | None) -> int:
    """Everything from the first look at the directory to the end; the exit code.

    :raises JobxError: it cannot begin.
    """
    from mr import app

    with ExitStack() as stack:
        lock = stack.enter_context(closing(DevLock(config.data_dir)))
        # Before anything is written: what the directory, another `jobx dev` or the port have against it.
        if directory is not None:
            lock.take(read(directory).workflow, directory)
        listener = stack.enter_context(closing(listen(address)))
        host, port = address.host, listener.getsockname()[1]
        if address.port is None and port != FIRST_PORT:
            say(f"Port {FIRST_PORT} is taken: using {port}.")
        looks_in(config)
        store = stack.enter_context(closing(app.open_store(config)))
        watched: Watched | None = None
        if directory is not None:
            watched = Watched(directory, store, lock, say)
            watched.begin()
        tell_what_goes_on(store, config.workflow_names, say)
        settings = {**defaults(Bind(host, port)), **environ, "MR_BIND": str(Bind(host, port))}
        descriptor = listener.fileno()
        front = Child("front end", ("serve", "main"), [f"--listen-fd={descriptor}"], settings, [descriptor], say)
        worker = Child("worker", ("programs", "worker"), ["--quiet"], settings, [], say)
        return Supervisor(
            [front, worker],
            on_ready=lambda: tell_ready(Bind(host, port)),
            # While we held it, new clients would be kept waiting for nobody.
            on_stop=listener.close,
            on_turn=watched.look if watched is not None else lambda: None,
            say=say,
        ).run()


def defaults(bind: Bind) -> dict[str, str]:
    """What a platform that serves this machine alone has where nothing else is set."""
    settings = {"MR_PUBLIC_URL": f"http://{bind}"}
    if bind.is_local:
        settings["MR_OUTGOING_ALLOW"] = "localhost,127.0.0.0/8,::1"
    return settings


def tell_ready(bind: Bind) -> None:
    # Whoever started us may not care.
    with suppress(OSError):
        print(f"JobX is ready at http://{bind}", flush=True)
