"""A worker whose every call to store, queue and files is held against what belongs to its workflow.

Run as a program it is that worker: its settings name one workflow, and the first breach ends it with exit code 3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mr.app import open_platform
from mr.config import Config
from mr.engine.shell import Platform
from mr.fs.base import Files
from mr.kv.base import Store, Txn
from mr.model import keys
from mr.queue.base import Consumer, Message, Queue


class Guard:
    def __init__(self, workflow: str) -> None:
        self.workflow = workflow
        self._rights = {space.key: space.right for space in keys.of_workflow(workflow)}
        self.used: set[str] = set()

    def key(self, name: str, right: str) -> None:
        """A key by itself is one of the workflow's, and the worker may do that with it."""
        for space, given in self._rights.items():
            if name == space or (space.endswith("/") and name.startswith(space)):
                self.used.add(space)
                if right not in given:
                    self.breach(f"{right}s {name}")
                return
        self.breach(f"{right}s {name}, which belongs to somebody else")

    def prefix(self, name: str, right: str) -> None:
        """Everything under a prefix is the workflow's: ``current/a`` is not, since ``current/ab`` begins with it."""
        for space, given in self._rights.items():
            if space.endswith("/") and name.startswith(space) and right in given:
                self.used.add(space)
                return
        self.breach(f"{right}s everything under {name}")

    def topic(self, name: str) -> None:
        if name.split(".")[1] != self.workflow:
            self.breach(f"uses the topic {name}")

    def file(self, name: str) -> None:
        if not name.startswith(f"{self.workflow}/"):
            self.breach(f"uses the file {name}")

    def breach(self, what: str) -> None:
        print(f"BREACH: the worker of {self.workflow} {what}", file=sys.stderr, flush=True)
        os._exit(3)


class GuardedStore:
    """Everything else is the store's own."""

    def __init__(self, store: Store, guard: Guard) -> None:
        self._store, self._guard = store, guard

    def __getattr__(self, name: str) -> Any:
        if name in ("local", "max_operations", "max_value_bytes", "grant", "keep_alive", "revoke", "revision", "close"):
            return getattr(self._store, name)
        raise AttributeError(name)

    def get(self, names: Sequence[str]) -> Any:
        for name in names:
            self._guard.key(name, "read")
        return self._store.get(names)

    def list(self, prefix: str, **options: Any) -> Any:
        self._guard.prefix(prefix, "read")
        return self._store.list(prefix, **options)

    def count(self, prefix: str) -> int:
        self._guard.prefix(prefix, "read")
        return self._store.count(prefix)

    def commit(self, txns: Sequence[Txn]) -> Any:
        for txn in txns:
            for compare in txn.compares:
                self._guard.key(compare.key, "read")
            for name in (*(put.key for put in txn.puts), *txn.deletes):
                self._guard.key(name, "write")
        return self._store.commit(txns)

    def delete_prefix(self, prefix: str) -> int:
        self._guard.prefix(prefix, "write")
        return self._store.delete_prefix(prefix)

    def watch(self, prefixes: Sequence[str], after: int) -> Any:
        for prefix in prefixes:
            self._guard.prefix(prefix, "read")
        return self._store.watch(prefixes, after)


class GuardedConsumer:
    def __init__(self, consumer: Consumer, guard: Guard) -> None:
        self._consumer, self._guard = consumer, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def subscribe(self, topics: Iterable[str]) -> None:
        wanted = list(topics)
        for topic in wanted:
            self._guard.topic(topic)
        self._consumer.subscribe(wanted)


class GuardedQueue:
    def __init__(self, queue: Queue, guard: Guard) -> None:
        self._queue, self._guard = queue, guard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def publish(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._guard.topic(message.topic)
        self._queue.publish(messages)

    def consumer(self, channel: str, **options: Any) -> Any:
        return GuardedConsumer(self._queue.consumer(channel, **options), self._guard)


class GuardedFiles:
    def __init__(self, files: Files, guard: Guard) -> None:
        self._files, self._guard = files, guard

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._files, name)
        if name == "identity":
            return method

        def guarded(file: str) -> Any:
            self._guard.file(file)
            return method(file)

        return guarded


def main() -> int:
    import asyncio
    import logging

    from mr.worker.worker import Worker

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    config = Config.read(os.environ)
    [workflow] = config.workflow_names
    guard = Guard(workflow)
    opened = open_platform(config)
    store: Any = GuardedStore(opened.store, guard)
    queue: Any = GuardedQueue(opened.queue, guard)
    files: Any = GuardedFiles(opened.files, guard)
    asyncio.run(Worker(config, Platform(store, queue, files)).run())
    opened.close()
    print(f"USED: {' '.join(sorted(guard.used))}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
