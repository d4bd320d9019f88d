"""What ``jobx doctor`` finds, and what it says is to be done."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mr.cli import checks, doctor, submitting, tokens
from mr.cli.checks import Facts
from mr.config import Config
from mr.errors import FilesUnavailable, StoreUnavailable
from mr.findings import counted, judge_clock, size, skew
from mr.fs.local import LocalFiles
from mr.kv.base import Put, Txn
from mr.kv.sqlite import SqliteStore
from mr.local import disk
from mr.model import catalog, keys
from mr.model.entities import Invocation, decode, encode
from mr.model.workers import Registration, Seen
from mr.queue.base import Backlog, Message
from mr.queue.sqlite import SqliteQueue
from tests.unit.cli_runs import Commands


def seen(name: str = "one", *workflows: str, **facts: Any) -> Seen:
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
        "files": "",
    }
    return Seen(Registration(**{**values, **facts}), workflows or ("words",))


def register(store: SqliteStore, one: Seen) -> None:
    key = keys.worker(one.workflows[0], one.registration.worker_name)
    store.commit([Txn(puts=(Put(key, encode(one.registration)),))])


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def found_by(commands: Commands, **environ: str) -> tuple[int, list[dict[str, str]]]:
    done = commands.jobx("doctor", "--json", **environ)
    document = json.loads(done.stdout)
    assert document["is_well"] is (done.exit_code == 0)
    for finding in document["findings"]:
        assert finding["level"] in ("ok", "warning", "problem"), finding
        assert finding["text"].endswith((".", ")", "?")), finding
    return done.exit_code, document["findings"]


def of(findings: Sequence[dict[str, str]], check: str, level: str) -> list[str]:
    return [
        f"{finding['text']} {finding['advice']}"
        for finding in findings
        if (finding["check"], finding["level"]) == (check, level)
    ]


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_fresh_platform_is_well(commands: Commands) -> None:
    code, findings = found_by(commands)
    assert code == 0
    assert not [finding for finding in findings if finding["level"] == "problem"]
    checked = [finding["check"] for finding in findings]
    for check in ("settings", "store", "queue", "files", "disk", "sandbox", "workers", "exposure", "graphviz"):
        assert check in checked
    [ran] = of(findings, "sandbox", "ok")
    assert "1 GiB" in ran
    assert len({json.dumps(finding) for finding in findings}) == len(findings), "nothing is told twice"


def test_a_line_a_finding_with_the_level_first(commands: Commands) -> None:
    done = commands.jobx("doctor", MR_KVURL="x", MR_BIND="0.0.0.0:80")
    assert done.exit_code == 1
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert {len(line) for line in lines} == {3}
    assert {line[0] for line in lines} == {"ok", "warning", "problem"}
    assert "1 problem, 1 warning." in done.stderr


def test_unknown_variables_are_warnings(commands: Commands) -> None:
    code, findings = found_by(commands, MR_RUNNNERS="2")
    assert code == 0
    [told] = of(findings, "settings", "warning")
    assert "MR_RUNNERS" in told


def test_a_wrong_setting_is_the_only_finding(commands: Commands) -> None:
    code, findings = found_by(commands, MR_KV_URL="nonsense")
    assert code == 1
    [finding] = findings
    assert (finding["level"], finding["check"]) == ("problem", "settings")
    assert "MR_KV_URL" in finding["text"]
    assert finding["advice"]


def test_what_cannot_be_used_is_told_and_all_else_is_checked(commands: Commands, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, findings = found_by(commands, MR_DATA_DIR=str(blocked / "data"))
    assert code == 1
    for check in ("store", "queue", "files"):
        [told] = of(findings, check, "problem")
        assert str(blocked) in told
        assert "MR_DATA_DIR" in told
    assert of(findings, "sandbox", "ok")
    assert of(findings, "exposure", "ok")


def test_a_file_that_is_no_store_is_told(commands: Commands, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    SqliteQueue(other).close()
    code, findings = found_by(commands, MR_KV_URL=f"sqlite://{other}")
    assert code == 1
    [told] = of(findings, "store", "problem")
    assert "not a store of JobX" in told
    assert "MR_KV_URL" in told


def test_a_check_that_hangs_or_breaks_is_a_problem_among_others(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()

    def hang(config: Config) -> Any:
        hangs.wait()

    def break_down(config: Config) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(doctor, "_PATIENCE_S", 3.0)
    monkeypatch.setattr(checks, "store", hang)
    monkeypatch.setattr(checks, "files", break_down)
    code, findings = found_by(commands)
    hangs.set()
    assert code == 1
    [told] = of(findings, "store", "problem")
    assert "No answer within" in told
    [told] = of(findings, "files", "problem")
    assert "a bug" in told
    assert of(findings, "queue", "ok")


# --- workers, capabilities and requests -----------------------------------------------------------------------------


def test_a_workflow_without_workers_and_what_waits_for_one_is_a_problem(commands: Commands) -> None:
    commands.create_words()
    commands.printed(submitting.create, "words", "wordcount", "-a", "text", "a")
    code, findings = found_by(commands)
    assert code == 1
    [told] = of(findings, "workers", "problem")
    assert "'words'" in told
    assert "1 running request waits" in told
    assert "jobx worker" in told


def needing(commands: Commands, capability: str) -> None:
    def edit(draft: catalog.Draft) -> None:
        draft.handlers["split"] = msgspec.structs.replace(
            draft.handlers["split"], required_capability=capability, version=f"v-{capability}"
        )

    store = commands.store()
    catalog.change(store, "words", edit)
    store.close()


def test_a_capability_that_no_live_worker_has_is_a_problem(commands: Commands) -> None:
    commands.create_words()
    needing(commands, "gpu")
    request_id = commands.printed(submitting.create, "words", "wordcount", "-a", "text", "a")["primary_key"]
    store = commands.store()
    register(store, seen("one", "words"))
    code, findings = found_by(commands)
    assert code == 1
    [told] = of(findings, "capabilities", "problem")
    for part in ("'gpu'", "split (step count)", "1 running request waits", request_id, "MR_SYSTEM_CAPABILITIES=gpu"):
        assert part in told
    register(store, seen("two", "words", capabilities=["gpu"]))
    store.close()
    code, findings = found_by(commands)
    assert code == 0
    assert of(findings, "capabilities", "ok")
    assert "2 live workers" in of(findings, "workers", "ok")[0]


def test_what_a_request_of_an_earlier_manifest_waits_for_is_told(commands: Commands) -> None:
    commands.create_words()
    needing(commands, "gpu")
    request_id = commands.printed(submitting.create, "words", "wordcount", "-a", "text", "a")["primary_key"]
    needing(commands, "none")
    store = commands.store()
    register(store, seen("one", "words"))
    store.close()
    code, findings = found_by(commands)
    assert code == 1
    [told] = of(findings, "capabilities", "problem")
    assert "'gpu'" in told
    assert request_id in told


def test_only_the_workflows_that_are_served_here_are_looked_at(commands: Commands) -> None:
    commands.create_words()
    store = commands.store()
    catalog.create_workflow(store, "words2", "")
    register(store, seen("one", "words"))
    store.close()
    assert found_by(commands)[0] == 1
    code, findings = found_by(commands, MR_WORKFLOW_NAMES="words,later")
    assert code == 0
    [told] = of(findings, "workers", "warning")
    assert "later" in told


def test_workers_that_differ_are_warnings() -> None:
    facts = Facts(
        workflows={"words": None},  # type: ignore[dict-item]
        workers=[seen("one"), seen("two", version="2", channel="other")],
        stuck={"words": []},
    )
    told = [finding.text for finding in checks.live_workers(facts, ()) if finding.level == "warning"]
    assert len(told) == 2
    assert "channels: general_worker, other" in told[0]
    assert "versions of JobX: 1, 2" in told[1]


# --- store, queue and files -----------------------------------------------------------------------------------------


def test_a_store_that_takes_nothing_is_a_problem_though_it_can_be_read(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.create_words()

    def refuse(self: SqliteStore, ttl: float) -> int:
        raise StoreUnavailable("It is full: make room.")

    monkeypatch.setattr(SqliteStore, "grant", refuse)
    code, findings = found_by(commands)
    assert code == 1
    assert "make room" in of(findings, "store", "problem")[0]
    assert of(findings, "workers", "problem"), "what can be read is read"


def test_a_slow_store_is_a_warning(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_SLOW_S", 0.0)
    code, findings = found_by(commands)
    assert code == 0
    assert "every step of every request" in of(findings, "store", "warning")[0]


def test_files_that_do_not_read_back_are_a_problem(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalFiles, "lines", lambda self, name: None)
    code, findings = found_by(commands)
    assert code == 1
    assert "does not read back" in of(findings, "files", "problem")[0]


def test_nothing_is_left_behind_in_the_files(commands: Commands) -> None:
    assert found_by(commands)[0] == 0
    left = [path.name for path in (commands.directory / "data" / "files").rglob("*")]
    assert left == [".identity"]


def test_files_that_workers_do_not_share_are_a_problem() -> None:
    config = Config.read({"MR_DATA_DIR": "/data"})
    there = [seen("one", files="f"), seen("two", host="afar", files="other")]
    [finding] = checks.shared_files(config, "f", there)
    assert (finding.level, finding.check) == ("problem", "files")
    assert finding.text.endswith("workers on afar.")
    [finding] = checks.shared_files(config, "other", [there[1], seen("three", files="other")])
    assert finding.level == "ok"
    unknown = [seen("one"), seen("two", host="afar")]
    assert [one.level for one in checks.shared_files(config, "f", unknown)] == ["ok"]
    assert checks.shared_files(config, "f", [seen("one")]) == []


def told_by_several(root: Path) -> set[str]:
    """What several who come at once take for the identity of the files."""
    told: set[str] = set()
    ready = threading.Barrier(8)

    def tell() -> None:
        ready.wait()
        told.add(LocalFiles(root).identity())

    threads = [threading.Thread(target=tell) for _ in range(ready.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_the_identity_of_files_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    for number in range(50):
        root = tmp_path / f"files{number}"
        [told] = told_by_several(root)
        assert LocalFiles(root).identity() == told
        assert len(told) == 32
        assert [path.name for path in root.iterdir()] == [".identity"]
    assert LocalFiles(tmp_path / "others").identity() != told
    (tmp_path / "file").write_text("")
    with pytest.raises(FilesUnavailable):
        LocalFiles(tmp_path / "file" / "files").identity()


def test_messages_that_wait_in_vain_are_warnings() -> None:
    facts = Facts(workflows={"words": None}, workers=[seen("one")], stuck={"words": []})  # type: ignore[dict-item]

    def told(*backlogs: Backlog, served: tuple[str, ...] = ()) -> list[tuple[str, str]]:
        return [(one.level, one.text) for one in checks.topics(list(backlogs), facts, served)]

    topic = "mr.words.map.general"
    assert told(Backlog(topic, "general_worker", 3, 1)) == [("ok", "3 messages to be taken.")]
    [(level, text)] = told(Backlog(topic, "old", 3, 0))
    assert level == "warning"
    assert "'old'" in text
    assert told(Backlog(topic, "old", 0, 0)) == [("ok", "0 messages to be taken.")]
    [(level, text)] = told(Backlog(topic, "general_worker", 20_000, 1))
    assert (level, "20,000" in text) == ("warning", True)
    [(level, text)] = told(Backlog("mr.gone.map.general", "general_worker", 1, 1))
    assert (level, "mr.gone.map.general" in text) == ("warning", True)
    assert told(Backlog("mr.gone.map.general", "", 1, 1), served=("words",)) == [("ok", "0 messages to be taken.")]
    assert told(Backlog("somebody.else", "x", 1, 0)) == [("ok", "0 messages to be taken.")]


def test_the_embedded_queue_tells_what_waits(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "queue.sqlite")
    queue.publish([Message("t", b"1"), Message("t", b"2"), Message("u", b"1")])
    consumer = queue.consumer("c", max_in_flight=10)
    consumer.subscribe(["t"])
    assert queue.backlogs() == [Backlog("t", "c", 2), Backlog("u", "", 1)]
    [taken] = consumer.receive(1, 0)
    assert queue.backlogs() == [Backlog("t", "c", 1), Backlog("u", "", 1)]
    consumer.requeue([taken])
    assert queue.backlogs() == [Backlog("t", "c", 2), Backlog("u", "", 1)]
    consumer.close()
    queue.close()


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 40, "ok"), (2 << 30, "ok"), (900 << 20, "warning"), (10 << 20, "problem")]
)
def test_a_disk_that_fills_is_told_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: (100 << 30, 0, free))
    finding = disk.examine_space(tmp_path / "not" / "yet")
    assert (finding.level, bool(finding.advice)) == (level, level != "ok")
    assert size(free) in finding.text


def test_a_store_on_a_network_filesystem_is_a_problem(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 /dev/x rw\n2 1 0:2 / {commands.directory} rw shared:1 - nfs4 server:/x rw\n"
    monkeypatch.setattr(disk.Path, "read_text", lambda self, **how: mounts)
    assert disk.is_networked(commands.directory / "data")
    assert not disk.is_networked(Path("/elsewhere"))
    assert not disk.is_networked(Path(f"{commands.directory}-beside"))
    code, findings = found_by(commands)
    assert code == 1
    assert "locks" in of(findings, "store", "problem")[0]


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_a_date_tells_how_far_a_clock_is_at_least_and_at_most_ahead() -> None:
    assert skew(formatdate(1000, usegmt=True), 1000.0, 1000.2) == (pytest.approx(-0.2), pytest.approx(1.0))
    assert skew(formatdate(1005, usegmt=True), 1000.0, 1000.5) == (pytest.approx(4.5), pytest.approx(6.0))
    assert skew("nonsense", 0, 0) is None


@pytest.mark.parametrize(
    ("ahead", "level"),
    [((-0.9, 0.4), "ok"), ((0.9, 2.0), "ok"), ((1.1, 2.2), "warning"), ((-3.0, -1.1), "warning"), ((-60, 60), "ok")],
)
def test_a_clock_is_wrong_only_where_it_must_be(ahead: tuple[float, float], level: str) -> None:
    finding = judge_clock("nsqd", ahead)
    assert (finding.level, "nsqd" in finding.text) == (level, True)


def test_what_workers_wrote_tells_of_their_clocks(commands: Commands) -> None:
    commands.create_words()
    request_id = commands.printed(submitting.create, "words", "wordcount", "-a", "text", "a")["primary_key"]
    store = commands.store()
    register(store, seen("one", "words"))
    assert of(found_by(commands)[1], "clock", "ok")
    register(store, seen("two", "words", host="early", registered_timestamp=time.time() + 90))
    key = keys.invocation("words", request_id, f"{request_id}.0")
    [entry] = store.get([key])
    assert entry is not None
    root = decode(Invocation, key, entry.value)
    began = msgspec.structs.replace(root, started_timestamp=root.created_timestamp - 30, worker="one")
    store.commit([Txn(puts=(Put(key, encode(began)),))])
    store.close()
    code, findings = found_by(commands)
    told = of(findings, "clock", "warning")
    assert code == 0
    assert len(told) == 2
    assert "early" in told[0]
    assert "here" in told[1]
    assert not of(findings, "clock", "ok")


# --- handlers, exposure, drawings -----------------------------------------------------------------------------------


def test_a_sandbox_that_there_is_not_is_a_problem(commands: Commands) -> None:
    code, findings = found_by(commands, MR_SANDBOX="confined")
    assert code == 1
    assert "MR_SANDBOX" in of(findings, "sandbox", "problem")[0]


def test_a_scope_factory_that_cannot_be_loaded_is_a_problem(commands: Commands) -> None:
    code, findings = found_by(commands, MR_WORKFLOW_SCOPE_FACTORY_FQ_CLASS="nowhere.Factory")
    assert code == 1
    assert "nowhere.Factory" in of(findings, "sandbox", "problem")[0]


def test_more_than_the_machine_has_is_a_warning(commands: Commands) -> None:
    code, findings = found_by(commands, MR_RUNNER_MEMORY_BYTES=str(1 << 50))
    assert code == 0
    assert "MR_RUNNER_MEMORY_BYTES" in of(findings, "sandbox", "warning")[0]


def test_who_is_let_in_is_told(commands: Commands) -> None:
    code, findings = found_by(commands, MR_BIND="0.0.0.0:80")
    assert code == 1
    assert "no API tokens" in of(findings, "exposure", "problem")[0]
    code, findings = found_by(commands, MR_BIND="0.0.0.0:80", MR_ALLOW_ANONYMOUS="1")
    assert code == 0
    assert of(findings, "exposure", "warning")
    code, findings = found_by(commands, MR_BIND="0.0.0.0:80", MR_API_TOKENS="t")
    assert (code, len(of(findings, "exposure", "ok"))) == (0, 1)
    assert commands.run(tokens.group, "create", "test", "--scope", "read").exit_code == 0
    code, findings = found_by(commands, MR_BIND="0.0.0.0:80")
    assert (code, len(of(findings, "exposure", "ok"))) == (0, 1)


def test_drawings_without_graphviz_are_a_warning(commands: Commands) -> None:
    code, findings = found_by(commands, PATH=str(Path(sys.executable).parent))
    assert code == 0
    assert "501" in of(findings, "graphviz", "warning")[0]


# --- words ----------------------------------------------------------------------------------------------------------


def test_numbers_are_told_as_people_say_them() -> None:
    assert [size(number) for number in (0, 1023, 1536, 500 << 20, 3 << 30, 5 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.5 KiB",
        "500 MiB",
        "3 GiB",
        "5 TiB",
    ]
    assert [counted(number, "runner") for number in (0, 1, 2, 20_000)] == [
        "0 runners",
        "1 runner",
        "2 runners",
        "20,000 runners",
    ]
