"""The composition root: the one place that names concrete drivers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache, partial

from mr.config import Config
from mr.engine.ops import Env
from mr.engine.shell import Platform, Shell
from mr.errors import InvalidConfig, StoreUnavailable
from mr.fs.base import Files
from mr.fs.local import LocalFiles
from mr.kv.base import Store
from mr.kv.sqlite import SqliteStore
from mr.model import tokens
from mr.model.deliveries import Delivery
from mr.queue.base import Queue
from mr.queue.sqlite import SqliteQueue
from mr.urls import masked_url
from mr.worker.worker import Worker


@contextmanager
def _driver_for(config: Config, setting: str, package: str) -> Iterator[None]:
    """What only some users need is imported when it is asked for.

    :raises InvalidConfig: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in (package, "google"):
            raise
        name = config.sources.get(setting, f"MR_{setting.upper()}")
        raise InvalidConfig(
            f"{name} is {masked_url(getattr(config, setting))!r}, which takes a package that is not installed. "
            "Run: pip install 'jobx-mapreduce[cluster]'",
            name,
        ) from error


def open_store(config: Config) -> Store:
    """
    :raises InvalidConfig: there is no driver for that URL.
    :raises StoreUnavailable: it cannot be opened.
    """
    if config.is_embedded:
        return SqliteStore(config.kv_path)
    # Else it prints lines of its own beside what we tell.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with _driver_for(config, "kv_url", "grpc"):
        from mr.kv.etcd import EtcdStore
    return EtcdStore(config.kv_url)


def open_queue(config: Config) -> Queue:
    """
    :raises InvalidConfig: there is no driver for that URL.
    :raises QueueUnavailable: it cannot be opened.
    """
    if config.is_embedded:
        return SqliteQueue(config.queue_path)
    with _driver_for(config, "queue_url", "nsq"):
        from mr.queue.nsq import NsqQueue
    return NsqQueue(config.queue_url)


def open_files(config: Config) -> Files:
    """
    :raises InvalidConfig: there is no driver for that URL.
    """
    return LocalFiles(config.fs_path)


def open_platform(config: Config) -> Platform:
    """Store, queue and files as the configuration says.

    :raises InvalidConfig: a URL is of a technology that there is no driver for.
    :raises StoreUnavailable, QueueUnavailable: they cannot be opened.
    """
    files = open_files(config)
    store = open_store(config)
    try:
        platform = Platform(store, open_queue(config), files)
    except BaseException:
        store.close()
        raise
    platform.deliver = make_deliver(config, platform)
    return platform


def make_deliver(config: Config, platform: Platform) -> Callable[[Delivery], None]:
    """What delivers one delivery, or raises DeliveryFailed. Its parts are loaded when something is owed."""

    @lru_cache(maxsize=1)
    def parts() -> dict[str, Callable[[Delivery], None]]:
        from mr.notify.notifier import Notifier
        from mr.results.writing import ResultWriters
        from mr.trace.why import explain

        notify = Notifier(config, platform.store, partial(explain, read_dataset=platform.read_dataset)).notify
        return {
            "result": ResultWriters(config, platform.store, platform.files).write,
            "notification": notify,
            "message": notify,
            "handlers": notify,
        }

    def deliver(delivery: Delivery) -> None:
        parts()[delivery.kind](delivery)

    return deliver


def has_tokens(config: Config) -> bool:
    """Whether the store has API tokens; also true where it cannot say so now: nobody is let in until it can.

    :raises InvalidConfig: there is no driver for its URL.
    """
    if config.is_embedded and not config.kv_path.exists():
        return False
    try:
        with closing(open_store(config)) as store:
            return tokens.any_stored(store)
    except StoreUnavailable:
        return True


def make_env(config: Config) -> Env:
    """What the flows of a front end or a command run in."""
    return Env.of(config)


def make_shell(platform: Platform) -> Shell:
    return Shell(platform)


def run_worker(config: Config, on_ready: Callable[[], None] = lambda: None) -> int:
    """Works until it is told to stop by SIGTERM or SIGINT; the exit code. ``on_ready``: it takes messages now.

    :raises InvalidConfig, StoreUnavailable, QueueUnavailable: it cannot begin.
    """
    platform = open_platform(config)
    try:
        asyncio.run(Worker(config, platform).run(on_ready))
    finally:
        platform.close()
    return 0
