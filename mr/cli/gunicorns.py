"""``mr_start_gunicorn_dev`` and ``mr_start_gunicorn_prod``: a front end for nginx, with a worker beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing, suppress

import click

from mr.cli.edge import Command, looks_in, say, warn
from mr.cli.supervisor import Child, Supervisor
from mr.config import Config, one_per_cpu

SOCKET = "unix:/tmp/mr.gunicorn.sock"
"""Where nginx looks for the front end: see ``nginx/jobx.conf``."""


@click.command(
    cls=Command, example="$ mr_start_gunicorn_dev\n$ MR_CONSUME=0 MR_BIND=127.0.0.1:8080 mr_start_gunicorn_dev"
)
def dev() -> None:
    """Start front end and worker, and tell on the terminal what they do.

    The front end listens on unix:/tmp/mr.gunicorn.sock, or where MR_BIND says, in one process unless MR_WEB_PROCESSES
    says otherwise, and logs every answer. The first line on standard output, `JobX is ready at ADDRESS`, comes once
    requests are taken. With MR_CONSUME=0 there is no worker. SIGINT or SIGTERM stop it in order.
    """
    run(dict(os.environ), ["--access-log"])


@click.command(
    cls=Command, example="$ mr_start_gunicorn_prod\n$ MR_WEB_PROCESSES=4 MR_CONSUME=0 mr_start_gunicorn_prod"
)
def prod() -> None:
    """Start front end and worker, for many clients.

    The front end listens on unix:/tmp/mr.gunicorn.sock, or where MR_BIND says, in one process a CPU unless
    MR_WEB_PROCESSES says otherwise. Answers are not logged: nginx does that. The first line on standard output, `JobX
    is ready at ADDRESS`, comes once requests are taken. With MR_CONSUME=0 there is no worker. SIGINT or SIGTERM stop it
    in order.
    """
    environ = dict(os.environ)
    if not environ.get("MR_WEB_PROCESSES", "").strip():
        environ["MR_WEB_PROCESSES"] = str(one_per_cpu())
    run(environ, [])


def run(environ: Mapping[str, str], options: list[str]) -> None:
    """
    :raises JobxError: it cannot begin.
    """
    from mr import app
    from mr.web.listening import Listener

    warn(environ)
    settings = dict(environ)
    if not settings.get("MR_BIND", "").strip():
        settings["MR_BIND"] = SOCKET
    config = Config.read(settings)
    config.check_exposure(lambda: app.has_tokens(config))
    looks_in(config)
    with closing(Listener(config.bind)) as listener:
        # Held here, so that a front end that is started again loses no client.
        descriptor = listener.fileno()
        settings["MR_BIND"] = str(listener.bind)
        front_options = [f"--listen-fd={descriptor}", *options]
        children = [Child("front end", ("serve", "main"), front_options, settings, [descriptor], say)]
        if config.consume:
            children.append(Child("worker", ("programs", "worker"), [], settings, [], say))

        def tell() -> None:
            # Whoever started us may not care.
            with suppress(OSError):
                print(f"JobX is ready at {'' if config.bind.path else 'http://'}{listener.bind}", flush=True)

        code = Supervisor(children, on_ready=tell, on_stop=listener.close, say=say).run()
    if code:
        raise click.exceptions.Exit(code)
