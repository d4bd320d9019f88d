"""Where everything is in the store. Hierarchical keys, ``<kind>/<workflow>/<request_id>/…`` below the entities."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple


def workflow(name: str) -> str:
    return f"entities/workflow/{name}"


def job(workflow_name: str, name: str) -> str:
    return f"entities/job/{workflow_name}/{name}"


def step(workflow_name: str, name: str) -> str:
    return f"entities/step/{workflow_name}/{name}"


def handler(workflow_name: str, name: str) -> str:
    return f"entities/handler/{workflow_name}/{name}"


REQUESTS = "entities/request/"
"""Prefix of all requests."""


def requests(workflow_name: str) -> str:
    """Prefix of a workflow's requests."""
    return f"{REQUESTS}{workflow_name}/"


def request(workflow_name: str, request_id: str) -> str:
    return f"{REQUESTS}{workflow_name}/{request_id}"


def invocation(workflow_name: str, request_id: str, invocation_id: str) -> str:
    return f"entities/invocation/{workflow_name}/{request_id}/{invocation_id}"


CURRENT = "current/"
"""Prefix of the keys that name each workflow's current manifest: the one key that a sync flips."""


def current(workflow_name: str) -> str:
    return f"{CURRENT}{workflow_name}"


def manifests(workflow_name: str) -> str:
    """Prefix of a workflow's manifests. One is written whenever ``current`` comes to name another."""
    return f"manifest/{workflow_name}/"


def manifest(workflow_name: str, version: str) -> str:
    return f"manifest/{workflow_name}/{version}"


def source(workflow_name: str, version: str) -> str:
    """A handler by the version of its source, for the manifests that name it."""
    return f"source/{workflow_name}/{version}"


LIVE = "live/"


def lives(workflow_name: str) -> str:
    """Prefix of what exists while a workflow's requests run."""
    return f"{LIVE}{workflow_name}/"


def live(workflow_name: str, request_id: str) -> str:
    """Exists while the request runs; its creation revision tells one run from the next."""
    return f"{LIVE}{workflow_name}/{request_id}"


def own(workflow_name: str, request_id: str, invocation_id: str) -> str:
    """Exists, under the worker's lease, while somebody runs the invocation."""
    return f"own/{workflow_name}/{request_id}/{invocation_id}"


def seal(workflow_name: str, request_id: str, invocation_id: str) -> str:
    """The children that count: those of the one mapper attempt that won."""
    return f"seal/{workflow_name}/{request_id}/{invocation_id}"


def chunk(workflow_name: str, request_id: str, invocation_id: str, nonce: str, number: int) -> str:
    """Arguments of a run of children, under the nonce of the attempt that yielded them."""
    return f"chunk/{workflow_name}/{request_id}/{invocation_id}/{nonce}/{number}"


def count(workflow_name: str, request_id: str, parent_id: str, epoch: int, shard: int) -> str:
    """Its version is the number of children of that shard that ended."""
    return f"count/{workflow_name}/{request_id}/{parent_id}/{epoch}/{shard}"


def failed(workflow_name: str, request_id: str, parent_id: str, epoch: int, shard: int) -> str:
    """Its version is the number of children of that shard that failed and were tolerated."""
    return f"failed/{workflow_name}/{request_id}/{parent_id}/{epoch}/{shard}"


def done(workflow_name: str, request_id: str, invocation_id: str) -> str:
    """How an invocation ended, and where its output is."""
    return f"done/{workflow_name}/{request_id}/{invocation_id}"


def dataset(workflow_name: str, request_id: str, invocation_id: str, name: str) -> str:
    """``arguments`` of a root or ``post_combine`` of a mapper that returned."""
    return f"dataset/{workflow_name}/{request_id}/{invocation_id}/{name}"


def session(workflow_name: str, request_id: str, invocation_id: str) -> str:
    return f"session/{workflow_name}/{request_id}/{invocation_id}"


def result(workflow_name: str, request_id: str) -> str:
    return f"result/{workflow_name}/{request_id}"


def expiries(workflow_name: str) -> str:
    return f"expire/{workflow_name}/"


def expire(workflow_name: str, at: float, request_id: str) -> str:
    """Exists from the end of a request until everything of it is removed. In order of when that is due.

    ``at``: seconds since 1970.
    """
    return f"{expiries(workflow_name)}{math.ceil(at):012d}/{request_id}"


def due_of(expire_key: str) -> int:
    """When the request of such a key is due, in seconds since 1970."""
    return int(expire_key.split("/")[2])


DELIVERIES = "delivery/"
"""Prefix of everything that is owed to others."""


def deliveries(workflow_name: str) -> str:
    return f"{DELIVERIES}{workflow_name}/"


def delivery(workflow_name: str, subject: str, name: str) -> str:
    """Exists while that is still to be delivered; ``subject`` is a request's ID, or what else it is about."""
    return f"{deliveries(workflow_name)}{subject}/{name}"


def deads(workflow_name: str) -> str:
    """Prefix of what could not be delivered. Each has the rest of its key in common with the delivery that it was."""
    return f"dead/{workflow_name}/"


def secret(workflow_name: str) -> str:
    """What the workflow's notifications are signed with."""
    return f"secret/{workflow_name}"


def kept(workflow_name: str, request_id: str) -> str:
    """How long a request is to be kept, said while it ran."""
    return f"kept/{workflow_name}/{request_id}"


def redrives(workflow_name: str) -> str:
    return f"redrive/{workflow_name}/"


def redrive(workflow_name: str, request_id: str) -> str:
    """Exists while a redrive of the request is being prepared, so that one which was cut short is found."""
    return f"{redrives(workflow_name)}{request_id}"


def idempotencies(workflow_name: str) -> str:
    return f"idempotency/{workflow_name}/"


def idempotency(workflow_name: str, job_name: str, digest: str) -> str:
    return f"idempotency/{workflow_name}/{job_name}/{digest}"


def sweeper(workflow_name: str) -> str:
    """Held, under a worker's lease, by the one that sweeps the workflow."""
    return f"sweeper/{workflow_name}"


LOADS = "load/"
"""Prefix of what the sweeps say of all workflows."""


def loads(workflow_name: str) -> str:
    """Prefix of what is said of one workflow: nothing of another begins with it."""
    return f"{LOADS}{workflow_name}/"


def load(workflow_name: str) -> str:
    """How much the workflow has to do, as its sweep saw it last, under the sweeper's lease."""
    return f"{LOADS}{workflow_name}/swept"


WORKERS = "worker/"
"""Prefix of what all workers say of themselves."""


def workers(workflow_name: str) -> str:
    """Prefix of what the workers of a workflow say of themselves."""
    return f"{WORKERS}{workflow_name}/"


def worker(workflow_name: str, worker_name: str) -> str:
    """Exists, under the worker's lease, while that worker serves the workflow."""
    return f"{WORKERS}{workflow_name}/{worker_name}"


TOKENS = "token/"
"""Prefix of all API tokens."""


def token(token_id: str) -> str:
    return f"{TOKENS}{token_id}"


def tree(workflow_name: str, request_id: str, name: str) -> str:
    """Prefix of a tree collection about a request: see :class:`mr.model.collections.KvTree`. The engine reads none."""
    return f"tree/{workflow_name}/{request_id}/{name}"


OF_A_REQUEST = ("entities/invocation", "own", "seal", "chunk", "count", "failed", "done", "dataset", "session", "tree")
"""Kinds whose keys go with a request, as ``<kind>/<workflow>/<request_id>/…``."""

OWED = ("delivery", "dead")
"""Such kinds, too, of which some are about a workflow."""


def of_request(workflow_name: str, request_id: str) -> list[str]:
    """Prefixes of everything that belongs to a request, apart from single keys."""
    return [f"{kind}/{workflow_name}/{request_id}/" for kind in (*OF_A_REQUEST, *OWED)]


class Space(NamedTuple):
    """One key of a workflow or, where it ends in a slash, all keys that begin with it.

    ``right`` is what a worker or a front end that serves the workflow does with them: ``nothing`` are those that people
    read. A front end reads ``token/``, too, which belongs to no workflow.
    """

    key: str
    right: Literal["nothing", "read", "readwrite"]


def of_workflow(name: str) -> list[Space]:
    """Everything in the store that belongs to a workflow: what roles in the store are made of."""
    return [
        Space(workflow(name), "read"),
        Space(current(name), "read"),
        Space(manifests(name), "read"),
        Space(source(name, ""), "read"),
        Space(job(name, ""), "nothing"),
        Space(step(name, ""), "nothing"),
        Space(handler(name, ""), "nothing"),
        Space(sweeper(name), "readwrite"),
        Space(loads(name), "readwrite"),
        Space(workers(name), "readwrite"),
        Space(requests(name), "readwrite"),
        Space(lives(name), "readwrite"),
        Space(result(name, ""), "readwrite"),
        Space(expiries(name), "readwrite"),
        Space(redrives(name), "readwrite"),
        Space(deliveries(name), "readwrite"),
        Space(deads(name), "readwrite"),
        Space(secret(name), "readwrite"),
        Space(kept(name, ""), "readwrite"),
        Space(idempotencies(name), "readwrite"),
        *(Space(f"{kind}/{name}/", "readwrite") for kind in OF_A_REQUEST),
    ]
