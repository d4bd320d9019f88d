"""The one error tree.

A name states the fact; the facts are attributes. ``slug`` is the last part of the problem type that
HTTP answers carry (``urn:jobx:<slug>``), ``status`` the HTTP status they go with. The message says what,
where JobX looked and what to do.
"""

from __future__ import annotations


class JobxError(Exception):
    """Root of all errors that JobX raises on purpose."""

    slug = "internal"
    status = 500


# --- what the caller said ----------------------------------------------------------------------------------


class InvalidInput(JobxError):
    """The caller's input cannot be taken as it is; ``parameter`` names the part, if one is to blame."""

    slug = "invalid-input"
    status = 400

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class InvalidConfig(InvalidInput):
    """A setting has a value that JobX cannot run with; ``parameter`` is the variable's name."""

    slug = "invalid-config"


class InvalidName(InvalidInput):
    """A name has characters or a length that the platform does not allow."""

    slug = "invalid-name"


class InvalidHandler(InvalidInput):
    """Handler sources or a ``jobs.yaml`` are wrong; ``problems`` lists every one, as ``path:line: what``."""

    slug = "invalid-handler"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class TooLarge(InvalidInput):
    """Something is over a published limit; ``limit`` is the limit in bytes (or in levels, for nesting)."""

    slug = "too-large"
    status = 413

    def __init__(self, message: str, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class NotFound(JobxError):
    """Nothing is stored under that name; ``kind`` and ``name`` say what was looked for."""

    slug = "not-found"
    status = 404

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"There is no {kind} {name!r}.{' ' + hint if hint else ''}")
        self.kind = kind
        self.name = name


class WorkflowNotFound(NotFound):
    slug = "workflow-not-found"


class JobNotFound(NotFound):
    slug = "job-not-found"


class StepNotFound(NotFound):
    slug = "step-not-found"


class HandlerNotFound(NotFound):
    slug = "handler-not-found"


class RequestNotFound(NotFound):
    slug = "request-not-found"


class InvocationNotFound(NotFound):
    slug = "invocation-not-found"


class TokenNotFound(NotFound):
    slug = "token-not-found"


class DeliveryNotFound(NotFound):
    slug = "delivery-not-found"


class Conflict(JobxError):
    """What is stored does not allow the change."""

    slug = "conflict"
    status = 409


class AlreadyExists(Conflict):
    """An entity of that name is there, with other content."""

    slug = "already-exists"


class StillReferred(Conflict):
    """An entity cannot be deleted while others name it; ``referrers`` are those."""

    slug = "still-referred"

    def __init__(self, kind: str, name: str, referrers: list[str]) -> None:
        super().__init__(f"The {kind} {name!r} is still used by {', '.join(referrers)}. Change or delete those first.")
        self.referrers = referrers


class RequestRuns(Conflict):
    """What is asked for has to wait until the request has ended."""

    slug = "request-runs"

    def __init__(self, workflow: str, request_id: str) -> None:
        super().__init__(
            f"The request {request_id} of {workflow!r} has not ended yet. Wait for it, or end it: "
            f"mr_kv_request_cancel {workflow} {request_id}"
        )


class RequestUndelivered(Conflict):
    """A request is not removed while somebody waits for something of it; ``owed`` says for what."""

    slug = "request-undelivered"

    def __init__(self, workflow: str, request_id: str, owed: str) -> None:
        super().__init__(
            f"The request {request_id} of {workflow!r} has {owed}. What is removed is never delivered: wait for it, or "
            "remove it all the same with --undelivered."
        )
        self.owed = owed


class NothingToRedrive(Conflict):
    """The request is done, and nothing in it has failed."""

    slug = "nothing-to-redrive"


class StepsMissing(Conflict):
    """A request cannot run on a manifest that lacks its job or steps; ``missing`` names them."""

    slug = "steps-missing"

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.missing = missing


class RequestExpired(JobxError):
    """The request was here, and its retention is over."""

    slug = "request-expired"
    status = 410


class RequestCancelled(Conflict):
    """The request was cancelled: it has no result."""

    slug = "request-cancelled"


class IdempotencyMismatch(JobxError):
    """The idempotency key was used before, with another body."""

    slug = "idempotency-mismatch"
    status = 422


class ForbiddenURL(InvalidInput):
    """The platform does not call that URL; the message says why, and what would allow it."""

    slug = "forbidden-url"


class InvalidSignature(InvalidInput):
    """A webhook's signature is missing, wrong or too old."""

    slug = "invalid-signature"
    status = 401


# --- what the platform met -----------------------------------------------------------------------------------


class StoreError(JobxError):
    """Root of what goes wrong between JobX and its key-value store."""

    slug = "store-error"
    status = 503


class StoreUnavailable(StoreError):
    """The store could not be reached or refused to serve: nothing was changed."""

    slug = "store-unavailable"


class InvalidTransaction(StoreError):
    """A transaction that no driver may carry out: a key put or deleted twice, or over a published limit."""

    slug = "invalid-transaction"
    status = 500


class Compacted(StoreError):
    """A watch asked for changes that the store no longer keeps: list again and watch from there."""

    slug = "compacted"

    def __init__(self, oldest: int) -> None:
        super().__init__(f"The changes asked for are gone; the oldest kept are of revision {oldest}.")
        self.oldest = oldest


class OutcomeUnknown(StoreError):
    """A transaction was sent and its outcome never learnt; ``request_id`` is what to ask for later."""

    slug = "outcome-unknown"

    def __init__(self, message: str, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class CorruptRecord(StoreError):
    """A stored record does not decode; ``key`` is where it stands."""

    slug = "corrupt-record"
    status = 500

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"The record at {key!r} cannot be read: {reason}")
        self.key = key


class QueueUnavailable(JobxError):
    """The queue could not be reached. Nothing is lost with it: the sweep sends again what was not sent."""

    slug = "queue-unavailable"
    status = 503


class FilesUnavailable(JobxError):
    """The shared filesystem could not be read or written."""

    slug = "files-unavailable"
    status = 503


class RunnerBroken(JobxError):
    """A runner process could not be started or spoke rubbish."""

    slug = "runner-broken"


class DeliveryFailed(JobxError):
    """Something did not reach whom it was for. Final: trying again is no use.

    ``retry_after_s`` is how long the other side asked to be left alone, where it did. ``spares_place``: the
    other side is up, or was not even asked, so that nothing else for it needs to wait.
    """

    slug = "delivery-failed"
    status = 502

    def __init__(
        self, message: str, is_final: bool = False, retry_after_s: float | None = None, *, spares_place: bool = False
    ) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.retry_after_s = retry_after_s
        self.spares_place = spares_place


class GraphvizMissing(JobxError):
    """A drawing was asked for, and graphviz, which draws it, is not installed where it was asked."""

    slug = "graphviz-missing"
    status = 501


class DrawingFailed(JobxError):
    """Graphviz could not draw, or took too long."""

    slug = "drawing-failed"
