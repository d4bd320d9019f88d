"""The protocol with one rule taken away: what the simulation must catch, and what it shows to be redundant.

A mutant is a set of mutations for the world, and for some a change of the production code while it lives. ``seed`` is
one from which on a violation was seen soon.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec

from mr.engine import redrive
from mr.engine.cleanup import cleanup
from mr.engine.handle import _Sight
from mr.engine.join import read_join
from mr.engine.ops import Change, Get, Write
from mr.model import keys
from mr.model.entities import Request
from mr.model.records import Mark

_read_sight = _Sight.read
_of_request = keys.of_request
_begin, _to_open, _to_waiting = redrive.begin, redrive.to_open, redrive.to_waiting


def _nothing(*args: Any, **kwargs: Any) -> Generator[Any, Any, int]:
    return 0
    yield


def _failures_first(env: Any, scene: Any, parent_id: str, epoch: int) -> Any:
    """Failures of an earlier moment than the counts."""
    earlier = yield from read_join(env, scene, parent_id, epoch)
    later = yield from read_join(env, scene, parent_id, epoch)
    return later._replace(failed=earlier.failed, failures=earlier.failures)


def _no_resume(env: Any, workflow: str, request_id: str) -> Any:
    [request] = yield Get(((keys.request(workflow, request_id), Request),))
    if request.record is not None and request.record.state == "expiring":
        return False
    return (yield from cleanup(env, workflow, request_id))


def _request_first(workflow: str, request_id: str) -> list[str]:
    return [keys.request(workflow, request_id), *_of_request(workflow, request_id)]


def _any_child(sight: Any) -> Any:
    """Looks at an invocation without asking whether its parent's seal names it."""
    counts = yield from _read_sight(sight)
    if counts or sight.live.record is None or sight.request.record is None:
        return counts
    return sight.seal is not None and sight.seal.record is not None


def _needs_all(record: Any, epoch: int, need: int) -> Any:
    return _to_waiting(record, epoch, record.mapped_count)


def _same_epoch(record: Any, epoch: int, need: int) -> Any:
    return _to_waiting(record, record.epoch, need)


def _open_in_same_epoch(sealed: Any, epoch: int, *args: Any) -> Any:
    return _to_open(sealed, sealed.epoch, *args)


def _still_closed(sealed: Any, *args: Any) -> Any:
    return msgspec.structs.replace(_to_open(sealed, *args), open=sealed.open)


def _ready_as_it_was(record: Any) -> Any:
    return msgspec.structs.replace(record, state="ready")


def _no_suspects(*args: Any) -> Any:
    return set()
    yield


def _live_at_once(request: Any, *args: Any) -> Change:
    """The request runs while it is still put back."""
    change = _begin(request, *args)
    live = Write(keys.live(request.record.workflow_name, request.record.request_id), Mark())
    return change._replace(writes=(*change.writes, live))


def _whole_shard(sealed: Any, shard: int) -> int:
    return len(range(shard, sealed.children, sealed.shards))


class Mutant(NamedTuple):
    name: str
    mutations: tuple[str, ...] = ()
    patches: tuple[tuple[str, Any], ...] = ()
    seed: int = 0

    @contextmanager
    def alive(self) -> Iterator[frozenset[str]]:
        with ExitStack() as stack:
            for target, replacement in self.patches:
                stack.enter_context(patch(target, replacement))
            yield frozenset(self.mutations)


def _both(transition: str, rule: str) -> tuple[str, ...]:
    """The rule in a transition and in the variant that ends the request, or carries on with the reduce."""
    return (f"{transition}:{rule}", f"{transition}-request:{rule}", f"{transition}-claim:{rule}")


_REMEMBERS: tuple[tuple[str, Any], ...] = (
    ("mr.engine.sweep._run_of", lambda parent, epoch: parent),
    ("mr.engine.sweep.Memory.begins", lambda *args: None),
)

CAUGHT = [
    Mutant("every fence without own", ("*:own",)),
    Mutant("everything without live", ("*:live",)),
    Mutant("claim without own and invocation", ("claim:own", "claim:invocation")),
    Mutant("claim without invocation", ("claim:invocation",)),
    Mutant("claim without live", ("claim:live",)),
    Mutant("claim gives up when unknown", ("claim-gives-up",)),
    Mutant("claim is not read back", ("claim-not-read-back",)),
    Mutant("stage without live", ("stage:live",)),
    Mutant("seal without own", ("seal:own",)),
    Mutant("seal without live", _both("seal", "live")),
    Mutant("collect without own", _both("collect", "own")),
    Mutant("collect without live", _both("collect", "live")),
    Mutant("part without own", ("part:own",)),
    Mutant("part without live", ("part:live",)),
    Mutant("complete without invocation", ("complete:invocation",)),
    Mutant("complete without live", ("complete:live",)),
    Mutant("complete without seal", ("complete:seal",)),
    Mutant("release without invocation", ("release:invocation",), seed=3500),
    Mutant("release without live", ("release:live",)),
    Mutant("hand back without own", ("hand-back:own",), seed=4000),
    Mutant("hand back without live", ("hand-back:live",)),
    Mutant("retry without own", ("retry:own",), seed=1800),
    Mutant("retry without live", ("retry:live",)),
    Mutant("fail without own", _both("fail", "own"), seed=490),
    Mutant("fail without live", _both("fail", "live")),
    Mutant("fail without seal", _both("fail", "seal"), seed=870),
    Mutant("fail of a reduce without invocation", _both("fail", "invocation")),
    Mutant("exceed without invocation", _both("exceed", "invocation")),
    Mutant("exceed without live", _both("exceed", "live"), seed=3480),
    Mutant("exceed leaves the seal open", ("exceed-keeps-open",)),
    Mutant("failures never exceed", (), (("mr.engine.join._exceed", _nothing),)),
    Mutant("failures read before counts", (), (("mr.engine.join.read_join", _failures_first),)),
    Mutant("cancel without live", ("cancel:live",)),
    Mutant("submit without idempotency", ("submit:idempotency",)),
    Mutant("submit without request", ("submit:request",)),
    Mutant(
        "children sent before the seal, and any child may run",
        ("children-before-seal", "claim:gate"),
        (("mr.engine.handle._Sight.read", _any_child),),
    ),
    Mutant("group commit drops a second put of a key", ("group-dedupes",)),
    Mutant("group commit never splits", ("group-never-splits",), seed=3300),
    Mutant("no sweep", ("no-sweep",)),
    Mutant("sweep sends nothing again", (), (("mr.engine.sweep.Sweep._resend", lambda *args: None),)),
    Mutant("sweep never releases", (), (("mr.engine.sweep.release", _nothing),)),
    Mutant("sweep never completes", (), (("mr.engine.sweep.completion", _nothing),)),
    Mutant("cleanup without request", ("cleanup-begin:request",)),
    Mutant("cleanup before delivery", ("cleanup-before-delivery",)),
    Mutant("cleanup is not resumed", (), (("mr.engine.sweep.cleanup", _no_resume),)),
    Mutant("cleanup removes the request first", (), (("mr.model.keys.of_request", _request_first),)),
    Mutant("redrive begins without request", ("redrive-begin:request",)),
    Mutant("redrive puts back without request", ("redrive-page:request",)),
    Mutant("redrive ends without request", ("redrive-end:request",)),
    Mutant("redrive begins with a live key", (), (("mr.engine.redrive.begin", _live_at_once),)),
    Mutant("redrive is not resumed", (), (("mr.engine.sweep.resume", _nothing),), seed=440),
    Mutant("redrive needs all children", (), (("mr.engine.redrive.to_waiting", _needs_all),)),
    Mutant(
        "redrive counts in the same epoch",
        (),
        (("mr.engine.redrive.to_waiting", _same_epoch), ("mr.engine.redrive.to_open", _open_in_same_epoch)),
    ),
    Mutant("redrive leaves seals closed", (), (("mr.engine.redrive.to_open", _still_closed),)),
    Mutant("redrive leaves reduces as they were", (), (("mr.engine.redrive._Walk._reduces", _nothing),)),
    Mutant("redrive counts earlier attempts", (), (("mr.engine.redrive.to_ready", _ready_as_it_was),)),
    Mutant("redrive leaves owners, and nothing is abandoned", ("redrive-page!own/", "no-abandon")),
    Mutant("redrive does not look below what is done", (), (("mr.engine.redrive._suspects", _no_suspects),)),
    Mutant("redrive leaves failures", ("redrive-page!done/",)),
    Mutant("redrive leaves the result", ("redrive-begin!result/",)),
    Mutant("redrive leaves what delivers the result", ("redrive-begin!delivery/",)),
    Mutant("redrive leaves the expiry", ("redrive-begin!expire/",)),
    Mutant("redrive is found again when it has ended", ("redrive-end!redrive/",)),
    Mutant("cancel of a redrive without request", ("cancel-redriving:request",), seed=1590),
    Mutant("sweep remembers what ended before a redrive", (), _REMEMBERS, seed=6970),
]

REDUNDANT = {
    "claim without own": Mutant("", ("claim:own",)),
    "claim without its gate": Mutant("", ("claim:gate",)),
    "stage without own": Mutant("", ("stage:own",)),
    "complete without own": Mutant("", ("complete:own",)),
    "exceed without seal": Mutant("", _both("exceed", "seal")),
    "abandon without own": Mutant("", ("abandon:own",)),
    "no abandon": Mutant("", ("no-abandon",)),
    "cleanup without live": Mutant("", ("cleanup-begin:live",)),
    "deliver without delivery": Mutant("", ("deliver:delivery",)),
    "redrive begins without live": Mutant("", ("redrive-begin:live",)),
    "redrive leaves owners": Mutant("", ("redrive-page!own/",)),
    "redrive forgets how many a shard needs": Mutant("", (), (("mr.model.records.Seal.needed", _whole_shard),)),
    "redrive sends no next child": Mutant("", (), (("mr.engine.join._wake_next_again", _nothing),)),
    "sweep knows no epochs": Mutant("", (), _REMEMBERS[:1]),
    "sweep paces as before a redrive": Mutant("", (), _REMEMBERS[1:]),
    "carry on without own": Mutant("", ("collect-claim:reduce-own", "seal-claim:reduce-own")),
    "carry on without invocation": Mutant("", ("collect-claim:reduce-invocation", "seal-claim:reduce-invocation")),
    "no next child": Mutant("", (), (("mr.engine.join.wake_children", _nothing),)),
}
