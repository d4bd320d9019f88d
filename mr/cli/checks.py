"""The checks of ``jobx doctor``. Each looks at one thing and raises nothing that a person could have caused."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mr import app
from mr.cli import deliveries
from mr.config import Config, warnings
from mr.errors import InvalidConfig, JobxError, QueueUnavailable, RunnerBroken
from mr.findings import MAX_SKEW_S, Finding, counted, size
from mr.handlers.header import make_handler
from mr.handlers.limits import Limits
from mr.handlers.pool import RunnerPool
from mr.handlers.protocol import Failed, Output, Task
from mr.kv.base import Store
from mr.model import catalog, keys, tokens, workers
from mr.model.catalog import Snapshot
from mr.model.entities import Invocation, Request, decode
from mr.model.workers import Seen
from mr.queue.base import Backlog
from mr.urls import masked_url
from mr.web import waiting
from mr.web.waiting import Lack
from mr.worker.worker import check_sandbox

_COMMITS = 5
_SLOW_S = 0.1
_REQUESTS = 100
"""How many running requests of a workflow are asked what they wait for, the oldest first."""
_SAMPLES = 20
"""How many requests of a workflow tell something of clocks, the newest first."""
_NAMED = 3
_LEASE_S = 10.0
_RUN_S = 20.0
_DEEP = 10_000
"""Messages that wait in one topic and are a reason to think."""

_STARTS_WORKER = "Start one: `jobx worker`."


@dataclass
class Facts:
    """What the store told, for several checks."""

    workflows: dict[str, Snapshot] = field(default_factory=dict)
    workers: list[Seen] = field(default_factory=list)
    stuck: dict[str, list[tuple[Request, list[Lack]]]] = field(default_factory=dict)
    """By workflow, running requests that wait for a capability which no live worker offers, the oldest first."""
    has_tokens: bool = False
    begun: list[tuple[Request, Invocation]] = field(default_factory=list)
    """Some of the newest requests, each with its root."""

    def of(self, workflow: str) -> list[Seen]:
        return [seen for seen in self.workers if workflow in seen.workflows]


# --- settings ----------------------------------------------------------------------------------------------------


def settings(config: Config, environ: Mapping[str, str]) -> list[Finding]:
    found = [Finding("warning", "settings", text, "Unset it, or correct its name.") for text in warnings(environ)]
    places = ", ".join(masked_url(url) for url in (config.kv_url, config.queue_url, config.fs_url))
    given = counted(len(config.sources), "setting")
    return [
        *found,
        Finding("ok", "settings", f"{given} from the environment (see `jobx config`); JobX is at {places}."),
    ]


# --- store -------------------------------------------------------------------------------------------------------


def store(config: Config) -> tuple[list[Finding], Facts | None]:
    """None: the store could not be asked."""
    where = masked_url(config.kv_url)
    try:
        opened = app.open_store(config)
    except JobxError as error:
        return [_out_of_reach(config, "store", "kv_url", error)], None
    try:
        try:
            facts = _ask(opened, config.workflow_names)
        except JobxError as error:
            return [_out_of_reach(config, "store", "kv_url", error)], None
        try:
            found = [_latency(opened, where)]
        except JobxError as error:
            found = [_out_of_reach(config, "store", "kv_url", error)]
        return [*found, *opened.examine(), *_clocks(facts), *_undelivered(opened, config, facts)], facts
    finally:
        opened.close()


def _out_of_reach(config: Config, check: str, setting: str, error: JobxError) -> Finding:
    variable = config.sources.get(setting, "MR_DATA_DIR")
    if isinstance(error, InvalidConfig):
        return Finding("problem", check, _sentence(error))
    if getattr(config, setting).startswith(("sqlite:", "file:")):
        return Finding("problem", check, _sentence(error), f"Make that path usable, or name another in {variable}.")
    # What stores raise says what to do already.
    advice = "" if check == "store" else f"Start it, see to the way there, or correct {variable}."
    return Finding("problem", check, _sentence(error), advice)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith((".", "!", "?", ")")) else f"{text}."


def _undelivered(opened: Store, config: Config, facts: Facts) -> list[Finding]:
    try:
        return deliveries.examine(opened, config, facts.workflows)
    except JobxError:
        # That the store is away is told already.
        return []


def _latency(opened: Store, where: str) -> Finding:
    times = []
    for _ in range(_COMMITS):
        began = time.monotonic()
        # A change as any other, that leaves nothing behind and needs no right to any key.
        lease = opened.grant(_LEASE_S)
        times.append(time.monotonic() - began)
        opened.revoke(lease)
    median = statistics.median(times)
    text = f"{where} answers; a change takes {1000 * median:.2g} ms (median of {_COMMITS})."
    if median > _SLOW_S:
        advice = "Look at its load, its disk and the way there: every step of every request waits for it."
        return Finding("warning", "store", text, advice)
    return Finding("ok", "store", text)


def _ask(opened: Store, served: Sequence[str]) -> Facts:
    facts = Facts()
    for name in catalog.workflow_names(opened, served):
        facts.workflows[name] = catalog.read(opened, name, served)
    facts.workers = workers.everyone(opened, served)
    for name in facts.workflows:
        facts.stuck[name] = list(_stuck(opened, name, facts))
    facts.begun = list(_begun(opened, facts.workflows))
    if not served:
        facts.has_tokens = tokens.any_stored(opened)
    return facts


def _stuck(opened: Store, workflow: str, facts: Facts) -> Iterable[tuple[Request, list[Lack]]]:
    registered = [seen.registration for seen in facts.of(workflow)]
    current = facts.workflows[workflow]
    manifests = {current.version: current.manifest}
    live = opened.list(keys.lives(workflow), limit=_REQUESTS, keys_only=True)
    requests = [keys.request(workflow, entry.key.rpartition("/")[2]) for entry in live]
    for entry in opened.get(requests):
        if entry is None:
            continue
        request = decode(Request, entry.key, entry.value)
        if request.manifest not in manifests:
            manifests[request.manifest] = catalog.read_manifest(opened, workflow, request.manifest)
        if lacks := waiting.waited_for(opened, request, manifests[request.manifest], registered):
            yield request, lacks


# --- clocks ------------------------------------------------------------------------------------------------------


def _clocks(facts: Facts) -> list[Finding]:
    """What workers wrote tells of their clocks, where it is in the future, or before what it followed."""
    now = time.time()
    behind: dict[str, float] = {}
    ahead: dict[str, float] = {}
    hosts = {seen.registration.worker_name: seen.registration.host for seen in facts.workers}
    for seen in facts.workers:
        early = seen.registration.registered_timestamp - now
        ahead[seen.registration.host] = max(ahead.get(seen.registration.host, 0.0), early)
    for request, root in facts.begun:
        if root.started_timestamp is not None and root.worker is not None:
            host = hosts.get(root.worker, root.worker)
            behind[host] = max(behind.get(host, 0.0), request.created_timestamp - root.started_timestamp)
    advice = (
        "Have all machines keep time by NTP (chronyd, systemd-timesyncd): retries and retention go by their clocks."
    )
    found = [
        Finding("warning", "clock", f"The clock of {host} is at least {seconds:.1f} s ahead of this machine's.", advice)
        for host, seconds in sorted(ahead.items())
        if seconds > MAX_SKEW_S
    ]
    found += [
        Finding(
            "warning",
            "clock",
            f"A worker on {host} began a request {seconds:.1f} s before it was posted: its clock is behind that of "
            "the front end.",
            advice,
        )
        for host, seconds in sorted(behind.items())
        if seconds > MAX_SKEW_S
    ]
    if not found and (ahead or behind):
        text = "Nothing that workers wrote is in the future, or before what it followed."
        found.append(Finding("ok", "clock", text))
    return found


def _begun(opened: Store, names: Iterable[str]) -> Iterable[tuple[Request, Invocation]]:
    for name in names:
        entries = opened.list(keys.requests(name), limit=_SAMPLES, reverse=True)
        requests = [decode(Request, entry.key, entry.value) for entry in entries]
        roots = opened.get([keys.invocation(name, one.request_id, one.invocation_id) for one in requests])
        for request, root in zip(requests, roots, strict=True):
            if root is not None:
                yield request, decode(Invocation, root.key, root.value)


# --- queue -------------------------------------------------------------------------------------------------------


def queue(config: Config) -> tuple[list[Finding], list[Backlog] | None]:
    """None: what waits in the queue could not be asked."""
    try:
        opened = app.open_queue(config)
    except JobxError as error:
        return [_out_of_reach(config, "queue", "queue_url", error)], None
    try:
        try:
            opened.publish([])
            return opened.examine(), opened.backlogs()
        except QueueUnavailable as error:
            return [_out_of_reach(config, "queue", "queue_url", error)], None
    finally:
        opened.close()


def topics(backlogs: list[Backlog], facts: Facts, served: Sequence[str]) -> list[Finding]:
    """What waits in the queue, where that is not as it should be."""
    found = []
    gone = set()
    total = 0
    for topic, channel, waits, _ in backlogs:
        kind, _, rest = topic.partition(".")
        workflow, _, what = rest.partition(".")
        if kind != "mr" or not what or (served and workflow not in served):
            continue
        total += waits
        listening = {seen.registration.channel for seen in facts.of(workflow)}
        if workflow not in facts.workflows:
            gone.add(topic)
        elif waits and channel and listening and channel not in listening:
            text = f"{counted(waits, 'message')} in {topic} on the channel {channel!r}, which nobody consumes."
            advice = (
                f"Workers listen on {_some(sorted(listening))}: delete the channel if no MR_CHANNEL names it any more."
            )
            found.append(Finding("warning", "queue", text, advice))
        elif waits > _DEEP:
            text = f"{counted(waits, 'message')} in {topic} wait to be taken."
            found.append(Finding("warning", "queue", text, "Where that keeps growing, start more workers."))
    if gone:
        text = f"There are topics of workflows that are gone: {_some(sorted(gone))}."
        found.append(Finding("warning", "queue", text, "They do no harm; delete them where they hold messages."))
    return found or [Finding("ok", "queue", f"{counted(total, 'message')} to be taken.")]


# --- files -------------------------------------------------------------------------------------------------------


def files(config: Config) -> tuple[list[Finding], str]:
    """With what tells these files from others; empty where that is not known."""
    where = masked_url(config.fs_url)
    name = f"doctor-{secrets.token_hex(4)}"
    try:
        opened = app.open_files(config)
        writer = opened.create(f"{name}/file")
        try:
            writer.append(b"well")
            writer.settle()
        finally:
            writer.discard()
        lines = opened.lines(f"{name}/file")
        is_well = lines is not None and list(lines) == [b"well"]
        opened.remove_tree(name)
        identity = opened.identity()
    except JobxError as error:
        return [_out_of_reach(config, "files", "fs_url", error)], ""
    if not is_well:
        text = f"What was written to {where} does not read back."
        return [Finding("problem", "files", text, "Mend that filesystem, or name another in MR_FS_URL.")], ""
    return [Finding("ok", "files", f"{where} can be written and read."), *opened.examine()], identity


def shared_files(config: Config, identity: str, seen: Sequence[Seen]) -> list[Finding]:
    """Whether workers see the same files as this machine."""
    others = sorted({one.registration.host for one in seen if one.registration.files not in ("", identity)})
    where = masked_url(config.fs_url)
    if others and identity:
        text = f"{where} here is another directory than for workers on {_some(others)}."
        advice = (
            "Give all machines the same files: mount one shared directory at that path, or use an object store. "
            "Until then, data too large for the store is not found."
        )
        return [Finding("problem", "files", text, advice)]
    hosts = {one.registration.host for one in seen}
    if len(hosts) > 1:
        return [Finding("ok", "files", f"It is one and the same for workers on {len(hosts)} machines.")]
    return []


# --- handlers ----------------------------------------------------------------------------------------------------


def sandbox(config: Config) -> list[Finding]:
    """Runs a handler as a worker would. To be called in the main thread, whose end ends what it starts."""
    began = time.monotonic()
    try:
        check_sandbox(config)
        problem = asyncio.run(asyncio.wait_for(_run_one(config), _RUN_S))
    except (InvalidConfig, RunnerBroken) as error:
        return [
            Finding("problem", "sandbox", _sentence(error), "A worker started here would end with that: correct it.")
        ]
    except (TimeoutError, asyncio.TimeoutError):
        problem = f"it did not end within {_RUN_S:g} s"
    if problem:
        text = f"A handler that does nothing cannot be run: {problem}"
        advice = "See that /tmp is writable, and that there are processes and memory left (ulimit -a)."
        return [Finding("problem", "sandbox", text, advice)]
    limits = Limits.of(config)
    text = (
        f"A handler ran in a process of its own, after {1000 * (time.monotonic() - began):.0f} ms. Each may take "
        f"{size(limits.memory_bytes)}, {limits.processes} processes, {limits.open_files} open files and "
        f"{limits.wall_s:g} s."
    )
    return [Finding("ok", "sandbox", text), *_limits_here(config)]


async def _run_one(config: Config) -> str:
    """What went wrong; empty: nothing."""
    source = "def reducer(results):\n    yield 'well', 1\n"
    handler = make_handler("doctor", "check", "", "reducer", source)
    task = Task(
        task_id=1,
        kind="reduce",
        handler_name=handler.handler_name,
        handler_version=handler.version,
        handler=handler,
        workflow_name="doctor",
        request_id="doctor",
        invocation_id="doctor",
    )
    pool = RunnerPool(1, Limits.of(config), config.workflow_scope_factory_fq_class or None)
    await pool.start()
    try:
        runner = await pool.acquire()
        output = b""
        async for event in runner.run(task, [b"[]"]):
            if isinstance(event, Failed):
                return f"{event.exception_type}: {event.exception_message}"
            if isinstance(event, Output):
                output += event.pairs
        pool.release(runner)
        return "" if b"well" in output else "it said nothing"
    finally:
        await pool.close()


def _limits_here(config: Config) -> list[Finding]:
    found = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < config.runner_open_files:
        text = f"This machine allows {most} open files (ulimit -Hn), fewer than MR_RUNNER_OPEN_FILES."
        found.append(Finding("warning", "sandbox", text, "Raise that limit, or lower the setting."))
    memory = _memory_bytes()
    if memory and config.runner_memory_bytes > memory:
        text = f"One runner may take {size(config.runner_memory_bytes)}, and this machine has {size(memory)}."
        found.append(Finding("warning", "sandbox", text, "Lower MR_RUNNER_MEMORY_BYTES."))
    return found


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


# --- workers -----------------------------------------------------------------------------------------------------


def live_workers(facts: Facts, served: Sequence[str]) -> list[Finding]:
    found = []
    for name in facts.workflows:
        there = facts.of(name)
        if not there:
            stuck = len(facts.stuck[name])
            waits = f" {_requests(stuck)} for one." if stuck else ""
            text = f"No live worker serves the workflow {name!r}.{waits}"
            found.append(Finding("problem", "workers", text, _STARTS_WORKER))
        channels = sorted({seen.registration.channel for seen in there})
        if len(channels) > 1:
            text = f"The workers of {name!r} listen on several channels: {_some(channels)}."
            advice = "Give all the same MR_CHANNEL: each channel gets every message, so work is looked at twice."
            found.append(Finding("warning", "workers", text, advice))
    versions = Counter(seen.registration.version for seen in facts.workers)
    if len(versions) > 1:
        text = f"Workers run several versions of JobX: {_some(sorted(versions))}."
        found.append(Finding("warning", "workers", text, "Finish the upgrade: restart those of the old version."))
    missing = [name for name in served if name not in facts.workflows]
    if missing:
        text = f"MR_WORKFLOW_NAMES names {_some(missing)}, and there is no such workflow."
        found.append(Finding("warning", "workers", text, "Correct it, or make the workflow: `jobx apply`."))
    if not facts.workflows:
        found.append(Finding("ok", "workers", "There is no workflow yet that they could serve: see `jobx apply`."))
    elif facts.workers:
        runners = sum(seen.registration.runners for seen in facts.workers)
        hosts = sorted({seen.registration.host for seen in facts.workers})
        text = f"{counted(len(facts.workers), 'live worker')} on {_some(hosts)}, with {counted(runners, 'runner')}."
        found.append(Finding("ok", "workers", text))
    return found


def capabilities(facts: Facts) -> list[Finding]:
    """What handlers require and nobody offers, where there are workers at all."""
    found = []
    for name, snapshot in facts.workflows.items():
        there = facts.of(name)
        offered = workers.offered(seen.registration for seen in there)
        missing: dict[str, list[str]] = {}
        if there:
            for need in waiting.needs(snapshot.manifest):
                if need.capability not in offered:
                    missing.setdefault(need.capability, []).append(f"{need.handler} (step {need.step})")
            for _, lacks in facts.stuck[name]:
                for lack in lacks:
                    missing.setdefault(lack.capability, [f"{lack.handler} (step {lack.step})"])
        found += [_missing(name, capability, users, facts.stuck[name]) for capability, users in sorted(missing.items())]
    if not found and facts.workers:
        found.append(Finding("ok", "capabilities", "All that handlers require is offered by a live worker."))
    return found


def _missing(workflow: str, capability: str, users: list[str], stuck: list[tuple[Request, list[Lack]]]) -> Finding:
    waits = [request.request_id for request, lacks in stuck if any(lack.capability == capability for lack in lacks)]
    text = f"No live worker of {workflow!r} has the capability {capability!r}, which is required by {_some(users)}."
    if waits:
        text += f" {_requests(len(waits))} for it: {_some(waits)}."
    advice = f"Start a worker with MR_SYSTEM_CAPABILITIES={capability} (and what else it is to do)."
    return Finding("problem", "capabilities", text, advice)


# --- the rest ----------------------------------------------------------------------------------------------------


def exposure(config: Config, has_tokens: bool) -> list[Finding]:
    try:
        config.check_exposure(lambda: has_tokens)
    except InvalidConfig as error:
        return [Finding("problem", "exposure", _sentence(error), "Until then a front end refuses to start.")]
    if config.api_tokens or has_tokens:
        return [Finding("ok", "exposure", f"{config.bind} takes calls with an API token.")]
    if config.bind.is_local:
        return [
            Finding("ok", "exposure", f"Only this machine can reach {config.bind}, and it takes calls from anyone.")
        ]
    text = f"{config.bind} takes calls from everyone who can reach it (MR_ALLOW_ANONYMOUS)."
    return [Finding("warning", "exposure", text, "Make tokens: `jobx token create`.")]


def graphviz() -> list[Finding]:
    program = shutil.which("dot")
    if program is None:
        text = "There is no program 'dot' on the PATH: drawings of requests are answered with 501."
        return [Finding("warning", "graphviz", text, "Install graphviz where front ends run.")]
    try:
        done = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding("warning", "graphviz", f"{program} cannot be run: {error}", "Install graphviz again.")]
    return [Finding("ok", "graphviz", f"{(done.stderr or done.stdout).strip() or program}.")]


def _requests(number: int) -> str:
    return "1 running request waits" if number == 1 else f"{number} running requests wait"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
