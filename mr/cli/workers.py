"""``jobx worker``, which works, and ``jobx worker list``, which shows who does."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from mr.cli import output, programs
from mr.cli.edge import Group, config, say, store, told
from mr.model import catalog, workers
from mr.model.workers import Seen


class _Group(Group):
    """A group that is a command, too: its errors are told by the edge."""

    def invoke(self, ctx: click.Context) -> Any:
        with told(ctx):
            return super().invoke(ctx)


@click.group(
    "worker",
    cls=_Group,
    data_dir=True,
    invoke_without_command=True,
    example="$ MR_RUNNERS=8 jobx worker\n$ jobx worker list",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--quiet", is_flag=True, help="Log warnings and errors only.")
@click.pass_context
def group(ctx: click.Context, ready_fd: int | None, quiet: bool) -> None:
    """Work on requests, until SIGINT or SIGTERM.

    A worker consumes the messages of its workflows, for the capabilities that it has, and runs handlers in processes
    apart from itself. It logs to standard error.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(programs.worker, ready_fd=ready_fd, quiet=quiet)


@group.command("list", example="$ jobx worker list words --json")
@click.argument("workflow", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_all(workflow: str | None, as_json: bool) -> None:
    """List the live workers, a line each: those of a workflow, or all.

    A worker shows from when it serves a workflow, and no longer than its lease (MR_LEASE_S) after it died.
    """
    opened, served = store(), config().workflow_names
    if workflow is not None:
        catalog.read(opened, workflow, served)
        served = (workflow,)
    seen = workers.everyone(opened, served)
    if as_json:
        output.document([{**msgspec.to_builtins(one.registration), "workflows": list(one.workflows)} for one in seen])
        return
    if not seen:
        of = f" of the workflow {workflow!r}" if workflow else ""
        say(f"There is no live worker{of}. Start one: `jobx worker`. (One without a workflow to serve does not show.)")
        return
    columns = ["worker", "host", "pid", "capabilities", "runners", "workflows", "age"]
    output.table(columns, map(_row, seen), right=["pid", "runners", "age"])


def _row(seen: Seen) -> tuple[str, ...]:
    from mr.trace.text import duration

    one = seen.registration
    # Its clock may be ahead of ours.
    age = duration(max(0.0, time.time() - one.started_timestamp))
    capabilities, workflows = ",".join(one.capabilities), ",".join(seen.workflows)
    return one.worker_name, one.host, str(one.pid), capabilities, str(one.runners), workflows, age
