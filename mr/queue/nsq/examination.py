"""What NSQ can say about its health, which it does over HTTP."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from mr.errors import QueueUnavailable
from mr.findings import Finding, counted, judge_clock, skew
from mr.local.asking import Answer, ask
from mr.queue.base import Backlog
from mr.queue.nsq.lookup import Lookup, Node
from mr.queue.nsq.settings import Settings
from mr.queue.nsq.wire import reason

USUAL_HTTP_PORT = 4151
"""Where an nsqd is asked whose port nobody told."""


class _Silent(Exception):
    """It does not answer; the text says why, in words that go after its name."""


class _Server(NamedTuple):
    node: Node
    version: str
    health: str
    topics: list[dict[str, Any]]
    in_memory: int | None
    """How many messages of a topic it keeps in memory; None: it does not tell."""
    ahead: tuple[float, float] | None


def examine(settings: Settings, lookup: Lookup) -> list[Finding]:
    found = list(_lookups(settings))
    nodes = lookup.nodes()
    if not nodes:
        return [*found, Finding("problem", "queue", lookup.problem(), "Start nsqd, with --lookupd-tcp-address.")]
    for node in nodes:
        try:
            server = _look_at(node)
        except _Silent as error:
            found.append(_silent(node, error))
            continue
        found += _of_server(server)
    return found


def backlogs(lookup: Lookup) -> list[Backlog] | None:
    """
    :raises QueueUnavailable: those that should know do not answer.
    """
    waiting: Counter[tuple[str, str]] = Counter()
    consumers: Counter[tuple[str, str]] = Counter()
    problems, is_known = [], False
    for node in lookup.nodes():
        try:
            topics = _topics(node)
        except _Silent as error:
            if node.http_port is not None:
                problems.append(f"nsqd {node.address} {error}")
            continue
        is_known = True
        for topic in topics:
            name = topic["topic_name"]
            # What waits for a first channel stands in the topic itself; otherwise that is empty but for a moment.
            waiting[name, ""] += topic["depth"]
            for channel in topic["channels"]:
                at = (name, channel["channel_name"])
                waiting[at] += channel["depth"] + channel["deferred_count"]
                consumers[at] += channel["client_count"]
    if not is_known and problems:
        raise QueueUnavailable(f"No nsqd tells what waits: {'; '.join(problems)}.")
    if not is_known:
        return None
    return [Backlog(topic, channel, number, consumers[topic, channel]) for (topic, channel), number in waiting.items()]


def _lookups(settings: Settings) -> Iterable[Finding]:
    if not settings.is_lookup:
        return
    for address in settings.addresses:
        try:
            info = _json(_ask(address.host, address.port, "/info"))
            yield Finding("ok", "queue", f"nsqlookupd {info['version']} at {address} answers.")
        except _Silent as error:
            advice = "Start it, or take it out of MR_QUEUE_URL; while another answers, nothing is missed."
            yield Finding("warning", "queue", f"nsqlookupd {address} {error}.", advice)


def _look_at(node: Node) -> _Server:
    info = _ask_node(node, "/info")
    stats = _topics(node)
    try:
        in_memory = int(_ask_node(node, "/config/mem_queue_size").body)
    except (_Silent, ValueError):
        in_memory = None
    return _Server(
        node,
        str(_json(info)["version"]),
        _ask_node(node, "/ping").body.decode("utf-8", "replace"),
        stats,
        in_memory,
        skew(info.date, info.asked, info.answered),
    )


def _topics(node: Node) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _json(_ask_node(node, "/stats?format=json&include_clients=false"))["topics"]
    return found


def _of_server(server: _Server) -> Iterable[Finding]:
    name = f"nsqd {server.version} at {server.node.address}"
    messages = sum(topic["depth"] + sum(each["depth"] for each in topic["channels"]) for topic in server.topics)
    held = f"{counted(messages, 'message')} in {counted(len(server.topics), 'topic')}"
    if server.health.strip() != "OK":
        advice = "See to its disk and its log: it cannot put messages aside, and loses them when it stops."
        yield Finding("problem", "queue", f"{name} is not well: {server.health.strip()}.", advice)
    elif server.in_memory:
        yield Finding(
            "ok",
            "queue",
            f"{name} holds {held}. It keeps up to {server.in_memory:,} of each topic in memory (--mem-queue-size): a "
            "kill loses those, and the sweep sends again for the work, within seconds to minutes.",
        )
    else:
        yield Finding("ok", "queue", f"{name} holds {held}.")
    if server.ahead is not None:
        yield judge_clock(f"nsqd at {server.node.address}", server.ahead)


def _silent(node: Node, error: _Silent) -> Finding:
    port = node.http_port or USUAL_HTTP_PORT
    if node.http_port is None:
        text = f"What nsqd {node.address} holds is not known: at port {port}, where HTTP usually is, it {error}."
        return Finding("warning", "queue", text, "Name that port in MR_QUEUE_URL, as in ?http=4151.")
    text = f"nsqd {node.address} {error}, at the port {port} of its HTTP interface."
    advice = "Start it, or correct the port in MR_QUEUE_URL; others take its place, and what it holds waits with it."
    return Finding("warning", "queue", text, advice)


def _ask_node(node: Node, path: str) -> Answer:
    return _ask(node.address.host, node.http_port or USUAL_HTTP_PORT, path)


def _ask(host: str, port: int, path: str) -> Answer:
    try:
        answer = ask(host, port, path)
    except (OSError, http.client.HTTPException) as error:
        raise _Silent(reason(error)) from error
    # A sick nsqd answers its ping with 500 and says why.
    if answer.status != 200 and path != "/ping":
        raise _Silent(f"answers {path} with status {answer.status}")
    return answer


def _json(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise _Silent("gives an answer that is none of NSQ's") from error
