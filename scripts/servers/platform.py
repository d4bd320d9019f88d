"""All of JobX on loopback: nginx before front ends, workers, and the store and queue of a cluster or of one machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from servers import ServerFailed
from servers.etcd import EtcdCluster
from servers.nginx import Nginx
from servers.nsq import Nsqd, Nsqlookupd
from servers.process import HTTP_TIMEOUT_S, Port, Server

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
COMMAND_TIMEOUT_S = 120


class Program(Server):
    """One of JobX's own, with settings instead of those of whoever starts it."""

    def __init__(self, name: str, directory: Path, settings: Mapping[str, str]) -> None:
        super().__init__(name, directory)
        self.settings = settings

    def environ(self) -> dict[str, str]:
        return environment(self.settings)


class Gunicorn(Program):
    """A front end, at a Unix socket."""

    def __init__(self, name: str, directory: Path, settings: Mapping[str, str], path: Path) -> None:
        super().__init__(name, directory, {**settings, "MR_BIND": f"unix:{path}"})
        self.path = path

    def command(self) -> list[str]:
        return [str(PROGRAMS / "jobx"), "server"]

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(HTTP_TIMEOUT_S)
            try:
                client.connect(str(self.path))
                client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in client.recv(64)
            except OSError:
                return False


class Worker(Program):
    """A worker. Killed, it takes its runners with it."""

    _said_before = 0

    def command(self) -> list[str]:
        self._said_before = len(self.log)
        return [str(PROGRAMS / "jobx"), "worker"]

    def is_ready(self) -> bool:
        return " is ready: " in self.log[self._said_before :]


class Cluster:
    """A platform whose every process can be killed, frozen and restarted. What it keeps is in the directory.

    `environ` are settings of all of JobX's processes, and commands that are to see the same platform need `settings`.
    Without etcd nodes, store and queue are the embedded ones. Sizes may be 0: then that part is not there.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        etcd_nodes: int = 3,
        nsqds: int = 2,
        gunicorns: int = 2,
        workers: int = 3,
        runners: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        # A Unix socket's path has at most 107 bytes, wherever the directory is.
        self._sockets = Path(tempfile.mkdtemp(prefix="jobx-"))
        data = self.directory / "data"
        self.settings = {"MR_DATA_DIR": str(data), "MR_FS_URL": f"file://{data / 'files'}"}
        self.etcd = EtcdCluster(self.directory / "etcd", etcd_nodes) if etcd_nodes else None
        self.lookupd = Nsqlookupd(self.directory / "nsqlookupd") if nsqds else None
        lookupds = [self.lookupd] if self.lookupd else []
        self.nsqds = [Nsqd(self.directory / f"nsqd{number}", lookupds=lookupds) for number in range(nsqds)]
        for number, nsqd in enumerate(self.nsqds):
            nsqd.name = f"nsqd{number}"
        if self.etcd and self.lookupd:
            self.settings |= {"MR_KV_URL": self.etcd.url, "MR_QUEUE_URL": self.lookupd.url}
        if runners is not None:
            self.settings["MR_RUNNERS"] = str(runners)
        self.settings |= environ or {}
        names = [f"gunicorn{number}" for number in range(gunicorns)]
        self.gunicorns = [
            Gunicorn(name, self.directory / name, self.settings, self._sockets / f"{name}.sock") for name in names
        ]
        self.workers: list[Worker] = []
        for _ in range(workers):
            self.add_worker()
        self._port = Port()
        self.nginx = self._make_nginx()

    @property
    def url(self) -> str:
        """nginx."""
        return f"http://{self._port.address}"

    def add_worker(self, environ: Mapping[str, str] | None = None) -> Worker:
        """One more, which is yet to be started; `environ` are settings of its own."""
        name = f"worker{len(self.workers)}"
        self.workers.append(Worker(name, self.directory / name, {**self.settings, **(environ or {})}))
        return self.workers[-1]

    def _make_nginx(self) -> Nginx:
        directory = self.directory / "nginx"
        (directory / "site").mkdir(parents=True, exist_ok=True)
        path = directory / "site" / "jobx.conf"
        path.write_text(nginx_configuration(self._port.address, [each.path for each in self.gunicorns], directory))
        return Nginx(directory, path)

    def start(self) -> Cluster:
        """Returns when everything answers. Raises ServerFailed, Unavailable."""
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        try:
            if self.etcd:
                self.etcd.start()
            start_together([*([self.lookupd] if self.lookupd else []), *self.nsqds])
            start_together([*self.gunicorns, *self.workers])
            if self.gunicorns:
                self.nginx.start()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends it in order: nobody comes in any more, front ends answer who waits, workers hand back what they have."""
        self.nginx.stop()
        stop_together(self.gunicorns)
        stop_together(self.workers)
        stop_together([*self.nsqds, *([self.lookupd] if self.lookupd else [])])
        if self.etcd:
            self.etcd.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def jobx(self, *arguments: str) -> str:
        """What `jobx ARGUMENTS` prints; raises ServerFailed with what it complained of."""
        done = subprocess.run(
            [str(PROGRAMS / "jobx"), *arguments],
            env=environment(self.settings),
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise ServerFailed(f"`jobx {' '.join(arguments)}` ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def logs(self) -> str:
        """The end of what each of JobX's processes has written."""
        programs = [*self.gunicorns, *self.workers]
        return "\n".join(f"--- {each.name}\n{each.log[-3000:]}" for each in programs)

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's, with these settings instead of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MR_")} | dict(settings)


def start_together(servers: Sequence[Server]) -> None:
    for each in servers:
        each.start(wait=False)
    for each in servers:
        each.wait_ready()


def stop_together(servers: Sequence[Server]) -> None:
    with ThreadPoolExecutor(max(1, len(servers))) as pool:
        list(pool.map(lambda each: each.stop(), servers))


def nginx_configuration(address: str, sockets: Iterable[Path], directory: Path) -> str:
    """The shipped `nginx.conf` and site in one, changed in nothing but the places: where it listens, where front ends
    do, where logs go and static files are.
    """
    upstreams = "\n".join(f"    server unix:{path} max_fails=0;" for path in sockets) or "    server 127.0.0.1:9 down;"
    site = _replaced(
        (ROOT / "nginx" / "jobx.conf").read_text(),
        {
            "    listen 80;\n    listen [::]:80;": f"    listen {address};",
            "    server unix:/tmp/mr.gunicorn.sock max_fails=0;": upstreams,
            "/var/log/nginx/jobx.": f"{directory}/jobx.",
            "root /usr/share/jobx/static;": f"root {ROOT}/resources/static;",
            "root /usr/share/jobx;": f"root {ROOT}/resources;",
        },
    )
    return _replaced(
        (ROOT / "nginx" / "nginx.conf").read_text(),
        {
            "\nuser www-data;": "",
            "\npid nginx.pid;": "",
            "\nerror_log /var/log/nginx/error.log warn;": "",
            "\n    include jobx.conf;": f"\n{site}",
        },
    )


def _replaced(text: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        if text.count(old) != 1:
            raise ServerFailed(f"nginx's configuration has {old.strip()!r} {text.count(old)} times, and not once")
        text = text.replace(old, new)
    return text
