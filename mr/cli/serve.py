"""The front end as a program, ``python -m mr.cli.serve``: what starts it for the commands.

Configured by the environment. Prints nothing on standard output; logs to standard error.
"""

from __future__ import annotations

# isort: off
from mr.web import patched  # noqa: F401 - before anything else is imported
# isort: on

import argparse
import os
import socket
import sys
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress

from mr.app import has_tokens, make_env, open_platform
from mr.config import Config
from mr.errors import InvalidConfig, JobxError
from mr.handlers.system import die_with_parent
from mr.web import logs
from mr.web.aside import elsewhere
from mr.web.front import Front
from mr.web.server import serve, start_app

_SYSTEMD_FD = 3


def application() -> Callable[..., Iterable[bytes]]:
    """The WSGI application of this environment, for those who run gunicorn themselves: see ``resources``.

    :raises JobxError: it cannot begin.
    """
    config = Config.read(os.environ)
    config.check_exposure(lambda: has_tokens(config))
    return start_app(lambda: make_front(config))


def make_front(config: Config) -> Front:
    return Front(open_platform(config), config, make_env(config))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mr.cli.serve", description="Serves JobX's front end.")
    parser.add_argument("--listen-fd", type=int, metavar="N", help="serve this listening socket instead of MR_BIND")
    parser.add_argument(
        "--ready-fd", type=int, metavar="N", help="write the address there, a line, by each process that takes requests"
    )
    parser.add_argument(
        "--die-with-parent", type=int, metavar="PID", help="be killed when that process, our parent, ends"
    )
    parser.add_argument("--access-log", action="store_true", help="log a line for each answer")
    options = parser.parse_args()
    if options.die_with_parent is not None:
        die_with_parent(options.die_with_parent)
    logs.to_stderr()
    # Gunicorn would say it when no process of it can take requests yet.
    service = os.environ.pop("NOTIFY_SOCKET", "")

    def tell(address: str) -> None:
        if service:
            tell_systemd(service, f"READY=1\nSTATUS=Serving {address}")
        if options.ready_fd is not None:
            # Who wanted to know may have heard it from another process, and gone.
            with suppress(OSError):
                os.write(options.ready_fd, f"{address}\n".encode())

    try:
        config = Config.read(os.environ)
        listen_fd = options.listen_fd if options.listen_fd is not None else given_by_systemd(os.environ)
        serve(
            config,
            make_front,
            listen_fd,
            tell,
            has_stored_tokens=lambda: elsewhere(lambda: has_tokens(config)),
            has_access_log=options.access_log,
        )
    except JobxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def given_by_systemd(environ: MutableMapping[str, str]) -> int | None:
    """The socket of the service's ``.socket`` unit. Takes the variables that tell of it away.

    :raises InvalidConfig: there are several.
    """
    process, number = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    if process != str(os.getpid()):
        return None
    if number != "1":
        raise InvalidConfig(f"systemd hands over {number} sockets: give the .socket unit one ListenStream.", "MR_BIND")
    return _SYSTEMD_FD


def tell_systemd(path: str, state: str) -> None:
    """See sd_notify(3)."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.connect(f"\0{path[1:]}" if path.startswith("@") else path)
        service.sendall(state.encode())


if __name__ == "__main__":
    sys.exit(main())
