"""``mr_kv_step_…``."""

from __future__ import annotations

import re

import click
import msgspec

from mr.cli import output
from mr.cli.edge import Command, say, store
from mr.cli.entities import known, put
from mr.errors import StepNotFound
from mr.model import catalog
from mr.model.catalog import Draft
from mr.model.entities import Step

_FIELDS = {"mapper": "map_handler_name", "combiner": "combine_handler_name", "reducer": "reduce_handler_name"}


def _check_tolerance(ctx: click.Context, param: click.Parameter, text: str) -> int | str:
    """A count, or a percentage such as ``10%``."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?%", text) and float(text[:-1]) <= 100:
        return text
    raise click.BadParameter(f"{text!r} is neither a count nor a percentage such as 10%.", ctx, param)


@click.command(
    cls=Command, example='$ mr_kv_step_create words count_long "Counts in long texts" split "" add --timeout 30'
)
@click.argument("workflow")
@click.argument("step")
@click.argument("description")
@click.argument("map_handler")
@click.argument("combine_handler")
@click.argument("reduce_handler")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=0.0,
    metavar="S",
    help="Seconds that one attempt of a handler may take; 0: the platform's limit.",
)
@click.option("--max-attempts", type=click.IntRange(1), default=1, metavar="N", help="How often a handler is tried.")
@click.option(
    "--partitions", type=click.IntRange(1, 1000), default=1, metavar="N", help="How many reduces share the keys."
)
@click.option(
    "--max-failed-children",
    callback=_check_tolerance,
    default="0",
    metavar="N|N%",
    help="How many children, or what share of them, may fail.",
)
def create(
    workflow: str,
    step: str,
    description: str,
    map_handler: str,
    combine_handler: str,
    reduce_handler: str,
    timeout: float,
    max_attempts: int,
    partitions: int,
    max_failed_children: int | str,
) -> None:
    """Make a step of a mapper, a combiner ('' for none) and a reducer."""
    record = Step(
        step_name=step,
        workflow_name=workflow,
        description=description,
        map_handler_name=map_handler,
        combine_handler_name=combine_handler,
        reduce_handler_name=reduce_handler,
        timeout_s=timeout,
        max_attempts=max_attempts,
        partitions=partitions,
        max_failed_children=max_failed_children,
    )
    how = (
        f"mr_kv_step_set_handler {workflow} {step} changes its handlers; for the rest, delete it first: "
        f"mr_kv_step_delete {workflow} {step}"
    )
    put(workflow, "step", step, record, how)


@click.command(cls=Command, example="$ mr_kv_step_delete words count_long")
@click.argument("workflow")
@click.argument("step")
def delete(workflow: str, step: str) -> None:
    """Delete a step that no job starts with."""
    catalog.change(store(), workflow, lambda draft: draft.delete_step(step))
    say(f"The step {step!r} is deleted.")


@click.command(cls=Command, example="$ mr_kv_step_get words count")
@click.argument("workflow")
@click.argument("step")
def get(workflow: str, step: str) -> None:
    """Print a step as JSON."""
    steps = catalog.read(store(), workflow).manifest.steps
    if step not in steps:
        raise StepNotFound("step", step, known(steps))
    output.entity("step", step, steps[step])


@click.command("list", cls=Command, example="$ mr_kv_step_list words")
@click.argument("workflow")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def list_all(workflow: str, as_json: bool) -> None:
    """List the steps of a workflow."""
    steps = sorted(catalog.read(store(), workflow).manifest.steps.items())
    if as_json:
        output.entities("step", steps)
        return
    rows = [
        (name, one.map_handler_name, one.combine_handler_name, one.reduce_handler_name, one.description)
        for name, one in steps
    ]
    output.table(["step", "mapper", "combiner", "reducer", "description"], rows)


@click.command(cls=Command, example="$ mr_kv_step_set_handler words count_long -m split_lines -c add")
@click.argument("workflow")
@click.argument("step")
@click.option("-m", "--mapper", metavar="MAPPER", help="The new mapper.")
@click.option("-c", "--combiner", metavar="COMBINER", help="The new combiner; '' for none.")
@click.option("-r", "--reducer", metavar="REDUCER", help="The new reducer.")
def set_handler(workflow: str, step: str, mapper: str | None, combiner: str | None, reducer: str | None) -> None:
    """Give a step other handlers."""
    given = {"mapper": mapper, "combiner": combiner, "reducer": reducer}
    changes = {_FIELDS[role]: name for role, name in given.items() if name is not None}
    if not changes:
        raise click.UsageError("Give at least one of -m, -c and -r.")
    changed: list[Step] = []

    def edit(draft: Draft) -> None:
        if step not in draft.steps:
            raise StepNotFound("step", step, known(draft.steps))
        changed[:] = [msgspec.structs.replace(draft.steps[step], **changes)]
        draft.steps[step] = changed[0]

    if not catalog.change(store(), workflow, edit):
        say(f"The step {step!r} has these handlers already.")
    output.entity("step", step, changed[0])


@click.command(cls=Command, example="$ mr_kv_step_update_handlers words mapper split split_lines -s")
@click.argument("workflow")
@click.argument("handler_type", type=click.Choice(list(_FIELDS)))
@click.argument("old", metavar="FROM")
@click.argument("new", metavar="TO")
@click.option("-s", "--simulate_only", is_flag=True, help="Say what would change, and change nothing.")
def update_handlers(workflow: str, handler_type: str, old: str, new: str, simulate_only: bool) -> None:
    """Replace a handler in every step that uses it as a mapper, combiner or reducer."""
    field = _FIELDS[handler_type]

    def edit(draft: Draft) -> None:
        for name, step in draft.steps.items():
            if getattr(step, field) == old:
                draft.steps[name] = msgspec.structs.replace(step, **{field: new})

    changes = catalog.change(store(), workflow, edit, dry=simulate_only)
    for change in changes:
        click.echo(f"{change.name}: {handler_type} {old} -> {new}")
    would = "would be " if simulate_only else ""
    say(f"{len(changes)} step{'' if len(changes) == 1 else 's'} {would}changed.")
