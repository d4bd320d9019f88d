"""nsqd, nsqlookupd, and the service that an nsqd asks who may do what."""

from __future__ import annotations

import json
import threading
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from servers import binaries
from servers.certificates import Authority
from servers.process import HOST, HTTP_TIMEOUT_S, Port, Server, answers


class Nsqlookupd(Server):
    """Knows which nsqd has which topic."""

    def __init__(self, directory: Path | str) -> None:
        super().__init__("nsqlookupd", directory)
        self.tcp_port, self.http_port = Port(), Port()

    @property
    def tcp_address(self) -> str:
        """Where nsqd register themselves."""
        return self.tcp_port.address

    @property
    def http_address(self) -> str:
        """Where consumers ask."""
        return self.http_port.address

    @property
    def url(self) -> str:
        """The value of MR_QUEUE_URL."""
        return f"nsqlookup://{self.http_address}"

    def command(self) -> list[str]:
        return [
            str(binaries.nsqlookupd()),
            f"--tcp-address={self.tcp_address}",
            f"--http-address={self.http_address}",
            f"--broadcast-address={HOST}",
        ]

    def is_ready(self) -> bool:
        return answers(f"http://{self.http_address}/ping")


class AuthServer:
    """The HTTP service that `--auth-http-address` names: whoever has the secret may publish and consume everything.

    It runs in a thread of this process. `asked` has the query of each call.
    """

    def __init__(self, secret: str, *, ttl_s: int = 3600) -> None:
        self.secret = secret
        self.ttl_s = ttl_s
        self.asked: list[dict[str, str]] = []
        self._port = Port()
        self._server: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        return self._port.address

    def answer(self, query: dict[str, str]) -> dict[str, Any] | None:
        self.asked.append(query)
        if query.get("secret") != self.secret:
            return None
        everything = {"topic": ".*", "channels": [".*"], "permissions": ["publish", "subscribe"]}
        return {"ttl": self.ttl_s, "identity": "test", "identity_url": "", "authorizations": [everything]}

    def start(self) -> AuthServer:
        if self._server is None:
            service = self

            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    url = urllib.parse.urlsplit(self.path)
                    answer = service.answer(dict(urllib.parse.parse_qsl(url.query)))
                    body = json.dumps(answer or {"message": "NOT_AUTHORIZED"}).encode()
                    self.send_response(200 if answer else 403)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, format: str, *args: object) -> None:
                    pass

            self._server = ThreadingHTTPServer((HOST, self._port.number), Handler)
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> AuthServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Nsqd(Server):
    """One nsqd. With `tls` it refuses TCP without TLS (its HTTP interface stays open, for `stats`); with `auth` it asks
    that service, which must run, about each connection; `lookupds` are addresses or servers.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        lookupds: Sequence[Nsqlookupd | str] = (),
        tls: Authority | None = None,
        client_certificates: bool = False,
        auth: AuthServer | str | None = None,
        mem_queue_size: int | None = None,
        args: Sequence[str] = (),
    ) -> None:
        super().__init__("nsqd", directory)
        if client_certificates and tls is None:
            raise ValueError("client certificates need tls, the authority that they are of")
        self.lookupds = [each if isinstance(each, str) else each.tcp_address for each in lookupds]
        self.tls = tls
        self.client_certificates = client_certificates
        self.auth = auth.address if isinstance(auth, AuthServer) else auth
        self.mem_queue_size = mem_queue_size
        self.args = tuple(args)
        self.tcp_port, self.http_port, self.https_port = Port(), Port(), Port()

    @property
    def tcp_address(self) -> str:
        return self.tcp_port.address

    @property
    def http_address(self) -> str:
        return self.http_port.address

    def command(self) -> list[str]:
        data = self.directory / "data"
        data.mkdir(exist_ok=True)
        command = [
            str(binaries.nsqd()),
            f"--tcp-address={self.tcp_address}",
            f"--http-address={self.http_address}",
            f"--https-address={self.https_port.address}",
            f"--broadcast-address={HOST}",
            f"--data-path={data}",
            *(f"--lookupd-tcp-address={address}" for address in self.lookupds),
        ]
        if self.mem_queue_size is not None:
            command.append(f"--mem-queue-size={self.mem_queue_size}")
        if self.auth:
            command.append(f"--auth-http-address={self.auth}")
        if self.tls:
            pair = self.tls.server("nsqd")
            command += [f"--tls-cert={pair.cert}", f"--tls-key={pair.key}", "--tls-required=tcp-https"]
            command += [f"--tls-root-ca-file={self.tls.ca}"]
        if self.client_certificates:
            command.append("--tls-client-auth-policy=require-verify")
        return [*command, *self.args]

    def is_ready(self) -> bool:
        return answers(f"http://{self.http_address}/ping")

    def stats(self) -> dict[str, Any]:
        """What `/stats?format=json` says: `topics`, each with its `channels`, `depth` and `message_count`, and more."""
        url = f"http://{self.http_address}/stats?format=json"
        with urllib.request.urlopen(url, timeout=HTTP_TIMEOUT_S) as response:
            found: dict[str, Any] = json.load(response)
        return found
