"""The composition root: the one place that names concrete drivers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mr.config import Config
from mr.engine.ops import Env
from mr.engine.shell import Platform, Shell
from mr.errors import InvalidConfig
from mr.fs.base import Files
from mr.fs.local import LocalFiles
from mr.kv.base import Store
from mr.kv.sqlite import SqliteStore
from mr.queue.base import Queue
from mr.queue.sqlite import SqliteQueue
from mr.urls import masked_url
from mr.worker.worker import Worker


def open_store(config: Config) -> Store:
    """
    :raises InvalidConfig: there is no driver for that URL.
    :raises StoreUnavailable: it cannot be opened.
    """
    return SqliteStore(config.kv_path)


def open_queue(config: Config) -> Queue:
    """
    :raises InvalidConfig: there is no driver for that URL.
    :raises QueueUnavailable: it cannot be opened.
    """
    return SqliteQueue(config.queue_path)


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
    if not config.is_embedded:
        name = config.sources.get("kv_url", "MR_KV_URL")
        raise InvalidConfig(
            f"{name} names a cluster's store, {masked_url(config.kv_url)}, and clusters are not supported yet. "
            "Leave the settings of store and queue out to run on SQLite files of this machine.",
            name,
        )
    files = open_files(config)
    return Platform(open_store(config), open_queue(config), files)


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
