"""``jobx``: one program for everything."""

from __future__ import annotations

import click

from mr import __version__
from mr.cli import (
    completion,
    deliveries,
    dev,
    directories,
    doctor,
    fs,
    keeping,
    programs,
    redriving,
    requests,
    tokens,
    watching,
    workers,
)
from mr.cli.edge import Group


@click.group(cls=Group, example="$ jobx dev words")
@click.version_option(__version__, prog_name="jobx")
def main() -> None:
    """MapReduce behind a URL.

    `jobx dev DIR` starts everything on this machine, with the workflow in DIR. Settings are MR_... variables of the
    environment: see `jobx config`.
    """


for part in (watching.watch, redriving.redrive_request, keeping.keep_request, keeping.cleanup_requests):
    requests.group.add_command(part)

for command in (
    dev.dev,
    workers.group,
    programs.server,
    directories.apply,
    directories.diff,
    requests.group,
    fs.group,
    deliveries.group,
    deliveries.webhook,
    tokens.group,
    programs.show_config,
    doctor.doctor,
    completion.completion,
):
    main.add_command(command)
