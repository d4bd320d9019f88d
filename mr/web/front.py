"""The front end without HTTP: accepts posts, waits for their requests to end, and tells how they stand."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

from mr.config import Config
from mr.engine import redrive, submit
from mr.engine.ops import Env, Flow
from mr.engine.shell import Platform, Shell
from mr.errors import (
    FilesUnavailable,
    InvalidInput,
    JobxError,
    OutcomeUnknown,
    QueueUnavailable,
    RequestCancelled,
    RequestExpired,
    RequestNotFound,
    RequestRuns,
    StoreUnavailable,
)
from mr.model import catalog, ids, keys, pairs
from mr.model.deliveries import INLINE, union
from mr.model.entities import Invocation, Job, Request, Workflow, decode
from mr.model.keeping import as_kept
from mr.notify.notifier import check as check_notify
from mr.results import reading, texts
from mr.results.writing import check as check_writer
from mr.trace.why import Why, explain
from mr.web import posts, waiting
from mr.web.access import Access
from mr.web.catalogs import Catalogs
from mr.web.following import Ends, Follower
from mr.web.limits import Bounds, Limits, WorkflowFull
from mr.web.parameters import check_arguments
from mr.web.problems import HandlerFailed, NotReady

log = logging.getLogger(__name__)

LAST = "last"
"""Stands for the newest request of a workflow."""

MAX_KEY_CHARS = 255

_KEY_HOLDS_S = 24 * 3600

_PAUSE_S = 0.25


class Submitted(NamedTuple):
    """``ended`` is None while the request runs. ``is_new``: it was made for this very post."""

    request_id: str
    is_new: bool
    ended: Request | None


class Progress(NamedTuple):
    """How far the root invocation is. ``children`` is None until known; ``ended`` counts the ``failed`` ones too."""

    state: str
    children: int | None
    ended: int
    failed: int


class Status(NamedTuple):
    request: Request
    progress: Progress | None
    why: Why | None
    """Why it failed, where it did."""
    waiting_for: list[waiting.Lack]
    """What it needs that no live worker offers."""


class Front:
    """One a process; :meth:`start` it after the process was forked. Safe to use from many threads or greenlets.

    All methods raise StoreUnavailable when the store refuses; then nothing was changed.
    """

    def __init__(self, platform: Platform, config: Config, env: Env) -> None:
        self.platform, self.config = platform, config
        self._env = env
        self._shell = Shell(platform)
        self._catalogs = Catalogs(platform.store, config.workflow_names)
        self._ends = Ends(platform.store, config.workflow_names)
        self.access = Access(platform.store, config)
        self._limits = Limits(platform.store, config.workflow_names)
        # Places become free before those hear of it who wait for an end, and may post again.
        self._follower = Follower(platform.store, [self._catalogs, self._limits, self._ends, self.access])
        self.is_draining = False

    def start(self) -> None:
        # Before anybody asks; where the store is away, the follower does it when it is back.
        with suppress(StoreUnavailable):
            self.access.check()
        self._follower.start()
        threading.Thread(target=self._tell_of_queue, name="queue", daemon=True).start()

    def _tell_of_queue(self) -> None:
        """One that is away keeps nobody from posting, so that without a word it would not be noticed."""
        try:
            self._look_at_queue()
        except QueueUnavailable as error:
            log.warning("The queue does not answer; requests are accepted, and run when it does: %s", error)

    def drain(self) -> None:
        """From now on nobody waits: those who do are told that their request still runs. May be repeated."""
        self.is_draining = True
        self._ends.wake_all()

    def stop(self) -> None:
        self.drain()
        self._follower.stop()

    # --- beginning a request ----------------------------------------------------------------------------------------

    def post(
        self,
        workflow: str,
        job_name: str,
        body: bytes,
        *,
        wait_s: float,
        is_blocking: bool = True,
        idempotency_key: str | None = None,
        context: dict[str, Any] | None = None,
    ) -> Submitted:
        """Accepts a post, and waits up to ``wait_s`` seconds for its request to end.

        With an ``idempotency_key`` that was used before for the same body, the request of then is the one.

        :raises WorkflowNotFound, JobNotFound: there is no such job.
        :raises InvalidInput: the body, or an argument in it, cannot be taken.
        :raises IdempotencyMismatch: the key was used with another body.
        :raises RequestExpired: the key's request was removed.
        :raises WorkflowFull: the workflow has enough to do; nothing was taken.
        :raises OutcomeUnknown: the store never said whether it took the request, whose ID is with it.
        """
        snapshot, job = self._catalogs.job(workflow, job_name)
        post = posts.parse(body)
        check_notify(self.config, post.notify, snapshot.workflow.outgoing_allow)
        arguments = check_arguments(self._catalogs.parameters(snapshot, job), post.arguments)
        text = pairs.pairs_text(arguments.items())
        retention_s = self._retention_s(post, job, snapshot.workflow)
        writer = writer_of(post, job, snapshot.workflow, self.config)
        check_writer(self.config, writer, snapshot.workflow.outgoing_allow)
        request = submit.new_request(
            workflow,
            job_name,
            snapshot.version,
            self._env.clock(),
            retention_s,
            is_blocking,
            post.name,
            writer=writer,
            notify=union(post.notify, job.notify, snapshot.workflow.notify),
            **(context or {}),
        )
        key = None if idempotency_key is None else _key(workflow, job_name, idempotency_key, body, retention_s)
        with self._ends.of(workflow, request.request_id) as event:
            flow = submit.submit(self._env, request, snapshot.manifest, text, len(arguments), key)
            accepted = self._let_in(request, Bounds.of(self.config, snapshot.workflow), flow, key)
            if accepted.is_new:
                # Nobody can have ended it yet who is not heard by that event.
                ended = self._wait(workflow, request.request_id, event, wait_s) if wait_s > 0 else None
                if ended is not None:
                    # It may have been found to have ended before the watch said so.
                    self._limits.leave(workflow, request.request_id)
                return Submitted(request.request_id, True, ended)
        return Submitted(accepted.request_id, False, self.wait(workflow, accepted.request_id, wait_s))

    def _let_in(
        self, request: Request, bounds: Bounds, flow: Flow[submit.Accepted], key: submit.Key | None
    ) -> submit.Accepted:
        """Submits where there is a place. What was accepted before needs none.

        :raises WorkflowFull: there is none.
        """
        workflow, request_id = request.workflow_name, request.request_id
        try:
            self._limits.admit(workflow, request_id, bounds)
        except WorkflowFull:
            earlier = None
            if key is not None:
                earlier = self._shell.run(submit.accepted_before(self._env, workflow, request.job_name, key))
            if earlier is None:
                raise
            return earlier
        try:
            accepted = self._shell.run(flow, request_id)
        except OutcomeUnknown:
            # It may have been taken, and counts until the store shows that it was not.
            raise
        except BaseException:
            self._limits.leave(workflow, request_id)
            raise
        if not accepted.is_new:
            self._limits.leave(workflow, request_id)
        return accepted

    def _retention_s(self, post: posts.Post, job: Job, workflow: Workflow) -> int:
        wishes = (post.retention_s, job.retention_s, workflow.retention_s, self.config.retention_s)
        chosen = next(one for one in wishes if one is not None)
        return chosen if chosen < 0 else max(chosen, posts.MIN_RETENTION_S)

    # --- waiting ----------------------------------------------------------------------------------------------------

    def wait(self, workflow: str, request_id: str, seconds: float) -> Request | None:
        """The ended request; None where it still runs after so many seconds.

        :raises RequestExpired: it was removed.
        """
        with self._ends.of(workflow, request_id) as event:
            event.set()
            return self._wait(workflow, request_id, event, seconds)

    def end_of(self, workflow: str, request_id: str) -> AbstractContextManager[threading.Event]:
        """An event that is set when the request may have ended, or nobody is to wait any more."""
        return self._ends.of(workflow, request_id)

    def _wait(self, workflow: str, request_id: str, event: Any, seconds: float) -> Request | None:
        deadline = time.monotonic() + seconds
        while event.wait(0 if self.is_draining else max(0.0, deadline - time.monotonic())):
            event.clear()
            try:
                request = self._read(workflow, request_id)
            except StoreUnavailable:
                # The request was accepted: whoever waits is not sent away because the store is, for a moment.
                if self.is_draining or time.monotonic() >= deadline:
                    break
                time.sleep(_PAUSE_S)
                event.set()
                continue
            if request is None or request.state == "expiring":
                raise _expired(request_id)
            if request.is_done:
                return request
        return None

    # --- asking for one ---------------------------------------------------------------------------------------------

    def request(self, workflow: str, request_id: str) -> Request:
        """The request as it stands; ``last`` is the newest of the workflow.

        :raises WorkflowNotFound, RequestNotFound: there never was one of that ID.
        :raises RequestExpired: it was removed, or is being removed.
        """
        self._catalogs.check_served(workflow)
        if request_id == LAST:
            self._catalogs.workflow(workflow)
            newest = self.platform.store.list(keys.requests(workflow), limit=1, reverse=True)
            if not newest:
                raise RequestNotFound("request", LAST, f"The workflow {workflow!r} has none.")
            request: Request | None = decode(Request, newest[0].key, newest[0].value)
        elif ids.is_request_id(workflow, request_id):
            request = self._read(workflow, request_id)
        else:
            self._catalogs.workflow(workflow)
            raise RequestNotFound("request", request_id, "That is no ID of a request of this workflow.")
        if request is None:
            self._catalogs.workflow(workflow)
            raise _expired(request_id)
        if request.state == "expiring":
            raise _expired(request_id)
        return request

    def _read(self, workflow: str, request_id: str) -> Request | None:
        [entry] = self.platform.store.get([keys.request(workflow, request_id)])
        return None if entry is None else decode(Request, entry.key, entry.value)

    def status(self, request: Request) -> Status:
        [shown] = as_kept(self.platform.store, [request])
        return Status(shown, self._progress(request), self._why(request), self._waiting_for(request))

    def _waiting_for(self, request: Request) -> list[waiting.Lack]:
        if request.is_done:
            return []
        manifest = self.platform.manifest(request.workflow_name, request.manifest)
        return waiting.waited_for(self.platform.store, request, manifest)

    def _progress(self, request: Request) -> Progress | None:
        workflow, request_id, root_id = request.workflow_name, request.request_id, request.invocation_id
        [entry] = self.platform.store.get([keys.invocation(workflow, request_id, root_id)])
        if entry is None:
            return None
        root = decode(Invocation, entry.key, entry.value)
        if root.state in ("ready", "running") or not root.mapped_count:
            return Progress(root.state, root.mapped_count, 0, 0)
        shards = range(self._env.settings.shards)
        ended, failed = (
            sum(entry.version for entry in self.platform.store.get(names) if entry is not None)
            for names in (
                [keys.count(workflow, request_id, root_id, root.epoch, shard) for shard in shards],
                [keys.failed(workflow, request_id, root_id, root.epoch, shard) for shard in shards],
            )
        )
        has_stopped = request.is_done and root.state not in ("done", "failed")
        kept = root.mapped_count - root.need if root.epoch else 0
        return Progress("stopped" if has_stopped else root.state, root.mapped_count, kept + ended, failed)

    def _why(self, request: Request) -> Why | None:
        if request.state != "failed":
            return None
        return explain(self.platform.store, request, self.platform.read_dataset)

    def result(self, request: Request, write: texts.Write = texts.text) -> Iterable[bytes]:
        """The text of an ended request's result, in pieces.

        :raises HandlerFailed: there is none, because a handler failed.
        :raises RequestCancelled: there is none, because it was cancelled.
        :raises RequestExpired: it was removed meanwhile.
        :raises RequestRuns: it is redriven meanwhile.
        :raises FilesUnavailable: an output cannot be read.
        """
        if request.state == "cancelled":
            raise RequestCancelled(f"The request {request.request_id} was cancelled: it has no result.")
        if request.state == "failed":
            raise HandlerFailed(explain(self.platform.store, request))
        parts = reading.outputs(self.platform.store, request)
        if parts is not None:
            try:
                return write(self.platform.files, parts)
            except FilesUnavailable:
                now = self._read(request.workflow_name, request.request_id)
                if now is not None and now.state != "expiring":
                    raise
        now = self._read(request.workflow_name, request.request_id)
        if now is not None and not now.is_done:
            raise RequestRuns(request.workflow_name, request.request_id)
        raise _expired(request.request_id)

    def cancel(self, request: Request) -> Request:
        """Ends it, if it runs; answers how it stands then.

        :raises RequestExpired: it was removed meanwhile.
        """
        try:
            return self._shell.run(
                submit.cancel(self._env, request.workflow_name, request.request_id), request.request_id
            )
        except RequestNotFound:
            raise _expired(request.request_id) from None

    def redrive(self, request: Request, is_same_manifest: bool = False) -> Request:
        """Runs again what failed in an ended request, on the newest manifest if not on the same; answers how it stands.

        One that was cut short is finished.

        :raises RequestRuns: it has not ended.
        :raises NothingToRedrive: it is done, and nothing in it has failed.
        :raises StepsMissing: the manifest lacks what the request needs.
        :raises RequestExpired: it was removed meanwhile.
        :raises OutcomeUnknown: the store never said whether it began; it may be asked for again.
        """
        workflow, request_id = request.workflow_name, request.request_id
        # Read now: a handler that was mended a moment ago is why somebody redrives.
        newest = None if is_same_manifest else catalog.read(self.platform.store, workflow).version
        try:
            return self._shell.run(redrive.redrive(self._env, workflow, request_id, newest), request_id)
        except RequestNotFound:
            raise _expired(request_id) from None

    # --- being ready ------------------------------------------------------------------------------------------------

    def check_ready(self) -> None:
        """
        :raises NotReady: the store, the queue or the files cannot be used now.
        """
        unreachable = {}
        for name, look in (
            ("store", self._look_at_store),
            ("queue", self._look_at_queue),
            ("files", self._look_at_files),
        ):
            try:
                look()
            except JobxError as error:
                unreachable[name] = str(error)
        if self.is_draining:
            unreachable["server"] = "It is stopping."
        if unreachable:
            raise NotReady(unreachable)

    def _look_at_store(self) -> None:
        # Whoever serves some workflows may have no right to look at anything else.
        self.platform.store.get([keys.current(name) for name in self.config.workflow_names[:1]] or [keys.CURRENT])

    def _look_at_queue(self) -> None:
        self.platform.queue.publish([])

    def _look_at_files(self) -> None:
        self.platform.files.create(f"ready.{secrets.token_hex(8)}").discard()


def writer_of(post: posts.Post, job: Job, workflow: Workflow, config: Config) -> str:
    """What delivers the result: the narrowest wish counts. Empty: it is only kept."""
    wishes = (post.writer, job.writer, workflow.writer, config.result_writer_fq_class)
    chosen = next(one for one in wishes if one is not None)
    return "" if chosen == INLINE else chosen


def _expired(request_id: str) -> RequestExpired:
    return RequestExpired(f"The request {request_id} has ended, and what belonged to it was removed.")


def _key(workflow: str, job: str, text: str, body: bytes, retention_s: int) -> submit.Key:
    """
    :raises InvalidInput: such text is no key.
    """
    if not 1 <= len(text) <= MAX_KEY_CHARS:
        raise InvalidInput(f"An Idempotency-Key has 1 to {MAX_KEY_CHARS} characters.", "Idempotency-Key")
    holds_s = posts.MAX_RETENTION_S if retention_s < 0 else max(_KEY_HOLDS_S, retention_s)
    digest = hashlib.sha256("\n".join((workflow, job, text)).encode("utf-8", "surrogateescape")).hexdigest()
    return submit.Key(digest, hashlib.sha256(body).hexdigest(), holds_s)
