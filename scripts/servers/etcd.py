"""etcd, alone or as a cluster."""

from __future__ import annotations

import os
import subprocess
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from servers import ServerFailed, binaries
from servers.certificates import Authority
from servers.process import Port, Server, answers

CTL_TIMEOUT_S = 30


class Etcd(Server):
    """One etcd. With `tls` it has a certificate of that authority; then it may ask clients for one of theirs, too.

    Peers, metrics and health are plain, on ports of their own.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        version: str = "3.6",
        name: str = "default",
        tls: Authority | None = None,
        client_certificates: bool = False,
        quota_bytes: int | None = None,
        args: Sequence[str] = (),
    ) -> None:
        super().__init__(f"etcd-{name}", directory)
        if client_certificates and tls is None:
            raise ValueError("client certificates need tls, the authority that they are of")
        self.version = version
        self.member = name
        self.tls = tls
        self.client_certificates = client_certificates
        self.quota_bytes = quota_bytes
        self.args = tuple(args)
        self.port, self.peer_port, self.metrics_port = Port(), Port(), Port()
        self.cluster = [self]

    @property
    def address(self) -> str:
        return self.port.address

    @property
    def url(self) -> str:
        """The value of MR_KV_URL."""
        return _url([self])

    @property
    def metrics_url(self) -> str:
        """Where `/health` and `/metrics` are, without TLS."""
        return f"http://{self.metrics_port.address}"

    def command(self) -> list[str]:
        scheme = "https" if self.tls else "http"
        client, peer = f"{scheme}://{self.address}", f"http://{self.peer_port.address}"
        members = ",".join(f"{node.member}=http://{node.peer_port.address}" for node in self.cluster)
        progress = "watch-progress-notify-interval=1s"
        if self.version == "3.4":
            progress = f"experimental-{progress}"
        command = [
            str(binaries.etcd(self.version)),
            f"--name={self.member}",
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={members}",
            f"--listen-metrics-urls={self.metrics_url}",
            # A leader that died is missed after half a second instead of one.
            "--heartbeat-interval=50",
            "--election-timeout=500",
            f"--{progress}",
        ]
        if self.quota_bytes is not None:
            command.append(f"--quota-backend-bytes={self.quota_bytes}")
        if self.tls:
            pair = self.tls.server(self.name)
            command += [f"--cert-file={pair.cert}", f"--key-file={pair.key}"]
            if self.client_certificates:
                command += ["--client-cert-auth", f"--trusted-ca-file={self.tls.ca}"]
        return [*command, *self.args]

    def environ(self) -> dict[str, str]:
        # etcd reads every flag from the environment, too.
        return {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}

    def is_ready(self) -> bool:
        # A full store answers reads, and is what some tests start again.
        return answers(f"{self.metrics_url}/health?exclude=NOSPACE")

    def ctl(self, *args: str) -> str:
        """What `etcdctl ARGS` prints about this server; raises ServerFailed with what it complained of."""
        return _ctl([self], args)


class EtcdCluster:
    """Several etcd that are one store. `nodes` can be killed, frozen and restarted one by one."""

    def __init__(
        self,
        directory: Path | str,
        nodes: int = 3,
        *,
        version: str = "3.6",
        tls: Authority | None = None,
        client_certificates: bool = False,
        quota_bytes: int | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self.nodes = [
            Etcd(
                Path(directory) / f"node{number}",
                version=version,
                name=f"node{number}",
                tls=tls,
                client_certificates=client_certificates,
                quota_bytes=quota_bytes,
                args=args,
            )
            for number in range(nodes)
        ]
        for node in self.nodes:
            node.cluster = self.nodes

    @property
    def address(self) -> str:
        return ",".join(node.address for node in self.nodes)

    @property
    def url(self) -> str:
        return _url(self.nodes)

    def start(self, *, detached: bool = False) -> EtcdCluster:
        # None is ready before a majority is there.
        for node in self.nodes:
            node.start(wait=False, detached=detached)
        for node in self.nodes:
            node.wait_ready()
        return self

    def stop(self) -> None:
        """Ends all at once, by killing them, which loses nothing that they acknowledged: asked to stop, a leader would
        wait six seconds for another.
        """
        for node in self.nodes:
            node.kill()

    def ctl(self, *args: str) -> str:
        """What `etcdctl ARGS` prints, asked of those nodes that answer."""
        return _ctl(self.nodes, args)

    def __enter__(self) -> EtcdCluster:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _url(nodes: Sequence[Etcd]) -> str:
    addresses = ",".join(node.address for node in nodes)
    authority = nodes[0].tls
    if authority is None:
        return f"etcd://{addresses}"
    query = {"ca": str(authority.ca)}
    if nodes[0].client_certificates:
        pair = authority.client("jobx")
        query |= {"cert": str(pair.cert), "key": str(pair.key)}
    return f"etcds://{addresses}?{urllib.parse.urlencode(query, safe='/')}"


def _ctl(nodes: Sequence[Etcd], args: Sequence[str]) -> str:
    first = nodes[0]
    command = [str(binaries.etcdctl(first.version)), f"--endpoints={','.join(node.address for node in nodes)}"]
    if first.tls:
        command += [f"--cacert={first.tls.ca}"]
    if first.client_certificates and first.tls:
        pair = first.tls.client("jobx")
        command += [f"--cert={pair.cert}", f"--key={pair.key}"]
    done = subprocess.run(
        [*command, *args],
        env={**first.environ(), "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        timeout=CTL_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise ServerFailed(f"`etcdctl {' '.join(args)}` ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
