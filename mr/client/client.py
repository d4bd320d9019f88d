"""The calls of a client."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from mr.client.answers import Status, Submitted
from mr.client.connection import Answer, Connection
from mr.client.errors import BrokenOff, StillRunning, Unreachable
from mr.client.events import Reader
from mr.model import pairs
from mr.model.progress import Progress

Pair = tuple[Any, Any]
"""A key, with lists as tuples, and a value."""

LINES = "application/x-ndjson"

_LIVELY_S = 5.0
"""A stream that lived for so long was broken off by something on the way, and not because it cannot be."""

_WAIT_S = 20.0
"""How long a POST waits for a result; after that its events are followed, which cannot be taken for a dead server."""


class Client:
    """Talks to one server. May be used by several threads at once.

    ``url``: ``http://HOST:PORT``, ``https://HOST`` (with a path, if the server is below one) or ``unix:/PATH``.
    ``timeout``: how many seconds a server may take to be connected to, or to say something. ``retries``: how often a
    call is repeated where there is no server, or one that takes nothing now (429, 502, 503, 504), after a pause that
    the server may tell (``Retry-After``). A POST that is repeated begins one request, by its idempotency key.

    All calls raise ``Unreachable`` where there is no answer, and ``Refused`` or what is below it where the server says
    no. ``request_id`` may be ``last``, for the newest of the workflow.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 30.0, retries: int = 5) -> None:
        self._connection = Connection(url, token, timeout, retries)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connections that are kept. May be repeated."""
        self._connection.close()

    # --- beginning requests -----------------------------------------------------------------------------------------

    def submit(
        self,
        workflow: str,
        job: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        name: str | None = None,
        retention_s: int | None = None,
        writer: str | None = None,
        notify: str | Sequence[str] | None = None,
    ) -> Submitted:
        """Begins a request, and does not wait for it.

        :raises InvalidRequest: the arguments, or something beside them, cannot be taken.
        :raises NotThere: there is no such job.
        """
        body = _body(arguments, name, retention_s, writer, notify)
        with self._post(workflow, job, "blocking=false", body, idempotency_key) as answer:
            accepted = _decode(answer.read(), dict[str, Any])
        return Submitted(workflow_name=workflow, request_id=accepted["request_id"], url=accepted["url"])

    def run(
        self,
        workflow: str,
        job: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        wait_s: float | None = None,
        idempotency_key: str | None = None,
        name: str | None = None,
        retention_s: int | None = None,
        writer: str | None = None,
        notify: str | Sequence[str] | None = None,
    ) -> list[Pair]:
        """Begins a request, waits for it and gives its result, all in memory. One that is small takes one round trip.

        :raises JobFailed, JobCancelled: there is no result.
        :raises StillRunning: it did not end within ``wait_s`` seconds.
        """
        began = time.monotonic()
        body = _body(arguments, name, retention_s, writer, notify)
        patience_s = _WAIT_S if wait_s is None else min(_WAIT_S, wait_s)
        with self._post(workflow, job, f"wait={patience_s:g}", body, idempotency_key, patience_s) as answer:
            if answer.status == 200 and answer.content_type == LINES:
                return list(_pairs(answer))
            told = _decode(answer.read(), dict[str, Any])
            if answer.status == 200 and told["result"]:
                return [(pairs.as_tuple(key), value) for key, value in told["result"]["pairs"]]
            request_id = answer.request_id or told["request_id"]
        if answer.status != 200:
            left_s = None if wait_s is None else max(0.0, wait_s - (time.monotonic() - began))
            self.wait(workflow, request_id, left_s)
        return list(self.result(workflow, request_id))

    def _post(
        self, workflow: str, job: str, query: str, body: bytes, idempotency_key: str | None, silence_s: float = 0.0
    ) -> AbstractContextManager[Answer]:
        headers = {
            "Content-Type": "application/json",
            "Accept": f"{LINES}, application/json;q=0.5",
            "Idempotency-Key": uuid.uuid4().hex if idempotency_key is None else idempotency_key,
        }
        path = f"/job/{quote(workflow, safe='')}/{quote(job, safe='')}?{query}"
        return self._connection.ask("POST", path, body, headers, silence_s=silence_s)

    # --- one request ------------------------------------------------------------------------------------------------

    def status(self, workflow: str, request_id: str) -> Status:
        """How it stands.

        :raises NotThere: there never was such a one.
        :raises RequestGone: it was removed.
        """
        with self._connection.ask("GET", _path(workflow, request_id), headers=_JSON) as answer:
            return _decode(answer.read(), Status)

    def tree(self, workflow: str, request_id: str, *, data: bool = False) -> dict[str, Any]:
        """Its invocations, as the server describes them (``/openapi.json``); with ``data`` the beginnings of what they
        work on."""
        query = "?data=true" if data else ""
        with self._connection.ask("GET", f"{_path(workflow, request_id)}/tree{query}", headers=_JSON) as answer:
            return _decode(answer.read(), dict[str, Any])

    def cancel(self, workflow: str, request_id: str) -> Status:
        """Ends it, if it runs; how it stands then. May be repeated."""
        with self._connection.ask("DELETE", _path(workflow, request_id)) as answer:
            return _decode(answer.read(), Status)

    def redrive(self, workflow: str, request_id: str, *, same_manifest: bool = False) -> Status:
        """Runs again what failed in it or was not done; how it stands then. On the newest handlers, unless told not to.

        :raises Refused: there is nothing to run again, or it has not ended; so where an answer was lost, it may run.
        """
        body = b'{"manifest": "same"}' if same_manifest else b""
        with self._connection.ask("POST", f"{_path(workflow, request_id)}/redrive", body) as answer:
            return _decode(answer.read(), Status)

    def result(self, workflow: str, request_id: str) -> Iterator[Pair]:
        """The pairs of a request that is done, one by one, as they come: a large result is never in memory as a whole.

        :raises StillRunning: it is not done.
        :raises JobFailed, JobCancelled, RequestGone: there is none.
        """
        with self._connection.ask("GET", f"{_path(workflow, request_id)}/result", headers={"Accept": LINES}) as answer:
            if answer.status == 202:
                raise StillRunning(_decode(answer.read(), dict[str, Any])["request_id"])
            yield from _pairs(answer)

    def wait(self, workflow: str, request_id: str, seconds: float | None = None) -> Status:
        """How it stands when it has ended, whichever way that is.

        :raises StillRunning: it did not, within so many seconds.
        :raises RequestGone: it was removed meanwhile.
        """
        for progress in self.watch(workflow, request_id, seconds):
            request_id = progress.request_id
        return self.status(workflow, request_id)

    def watch(self, workflow: str, request_id: str, seconds: float | None = None) -> Iterator[Progress]:
        """How it stands now, and again whenever that changed, until it has ended: what comes last ``has_ended``.

        Where the server goes away meanwhile, another is asked, as often as any call is repeated.

        :raises StillRunning: it did not end, within so many seconds.
        """
        until = None if seconds is None else time.monotonic() + seconds
        reader, broken = Reader(), 0
        while True:
            opened, error = time.monotonic(), BrokenOff("The events of the request broke off, again and again.")
            try:
                for progress in self._stream(_path(workflow, request_id), reader, until):
                    yield progress
                    # The newest may be another one, the next time.
                    request_id, broken = progress.request_id, 0
                    if progress.has_ended:
                        return
            except BrokenOff as found:
                error = found
            except TimeoutError:
                raise StillRunning(request_id, seconds) from None
            broken = 1 if time.monotonic() - opened > _LIVELY_S else broken + 1
            if broken > max(1, self._connection.retries):
                raise error
            if until is not None and time.monotonic() + reader.retry_s >= until:
                raise StillRunning(request_id, seconds)
            time.sleep(reader.retry_s)

    def _stream(self, path: str, reader: Reader, until: float | None) -> Iterator[Progress]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": reader.event_id} if reader.event_id else {})
        left_s = None if until is None else until - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        with self._connection.ask("GET", f"{path}/events", headers=headers, at_most_s=left_s) as answer:
            for event in reader.read(answer.lines(until)):
                if event.name in ("progress", "end"):
                    yield _decode(event.data.encode(), Progress)


_JSON = {"Accept": "application/json"}


def _path(workflow: str, request_id: str) -> str:
    return f"/request/{quote(workflow, safe='')}/{quote(request_id, safe='')}"


def _body(arguments: Mapping[str, Any] | None, name: Any, retention_s: Any, writer: Any, notify: Any) -> bytes:
    """
    :raises InvalidPair: the arguments are not JSON.
    """
    told = {"name": name, "retention_s": retention_s, "writer": writer, "notify": notify}
    body = {"arguments": dict(arguments or {})} | {field: value for field, value in told.items() if value is not None}
    return pairs.value_text(body).encode()


def _pairs(answer: Answer) -> Iterator[Pair]:
    for line in answer.lines():
        try:
            [(key, value)] = pairs.parse_pairs(b"[%b]" % line)
        except pairs.InvalidPair as error:
            # One that is sent without chunks may end anywhere.
            raise BrokenOff(f"The result broke off: {error}") from error
        yield key, value


T = TypeVar("T")


def _decode(text: bytes, kind: type[T]) -> T:
    """
    :raises Unreachable: something else than JobX answered.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise Unreachable(f"What answered is not JobX, or one that this client does not know: {error}") from error
