"""A directory of handlers, with or without a ``jobs.yaml``: a workflow as files.

``map/test/split.py`` is the handler ``map_test_split``. Names that begin with ``_`` or ``.`` and unknown extensions are
skipped.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mr.errors import InvalidHandler, InvalidInput
from mr.handlers.documents import Document, nearest, parse_yaml, shown
from mr.handlers.header import processor_for, read_handler
from mr.model import names
from mr.model.catalog import Limits
from mr.model.deliveries import check_targets, check_writer
from mr.model.entities import Handler, Job, Step
from mr.outgoing.guard import check_allowed

JOBS_FILE = "jobs.yaml"
MAX_SOURCE_BYTES = 1024 * 1024
MAX_PARTITIONS = 1000

_WHAT_TO_WRITE = (
    "Write steps and jobs, as in 'steps: {count: {map: split, reduce: add}}' and, a line below, "
    "'jobs: {wordcount: {step: count}}'; or remove it, and there are handlers alone."
)
_STEP = ("map", "combine", "reduce", "timeout", "max_attempts", "partitions", "max_failed_children", "description")
_JOB = ("step", "description", "writer", "notify", "retention")
_LIMITS = ("open_requests", "invocations")
_POLICIES = ("writer", "notify", "retention", "outgoing_allow")
_ROLES = {"map": ("mapper",), "combine": ("combiner", "reducer"), "reduce": ("reducer", "combiner")}


@dataclass(frozen=True)
class Directory:
    """What a directory says, checked. ``skipped`` are paths relative to it; those of directories end with a slash."""

    workflow: str
    steps: dict[str, Step] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    limits: Limits | None = None
    policies: dict[str, Any] = field(default_factory=dict)
    """Those fields of :class:`mr.model.catalog.Policies` that it says something of."""
    skipped: list[str] = field(default_factory=list)


def read_directory(directory: str | os.PathLike[str], workflow_name: str | None = None) -> Directory:
    """Read a directory; nothing in it is run. ``workflow_name`` overrides what ``jobs.yaml`` says.

    Files that come, go or change meanwhile are taken as they are when it is their turn.

    :raises InvalidInput: there is no such directory.
    :raises InvalidHandler: with all problems of all files, as ``path:line: what``, paths relative to the directory.
    """
    root = os.path.abspath(os.fspath(directory))
    if not os.path.isdir(root):
        raise InvalidInput(f"There is no directory {os.fspath(directory)!r}.")
    problems: list[str] = []
    skipped: list[str] = []
    document = _jobs_document(root, problems)
    workflow = _workflow_name(root, workflow_name, document, problems)
    handlers: dict[str, Handler] = {}
    broken: set[str] = set()
    for path in _paths(root, "", skipped, problems):
        name = os.path.splitext(path)[0].replace(os.sep, "_")
        other = next((taken.path for taken in handlers.values() if taken.handler_name == name), None)
        try:
            source = _read(root, path)
            if source is None:
                skipped.append(path)
                continue
            if other is not None:
                raise InvalidHandler([f"{path}:1: {other} gives a handler {name!r} already."])
            handlers[name] = read_handler(workflow, name, source, path)
        except InvalidHandler as error:
            problems += error.problems
            broken.add(name)
    steps: dict[str, Step] = {}
    jobs: dict[str, Job] = {}
    limits: Limits | None = None
    policies: dict[str, Any] = {}
    if document is not None:
        settings = document.mapping((), document.value, ("workflow", "steps", "jobs", "limits", *_POLICIES), JOBS_FILE)
        limits = _limits(document, settings.get("limits"))
        policies = _policies(document, (), settings)
        steps = _steps(document, workflow, settings.get("steps"), handlers, broken)
        jobs = _jobs(document, workflow, settings.get("jobs"), steps)
        problems += document.problems
    if problems:
        raise InvalidHandler(problems)
    return Directory(workflow, steps, jobs, handlers, limits, policies, sorted(skipped))


# --- files -------------------------------------------------------------------------------------------------------


def _paths(root: str, below: str, skipped: list[str], problems: list[str]) -> Iterator[str]:
    """Handler files, relative to the root, in order of name."""
    try:
        with os.scandir(os.path.join(root, below)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{below or '.'}:1: It cannot be read: {error.strerror}")
        return
    for entry in entries:
        path = os.path.join(below, entry.name)
        is_directory = entry.is_dir(follow_symlinks=False)
        if path == JOBS_FILE:
            continue
        if entry.name.startswith(("_", ".")):
            skipped.append(path + "/" if is_directory else path)
        elif is_directory:
            yield from _paths(root, path, skipped, problems)
        elif processor_for(os.path.splitext(entry.name)[1]) is None:
            skipped.append(path)
        else:
            yield path


def _read(root: str, path: str) -> str | None:
    """The text of a file; None if it is gone, or something else than a file.

    :raises InvalidHandler: it cannot be read, is too large or is not UTF-8.
    """
    try:
        # Not to wait for anybody, should it be a pipe.
        fd = os.open(os.path.join(root, path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            data = file.read(MAX_SOURCE_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError as error:
        raise InvalidHandler([f"{path}:1: It cannot be read: {error.strerror}"]) from None
    if len(data) > MAX_SOURCE_BYTES:
        raise InvalidHandler([f"{path}:1: It is longer than {MAX_SOURCE_BYTES} bytes."])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidHandler([f"{path}:{line}: It is not UTF-8."]) from None


# --- jobs.yaml ---------------------------------------------------------------------------------------------------


def _jobs_document(root: str, problems: list[str]) -> Document | None:
    try:
        text = _read(root, JOBS_FILE)
        document = parse_yaml(text, JOBS_FILE) if text is not None else None
    except InvalidHandler as error:
        problems += error.problems
        return None
    if document is not None and document.value is None:
        # Taken at its word it would take every step and every job away, and it may be a save that is not over.
        problems.append(f"{JOBS_FILE}:1: It is empty. {_WHAT_TO_WRITE}")
        return None
    return document


def _workflow_name(root: str, given: str | None, document: Document | None, problems: list[str]) -> str:
    own: Any = document.value.get("workflow") if document is not None and isinstance(document.value, dict) else None
    target = document or Document(".", 1, None, {})
    workflow: Any = given or (os.path.basename(root) if own is None else own)
    before = len(target.problems)
    target.name(("workflow",), names.check_workflow_name, workflow)
    if document is None:
        problems += target.problems
    elif len(target.problems) > before and own is None and given is None:
        target.problem((), "The directory's name serves as the workflow's; set 'workflow' to have another.")
    return str(workflow)


def _limits(document: Document, value: Any) -> Limits | None:
    if value is None:
        return None
    given = document.mapping(("limits",), value, _LIMITS, "'limits'")
    found = {
        name: None if given.get(name) is None else document.integer(("limits", name), given[name], 0, 0)
        for name in _LIMITS
    }
    return Limits(found["open_requests"], found["invocations"])


def _policies(document: Document, place: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """What is said of how results are delivered, who is told and how long requests are kept, as fields of entities."""
    found: dict[str, Any] = {}
    checks: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("writer", check_writer),
        ("notify", lambda value: tuple(check_targets(value))),
        ("outgoing_allow", check_allowed),
    )
    for name, check in checks:
        if given.get(name) is not None:
            try:
                found[name] = check(given[name])
            except InvalidInput as error:
                document.problem((*place, name), str(error))
    if given.get("retention") is not None:
        found["retention_s"] = document.integer((*place, "retention"), given["retention"], 0, -1)
    return found


def _steps(
    document: Document, workflow: str, value: Any, handlers: dict[str, Handler], broken: set[str]
) -> dict[str, Step]:
    steps = {}
    for name, one in document.named(("steps",), value, "'steps'").items():
        place = ("steps", name)
        document.name(place, names.check_step_name, name)
        given = document.mapping(place, one, _STEP, "A step")
        roles = {}
        for role in _ROLES:
            roles[role] = document.text((*place, role), given.get(role))
            if roles[role]:
                _check_handler(document, (*place, role), roles[role], handlers, broken)
            elif role != "combine" and not (role in given and given[role] is not None):
                document.problem(place, f"The step {name!r} names no handler to {role} with ('{role}: HANDLER').")
        steps[name] = Step(
            step_name=name,
            workflow_name=workflow,
            description=document.text((*place, "description"), given.get("description")),
            map_handler_name=roles["map"],
            combine_handler_name=roles["combine"],
            reduce_handler_name=roles["reduce"],
            timeout_s=_seconds(document, (*place, "timeout"), given.get("timeout")),
            max_attempts=document.integer((*place, "max_attempts"), given.get("max_attempts"), 1, 1),
            partitions=document.integer((*place, "partitions"), given.get("partitions"), 1, 1, MAX_PARTITIONS),
            max_failed_children=_tolerance(document, (*place, "max_failed_children"), given.get("max_failed_children")),
        )
    return steps


def _check_handler(
    document: Document, place: tuple[str, ...], name: str, handlers: dict[str, Handler], broken: set[str]
) -> None:
    role = place[-1]
    handler = handlers.get(name)
    if handler is None:
        # A file that is wrong was told already, and is not missing.
        if name not in broken:
            document.problem(place, f"There is no handler {name!r} to {role} with.{nearest(name, handlers)}")
    elif handler.handler_type not in _ROLES[role]:
        what = f"The handler {name!r} is a {handler.handler_type}, and cannot be used to {role}."
        document.problem(place, what)


def _seconds(document: Document, place: tuple[str, ...], value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        document.problem(place, f"'timeout' has to be a number of seconds, not {shown(value)}.")
        return 0.0
    return float(value)


def _tolerance(document: Document, place: tuple[str, ...], value: Any) -> int | str:
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value) and float(value[:-1]) <= 100:
        return value
    document.problem(place, f"'max_failed_children' has to be a count or a percentage like '10%', not {shown(value)}.")
    return 0


def _jobs(document: Document, workflow: str, value: Any, steps: dict[str, Step]) -> dict[str, Job]:
    jobs = {}
    for name, one in document.named(("jobs",), value, "'jobs'").items():
        place = ("jobs", name)
        document.name(place, names.check_job_name, name)
        given = document.mapping(place, one, _JOB, "A job")
        step = document.text((*place, "step"), given.get("step"))
        if given.get("step") is None:
            document.problem(place, f"The job {name!r} names no step to start with ('step: STEP').")
        elif step and step not in steps:
            document.problem((*place, "step"), f"There is no step {step!r}.{nearest(step, steps)}")
        policies = _policies(document, place, given)
        jobs[name] = Job(
            job_name=name,
            workflow_name=workflow,
            description=document.text((*place, "description"), given.get("description")),
            initial_step_name=step,
            writer=policies.get("writer"),
            notify=list(policies.get("notify", ())),
            retention_s=policies.get("retention_s"),
        )
    return jobs
