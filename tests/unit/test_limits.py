"""Posts are turned away when a workflow has enough to do: what is counted, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from mr.cli import jobs, workflows
from mr.config import Config
from mr.engine.ops import Env
from mr.engine.shell import Platform, Shell
from mr.engine.sweep import Memory, Sweep
from mr.fs.local import LocalFiles
from mr.kv.base import Entry, Event, Put, Txn
from mr.kv.memory import MemoryStore
from mr.model import catalog, ids, keys
from mr.model.catalog import Draft
from mr.model.entities import Invocation, Request, Workflow, decode, encode
from mr.model.records import Load, Mark, Seal
from mr.queue.memory import MemoryQueue
from mr.web.limits import Bounds, Limits, WorkflowFull
from tests.unit.cli_runs import Commands
from tests.unit.test_web_application import Stack, eventually, is_problem, open_stack


class Counted:
    """Limits over a store in memory, with a clock that stands still."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.now = 100.0
        self.store = store or MemoryStore()
        self.limits = Limits(self.store, clock=lambda: self.now)

    def admit(self, *names: str, open_requests: int = 0, invocations: int = 0) -> None:
        for name in names:
            self.limits.admit("w", name, Bounds(open_requests, invocations))

    def refused(self, open_requests: int = 0, invocations: int = 0) -> WorkflowFull:
        with pytest.raises(WorkflowFull) as caught:
            self.admit("one-too-many", open_requests=open_requests, invocations=invocations)
        return caught.value

    def put(self, *names: str) -> None:
        self.store.commit([Txn(puts=tuple(Put(keys.live("w", name), b"{}") for name in names))])

    def hear(self, name: str, *, ended: bool = False) -> None:
        self.limits.changed(Event(keys.live("w", name), None if ended else b"{}", 1))

    def tell(self, requests: int, invocations: int) -> None:
        load = encode(Load(requests=requests, invocations=invocations))
        self.limits.changed(Event(keys.load("w"), load, 1))


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_the_last_place_is_the_last(counted: Counted) -> None:
    counted.admit("a", "b", open_requests=2)
    full = counted.refused(open_requests=2)
    assert (full.limit_name, full.limit, full.current) == ("max_open_requests", 2, 2)


def test_what_did_not_come_in_takes_no_place(counted: Counted) -> None:
    counted.admit("a", "b", open_requests=2)
    counted.limits.leave("w", "a")
    counted.admit("c", open_requests=2)
    counted.refused(open_requests=2)


def test_what_was_open_before_counts(counted: Counted) -> None:
    counted.put("a", "b")
    counted.store.commit([Txn(puts=(Put(keys.live("w2", "c"), b"{}"),))])
    assert counted.refused(open_requests=2).current == 2
    counted.admit("d", open_requests=3)


def test_what_other_front_ends_let_in_is_heard_of(counted: Counted) -> None:
    counted.admit("a", open_requests=2)
    counted.hear("b")
    counted.refused(open_requests=2)
    counted.hear("a")
    counted.hear("b", ended=True)
    counted.admit("c", open_requests=2)


def test_what_no_event_told_is_found_by_counting_again(counted: Counted) -> None:
    counted.admit("a", open_requests=2)
    counted.put("a", "b", "c")
    counted.limits.check()
    counted.admit("d", open_requests=2)
    counted.now += 6
    counted.limits.check()
    assert counted.refused(open_requests=2).current == 4


def test_a_request_on_its_way_to_the_store_keeps_its_place_but_not_for_ever(counted: Counted) -> None:
    counted.admit("a", open_requests=1)
    counted.now += 6
    counted.limits.check()
    counted.refused(open_requests=1)
    counted.now += 6
    counted.limits.check()
    counted.admit("b", open_requests=1)


class Slow(MemoryStore):
    """Something happens between a listing and its answer."""

    meanwhile: Callable[[], None] | None = None

    def list(
        self, prefix: str, *, after: str = "", limit: int = 1000, keys_only: bool = False, reverse: bool = False
    ) -> list[Entry]:
        found = super().list(prefix, after=after, limit=limit, keys_only=keys_only, reverse=reverse)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return found


def test_what_ends_while_it_is_counted_is_not_counted() -> None:
    store = Slow()
    counted = Counted(store)
    counted.put("a", "b")
    store.meanwhile = lambda: counted.hear("a", ended=True)
    counted.admit("c", open_requests=2)
    counted.refused(open_requests=2)


def test_a_workflow_that_nobody_posts_to_is_not_counted_again(counted: Counted) -> None:
    counted.admit("a", open_requests=1)
    counted.now += 61
    counted.limits.check()
    counted.put("b")
    assert counted.refused(open_requests=1).current == 1, "asked for anew"


@pytest.mark.parametrize(("pause_s", "after_s"), [(0.01, 1), (4.0, 4), (59.0, 60)])
def test_when_to_come_again_is_told_by_how_fast_requests_end(counted: Counted, pause_s: float, after_s: int) -> None:
    counted.admit("a", *(f"b{n}" for n in range(10)), open_requests=11)
    assert counted.refused(open_requests=11).retry_after_s == 10, "nothing is known yet"
    for n in range(10):
        counted.hear(f"b{n}", ended=True)
        counted.now += pause_s
        counted.admit(f"c{n}", open_requests=11)
    assert abs(counted.refused(open_requests=11).retry_after_s - after_s) <= 1


def test_invocations_are_those_that_the_sweep_saw_and_the_roots_that_came_since(counted: Counted) -> None:
    counted.admit("a", invocations=10)
    counted.tell(1, 8)
    counted.admit("b", invocations=10)
    counted.admit("c", invocations=10)
    full = counted.refused(invocations=10)
    assert (full.limit_name, full.limit, full.current) == ("max_invocations", 10, 10)
    counted.now += 2
    counted.tell(3, 6)
    counted.admit("d", invocations=10)


def test_when_to_come_again_is_told_by_how_fast_invocations_become_fewer(counted: Counted) -> None:
    counted.admit("a", invocations=1000)
    counted.tell(1, 3000)
    assert counted.refused(invocations=1000).retry_after_s == 10
    counted.now += 2
    counted.tell(1, 2500)
    assert counted.refused(invocations=1000).retry_after_s == 7, "1,501 too many, 250 fewer a second"


def test_what_the_sweep_said_is_nothing_once_nothing_is_open(counted: Counted) -> None:
    counted.admit("a", invocations=10)
    counted.tell(1, 5000)
    counted.hear("a", ended=True)
    counted.admit("b", invocations=10)


def test_what_the_sweep_said_before_the_first_post_is_asked_for(counted: Counted) -> None:
    counted.put("a")
    counted.store.commit([Txn(puts=(Put(keys.load("w"), encode(Load(requests=1, invocations=70))),))])
    assert counted.refused(invocations=70).current == 70


def test_a_workflows_own_limits_come_first() -> None:
    config = Config.read({"HOME": "/", "MR_MAX_OPEN_REQUESTS": "7", "MR_MAX_INVOCATIONS": "8"})
    assert Bounds.of(config, Workflow(workflow_name="w", description="")) == (7, 8)
    own = Workflow(workflow_name="w", description="", max_open_requests=0, max_invocations=3)
    assert Bounds.of(config, own) == (0, 3)


def test_without_limits_nothing_is_counted(counted: Counted) -> None:
    counted.store.close()
    counted.admit(*map(str, range(1000)))


# --- over HTTP -------------------------------------------------------------------------------------------------------

POST = "/job/words/wordcount?blocking=false"


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    opened: list[Stack] = []

    def open_one(**settings: str) -> Stack:
        opened.append(open_stack(tmp_path, **settings))
        return opened[-1]

    yield open_one
    for stack in opened:
        stack.front.stop()


def test_a_full_workflow_says_which_limit_and_when_to_come_again(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_OPEN_REQUESTS="3")
    accepted = [stack.submit() for _ in range(3)]
    before = stack.store.revision()
    answer = stack.client.post(POST)
    problem = is_problem(answer, 429, "workflow-full")
    assert (problem["limit_name"], problem["limit"], problem["current"]) == ("max_open_requests", 3, 3)
    assert "3 open requests" in problem["detail"]
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert (stack.store.revision(), sorted(stack.running())) == (before, sorted(accepted)), "nothing was accepted"
    stack.end(accepted[0], "done")
    eventually(lambda: stack.client.post(POST).status_code == 202)
    is_problem(stack.client.post(POST), 429, "workflow-full")


def test_a_repeat_of_what_was_accepted_is_answered_though_the_workflow_is_full(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_OPEN_REQUESTS="1")
    request_id = stack.submit(headers={"Idempotency-Key": "k"})
    before = stack.store.revision()
    assert stack.submit(headers={"Idempotency-Key": "k"}) == request_id
    other = stack.client.post(POST, headers={"Idempotency-Key": "k"}, data=b'{"name": "other"}')
    is_problem(other, 422, "idempotency-mismatch")
    is_problem(stack.client.post(POST, headers={"Idempotency-Key": "new"}), 429, "workflow-full")
    assert stack.store.revision() == before
    stack.end(request_id, "done")
    eventually(lambda: stack.client.post(POST, headers={"Idempotency-Key": "new"}).status_code == 202)


def test_twins_of_one_key_take_one_place(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_OPEN_REQUESTS="2")
    assert stack.submit(headers={"Idempotency-Key": "k"}) == stack.submit(headers={"Idempotency-Key": "k"})
    stack.submit()
    is_problem(stack.client.post(POST), 429, "workflow-full")


def test_what_the_store_refused_takes_no_place(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_OPEN_REQUESTS="2")
    stack.submit()
    stack.store.is_away = True
    for _ in range(5):
        is_problem(stack.client.post(POST), 503, "store-unavailable")
    stack.store.is_away = False
    stack.submit()
    is_problem(stack.client.post(POST), 429, "workflow-full")


def test_a_changed_limit_is_live_at_once(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_OPEN_REQUESTS="1", MR_WORKFLOW_NAMES="words")
    stack.submit()
    is_problem(stack.client.post(POST), 429, "workflow-full")

    def widen(draft: Draft) -> None:
        draft.limits = catalog.Limits(max_open_requests=2)

    assert [change.kind for change in catalog.change(stack.store, "words", widen)] == ["workflow"]
    eventually(lambda: stack.client.post(POST).status_code == 202)
    is_problem(stack.client.post(POST), 429, "workflow-full")


def test_a_fan_out_that_the_sweep_saw_turns_posts_away(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_MAX_INVOCATIONS="100")
    stack.submit()
    stack.put((keys.load("words"), Load(requests=1, invocations=500)))
    eventually(lambda: stack.client.post(POST).status_code == 429)
    problem = is_problem(stack.client.post(POST), 429, "workflow-full")
    assert (problem["limit_name"], problem["limit"]) == ("max_invocations", 100)
    stack.put((keys.load("words"), Load(requests=1, invocations=50)))
    eventually(lambda: stack.client.post(POST).status_code == 202)


# --- what the sweep counts -------------------------------------------------------------------------------------------


class Swept:
    """A workflow with one request, and a sweeper that looks when it is told to."""

    def __init__(self, directory: Path) -> None:
        self.stack = open_stack(directory)
        self.request_id = self.stack.submit()
        self.stack.front.stop()
        self.store = self.stack.store
        config = Config.read({"MR_DATA_DIR": str(directory)})
        self.env = Env.of(config, "worker", lambda: lease)
        lease = self.store.grant(1000)
        platform = Platform(self.store, MemoryQueue(), LocalFiles(directory / "files"))
        self.shell, self.memory = Shell(platform), Memory()

    def sweep(self) -> Load | None:
        self.memory.walks.clear()
        self.shell.run(Sweep(self.env, "words", self.memory, False).run())
        [entry] = self.store.get([keys.load("words")])
        return None if entry is None else decode(Load, entry.key, entry.value)

    def map(self, invocation_id: str, children: int) -> str:
        """The invocation has mapped to so many; the ID of its first child."""
        request = decode(Request, "", self.store.get([keys.request("words", self.request_id)])[0].value)  # type: ignore[union-attr]
        root = ids.root_of(self.request_id)
        key = keys.invocation("words", self.request_id, root)
        record = decode(Invocation, key, self.store.get([key])[0].value)  # type: ignore[union-attr]
        waiting = msgspec.structs.replace(
            record, invocation_id=invocation_id, state="waiting", need=children, mapped_count=children, partitions=1
        )
        sealed = Seal(
            nonce="n",
            step_name="count",
            children=children,
            bounds=[0],
            epoch=0,
            tolerated=0,
            shielded=False,
            open=True,
            shards=1,
            window=4,
        )
        self.stack.put(
            (keys.invocation("words", self.request_id, invocation_id), waiting),
            (keys.seal("words", request.request_id, invocation_id), sealed),
        )
        return ids.child_of(invocation_id, "n", 0)

    def ended(self, parent_id: str, slot: int) -> None:
        child = ids.child_of(parent_id, "n", slot)
        self.stack.put(
            (keys.count("words", self.request_id, parent_id, 0, 0), Mark()),
            (keys.done("words", self.request_id, child), Mark()),
        )


@pytest.fixture
def swept(tmp_path: Path) -> Swept:
    return Swept(tmp_path)


def test_the_sweep_tells_how_much_there_is_to_do(swept: Swept) -> None:
    root = ids.root_of(swept.request_id)
    assert swept.sweep() == Load(requests=1, invocations=1)
    first = swept.map(root, 5)
    assert swept.sweep() == Load(requests=1, invocations=6)
    swept.map(first, 3)
    assert swept.sweep() == Load(requests=1, invocations=9)
    swept.ended(first, 1)
    swept.ended(root, 2)
    assert swept.sweep() == Load(requests=1, invocations=7)
    swept.ended(root, 0)
    assert swept.sweep() == Load(requests=1, invocations=4), "what was below the first child ended with it"
    before = swept.store.revision()
    assert swept.sweep() == Load(requests=1, invocations=4)
    assert swept.store.revision() == before, "what is no news is not written"


def test_what_was_told_goes_with_the_last_request_and_with_the_sweeper(swept: Swept) -> None:
    swept.sweep()
    swept.stack.end(swept.request_id, "cancelled")
    assert swept.sweep() is None
    swept.memory = Memory()
    swept.stack.put((keys.load("words"), Load(requests=9, invocations=999)))
    assert swept.sweep() is None, "a new sweeper leaves nothing that others said"


def test_what_was_told_ends_with_the_sweepers_lease(swept: Swept) -> None:
    assert swept.sweep() is not None
    swept.store.revoke(swept.env.lease())
    assert swept.store.get([keys.load("words")]) == [None]


# --- limits of a workflow's own --------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def limits(commands: Commands) -> tuple[int | None, int | None]:
    data = commands.printed(workflows.get, "words")["data"]
    return data.get("max_open_requests"), data.get("max_invocations")


def test_a_workflow_is_created_with_limits_which_are_set_later_and_taken_back(commands: Commands) -> None:
    created = commands.printed(workflows.create, "words", "Counts", "--max-open-requests", "5")
    assert created["data"] == {"workflow_name": "words", "description": "Counts", "max_open_requests": 5}
    again = commands.run(workflows.create, "words", "Counts", "--max-open-requests", "5")
    assert (again.exit_code, "is there already, unchanged" in again.stderr) == (0, True)
    assert "mr_kv_workflow_set_limits words" in commands.said(workflows.create, "words", "Counts")
    assert commands.run(workflows.set_limits, "words", "--max-invocations", "70").exit_code == 0
    assert limits(commands) == (None, 70)
    assert "has these limits already" in commands.run(workflows.set_limits, "words", "--max-invocations", "70").stderr
    assert commands.run(workflows.set_limits, "words").exit_code == 0
    assert limits(commands) == (None, None)
    assert commands.run(workflows.set_limits, "words", "--max-invocations", "-1").exit_code == 2
    assert "There is no workflow 'other'" in commands.said(workflows.set_limits, "other", "--max-invocations", "1")


def test_entities_may_change_and_limits_stay(commands: Commands) -> None:
    commands.create_words()
    commands.printed(workflows.set_limits, "words", "--max-open-requests", "3")
    commands.printed(jobs.create, "words", "second", "", "count")
    assert limits(commands) == (3, None)


def test_a_directory_says_limits_or_leaves_them(commands: Commands) -> None:
    words = commands.words()
    path = words / "jobs.yaml"
    plain = path.read_text()
    path.write_text(plain + "limits: {open_requests: 8}\n")
    assert commands.jobx("apply", str(words)).exit_code == 0
    assert limits(commands) == (8, None)
    path.write_text(plain)
    assert "nothing to change" in commands.jobx("apply", str(words)).stdout
    assert limits(commands) == (8, None)
    path.write_text(plain + "limits: {invocations: 0}\n")
    assert commands.jobx("diff", str(words)).stdout == "words: update workflow\n"
    assert commands.jobx("apply", str(words)).exit_code == 0
    assert limits(commands) == (None, 0)
    path.write_text(plain + "limits:\n  open_requests: -1\n  invocation: 5\n")
    said = commands.jobx("apply", str(words))
    assert said.exit_code == 1
    assert "jobs.yaml:4: 'open_requests' has to be a whole number from 0 up, not -1." in said.stderr
    assert "jobs.yaml:5: 'limits' has no setting 'invocation'. Did you mean 'invocations'?" in said.stderr
    assert limits(commands) == (None, 0)
