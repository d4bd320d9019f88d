"""Streams of a front end as it is run: how they end when a client goes away, and when the server stops."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_web_server
from test_web_server import DEADLINE_S, Server, eventually

PROGRAM = """
from mr.web import patched
import pathlib, sys, threading, time
from mr.cli.serve import main
from mr.web import events

class Told(events.Events):
    def __init__(self, front):
        super().__init__(front)
        threading.Thread(target=self.tell, daemon=True).start()

    def tell(self):
        while True:
            pathlib.Path({path!r}).write_text(f"{{self.streams}} {{len(self)}}")
            time.sleep(0.02)

events.HEARTBEAT_S = 0.1
events.Events = Told
sys.exit(main())
"""


class Streaming(Server):
    """Gives signs of life ten times a second, and says how many streams and watched requests it has."""

    def counts(self) -> str:
        path = self.directory / "counts"
        return path.read_text() if path.exists() else ""

    def open(self, request_id: str) -> socket.socket:
        """A stream, once its first event has come."""
        client = socket.create_connection(self.connect_to(), DEADLINE_S)
        client.sendall(f"GET /request/words/{request_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        seen = b""
        while b"event: progress" not in seen:
            piece = client.recv(65536)
            assert piece, seen
            seen += piece
        return client


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Streaming]:
    program = PROGRAM.format(path=str(tmp_path / "counts"))
    popen = subprocess.Popen

    def with_program(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:3] == ["-m", "mr.cli.serve"]
        return popen([sys.executable, "-c", program, *command[3:]], **options)

    monkeypatch.setattr(test_web_server.subprocess, "Popen", with_program)
    server = Streaming(tmp_path)
    yield server
    server.close()


def submit(server: Server) -> str:
    return str(server.ask("POST", "/job/words/wordcount?blocking=false", b"{}").json()["request_id"])


def test_nothing_is_left_of_clients_that_went_away(server: Streaming) -> None:
    request_id = submit(server)
    clients = [server.open(request_id) for _ in range(20)]
    eventually(lambda: server.counts() == "20 1")
    for client in clients[:19]:
        client.close()
    eventually(lambda: server.counts() == "1 1")
    clients[19].close()
    eventually(lambda: server.counts() == "0 0")
    assert server.ask("GET", "/healthz").status == 200
    assert server.said() == ""


def test_a_server_that_stops_ends_its_streams(server: Streaming) -> None:
    with server.open(submit(server)) as client:
        server.process.terminate()
        rest = b"".join(iter(lambda: client.recv(65536), b""))
    # It is whole as HTTP has it, and has no end: who watches asks again.
    assert rest.endswith(b": connect again\n\n\r\n0\r\n\r\n")
    assert b"event: end" not in rest
    assert server.process.wait(DEADLINE_S) == 0
    assert server.said() == ""
