"""What there is of requests, by listing everything: the store, the queue and the files."""

from __future__ import annotations

import json
import os
import sqlite3
import urllib.request
from collections.abc import Collection
from contextlib import closing
from typing import NamedTuple

from mr.config import Config
from mr.kv.base import Store
from mr.urls import split_url

BY_DESIGN = ("idempotency/",)
"""What holds longer than the request that it names."""


class Leftovers(NamedTuple):
    keys: list[str]
    """That have a request's ID in them, or in their value."""
    messages: int
    """Of any request: waiting, in flight or put off."""
    files: list[str]
    """With a request's ID in their path; empty directories end with a slash."""

    def __bool__(self) -> bool:
        return any(self)


def leftovers(store: Store, config: Config, request_ids: Collection[str]) -> Leftovers:
    """Everything of these requests, and every message of the queue."""
    return Leftovers(_keys(store, set(request_ids)), _messages(config), _files(config, set(request_ids)))


def everything(store: Store) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    after = ""
    while page := store.list("", after=after, limit=1000):
        found += [(entry.key, entry.value) for entry in page]
        after = page[-1].key
    return found


def _keys(store: Store, wanted: set[str]) -> list[str]:
    def names(text: str) -> bool:
        words = "".join(char if char.isalnum() else " " for char in text).split()
        return not wanted.isdisjoint(words)

    return [
        key
        for key, value in everything(store)
        if not key.startswith(BY_DESIGN) and (names(key) or names(value.decode("utf-8", "replace")))
    ]


def _messages(config: Config) -> int:
    if config.is_embedded:
        with closing(sqlite3.connect(f"file:{config.queue_path}?mode=ro", uri=True)) as connection:
            [[number]] = connection.execute("SELECT count(*) FROM messages")
            return int(number)
    url = split_url(config.queue_url)
    host = url.netloc.partition(":")[0]
    port = url.query.partition("http=")[2]
    with urllib.request.urlopen(f"http://{host}:{port}/stats?format=json", timeout=10) as answer:
        topics = json.load(answer)["topics"]
    return sum(
        topic["depth"] + sum(one["depth"] + one["in_flight_count"] + one["deferred_count"] for one in topic["channels"])
        for topic in topics
    )


def _files(config: Config, wanted: set[str]) -> list[str]:
    found: list[str] = []
    for directory, below, files in os.walk(config.fs_path):
        if not wanted.isdisjoint(directory.split(os.sep)):
            found += [os.path.join(directory, name) for name in files] or ([] if below else [f"{directory}/"])
        else:
            found += [
                os.path.join(directory, name) for name in files if any(request_id in name for request_id in wanted)
            ]
    return found
