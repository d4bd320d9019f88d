"""The commands for what is owed to others, and for the secrets of webhooks; what the doctor says of them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from cli_runs import Commands

from mr.cli.jobs import create as create_job
from mr.engine import deliver, ops
from mr.engine.shell import to_txn
from mr.kv.base import Put, Txn
from mr.model import deliveries, keys, secrets
from mr.model.catalog import settle
from mr.model.deliveries import Delivery
from mr.model.entities import Record, decode, encode

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HOOK = "https://hooks.example.com/services/T0/B0/its-secret?token=x"
REQUEST = "1hq8y2nk3xw0c5t9e7"
DAY_S = 86400


@pytest.fixture
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    made = Commands(tmp_path_factory.mktemp("c"))
    assert made.jobx("apply", str(made.words())).exit_code == 0
    return made


def owe(commands: Commands, name: str = "0.0", **changes: Any) -> Delivery:
    given: dict[str, Any] = {
        "delivery_id": f"{REQUEST}.{name}".replace(".", "_"),
        "workflow_name": "words",
        "request_id": REQUEST,
        "kind": "notification",
        "event": "request.done",
        "target": HOOK,
        "created_timestamp": time.time(),
        "due_timestamp": time.time(),
    }
    record = Delivery(**{**given, **changes})
    commands.store().commit([Txn(puts=(Put(keys.delivery("words", REQUEST, name), encode(record)),))])
    return record


def fail(commands: Commands, name: str = "0.0", *, after_s: float, is_final: bool = False) -> None:
    """One try, so long after now, that nobody took."""
    key = keys.delivery("words", REQUEST, name)
    [entry] = commands.store().get([key])
    assert entry is not None
    read = ops.Read(key, decode(Delivery, key, entry.value), modified=entry.modified)
    env = ops.Env(ops.Settings(), lambda: time.time() + after_s, lambda: "n", lambda: 0.0)
    flow = deliver.deliver(env, read)
    next(flow)
    commit = flow.send(ops.Undelivered("hooks.example.com answered 503.", is_final))
    assert isinstance(commit, ops.Commit)
    assert settle(commands.store(), to_txn(commit.change))


def owed(commands: Commands) -> dict[str, Record]:
    """By the kind of key and the ID."""
    entries = [entry for prefix in ("delivery/", "dead/") for entry in commands.store().list(prefix)]
    records = [(entry.key.partition("/")[0], decode(Delivery, entry.key, entry.value)) for entry in entries]
    return {f"{kind} {record.delivery_id}": record for kind, record in records}


def test_what_was_tried_for_a_day_is_dead_listed_and_sent_again_by_one_command(commands: Commands) -> None:
    was = owe(commands)
    fail(commands, after_s=DAY_S - 60)
    assert list(owed(commands)) == [f"delivery {REQUEST}_0_0"]
    fail(commands, after_s=DAY_S)
    assert list(owed(commands)) == [f"dead {REQUEST}_0_0"]
    listed = commands.jobx("delivery", "list", "--dead")
    assert listed.stdout == (
        f"{REQUEST}_0_0\twords\trequest.done\thttps://hooks.example.com/…\t2\tdead\thooks.example.com answered 503.\n"
    )
    assert commands.jobx("delivery", "resend", "words", f"{REQUEST}_0_0").exit_code == 0
    [again] = owed(commands).values()
    assert list(owed(commands)) == [f"delivery {REQUEST}_0_0"]
    assert isinstance(again, Delivery)
    assert (again.attempts, again.buried_timestamp) == (0, None)
    assert again.created_timestamp == was.created_timestamp, "what is told of it stays as it was"
    # It has another day from now on.
    fail(commands, after_s=DAY_S - 60)
    assert list(owed(commands)) == [f"delivery {REQUEST}_0_0"]


def test_what_waits_for_its_next_try_can_be_tried_at_once(commands: Commands) -> None:
    owe(commands, attempts=9, due_timestamp=time.time() + 3600, last_error="down")
    assert commands.jobx("delivery", "resend", "words", f"{REQUEST}_0_0").exit_code == 0
    [again] = owed(commands).values()
    assert isinstance(again, Delivery) and again.due_timestamp <= time.time()


def test_all_that_are_dead_are_sent_again_or_dropped_and_nothing_else(commands: Commands) -> None:
    for number in range(3):
        owe(commands, f"0.{number}")
    for number in range(2):
        fail(commands, f"0.{number}", after_s=1, is_final=True)
    done = commands.jobx("delivery", "resend", "words", "--all")
    assert done.stderr == "2 dead deliveries of 'words': to be sent again.\n"
    assert all(key.startswith("delivery ") for key in owed(commands)) and len(owed(commands)) == 3
    fail(commands, "0.1", after_s=1, is_final=True)
    done = commands.jobx("delivery", "drop", "words", "--all")
    assert done.stderr == "1 dead delivery of 'words': dropped.\n"
    assert sorted(owed(commands)) == [f"delivery {REQUEST}_0_0", f"delivery {REQUEST}_0_2"]
    assert commands.jobx("delivery", "drop", "words", f"{REQUEST}_0_2").exit_code == 0
    assert sorted(owed(commands)) == [f"delivery {REQUEST}_0_0"]


def test_the_list_says_when_it_is_tried_again_and_hides_what_lets_others_in(commands: Commands) -> None:
    owe(commands)
    owe(commands, "0.1", target="mailto:ops@example.com", due_timestamp=time.time() + 3600, attempts=3)
    owe(commands, "0.2", target="file:out/words.txt", kind="result")
    rows = [line.split("\t") for line in commands.jobx("delivery", "list").stdout.splitlines()]
    assert [row[3] for row in rows] == ["https://hooks.example.com/…", "mailto:ops@example.com", "file:out/words.txt"]
    assert rows[0][5] == "now" and rows[1][5] > time.strftime("%Y-%m-%d %H:%M:%S")
    as_json = commands.jobx("delivery", "list", "words", "--json").stdout
    assert "its-secret" not in as_json
    assert [one["data"]["is_dead"] for one in json.loads(as_json)] == [False] * 3
    few = commands.jobx("delivery", "list", "--limit", "2")
    assert len(few.stdout.splitlines()) == 2 and "more than these 2" in few.stderr
    assert commands.jobx("delivery", "list", "--dead").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("delivery", "list", "wards"), "no workflow 'wards'"),
        (("delivery", "resend", "wards", "--all"), "no workflow 'wards'"),
        (("delivery", "resend", "words", "nothing_0_0"), "no delivery 'nothing_0_0'"),
        (("delivery", "drop", "words", "ü/\n"), "no delivery"),
        (("webhook", "secret", "wards"), "no workflow 'wards'"),
        (("webhook", "secret", "words", "--set", "hunter2"), "whsec_"),
    ],
)
def test_what_is_not_there_is_said(commands: Commands, arguments: tuple[str, ...], said: str) -> None:
    done = commands.jobx(*arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert said in done.stderr
    assert not commands.store().list("secret/")


@pytest.mark.parametrize(
    "arguments",
    [
        ("delivery", "resend", "words"),
        ("delivery", "drop", "words", "x", "--all"),
        ("webhook", "secret", "words", "--rotate", "--set", SECRET),
        ("webhook", "secret", "words", "--forget-old"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(commands: Commands, arguments: tuple[str, ...]) -> None:
    assert commands.jobx(*arguments).exit_code == 2


def test_the_secret_is_made_once_and_rotated_with_the_old_one_signing_on(commands: Commands) -> None:
    [first] = commands.jobx("webhook", "secret", "words").stdout.split()
    assert commands.jobx("webhook", "secret", "words").stdout.split() == [first]
    second, old = commands.jobx("webhook", "secret", "words", "--rotate").stdout.split()
    assert old == first != second
    assert commands.jobx("webhook", "secret", "words", "--set", SECRET).stdout.split() == [SECRET, second]
    [third] = commands.jobx("webhook", "secret", "words", "--rotate", "--forget-old").stdout.split()
    assert secrets.of_workflow(commands.store(), "words") == [third]


def test_a_secret_can_be_read_from_input(commands: Commands) -> None:
    from mr.cli.main import main

    done = commands.run(main, "webhook", "secret", "words", "--set", "-", stdin=f"{SECRET}\n")
    assert done.stdout == f"{SECRET}\n"


def findings(commands: Commands, **environ: str) -> list[str]:
    done = commands.jobx("doctor", "--json", **environ)
    found = json.loads(done.stdout)["findings"]
    return [f"{one['level']}: {one['text']} {one['advice']}" for one in found if one["check"] == "deliveries"]


def test_the_doctor_tells_what_was_given_up_and_who_is_never_told(commands: Commands) -> None:
    jobs = commands.directory / "words" / "jobs.yaml"
    jobs.write_text(f"{jobs.read_text()}notify: [mailto:ops@example.com]\n")
    assert commands.jobx("apply", str(jobs.parent)).exit_code == 0
    owe(commands)
    fail(commands, after_s=1, is_final=True)
    given_up, never = findings(commands)
    assert given_up.startswith("warning: A delivery of 'words' could not be made, as to https://hooks.example.com/…: ")
    assert "jobx delivery resend words --all" in given_up
    assert "The workflow 'words' names mailto:ops@example.com, which is never told" in never
    assert "MR_EMAIL_SMTP_HOSTNAME" in never


def test_whoever_names_somebody_who_is_never_told_is_warned(commands: Commands) -> None:
    jobs = commands.directory / "words" / "jobs.yaml"
    jobs.write_text(f"{jobs.read_text()}notify: [mailto:ops@example.com, https://example.com/hook]\n")
    done = commands.jobx("apply", str(jobs.parent))
    assert done.exit_code == 0
    [warned] = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert "the workflow 'words' names mailto:ops@example.com, which is never told: " in warned
    arguments = ("words", "other", "", "count", "--notify", "https://127.0.0.1/hook")
    warned = commands.run(
        create_job, *arguments, MR_EMAIL_SMTP_HOSTNAME="mail", MR_EMAIL_SMTP_FROM_EMAIL="a@b.c"
    ).stderr
    assert "the job 'other' of 'words' names https://127.0.0.1/…, which is never told" in warned
    assert "ops@example.com" not in warned


def test_keys_of_the_dead_and_the_living_are_one_anothers() -> None:
    key = keys.delivery("words", REQUEST, "0.0")
    assert deliveries.live_key(deliveries.dead_key(key)) == key
