"""One etcd server as this process reaches it."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import grpc

from mr.kv.etcd.failures import Failure, Lost, Refused, Unsent, failure_of
from mr.kv.etcd.tls import Tls
from mr.kv.etcd.wire import TXN, Method, TxnRequest
from mr.local.asking import Answer, ask

CALL_S = 3.0
"""After so long a call is given up: its server is frozen, overloaded, or cut off from the others."""

_GREETING_S = 2.0

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A server that comes back is found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Connections to hosts that vanished are given up within these; etcd takes a ping every five seconds amiss.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5000),
    # A variable http_proxy is not meant for the store. Two stores of a process share no connection.
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]

# Members without a leader say so instead of waiting for one, and end their watches.
_NEEDS_LEADER = ("hasleader", "true")

Metadata = Sequence[tuple[str, str]]


class Endpoint:
    """Calls one server. ``room`` is entered for as long as a call takes. Not for use after a fork."""

    def __init__(self, host: str, port: int, tls: Tls | None, room: AbstractContextManager[object]) -> None:
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._host, self._port, self._tls, self._room = host, port, tls, room
        self._lock = threading.Lock()
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}
        self.is_greeted = False
        self._failed: tuple[float, Failure] = (0.0, Unsent(""))

    def call(self, method: Method, request: Any, metadata: Metadata = ()) -> Any:
        """The answer.

        :raises Failure: what became of it instead.
        """
        self.greet(metadata)
        return self._call(method, request, metadata, CALL_S)

    def greet(self, metadata: Metadata = ()) -> None:
        """Sees that there is an etcd which answers, unless that is known. So what is then sent is not sent in vain.

        Those who come while another tries share what it finds out.

        :raises Failure: there is none.
        """
        asked = time.monotonic()
        if self.is_greeted:
            return
        with self._lock:
            if self.is_greeted:
                return
            failed_at, failure = self._failed
            if failed_at >= asked:
                raise copy.copy(failure)
            try:
                self._call(TXN, TxnRequest(), metadata, _GREETING_S)
            except Failure as error:
                failure = Unsent(str(error)) if isinstance(error, Lost) else error
                self._failed = (time.monotonic(), failure)
                raise failure from error
            self.is_greeted = True

    def stream(self, method: Method, requests: Iterable[Any], metadata: Metadata = ()) -> Any:
        """A call whose answers are iterated over; gRPC's own errors come out of it."""
        return self._stub(method)(iter(requests), metadata=[_NEEDS_LEADER, *metadata])

    def ask(self, path: str) -> Answer:
        """What the server's HTTP interface, on the same port, answers.

        :raises OSError, ValueError, http.client.HTTPException: it has none, or does not answer.
        """
        return ask(self._host, self._port, path, None if self._tls is None else self._tls.context())

    def close(self) -> None:
        """Ends the calls that are under way. May be repeated."""
        if self._channel is not None:
            self._channel.close()

    def _call(self, method: Method, request: Any, metadata: Metadata, timeout: float) -> Any:
        given = [_NEEDS_LEADER, *metadata]
        try:
            stub = self._stub(method)
            with self._room:
                if not method.is_streaming:
                    return stub(request, timeout=timeout, metadata=given)
                call = stub(iter((request,)), timeout=timeout, metadata=given)
                for answer in call:
                    call.cancel()
                    return answer
        except grpc.RpcError as error:
            raise self._noted(failure_of(error)) from error
        except (OSError, ValueError) as error:
            # Certificates that are gone, or a channel that was closed.
            raise self._noted(Unsent(str(error))) from error
        raise self._noted(Lost("an answer without content"))

    def _noted(self, failure: Failure) -> Failure:
        """The same failure; a server that did not answer has to be greeted again."""
        if isinstance(failure, Refused):
            return failure
        self.is_greeted = False
        if isinstance(failure, Unsent):
            return Unsent(self._explained(str(failure)))
        return failure

    def _explained(self, text: str) -> str:
        if self._tls is not None and "refused" not in text.lower():
            return self._tls.problem(self._host, self._port) or text
        if self._tls is None and "socket closed" in text.lower():
            return f"{text}; if it speaks TLS, write etcds://"
        return text

    def _stub(self, method: Method) -> Any:
        stub = self._stubs.get(method.path)
        if stub is None:
            channel = self._open()
            make = channel.stream_stream if method.is_streaming else channel.unary_unary
            stub = make(method.path, request_serializer=method.encode, response_deserializer=method.decode)
            self._stubs[method.path] = stub
        return stub

    def _open(self) -> Any:
        if self._channel is None:
            if self._tls is None:
                self._channel = grpc.insecure_channel(self.address, options=_OPTIONS)
            else:
                self._channel = grpc.secure_channel(self.address, self._tls.credentials(), options=_OPTIONS)
        return self._channel
