"""Keeping and removing requests by command, records by hand, and what a submitted request can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Commands

from mr.cli import byhand, invocations, jobs, keeping, requests, submitting, workflows
from mr.kv.base import Put, Txn
from mr.model import ids, keys
from mr.model.entities import Request, decode


@pytest.fixture
def words(tmp_path: Path) -> Commands:
    commands = Commands(tmp_path)
    assert commands.jobx("apply", str(commands.words())).exit_code == 0
    return commands


def create(commands: Commands, *arguments: str) -> str:
    shown: dict[str, Any] = commands.printed(submitting.create, "words", "wordcount", "-a", "text", "a", *arguments)
    return str(shown["primary_key"])


def ended(commands: Commands, *arguments: str) -> str:
    request_id = create(commands, *arguments)
    commands.printed(requests.classic_cancel, "words", request_id)
    return request_id


def there(commands: Commands) -> list[str]:
    done = commands.run(requests.classic_list, "words", "--limit", "100")
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


# --- submitting --------------------------------------------------------------------------------------------------


def test_a_request_can_say_what_a_post_can(words: Commands) -> None:
    words.printed(workflows.set_policies, "words", "--outgoing-allow", "127.0.0.1", "--notify", "http://127.0.0.1:9/")
    options = ("--name", "mine", "--retention", "90", "--notify", "failed:http://127.0.0.1:9/x", "--writer", "inline")
    shown = words.printed(submitting.create, "words", "wordcount", *options)["data"]
    assert (shown["name"], shown["retention_s"]) == ("mine", 90)
    assert shown["notify"] == ["failed:http://127.0.0.1:9/x", "http://127.0.0.1:9/"]
    for option, value in (("--writer", "files"), ("--notify", "ada"), ("--retention", "-2"), ("--wait", "-1")):
        done = words.run(submitting.create, "words", "wordcount", option, value)
        assert (done.exit_code, done.stdout) == (2, ""), option
    assert len(there(words)) == 1


def test_waiting_for_what_nobody_runs_exits_with_1(words: Commands) -> None:
    done = words.run(submitting.create, "words", "wordcount", "--wait", "0.05")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["data"]["state"] == "running"
    assert "still runs after 0.05 s" in done.stderr


def test_commands_are_turned_away_like_posts(words: Commands) -> None:
    words.printed(workflows.set_limits, "words", "--max-open-requests", "1")
    create(words)
    assert "takes more only below 1" in words.said(submitting.create, "words", "wordcount")


# --- policies ----------------------------------------------------------------------------------------------------


def test_policies_of_a_workflow_are_set_one_by_one(words: Commands) -> None:
    words.printed(workflows.set_policies, "words", "--retention", "600", "--writer", "inline")
    shown = words.printed(workflows.set_policies, "words", "--outgoing-allow", "10.0.0.0/8")["data"]
    assert (shown["retention_s"], shown["writer"], shown["outgoing_allow"]) == (600, "inline", ["10.0.0.0/8"])
    assert decode(Request, "", words.store().get([keys.request("words", create(words))])[0].value).retention_s == 600  # type: ignore[union-attr]
    shown = words.printed(workflows.set_policies, "words", "--unset", "retention", "--unset", "outgoing-allow")["data"]
    assert shown == {"workflow_name": "words", "description": "", "writer": "inline"}
    for wrong in ([], ["--retention", "1", "--unset", "retention"], ["--outgoing-allow", "10.0.0.0/99"]):
        assert words.run(workflows.set_policies, "words", *wrong).exit_code == 2


def test_a_job_and_a_workflow_are_made_with_policies(words: Commands) -> None:
    given = ("--writer", "file:out/x.csv?format=csv", "--notify", "mailto:a@example.com", "--retention", "5")
    shown = words.printed(jobs.create, "words", "filed", "", "count", *given)["data"]
    assert (shown["writer"], shown["notify"], shown["retention_s"]) == (given[1], ["mailto:a@example.com"], 5)
    shown = words.printed(workflows.create, "letters", "", *given, "--outgoing-allow", "hooks:8080")["data"]
    assert shown == words.printed(workflows.get, "letters")["data"]
    assert shown["outgoing_allow"] == ["hooks:8080"]
    assert "another retention_s" in words.said(workflows.create, "letters", "", *given[:4])


# --- keeping -----------------------------------------------------------------------------------------------------


def test_a_kept_request_is_named_wherever_it_is_shown(words: Commands) -> None:
    request_id = create(words, "--name", "first")
    done = words.jobx("request", "keep", "last", "--name", "second", "--retention", "0")
    assert (done.exit_code, json.loads(done.stdout)["data"]["retention_s"]) == (0, 60)
    assert "holds from its end on" in done.stderr
    assert words.run(requests.classic_list, "words").stdout.endswith("\tsecond\n")
    assert words.printed(requests.classic_get, "words", "last")["data"]["name"] == "second"
    assert "second" in words.jobx("request", "tree", "last").stdout
    words.printed(requests.classic_cancel, "words", request_id)
    shown = words.printed(keeping.classic_keep, "words", "last", "--name", "third")["data"]
    assert (shown["name"], shown["retention_s"], shown["is_kept"]) == ("third", -1, True)
    assert "at most 200" in words.said(keeping.classic_keep, "words", "last", "--name", "x" * 201)
    assert "mistyped" in words.said(keeping.classic_keep, "words", "x")


# --- removing ----------------------------------------------------------------------------------------------------


def test_a_simulated_removal_tells_what_would_go(words: Commands) -> None:
    request_id = ended(words)
    done = words.jobx("request", "cleanup", "words", "last", "-s", "--json")
    [told] = json.loads(done.stdout)["requests"]
    assert told["request_id"] == request_id
    assert told["keys"] == {"dataset": 1, "expire": 1, "invocation": 1, "request": 1}
    assert (told["files"], told["bytes"]) == (0, 0)
    row = words.run(keeping.classic_cleanup, "words", request_id, "-s").stdout.split("\t")
    assert row[:6] == [request_id, "words", "cancelled", "4", "0", "0"]
    assert there(words) == [request_id]


def test_named_requests_are_removed_all_or_none(words: Commands) -> None:
    gone, kept = ended(words), ended(words)
    words.printed(keeping.classic_keep, "words", kept)
    running = create(words)
    said = words.said(keeping.classic_cleanup, "words", gone, running)
    assert f"mr_kv_request_cancel words {running}" in said
    assert "mistyped" in words.said(keeping.classic_cleanup, "words", gone, "x")
    assert there(words) == [running, kept, gone]
    done = words.jobx("request", "cleanup", gone, kept, gone)
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [gone, kept]
    assert there(words) == [running]
    store = words.store()
    assert [entry.key for entry in store.list("") if gone in entry.key or kept in entry.key] == []
    assert "retention is over" in words.said(keeping.classic_cleanup, "words", gone)


def test_many_are_removed_but_those_that_somebody_kept(words: Commands) -> None:
    old, kept, running = ended(words), ended(words), create(words)
    words.printed(keeping.classic_keep, "words", kept)
    for option in ([], ["--older-than", "3600"]):
        assert words.run(keeping.classic_cleanup, "words", *option).stdout == ""
    assert words.jobx("request", "cleanup", "--all-ended").stdout.startswith(f"{old}\t")
    assert there(words) == [running, kept]
    assert words.run(keeping.classic_cleanup, "words", kept, "--all-ended").exit_code == 2
    assert words.run(keeping.classic_cleanup, "words").exit_code == 0


def test_what_is_owed_is_removed_when_that_is_said(words: Commands) -> None:
    allowed = ("--outgoing-allow", "127.0.0.1", "--notify", "http://127.0.0.1:9/")
    words.printed(workflows.set_policies, "words", *allowed)
    request_id = ended(words)
    assert "never delivered" in words.said(keeping.classic_cleanup, "words", request_id)
    done = words.run(keeping.classic_cleanup, "words", "--all-ended")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "Left are 1" in done.stderr
    assert words.run(keeping.classic_cleanup, "words", "--all-ended", "--undelivered").stdout.startswith(request_id)


def test_nothing_of_a_deleted_workflow_is_left(words: Commands) -> None:
    assert words.jobx("webhook", "secret", "words").exit_code == 0
    words.printed(workflows.set_policies, "words", "--outgoing-allow", "127.0.0.1", "--notify", "http://127.0.0.1:9/")
    ended(words)
    assert words.run(keeping.classic_cleanup, "words", "last", "--undelivered").exit_code == 0
    held = Put(keys.idempotency("words", "wordcount", "0"), b"{}")
    words.store().commit([Txn(puts=(held,))])
    (words.directory / "words" / "jobs.yaml").write_text("jobs: {}\n")
    for name in ("split.py", "add.py"):
        (words.directory / "words" / name).unlink()
    assert words.jobx("apply", str(words.directory / "words")).exit_code == 0
    assert words.run(workflows.delete, "words").exit_code == 0
    assert [entry.key for entry in words.store().list("")] == []


# --- by hand -----------------------------------------------------------------------------------------------------


def test_an_invocation_is_recorded_below_one_of_an_ended_request(words: Commands) -> None:
    request_id = create(words)
    refused = words.said(byhand.create_invocation, "words", "last", "count")
    assert "has not ended yet" in refused
    words.printed(requests.classic_cancel, "words", request_id)
    made = words.printed(byhand.create_invocation, "words", "last", "count", "--error", "unreadable")
    assert made["data"]["parent_invocation_id"] == ids.root_of(request_id)
    assert (made["data"]["state"], made["data"]["error"]["exception_message"]) == ("failed", "unreadable")
    below = words.printed(byhand.create_invocation, "words", "last", "count", "--parent", made["primary_key"])
    assert words.printed(invocations.get, "words", below["primary_key"]) == below
    assert "There is no step 'cuont'" in words.said(byhand.create_invocation, "words", "last", "cuont")
    for parent in (f"{request_id}.0.x-1", "other.0", "é"):
        assert "flat_list" in words.said(byhand.create_invocation, "words", "last", "count", "--parent", parent)
    assert words.run(keeping.classic_cleanup, "words", "last").exit_code == 0
    assert [entry.key for entry in words.store().list("") if request_id in entry.key] == []


def test_mapped_steps_are_noted_in_a_tree_that_goes_with_the_request(words: Commands) -> None:
    request_id = create(words)
    words.printed(byhand.add_mapped_steps, "words", "last", "files", "count")
    words.printed(byhand.add_mapped_steps, "words", "last", "files", "a/b c")
    shown = words.printed(byhand.add_mapped_steps, "words", request_id, "files", "--value", '{"seen": 2}')
    leaves = [{"step": name, "value": None, "mapped_to": []} for name in ("a/b c", "count")]
    assert shown["data"] == [{"step": "files", "value": {"seen": 2}, "mapped_to": leaves}]
    for wrong in ([], [""], ["files", "--value", "{"]):
        assert words.run(byhand.add_mapped_steps, "words", "last", *wrong).exit_code == 2
    words.printed(requests.classic_cancel, "words", request_id)
    assert words.run(keeping.classic_cleanup, "words", "last").exit_code == 0
    assert [entry.key for entry in words.store().list("") if request_id in entry.key] == []


# --- where -------------------------------------------------------------------------------------------------------


def test_the_data_directory_can_be_said_beside_what_is_asked(words: Commands) -> None:
    request_id = create(words)
    where = str(words.directory / "data")
    for arguments in (["--data-dir", where, "list"], ["list", "--data-dir", where]):
        done = words.jobx("request", *arguments, MR_DATA_DIR="/nonexistent")
        assert done.stdout.startswith(request_id), done.output
    assert words.jobx("request", "list", "--data-dir", str(words.directory / "other")).stdout == ""


def test_no_terminal_is_too_narrow_for_an_id(words: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mr.cli.output.is_terminal", lambda: True)
    request_id = create(words, "--name", "a name that takes several lines")
    assert request_id in words.jobx("request", "list", COLUMNS="80").stdout


def test_each_shell_gets_a_completion_of_every_command(words: Commands) -> None:
    for shell in ("bash", "zsh", "fish"):
        done = words.jobx("completion", shell)
        assert done.exit_code == 0
        for name in ("JOBX", "MR_KV_REQUEST_CLEANUP"):
            assert f"_{name}_COMPLETE={shell}_complete" in done.stdout
    assert words.jobx("completion", "csh").exit_code == 2
