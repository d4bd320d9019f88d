"""What etcd can say about its health: by gRPC, and by HTTP on the same port, where it tells more, and to everybody."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from mr.errors import StoreUnavailable
from mr.findings import Finding, counted, judge_clock, size, skew
from mr.kv.etcd.cluster import Cluster
from mr.kv.etcd.endpoint import Endpoint, Metadata
from mr.kv.etcd.failures import Failure, Refused
from mr.kv.etcd.wire import ALARMS, MEMBER_LIST, STATUS, MemberListRequest, StatusRequest

_NEARLY_FULL = 0.8
_FULL = 0.95
_FRAGMENTED_BYTES = 256 << 20
_UNCOMPACTED = 50_000
_LONG = 5_000_000
"""Revisions that are kept: never compacted, and in any case, before it is worth a word."""

_OLD = (3, 5)
_ROLES_HOLD = ((3, 5, 30), (3, 6, 11))
"""The first of each line of releases that checks roles inside nested transactions, which is how JobX writes:
CVE-2026-33343 and CVE-2026-44283."""

_METRIC = re.compile(rb"^(etcd_[a-z_]+) (\S+)$", re.MULTILINE)
_QUOTA = "etcd_server_quota_backend_bytes"
_DATABASE = "etcd_mvcc_db_total_size_in_bytes"
_IN_USE = "etcd_mvcc_db_total_size_in_use_in_bytes"
_LEADS = "etcd_server_is_leader"
_IS_LED = "etcd_server_has_leader"
_COMPACTED = "etcd_debugging_mvcc_compact_revision"
_CURRENT = "etcd_debugging_mvcc_current_revision"


class _Server(NamedTuple):
    """One that answered. Its database is measured in bytes; of what nobody told, numbers are 0."""

    address: str
    version: str
    leads: bool
    is_led: bool
    database: float
    in_use: float
    quota: float
    alarms: str
    current: float
    """The newest revision, and the newest that was compacted away: -1 where none ever was."""
    compacted: float
    ahead: tuple[float, float] | None


def examine(cluster: Cluster) -> list[Finding]:
    """The findings, those of each server first."""
    try:
        connected, metadata = cluster.connect()
    except StoreUnavailable as error:
        return [Finding("problem", "store", str(error), "Start it, see to the way there, or correct MR_KV_URL.")]
    found: list[Finding] = []
    servers: list[_Server] = []
    silent: list[Finding] = []
    for endpoint in cluster.endpoints():
        try:
            server = _look_at(endpoint, metadata)
        except Failure as error:
            silent.append(_silent(endpoint, error))
            continue
        if server is None:
            text = f"etcd at {endpoint.address} answers; how it is it tells administrators only."
            found.append(Finding("ok", "store", text))
            continue
        servers.append(server)
        found += _of_server(server, has_user=bool(metadata))
    if not found:
        return [one._replace(level="problem") for one in silent]
    found += silent
    found += _members(connected, metadata, len(cluster.endpoints()))
    found += _alarms(servers)
    found += _history(servers)
    found += [judge_clock(f"etcd at {one.address}", one.ahead) for one in servers if one.ahead is not None]
    return found


def _silent(endpoint: Endpoint, error: Failure) -> Finding:
    text = f"etcd at {endpoint.address} does not answer: {error}."
    advice = "Start it; if more fail, so that no majority is left, the store stops. Or take it out of MR_KV_URL."
    return Finding("warning", "store", text, advice)


def _look_at(endpoint: Endpoint, metadata: Metadata) -> _Server | None:
    """None: it tells this user nothing.

    :raises Failure: it does not answer.
    """
    told = _by_http(endpoint)
    try:
        status = endpoint.call(STATUS, StatusRequest(), metadata)
    except Refused:
        # Only administrators may ask, where there are users.
        return told
    leads = status.leader == status.header.member_id
    known = told or _Server(endpoint.address, "", leads, True, 0, 0, 0, "", 0, 0, None)
    return known._replace(
        version=status.version,
        leads=leads,
        is_led=status.leader != 0,
        database=status.dbSize,
        in_use=status.dbSizeInUse,
        quota=status.dbSizeQuota or known.quota,
        alarms=" ".join((*status.errors, known.alarms)),
    )


def _by_http(endpoint: Endpoint) -> _Server | None:
    """What it tells everybody; None where it does not, as when it speaks HTTP elsewhere."""
    try:
        version, metrics = endpoint.ask("/version"), endpoint.ask("/metrics")
        health = endpoint.ask("/health")
        name = str(json.loads(version.body)["etcdserver"])
        told = {name.decode(): float(value) for name, value in _METRIC.findall(metrics.body)}
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
    return _Server(
        endpoint.address,
        name,
        bool(told.get(_LEADS)),
        bool(told.get(_IS_LED, 1)),
        told.get(_DATABASE, 0),
        told.get(_IN_USE, 0),
        told.get(_QUOTA, 0),
        health.body.decode("utf-8", "replace"),
        told.get(_CURRENT, 0),
        told.get(_COMPACTED, 0),
        skew(version.date, version.asked, version.answered),
    )


def _of_server(server: _Server, has_user: bool) -> list[Finding]:
    name = f"etcd {server.version} at {server.address}"
    room = f" of a quota of {size(server.quota)}" if server.quota else ", of a quota that it does not tell"
    text = (
        f"{name} is {'the leader' if server.leads else 'a follower'}; its database has {size(server.database)}{room}."
    )
    found = [Finding("ok", "store", text)]
    if not server.is_led:
        advice = "See that a majority of its members runs and that they reach each other."
        found = [Finding("problem", "store", f"{name} has no leader: the store takes nothing.", advice)]
    return [*found, *_version(server, name, has_user), *_room(server, name)]


def _version(server: _Server, name: str, has_user: bool) -> list[Finding]:
    version = tuple(int(part) for part in re.findall(r"\d+", server.version)[:3])
    advice = "Upgrade to 3.6.11, or at least to 3.5.30."
    if version < _OLD:
        text = f"{name} is out of support, and roles do not hold in it (CVE-2026-33343)."
        return [Finding("warning", "store", text, advice)]
    holds = version >= next((first for first in _ROLES_HOLD if first[:2] == version[:2]), (3, 6))
    if not holds and has_user:
        text = f"Roles do not hold in {name}: nested transactions pass them by (CVE-2026-33343, CVE-2026-44283)."
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
    told = " ".join(server.alarms for server in servers)
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
    current = max((server.current for server in servers), default=0)
    compacted = max((server.compacted for server in servers), default=0)
    if not current:
        return []
    kept = int(current - max(0, compacted))
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
