"""API tokens as a user meets them: made by the command, asked for over HTTP, gone when they are revoked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.acceptance.served import BIN, Answer, Served, served, until

FILES = {
    "jobs.yaml": "steps: {count: {map: split, reduce: add}}\njobs: {wordcount: {step: count}}\n",
    "split.py": (
        "def mapper(arguments):\n    yield MrConfigureToReturn()\n"
        "    for _, text in arguments:\n        for word in text.split():\n            yield word, 1\n"
    ),
    "add.py": "def reducer(results):\n    for word, counts in results:\n        yield word, sum(counts)\n",
}
PAIRS = [["be", 2], ["not", 1], ["or", 1], ["to", 2]]


@pytest.fixture
def platform(tmp_path: Path, backing: dict[str, str]) -> Iterator[Served]:
    with served(tmp_path, FILES, **backing) as made:
        yield made


def create(platform: Served, *arguments: str) -> dict[str, str]:
    """The header of a new token."""
    text = platform.jobx("token", "create", "somebody", *arguments).stdout.strip()
    return {"Authorization": f"Bearer {text}"}


def post(platform: Served, headers: dict[str, str], query: str = "") -> Answer:
    return platform.post("wordcount", query, headers=headers, text="to be or not to be")


def status_of(platform: Served, headers: dict[str, str], path: str = "/request/w/last") -> int:
    return platform.get(path, **headers).status


def test_a_token_is_asked_for_as_soon_as_there_is_one_and_until_it_is_revoked(platform: Served) -> None:
    assert post(platform, {}).pairs == PAIRS
    token = create(platform, "--scope", "submit")
    until(lambda: post(platform, {}).status == 401)
    answer = post(platform, token)
    assert answer.pairs == PAIRS
    assert platform.get(f"/request/w/{answer.headers['X-MR-REQUEST-ID']}/result", **token).pairs == PAIRS
    for path in ("", "/result", "/tree", "/graph.dot", "/graph.svg"):
        assert status_of(platform, {}, f"/request/w/last{path}") == 401
    assert status_of(platform, {}, "/healthz") == status_of(platform, {}, "/readyz") == 200
    token_id = token["Authorization"].split("_")[1]
    assert token_id in platform.jobx("token", "list").stdout
    platform.jobx("token", "revoke", token_id[:6])
    until(lambda: post(platform, token).status == 401)
    assert platform.jobx("token", "list").stdout == ""


def test_a_new_token_works_at_once_and_what_it_lacks_is_named(platform: Served) -> None:
    admin = create(platform, "--scope", "admin")
    assert post(platform, admin).pairs == PAIRS
    reader = create(platform, "--scope", "read", "--workflow", "w", "--expires", "1h")
    assert status_of(platform, reader) == status_of(platform, reader, "/request/w/last/tree") == 200
    answer = post(platform, reader)
    assert (answer.status, answer.json["type"], answer.json["scope"]) == (403, "urn:jobx:forbidden", "submit")
    stranger = create(platform, "--scope", "admin", "--workflow", "elsewhere")
    answer = post(platform, stranger)
    assert (answer.status, "'w'" in answer.json["detail"]) == (403, True)
    answer = platform.get("/request/elsewhere/last", **stranger)
    assert (answer.status, answer.json["detail"]) == (404, "There is no workflow 'elsewhere'.")


def test_many_processes_and_clients_agree_on_a_token(tmp_path: Path, backing: dict[str, str]) -> None:
    with served(tmp_path, FILES, MR_WEB_PROCESSES=3, **backing) as platform, ThreadPoolExecutor(12) as clients:

        def statuses(headers: dict[str, str]) -> set[int]:
            return set(clients.map(lambda _: post(platform, headers, "?blocking=false").status, range(24)))

        token = create(platform, "--scope", "submit")
        assert statuses(token) == {202}
        until(lambda: statuses({}) == {401})
        platform.jobx("token", "revoke", token["Authorization"].split("_")[1])
        until(lambda: statuses(token) == {401})


def test_tokens_outlive_everything_that_is_killed(platform: Served) -> None:
    token = create(platform, "--scope", "admin")
    assert post(platform, token).pairs == PAIRS
    platform.kill_everything()
    platform.start()
    assert post(platform, {}).status == 401
    assert post(platform, token).pairs == PAIRS


# --- a server that others can reach ---------------------------------------------------------------------------------


def test_a_server_that_others_can_reach_starts_with_a_token_and_stays_shut_without(tmp_path: Path) -> None:
    platform = Served(tmp_path, FILES, "--host", "0.0.0.0")
    refused = platform.run("jobx", "dev", str(platform.workflow), "--host", "0.0.0.0", "--port", "0", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "jobx token create" in refused.stderr
    token = create(platform, "--scope", "admin")
    try:
        platform.start()
        assert post(platform, {}).status == 401
        assert post(platform, token).pairs == PAIRS
        platform.jobx("token", "revoke", token["Authorization"].split()[1])
        until(lambda: post(platform, token).status == 401)
        assert post(platform, {}).status == 401
        assert status_of(platform, {}, "/healthz") == 200
    finally:
        platform.kill_everything()


def test_the_front_end_alone_asks_the_store_as_well_before_it_listens(tmp_path: Path, backing: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    platform = Served(tmp_path, FILES, MR_BIND=f"0.0.0.0:{port}", **backing)
    refused = platform.jobx("server", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "jobx token create" in refused.stderr
    token = create(platform, "--scope", "read", "--expires", "1h")
    platform.url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([str(BIN / "jobx"), "server"], env=platform.environ, stdout=log, stderr=log)
    try:
        until(lambda: is_healthy(platform), 30, platform.log)
        assert status_of(platform, {}, "/") == 401
        assert status_of(platform, token, "/") == 200
    finally:
        server.terminate()
        assert server.wait(30) == 0


def is_healthy(platform: Served) -> bool:
    try:
        return platform.get("/healthz").status == 200
    except OSError:
        return False


# --- a Unix socket, as nginx uses it --------------------------------------------------------------------------------


class UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextmanager
def behind_a_socket(directory: Path, **settings: str) -> Iterator[Path]:
    """A front end alone; the path where it listens."""
    path = directory / "s"
    environ = {**os.environ, "MR_DATA_DIR": str(directory / "data"), "MR_BIND": f"unix:{path}", **settings}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([str(BIN / "jobx"), "server"], env=environ, stdout=log, stderr=log)
    try:
        until(lambda: path.exists() and ask(path, "/healthz")[0] == 200, 30, (directory / "log").read_text)
        yield path
    finally:
        process.terminate()
        process.wait(30)


def ask(path: Path, url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    connection = UnixConnection(path)
    try:
        connection.request(method, url, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    except ConnectionError as error:
        return 0, {}, str(error)
    finally:
        connection.close()


def apply(directory: Path) -> Served:
    platform = Served(directory, FILES)
    platform.jobx("apply", str(platform.workflow))
    return platform


def test_a_socket_behind_a_proxy_is_for_this_machine_until_there_are_tokens(tmp_path: Path) -> None:
    platform = apply(tmp_path)
    with behind_a_socket(tmp_path) as path:
        assert ask(path, "/")[0] == 200
        assert ask(path, "/", X_Forwarded_For="127.0.0.1")[0] == 200
        status, headers, text = ask(path, "/", X_Forwarded_For="127.0.0.1, 192.0.2.7")
        assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="jobx"')
        assert "jobx token create" in json.loads(text)["detail"]
        token = create(platform, "--scope", "submit")
        through = {"X_Forwarded_For": "6.6.6.6, 192.0.2.7", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "jobs.x"}
        status, headers, _ = ask(path, "/job/w/wordcount?blocking=false", "POST", **token, **through)
        assert (status, headers["Location"].partition("/request/")[0]) == (202, "https://jobs.x")
        status, _, text = ask(path, headers["Location"].partition("jobs.x")[2], **token)
        assert (status, json.loads(text)["context"]["requester_ip"]) == (200, "192.0.2.7")


def test_a_socket_whose_peer_is_not_trusted_believes_nobody(tmp_path: Path) -> None:
    apply(tmp_path)
    with behind_a_socket(tmp_path, MR_TRUSTED_PROXIES="none") as path:
        forged = {"X_Forwarded_For": "192.0.2.7", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "evil.example"}
        status, headers, _ = ask(path, "/job/w/wordcount?blocking=false", "POST", **forged)
        assert (status, headers["Location"].partition("/request/")[0]) == (202, "http://localhost")
