"""Requests that are over: kept, removed when they are due or on demand, and nothing of them left anywhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from leftovers import everything, leftovers
from worker_harness import Bench, bench, until

from mr.engine.cleanup import cleanup, remove
from mr.engine.keep import keep
from mr.engine.submit import Key, new_request, submit
from mr.errors import RequestExpired, RequestRuns, RequestUndelivered
from mr.kv.base import Put, Txn
from mr.model import catalog, ids, keys
from mr.model.entities import Request, encode
from mr.model.records import Idempotency, Keep

FILES = {
    "plain.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield from arguments\n",
    "fan.py": "def mapper(arguments):\n"
    "    yield MrConfigureToMap('noted')\n"
    "    for name, count in arguments:\n"
    "        for number in range(count):\n            yield number, number\n",
    "noted.py": "def mapper(arguments):\n"
    "    S_SET('seen', [key for key, value in arguments])\n"
    "    yield MrConfigureToReturn()\n"
    "    yield from arguments\n",
    "large.py": "def mapper(arguments):\n"
    "    with FS.scratch.open('notes/one.txt', 'w') as file:\n        file.write('x')\n"
    "    yield MrConfigureToReturn()\n"
    "    yield 'text', 'x' * 100_000\n",
    "bad.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    1 / 0\n",
    "slow.py": "import time\n\ndef mapper(arguments):\n    time.sleep(60)\n    yield MrConfigureToReturn()\n",
    "first.py": "def reducer(results):\n    for key, values in results:\n        yield key, values[0]\n",
    "jobs.yaml": """
steps:
  plain: {map: plain, reduce: first}
  fan: {map: fan, reduce: first, max_failed_children: 1}
  noted: {map: noted, reduce: first}
  large: {map: large, reduce: first}
  bad: {map: bad, reduce: first}
  slow: {map: slow, reduce: first}
jobs:
  plain: {step: plain}
  fan: {step: fan}
  large: {step: large}
  bad: {step: bad}
  slow: {step: slow}
""",
}


class Told(NamedTuple):
    """A listener on loopback, and the IDs of the requests that it was told of."""

    url: str
    requests: list[str]


@pytest.fixture(scope="module")
def listener() -> Iterator[Told]:
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["data"]["request_id"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Told(f"http://127.0.0.1:{server.server_port}/", told)
        server.shutdown()


@pytest.fixture(scope="module")
def platform(module_backing: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One on which nobody works."""
    with bench(tmp_path_factory.mktemp("idle"), **module_backing) as made:
        made.apply(FILES)
        yield made


def begin(platform: Bench, job: str, retention_s: int = 3600, key: Key | None = None, **more: Any) -> str:
    snapshot = catalog.read(platform.store, "w")
    given = {name: more.pop(name) for name in ("name", "writer", "notify") if name in more}
    request = new_request("w", job, snapshot.version, time.time(), retention_s, False, **given)
    pairs = json.dumps(list(more.items())).encode()
    flow = submit(platform.env, request, snapshot.manifest, pairs, len(more), key)
    return platform.shell.run(flow).request_id


def ended(platform: Bench, retention_s: int = 3600) -> Request:
    return platform.cancel(begin(platform, "plain", retention_s, a=1))


def kept(platform: Bench, request_id: str, retention_s: int, name: str | None = None) -> Request:
    return platform.shell.run(keep(platform.env, "w", request_id, Keep(retention_s=retention_s, name=name)))


def expiries(platform: Bench, request_id: str) -> list[int]:
    """When the request is due, by the keys that say so."""
    found = platform.store.list(keys.expiries("w"))
    return [keys.due_of(entry.key) for entry in found if entry.key.endswith(request_id)]


def removed(platform: Bench, request_id: str) -> bool:
    return platform.shell.run(cleanup(platform.env, "w", request_id))


def is_gone(platform: Bench, request_id: str) -> bool:
    found = leftovers(platform.store, platform.config, [request_id])
    return not found.keys and not found.files


# --- keeping -----------------------------------------------------------------------------------------------------


def test_an_ended_request_is_kept_from_now_on(platform: Bench) -> None:
    request = ended(platform)
    before = time.time()
    stored = kept(platform, request.request_id, 7200, "good")
    assert stored == platform.request(request.request_id)
    assert (stored.name, stored.retention_s, stored.is_kept) == ("good", 7200, True)
    assert stored.expires_timestamp is not None
    assert before + 7200 <= stored.expires_timestamp <= time.time() + 7200
    [due] = expiries(platform, request.request_id)
    assert 0 <= due - stored.expires_timestamp < 1


def test_one_that_is_kept_for_ever_is_due_never_and_may_be_again(platform: Bench) -> None:
    request_id = ended(platform, 0).request_id
    stored = kept(platform, request_id, -1)
    assert (stored.expires_timestamp, expiries(platform, request_id)) == (None, [])
    assert not removed(platform, request_id)
    kept(platform, request_id, 60)
    assert len(expiries(platform, request_id)) == 1


def test_keeping_twice_in_a_second_leaves_one_key(platform: Bench) -> None:
    request_id = ended(platform).request_id
    for _ in range(3):
        kept(platform, request_id, 60)
    assert len(expiries(platform, request_id)) == 1


def test_the_wish_for_a_running_request_counts_from_its_end(platform: Bench) -> None:
    request_id = begin(platform, "plain", 0, a=1)
    before = platform.store.get([keys.request("w", request_id)])
    shown = kept(platform, request_id, 100, "later")
    assert (shown.name, shown.retention_s, shown.state) == ("later", 100, "running")
    # Whoever ends it does so from an earlier read: its record must stay as it is.
    assert platform.store.get([keys.request("w", request_id)]) == before
    assert kept(platform, request_id, 200).name == "later"
    request = platform.cancel(request_id)
    assert (request.retention_s, request.name) == (0, "")
    assert not removed(platform, request_id)
    stored = platform.request(request_id)
    assert stored.ended_timestamp is not None
    assert (stored.name, stored.expires_timestamp) == ("later", stored.ended_timestamp + 200)
    assert platform.store.get([keys.kept("w", request_id)]) == [None]
    assert not removed(platform, request_id)


def test_what_is_being_removed_cannot_be_kept(platform: Bench) -> None:
    request = ended(platform)
    key = keys.request("w", request.request_id)
    expiring = encode(request).replace(b'"state":"cancelled"', b'"state":"expiring"')
    platform.store.commit([Txn(puts=(Put(key, expiring),))])
    with pytest.raises(RequestExpired):
        kept(platform, request.request_id, -1)
    assert removed(platform, request.request_id)
    assert is_gone(platform, request.request_id)


def test_keeping_and_removing_at_once_end_in_one_of_both(platform: Bench) -> None:
    """Both go by the request's record: whoever is late finds it changed."""
    request_id = ended(platform, 0).request_id
    removing = cleanup(platform.env, "w", request_id)
    keeping = keep(platform.env, "w", request_id, Keep(retention_s=-1))
    answers = [platform.platform.perform(flow.send(None)) for flow in (removing, keeping)]
    # Both have read; the one that keeps is first, and the other one goes on from what it read.
    op = keeping.send(answers[1])
    assert platform.shell.run(iter_one(op)).ok
    answer = answers[0]
    with pytest.raises(StopIteration) as stopped:
        while True:
            op = removing.send(answer)
            answer = platform.shell.run(iter_one(op))
    assert stopped.value.value is False
    assert platform.request(request_id).state == "cancelled"


def iter_one(op: Any) -> Any:
    return (yield op)


# --- removing on demand ------------------------------------------------------------------------------------------


def test_a_request_is_removed_on_demand_though_it_is_kept(platform: Bench) -> None:
    request_id = ended(platform).request_id
    kept(platform, request_id, -1)
    assert platform.shell.run(remove(platform.env, "w", request_id))
    assert is_gone(platform, request_id)
    assert not platform.shell.run(remove(platform.env, "w", request_id))


def test_a_running_request_is_not_removed(platform: Bench) -> None:
    request_id = begin(platform, "plain", a=1)
    with pytest.raises(RequestRuns, match="mr_kv_request_cancel w"):
        platform.shell.run(remove(platform.env, "w", request_id))
    assert platform.cancel(request_id).state == "cancelled"


def test_what_is_still_to_be_delivered_keeps_a_request(platform: Bench) -> None:
    request_id = begin(platform, "plain", 0, a=1, notify=["https://hooks.example.com/"])
    platform.cancel(request_id)
    assert not removed(platform, request_id)
    with pytest.raises(RequestUndelivered):
        platform.shell.run(remove(platform.env, "w", request_id))
    assert platform.shell.run(remove(platform.env, "w", request_id, is_forced=True))
    assert is_gone(platform, request_id)


def test_a_removal_that_was_cut_short_is_found_among_those_that_are_due(platform: Bench) -> None:
    request_id = ended(platform).request_id
    kept(platform, request_id, -1)
    flow = remove(platform.env, "w", request_id)
    answer: Any = None
    while (op := flow.send(answer)).__class__.__name__ != "Commit":
        answer = platform.shell.run(iter_one(op))
    platform.shell.run(iter_one(op))
    flow.close()
    assert platform.request(request_id).state == "expiring"
    [due] = expiries(platform, request_id)
    assert due <= time.time() + 1
    assert removed(platform, request_id)
    assert is_gone(platform, request_id)


# --- many --------------------------------------------------------------------------------------------------------


KINDS = ("plain", "fan", "large", "bad", "slow", "keyed", "kept", "told", "dead")


def start(platform: Bench, kind: str, number: int, told: Told) -> str:
    now = time.time()
    key = Key(f"{number:064x}", "b" * 64, now + 600) if kind == "keyed" else None
    notify = {"told": [told.url], "dead": ["http://192.0.2.1/"]}.get(kind, [])
    job = kind if kind in ("fan", "large", "bad", "slow") else "plain"
    request_id = begin(platform, job, 0, key, a=5, name=f"number {number}", notify=notify)
    if kind == "kept":
        kept(platform, request_id, 0, "for a moment")
    elif kind == "slow":
        platform.cancel(request_id)
    return request_id


def nothing_left(backing: dict[str, str], directory: Path, told: Told, number: int) -> None:
    with bench(directory, **backing) as platform:
        platform.apply(FILES)

        def allow(draft: catalog.Draft) -> None:
            draft.policies = draft.policies._replace(outgoing_allow=("127.0.0.1",))

        catalog.change(platform.store, "w", allow)
        before = {key for key, _ in everything(platform.store)}
        platform.worker()
        # This one stays, and nothing of it goes with the others.
        staying = begin(platform, "large", 3600, a=5)
        began = time.monotonic()
        made = {}
        for one, kind in zip(range(number), KINDS * number, strict=False):
            made[start(platform, kind, one, told)] = kind
        until(lambda: platform.store.count(keys.requests("w")) == 1, 30 + number / 5, platform.log)
        print(f"{number} requests are gone {time.monotonic() - began:.1f} s after the first was posted")
        found = leftovers(platform.store, platform.config, made)
        until(lambda: not leftovers(platform.store, platform.config, made), 30, lambda: f"{found}\n{platform.log()}")
        assert set(told.requests) & made.keys() == {one for one, kind in made.items() if kind == "told"}
        # Apart from those of the one that stays, only keys came that hold for longer, and what says who works.
        after = {key for key, _ in everything(platform.store) if staying not in key}
        come = {key for key in after - before if not key.startswith(("worker/", "sweeper/", "load/", "secret/"))}
        assert {key.partition("/")[0] for key in come} == {"idempotency"}
        assert len(come) == sum(kind == "keyed" for kind in made.values())
        assert platform.wait(staying).state == "done"
        assert leftovers(platform.store, platform.config, [staying]).files


def test_nothing_of_removed_requests_is_left(backing: dict[str, str], tmp_path: Path, listener: Told) -> None:
    nothing_left(backing, tmp_path, listener, 3 * len(KINDS))


@pytest.mark.slow
def test_nothing_of_a_thousand_removed_requests_is_left(
    backing: dict[str, str], tmp_path: Path, listener: Told
) -> None:
    nothing_left(backing, tmp_path, listener, 1000)


def test_keys_that_hold_no_longer_are_removed_a_page_a_round(platform: Bench) -> None:
    from mr.engine.sweep import Memory, Sweep

    def held(digest: int, expires: float) -> Put:
        record = Idempotency(request_id=ids.new_request_id("w"), body_digest="", expires_timestamp=expires)
        return Put(keys.idempotency("w", "plain", f"{digest:064x}"), encode(record))

    puts = [held(number, 1.0 if number % 2 else time.time() + 600) for number in range(150)]
    for first in (0, 100):
        platform.store.commit([Txn(puts=tuple(puts[first : first + 100]))])
    memory = Memory()
    left = []
    for _ in range(2):
        platform.shell.run(Sweep(platform.env, "w", memory, has_room=False).run())
        left.append(platform.store.count(keys.idempotencies("w")))
    assert left == [100, 75]
    platform.store.delete_prefix(keys.idempotencies("w"))
