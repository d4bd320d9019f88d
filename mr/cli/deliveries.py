"""``jobx delivery …`` and ``jobx webhook …``: what is owed to others, and what it is signed with."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click
import msgspec

from mr.cli import output
from mr.cli.edge import Group, config, say, store
from mr.config import Config
from mr.errors import Conflict, DeliveryNotFound, InvalidInput
from mr.findings import Finding
from mr.kv.base import Store
from mr.model import catalog, keys, secrets
from mr.model.catalog import Snapshot
from mr.model.deliveries import Delivery, parse_target, shown_target
from mr.model.entities import decode

_PAGE = 200


class _Found:
    """A stored delivery."""

    def __init__(self, key: str, record: Delivery, modified: int) -> None:
        self.key, self.record, self.modified = key, record, modified
        self.is_dead = key.startswith("dead/")


def _stored(opened: Store, prefix: str) -> Iterator[_Found]:
    after = ""
    while page := opened.list(prefix, after=after, limit=_PAGE):
        for entry in page:
            yield _Found(entry.key, decode(Delivery, entry.key, entry.value), entry.modified)
        after = page[-1].key


def _change(opened: Store, found: _Found, *, resend: bool) -> bool:
    """False: it was changed, or delivered, meanwhile."""
    from mr.engine import deliver
    from mr.engine.ops import Read
    from mr.engine.shell import to_txn

    read = Read(found.key, found.record, modified=found.modified)
    change = deliver.send_again(read, time.time()) if resend else deliver.drop(read)
    return catalog.settle(opened, to_txn(change))


def _find(opened: Store, workflow: str, delivery_id: str) -> _Found:
    """
    :raises DeliveryNotFound: it is neither outstanding nor dead.
    """
    subject = delivery_id.partition("_")[0]
    for prefix in (keys.deads(workflow), keys.deliveries(workflow)):
        # What is no ID may hold anything.
        for found in _stored(opened, f"{prefix}{subject}/") if subject.isascii() and subject.isprintable() else ():
            if found.record.delivery_id == delivery_id:
                return found
    raise DeliveryNotFound(
        "delivery", delivery_id, f"It was delivered or dropped, or never was. See: jobx delivery list {workflow}"
    )


# --- deliveries --------------------------------------------------------------------------------------------------


@click.group(
    "delivery",
    cls=Group,
    data_dir=True,
    example="$ jobx delivery list --dead\n$ jobx delivery resend words --all",
)
def group() -> None:
    """See what is still to be delivered, and what could not be: results, notifications, messages.

    What fails is tried again, with growing pauses, for as long as MR_DELIVERY_S says. Then it is dead: kept here for 30
    days, until it is sent again or dropped.
    """


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_id_argument = click.argument("delivery_id", metavar="[ID]", required=False)


@group.command("list", example="$ jobx delivery list\n$ jobx delivery list words --dead")
@click.argument("workflow", required=False)
@click.option("--dead", "is_dead", is_flag=True, help="Only what is not tried any more.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="How many at most.")
@_json_option
def list_all(workflow: str | None, is_dead: bool, limit: int, as_json: bool) -> None:
    """List what is outstanding, and what is dead: of a workflow, or of all."""
    opened = store()
    served = config().workflow_names
    if workflow is not None:
        catalog.read(opened, workflow, served)
    names = [workflow] if workflow is not None else catalog.workflow_names(opened, served)
    found: list[_Found] = []
    is_all = True
    for prefix in (keys.deads, *([] if is_dead else [keys.deliveries])):
        for name in names:
            for one in _stored(opened, prefix(name)):
                is_all = len(found) < limit
                if not is_all:
                    break
                found.append(one)
    if as_json:
        output.document([_document(one) for one in found])
    else:
        columns = ["delivery", "workflow", "event", "to", "tries", "next try", "last error"]
        output.table(columns, map(_row, found), right=["tries"], whole=["delivery"])
    if not is_all:
        say(f"There are more than these {limit}: see --limit.")


@group.command(
    "resend", example="$ jobx delivery resend words 1hq8y2nk3xw0c5t9e7_0_0\n$ jobx delivery resend words --all"
)
@click.argument("workflow")
@_id_argument
@click.option("--all", "is_all", is_flag=True, help="All that are dead.")
def resend(workflow: str, delivery_id: str | None, is_all: bool) -> None:
    """Have a delivery tried at once, and again for as long as in the beginning, whether it is dead or waits.

    It goes out under the ID that it had.
    """
    _change_them(workflow, delivery_id, is_all, resend=True)


@group.command("drop", example="$ jobx delivery drop words 1hq8y2nk3xw0c5t9e7_0_0")
@click.argument("workflow")
@_id_argument
@click.option("--all", "is_all", is_flag=True, help="All that are dead.")
def drop(workflow: str, delivery_id: str | None, is_all: bool) -> None:
    """Give up a delivery for good, whether it is dead or waits. It may be under way."""
    _change_them(workflow, delivery_id, is_all, resend=False)


def _change_them(workflow: str, delivery_id: str | None, is_all: bool, *, resend: bool) -> None:
    if is_all is (delivery_id is not None):
        raise click.UsageError("Give the ID of a delivery, or --all.")
    opened = store()
    catalog.read(opened, workflow, config().workflow_names)
    word = "to be sent again" if resend else "dropped"
    if delivery_id is None:
        number = sum(_change(opened, found, resend=resend) for found in _stored(opened, keys.deads(workflow)))
        what = "1 dead delivery" if number == 1 else f"{number:,} dead deliveries"
        say(f"{what} of {workflow!r}: {word}.")
        return
    found = _find(opened, workflow, delivery_id)
    if not _change(opened, found, resend=resend):
        raise Conflict(f"The delivery {delivery_id!r} was changed, or delivered, at this moment: look again.")
    say(f"The delivery {delivery_id} to {shown_target(found.record.target)} is {word}.")


def _row(found: _Found) -> tuple[str, ...]:
    record = found.record
    return (
        record.delivery_id,
        record.workflow_name,
        record.event,
        shown_target(record.target),
        str(record.attempts),
        "dead" if found.is_dead else _moment(record.due_timestamp),
        record.last_error,
    )


def _document(found: _Found) -> dict[str, Any]:
    data = msgspec.to_builtins(found.record)
    data |= {"target": shown_target(found.record.target), "is_dead": found.is_dead}
    return {"entity_name": "delivery", "primary_key": found.record.delivery_id, "data": data}


def _moment(timestamp: float) -> str:
    if timestamp <= time.time():
        return "now"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))


def never_told(config: Config, snapshot: Snapshot) -> Iterator[str]:
    """Whom a workflow and its jobs name though they are never told, with these settings, and why not."""
    workflow = snapshot.workflow
    named = {f"The workflow {workflow.workflow_name!r}": workflow.notify}
    for job in snapshot.manifest.jobs.values():
        named[f"The job {job.job_name!r} of {workflow.workflow_name!r}"] = job.notify
    for who, targets in named.items():
        for target in targets:
            # What it takes is loaded where there is somebody to be told.
            from mr.notify import notifier

            try:
                notifier.check(config, [target], workflow.outgoing_allow)
            except InvalidInput as error:
                yield f"{who} names {shown_target(parse_target(target).url)}, which is never told: {error}"


def warn(opened: Store, workflow: str) -> None:
    """Says so. The settings of front ends and workers may be others."""
    for text in never_told(config(), catalog.read(opened, workflow)):
        say(f"Warning: with the settings here, {text[0].lower()}{text[1:]}")


def examine(opened: Store, config: Config, workflows: Mapping[str, Snapshot]) -> list[Finding]:
    """For ``jobx doctor``: what was given up, and who is never told."""
    found = []
    for name, snapshot in workflows.items():
        found += _dead(opened, name)
        advice = "Correct the setting that it names, or the target."
        found += [Finding("warning", "deliveries", text, advice) for text in never_told(config, snapshot)]
    return found


def _dead(opened: Store, workflow: str) -> list[Finding]:
    first = opened.list(keys.deads(workflow), limit=1)
    if not first:
        return []
    one = decode(Delivery, first[0].key, first[0].value)
    number = opened.count(keys.deads(workflow))
    what = "A delivery" if number == 1 else f"{number:,} deliveries"
    text = f"{what} of {workflow!r} could not be made, as to {shown_target(one.target)}: {one.last_error}"
    advice = f"See `jobx delivery list {workflow} --dead`; mend it, then `jobx delivery resend {workflow} --all`."
    return [Finding("warning", "deliveries", text, advice)]


# --- webhooks ----------------------------------------------------------------------------------------------------


@click.group("webhook", cls=Group, data_dir=True, example="$ jobx webhook secret words")
def webhook() -> None:
    """What those need to know who are told by HTTP."""


@webhook.command("secret", example="$ jobx webhook secret words\n$ jobx webhook secret words --rotate")
@click.argument("workflow")
@click.option("--rotate", "is_rotated", is_flag=True, help="Make a new one. The one before it goes on signing, too.")
@click.option(
    "--set", "chosen", metavar="WHSEC", help="Use this one, as --rotate does a new one; -: read it from input."
)
@click.option("--forget-old", is_flag=True, help="Have the one before sign nothing any more.")
def secret(workflow: str, is_rotated: bool, chosen: str | None, forget_old: bool) -> None:
    """Print what a workflow's webhooks are signed with, a secret a line, the newest first.

    Each of them signs everything, so that receivers may go over from one to the next. Signatures are those of Standard
    Webhooks.
    """
    if chosen is not None and is_rotated:
        raise click.UsageError("--rotate makes a secret, and --set gives one: choose.")
    if forget_old and chosen is None and not is_rotated:
        raise click.UsageError("--forget-old goes with --rotate or --set.")
    opened = store()
    catalog.read(opened, workflow, config().workflow_names)
    if is_rotated or chosen is not None:
        given = sys.stdin.readline().strip() if chosen == "-" else chosen
        found = secrets.rotate(opened, workflow, given, keep_old=not forget_old)
    else:
        found = secrets.of_workflow(opened, workflow)
    for one in found:
        click.echo(one)
