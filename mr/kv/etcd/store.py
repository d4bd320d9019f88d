"""The store on etcd."""

from __future__ import annotations

import builtins
import math
import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from mr.errors import InvalidConfig, InvalidTransaction, StoreUnavailable
from mr.findings import Finding
from mr.kv.base import Entry, Outcome, Store, Txn, Verdict, Watch
from mr.kv.etcd import examination
from mr.kv.etcd.cluster import Cluster, Refusal
from mr.kv.etcd.failures import Lost, Why
from mr.kv.etcd.groups import check_sizes, plan
from mr.kv.etcd.tls import Tls
from mr.kv.etcd.watch import EtcdWatch
from mr.kv.etcd.wire import (
    DELETE_RANGE,
    DESCEND,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    RANGE,
    TARGETS,
    TXN,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    RangeRequest,
    TxnRequest,
    range_of,
)
from mr.kv.limits import check_transactions
from mr.urls import masked_url, parse_servers

_FIRST_PAGE = 128
_PAGE_BYTES = 8 << 20
"""What an answer to a listing should not exceed by much. The first page, of entries of unknown size, may."""

_KEYS_A_PAGE = 5000
_DELETED_A_PAGE = 1000

_MAX_TTL_S = 9_000_000_000


class EtcdStore(Store):
    """A store on one or several etcd servers, of version 3.4 or newer.

    :param url: as in ``etcd://a:2379,b:2379`` or ``etcds://user:password@a:2379?ca=…&cert=…&key=…``. Nothing is
        connected to before it is needed.
    :raises InvalidConfig: the URL is wrong, or names certificates that cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            servers = parse_servers(url)
            if servers.scheme not in ("etcd", "etcds"):
                raise ValueError("its scheme is neither etcd nor etcds")
        except ValueError as error:
            raise InvalidConfig(f"The store cannot be at {masked_url(url)}: {error}.", "MR_KV_URL") from error
        tls = None
        if servers.scheme == "etcds":
            tls = Tls(*(servers.options.get(name, "") for name in Tls._fields))
            tls.check()
        self._cluster = Cluster(servers, tls)
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()

    # --- reading ---------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        wanted = dict.fromkeys(key for key in keys if key and key.isascii())
        if not wanted:
            self._cluster.check_open()
        found: dict[str, Entry] = {}
        for part in _slices(wanted, self.max_operations):
            request = TxnRequest()
            for key in part:
                request.success.add().request_range.key = key.encode()
            answer = self._cluster.call(TXN, request, _some(part))
            found.update((entry.key, entry) for op in answer.responses for entry in map(_entry, op.response_range.kvs))
        return [found.get(key) for key in keys]

    def list(
        self, prefix: str, *, after: str = "", limit: int = 1000, keys_only: bool = False, reverse: bool = False
    ) -> list[Entry]:
        low, high = range_of(prefix)
        # The order of UTF-8 is that of code points.
        bound = after.encode(errors="surrogatepass")
        if after and reverse:
            high = min(high, bound)
        elif after:
            low = max(low, bound + b"\0")
        if limit <= 0 or low >= high or not prefix.isascii():
            self._cluster.check_open()
            return []
        request = RangeRequest(key=low, range_end=high, keys_only=keys_only, sort_order=DESCEND if reverse else 0)
        while True:
            try:
                return self._pages(request, prefix, limit)
            except Refusal as error:
                # Compacted away between two pages: they are read again, all at a newer revision.
                if error.why is not Why.COMPACTED:
                    raise
                request.revision = 0
                request.key, request.range_end = low, high

    def _pages(self, request: Any, prefix: str, limit: int) -> builtins.list[Entry]:
        """Up to ``limit`` entries of the range, all at the revision of the first page."""
        entries: list[Entry] = []
        page, size = _KEYS_A_PAGE if request.keys_only else _FIRST_PAGE, 0
        while True:
            request.limit = min(limit - len(entries), page)
            answer = self._cluster.call(RANGE, request, f"keys that begin with {prefix!r}")
            entries += map(_entry, answer.kvs)
            if not answer.more or len(entries) >= limit:
                return entries
            request.revision = answer.header.revision
            if request.sort_order == DESCEND:
                request.range_end = answer.kvs[-1].key
            else:
                request.key = answer.kvs[-1].key + b"\0"
            if not request.keys_only:
                size += answer.ByteSize()
                page = max(1, _PAGE_BYTES * len(entries) // size)

    def count(self, prefix: str) -> int:
        if not prefix.isascii():
            self._cluster.check_open()
            return 0
        low, high = range_of(prefix)
        request = RangeRequest(key=low, range_end=high, count_only=True)
        return int(self._cluster.call(RANGE, request, f"keys that begin with {prefix!r}").count)

    def revision(self) -> int:
        return int(self._cluster.call(TXN, _enclosed([TxnRequest()])).header.revision)

    # --- writing ---------------------------------------------------------------------------------------------

    def commit(self, txns: Sequence[Txn]) -> builtins.list[Outcome]:
        check_transactions(txns, self.max_operations, self.max_value_bytes)
        check_sizes(txns)
        self._cluster.check_open()
        outcomes: dict[int, Outcome] = {}
        groups = [{place: txns[place] for place in places} for places in plan(txns)]
        try:
            self._carry_out_each(groups, outcomes)
        except Lost:
            # Those that were not tried after it are unknown as well: their callers repeat them.
            pass
        except (StoreUnavailable, InvalidTransaction):
            if not outcomes:
                raise
        return [outcomes.get(place, Outcome(Verdict.UNKNOWN)) for place in range(len(txns))]

    def _carry_out_each(self, groups: Iterable[dict[int, Txn]], outcomes: dict[int, Outcome]) -> None:
        """As :meth:`_carry_out`. Groups that come after one that was refused are tried all the same."""
        refusal: Refusal | InvalidTransaction | None = None
        for group in groups:
            try:
                self._carry_out(group, outcomes)
            except (Refusal, InvalidTransaction) as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def _carry_out(self, group: dict[int, Txn], outcomes: dict[int, Outcome]) -> None:
        """Does what fits into one request, and notes how each of them ended.

        :raises Lost: that is not known of those without an outcome.
        :raises StoreUnavailable, InvalidTransaction: they were not carried out.
        """
        requests = [_request_of(txn) for txn in group.values()]
        is_alone = len(group) == 1 and len(requests[0].success) > 0
        try:
            answer = self._cluster.call(
                TXN, requests[0] if is_alone else _enclosed(requests), _some(_keys_of(group)), is_repeatable=False
            )
        except Refusal as error:
            self._carry_out_apart(group, error, outcomes)
            return
        revision = answer.header.revision
        answers = [answer] if is_alone else [op.response_txn for op in answer.responses]
        for (place, txn), request, part in zip(group.items(), requests, answers, strict=True):
            if part.succeeded:
                outcomes[place] = Outcome(Verdict.COMMITTED, revision, _versions(txn, request, part))
            else:
                outcomes[place] = Outcome(Verdict.REFUSED)

    def _carry_out_apart(self, group: dict[int, Txn], error: Refusal, outcomes: dict[int, Outcome]) -> None:
        """What a server refused for the sake of one: finds that one and does the others."""
        leases = defaultdict[frozenset[int], dict[int, Txn]](dict)
        for place, txn in group.items():
            leases[frozenset(put.lease for put in txn.puts if put.lease)][place] = txn
        parts: Iterable[dict[int, Txn]] = ({place: txn} for place, txn in group.items())
        if error.why is Why.LEASE_GONE:
            if len(group) == 1 or (len(leases) == 1 and all(len(named) == 1 for named in leases)):
                # The one lease that all of them name.
                outcomes.update((place, Outcome(Verdict.REFUSED)) for place in group)
                return
            if len(leases) > 1:
                parts = leases.values()
        elif error.why is Why.TOO_LARGE and len(group) == 1:
            raise InvalidTransaction(
                f"A transaction that puts {_some(_keys_of(group))} is larger than this etcd takes. Raise its "
                "--max-request-bytes to the default, 1.5 MiB."
            ) from error
        elif error.why not in (Why.DENIED, Why.TOO_LARGE) or len(group) == 1:
            raise error
        self._carry_out_each(parts, outcomes)

    def delete_prefix(self, prefix: str) -> int:
        if not prefix.isascii():
            self._cluster.check_open()
            return 0
        deleted = 0
        while True:
            # A huge range at once would hold up everybody else, and be told to watches in one piece.
            page = self.list(prefix, limit=_DELETED_A_PAGE, keys_only=True)
            if not page:
                return deleted
            low, high = range_of(prefix)
            if len(page) == _DELETED_A_PAGE:
                high = page[-1].key.encode() + b"\0"
            request = DeleteRangeRequest(key=low, range_end=high)
            answer = self._cluster.call(DELETE_RANGE, request, f"keys that begin with {prefix!r}")
            # Asked twice, for want of an answer, it has less to delete than were there.
            deleted += max(len(page), int(answer.deleted))
            if len(page) < _DELETED_A_PAGE:
                return deleted

    # --- leases ----------------------------------------------------------------------------------------------

    def grant(self, ttl: float) -> int:
        """As the interface has it; a lease lives whole seconds, so ``ttl`` is rounded up."""
        if not (ttl > 0 and math.isfinite(ttl)):
            raise ValueError(f"A lease lives a number of seconds above 0, not {ttl}.")
        request = LeaseGrantRequest(TTL=min(math.ceil(ttl), _MAX_TTL_S))
        # One whose answer is lost is nobody's, and expires.
        return int(self._cluster.call(LEASE_GRANT, request).ID)

    def keep_alive(self, lease: int) -> bool:
        return bool(self._cluster.call(LEASE_KEEP_ALIVE, LeaseKeepAliveRequest(ID=lease)).TTL > 0)

    def revoke(self, lease: int) -> None:
        try:
            self._cluster.call(LEASE_REVOKE, LeaseRevokeRequest(ID=lease), f"the keys of lease {lease:x}")
        except Refusal as error:
            if error.why is not Why.LEASE_GONE:
                raise

    # --- all else --------------------------------------------------------------------------------------------

    def watch(self, prefixes: Sequence[str], after: int) -> Watch:
        watch = EtcdWatch(self._cluster, [prefix for prefix in prefixes if prefix.isascii()], after)
        self._watches.add(watch)
        return watch

    def examine(self) -> builtins.list[Finding]:
        return examination.examine(self._cluster)

    def close(self) -> None:
        for watch in list(self._watches):
            watch.close()
        self._cluster.close()


def _entry(kv: Any) -> Entry:
    key = kv.key.decode(errors="surrogateescape")
    return Entry(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _request_of(txn: Txn) -> Any:
    request = TxnRequest()
    for attribute, key, value, _ in txn.compares:
        compare = request.compare.add(key=key.encode())
        compare.target, field = TARGETS[attribute]
        setattr(compare, field, value)
    known = _versions_by_compares(txn)
    for put in txn.puts:
        op = request.success.add().request_put
        op.key, op.value, op.lease = put.key.encode(), put.value, put.lease
        op.prev_kv = put.key not in known
    for key in txn.deletes:
        request.success.add().request_delete_range.key = key.encode()
    return request


def _enclosed(requests: Iterable[Any]) -> Any:
    """Several in one. As members of another one they are always agreed upon by the servers: one without any puts and
    deletes, by itself, would be answered by what one server happens to know.
    """
    request = TxnRequest()
    for one in requests:
        request.success.add().request_txn.CopyFrom(one)
    return request


def _versions_by_compares(txn: Txn) -> dict[str, int]:
    """The new version of those puts of which the compares say what it will be."""
    known = {}
    for attribute, key, value, _ in txn.compares:
        if attribute == "version" or value == 0:
            known[key] = value + 1
    return known


def _versions(txn: Txn, request: Any, answer: Any) -> tuple[int, ...]:
    known = _versions_by_compares(txn)
    return tuple(
        known[put.key] if put.key in known else op.response_put.prev_kv.version + 1
        for put, op in zip(txn.puts, answer.responses, strict=False)
    )


def _keys_of(group: dict[int, Txn]) -> Iterable[str]:
    for txn in group.values():
        yield from (put.key for put in txn.puts)
        yield from txn.deletes
        yield from (compare.key for compare in txn.compares)


def _some(keys: Iterable[str]) -> str:
    """A few of the keys, for a message."""
    named = list(islice(keys, 4))
    return ", ".join(map(repr, named[:3])) + (" and others" if len(named) > 3 else "")


def _slices(keys: Iterable[str], length: int) -> Iterable[builtins.list[str]]:
    rest = iter(keys)
    while part := list(islice(rest, length)):
        yield part
