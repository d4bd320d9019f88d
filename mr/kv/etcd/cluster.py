"""The servers of one store: which of them is asked, in whose name, and what its refusals mean."""

from __future__ import annotations

import copy
import functools
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import grpc.experimental.gevent

from mr.errors import StoreUnavailable
from mr.kv.etcd.endpoint import Endpoint, Metadata
from mr.kv.etcd.failures import Failure, Lost, Refused, Unsent, Why
from mr.kv.etcd.tls import Tls
from mr.kv.etcd.wire import AUTHENTICATE, AuthenticateRequest, Method
from mr.urls import Servers

_PATIENCE_S = 4.0
"""How long servers that have answered before are tried again and again: an election takes less."""

_FIRST_PAUSE_S = 0.05
_LAST_PAUSE_S = 0.5

_RENEWALS = 2
"""Tokens that one call may use up. The first may be new and yet refused, by a server that has not heard of it."""

_CALLS_OF_GREENLETS = 6
"""Calls that may be under way at once where threads are greenlets: each takes one of the hub's ten threads."""

T = TypeVar("T")


class Refusal(StoreUnavailable):
    """A server said no; ``why`` is for those who know what to do about it."""

    def __init__(self, message: str, why: Why) -> None:
        super().__init__(message)
        self.why = why


class Cluster:
    """Asks the server that answered last, and the next one when it does not. Safe to use from several threads.

    A forked process makes connections of its own when it first asks.
    """

    def __init__(self, servers: Servers, tls: Tls | None) -> None:
        self._servers, self._tls = servers, tls
        self._is_closed = False
        self._process: _Process | None = None

    def call(self, method: Method, request: Any, about: str = "", *, is_repeatable: bool = True) -> Any:
        """The answer of some server. ``about`` are the keys that it is about, in words.

        :raises Refusal: a server said no.
        :raises StoreUnavailable: none answered. Unless it is repeatable, nothing was changed.
        :raises Lost: it is not repeatable, and what became of it is unknown.
        """
        return self._ask(lambda endpoint, metadata: endpoint.call(method, request, metadata), about, is_repeatable)

    def connect(self) -> tuple[Endpoint, Metadata]:
        """A server that answers, and what is to be sent along to it.

        :raises StoreUnavailable: there is none.
        """

        def greet(endpoint: Endpoint, metadata: Metadata) -> tuple[Endpoint, Metadata]:
            endpoint.greet(metadata)
            return endpoint, metadata

        return self._ask(greet, "", True)

    def heed(self, endpoint: Endpoint, metadata: Metadata, failure: Failure) -> None:
        """Learns from how a stream ended: the next :meth:`connect` tries another server, or with another token."""
        process = self._here()
        if not isinstance(failure, Refused):
            endpoint.is_greeted = False
            process.leave(endpoint)
        elif self._servers.username and metadata == process.metadata:
            process.token = None

    def refusal(self, error: Refused, endpoint: Endpoint, about: str = "") -> Refusal:
        """What a refusal means and what to do about it."""
        server, user = f"etcd at {endpoint.address}", self._servers.username
        if error.why is Why.DENIED:
            on = f" on {about}" if about else ""
            advice = (
                "Grant a role of that user the permission: etcdctl role grant-permission --prefix ROLE readwrite PREFIX"
                if user
                else "Put the name and the password of a user who may into MR_KV_URL, before an @."
            )
            who = f"the user {user!r}" if user else "a client without a name"
            text = f"{server} does not let {who} do this: permission denied{on}. {advice}"
        elif error.why is Why.WRONG_PASSWORD:
            text = f"{server} does not let the user {user!r} in: the name or the password in MR_KV_URL is wrong."
        elif error.why is Why.TOKEN and not user:
            text = f"{server} lets nobody in without a name and a password: put them into MR_KV_URL, before an @."
        elif error.why is Why.FULL:
            text = (
                f"{server} takes no more writes: its database has reached its quota (alarm NOSPACE). Make room with "
                "etcdctl compact and etcdctl defrag, or raise --quota-backend-bytes; then run: etcdctl alarm disarm"
            )
        else:
            text = f"{server} refuses: {error}"
        return Refusal(text, error.why)

    def check_open(self) -> None:
        """:raises StoreUnavailable: it was closed."""
        if self._is_closed:
            raise StoreUnavailable("The store on etcd was closed.")

    def endpoints(self) -> list[Endpoint]:
        """All servers, as this process reaches them."""
        return self._here().endpoints

    def close(self) -> None:
        """Ends all calls. May be repeated."""
        self._is_closed = True
        if self._process is not None and self._process.pid == os.getpid():
            for endpoint in self._process.endpoints:
                endpoint.close()

    def _ask(self, ask: Callable[[Endpoint, Metadata], T], about: str, is_repeatable: bool) -> T:
        process = self._here()
        begun, pause = time.monotonic(), _FIRST_PAUSE_S
        tried, renewals = 0, 0
        problems: dict[str, str] = {}
        while True:
            self.check_open()
            endpoint, metadata = process.endpoint, process.metadata
            try:
                if process.token is None:
                    metadata = process.authenticate(endpoint)
                answer = ask(endpoint, metadata)
                process.has_answered = True
                return answer
            except Refused as error:
                if error.why is not Why.TOKEN or not self._servers.username or renewals == _RENEWALS:
                    raise self.refusal(error, endpoint, about) from error
                self.heed(endpoint, metadata, error)
                renewals += 1
                continue
            except Failure as error:
                process.leave(endpoint)
                if isinstance(error, Lost) and not is_repeatable:
                    raise
                problems[endpoint.address] = str(error)
            tried += 1
            is_round = tried % len(process.endpoints) == 0
            if (is_round and not process.has_answered) or time.monotonic() - begun > _PATIENCE_S:
                raise _unreachable(problems)
            if is_round:
                time.sleep(pause)
                pause = min(_LAST_PAUSE_S, 2 * pause)

    def _here(self) -> _Process:
        process = self._process
        if process is None or process.pid != os.getpid():
            if process is not None:
                # Kept for ever: letting go of them would end the connections that the parent uses.
                _of_parents.append(process)
            process = self._process = _Process(self._servers, self._tls)
        return process


class _Process:
    """What belongs to one process: connections do not outlive a fork, nor do locks that others hold."""

    def __init__(self, servers: Servers, tls: Tls | None) -> None:
        self.pid = os.getpid()
        self.has_answered = False
        self.token: str | None = None if servers.username else ""
        self._servers = servers
        self._lock = threading.Lock()
        self._failed: tuple[float, Failure] = (0.0, Unsent(""))
        room: AbstractContextManager[object] = nullcontext()
        if _has_greenlets(self.pid):
            room = threading.BoundedSemaphore(_CALLS_OF_GREENLETS)
        self.endpoints = [Endpoint(host, port, tls, room) for host, port in servers.addresses]
        self._current = random.randrange(len(self.endpoints))

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints[self._current]

    @property
    def metadata(self) -> Metadata:
        return (("token", self.token),) if self.token else ()

    def leave(self, endpoint: Endpoint) -> None:
        """From now on another one is asked, unless somebody has seen to that already."""
        if self.endpoint is endpoint:
            self._current = (self._current + 1) % len(self.endpoints)

    def authenticate(self, endpoint: Endpoint) -> Metadata:
        """Has a token made. Those who come while it is made share what comes of it.

        :raises Failure: there is none.
        """
        asked = time.monotonic()
        with self._lock:
            failed_at, failure = self._failed
            if self.token is None and failed_at >= asked:
                raise copy.copy(failure)
            if self.token is None:
                try:
                    self.token = self._token(endpoint)
                except Failure as error:
                    # Nothing but the token was asked for yet.
                    failure = Unsent(str(error)) if isinstance(error, Lost) else error
                    self._failed = (time.monotonic(), failure)
                    raise failure from error
            return self.metadata

    def _token(self, endpoint: Endpoint) -> str:
        request = AuthenticateRequest(name=self._servers.username, password=self._servers.password)
        try:
            return str(endpoint.call(AUTHENTICATE, request).token)
        except Refused as error:
            if error.why is Why.NO_USERS:
                # As etcd's own clients have it: users may be set up before they are enforced.
                return ""
            raise


_of_parents: list[_Process] = []


@functools.cache
def _has_greenlets(process_id: int) -> bool:
    """Whether threads are gevent's. If so, gRPC is told, which then waits in a way that lets others go on."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None or not monkey.is_module_patched("threading"):
        return False
    grpc.experimental.gevent.init_gevent()
    return True


def _unreachable(problems: dict[str, str]) -> StoreUnavailable:
    advice = "See that etcd runs and that MR_KV_URL is right."
    if len(problems) == 1:
        [(address, problem)] = problems.items()
        return StoreUnavailable(f"etcd at {address} does not answer: {problem.rstrip('.')}. {advice}")
    told = "; ".join(f"{address}: {problem.rstrip('.')}" for address, problem in problems.items())
    return StoreUnavailable(f"None of the etcd servers answers ({told}). {advice}")
