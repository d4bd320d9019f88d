"""``jobx doctor``: is all well, and if not, what is to be done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import click

from mr.cli import output
from mr.cli.edge import Command, environment, say
from mr.config import Config
from mr.errors import InvalidConfig
from mr.findings import Finding, counted

_PATIENCE_S = 15.0
"""How long the checks, which go on side by side, may take."""

T = TypeVar("T")


class _Aside(Generic[T]):
    """A check in a thread of its own, which nobody waits for longer than is reasonable."""

    def __init__(self, name: str, look: Callable[[], T]) -> None:
        self._name, self._look = name, look
        self._answer: T
        self._error: Exception | None = None
        self._began = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer = self._look()
        except Exception as error:
            self._error = error
        self._ended.set()

    def answer(self, otherwise: Callable[[Finding], T]) -> T:
        """What the check found, or what ``otherwise`` makes of why it did not come to its end."""
        if not self._ended.wait(max(0.0, self._began + _PATIENCE_S - time.monotonic())):
            text = f"No answer within {_PATIENCE_S:g} s."
            return otherwise(Finding("problem", self._name, text, "See whether it hangs, and what it is busy with."))
        if self._error is not None:
            text = f"The check went wrong: {type(self._error).__name__}: {self._error}."
            return otherwise(Finding("problem", self._name, text, "Mend what it names, or report it to JobX."))
        return self._answer


@click.command(cls=Command, data_dir=True, example="$ jobx doctor\n$ jobx doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: whether all is well, and what was found.")
def doctor(as_json: bool) -> None:
    """See whether all is well, and say what to do where it is not.

    Looks at the settings, the store, the queue, the files, clocks, workers and what they can do, from this machine and
    with its settings: a line for each. Exits with 0 where all is well, also with warnings, and with 1 where something
    is wrong.
    """
    # What drivers log on their way is told by the findings.
    logging.getLogger("mr").addHandler(logging.NullHandler())
    found = examine()
    is_well = all(finding.level != "problem" for finding in found)
    if as_json:
        output.document({"is_well": is_well, "findings": [finding._asdict() for finding in found]})
    else:
        output.table(["", "check", "found"], map(_row, found))
        problems, warnings = (sum(finding.level == level for finding in found) for level in ("problem", "warning"))
        if problems or warnings:
            say(f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}.")
    if not is_well:
        raise click.exceptions.Exit(1)


def examine() -> list[Finding]:
    """All findings, in the order of the checks."""
    # They know of every technology; no other command should have to wait for that.
    from mr.cli import checks
    from mr.notify import notifier
    from mr.results import writing

    try:
        config = Config.read(environment())
    except InvalidConfig as error:
        return [Finding("problem", "settings", str(error), "Correct it; nothing else could be looked at.")]
    store = _Aside("store", lambda: checks.store(config))
    queue = _Aside("queue", lambda: checks.queue(config))
    files = _Aside("files", lambda: checks.files(config))
    graphviz = _Aside("graphviz", checks.graphviz)
    # Meanwhile, here: processes that it starts end with the thread that started them.
    handlers = checks.sandbox(config)
    of_store, facts = store.answer(lambda finding: ([finding], None))
    of_queue, backlogs = queue.answer(lambda finding: ([finding], None))
    of_files, identity = files.answer(lambda finding: ([finding], ""))
    found = [*checks.settings(config, environment()), *of_store, *of_queue]
    if facts is not None and backlogs is not None:
        found += checks.topics(backlogs, facts, config.workflow_names)
    found += of_files
    if facts is not None:
        found += checks.shared_files(config, identity, facts.workers)
    found += handlers
    if facts is not None:
        found += checks.live_workers(facts, config.workflow_names)
        found += checks.capabilities(facts)
    found += notifier.examine(config)
    found += writing.examine(config)
    found += checks.exposure(config, facts is not None and facts.has_tokens)
    found += graphviz.answer(lambda finding: [finding])
    # Several things may be on one disk.
    return list(dict.fromkeys(found))


def _row(finding: Finding) -> tuple[str, str, str]:
    return finding.level, finding.check, f"{finding.text} {finding.advice}".strip()
