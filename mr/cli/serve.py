"""The front end as a program, ``python -m mr.cli.serve``: what ``jobx server`` and ``jobx dev`` start.

Configured by the environment. Prints nothing on standard output; logs to standard error.
"""

from __future__ import annotations

# isort: off
from mr.web import patched  # noqa: F401 - before anything else is imported
# isort: on

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from mr.app import make_env, open_platform
from mr.config import Config
from mr.errors import JobxError
from mr.handlers.system import die_with_parent
from mr.web import logs
from mr.web.front import Front
from mr.web.server import serve, start_app


def application() -> Callable[..., Iterable[bytes]]:
    """The WSGI application of this environment, for those who run gunicorn themselves: see ``resources/gunicorn.py``.

    :raises JobxError: it cannot begin.
    """
    config = Config.read(os.environ)
    config.check_exposure()
    return start_app(lambda: Front(open_platform(config), config, make_env(config)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mr.cli.serve", description="Serves JobX's front end.")
    parser.add_argument("--listen-fd", type=int, metavar="N", help="serve this listening socket instead of MR_BIND")
    parser.add_argument(
        "--ready-fd", type=int, metavar="N", help="write the address there, a line, by each process that takes requests"
    )
    parser.add_argument(
        "--die-with-parent", type=int, metavar="PID", help="be killed when that process, our parent, ends"
    )
    options = parser.parse_args()
    if options.die_with_parent is not None:
        die_with_parent(options.die_with_parent)
    logs.to_stderr()

    def tell(address: str) -> None:
        if options.ready_fd is not None:
            # Who wanted to know may have heard it from another process, and gone.
            with suppress(OSError):
                os.write(options.ready_fd, f"{address}\n".encode())

    try:
        config = Config.read(os.environ)

        def make_front() -> Front:
            return Front(open_platform(config), config, make_env(config))

        serve(config, make_front, options.listen_fd, tell)
    except JobxError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
