"""A deterministic world in which the production flows of the engine run over every kind of fault.

A seed decides everything: the shape of the requests, the policies of their steps, and when a process crashes, a
message is lost, repeated or late, a lease expires under its live owner, a task stalls, a transaction's outcome is
unknown or it is applied late, and which transactions are grouped. Mappers answer differently when they are run again.
After some time the faults stop, and everything must come to its end. Invariants are checked from outside, at every
commit.

``mutations`` takes rules away, to prove that the checks have teeth: ``transition:rule`` drops that compare,
``transition!prefix`` the deletes of such keys; other names are looked up where they are used.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import random
from collections import Counter, defaultdict
from typing import Any

from mr.engine import deliver, ops
from mr.engine.handle import handle
from mr.engine.redrive import redrive
from mr.engine.submit import Key, cancel, submit
from mr.engine.sweep import Memory, Sweep
from mr.errors import Conflict, NothingToRedrive, RequestExpired, RequestNotFound
from mr.handlers.protocol import Children, Direction, Failed, Finished, Output
from mr.model import ids, keys
from mr.model.entities import Invocation, Job, Request, Step
from mr.model.records import Manifest

WORKFLOW = "w"
RANK = {"ready": 0, "running": 0, "waiting": 1, "reducing": 2, "done": 3, "failed": 3}
ENDED = ("done", "failed", "cancelled")
BLIND = ("count/", "failed/")


class Violation(Exception):
    """An invariant does not hold."""


class Stored:
    __slots__ = ("created", "lease", "modified", "record", "version")

    def __init__(self, record: Any, created: int, modified: int, version: int, lease: int) -> None:
        self.record, self.created, self.modified, self.version, self.lease = record, created, modified, version, lease


class Pending:
    """A transaction on its way to the store."""

    __slots__ = ("answer", "change", "doubtful", "process", "task")

    def __init__(self, change: ops.Change, process: Process, task: Task) -> None:
        self.change, self.process, self.task = change, process, task
        self.doubtful = False
        self.answer: ops.Committed | None = None


class Process:
    def __init__(self, name: str) -> None:
        self.name = name
        self.pending: list[Pending] = []
        self.tasks: dict[Task, None] = {}  # in order: a set's would differ from run to run
        self.lease = 0


class Task:
    """A flow in progress. ``op`` is what it waits for; ``message`` the one it was woken by."""

    __slots__ = ("answer", "claimed", "dead", "events", "flow", "message", "name", "op", "process", "running")

    def __init__(self, process: Process, flow: Any, name: str, message: str = "") -> None:
        self.process, self.flow, self.name, self.message = process, flow, name, message
        self.dead = False
        self.answer: Any = None
        self.op: Any = None
        self.events: list[Any] = []
        self.running = ("", 0)
        self.claimed = (0, 0)
        """The run of the request in which it claimed last, and the revision of that claim."""


class Plan:
    """What one client wants: a request over some tokens, down to some depth."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.name = name
        self.tokens = rng.choice((0, 1, 3, 6, 8))
        self.depth = rng.choice((0, 1, 1, 2, 2, 3))
        self.retention = rng.choice((80, 200, 600))
        self.is_keyed = rng.random() < 0.6
        self.holds = rng.choice((300, 1_000_000))
        self.writer = rng.choice(("", "http"))
        self.notify = [f"https://{number}" for number in range(rng.choice((0, 0, 1, 2)))]
        self.redrives = rng.choice((0, 1, 1, 2))
        self.manifest, self.newest = self._manifest(rng, "old"), self._manifest(rng, "new")

    def _manifest(self, rng: random.Random, version: str) -> Manifest:
        steps = {
            f"s{level}": Step(
                step_name=f"s{level}",
                workflow_name=WORKFLOW,
                description="",
                map_handler_name="map",
                combine_handler_name="",
                reduce_handler_name="reduce",
                timeout_s=0,
                max_attempts=rng.choice((1, 1, 2, 3)),
                partitions=rng.choice((1, 1, 2, 3)),
                max_failed_children=rng.choice((0, 0, 1, 2, "50%", "100%")),
            )
            for level in range(self.depth + 1)
        }
        job = Job(job_name=self.name, workflow_name=WORKFLOW, description="", initial_step_name="s0")
        return Manifest(
            workflow_name=WORKFLOW,
            jobs={self.name: job},
            steps=steps,
            handlers={"map": version, "reduce": version},
            capabilities={"map": "general", "reduce": "general"},
        )


class World:
    LISTED = ("live/", "expire/", "delivery/", "idempotency/", "redrive/")

    def __init__(self, seed: int, mutations: frozenset[str] = frozenset()) -> None:
        rng = self.rng = random.Random(seed)
        self.mutations = mutations
        self.store: dict[str, Stored] = {}
        self.listed: dict[str, dict[str, None]] = {kind: {} for kind in self.LISTED}
        self.leases: dict[int, set[str]] = {}
        self.revision = 1
        self.now = 0
        self.is_faulty = True
        self.counts: Counter[str] = Counter()
        self._shape(rng)
        self._ledger()
        self.ready: list[Task] = []
        self.sleeping: list[tuple[int, int, Task]] = []
        self.messages: list[tuple[int, str]] = []
        self.limbo: list[tuple[int, list[Pending]]] = []
        self.dying: list[int] = []
        self.sequence = 0
        self.sweeps = 0
        self.memory = Memory()
        for plan in self.plans.values():
            for _ in range(rng.choice((1, 2, 3)) if plan.is_keyed else 1):
                self._client(plan)
            if rng.random() < 0.3:
                self._cancel_later(plan, rng.randrange(20, 700))

    def _shape(self, rng: random.Random) -> None:
        """This world's habits and faults."""
        self.groups = rng.random() < 0.75
        self.p_unknown = rng.choice((0, 0.02, 0.06, 0.15))
        self.p_lost = rng.choice((0, 0.1, 0.4))
        self.p_repeated = rng.choice((0, 0.1, 0.3))
        self.p_fail = rng.choice((0, 0.05, 0.15, 0.35))
        self.p_stall = rng.choice((0, 0.01, 0.03, 0.06))
        self.p_crash = rng.choice((0, 0.002, 0.006))
        self.p_expire = rng.choice((0, 0.005, 0.02))
        self.p_sweep = rng.choice((0.003, 0.02))
        self.faulty_for = rng.choice((200, 600, 1500))
        self.slots = rng.choice((1, 2, 4))
        self.settings = ops.Settings(
            shards=rng.choice((1, 2, 3)),
            window=rng.choice((1, 2, 3, 6)),
            chunk_items=rng.choice((1, 2, 3)),
            inline_bytes=rng.choice((0, 1000)),
            page=rng.choice((2, 100)),
            max_lost=rng.choice((1, 3, 20)),
            backoff_s=10,
            max_backoff_s=50,
            resend_first_s=60,
            resend_last_s=120,
        )
        self.front, self.admin, self.sweeper = Process("front"), Process("admin"), Process("sweeper")
        self.workers = [Process(f"worker{number}") for number in range(rng.choice((1, 2, 3)))]
        self.processes = [self.front, self.admin, self.sweeper, *self.workers]
        self.envs = {process: self._env(process) for process in self.processes}
        self.plans = {name: Plan(rng, name) for name in "ab"[: rng.choice((1, 1, 2))]}
        self.manifests = {plan.name: plan.manifest for plan in self.plans.values()}
        self.manifests |= {f"{plan.name}-new": plan.newest for plan in self.plans.values()}

    def _ledger(self) -> None:
        """What is known from outside of the store."""
        self.plan_of: dict[str, Plan] = {}
        self.counted: dict[str, set[str]] = defaultdict(set)
        self.runs: Counter[tuple[str, int]] = Counter()
        self.lives: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.claims: Counter[tuple[str, int]] = Counter()
        self.retries: Counter[tuple[str, int]] = Counter()
        self.kept: dict[str, set[str]] = {}
        self.owing: dict[str, set[str]] = defaultdict(set)
        self.mapped: dict[str, int] = {}
        self.files: dict[str, list[bytes]] = {}
        self.answers: dict[str, set[str]] = defaultdict(set)
        self.submitted: list[str] = []
        self.held_until: dict[str, float] = defaultdict(float)
        self.cleaned: set[str] = set()
        self.owed = deliver.Memory()

    def _env(self, process: Process) -> ops.Env:
        def nonce() -> str:
            self.sequence += 1
            return f"n{self.sequence}"

        def lease() -> int:
            if process.lease not in self.leases:
                self.sequence += 1
                process.lease = self.sequence
                self.leases[process.lease] = set()
            return process.lease

        def at_hand(workflow: str, handlers: tuple[str, ...]) -> float | None:
            return self.rng.choice((None, 1, 1.4, 32))

        runners = self.rng.choice((1, 2, 3))
        return ops.Env(
            self.settings,
            lambda: float(self.now),
            nonce,
            self.rng.random,
            process.name,
            lease,
            runners=runners,
            at_hand=at_hand,
        )

    # --- clients ----------------------------------------------------------------------------------------------------

    def _client(self, plan: Plan) -> None:
        self.sequence += 1
        request_id = f"{plan.name}{self.sequence}"
        self.plan_of[request_id] = plan
        request = Request(
            request_id=request_id,
            workflow_name=WORKFLOW,
            job_name=plan.name,
            invocation_id=ids.root_of(request_id),
            context={},
            is_blocking=False,
            is_done=False,
            failed_invocation_id=None,
            state="running",
            manifest=plan.name,
            created_timestamp=self.now,
            ended_timestamp=None,
            retention_s=plan.retention,
            writer=plan.writer,
            notify=plan.notify,
        )
        key = Key(plan.name, "body", plan.holds) if plan.is_keyed else None
        arguments = json.dumps([["tokens", list(range(plan.tokens))]]).encode()

        def flow() -> Any:
            with contextlib.suppress(Conflict):  # the client is told to try again
                accepted = yield from submit(self.envs[self.front], request, plan.manifest, arguments, 1, key)
                self.answers[plan.name].add(accepted.request_id)

        self.spawn(self.front, flow(), "submit")

    def _cancel_later(self, plan: Plan, pause: int) -> None:
        def flow() -> Any:
            yield pause
            for request_id in [one for one in self.submitted if self.plan_of[one] is plan]:
                with contextlib.suppress(RequestNotFound):
                    yield from cancel(self.envs[self.admin], WORKFLOW, request_id)

        self.spawn(self.admin, flow(), "cancel")

    def _redrive_something(self) -> None:
        """Sometimes two do so at once, and sometimes it is cancelled soon after."""
        rng = self.rng
        request_id = rng.choice(self.submitted)
        plan, stored = self.plan_of[request_id], self.store.get(keys.request(WORKFLOW, request_id))
        if not plan.redrives or stored is None or stored.record.state not in ENDED:
            return
        if stored.record.state == "done" and not self._has_failures(request_id) and rng.random() < 0.9:
            return
        plan.redrives -= 1
        for _ in range(rng.choice((1, 1, 2))):
            process, newest = rng.choice((self.admin, self.front)), rng.choice((f"{plan.name}-new", None))
            self.spawn(process, self._redrive(process, request_id, newest), "redrive")
        if rng.random() < 0.3:
            self._cancel_later(plan, rng.randrange(1, 80))

    def _has_failures(self, request_id: str) -> bool:
        prefix = f"done/{WORKFLOW}/{request_id}/"
        return any(key.startswith(prefix) and not stored.record.ok for key, stored in self.store.items())

    def _redrive(self, process: Process, request_id: str, newest: str | None) -> Any:
        before = self.read(keys.request(WORKFLOW, request_id))
        try:
            yield from redrive(self.envs[process], WORKFLOW, request_id, newest)
        except NothingToRedrive:
            if self.read(before.key) == before and self._has_failures(request_id):
                raise Violation("failures were not found") from None
        except (Conflict, RequestExpired, RequestNotFound):
            pass

    # --- machinery --------------------------------------------------------------------------------------------------

    def spawn(self, process: Process, flow: Any, name: str, message: str = "") -> None:
        task = Task(process, flow, name, message)
        process.tasks[task] = None
        self.ready.append(task)

    def crash(self, process: Process) -> None:
        self.counts["fault crash"] += 1
        for task in process.tasks:
            task.dead = True
            if task.message and self.rng.random() < 0.5:
                self.messages.append((self.now, task.message))
            if task.name == "sweep":
                self.sweeps -= 1
                self.memory, self.owed = Memory(), deliver.Memory()
        process.tasks.clear()
        process.pending.clear()
        if process.lease:
            if self.rng.random() < 0.5:
                self.expire(process.lease)
            else:
                self.dying.append(process.lease)
            process.lease = 0

    def expire(self, lease: int) -> None:
        gone = self.leases.pop(lease, None)
        if gone:
            self.revision += 1
            for key in gone:
                self.store.pop(key, None)

    def publish(self, wakes: tuple[ops.Wake, ...]) -> None:
        for wake in wakes:
            due = self.now + int(wake.delay)
            if self.is_faulty:
                if self.rng.random() < self.p_lost:
                    self.counts["fault lost message"] += 1
                    continue
                if self.rng.random() < self.p_repeated:
                    self.counts["fault repeated message"] += 1
                    self.messages.append((self.now + self.rng.randrange(100), wake.invocation_id))
                if self.rng.random() < 0.1:
                    self.counts["fault late message"] += 1
                    due += self.rng.randrange(150)
            self.messages.append((due, wake.invocation_id))

    # --- the store --------------------------------------------------------------------------------------------------

    def holds(self, change: ops.Change) -> bool:
        for attribute, key, value, rule in change.compares:
            if self.mutations and (f"{change.name}:{rule}" in self.mutations or f"*:{rule}" in self.mutations):
                continue
            stored = self.store.get(key)
            if (0 if stored is None else getattr(stored, attribute)) != value:
                return False
        return all(not write.lease or write.lease in self.leases for write in change.writes)

    def apply(self, group: list[Pending]) -> int:
        """The revision at which all of the group was committed; 0: refused."""
        if not all(self.holds(pending.change) for pending in group):
            return 0
        seen: set[str] = set()
        for pending in group:
            for key in [write.key for write in pending.change.writes] + list(pending.change.deletes):
                if key in seen and not ("group-dedupes" in self.mutations and key.startswith(BLIND)):
                    raise Violation(f"a key twice in one transaction: {key}")
                seen.add(key)
        for pending in group:
            self.before(pending.change)
        lives = [self._is_live(pending.change) for pending in group]
        self.revision += 1
        done: set[str] = set()
        for pending in group:
            for write in pending.change.writes:
                if write.key not in done:
                    self._put(write)
                done.add(write.key)
            for key in pending.change.deletes:
                self._delete(key)
        for pending, was_live in zip(group, lives, strict=True):
            self.after(pending.change, was_live)
        return self.revision

    def _put(self, write: ops.Write) -> None:
        key, record, lease = write
        old = self.store.get(key)
        if old is None:
            self.store[key] = Stored(record, self.revision, self.revision, 1, lease)
        else:
            if old.lease in self.leases:
                self.leases[old.lease].discard(key)
            self.store[key] = Stored(record, old.created, self.revision, old.version + 1, lease)
        if lease:
            self.leases[lease].add(key)
        for kind, listed in self.listed.items():
            if key.startswith(kind):
                listed[key] = None

    def _delete(self, key: str) -> None:
        old = self.store.pop(key, None)
        if old is not None and old.lease in self.leases:
            self.leases[old.lease].discard(key)
        for kind, listed in self.listed.items():
            if key.startswith(kind):
                listed.pop(key, None)

    def flush(self, process: Process) -> None:
        """Sends one transaction to the store, or a group of them."""
        pending = process.pending
        group = [pending.pop(self.rng.randrange(len(pending)))]
        if self.groups and pending and self.rng.random() < 0.8:
            taken = _written(group[0].change)
            for other in list(pending):
                written = _written(other.change)
                clash = taken & written
                if "group-dedupes" in self.mutations:
                    clash = {key for key in clash if not key.startswith(BLIND)}
                if not clash and len(group) < 5:
                    group.append(other)
                    pending.remove(other)
                    taken |= written
            if len(group) > 1:
                self.counts["grouped"] += 1
        self.execute(group)

    def execute(self, group: list[Pending]) -> None:
        if self.is_faulty and self.p_unknown and self.rng.random() < self.p_unknown:
            self.counts["fault unknown outcome"] += 1
            fate = self.rng.random()
            if fate >= 0.75:
                is_submit = any(pending.change.name == "submit" for pending in group)
                delay = self.rng.randint(1, 30) if is_submit else self.rng.choice((5, 30, 100, 400))
                self.counts["fault applied late"] += 1
                self.limbo.append((self.now + delay, list(group)))
            elif fate >= 0.35:
                self.apply(group)
            for pending in group:
                pending.doubtful = True
                gives_up = "claim-gives-up" in self.mutations and pending.change.name == "claim"
                if gives_up and self.rng.random() < 0.5:
                    self.answer(pending, ops.Committed(False))
                elif not pending.task.dead:
                    # The same transaction again, some time later.
                    self.sequence += 1
                    heapq.heappush(self.sleeping, (self.now + 1, self.sequence, pending.task))
            return
        revision = self.apply(group)
        if revision:
            for pending in group:
                versions = tuple(
                    self.store[write.key].version if write.key in self.store else 0 for write in pending.change.writes
                )
                self.answer(pending, ops.Committed(True, revision, versions, pending.doubtful))
        elif len(group) > 1 and "group-never-splits" not in self.mutations:
            self.counts["split"] += 1
            for pending in group:
                self.execute([pending])
        else:
            for pending in group:
                self.answer(pending, ops.Committed(False, doubtful=pending.doubtful))

    def answer(self, pending: Pending, answer: ops.Committed) -> None:
        if "claim-not-read-back" in self.mutations and pending.change.name.endswith("claim"):
            answer = answer._replace(doubtful=False)
        if pending.change.name.endswith("claim"):
            self._note_claim(pending, answer)
        pending.answer = answer
        pending.task.op = None
        pending.task.answer = answer
        if not pending.task.dead:
            self.ready.append(pending.task)

    def _note_claim(self, pending: Pending, answer: ops.Committed) -> None:
        request_id = _request_of(pending.change) or ""
        own = next(write for write in pending.change.writes if write.key.startswith("own/"))
        stored, token = self.store.get(own.key), answer.revision
        if not answer.ok and stored is not None and stored.record == own.record:
            token = stored.created
        pending.task.claimed = (self.lives[request_id], token)

    def _stands(self, task: Task, spec: Any) -> bool:
        """Whether what the task claimed last is still its own."""
        own = self.store.get(keys.own(WORKFLOW, spec.request_id, spec.invocation_id))
        is_live = keys.live(WORKFLOW, spec.request_id) in self.store
        return is_live and own is not None and task.claimed == (self.lives[spec.request_id], own.created)

    # --- operations -------------------------------------------------------------------------------------------------

    def perform(self, task: Task, op: Any) -> Any:
        """Carries out one operation at this moment. Commits are not among them."""
        if isinstance(op, ops.Get):
            return [self.read(key) for key, _ in op.wants]
        if isinstance(op, ops.NextEvent):
            return task.events.pop(0)
        if isinstance(op, ops.Publish):
            return self.publish(op.wakes)
        if isinstance(op, ops.LoadManifest):
            return self.manifests[op.version]
        if isinstance(op, ops.Start):
            task.events = self.run_handler(task, op)
            return None
        if isinstance(op, ops.List):
            return self.list(op)
        return self._perform_on_files(op)

    def _perform_on_files(self, op: Any) -> Any:
        if isinstance(op, ops.Spill):
            self.files.setdefault(op.name, []).append(op.piece)
            return None
        if isinstance(op, ops.ReadDataset):
            return self.files.get(op.dataset.file)
        if isinstance(op, ops.RemoveFiles):
            for name in [name for name in self.files if name.startswith(f"{WORKFLOW}/{op.request_id}/")]:
                del self.files[name]
            return None
        if isinstance(op, ops.Deliver):
            return self._deliver(op.delivery)
        if isinstance(op, (ops.Settle, ops.Stop)):
            return None
        raise TypeError(op)

    def _deliver(self, delivery: Any) -> Any:
        request = self.read(keys.request(WORKFLOW, delivery.request_id)).record
        if delivery.kind == "result" and (request is None or request.state != "done"):
            return ops.Undelivered("There is no result.", is_final=True)
        if self.is_faulty and self.rng.random() < 0.8:
            self.counts["fault not delivered"] += 1
            return ops.Undelivered("down")
        self.owing[delivery.request_id] -= {
            key for key in self.listed["delivery/"] if self.store[key].record.delivery_id == delivery.delivery_id
        }
        return None

    def read(self, key: str) -> ops.Read[Any]:
        stored = self.store.get(key)
        if stored is None:
            return ops.Read(key, None)
        return ops.Read(key, stored.record, stored.created, stored.modified, stored.version)

    def list(self, op: ops.List) -> list[ops.Read[Any]]:
        listed = next((self.listed[kind] for kind in self.LISTED if op.prefix.startswith(kind)), self.store)
        if (
            "cleanup-before-delivery" in self.mutations
            and op.prefix.count("/") == 3
            and op.prefix.startswith("delivery/")
        ):
            return []
        found = sorted(key for key in listed if key.startswith(op.prefix) and key > op.after)
        return [self.read(key) for key in found[: op.limit]]

    # --- handlers ---------------------------------------------------------------------------------------------------

    def run_handler(self, task: Task, op: ops.Start) -> list[Any]:
        """The events of one run: what a mapper or reducer would yield, this time."""
        rng, spec = self.rng, op.task
        self.counts["handler run"] += 1
        task.running = (spec.invocation_id, task.claimed[0])
        self.runs[task.running] += 1
        plan = self.plan_of[spec.request_id]
        level = ids.depth_of(spec.invocation_id)
        step = f"s{level}"
        attempts = max(manifest.steps[step].max_attempts for manifest in (plan.manifest, plan.newest))
        if self.runs[task.running] > attempts + self.settings.max_lost + 1:
            raise Violation(f"too many runs: {spec.invocation_id}")
        if self._stands(task, spec):
            version = self.store[keys.request(WORKFLOW, spec.request_id)].record.manifest
            if spec.handler_version != self.manifests[version].handlers["map"]:
                raise Violation(f"run on a manifest of an earlier run: {spec.invocation_id}")
        pairs = [pair for item in op.items for pair in json.loads(item)]
        failed = [Failed(exception_type="E", exception_message="m", traceback="", stdout="", stderr="")]
        if spec.kind == "reduce":
            self._check_reduce(task, spec, pairs)
            mine = [pair for pair in pairs if pair[0] % spec.partitions == spec.partition]
            if rng.random() < self.p_fail:
                return failed
            halves = (mine[: len(mine) // 2], mine[len(mine) // 2 :])
            outputs = [Output(pairs=json.dumps(half).encode(), count=len(half)) for half in halves]
            return [*outputs, Finished(session=b"{}", stdout="", stderr="")]
        tokens = pairs[0][1]
        self.sequence += 1
        finished = Finished(session=json.dumps({"run": self.sequence}).encode(), stdout="out", stderr="")
        events: list[Any]
        if level < plan.depth and rng.random() < 0.85:
            count = rng.randint(0 if not tokens else 1, 5 if plan.depth - level < 3 else 3)
            children: list[list[int]] = [[] for _ in range(count)]
            for token in tokens:
                children[rng.randrange(count)].append(token)
            yielded = [json.dumps([number, child]).encode() for number, child in enumerate(children)]
            cut = rng.randint(0, count)
            events = [
                Direction(step_name=f"s{level + 1}"),
                Children(pairs=yielded[:cut]),
                Children(pairs=yielded[cut:]),
            ]
        else:
            events = [Direction(step_name="")]
            events.append(Output(pairs=json.dumps([[token, 1] for token in tokens]).encode(), count=len(tokens)))
        if rng.random() < self.p_fail:
            return events[: rng.randint(0, len(events))] + failed
        return [*events, finished]

    def _check_reduce(self, task: Task, spec: Any, pairs: list[Any]) -> None:
        """What a reducer is given must be whole and of one attempt, as long as its claim stands."""
        map_id = ids.map_of(spec.invocation_id)
        tokens = [pair[0] for pair in pairs]
        run = json.loads(spec.session).get("run", 0)
        if len(tokens) == len(set(tokens)) and run == self.mapped.get(map_id):
            return
        if self._stands(task, spec):
            raise Violation(f"a reducer was given what does not belong together: {spec.invocation_id}")

    # --- invariants -------------------------------------------------------------------------------------------------

    def _is_live(self, change: ops.Change) -> bool:
        request_id = _request_of(change)
        return request_id is None or keys.live(WORKFLOW, request_id) in self.store

    def before(self, change: ops.Change) -> None:
        for key, record, _ in change.writes:
            if isinstance(record, Invocation):
                old = self.store.get(key)
                if change.name != "redrive-page" and old is not None and RANK[record.state] < RANK[old.record.state]:
                    raise Violation(f"a state goes back: {change.name} {key}")
            elif key.startswith("done/") and key in self.store:
                raise Violation(f"done twice: {key}")
            elif key.startswith("count/"):
                parent = key.split("/")[3]
                if keys.done(WORKFLOW, ids.request_of(parent), parent) in self.store:
                    raise Violation(f"counted into a parent that ended: {key}")
        name = change.name.removesuffix("-claim")
        if name in ("seal", "collect"):
            invocation = next(write.record for write in change.writes if isinstance(write.record, Invocation))
            session = next((w.record for w in change.writes if w.key.startswith("session/")), None)
            if invocation.invocation_id in self.mapped:
                raise Violation(f"mapped twice: {invocation.invocation_id}")
            run = 0 if session is None else json.loads(bytes(session.values))["run"]
            self.mapped[invocation.invocation_id] = run
        if name == "cleanup-begin" and self.owing[change.writes[0].record.request_id]:
            raise Violation("removed before it was delivered")
        if name == "redrive-begin":
            self._check_redrive(change.writes[0].record.request_id)

    def after(self, change: ops.Change, was_live: bool) -> None:
        name, request_id = change.name, _request_of(change)
        self.counts[name] += 1
        if request_id is None:
            return
        if request_id in self.cleaned and change.writes:
            raise Violation(f"written after its removal: {name}")
        if name == "submit":
            self._check_submit(change, request_id)
        elif not was_live and not name.startswith(
            ("cleanup", "deliver", "put-off", "bury", "abandon", "redrive", "cancel-redriving")
        ):
            raise Violation(f"{name} after the end")
        if name in ("submit", "redrive-end"):
            self.lives[request_id] += 1
        self._check_counts(change)
        self._check_end_of(change, request_id)
        if name == "cleanup-last":
            self.cleaned.add(request_id)
        elif name == "release":
            self._check_release(change.writes[0].record)
        elif name == "retry":
            self.retries[change.writes[0].record.invocation_id, self.lives[request_id]] += 1
        elif name in ("claim", "collect-claim", "seal-claim"):
            self._check_claim(change)
        elif name == "redrive-end" and self._has_failures(request_id):
            raise Violation("a failure was not put back")
        if name == "complete" and any(write.key.startswith("result/") for write in change.writes):
            self._check_result(request_id)

    def _check_end_of(self, change: ops.Change, request_id: str) -> None:
        if keys.live(WORKFLOW, request_id) in change.deletes:
            self.ends[request_id] += 1
            if self.ends[request_id] > self.lives[request_id]:
                raise Violation("ended twice")
        ended = next((write.record for write in change.writes if isinstance(write.record, Request)), None)
        has_result = keys.result(WORKFLOW, request_id) in self.store
        if ended is not None and ended.state in ENDED and has_result != (ended.state == "done"):
            raise Violation(f"a result of another run: {change.name}")
        self.owing[request_id].update(write.key for write in change.writes if write.key.startswith("delivery/"))
        if change.name == "redrive-begin":
            self.owing[request_id].difference_update(change.deletes)

    def _check_submit(self, change: ops.Change, request_id: str) -> None:
        if request_id in self.submitted:
            raise Violation("submitted twice")
        plan = self.plan_of[request_id]
        if plan.is_keyed:
            if self.now < self.held_until[plan.name]:
                raise Violation("two requests for one idempotency key")
            self.held_until[plan.name] = change.writes[-1].record.expires_timestamp  # type: ignore[attr-defined]
        self.submitted.append(request_id)

    def _check_redrive(self, request_id: str) -> None:
        """Notes what must not run again: mappers that ended, and reduces that are done over what is all done well."""
        kept = self.kept[request_id] = set()

        def is_well(map_id: str) -> bool:
            done, sealed, record = (
                self.store.get(kind(WORKFLOW, request_id, map_id)) for kind in (keys.done, keys.seal, keys.invocation)
            )
            children = []
            if sealed is not None:
                seal = sealed.record
                children = [is_well(ids.child_of(map_id, seal.nonce, slot)) for slot in range(seal.children)]
            if sealed is not None or keys.dataset(WORKFLOW, request_id, map_id, "post_combine") in self.store:
                kept.add(map_id)
            if record is None or not all(children):
                return False
            for part in range(record.record.partitions):
                one = ids.reduce_of(map_id, part)
                reduced = self.store.get(keys.done(WORKFLOW, request_id, one))
                if reduced is not None and reduced.record.ok:
                    kept.add(one)
            if done is None or not done.record.ok:
                return False
            kept.update(ids.reduce_of(map_id, part) for part in range(record.record.partitions))
            return True

        if is_well(ids.root_of(request_id)):
            raise Violation("redriven though all is well")

    def _check_counts(self, change: ops.Change) -> None:
        for write in change.writes:
            if write.key.startswith("count/"):
                join = write.key.rpartition("/")[0]
                child = next(
                    w.key.rpartition("/")[2] for w in change.writes if w.key.startswith("done/") and "-" in w.key
                )
                if child in self.counted[join]:
                    raise Violation(f"counted twice: {child}")
                self.counted[join].add(child)

    def _check_release(self, parent: Invocation) -> None:
        counted = self.counted[f"count/{WORKFLOW}/{parent.request_id}/{parent.invocation_id}/{parent.epoch}"]
        if len(counted) != parent.need:
            raise Violation("released early")
        sealed = self.store[keys.seal(WORKFLOW, parent.request_id, parent.invocation_id)].record
        dones = [self._done(ids.child_of(parent.invocation_id, sealed.nonce, slot)) for slot in range(sealed.children)]
        if sum(not done.ok for done in dones) > sealed.tolerated:
            raise Violation("released beyond its tolerance")

    def _check_claim(self, change: ops.Change) -> None:
        claimed = change.writes[-1].record
        run = (claimed.invocation_id, self.lives[claimed.request_id])
        self.claims[run] += 1
        if claimed.failures > self.retries[run] or claimed.lost >= self.claims[run]:
            raise Violation(f"attempts of an earlier run count: {claimed.invocation_id}")
        if claimed.invocation_id in self.kept.get(claimed.request_id, ()):
            raise Violation(f"done well before the redrive, and run again: {claimed.invocation_id}")
        for kind in (keys.done, keys.seal):
            if kind(WORKFLOW, claimed.request_id, claimed.invocation_id) in self.store:
                raise Violation(f"run again: {claimed.invocation_id}")
        if claimed.direction == "map" and claimed.invocation_id in self.mapped:
            raise Violation(f"mapped already and run again: {claimed.invocation_id}")

    def _done(self, invocation_id: str) -> Any:
        stored = self.store.get(keys.done(WORKFLOW, ids.request_of(invocation_id), invocation_id))
        if stored is None:
            raise Violation(f"ended without a record of it: {invocation_id}")
        return stored.record

    def _check_result(self, request_id: str) -> None:
        """The result is every token that went in, once, but for those under failed children that were tolerated."""
        plan = self.plan_of[request_id]
        excused: set[int] = set()

        def result(invocation_id: str, tokens: set[int]) -> set[int]:
            done = self._done(invocation_id)
            if not done.ok:
                excused.update(tokens)
                return set()
            stored = self.store.get(keys.seal(WORKFLOW, request_id, invocation_id))
            expected = tokens
            if stored is not None:
                sealed, expected, given = stored.record, set(), set()
                for slot in range(sealed.children):
                    child = ids.child_of(invocation_id, sealed.nonce, slot)
                    number = max(n for n, bound in enumerate(sealed.bounds) if bound <= slot)
                    chunk = self.store[keys.chunk(WORKFLOW, request_id, invocation_id, sealed.nonce, number)].record
                    mine = set(self._pairs(chunk)[slot - sealed.bounds[number]][1])
                    given |= mine
                    expected |= result(child, mine)
                if given != tokens:
                    raise Violation("tokens lost on the way down")
            found = self._output(invocation_id)
            if len(found) != len(set(found)) or set(found) != expected:
                raise Violation(f"a wrong result: {invocation_id}")
            return expected

        whole = set(range(plan.tokens))
        got = result(ids.root_of(request_id), whole)
        if got & excused or got | excused != whole:
            raise Violation("the result is not what was asked for")

    def _output(self, invocation_id: str) -> list[int]:
        done = self._done(invocation_id)
        if done.partitions > 1:
            return [token for j in range(done.partitions) for token in self._output(ids.reduce_of(invocation_id, j))]
        return [pair[0] for pair in self._pairs(done.output)]

    def _pairs(self, dataset: Any) -> list[Any]:
        pieces = [bytes(dataset.pairs)] if dataset.file is None else self.files[dataset.file]
        return [pair for piece in pieces for pair in json.loads(piece)]

    # --- time -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One thing happens."""
        rng = self.rng
        self.now += 1
        while self.sleeping and self.sleeping[0][0] <= self.now:
            task = heapq.heappop(self.sleeping)[2]
            if not task.dead:
                self._wake(task)
        if self.limbo:
            due = [late for late in self.limbo if late[0] <= self.now]
            for late in due:
                self.limbo.remove(late)
                self.apply(late[1])
        if self.is_faulty:
            self._faults()
        if self.dying and rng.random() < 0.05:
            self.expire(self.dying.pop())
        if (
            rng.random() < self.p_sweep
            and self.sweeps < (2 if rng.random() < 0.1 else 1)
            and "no-sweep" not in self.mutations
        ):
            self.sweeps += 1
            self.spawn(self.sweeper, self._sweep(), "sweep")
        if self.submitted and rng.random() < 0.01:
            self._redrive_something()
        chance = rng.random()
        if chance < 0.35:
            sending = [process for process in self.processes if process.pending]
            if sending:
                self.flush(rng.choice(sending))
                return
        if chance < 0.55 and self.messages and self._take_message():
            return
        self._run_one()

    def _wake(self, task: Task) -> None:
        if isinstance(task.op, Pending):
            task.process.pending.append(task.op)
        else:
            self.ready.append(task)

    def _sweep(self) -> Any:
        yield from Sweep(self.envs[self.sweeper], WORKFLOW, self.memory, self.rng.random() < 0.7).run()
        env = self.envs[self.sweeper]
        for owed in (yield from deliver.due(env, WORKFLOW, self.owed, lambda key, target: self.rng.random() < 0.8)):
            yield from deliver.deliver(env, owed)
        self.sweeps -= 1

    def _faults(self) -> None:
        rng = self.rng
        chance = rng.random()
        if chance < self.p_crash:
            self.crash(rng.choice(self.processes if rng.random() < 0.4 else self.workers))
        elif chance < self.p_crash + self.p_expire:
            worker = rng.choice(self.workers)
            if worker.lease in self.leases:
                self.counts["fault expired lease"] += 1
                self.expire(worker.lease)
        elif chance < self.p_crash + self.p_expire + 0.002 and self.messages:
            self.counts["fault queue lost everything"] += 1
            self.messages.clear()
            if rng.random() < 0.5:
                self.memory.hurry()

    def _take_message(self) -> bool:
        worker = self.rng.choice(self.workers)
        if len(worker.tasks) >= self.slots:
            return False
        position = self.rng.randrange(len(self.messages))
        due, invocation_id = self.messages[position]
        if due > self.now:
            return False
        self.messages[position] = self.messages[-1]
        self.messages.pop()
        flow = handle(self.envs[worker], WORKFLOW, ids.request_of(invocation_id), invocation_id)
        self.spawn(worker, flow, "handle", invocation_id)
        return True

    def _run_one(self) -> None:
        ready = self.ready
        if not ready:
            return
        position = self.rng.randrange(len(ready))
        task = ready[position]
        ready[position] = ready[-1]
        ready.pop()
        if not task.dead and (task.op is None or self._carry_out(task)):
            self._advance(task)

    def _carry_out(self, task: Task) -> bool:
        """Performs what the task waits for; False: it has stalled."""
        rng = self.rng
        if self.is_faulty and self.p_stall and rng.random() < self.p_stall:
            self.counts["fault stall"] += 1
            self.sequence += 1
            heapq.heappush(self.sleeping, (self.now + rng.choice((10, 60, 300)), self.sequence, task))
            return False
        op, task.op = task.op, None
        if isinstance(op, (ops.Start, ops.NextEvent)) and self.is_faulty and rng.random() < 0.01:
            self.counts["fault handed back"] += 1
            task.answer = ops.HandBack()
            if isinstance(op, ops.NextEvent):
                self.runs[task.running] -= 1  # cut short by the worker, which is no attempt and no loss
        else:
            task.answer = self.perform(task, op)
        return True

    def _advance(self, task: Task) -> None:
        answer, task.answer = task.answer, None
        try:
            op = task.flow.throw(answer) if isinstance(answer, ops.HandBack) else task.flow.send(answer)
        except (StopIteration, ops.HandBack):
            task.process.tasks.pop(task, None)
            return
        if isinstance(op, int):
            self.sequence += 1
            heapq.heappush(self.sleeping, (self.now + op, self.sequence, task))
        elif isinstance(op, ops.Commit):
            self._begin_commit(task, op.change)
        else:
            task.op = op
            self.ready.append(task)

    def _begin_commit(self, task: Task, change: ops.Change) -> None:
        if "no-abandon" in self.mutations and change.name == "abandon":
            task.answer = ops.Committed(True)
            self.ready.append(task)
            return
        for mutation in self.mutations:
            name, _, prefix = mutation.partition("!")
            if prefix and name == change.name:
                change = change._replace(deletes=tuple(key for key in change.deletes if not key.startswith(prefix)))
        if "exceed-keeps-open" in self.mutations and change.name == "exceed":
            change = change._replace(writes=tuple(w for w in change.writes if not w.key.startswith("seal/")))
        if "children-before-seal" in self.mutations and change.name == "seal":
            self._send_children(change)
        task.op = Pending(change, task.process, task)
        task.process.pending.append(task.op)

    def _send_children(self, change: ops.Change) -> None:
        mapped, sealed = change.writes[0].record, change.writes[1].record
        for slot in range(min(sealed.children, sealed.window)):  # type: ignore[attr-defined]
            child = ids.child_of(mapped.invocation_id, sealed.nonce, slot)  # type: ignore[attr-defined]
            self.messages.append((self.now, child))

    def run(self) -> None:
        """Lives through the faults and then to the end of everything.

        :raises Violation: an invariant was broken, or something never ended.
        """
        while self.now < self.faulty_for:
            self.step()
        self.is_faulty = False
        self.p_sweep, self.p_lost = 0.03, 0
        for plan in self.plans.values():
            if plan.is_keyed and not self.answers[plan.name]:
                self._client(plan)  # a client with a key asks until it is answered
        limit = self.now + 60_000  # the widest worlds, with one slot, take half of it
        quiet = 0
        while quiet <= 3:
            self.step()
            if self.now > limit:
                not_cleaned = [one for one in self.submitted if one not in self.cleaned]
                left = (self.store.get(keys.request(WORKFLOW, one)) for one in not_cleaned)
                states = ["gone" if stored is None else stored.record.state for stored in left]
                raise Violation(f"something hangs: {states}")
            if self.now % 50 == 0 and self._is_over():
                quiet += 1
        self._check_end()

    def _is_over(self) -> bool:
        outstanding = any(self.listed[kind] for kind in ("live/", "expire/", "delivery/", "redrive/"))
        busy = any(task.name != "sweep" for process in self.processes for task in process.tasks)
        return not outstanding and not self.limbo and not self.messages and not busy

    def _check_end(self) -> None:
        for request_id in self.submitted:
            if self.ends[request_id] != self.lives[request_id] or request_id not in self.cleaned:
                raise Violation(f"not ended and removed: {request_id}")
        left = [key for key in self.store if not key.startswith(("idempotency/", "load/"))]
        if left:
            raise Violation(f"left over: {left[0]}")
        for name, answers in self.answers.items():
            if len(answers) > 1 and self.plans[name].is_keyed and self.plans[name].holds > self.now:
                raise Violation("one idempotency key was answered with several requests")


def _written(change: ops.Change) -> set[str]:
    return {write.key for write in change.writes} | set(change.deletes)


def _request_of(change: ops.Change) -> str | None:
    if change.name in ("reap", "load"):
        return None
    if change.name == "submit":
        return change.writes[1].record.request_id  # type: ignore[attr-defined]
    key = change.writes[0].key if change.writes else change.deletes[0]
    parts = key.split("/")
    return parts[3] if parts[0] == "entities" else parts[2]


def survey(
    first: int, seeds: int, mutations: frozenset[str] = frozenset(), most: int = 0
) -> tuple[Counter[str], dict[int, str]]:
    """Runs so many worlds. Answers how often everything happened, and the violations by seed.

    It ends after ``most`` violations, if that is not 0.
    """
    counts: Counter[str] = Counter()
    violations: dict[int, str] = {}
    logging.getLogger("mr.engine").setLevel(logging.CRITICAL)  # tens of thousands of failures are meant to happen
    for seed in range(first, first + seeds):
        world = World(seed, mutations)
        try:
            world.run()
        except Violation as violation:
            violations[seed] = str(violation)
        except (AttributeError, AssertionError, Conflict, IndexError, KeyError, TypeError) as error:
            if not mutations:
                raise
            violations[seed] = repr(error)  # without a rule, flows may meet what cannot be
        counts.update(world.counts)
        counts["steps"] += world.now
        if most and len(violations) >= most:
            break
    return counts, violations


if __name__ == "__main__":
    import sys
    import time

    started = time.time()
    counts, violations = survey(int(sys.argv[1]), int(sys.argv[2]), frozenset(sys.argv[3:]))
    print(f"{time.time() - started:.1f} s", dict(sorted(counts.items())))
    print(len(violations), dict(list(violations.items())[:8]))
