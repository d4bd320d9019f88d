"""Gets the servers' programs from nothing but Python, Go and Debian's package manager.

They stand in the user's cache, in a directory named by the recipe, a folder a part; each part is made by one process at
a time and appears whole or not at all. Nothing is installed; deleting the cache is always safe.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from servers import Unavailable

MODULE = Path(__file__).parent / "go"
GO_PLACES = ("/usr/local/go/bin", "/usr/lib/go/bin")
BUILD_TIMEOUT_S = 1200
DOWNLOAD_TIMEOUT_S = 300

# What a build may take of a machine that others work on is bounded.
_FLAGS = ("-p", "2", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags=-s -w")


class _Part(NamedTuple):
    what: str
    programs: dict[str, str]
    """Of each program: what it says of its version."""
    install: str
    """What a person can do when it cannot be had here."""
    go: dict[str, str] = {}  # noqa: RUF012
    """Go packages of our module to build, and what the built programs are called."""
    debian: tuple[str, ...] = ()
    """Debian packages to unpack, and the files of them to keep."""
    files: tuple[str, ...] = ()


_NSQ = ("nsqd", "nsqlookupd", "nsqadmin")
_PARTS = {
    "nsq": _Part(
        "nsqd, nsqlookupd and nsqadmin 1.3.0",
        {name: "v1.3.0" for name in _NSQ},
        "Install Go 1.24 or newer, or NSQ 1.3.0 from https://nsq.io",
        go={f"github.com/nsqio/nsq/apps/{name}": name for name in _NSQ},
    ),
    "etcd-3.4": _Part(
        "etcd and etcdctl 3.4",
        {"etcd": " 3.4.", "etcdctl": " 3.4."},
        "Install etcd 3.4: Debian 12's packages etcd-server and etcd-client, or a release from https://etcd.io",
        debian=("etcd-server", "etcd-client"),
        files=("usr/bin/etcd", "usr/bin/etcdctl"),
    ),
    "etcd-3.6": _Part(
        "etcd and etcdctl 3.6.4",
        {"etcd": " 3.6.", "etcdctl": " 3.6."},
        "Install Go 1.24 or newer, or a release of etcd 3.6 from https://etcd.io",
        go={"go.etcd.io/etcd/server/v3": "etcd", "go.etcd.io/etcd/etcdctl/v3": "etcdctl"},
    ),
    "nginx": _Part(
        "nginx",
        {"nginx": "nginx/1."},
        "Install nginx; on Debian and Ubuntu: apt-get install nginx",
        debian=("nginx", "nginx-common"),
        files=("usr/sbin/nginx", "etc/nginx/mime.types"),
    ),
}


def nsqd() -> Path:
    return get("nsq")["nsqd"]


def nsqlookupd() -> Path:
    return get("nsq")["nsqlookupd"]


def etcd(version: str = "3.6") -> Path:
    return get(f"etcd-{version}")["etcd"]


def etcdctl(version: str = "3.6") -> Path:
    return get(f"etcd-{version}")["etcdctl"]


def nginx() -> Path:
    return get("nginx")["nginx"]


def cache() -> Path:
    """The directory of this recipe."""
    recipe = hashlib.sha256(f"{platform.machine()} {_FLAGS} {_PARTS}".encode())
    for name in ("go.mod", "go.sum"):
        recipe.update((MODULE / name).read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jobx" / f"servers-{recipe.hexdigest()[:12]}"


_found: dict[str, dict[str, Path]] = {}
_missing: dict[str, str] = {}


def get(name: str) -> dict[str, Path]:
    """The programs of a part, which is made unless it is there. What failed is not tried again by this process."""
    if name not in _PARTS:
        raise ValueError(f"there is no {name!r}; there are {', '.join(_PARTS)}")
    if name in _missing:
        raise Unavailable(_missing[name])
    if name not in _found:
        part = _PARTS[name]
        try:
            directory = _made(name, part)
            _found[name] = {program: directory / program for program in part.programs}
        except (OSError, Unavailable, subprocess.SubprocessError) as error:
            on_path = {program: shutil.which(program) for program in part.programs}
            wrong = [p for p, path in on_path.items() if path is None or not _is_version(Path(path), part.programs[p])]
            if wrong:
                _missing[name] = f"{name} cannot be had: {error}; not on PATH: {', '.join(wrong)}. {part.install}"
                raise Unavailable(_missing[name]) from error
            _found[name] = {program: Path(path) for program, path in on_path.items() if path}
    return _found[name]


def get_all() -> list[str]:
    """Gets every part; answers what could not be had, a sentence each."""
    problems = []
    for name in _PARTS:
        try:
            get(name)
        except Unavailable as error:
            problems.append(str(error))
    return problems


def _made(name: str, part: _Part) -> Path:
    home = cache()
    target = home / name
    if target.exists():
        return target
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / f"{name}.lock"):
        if target.exists():
            return target
        for abandoned in home.glob(f"{name}.part-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{name}.part-", dir=home))
        try:
            (_build if part.go else _unpack)(part, draft)
            for program, version in part.programs.items():
                if not _is_version(draft / program, version):
                    raise Unavailable(f"what was got as {program} is not version {version}")
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_version(program: Path, wanted: str) -> bool:
    """True when the program runs here and says the version."""
    for argument in ("--version", "version", "-v"):
        try:
            done = _run([program, argument], env={**os.environ, "ETCDCTL_API": "3"}, timeout=DOWNLOAD_TIMEOUT_S)
        except (Unavailable, OSError):
            continue
        return wanted in done
    return False


def _run(
    command: list[str | Path], *, timeout: float, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, timeout=timeout, check=False, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        end = " / ".join(done.stdout.strip().splitlines()[-3:])
        raise Unavailable(f"`{' '.join(map(str, command[:3]))} …` ended with {done.returncode}: {end}")
    return done.stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _build(part: _Part, draft: Path) -> None:
    go = shutil.which("go") or shutil.which("go", path=os.pathsep.join(GO_PLACES))
    if go is None:
        raise Unavailable("there is no Go to build it with")
    _say(f"Building {part.what}, once, into {cache()}")
    environ = {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}
    for package, program in part.go.items():
        command: list[str | Path] = [go, "build", *_FLAGS, "-o", draft / program, package]
        _run(command, cwd=MODULE, env=environ, timeout=BUILD_TIMEOUT_S)


def _unpack(part: _Part, draft: Path) -> None:
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no {tool} to get it with")
    _say(f"Getting {part.what}, once, into {cache()}")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        _download(scratch, part.debian)
        tree = scratch / "tree"
        for package in scratch.glob("*.deb"):
            _run(["dpkg", "-x", package, tree], timeout=DOWNLOAD_TIMEOUT_S)
        for file in part.files:
            shutil.copy2(tree / file, draft)


def _download(scratch: Path, packages: tuple[str, ...]) -> None:
    apt: list[str | Path] = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"]
    try:
        _run([*apt, "download", *packages], cwd=scratch, timeout=DOWNLOAD_TIMEOUT_S)
    except Unavailable:
        # The machine's package lists are empty or too old; lists of our own need nobody's leave.
        (scratch / "lists/partial").mkdir(parents=True)
        (scratch / "archives/partial").mkdir(parents=True)
        apt += ["-o", f"Dir::State::Lists={scratch / 'lists'}", "-o", f"Dir::Cache={scratch}"]
        _run([*apt, "update"], cwd=scratch, timeout=DOWNLOAD_TIMEOUT_S)
        _run([*apt, "download", *packages], cwd=scratch, timeout=DOWNLOAD_TIMEOUT_S)
