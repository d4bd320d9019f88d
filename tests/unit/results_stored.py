"""Requests that are done, with their results, as the engine would have left them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from trace_requests import BEGAN, put

from mr.config import Config
from mr.fs.base import Files
from mr.fs.local import LocalFiles
from mr.kv.memory import MemoryStore
from mr.model import ids, keys
from mr.model.deliveries import Delivery
from mr.model.entities import Request, Workflow
from mr.model.pairs import pairs_text
from mr.model.records import Dataset, Done
from mr.results.writing import ResultWriters

WORKFLOW = "words"
JOB = "wordcount"


class Stored:
    """A store and files, and what writes the results that are in them."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.output = directory / "output"
        self.store = MemoryStore()
        self.files: Files = LocalFiles(directory / "files")
        self.settings = {"MR_DATA_DIR": str(directory), "MR_RESULT_FILE_WRITER_OUTPUT_PATH": str(self.output)}
        self.settings |= {name: str(value) for name, value in settings.items()}
        put(self.store, {keys.workflow(WORKFLOW): Workflow(workflow_name=WORKFLOW, description="")})

    @property
    def config(self) -> Config:
        return Config.read(self.settings)

    @property
    def writers(self) -> ResultWriters:
        return ResultWriters(self.config, self.store, self.files)

    def request(self, *parts: Sequence[tuple[Any, Any]], spilled: bool = False, **changes: Any) -> str:
        """The ID of one whose result has these pairs, in as many partitions."""
        request_id = ids.new_request_id(WORKFLOW)
        root = ids.root_of(request_id)
        outputs = [self._dataset(f"{request_id}/{n}", part, spilled) for n, part in enumerate(parts or [[]])]
        if len(outputs) == 1:
            put(self.store, {keys.result(WORKFLOW, request_id): Done(ok=True, nonce="n", output=outputs[0])})
        else:
            done = {keys.result(WORKFLOW, request_id): Done(ok=True, nonce="n", partitions=len(outputs))}
            for partition, output in enumerate(outputs):
                key = keys.done(WORKFLOW, request_id, ids.reduce_of(root, partition))
                done[key] = Done(ok=True, nonce="n", output=output)
            put(self.store, dict(done))
        fields: dict[str, Any] = {
            "request_id": request_id,
            "workflow_name": WORKFLOW,
            "job_name": JOB,
            "invocation_id": root,
            "context": {},
            "is_blocking": True,
            "is_done": True,
            "failed_invocation_id": None,
            "state": "done",
            "manifest": "0",
            "created_timestamp": BEGAN,
            "ended_timestamp": BEGAN + 2,
            "expires_timestamp": BEGAN + 3600,
        }
        put(self.store, {keys.request(WORKFLOW, request_id): Request(**{**fields, **changes})})
        return request_id

    def _dataset(self, name: str, pairs: Sequence[tuple[Any, Any]], spilled: bool) -> Dataset:
        if not spilled:
            return Dataset(count=len(pairs), pairs=msgspec.Raw(pairs_text(pairs)))
        file = self.files.create(f"{WORKFLOW}/{name}")
        for start in range(0, len(pairs), 100):
            file.append(pairs_text(pairs[start : start + 100]))
        file.settle()
        return Dataset(count=len(pairs), file=f"{WORKFLOW}/{name}")

    def write(self, request_id: str, target: str, delivery_id: str = "") -> None:
        """One try at delivering that result."""
        self.writers.write(self.delivery(request_id, target, delivery_id))

    def delivery(self, request_id: str, target: str, delivery_id: str = "") -> Delivery:
        return Delivery(
            delivery_id=delivery_id or f"{request_id}_0_0",
            workflow_name=WORKFLOW,
            request_id=request_id,
            kind="result",
            event="request.done",
            target=target,
            created_timestamp=BEGAN + 2,
            due_timestamp=BEGAN + 2,
        )

    def tree(self) -> dict[str, str]:
        """Every file below the output directory, with what is in it; directories that are empty, too."""
        found = {}
        for path in sorted(self.output.rglob("*")):
            name = str(path.relative_to(self.output))
            if path.is_file():
                found[name] = path.read_bytes().decode()
            elif path.is_dir() and not any(path.iterdir()):
                found[f"{name}/"] = ""
        return found
