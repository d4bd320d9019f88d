"""``jobx``: one program for everything."""

from __future__ import annotations

import click

from mr import __version__
from mr.cli import deliveries, dev, directories, doctor, fs, programs, requests, tokens, watching, workers
from mr.cli.edge import Group


@click.group(cls=Group, example="$ jobx dev words")
@click.version_option(__version__, prog_name="jobx")
def main() -> None:
    """MapReduce behind a URL.

    `jobx dev DIR` starts everything on this machine, with the workflow in DIR. Settings are MR_... variables of the
    environment: see `jobx config`.
    """


requests.group.add_command(watching.watch)

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
):
    main.add_command(command)
