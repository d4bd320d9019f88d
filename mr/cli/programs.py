"""``jobx worker``, ``jobx server`` and ``jobx config``."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

import click

from mr.cli import output
from mr.cli.edge import Command, config, environment, looks_in

BOOT = (
    # What lies about in the current directory must not stand in for a module of the same name.
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "parent = int(sys.argv.pop(1)); "
    "from mr.handlers.system import die_with_parent; "
    # Before the imports that take their time.
    "parent and die_with_parent(parent); "
    "from mr.cli.{module} import {name} as program; sys.exit(program())"
)


def command_line(module: str, name: str, *arguments: str, parent: int = 0) -> list[str]:
    """What starts a program of the package, in the interpreter that runs this one.

    With ``parent``, its process ID, the program is killed when its parent ends.
    """
    return [sys.executable, "-c", BOOT.format(module=module, name=name), str(parent), *arguments]


@click.command(cls=Command, example="$ MR_RUNNERS=8 mr_start_worker")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--quiet", is_flag=True, help="Log warnings and errors only.")
def worker(ready_fd: int | None, quiet: bool) -> None:
    """Work on requests, until SIGINT or SIGTERM.

    A worker consumes the messages of its workflows, for the capabilities that it has, and runs handlers in processes
    apart from itself. It logs to standard error.
    """
    from mr import app
    from mr.web import logs

    found = config(is_quiet=quiet)
    looks_in(found)
    logs.to_stderr(logging.WARNING if quiet else logging.INFO)

    def tell() -> None:
        if ready_fd is not None:
            # Who wanted to know may have gone.
            with suppress(OSError):
                os.write(ready_fd, b"ready\n")

    code = app.run_worker(found, tell)
    if code:
        raise click.exceptions.Exit(code)


@click.command(cls=Command, data_dir=True, example="$ MR_BIND=127.0.0.1:8080 MR_WEB_PROCESSES=2 jobx server")
def server() -> None:
    """Serve the front end alone, until SIGINT or SIGTERM."""
    # Its warnings are told here; everything else the program says itself.
    config()
    sys.stdout.flush()
    command = command_line("serve", "main")
    os.execve(command[0], command, environment())


@click.command("config", cls=Command, data_dir=True, example="$ MR_RETENTION_S=60 jobx config --json")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def show_config(as_json: bool) -> None:
    """Show every setting, and where it comes from. Secrets are masked."""
    settings = config().describe()
    if as_json:
        output.document([setting._asdict() for setting in settings])
    else:
        output.table(["setting", "value", "source"], settings)
