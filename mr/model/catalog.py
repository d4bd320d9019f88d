"""A workflow's jobs, steps and handlers, and how they change.

What runs is a *manifest*: all of them at one moment, named by content. ``current/<workflow>`` names the one in force. A
change writes everything that the new manifest names, and the entities that people read, and flips that key: who follows
it sees a change whole or not at all. Changes made at the same time are made one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from mr.errors import (
    AlreadyExists,
    CorruptRecord,
    HandlerNotFound,
    InvalidInput,
    JobNotFound,
    OutcomeUnknown,
    StepNotFound,
    StillReferred,
    StoreUnavailable,
    TooLarge,
    WorkflowNotFound,
)
from mr.kv.base import Compare, Put, Store, Txn, Verdict
from mr.model import deliveries, keys
from mr.model.entities import Handler, Job, Record, Step, Workflow, decode, encode
from mr.model.names import check_workflow_name
from mr.model.records import Current, Manifest

_PATIENCE_S = 5.0
_TOLD = 100
"""Names of changed handlers that are told, of each kind."""

_ROOM_FOR_FLIP = 4 + deliveries.MAX_TARGETS


class Difference(NamedTuple):
    """One thing that a change does. ``action`` is create, update or delete; ``kind`` workflow, handler, step or job."""

    action: str
    kind: str
    name: str


class Limits(NamedTuple):
    """What a workflow takes before posts are turned away. None: as the platform; 0: no limit."""

    max_open_requests: int | None = None
    max_invocations: int | None = None


AS_PLATFORM = Limits()


class Policies(NamedTuple):
    """What holds for all requests of a workflow: see :class:`mr.model.entities.Workflow`."""

    retention_s: int | None = None
    writer: str | None = None
    notify: tuple[str, ...] = ()
    outgoing_allow: tuple[str, ...] = ()

    @classmethod
    def of(cls, workflow: Workflow) -> Policies:
        lists = tuple(workflow.notify), tuple(workflow.outgoing_allow)
        return cls(workflow.retention_s, workflow.writer, *lists)

    def fields(self) -> dict[str, Any]:
        """As fields of the entity."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items()}


NO_POLICIES = Policies()


@dataclass
class Draft:
    """A workflow while it is being changed. The tables may be changed at will; they are checked at the end."""

    workflow_name: str
    description: str
    jobs: dict[str, Job] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    handlers: dict[str, Handler] = field(default_factory=dict)
    limits: Limits = AS_PLATFORM
    policies: Policies = NO_POLICIES

    def workflow(self) -> Workflow:
        return Workflow(
            workflow_name=self.workflow_name,
            description=self.description,
            **self.limits._asdict(),
            **self.policies.fields(),
        )

    def check(self) -> None:
        """
        :raises StepNotFound, HandlerNotFound, InvalidInput: something names what is not there, or of the wrong type.
        """
        for job in self.jobs.values():
            if job.initial_step_name not in self.steps:
                raise StepNotFound("step", job.initial_step_name, f"The job {job.job_name!r} starts with it.")
        for step in self.steps.values():
            self._check_handler(step, step.map_handler_name, ("mapper",))
            self._check_handler(step, step.reduce_handler_name, ("reducer", "combiner"))
            if step.combine_handler_name:
                self._check_handler(step, step.combine_handler_name, ("combiner", "reducer"))

    def _check_handler(self, step: Step, name: str, types: tuple[str, ...]) -> None:
        handler = self.handlers.get(name)
        if handler is None:
            known = ", ".join(sorted(self.handlers)) or "none"
            raise HandlerNotFound("handler", name, f"The step {step.step_name!r} names it; there are: {known}.")
        if handler.handler_type not in types:
            raise InvalidInput(
                f"The step {step.step_name!r} uses the handler {name!r} as a {types[0]}, "
                f"but it is a {handler.handler_type}."
            )

    def users_of_step(self, name: str) -> list[str]:
        return [f"job {job.job_name}" for job in self.jobs.values() if job.initial_step_name == name]

    def users_of_handler(self, name: str) -> list[str]:
        return [
            f"step {step.step_name}"
            for step in self.steps.values()
            if name in (step.map_handler_name, step.combine_handler_name, step.reduce_handler_name)
        ]

    def delete_job(self, name: str) -> None:
        if self.jobs.pop(name, None) is None:
            raise JobNotFound("job", name, _known(self.jobs))

    def delete_step(self, name: str) -> None:
        if name not in self.steps:
            raise StepNotFound("step", name, _known(self.steps))
        if users := self.users_of_step(name):
            raise StillReferred("step", name, users)
        del self.steps[name]

    def delete_handler(self, name: str) -> None:
        if name not in self.handlers:
            raise HandlerNotFound("handler", name, _known(self.handlers))
        if users := self.users_of_handler(name):
            raise StillReferred("handler", name, users)
        del self.handlers[name]

    def manifest(self) -> Manifest:
        return Manifest(
            workflow_name=self.workflow_name,
            jobs=self.jobs,
            steps=self.steps,
            handlers={name: handler.version for name, handler in self.handlers.items()},
            capabilities={name: _capability(handler) for name, handler in self.handlers.items()},
        )


def _capability(handler: Handler) -> str:
    return "general" if handler.required_capability in ("", "none") else handler.required_capability


def _known(table: Mapping[str, object]) -> str:
    return f"There are: {', '.join(sorted(table))}." if table else "There are none yet."


class Snapshot(NamedTuple):
    """The manifest in force, its name, the revision at which it came into force, and the workflow itself."""

    manifest: Manifest
    version: str
    modified: int
    workflow: Workflow


def workflow_names(store: Store, served: Sequence[str] = ()) -> list[str]:
    """All workflows, in order of name. Of those ``served``, where there are any, and then nothing else is read."""
    if served:
        wanted = sorted(set(served))
        entries = store.get([keys.workflow(name) for name in wanted])
        return [name for name, entry in zip(wanted, entries, strict=True) if entry is not None]
    prefix, names, after = keys.workflow(""), [], ""
    while page := store.list(prefix, after=after, keys_only=True):
        names += [entry.key.removeprefix(prefix) for entry in page]
        after = page[-1].key
    return names


def watched(served: Sequence[str] = ()) -> list[str]:
    """Prefixes under which something changes whenever another manifest comes into force: see :func:`changed`.

    With ``served``, nothing of other workflows stands under them. ``current/a`` is no such prefix, since ``current/ab``
    begins with it; a manifest is written together with the flip that puts it into force.
    """
    return [keys.manifests(name) for name in served] or [keys.CURRENT]


def changed(key: str) -> str | None:
    """The workflow whose manifest in force has changed, by the key of an event; None: that says no such thing."""
    kind, _, rest = key.partition("/")
    return rest.partition("/")[0] if kind in _FLIPPED else None


_FLIPPED = (keys.CURRENT.rstrip("/"), keys.manifests("").partition("/")[0])


def read(store: Store, workflow_name: str, served: Sequence[str] = ()) -> Snapshot:
    """
    :raises WorkflowNotFound: there is no such workflow; the others that there are, of those served, are named.
    """
    described, entry = store.get([keys.workflow(workflow_name), keys.current(workflow_name)])
    if entry is None or described is None:
        known = workflow_names(store, served)
        raise WorkflowNotFound("workflow", workflow_name, _known(dict.fromkeys(known)))
    version = decode(Current, entry.key, entry.value).manifest
    workflow = decode(Workflow, described.key, described.value)
    return Snapshot(read_manifest(store, workflow_name, version), version, entry.modified, workflow)


def read_manifest(store: Store, workflow_name: str, version: str) -> Manifest:
    """A manifest by its name, in force or not."""
    key = keys.manifest(workflow_name, version)
    [stored] = store.get([key])
    if stored is None:
        raise CorruptRecord(key, "a manifest that something refers to is missing")
    return decode(Manifest, key, stored.value)


def read_handlers(store: Store, manifest: Manifest) -> dict[str, Handler]:
    """The handlers that a manifest names, by name."""
    names = list(manifest.handlers)
    found = store.get([keys.source(manifest.workflow_name, manifest.handlers[name]) for name in names])
    handlers = {}
    for name, entry in zip(names, found, strict=True):
        if entry is None:
            raise CorruptRecord(keys.source(manifest.workflow_name, manifest.handlers[name]), "a handler is missing")
        handlers[name] = decode(Handler, entry.key, entry.value)
    return handlers


def _draft(store: Store, workflow_name: str) -> tuple[Draft, int, str]:
    """The workflow as it is, with the revision to compare with; an empty one and 0 where there is none."""
    workflow, current = store.get([keys.workflow(workflow_name), keys.current(workflow_name)])
    if workflow is None or current is None:
        return Draft(workflow_name, ""), 0, ""
    snapshot = read(store, workflow_name)
    manifest, described = snapshot.manifest, snapshot.workflow
    handlers = read_handlers(store, manifest)
    limits = Limits(described.max_open_requests, described.max_invocations)
    draft = Draft(
        workflow_name,
        described.description,
        dict(manifest.jobs),
        dict(manifest.steps),
        handlers,
        limits,
        Policies.of(described),
    )
    return draft, snapshot.modified, snapshot.version


def create_workflow(
    store: Store,
    workflow_name: str,
    description: str,
    limits: Limits = AS_PLATFORM,
    policies: Policies = NO_POLICIES,
) -> bool:
    """Makes an empty workflow. False: it was there already, just like that.

    :raises AlreadyExists: it is there, with another description, other limits or other policies.
    """
    check_workflow_name(workflow_name)
    draft, modified, _ = _draft(store, workflow_name)
    if modified:
        if draft.description != description:
            raise AlreadyExists(
                f"The workflow {workflow_name!r} exists, described as {draft.description!r}. "
                "Delete it first, or use another name."
            )
        if draft.limits != limits:
            raise AlreadyExists(
                f"The workflow {workflow_name!r} exists, with other limits. "
                f"They are changed by mr_kv_workflow_set_limits {workflow_name}."
            )
        if draft.policies != policies:
            differing = [name for name, one in draft.policies._asdict().items() if one != getattr(policies, name)]
            raise AlreadyExists(
                f"The workflow {workflow_name!r} exists, with another {', '.join(differing)}. "
                f"That is changed by mr_kv_workflow_set_policies {workflow_name}."
            )
        return False
    draft.description, draft.limits, draft.policies = description, limits, policies
    if _commit(store, draft, Draft(workflow_name, ""), 0, ""):
        return True
    return create_workflow(store, workflow_name, description, limits, policies)


def delete_workflow(store: Store, workflow_name: str) -> None:
    """
    :raises WorkflowNotFound: there is no such workflow.
    :raises StillReferred: it has jobs, steps, handlers or requests.
    """
    while True:
        snapshot = read(store, workflow_name)
        users = [f"job {name}" for name in snapshot.manifest.jobs]
        users += [f"step {name}" for name in snapshot.manifest.steps]
        users += [f"handler {name}" for name in snapshot.manifest.handlers]
        users += [
            f"request {entry.key.rpartition('/')[2]}" for entry in store.list(keys.requests(workflow_name), limit=5)
        ]
        if users:
            raise StillReferred("workflow", workflow_name, users)
        compare = Compare("modified", keys.current(workflow_name), snapshot.modified, "current")
        if settle(
            store, Txn((compare,), (), (keys.current(workflow_name), keys.workflow(workflow_name)), durable=True)
        ):
            prefixes = (keys.manifests, keys.idempotencies, keys.deliveries, keys.deads)
            for prefix in (*(of(workflow_name) for of in prefixes), keys.source(workflow_name, "")):
                store.delete_prefix(prefix)
            settle(store, Txn(deletes=(keys.secret(workflow_name),)))
            return


def change(
    store: Store, workflow_name: str, edit: Callable[[Draft], None], *, create: bool = False, dry: bool = False
) -> list[Difference]:
    """Applies ``edit`` to the workflow and puts the result into force, whole. Answers what it does or did.

    With ``create`` a missing workflow is made; with ``dry`` nothing is written. ``edit`` may be called again where
    somebody else changed the workflow meanwhile.

    :raises WorkflowNotFound: there is none of that name, and ``create`` is not set.
    :raises JobxError: whatever ``edit`` raises, or the result does not hold together; nothing was changed.
    """
    check_workflow_name(workflow_name)
    while True:
        before, modified, version = _draft(store, workflow_name)
        if not modified and not create:
            read(store, workflow_name)
        after = replace(before, jobs=dict(before.jobs), steps=dict(before.steps), handlers=dict(before.handlers))
        edit(after)
        after.check()
        differences = compare(before, after, is_new=not modified)
        if dry or not differences or _commit(store, after, before, modified, version):
            return differences


def compare(before: Draft, after: Draft, is_new: bool = False) -> list[Difference]:
    """What leads from one to the other, handlers first."""
    found = [Difference("create", "workflow", after.workflow_name)] if is_new else []
    if not is_new and before.workflow() != after.workflow():
        found.append(Difference("update", "workflow", after.workflow_name))
    tables: list[tuple[str, Mapping[str, Record], Mapping[str, Record]]] = [
        ("handler", before.handlers, after.handlers),
        ("step", before.steps, after.steps),
        ("job", before.jobs, after.jobs),
    ]
    for kind, old, new in tables:
        found += [Difference("create", kind, name) for name in sorted(new.keys() - old.keys())]
        found += [
            Difference("update", kind, name) for name in sorted(new.keys() & old.keys()) if new[name] != old[name]
        ]
        found += [Difference("delete", kind, name) for name in sorted(old.keys() - new.keys())]
    return found


_KEYS: dict[str, Callable[[str, str], str]] = {"handler": keys.handler, "step": keys.step, "job": keys.job}


def _commit(store: Store, after: Draft, before: Draft, modified: int, version: str) -> bool:
    """False: somebody else changed the workflow meanwhile."""
    workflow_name = after.workflow_name
    manifest = after.manifest()
    puts: list[Put] = []
    deletes: list[str] = []
    tables: dict[str, Mapping[str, Record]] = {"handler": after.handlers, "step": after.steps, "job": after.jobs}
    for action, kind, name in compare(before, after):
        if kind == "workflow":
            continue
        key = _KEYS[kind](workflow_name, name)
        if action == "delete":
            deletes.append(key)
        else:
            puts.append(Put(key, encode(tables[kind][name])))
    stood = {handler.version: handler for handler in before.handlers.values()}
    sources = {
        handler.version: Put(keys.source(workflow_name, handler.version), encode(handler))
        for handler in after.handlers.values()
        if stood.get(handler.version) != handler
    }
    name = manifest.version()
    named = Put(keys.manifest(workflow_name, name), encode(manifest))
    for put in [*puts, *sources.values(), named]:
        if len(put.value) > store.max_value_bytes:
            raise TooLarge(
                f"{put.key} has {len(put.value)} bytes; the limit is {store.max_value_bytes}.", store.max_value_bytes
            )
    puts += sources.values()
    # Entities are what people read; what runs is decided by the flip alone, so a large change may write them before it.
    room = store.max_operations - _ROOM_FOR_FLIP
    is_heavy = len(named.value) + sum(len(put.value) for put in puts) > store.max_value_bytes
    if is_heavy or len(puts) + len(deletes) > room:
        for page in _pages(puts, room, store.max_value_bytes):
            settle(store, Txn(puts=page))
        puts = []
    while len(deletes) > room:
        settle(store, Txn(deletes=tuple(deletes[:room])))
        deletes = deletes[room:]
    flip = Compare("modified", keys.current(workflow_name), modified, "current")
    if name != version:
        # In one transaction with the flip, since that is how some hear of it.
        puts.append(named)
    puts.append(Put(keys.current(workflow_name), encode(Current(manifest=name))))
    puts.append(Put(keys.workflow(workflow_name), encode(after.workflow())))
    puts += [Put(owed.key, encode(owed.record)) for owed in news(before, after, name)]
    return settle(store, Txn((flip,), tuple(puts), tuple(deletes), durable=True))


def news(before: Draft, after: Draft, version: str) -> list[deliveries.Owed]:
    """What is owed to those who are told of changed handlers; nothing where none was."""
    changed = [one for one in compare(before, after) if one.kind == "handler"]
    if not changed:
        return []
    names = {
        past: sorted(one.name for one in changed if one.action == action)
        for action, past in (("create", "new"), ("update", "updated"), ("delete", "deleted"))
    }
    payload: dict[str, Any] = {past: some[:_TOLD] for past, some in names.items()}
    payload["counts"] = {past: len(some) for past, some in names.items()}
    return deliveries.of_handlers(after.workflow_name, after.policies.notify, version, payload, time.time())


def _pages(puts: Sequence[Put], most: int, most_bytes: int) -> Iterator[tuple[Put, ...]]:
    """The puts in parts that each fit into a transaction: servers limit a request's bytes, too."""
    page: list[Put] = []
    room = most_bytes
    for put in puts:
        if page and (len(page) == most or len(put.value) > room):
            yield tuple(page)
            page, room = [], most_bytes
        page.append(put)
        room -= len(put.value)
    if page:
        yield tuple(page)


def settle(store: Store, txn: Txn) -> bool:
    """Commits until the outcome is definite. A refusal after a doubt may be our own success: the caller looks again."""
    deadline = time.monotonic() + _PATIENCE_S
    is_doubtful = False
    while True:
        try:
            [outcome] = store.commit([txn])
            if outcome.verdict is not Verdict.UNKNOWN:
                return outcome.verdict is Verdict.COMMITTED
            is_doubtful = True
        except StoreUnavailable:
            # This try changed nothing; an earlier one may have.
            if not is_doubtful:
                raise
        if time.monotonic() > deadline:
            raise OutcomeUnknown("The store did not say whether the change was made. Look before you repeat it.")
        time.sleep(0.05)


def put_entity(table: dict[str, Record], kind: str, name: str, record: Record, how_to_change: str) -> bool:
    """Adds an entity to a table of a draft. False: it was there already, unchanged.

    :raises AlreadyExists: it is there, with other content.
    """
    old = table.get(name)
    if old is not None and old != record:
        differing = [
            part
            for part in record.__struct_fields__
            if getattr(old, part) != getattr(record, part) and part != "version"
        ]
        raise AlreadyExists(f"The {kind} {name!r} exists, with another {', '.join(differing)}. {how_to_change}")
    table[name] = record
    return old is None


def as_json(entity_name: str, key: str, record: Record) -> bytes:
    """The form in which commands show an entity."""
    data = msgspec.json.encode(record)
    shown = {"entity_name": entity_name, "primary_key": key, "data": msgspec.Raw(data)}
    return msgspec.json.format(msgspec.json.encode(shown), indent=2)
