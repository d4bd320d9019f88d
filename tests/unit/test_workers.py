"""Who says that they are there, what requests wait for, and that nobody looks at what is not theirs."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mr.cli import workflows
from mr.config import Config
from mr.engine.ops import Env
from mr.engine.shell import Body, Platform, Shell
from mr.engine.submit import new_request, submit
from mr.engine.sweep import Memory, Sweep
from mr.fs.local import LocalFiles
from mr.handlers.header import read_handler
from mr.kv.base import Event, Put, Store, Txn
from mr.kv.memory import MemoryStore
from mr.model import catalog, ids, keys, workers
from mr.model.catalog import Draft
from mr.model.entities import Invocation, Job, Record, Request, Step, decode, encode
from mr.model.records import Mark, Owner, Seal
from mr.model.workers import Registration
from mr.queue.memory import MemoryQueue
from mr.web import waiting
from mr.web.front import Front
from mr.worker.group import GroupCommit
from mr.worker.registry import Registry
from tests.unit.cli_runs import Commands

MAPPER = '"""\n**\nhandler_type: mapper\nrequired_capability: {}\n"""\nyield MrConfigureToReturn()\n'
REDUCER = '"""\n**\nhandler_type: reducer\nrequired_capability: {}\n"""\nyield from ()\n'


def registration(name: str = "one", **facts: Any) -> Registration:
    values: dict[str, Any] = {
        "worker_name": name,
        "host": "here",
        "pid": 1,
        "version": "1",
        "capabilities": ["general"],
        "runners": 2,
        "channel": "general_worker",
        "started_timestamp": time.time(),
        "registered_timestamp": time.time(),
    }
    return Registration(**{**values, **facts})


def register(store: Store, workflow: str, name: str, *capabilities: str, lease: int = 0) -> None:
    record = registration(name, capabilities=list(capabilities))
    store.commit([Txn(puts=(Put(keys.worker(workflow, name), encode(record), lease),))])


# --- registering ----------------------------------------------------------------------------------------------------


class Desk:
    """A worker as far as its registry is concerned, in one event loop."""

    def __init__(self, directory: Path) -> None:
        self.name = "w-1"
        self.store = MemoryStore()
        self.platform = Platform(self.store, MemoryQueue(), LocalFiles(directory))
        self.lease = self.store.grant(100)

    def run(self, act: Callable[[Registry], Any], *capabilities: str) -> None:
        config = Config.read({"MR_DATA_DIR": "/nowhere", "MR_SYSTEM_CAPABILITIES": ",".join(capabilities)})

        async def begin() -> None:
            self.commits = GroupCommit(self.store, asyncio.get_running_loop(), lambda: False)
            await act(Registry(self, config, lambda: self.lease))

        asyncio.run(asyncio.wait_for(begin(), 20))

    def seen(self) -> dict[str, tuple[str, ...]]:
        return {one.registration.worker_name: one.workflows for one in workers.everyone(self.store)}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def test_a_worker_says_for_each_workflow_what_it_can_do(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def act(registry: Registry) -> None:
        registry.over(["a", "ab"])
        await registry.settle()

    desk.run(act, "gpu", "general")
    [seen] = workers.everyone(desk.store)
    assert seen.workflows == ("a", "ab")
    assert (seen.registration.capabilities, seen.registration.worker_name) == (["general", "gpu"], "w-1")
    assert seen.registration.files == desk.platform.files.identity() != ""
    assert [one.worker_name for one in workers.of_workflow(desk.store, "a")] == ["w-1"]
    desk.store.revoke(desk.lease)
    assert desk.seen() == {}, "it goes with the lease"


def test_a_registration_follows_the_workflows_and_the_lease(tmp_path: Path) -> None:
    desk = Desk(tmp_path)

    async def act(registry: Registry) -> None:
        running = asyncio.create_task(registry.run())
        registry.over(["a", "b"])
        await until(lambda: desk.seen() == {"w-1": ("a", "b")})
        registry.over(["b", "c"])
        await until(lambda: desk.seen() == {"w-1": ("b", "c")})
        desk.store.revoke(desk.lease)
        assert desk.seen() == {}
        desk.lease = desk.store.grant(100)
        await until(lambda: desk.seen() == {"w-1": ("b", "c")})
        running.cancel()
        await registry.leave()
        assert desk.seen() == {}, "whoever stops is not there any more, though its lease is"
        assert desk.store.keep_alive(desk.lease)

    desk.run(act)


def test_many_workflows_are_registered_in_transactions_that_fit(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    names = [f"w{number:03}" for number in range(300)]

    async def act(registry: Registry) -> None:
        registry.over(names)
        await registry.settle()
        assert desk.seen() == {"w-1": tuple(names)}
        registry.over(names[:1])
        await registry.settle()
        assert desk.seen() == {"w-1": ("w000",)}

    desk.run(act)


def test_only_workers_of_those_workflows_are_asked_for() -> None:
    store = MemoryStore()
    for workflow, name in (("a", "one"), ("ab", "two"), ("b", "one")):
        register(store, workflow, name, "general")
    assert [(seen.registration.worker_name, seen.workflows) for seen in workers.everyone(store)] == [
        ("one", ("a", "b")),
        ("two", ("ab",)),
    ]
    assert [(seen.registration.worker_name, seen.workflows) for seen in workers.everyone(store, ["a"])] == [
        ("one", ("a",))
    ]


# --- whose is what --------------------------------------------------------------------------------------------------


def test_every_key_of_a_workflow_is_in_the_list_of_what_belongs_to_it() -> None:
    spaces = keys.of_workflow("wf")
    singles = {space.key for space in spaces if not space.key.endswith("/")}
    prefixes = tuple(space.key for space in spaces if space.key.endswith("/"))
    assert all(prefix.split("/")[-2] == "wf" for prefix in prefixes)
    made = {}
    for name, make in inspect.getmembers(keys, inspect.isfunction):
        parameters = list(inspect.signature(make).parameters.values())
        if make.__module__ != keys.__name__ or name.startswith("of_"):
            continue
        if parameters[0].name == "workflow_name" or name == "workflow":
            made[name] = make("wf", *("x" if one.annotation == "str" else 1 for one in parameters[1:]))
    assert len(made) > 30
    missing = {name: key for name, key in made.items() if key not in singles and not key.startswith(prefixes)}
    assert not missing, "keys.of_workflow, and the roles in docs/operations.rst, lack these"


def test_the_roles_that_operations_tells_are_what_belongs_to_a_workflow() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "operations.rst").read_text(encoding="utf-8")
    told = re.findall(r"^ +etcdctl role grant-permission( --prefix=true)? (\S+) (\w+) (\S+)$", page, re.MULTILINE)
    served = {(key, right) for is_prefix, role, right, key in told if role == "jobx-words"}
    spaces = keys.of_workflow("words")
    token = (keys.TOKENS, "read")
    assert served == {(key, right) for key, right in spaces if right != "nothing"} | {token}
    changed = {(key, right) for is_prefix, role, right, key in told if role == "jobx-words-author"}
    requests, news = (keys.requests("words"), "read"), (keys.deliveries("words"), "readwrite")
    assert changed == {(key, "readwrite") for key, right in spaces if right != "readwrite"} | {requests, news}
    assert all(bool(is_prefix) is key.endswith("/") for is_prefix, _, _, key in told)


class Watched(MemoryStore):
    """Fails on whatever does not belong to the workflow ``a``, or is a token."""

    def __init__(self) -> None:
        super().__init__()
        self.is_guarded = False
        self.watches: list[list[str]] = []
        spaces = [space.key for space in keys.of_workflow("a")]
        self._singles = {space for space in spaces if not space.endswith("/")}
        self._prefixes = (*(space for space in spaces if space.endswith("/")), keys.TOKENS)

    def _check(self, *names: str) -> None:
        foreign = [name for name in names if name not in self._singles and not name.startswith(self._prefixes)]
        assert not (self.is_guarded and foreign), foreign

    def get(self, names: Sequence[str]) -> Any:
        self._check(*names)
        return super().get(names)

    def list(self, prefix: str, **options: Any) -> Any:
        self._check(prefix)
        return super().list(prefix, **options)

    def count(self, prefix: str) -> int:
        self._check(prefix)
        return super().count(prefix)

    def commit(self, txns: Sequence[Txn]) -> Any:
        for txn in txns:
            self._check(*(one.key for one in (*txn.compares, *txn.puts)), *txn.deletes)
        return super().commit(txns)

    def watch(self, prefixes: Sequence[str], after: int) -> Any:
        self.watches.append([*prefixes])
        # Prefixes, not keys: current/a is the beginning of current/ab.
        assert not self.is_guarded or all(prefix.startswith(self._prefixes) for prefix in prefixes), prefixes
        return super().watch(prefixes, after)


@pytest.fixture
def watched() -> Iterator[Watched]:
    store = Watched()
    for name in ("a", "ab"):
        catalog.change(store, name, fill, create=True)
    store.is_guarded = True
    yield store
    store.close()


def front_of(store: Store, directory: Path, **settings: str) -> Front:
    config = Config.read({"MR_DATA_DIR": str(directory), **settings})
    return Front(Platform(store, MemoryQueue(), LocalFiles(directory)), config, Env.of(config))


def test_a_front_end_looks_at_nothing_but_the_workflows_that_it_serves(watched: Watched, tmp_path: Path) -> None:
    from mr.errors import RequestNotFound, WorkflowNotFound

    front = front_of(watched, tmp_path, MR_WORKFLOW_NAMES="a,never")
    never = {space.key for space in keys.of_workflow("never")}
    watched._singles |= {key for key in never if not key.endswith("/")}
    watched._prefixes += tuple(key for key in never if key.endswith("/"))
    front.start()
    try:
        front.check_ready()
        request_id = front.post("a", "plain", b"{}", wait_s=0).request_id
        front.status(front.request("a", "last"))
        front.cancel(front.request("a", request_id))
        assert front.wait("a", request_id, 10)
        other = ids.new_request_id("ab")
        for ask in (
            lambda: front.request("ab", "last"),
            lambda: front.request("ab", other),
            lambda: front.post("ab", "plain", b"{}", wait_s=0),
            lambda: front.post("never", "plain", b"{}", wait_s=0),
        ):
            with pytest.raises(WorkflowNotFound) as told:
                ask()
            assert "'ab'" not in str(told.value).partition("There are")[2]
        with pytest.raises(RequestNotFound):
            front.request("a", "nonsense")
        deadline = time.monotonic() + 20
        while not watched.watches:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        [prefixes] = watched.watches
        assert {"live/a/", "live/never/", "manifest/a/", "manifest/never/"} <= set(prefixes)
    finally:
        front.stop()


def test_a_front_end_of_one_workflow_hears_of_its_changes(watched: Watched, tmp_path: Path) -> None:
    front = front_of(watched, tmp_path, MR_WORKFLOW_NAMES="a")
    heard: list[str] = []

    def note(event: Event) -> None:
        name = catalog.changed(event.key)
        if name is not None:
            heard.append(name)

    front._catalogs.changed = note  # type: ignore[method-assign]
    front._catalogs.check = lambda: None  # type: ignore[method-assign]
    front.start()
    try:
        deadline = time.monotonic() + 20
        while not watched.watches:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        watched.is_guarded = False
        # As many handlers as no single transaction has room for: the change is told with the flip all the same.
        for name in ("ab", "a"):
            catalog.change(watched, name, add_many)
        while "a" not in heard:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert set(heard) == {"a"}
    finally:
        front.stop()


@pytest.mark.parametrize("edit", ["few", "many", "heavy", "none at all"])
def test_the_manifest_changes_with_the_key_that_names_it(edit: str) -> None:
    store = MemoryStore()
    catalog.change(store, "a", fill, create=True)

    def change(draft: Draft) -> None:
        if edit == "none at all":
            draft.jobs.clear()
            draft.steps.clear()
            draft.handlers.clear()
            return
        number, size = {"few": (2, 10), "many": (400, 10), "heavy": (40, 100_000)}[edit]
        for place in range(number):
            draft.handlers[f"h{place}"] = read_handler(
                "a", f"h{place}", f"{MAPPER.format('none')}# {'x' * size}{place}\n", "x.py"
            )

    if edit == "none at all":
        catalog.change(store, "a", add_many)
    before = store.revision()
    biggest = 0
    commit = store.commit

    def measured(txns: Sequence[Txn]) -> Any:
        nonlocal biggest
        biggest = max(biggest, *(sum(len(put.value) for put in txn.puts) for txn in txns))
        return commit(txns)

    store.commit = measured  # type: ignore[method-assign]
    catalog.change(store, "a", change)
    watch = store.watch(catalog.watched(["a"]), before)
    [told] = watch.next(0)
    [current] = store.get([keys.current("a")])
    assert current is not None
    assert (catalog.changed(told.key), told.revision) == ("a", current.modified)
    assert biggest <= 1_400_000, "a server takes no more at once"
    snapshot = catalog.read(store, "a")
    assert len(catalog.read_handlers(store, snapshot.manifest)) == len(snapshot.manifest.handlers)
    watch.close()


def add_many(draft: Draft) -> None:
    for place in range(300):
        draft.handlers[f"many{place}"] = read_handler(
            draft.workflow_name, f"many{place}", f"{MAPPER.format('none')}# {place}\n", "x.py"
        )


# --- what is waited for ---------------------------------------------------------------------------------------------


def fill(draft: Draft) -> None:
    for name, source in (
        ("split", MAPPER.format("none")),
        ("render", MAPPER.format("gpu")),
        ("add", REDUCER.format("none")),
        ("join", REDUCER.format("lots_of_memory")),
    ):
        draft.handlers[name] = read_handler(draft.workflow_name, name, source, f"{name}.py")
    for name, mapper, reducer in (
        ("plain", "split", "add"),
        ("frames", "render", "add"),
        ("fan", "split", "add"),
        ("big", "split", "join"),
    ):
        draft.steps[name] = Step(
            step_name=name,
            workflow_name=draft.workflow_name,
            description="",
            map_handler_name=mapper,
            combine_handler_name="",
            reduce_handler_name=reducer,
            timeout_s=0,
            max_attempts=1,
            partitions=1,
            max_failed_children=0,
        )
        draft.jobs[name] = Job(job_name=name, workflow_name=draft.workflow_name, description="", initial_step_name=name)


class Scene:
    """A workflow with running requests, whose records are written as the engine would."""

    def __init__(self, store: MemoryStore, directory: Path) -> None:
        self.store = store
        self.queue = MemoryQueue()
        self.platform = Platform(store, self.queue, LocalFiles(directory))
        self.now = 1000.0
        self.env = dataclasses.replace(Env.of(Config.read({"MR_DATA_DIR": str(directory)})), clock=lambda: self.now)
        catalog.change(store, "a", fill, create=True)
        self.snapshot = catalog.read(store, "a")
        self.shell = Shell(self.platform)

    def submit(self, job: str) -> Request:
        request = new_request("a", job, self.snapshot.version, self.now, 3600, False)
        self.shell.run(submit(self.env, request, self.snapshot.manifest, b"[]", 0, None))
        return request

    def put(self, *records: tuple[str, Record]) -> None:
        self.store.commit([Txn(puts=tuple(Put(key, encode(record)) for key, record in records))])

    def root(self, request: Request, **changes: Any) -> Invocation:
        key = keys.invocation("a", request.request_id, request.invocation_id)
        [entry] = self.store.get([key])
        assert entry is not None
        root = msgspec.structs.replace(decode(Invocation, key, entry.value), **changes)
        self.put((key, root))
        return root

    def seal(self, request: Request, parent_id: str, step: str, children: int) -> list[str]:
        record = Seal(
            nonce="n", step_name=step, children=children, bounds=[0], epoch=0, tolerated=0, shielded=False, open=True
        )
        self.put((keys.seal("a", request.request_id, parent_id), record))
        return [ids.child_of(parent_id, "n", slot) for slot in range(children)]

    def lacks(self, request: Request) -> list[tuple[str, str, str, str]]:
        found = waiting.waited_for(self.store, request, self.snapshot.manifest)
        return [(lack.capability, lack.step, lack.direction, lack.handler) for lack in found]

    def sent(self, capability: str, direction: str = "map") -> list[str]:
        """The invocations for which messages came since."""
        consumer = self.queue.consumer("c", max_in_flight=5000)
        consumer.subscribe([f"mr.a.{direction}.{capability}"])
        deliveries = consumer.receive(5000, 0)
        consumer.finish(deliveries)
        consumer.close()
        return [msgspec.json.decode(delivery.body, type=Body).invocation for delivery in deliveries]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    store = MemoryStore()
    yield Scene(store, tmp_path)
    store.close()


RENDER = ("gpu", "frames", "map", "render")


def test_a_request_waits_for_what_no_live_worker_offers(scene: Scene) -> None:
    request = scene.submit("frames")
    assert scene.lacks(request) == [RENDER], "there is no worker at all"
    register(scene.store, "a", "one", "general", "lots_of_memory")
    register(scene.store, "ab", "two", "gpu")
    assert scene.lacks(request) == [RENDER], "one of another workflow does not help"
    register(scene.store, "a", "three", "gpu")
    assert scene.lacks(request) == []


def test_a_request_does_not_wait_for_what_others_need(scene: Scene) -> None:
    register(scene.store, "a", "one", "general")
    assert scene.lacks(scene.submit("plain")) == []


def test_what_somebody_runs_is_not_waited_for(scene: Scene) -> None:
    request = scene.submit("frames")
    scene.root(request, state="running", started_timestamp=1001.0)
    own = keys.own("a", request.request_id, request.invocation_id)
    scene.put((own, Owner(nonce="n", worker="one")))
    register(scene.store, "a", "one", "general")
    assert scene.lacks(request) == []
    scene.store.commit([Txn(deletes=(own,))])
    assert scene.lacks(request) == [RENDER], "its worker is gone"


def test_an_ended_request_waits_for_nothing(scene: Scene) -> None:
    request = msgspec.structs.replace(scene.submit("frames"), state="cancelled", is_done=True)
    assert scene.lacks(request) == []


def test_a_reduce_is_waited_for_too(scene: Scene) -> None:
    register(scene.store, "a", "one", "general")
    request = scene.submit("big")
    assert scene.lacks(request) == []
    scene.root(request, state="reducing", partitions=3, started_timestamp=1001.0)
    assert scene.lacks(request) == [("lots_of_memory", "big", "reduce", "join")]


@pytest.mark.parametrize("ended", [0, 1990, 1999])
def test_children_are_looked_at_where_the_fan_out_gets_to_last(scene: Scene, ended: int) -> None:
    register(scene.store, "a", "one", "general")
    request = scene.submit("fan")
    root = scene.root(request, state="waiting", started_timestamp=1005.0)
    children = scene.seal(request, root.invocation_id, "frames", 2000)
    scene.put(*((keys.done("a", request.request_id, child), Mark()) for child in children[:100]))
    for start in range(100, ended, 100):
        some = children[start : min(ended, start + 100)]
        scene.put(*((keys.done("a", request.request_id, child), Mark()) for child in some))
    assert scene.lacks(request) == [RENDER]
    [lack] = waiting.waited_for(scene.store, request, scene.snapshot.manifest)
    assert lack.since == 1005.0, "since its parent began, at the earliest"


def test_children_that_have_ended_are_not_waited_for(scene: Scene) -> None:
    register(scene.store, "a", "one", "general")
    request = scene.submit("fan")
    root = scene.root(request, state="waiting")
    children = scene.seal(request, root.invocation_id, "frames", 60)
    scene.put(*((keys.done("a", request.request_id, child), Mark()) for child in children))
    assert scene.lacks(request) == []


def test_children_of_children_are_looked_at(scene: Scene) -> None:
    register(scene.store, "a", "one", "general")
    request = scene.submit("fan")
    root = scene.root(request, state="waiting")
    children = scene.seal(request, root.invocation_id, "fan", 100)
    key = keys.invocation("a", request.request_id, children[20])
    child = msgspec.structs.replace(root, invocation_id=children[20], state="waiting", step_name="fan")
    scene.put((key, child))
    assert scene.lacks(request) == []
    scene.seal(request, children[20], "frames", 3)
    assert scene.lacks(request) == [RENDER]


def test_a_status_takes_few_reads(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    request = scene.submit("fan")
    root = scene.root(request, state="waiting")
    scene.seal(request, root.invocation_id, "plain", 100_000)
    reads = 0
    get, listed = scene.store.get, scene.store.list

    def counted(names: Sequence[str]) -> Any:
        nonlocal reads
        reads += 1
        return get(names)

    def counted_list(prefix: str, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return listed(prefix, **options)

    monkeypatch.setattr(scene.store, "get", counted)
    monkeypatch.setattr(scene.store, "list", counted_list)
    register(scene.store, "a", "one", "general", "gpu", "lots_of_memory")
    assert scene.lacks(request) == []
    assert reads <= 2, "nothing is lacking"
    workers_gone = keys.worker("a", "one")
    scene.store.commit([Txn(deletes=(workers_gone,))])
    register(scene.store, "a", "two", "general")
    reads = 0
    assert scene.lacks(request) == []
    assert reads <= 30, "something is, though not here"


def test_the_status_says_what_is_lacking_and_what_to_do(scene: Scene, tmp_path: Path) -> None:
    from mr.web.application import create_app

    front = front_of(scene.store, tmp_path)
    front.start()
    request = scene.submit("frames")
    register(scene.store, "a", "one", "general")
    client = create_app(front).test_client()
    status = client.get(f"/request/a/{request.request_id}").get_json()
    since = status["waiting_for"][0].pop("since")
    assert status["waiting_for"] == [{"capability": "gpu", "step": "frames", "direction": "map", "handler": "render"}]
    assert since == 1000.0
    assert "'gpu'" in status["detail"]
    assert "MR_SYSTEM_CAPABILITIES=gpu" in status["detail"]
    assert "MR_SYSTEM_CAPABILITIES=gpu" in client.get("/request/a/last", headers={"Accept": "text/html"}).text
    register(scene.store, "a", "two", "gpu")
    status = client.get("/request/a/last").get_json()
    assert (status["waiting_for"], status["detail"]) == ([], None)
    page = client.get("/request/a/last", headers={"Accept": "text/html"}).text
    assert "MR_SYSTEM_CAPABILITIES" not in page
    front.stop()


# --- the sweep, and those who join ----------------------------------------------------------------------------------


def sweep(scene: Scene, memory: Memory, *offered: str) -> None:
    scene.shell.run(Sweep(scene.env, "a", memory, True, frozenset(offered)).run())


def test_what_nobody_can_run_is_seldom_sent_and_at_once_when_somebody_can(scene: Scene) -> None:
    request = scene.submit("frames")
    assert scene.sent("gpu") == [request.invocation_id]
    memory = Memory()
    for _ in range(290):
        sweep(scene, memory, "general")
        scene.now += 1
    assert scene.sent("gpu") == [], "its message was lost, but another would only wait, too"
    sweep(scene, memory, "general", "gpu")
    assert scene.sent("gpu") == [request.invocation_id]
    for _ in range(9):
        scene.now += 1
        sweep(scene, memory, "general", "gpu")
    assert scene.sent("gpu") == []
    scene.now += 2
    sweep(scene, memory, "general", "gpu")
    assert scene.sent("gpu") == [request.invocation_id], "from then on it is like any other"


def test_what_nobody_seems_able_to_run_is_sent_all_the_same(scene: Scene) -> None:
    request = scene.submit("frames")
    scene.sent("gpu")
    memory, sent = Memory(), 0
    for _ in range(24 * 360):
        sweep(scene, memory, "general")
        scene.now += 10
        sent += len(scene.sent("gpu"))
    assert 20 < sent < 40, "some worker may be there that could not say so"
    assert request.state == "running"


def test_a_fan_out_that_waits_is_sent_for_when_somebody_joins(scene: Scene) -> None:
    request = scene.submit("fan")
    root = scene.root(request, state="waiting", need=4000)
    children = scene.seal(request, root.invocation_id, "frames", 4000)
    memory = Memory()
    for _ in range(30):
        sweep(scene, memory, "general")
        scene.now += 1
    assert scene.sent("gpu") == []
    # Wide parents are looked at every few seconds; now they are looked at all the same.
    scene.now += 100
    sweep(scene, memory, "general")
    scene.now += 0.1
    sweep(scene, memory, "general", "gpu")
    assert set(children[:1000]) <= set(scene.sent("gpu"))


def test_those_who_join_are_noticed_though_a_round_fails(scene: Scene) -> None:
    request = scene.submit("frames")
    scene.sent("gpu")
    memory = Memory()
    sweep(scene, memory, "general")
    flow = Sweep(scene.env, "a", memory, True, frozenset({"general", "gpu"})).run()
    next(flow)
    flow.close()
    sweep(scene, memory, "general", "gpu")
    assert scene.sent("gpu") == [request.invocation_id]


# --- jobx worker list -----------------------------------------------------------------------------------------------


def test_live_workers_are_listed_a_line_each(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    for name in ("a", "ab"):
        commands.printed(workflows.create, name, "")
    done = commands.jobx("worker", "list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "jobx worker" in done.stderr
    with_store = commands.store()
    register(with_store, "a", "one", "general", "gpu")
    register(with_store, "ab", "one", "general", "gpu")
    register(with_store, "ab", "two", "general")
    with_store.close()
    lines = [line.split("\t") for line in commands.jobx("worker", "list").stdout.splitlines()]
    assert [line[:6] for line in lines] == [
        ["one", "here", "1", "general,gpu", "2", "a,ab"],
        ["two", "here", "1", "general", "2", "ab"],
    ]
    assert all(line[6] for line in lines)
    of_a = commands.jobx("worker", "list", "a").stdout.splitlines()
    assert [line.split("\t")[5] for line in of_a] == ["a"]
    listed = msgspec.json.decode(commands.jobx("worker", "list", "--json").stdout)
    assert [(one["worker_name"], one["workflows"], one["capabilities"]) for one in listed] == [
        ("one", ["a", "ab"], ["general", "gpu"]),
        ("two", ["ab"], ["general"]),
    ]
    only = msgspec.json.decode(commands.jobx("worker", "list", "--json", MR_WORKFLOW_NAMES="a").stdout)
    assert [(one["worker_name"], one["workflows"]) for one in only] == [("one", ["a"])]


def test_the_list_of_a_workflow_that_is_not_there_is_refused(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    commands.printed(workflows.create, "a", "")
    done = commands.jobx("worker", "list", "nope")
    assert done.exit_code == 1
    assert "There is no workflow 'nope'" in done.stderr
    assert commands.jobx("worker", "lst").exit_code == 2


def test_a_request_that_waits_says_so_on_standard_error(tmp_path: Path) -> None:
    commands = Commands(tmp_path)
    commands.create_words()
    from mr.cli import submitting

    request_id = commands.printed(submitting.create, "words", "wordcount", "-a", "text", "a")["primary_key"]
    for arguments in (("request", "get", "last"), ("request", "tree", request_id)):
        done = commands.jobx(*arguments)
        assert done.exit_code == 0
        assert "No live worker of the workflow 'words' has the capability 'general'" in done.stderr
    with_store = commands.store()
    register(with_store, "words", "one", "general")
    with_store.close()
    assert commands.jobx("request", "get", "last").stderr == ""
