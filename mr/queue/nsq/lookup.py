"""Which nsqd there are: those that the URL names, or those that nsqlookupd knows."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
from typing import NamedTuple

from mr.queue.nsq.settings import Address, Settings
from mr.queue.nsq.wire import TROUBLE, reason

LOOKUP_S = 2.0
"""How old an answer of nsqlookupd may be."""

_TIMEOUT_S = 1.5
# nsqd register anew up to 15 s after a nsqlookupd has restarted; until then it knows of none.
_KEEP_S = 60.0
# A nsqlookupd that did not answer is left alone for so long.
_AVOID_S = 5.0

log = logging.getLogger(__name__)


class Node(NamedTuple):
    """An nsqd. ``http_port`` is None where nobody said it."""

    address: Address
    http_port: int | None


class Lookup:
    """Asks nsqlookupd, at most one caller at a time and no more often than needed; the others get what is known."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._nodes: tuple[Node, ...] | None = None
        if not settings.is_lookup:
            self._nodes = tuple(Node(address, settings.http_port) for address in settings.addresses)
        self._seen: dict[Node, float] = {}
        self._asked = float("-inf")
        self._avoided: dict[Address, float] = {}
        self._problems: dict[Address, str] = {}

    def nodes(self) -> tuple[Node, ...]:
        """Every nsqd there is, as far as is known; none where no nsqlookupd ever answered. May wait for the network."""
        # The first ones have nothing to go on with, and wait for whoever asks.
        if not self._is_fresh() and self._lock.acquire(blocking=self._nodes is None):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return self._nodes or ()

    def problem(self) -> str:
        """Why :meth:`nodes` answers none."""
        if not self._problems:
            return f"No nsqd is registered at {self._names()}."
        told = ", ".join(f"nsqlookupd {address} {why}" for address, why in self._problems.items())
        return f"No nsqd can be found: {told}."

    def _names(self) -> str:
        return ", ".join(f"nsqlookupd {address}" for address in self._settings.addresses)

    def _is_fresh(self) -> bool:
        if not self._settings.is_lookup:
            return True
        return self._nodes is not None and time.monotonic() - self._asked <= LOOKUP_S

    def _refresh(self) -> None:
        if self._is_fresh():
            return
        now = time.monotonic()
        answered = False
        for address in self._settings.addresses:
            if self._avoided.get(address, 0.0) > now:
                continue
            try:
                self._seen |= dict.fromkeys(self._with_http_port(_ask(address)), now)
            except (*TROUBLE, ValueError, http.client.HTTPException) as error:
                self._avoid(address, error)
            else:
                answered = True
                if self._problems.pop(address, None):
                    log.info("nsqlookupd %s answers again", address)
        # Without an answer, what was known still is the best guess.
        if answered:
            self._seen = {node: seen for node, seen in self._seen.items() if now - seen < _KEEP_S}
            self._nodes = tuple({node.address: node for node in self._seen}.values())
        self._asked = now

    def _with_http_port(self, nodes: list[Node]) -> list[Node]:
        """The URL knows better, as where there is a proxy before nsqd's HTTP interface."""
        return [Node(node.address, self._settings.http_port or node.http_port) for node in nodes]

    def _avoid(self, address: Address, error: Exception) -> None:
        why = reason(error) if isinstance(error, TROUBLE) else "does not answer as nsqlookupd does"
        if self._problems.get(address) != why:
            log.warning("nsqlookupd %s %s; trying again", address, why)
        self._problems[address] = why
        # With nothing to go on with, avoiding it would only hide that it is back.
        if self._nodes is not None:
            self._avoided[address] = time.monotonic() + _AVOID_S


def _ask(address: Address) -> list[Node]:
    """
    :raises OSError, HTTPException, ValueError: it does not answer, or not with a list of nsqd.
    """
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/nodes", headers={"Accept": "application/vnd.nsq; version=1.0"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise ValueError(f"HTTP status {answer.status}")
        return [
            Node(Address(str(nsqd["broadcast_address"]), int(nsqd["tcp_port"])), int(nsqd["http_port"]))
            for nsqd in json.loads(body)["producers"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError("not a list of nsqd") from error
    finally:
        connection.close()
