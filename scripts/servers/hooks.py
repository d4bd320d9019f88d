"""Somebody who is told by HTTP: a listener in a thread, which keeps what it was sent and answers as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

from servers.process import HOST, START_TIMEOUT_S, Port, wait_until


class Hook(NamedTuple):
    """One POST as it came; names of headers are in lower case."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Hooks:
    """Listens at ``url``, always the same one, while it is started.

    ``answer`` gives the status for a POST, which was noted before; None closes the connection without an answer.
    """

    def __init__(self) -> None:
        self._port = Port()
        self.received: list[Hook] = []
        self.answer: Callable[[Hook], int | None] = lambda hook: 204
        self._server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        return self._port.address

    @property
    def url(self) -> str:
        return f"http://{self.address}/hook"

    @property
    def ids(self) -> list[str]:
        """Of everything that was received, each once."""
        return list(dict.fromkeys(hook.webhook_id for hook in list(self.received)))

    def start(self) -> Hooks:
        hooks = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self._body()
                hook = Hook(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                hooks.received.append(hook)
                status = hooks.answer(hook)
                self.close_connection = True
                if status is not None:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def _body(self) -> bytes:
                if self.headers["Transfer-Encoding"] != "chunked":
                    size = int(self.headers["Content-Length"])
                    whole = self.rfile.read(size)
                    if len(whole) < size:
                        raise ConnectionAbortedError("whoever posts was killed meanwhile")
                    return whole
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: what came is kept."""

        class Listener(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Whoever posts may be killed at any moment."""

        self._server = Listener((HOST, self._port.number), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="hooks", daemon=True).start()
        return self

    def stop(self) -> None:
        """From now on connections are refused. What was received stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait_for(self, number: int, timeout: float = START_TIMEOUT_S) -> list[Hook]:
        """Everything received, once it has that many different IDs."""
        wait_until(lambda: len(self.ids) >= number, f"{number} webhooks to arrive, of which {self.ids} did", timeout)
        return self.received

    def __enter__(self) -> Hooks:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
