"""The composition root: the one place that names concrete drivers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from mr.config import Config
from mr.engine.ops import Env, Settings
from mr.engine.shell import Platform, Shell
from mr.fs.base import Files
from mr.fs.local import LocalFiles
from mr.kv.base import Store
from mr.kv.sqlite import SqliteStore
from mr.model import ids
from mr.queue.base import Queue
from mr.queue.sqlite import SqliteQueue


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
    files = open_files(config)
    return Platform(open_store(config), open_queue(config), files)


def make_env(config: Config, worker: str = "", lease: Callable[[], int] = lambda: 0) -> Env:
    """What flows run in; ``lease`` gives the worker's current one."""
    return Env(
        Settings.of(config),
        time.time,
        ids.new_nonce,
        random.random,
        worker,
        lease,
        frozenset(config.system_capabilities),
    )


def make_shell(platform: Platform) -> Shell:
    return Shell(platform)
