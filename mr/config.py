"""The one configuration value, read from a mapping of environment variables and checked before anything connects.

A field of :class:`Config` is its variable's name in lower case without ``MR_``. Nothing else in the package reads the
environment: programs hand in ``os.environ``, tests a dictionary. An empty variable counts as one that is not set.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import os
import pwd
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import quote

from mr.errors import InvalidConfig
from mr.urls import DEFAULT_PORTS, MASK, address, comma_separated, local_path, masked_url, parse_servers, split_url

T = TypeVar("T")
Sandbox = Literal["process", "confined"]

WORKFLOW_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
CAPABILITY = re.compile(r"[A-Za-z0-9_-]{1,16}")
CHANNEL = re.compile(r"[.A-Za-z0-9_-]{1,64}")

UNIX_PATH_BYTES = 107
"""What ``sockaddr_un`` has room for on Linux, less the closing zero."""

UNIX_PEER = "unix"
"""Stands among trusted proxies for whoever is connected through a Unix socket."""


class Bind(NamedTuple):
    """Where the front end listens: a host and a port (0: any that is free), or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Setting(NamedTuple):
    """One line of ``jobx config``. ``source`` is ``default`` or ``environment``, and names a classic variable."""

    name: str
    value: str
    source: str


# --- readers: text of a variable to a value; a ValueError says what to do -------------------------------------------


def whole_number(low: int, high: int = 2**63 - 1) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise ValueError(f"give a whole number from {low}{f' to {high}' if high < 2**62 else ' up'}")
        return int(text)

    return read


def seconds(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"give a number of seconds from {low:g} to {high:g}")
        return value

    return read


def read_yes_or_no(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("give 1 or 0")


def names(pattern: re.Pattern[str], what: str) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        parts = comma_separated(text)
        for part in parts:
            if not pattern.fullmatch(part):
                raise ValueError(f"{part!r} is no {what}: those match {pattern.pattern}; separate several by commas")
        return parts

    return read


def read_channel(text: str) -> str:
    if not CHANNEL.fullmatch(text):
        raise ValueError(f"a channel's name matches {CHANNEL.pattern}")
    return text


def read_sandbox(text: str) -> Sandbox:
    if text not in ("process", "confined"):
        raise ValueError("give process or confined")
    return cast(Sandbox, text)


def read_bind(text: str) -> Bind:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError("the path of a Unix socket is absolute, as in unix:/run/jobx/gunicorn.sock")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise ValueError(f"the path of a Unix socket has at most {UNIX_PATH_BYTES} bytes: choose a shorter one")
        return Bind(path=path)
    try:
        return Bind(*address(text))
    except ValueError:
        raise ValueError("give HOST:PORT, as in 127.0.0.1:8080 or [::1]:8080, or unix:/PATH") from None


def read_class_path(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text):
        raise ValueError("give a class with its module, as in package.module.Class")
    return text


def read_tokens(text: str) -> tuple[str, ...]:
    parts = comma_separated(text)
    if not parts or not all(re.fullmatch(r"[!-~]+", part) for part in parts):
        raise ValueError("give tokens of printable ASCII without blanks, separated by commas")
    return parts


def read_proxies(text: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    parts = comma_separated(text)
    for part in parts:
        if part == UNIX_PEER:
            continue
        try:
            ipaddress.ip_network(part)
        except ValueError as error:
            raise ValueError(
                f"{error}; give addresses, networks as in 10.0.0.0/8, and {UNIX_PEER} for a Unix socket's peer, "
                "separated by commas, or none"
            ) from None
    return parts


def read_kv_url(text: str) -> str:
    return checked_url(text, ("etcd", "etcds"), "etcd://HOST:2379, etcds://… or sqlite:///PATH")


def read_queue_url(text: str) -> str:
    return checked_url(text, ("nsq", "nsqlookup"), "nsq://HOST:4150, nsqlookup://HOST:4161 or sqlite:///PATH")


def checked_url(text: str, clusters: tuple[str, ...], forms: str) -> str:
    scheme = split_url(text).scheme
    if scheme == "sqlite":
        local_path(text)
    elif scheme in clusters:
        parse_servers(text)
    else:
        raise ValueError(f"give {forms}")
    return text


def one_of(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"give one of {', '.join(known)}")
        return text

    return read


def read_writer(text: str) -> str:
    if text in ("inline", "file", "email", "http"):
        return text
    try:
        return f"class:{read_class_path(text.removeprefix('class:'))}"
    except ValueError:
        raise ValueError("give inline, file, email, http, or a class as in package.module.Class") from None


def read_absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("give an absolute path")
    return text


def read_mail_server(text: str) -> str:
    address(text, 587)
    return text


def read_public_url(text: str) -> str:
    parts = split_url(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("give the URL that the platform has for others, as in https://jobx.example.com")
    return text.rstrip("/")


def read_fs_url(text: str) -> str:
    parts = split_url(text)
    if parts.scheme == "file":
        local_path(text)
    elif parts.scheme in ("", "sqlite", *DEFAULT_PORTS):
        raise ValueError("give file:///PATH, s3://BUCKET/PREFIX or another filesystem's URL")
    elif parts.scheme == "memory":
        raise ValueError("each process of a platform would see a filesystem of its own: give file:///PATH")
    elif not parts.netloc:
        raise ValueError(f"name a bucket or a host after {parts.scheme}://")
    return text


# --- the value -----------------------------------------------------------------------------------------------------


def one_per_cpu() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def by(read: Callable[[str], object], secret: bool = False) -> dict[str, Any]:
    """A field's metadata: what reads its variable, and whether nobody else may see its value."""
    return {"read": read, "secret": secret}


@dataclass(frozen=True, kw_only=True, repr=False)
class Config:
    """Everything that can be set. Durations are seconds, sizes bytes. Made by :meth:`read`."""

    # where things are
    kv_url: str = field(metadata=by(read_kv_url))
    queue_url: str = field(metadata=by(read_queue_url))
    fs_url: str = field(metadata=by(read_fs_url))
    data_dir: Path = field(metadata=by(Path))

    # what this process serves
    workflow_names: tuple[str, ...] = field(default=(), metadata=by(names(WORKFLOW_NAME, "workflow's name")))
    """Empty: every workflow in the store, also those that come later."""
    system_capabilities: tuple[str, ...] = field(default=("general",), metadata=by(names(CAPABILITY, "capability")))
    channel: str = field(default="general_worker", metadata=by(read_channel))
    bind: Bind = field(default=Bind("127.0.0.1", 8080), metadata=by(read_bind))
    web_processes: int = field(default=1, metadata=by(whole_number(1, 256)))
    runners: int = field(default_factory=one_per_cpu, metadata=by(whole_number(1, 1024)))
    consume: bool = field(default=True, metadata=by(read_yes_or_no))
    """Whether a classic start command starts a worker beside the front end."""

    # the life of a request
    retention_s: int = field(default=3600, metadata=by(whole_number(-1, 10 * 366 * 86400)))
    """How long an ended request is kept; 0: until delivered (and at least a minute), -1: for ever."""
    lease_s: float = field(default=10.0, metadata=by(seconds(0.5, 3600)))
    """How long a worker that went silent is believed to be alive."""
    max_lost: int = field(default=20, metadata=by(whole_number(0, 1_000_000)))
    max_body_bytes: int = field(default=1024 * 1024, metadata=by(whole_number(1, 2**40)))
    max_open_requests: int = field(default=10_000, metadata=by(whole_number(0)))
    """How many requests of a workflow may be open before posts are turned away; 0: any number. Workflows may have
    a number of their own, as for the next."""
    max_invocations: int = field(default=1_000_000, metadata=by(whole_number(0)))
    """How many invocations of a workflow may be in flight before posts are turned away; 0: any number."""
    max_depth: int = field(default=64, metadata=by(whole_number(1, 10_000)))
    max_wait_s: float = field(default=300.0, metadata=by(seconds(0, 86400)))
    input_allow: tuple[str, ...] = field(default=(), metadata=by(comma_separated))
    """URL prefixes that a request's bulk input may begin with."""

    # who may ask
    allow_anonymous: bool = field(default=False, metadata=by(read_yes_or_no))
    api_tokens: tuple[str, ...] = field(default=(), metadata=by(read_tokens, secret=True))
    trusted_proxies: tuple[str, ...] = field(default=(UNIX_PEER,), metadata=by(read_proxies))
    """Whose word is taken for who the client is: addresses, networks, and ``unix``."""

    # what a handler may use
    sandbox: Sandbox = field(default="process", metadata=by(read_sandbox))
    runner_memory_bytes: int = field(default=1024**3, metadata=by(whole_number(64 * 1024**2)))
    runner_wall_s: float = field(default=3600.0, metadata=by(seconds(0.1, 30 * 86400)))
    """The longest that an attempt may take where its step says nothing."""
    runner_output_bytes: int = field(default=65_536, metadata=by(whole_number(0, 65_536)))
    """How much of what an attempt prints is kept, in its record."""
    runner_processes: int = field(default=64, metadata=by(whole_number(1, 1_000_000)))
    runner_open_files: int = field(default=1024, metadata=by(whole_number(32, 1_000_000)))
    workflow_scope_factory_fq_class: str = field(default="", metadata=by(read_class_path))

    # how results are delivered, by the classic names
    result_writer_fq_class: str = field(default="inline", metadata=by(read_writer))
    """What delivers results where nobody says otherwise: inline, file, email, http, or a class of your own."""
    result_file_writer_output_path: str = field(default="", metadata=by(read_absolute_path))
    result_file_writer_write_as_directory: bool = field(default=False, metadata=by(read_yes_or_no))
    result_file_writer_format: str = field(default="text", metadata=by(one_of("text", "jsonl", "csv")))
    result_email_writer_to_list: tuple[str, ...] = field(default=(), metadata=by(comma_separated))
    result_http_writer_server_url: str = field(default="", metadata=by(str))

    # how mail is sent, and who may be told what
    email_smtp_hostname: str = field(default="", metadata=by(read_mail_server))
    """``HOST[:PORT]``; empty: this platform sends no mail."""
    email_smtp_security: str = field(default="starttls", metadata=by(one_of("starttls", "tls", "none")))
    email_smtp_user: str = field(default="", metadata=by(str))
    email_smtp_password: str = field(default="", metadata=by(str, secret=True))
    email_smtp_ca: str = field(default="", metadata=by(read_absolute_path))
    """The authorities that the mail server's certificate is checked against; empty: the system's."""
    email_smtp_from_email: str = field(default="", metadata=by(str))
    email_allow: tuple[str, ...] = field(default=(), metadata=by(comma_separated))
    """Who may be sent mail: addresses, and ``@domain``; empty: everybody."""
    email_templates: str = field(default="", metadata=by(read_absolute_path))
    """A directory whose templates replace those of the same name."""
    outgoing_allow: tuple[str, ...] = field(default=(), metadata=by(comma_separated))
    """Hosts, ``host:port`` and networks that may be called although they are private, or without TLS."""
    delivery_s: float = field(default=86400.0, metadata=by(seconds(0, 30 * 86400)))
    """How long it is tried to deliver a result or a notification."""
    public_url: str = field(default="", metadata=by(read_public_url))
    """What links to requests begin with, in mails and notifications."""

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Which variable each field that is not a default came from."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Config:
        """The configuration that these variables ask for.

        :raises InvalidConfig: a variable has a value that JobX cannot run with, or two contradict each other.
        """
        given = {name: text.strip() for name, text in environ.items() if name.startswith("MR_") and text.strip()}
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for item in settings():
            name = variable(item.name)
            if name in given:
                values[item.name] = read_one(name, given[name], item.metadata["read"])
                sources[item.name] = name
        for spelling in (classic_kv, classic_queue, classic_fs, classic_retention):
            spelling(given, values, sources)
        data_dir = values["data_dir"] = read_data_dir(environ, values.get("data_dir"))
        values.setdefault("kv_url", f"sqlite://{quote(str(data_dir / 'kv.sqlite'))}")
        values.setdefault("queue_url", f"sqlite://{quote(str(data_dir / 'queue.sqlite'))}")
        values.setdefault("fs_url", f"file://{quote(str(data_dir / 'files'))}")
        config = cls(**values, sources=sources)
        config.check_drivers()
        return config

    def check_drivers(self) -> None:
        """Store and queue are both embedded or both of the cluster, and each has its own file.

        :raises InvalidConfig: they are not.
        """
        kv_source = self.sources.get("kv_url", "MR_KV_URL")
        queue_source = self.sources.get("queue_url", "MR_QUEUE_URL")
        stored, queued = embedded(self.kv_url), embedded(self.queue_url)
        if stored and not queued:
            raise InvalidConfig(
                f"{queue_source} names a cluster's queue, {masked_url(self.queue_url)}, but the store is the embedded "
                f"{self.kv_url}. Name a cluster's store as well, as in MR_KV_URL=etcd://127.0.0.1:2379, or leave it "
                "out.",
                queue_source,
            )
        if queued and not stored:
            raise InvalidConfig(
                f"{kv_source} names a cluster's store, {masked_url(self.kv_url)}, but the queue is the embedded "
                f"{self.queue_url}. Name a cluster's queue as well, as in MR_QUEUE_URL=nsq://127.0.0.1:4150, or leave "
                "it out.",
                kv_source,
            )
        if stored and self.kv_path == self.queue_path:
            raise InvalidConfig(
                f"MR_KV_URL and MR_QUEUE_URL both name {self.kv_path}. Give each a file of its own.", "MR_QUEUE_URL"
            )

    def check_exposure(self, has_stored_tokens: Callable[[], bool] = lambda: False) -> None:
        """What a front end asks before it listens. ``has_stored_tokens`` is asked only where it matters.

        :raises InvalidConfig: others than this machine could reach it, and there is nothing to let them in by.
        """
        if not (self.bind.is_local or self.api_tokens or self.allow_anonymous or has_stored_tokens()):
            raise InvalidConfig(
                f"MR_BIND is '{self.bind}', which other machines can reach, and there are no API tokens. Make one with "
                "`jobx token create`, set MR_API_TOKENS, bind to 127.0.0.1, or set MR_ALLOW_ANONYMOUS=1 to let in "
                "everyone.",
                "MR_BIND",
            )

    @property
    def is_embedded(self) -> bool:
        return embedded(self.kv_url)

    @property
    def kv_path(self) -> Path:
        """:raises InvalidConfig: the store is not embedded."""
        return read_one("MR_KV_URL", self.kv_url, local_path)

    @property
    def queue_path(self) -> Path:
        """:raises InvalidConfig: the queue is not embedded."""
        return read_one("MR_QUEUE_URL", self.queue_url, local_path)

    @property
    def fs_path(self) -> Path:
        """:raises InvalidConfig: the shared filesystem is not a local directory."""
        if not self.fs_url.startswith("file:"):
            raise InvalidConfig(
                f"MR_FS_URL is {masked_url(self.fs_url)!r}, and there is no driver for it yet: give file:///PATH.",
                "MR_FS_URL",
            )
        return read_one("MR_FS_URL", self.fs_url, local_path)

    def describe(self) -> list[Setting]:
        """Every setting in order, with secrets masked: what ``jobx config`` prints."""
        described = []
        for item in settings():
            name = variable(item.name)
            source = self.sources.get(item.name)
            origin = "default" if source is None else "environment" if source == name else f"environment ({source})"
            described.append(Setting(name, shown(item, getattr(self, item.name)), origin))
        return described

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{name}={value!r}' for name, value, _ in self.describe())})"


def settings() -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(Config) if "read" in item.metadata]


def variable(field_name: str) -> str:
    return f"MR_{field_name.upper()}"


def embedded(url: str) -> bool:
    return url.startswith("sqlite:")


def shown(item: dataclasses.Field[Any], value: Any) -> str:
    if item.metadata["secret"]:
        return MASK if value else ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, tuple) and not isinstance(value, Bind):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}"
    return masked_url(str(value))


def read_one(name: str, text: str, read: Callable[[str], T]) -> T:
    try:
        return read(text)
    except ValueError as error:
        value = MASK if name == "MR_API_TOKENS" else masked_url(text)
        raise InvalidConfig(f"{name} is {value!r}: {error}.", name) from error


def read_data_dir(environ: Mapping[str, str], given: Path | None) -> Path:
    """An absolute path: that of the variable, or a directory in the user's state directory."""
    home = environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    if given is not None:
        if given.parts[:1] == ("~",):
            given = Path(home, *given.parts[1:])
        return given.absolute()
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification has relative paths ignored.
    return Path(state if state.startswith("/") else f"{home}/.local/state", "jobx").absolute()


# --- the short and classic spellings ---------------------------------------------------------------------------------

CLASSIC = (
    "MR_ETCD_HOST",
    "MR_ETCD_PORT",
    "MR_ETCD_IS_SSL",
    "MR_NSQD_HOSTS",
    "MR_DO_CLEANUP_REQUESTS",
    "MR_FS_TAHOE_DIR_URI",
    "MR_FS_TAHOE_WEBAPI_URL_PREFIX",
)


def refuse_both(given: Mapping[str, str], classic: str, modern: str) -> None:
    if modern in given:
        raise InvalidConfig(f"{classic} is set, and so is {modern}. They say the same thing: unset one.", classic)


def needs(given: Mapping[str, str], name: str, other: str) -> None:
    if name in given and other not in given:
        raise InvalidConfig(f"{name} is {given[name]!r}, but {other} is not set. Set it, or unset {name}.", name)


def classic_kv(given: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    needs(given, "MR_ETCD_PORT", "MR_ETCD_HOST")
    needs(given, "MR_ETCD_IS_SSL", "MR_ETCD_HOST")
    if "MR_ETCD_HOST" not in given:
        return
    refuse_both(given, "MR_ETCD_HOST", "MR_KV_URL")
    port = read_one("MR_ETCD_PORT", given.get("MR_ETCD_PORT", "2379"), whole_number(1, 65535))
    scheme = "etcds" if read_one("MR_ETCD_IS_SSL", given.get("MR_ETCD_IS_SSL", "0"), read_yes_or_no) else "etcd"
    bare = given["MR_ETCD_HOST"]
    host = f"[{bare}]" if bare.count(":") > 1 and not bare.startswith("[") else bare

    def read(text: str) -> str:
        if re.search(r":[0-9]+$", host) and not host.startswith("["):
            raise ValueError("give the host alone, and its port as MR_ETCD_PORT")
        address(host, port)
        return read_kv_url(f"{scheme}://{host}:{port}")

    values["kv_url"] = read_one("MR_ETCD_HOST", bare, read)
    sources["kv_url"] = "MR_ETCD_HOST"


def classic_queue(given: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    if "MR_NSQD_HOSTS" in given:
        refuse_both(given, "MR_NSQD_HOSTS", "MR_QUEUE_URL")
        hosts = given["MR_NSQD_HOSTS"]
        values["queue_url"] = read_one("MR_NSQD_HOSTS", hosts, lambda text: nsqd_url(comma_separated(text)))
        sources["queue_url"] = "MR_NSQD_HOSTS"
    elif "MR_ETCD_HOST" in given and "MR_QUEUE_URL" not in given:
        values["queue_url"] = "nsq://127.0.0.1:4150"
        sources["queue_url"] = "MR_ETCD_HOST"


def nsqd_url(hosts: tuple[str, ...]) -> str:
    pairs = [Bind(*address(host, DEFAULT_PORTS["nsq"])) for host in hosts]
    return read_queue_url(f"nsq://{','.join(map(str, pairs))}")


def classic_fs(given: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    needs(given, "MR_FS_TAHOE_WEBAPI_URL_PREFIX", "MR_FS_TAHOE_DIR_URI")
    if "MR_FS_TAHOE_DIR_URI" not in given:
        return
    refuse_both(given, "MR_FS_TAHOE_DIR_URI", "MR_FS_URL")

    def read(text: str) -> str:
        parts = split_url(text)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("give the URL of a node's web interface, as in http://127.0.0.1:3456")
        tls = "?tls=1" if parts.scheme == "https" else ""
        return f"tahoe://{parts.netloc}/{quote(given['MR_FS_TAHOE_DIR_URI'], safe='')}{tls}"

    prefix = given.get("MR_FS_TAHOE_WEBAPI_URL_PREFIX", "http://127.0.0.1:3456")
    values["fs_url"] = read_one("MR_FS_TAHOE_WEBAPI_URL_PREFIX", prefix, read)
    sources["fs_url"] = "MR_FS_TAHOE_DIR_URI"


def classic_retention(given: Mapping[str, str], values: dict[str, Any], sources: dict[str, str]) -> None:
    if "MR_DO_CLEANUP_REQUESTS" not in given:
        return
    text = given["MR_DO_CLEANUP_REQUESTS"]
    if read_one("MR_DO_CLEANUP_REQUESTS", text, read_yes_or_no):
        return
    if values.get("retention_s", -1) != -1:
        raise InvalidConfig(
            f"MR_DO_CLEANUP_REQUESTS is {text!r}, which keeps requests for ever, but MR_RETENTION_S is "
            f"{given['MR_RETENTION_S']!r}. Unset one of them.",
            "MR_DO_CLEANUP_REQUESTS",
        )
    values["retention_s"] = -1
    sources["retention_s"] = "MR_DO_CLEANUP_REQUESTS"


def warnings(environ: Mapping[str, str]) -> list[str]:
    """A text for each ``MR_…`` variable that JobX does not know, with the nearest that it does."""
    known = [variable(item.name) for item in settings()] + list(CLASSIC)
    texts = []
    for name in sorted(name for name in environ if name.startswith("MR_") and name not in known):
        bare = [other.removeprefix("MR_") for other in known]
        nearest = difflib.get_close_matches(name.removeprefix("MR_").upper(), bare, n=1)
        hint = f"Did you mean MR_{nearest[0]}?" if nearest else "`jobx config` lists those that there are."
        texts.append(f"{name} is not a setting of JobX and was ignored. {hint}")
    return texts
