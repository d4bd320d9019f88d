"""What `scripts/services` does: servers for a person, who starts them in one shell and uses them from others."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from servers import ServerFailed, Unavailable, binaries
from servers.etcd import EtcdCluster
from servers.nsq import Nsqd, Nsqlookupd
from servers.process import STOP_TIMEOUT_S, Server, wait_until

DESCRIPTION = """\
get     gets or builds etcd, NSQ and nginx into your cache, which takes a minute or two, once
start   starts etcd, nsqlookupd and nsqd on free loopback ports, empty, and prints what to export:
            eval "$(scripts/services start)" && jobx dev DIR
stop    ends them; their data stays until the next start
status  says what runs; exit code 1 unless all do"""


class Running(NamedTuple):
    name: str
    pid: int
    began: str
    """When the process began, as the kernel counts: with it, a later process of the same number is not taken for it."""
    address: str

    @property
    def is_alive(self) -> bool:
        return _began(self.pid) == self.began


class State(NamedTuple):
    servers: list[Running]
    exports: dict[str, str]

    def shell(self) -> str:
        return "\n".join(f"export {name}='{value}'" for name, value in self.exports.items())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/services", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["get", "start", "stop", "status"])
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="start: etcd nodes (default: 1)")
    parser.add_argument("--nsqds", type=_count, default=1, metavar="N", help="start: nsqd (default: 1)")
    given = parser.parse_args()
    try:
        if given.command == "get":
            return get()
        with _locked():
            if given.command == "start":
                return start(given.nodes, given.nsqds)
            return stop() if given.command == "stop" else status()
    except (ServerFailed, Unavailable, OSError) as error:
        _say(f"scripts/services {given.command}: {error}")
        return 1


def get() -> int:
    problems = binaries.get_all()
    for problem in problems:
        _say(problem)
    if not problems:
        _say(f"All servers are in {binaries.cache()}")
    return 1 if problems else 0


def start(nodes: int, nsqds: int) -> int:
    state = _read()
    alive = [each for each in state.servers if each.is_alive]
    if alive and len(alive) == len(state.servers):
        _say("They run already; `scripts/services stop` ends them.")
        print(state.shell())
        return 0
    if alive:
        _say(f"Of those that were started, only {', '.join(each.name for each in alive)} run: all start anew")
    for each in alive:
        _end(each)
    shutil.rmtree(_home() / "data", ignore_errors=True)
    etcd = EtcdCluster(_home() / "data/etcd", nodes)
    lookupd = Nsqlookupd(_home() / "data/nsqlookupd")
    queues = [Nsqd(_home() / f"data/nsqd{number}", lookupds=[lookupd]) for number in range(nsqds)]
    try:
        etcd.start(detached=True)
        lookupd.start(detached=True)
        for queue in queues:
            queue.start(detached=True)
    except BaseException:
        for server in [*queues, lookupd, *etcd.nodes]:
            server.kill()
        raise
    servers = [
        *(_running(node.name, node, node.address) for node in etcd.nodes),
        _running("nsqlookupd", lookupd, lookupd.http_address),
        *(_running(f"nsqd{number}", queue, queue.tcp_address) for number, queue in enumerate(queues)),
    ]
    addresses = ",".join(queue.tcp_address for queue in queues)
    state = State(servers, {"MR_KV_URL": etcd.url, "MR_QUEUE_URL": f"nsq://{addresses}"})
    _file().write_text(json.dumps(state, indent=1))
    _say(f"Started {', '.join(each.name for each in servers)}; logs and data are in {_home() / 'data'}")
    print(state.shell())
    return 0


def stop() -> int:
    state = _read()
    alive = [each for each in state.servers if each.is_alive]
    for each in alive:
        _end(each)
    _file().unlink(missing_ok=True)
    _say(f"Ended {', '.join(each.name for each in alive)}" if alive else "Nothing runs.")
    return 0


def status() -> int:
    state = _read()
    for each in state.servers:
        how = f"process {each.pid}" if each.is_alive else "not running"
        _say(f"{each.name:12} {each.address:18} {how}")
    if not state.servers:
        _say("Nothing was started.")
    if not state.servers or not all(each.is_alive for each in state.servers):
        return 1
    print(state.shell())
    return 0


def _end(each: Running) -> None:
    """Asks once, then kills: etcd's leader would look for another first."""
    os.kill(each.pid, signal.SIGTERM)
    deadline = time.monotonic() + (1 if each.name.startswith("etcd") else STOP_TIMEOUT_S)
    while each.is_alive and time.monotonic() < deadline:
        time.sleep(0.02)
    if each.is_alive:
        os.kill(each.pid, signal.SIGKILL)
        wait_until(lambda: not each.is_alive, f"process {each.pid} ends")


def _running(name: str, server: Server, address: str) -> Running:
    return Running(name, server.pid, _began(server.pid) or "", address)


def _began(pid: int) -> str | None:
    """None when there is no such process, or only what is left of it until its parent asks."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _home() -> Path:
    return binaries.cache().parent / "services"


def _file() -> Path:
    return _home() / "state.json"


def _read() -> State:
    try:
        found = json.loads(_file().read_text())
    except FileNotFoundError:
        return State([], {})
    return State([Running(*each) for each in found[0]], found[1])


@contextmanager
def _locked() -> Iterator[None]:
    _home().mkdir(parents=True, exist_ok=True)
    with (_home() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 9")
    return int(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
