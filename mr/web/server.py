"""Serves the front end with gunicorn."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import gunicorn.glogging
from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from mr.config import Config
from mr.errors import JobxError
from mr.web.application import create_app
from mr.web.front import Front
from mr.web.listening import BACKLOG, Listener, bind_of
from mr.web.worker import FrontWorker

log = logging.getLogger(__name__)

CONNECTIONS = 8192
"""How many clients a process serves at a time. A client that waits for its request is one; it costs about 20 KiB."""

GRACEFUL_S = 10
"""How long answers may take that are under way when the server stops. Nobody waits for a request any more then."""

KEEPALIVE_S = 75
"""How long an idle connection is kept: longer than by nginx, so that it never sends into one that is closed."""

ACCESS = "%(r)s %(s)s %(b)s bytes %(M)s ms request=%({x-mr-request-id}o)s client=%(h)s"
"""A line of the access log."""

_SPARE_DESCRIPTORS = 256


class Logger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """Gunicorn's messages go where all others go."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for its_own in (self.error_log, self.access_log):
            its_own.handlers.clear()
            its_own.propagate = True


class Program(BaseApplication):  # type: ignore[misc]
    """What gunicorn runs. The application is made in each worker, after it was forked."""

    def __init__(self, options: dict[str, Any], make_front: Callable[[], Front]) -> None:
        self._options = options
        self._make_front = make_front
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            # Gunicorns of different age have different settings.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def run(self) -> None:
        arbiter = Arbiter(self)
        # It takes away the path of a Unix socket when it ends, though others may go on listening, unless it believes
        # that systemd made the socket. Who made it takes it away.
        arbiter.systemd = True
        arbiter.run()

    def load(self) -> Flask:
        try:
            return start_app(self._make_front)
        except JobxError as error:
            log.error("The front end cannot start: %s", error)
            # Gunicorn would start another worker for ever; with this code it gives up.
            sys.exit(Arbiter.WORKER_BOOT_ERROR)


def start_app(make_front: Callable[[], Front]) -> Flask:
    """The application over a new front end, which has begun to follow the store. For a process that forks no more.

    :raises JobxError: whatever ``make_front`` raises.
    """
    front = make_front()
    front.start()
    return create_app(front)


def serve(
    config: Config,
    make_front: Callable[[Config], Front],
    listen_fd: int | None = None,
    on_ready: Callable[[str], None] = lambda address: None,
    *,
    has_stored_tokens: Callable[[], bool] = lambda: False,
    has_access_log: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT, then exits with 0; with another code where it could not start.

    ``make_front`` is called in each worker process, with the configuration as it is served. ``listen_fd`` is a
    listening socket to serve instead of ``config.bind``. ``has_stored_tokens`` is asked in this process, which forks
    afterwards. ``on_ready`` is called in each worker process, once it takes requests, with ``HOST:PORT`` or
    ``unix:PATH``. The runtime has to be patched for greenlets (see ``patched``) before this module is imported.

    :raises InvalidConfig: it would be open to others without tokens, or nothing can listen there.
    """
    with ExitStack() as stack:
        if listen_fd is None:
            config.check_exposure(has_stored_tokens)
            listener = stack.enter_context(closing(Listener(config.bind)))
            # Gunicorn closes it as soon as it stops, so that nobody connects any more who would not be served.
            listen_fd, bind = listener.socket.detach(), listener.bind
        else:
            with socket.socket(fileno=os.dup(listen_fd)) as given:
                bind = bind_of(given)
            config = dataclasses.replace(config, bind=bind)
            config.check_exposure(has_stored_tokens)
        allow_descriptors(CONNECTIONS + _SPARE_DESCRIPTORS)
        options = settings(config, has_access_log) | {
            "bind": f"fd://{listen_fd}",
            "post_worker_init": lambda worker: on_ready(str(bind)),
        }
        Program(options, lambda: make_front(config)).run()


def settings(config: Config, has_access_log: bool = False) -> dict[str, Any]:
    """What gunicorn is told."""
    return {
        "bind": str(config.bind),
        "workers": config.web_processes,
        "worker_class": f"{FrontWorker.__module__}.{FrontWorker.__qualname__}",
        "worker_connections": CONNECTIONS,
        "backlog": BACKLOG,
        "keepalive": KEEPALIVE_S,
        "graceful_timeout": GRACEFUL_S,
        # A worker gives a sign of life four times a second; a store that blocks for so long is broken.
        "timeout": 120,
        "logger_class": Logger,
        "loglevel": "warning",
        # Where to is decided by the logger.
        "accesslog": "-" if has_access_log else None,
        "access_log_format": ACCESS,
        # Whose word is taken for who the client is, and for what, is decided by the application.
        "forwarded_allow_ips": "",
        "forwarder_headers": "",
        "secure_scheme_headers": {},
        "control_socket_disable": True,
        "proc_name": "jobx",
    }


def allow_descriptors(number: int) -> None:
    """Raises the limit of open files, which is often 1,024, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
