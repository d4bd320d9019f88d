"""What etcd can say about its health: by gRPC, and what only its metrics tell by HTTP, which is on the same port."""

from __future__ import annotations

import http.client
import re
from collections.abc import Sequence
from typing import NamedTuple

from mr.errors import StoreUnavailable
from mr.findings import Finding, counted, judge_clock, size, skew
from mr.kv.etcd.cluster import Cluster
from mr.kv.etcd.endpoint import Endpoint, Metadata
from mr.kv.etcd.failures import Failure
from mr.kv.etcd.wire import ALARMS, MEMBER_LIST, STATUS, MemberListRequest, StatusRequest

_NEARLY_FULL = 0.8
_FULL = 0.95
_FRAGMENTED_BYTES = 256 << 20
_UNCOMPACTED = 50_000
_LONG = 5_000_000
"""Revisions that are kept: never compacted, and in any case, before it is worth a word."""

_OLD = (3, 5)
_ROLES_HOLD = (3, 5, 28)
"""Older ones do not check roles inside nested transactions: CVE-2026-33343."""

_METRICS = re.compile(
    rb"^(etcd_server_quota_backend_bytes|etcd_debugging_mvcc_(?:compact|current)_revision) (\S+)$", re.MULTILINE
)
_QUOTA, _COMPACTED, _CURRENT = (
    "etcd_server_quota_backend_bytes",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_current_revision",
)


class _Server(NamedTuple):
    """One that answered. Numbers are 0 where nobody told them."""

    address: str
    member: int
    version: str
    leader: int
    database: int
    in_use: int
    quota: float
    errors: tuple[str, ...]
    metrics: dict[str, float]
    ahead: tuple[float, float] | None


def examine(cluster: Cluster) -> list[Finding]:
    """The findings, those of each server first."""
    try:
        connected, metadata = cluster.connect()
    except StoreUnavailable as error:
        return [Finding("problem", "store", str(error), "Start it, see to the way there, or correct MR_KV_URL.")]
    found: list[Finding] = []
    servers: list[_Server] = []
    for endpoint in cluster.endpoints():
        try:
            server = _look_at(endpoint, metadata)
        except Failure as error:
            text = f"etcd at {endpoint.address} does not answer: {error}."
            advice = (
                "Start it; if more fail, so that no majority is left, the store stops. Or take it out of MR_KV_URL."
            )
            found.append(Finding("warning", "store", text, advice))
            continue
        servers.append(server)
        found += _of_server(server, has_user=bool(metadata))
    found += _members(connected, metadata, len(cluster.endpoints()))
    found += _alarms(servers)
    found += _history(servers)
    found += [judge_clock(f"etcd at {one.address}", one.ahead) for one in servers if one.ahead is not None]
    return found


def _look_at(endpoint: Endpoint, metadata: Metadata) -> _Server:
    """:raises Failure: it does not answer."""
    status = endpoint.call(STATUS, StatusRequest(), metadata)
    metrics: dict[str, float] = {}
    ahead = None
    try:
        answer = endpoint.ask("/metrics")
    except (OSError, ValueError, http.client.HTTPException):
        # It may be told to speak HTTP elsewhere (--listen-client-http-urls), or be behind something that does not.
        pass
    else:
        ahead = skew(answer.date, answer.asked, answer.answered)
        if answer.status == 200:
            metrics = {name.decode(): float(value) for name, value in _METRICS.findall(answer.body)}
    return _Server(
        endpoint.address,
        status.header.member_id,
        status.version,
        status.leader,
        status.dbSize,
        status.dbSizeInUse,
        status.dbSizeQuota or metrics.get(_QUOTA, 0.0),
        tuple(status.errors),
        metrics,
        ahead,
    )


def _of_server(server: _Server, has_user: bool) -> list[Finding]:
    name = f"etcd {server.version} at {server.address}"
    room = f" of a quota of {size(server.quota)}" if server.quota else ", of a quota that it does not tell"
    role = "the leader" if server.leader == server.member else "a follower"
    text = f"{name} is {role}; its database has {size(server.database)}{room}."
    found = [Finding("ok", "store", text)]
    if not server.leader:
        advice = "See that a majority of its members runs and that they reach each other."
        found = [Finding("problem", "store", f"{name} has no leader: the store takes nothing.", advice)]
    return [*found, *_version(server, name, has_user), *_room(server, name)]


def _version(server: _Server, name: str, has_user: bool) -> list[Finding]:
    version = tuple(int(part) for part in re.findall(r"\d+", server.version)[:3])
    advice = "Upgrade to 3.6, or at least to 3.5.28."
    if version < _OLD:
        text = f"{name} is out of support, and roles do not hold in it (CVE-2026-33343)."
        return [Finding("warning", "store", text, advice)]
    if version < _ROLES_HOLD and has_user:
        text = f"Roles do not hold in {name}: nested transactions pass them by (CVE-2026-33343)."
        return [Finding("warning", "store", text, advice)]
    return []


def _room(server: _Server, name: str) -> list[Finding]:
    if server.quota and server.database > _NEARLY_FULL * server.quota:
        is_full = server.database > _FULL * server.quota
        text = (
            f"The database of {name} has {size(server.database)} of {size(server.quota)}; when full, it takes no more."
        )
        advice = (
            "Compact (etcdctl compact) and then defragment (etcdctl defrag, one member after another); have it "
            "compact by itself (--auto-compaction-retention); or raise --quota-backend-bytes, to 8 GiB at most."
        )
        return [Finding("problem" if is_full else "warning", "store", text, advice)]
    if server.database > _FRAGMENTED_BYTES and server.in_use < server.database / 2:
        text = f"Of the database of {name}, {size(server.database)}, only {size(server.in_use)} are in use."
        return [Finding("warning", "store", text, "Run: etcdctl defrag, one member after another.")]
    return []


def _members(endpoint: Endpoint, metadata: Metadata, named: int) -> list[Finding]:
    try:
        members = endpoint.call(MEMBER_LIST, MemberListRequest(), metadata).members
    except Failure:
        return []
    if len(members) > named:
        text = f"MR_KV_URL names {named} of the {len(members)} members of this etcd."
        advice = "Name them all, so that JobX goes on when one of them fails: etcd://a:2379,b:2379,c:2379."
        return [Finding("warning", "store", text, advice)]
    if len(members) == 2:
        text = "This etcd has two members: when either fails, it stops."
        return [Finding("warning", "store", text, "Run one, or three.")]
    return []


def _alarms(servers: Sequence[_Server]) -> list[Finding]:
    told = " ".join(error for server in servers for error in server.errors)
    found = []
    if ALARMS[1] in told:
        text = "etcd has raised the alarm NOSPACE: its database has reached its quota, and it takes no more writes."
        advice = (
            "Make room with etcdctl compact and etcdctl defrag, or raise --quota-backend-bytes; then run: "
            "etcdctl alarm disarm"
        )
        found.append(Finding("problem", "store", text, advice))
    if ALARMS[2] in told:
        text = "etcd has raised the alarm CORRUPT: its members do not hold the same data."
        advice = (
            "See etcdctl alarm list for the member, and replace it; restore from a backup where that does not help."
        )
        found.append(Finding("problem", "store", text, advice))
    return found


def _history(servers: Sequence[_Server]) -> list[Finding]:
    """Whether etcd forgets old values. It does not tell how it is told to, but how much it keeps."""
    current = max((server.metrics.get(_CURRENT, 0.0) for server in servers), default=0.0)
    # Minus one where nothing was ever compacted.
    compacted = max((server.metrics.get(_COMPACTED, 0.0) for server in servers), default=0.0)
    if not current:
        return []
    kept = int(current - max(0.0, compacted))
    advice = (
        "Start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=10m, or run etcdctl compact by "
        "the clock: every change of every key counts against the quota until then."
    )
    if compacted <= 0 and kept > _UNCOMPACTED:
        return [
            Finding(
                "warning", "store", f"etcd never forgot an old value: it keeps {counted(kept, 'revision')}.", advice
            )
        ]
    if kept > _LONG:
        return [Finding("warning", "store", f"etcd keeps {counted(kept, 'revision')}.", advice)]
    told = f"etcd keeps {counted(kept, 'revision')}{'' if compacted > 0 else ', all that there were'}."
    return [Finding("ok", "store", told)]
