"""What workflows offer right now, from a cache that follows the store."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Sequence

from mr.errors import CorruptRecord, InvalidName, JobNotFound, WorkflowNotFound
from mr.kv.base import Event, Store
from mr.model import catalog, keys
from mr.model.catalog import Snapshot
from mr.model.entities import Handler, Job, Parameter, decode
from mr.model.names import check_workflow_name
from mr.web.following import Subject


class Catalogs(Subject):
    """The manifest in force of every workflow that was asked for.

    ``served`` are the only workflows that there are for this front end; empty: all.
    """

    _HANDLERS = 1024

    def __init__(self, store: Store, served: Sequence[str] = ()) -> None:
        self.prefixes = tuple(catalog.watched(served))
        self._store, self._served = store, served
        self._snapshots: dict[str, Snapshot] = {}
        self._parameters: OrderedDict[str, list[Parameter]] = OrderedDict()
        self._changes = 0

    def workflow(self, name: str) -> Snapshot:
        """
        :raises WorkflowNotFound: there is no such workflow, or it is not served here.
        """
        snapshot = self._snapshots.get(name)
        return self._load(name) if snapshot is None else snapshot

    def job(self, workflow: str, name: str) -> tuple[Snapshot, Job]:
        """A job, and the manifest that has it.

        :raises WorkflowNotFound: see :meth:`workflow`.
        :raises JobNotFound: there is no such job.
        """
        snapshot = self.workflow(workflow)
        job = snapshot.manifest.jobs.get(name)
        if job is None:
            # Who made it a moment ago and asks for it may be quicker than the watch.
            snapshot = self._load(workflow)
            job = snapshot.manifest.jobs.get(name)
        if job is None:
            raise JobNotFound("job", name, _known("job", name, list(snapshot.manifest.jobs)))
        return snapshot, job

    def parameters(self, snapshot: Snapshot, job: Job) -> list[Parameter]:
        """What the job's first mapper declares."""
        manifest = snapshot.manifest
        version = manifest.handlers[manifest.steps[job.initial_step_name].map_handler_name]
        key = keys.source(manifest.workflow_name, version)
        parameters = self._parameters.get(key)
        if parameters is None:
            [entry] = self._store.get([key])
            if entry is None:
                raise CorruptRecord(key, "a handler is missing")
            # Named by content, so that it never changes.
            parameters = self._parameters[key] = decode(Handler, key, entry.value).parameters
            if len(self._parameters) > self._HANDLERS:
                self._parameters.popitem(last=False)
        return parameters

    def changed(self, event: Event) -> None:
        name = catalog.changed(event.key)
        if name is not None:
            self._forget(name)

    def check(self) -> None:
        snapshots = list(self._snapshots.items())
        entries = self._store.get([keys.current(name) for name, _ in snapshots])
        for (name, snapshot), entry in zip(snapshots, entries, strict=True):
            if entry is None or entry.modified != snapshot.modified:
                self._forget(name)

    def _forget(self, name: str) -> None:
        self._changes += 1
        self._snapshots.pop(name, None)

    def _load(self, name: str) -> Snapshot:
        self.check_served(name)
        changes = self._changes
        snapshot = catalog.read(self._store, name, self._served)
        # What was read while something changed may be older than the change, which is told only once.
        if changes == self._changes:
            self._snapshots[name] = snapshot
        return snapshot

    def check_served(self, name: str) -> None:
        """
        :raises WorkflowNotFound: there cannot be such a workflow here, so that nothing of it may be asked for.
        """
        try:
            check_workflow_name(name)
        except InvalidName:
            names = list(self._served) or catalog.workflow_names(self._store)
            raise WorkflowNotFound("workflow", name, _known("workflow", name, names)) from None
        if self._served and name not in self._served:
            raise WorkflowNotFound("workflow", name, _known("workflow", name, list(self._served)))


def _known(kind: str, name: str, names: list[str]) -> str:
    if not names:
        return f"There are no {kind}s yet."
    nearest = difflib.get_close_matches(name, names, n=1)
    shown = ", ".join(sorted(names)[:50])
    return f"There are: {shown}." + (f" Did you mean {nearest[0]!r}?" if nearest else "")
