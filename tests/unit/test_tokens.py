"""API tokens in the store, and the commands that make, list and revoke them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_runs import Commands

from mr.cli.tokens import group
from mr.errors import InvalidInput, InvalidName, TokenNotFound
from mr.kv.base import Outcome, Txn, Verdict
from mr.kv.memory import MemoryStore
from mr.model import keys, tokens


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


def created(commands: Commands, *arguments: str) -> str:
    """The text of a new token."""
    done = commands.run(group, "create", "somebody", "--scope", "read", *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def listed(commands: Commands) -> list[dict[str, Any]]:
    return [one["data"] for one in json.loads(commands.run(group, "list", "--json").stdout)]


# --- the model ------------------------------------------------------------------------------------------------------


def test_a_secret_has_256_bits_and_no_two_tokens_share_anything() -> None:
    store = MemoryStore()
    texts = [tokens.create(store, "x", ["read"])[1] for _ in range(50)]
    parts = [tokens.parse(text) for text in texts]
    assert all(part is not None and len(bytes.fromhex(part.secret)) == 32 for part in parts)
    assert len({part.secret for part in parts if part}) == len({part.token_id for part in parts if part}) == 50


def test_the_store_has_a_digest_and_nothing_of_the_secret() -> None:
    store = MemoryStore()
    token, text = tokens.create(store, "x", ["read"])
    parts = tokens.parse(text)
    assert parts is not None
    [entry] = store.list("")
    assert entry.key == f"token/{token.token_id}" == keys.token(parts.token_id)
    assert parts.secret.encode() not in entry.value
    assert json.loads(entry.value)["secret_sha256"] == hashlib.sha256(parts.secret.encode()).hexdigest()


@pytest.mark.parametrize("text", ["", "jobx_", "jobx_a_b", "x", "jobx_0123456789_" + "0" * 63, "JOBX_" + "0" * 75])
def test_what_is_no_token_is_known_without_looking(text: str) -> None:
    assert tokens.parse(text) is None


def test_scopes_and_workflows_stand_in_one_order_and_once() -> None:
    token, _ = tokens.create(MemoryStore(), "x", ["admin", "submit", "submit"], ["b", "a", "b"])
    assert (token.scopes, token.workflow_names) == (["submit", "admin"], ["a", "b"])


def test_what_a_token_cannot_be_is_refused_and_nothing_is_stored() -> None:
    store = MemoryStore()
    for description, workflows, expires, parameter in [
        ("", (), None, "description"),
        (" ", (), None, "description"),
        ("x" * 201, (), None, "description"),
        ("x", (), time.time() - 1, "expires"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            tokens.create(store, description, ["read"], workflows, expires)
        assert caught.value.parameter == parameter
    with pytest.raises(InvalidInput, match="scope"):
        tokens.create(store, "x", [])
    with pytest.raises(InvalidName):
        tokens.create(store, "x", ["read"], ["no name"])
    assert not tokens.any_stored(store)


class ForgetfulStore(MemoryStore):
    """Does what it is told, but its first answer is lost."""

    forgets = True

    def commit(self, txns: Sequence[Txn]) -> list[Outcome]:
        done = super().commit(txns)
        if self.forgets:
            self.forgets = False
            return [Outcome(Verdict.UNKNOWN) for _ in done]
        return done


def test_a_token_whose_making_was_in_doubt_is_made_once() -> None:
    store = ForgetfulStore()
    token, _ = tokens.create(store, "x", ["read"])
    assert list(tokens.stored(store)) == [token]


def test_a_token_is_found_by_what_no_other_begins_with() -> None:
    store = MemoryStore()
    made = [tokens.create(store, f"number {number}", ["read"]) for number in range(40)]
    for token, text in made:
        for name in (token.token_id, token.token_id.upper(), f"jobx_{token.token_id}", text):
            assert tokens.find(store, name) == token
    digits = [token.token_id[0] for token, _ in made]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(InvalidInput, match="Several") as caught:
        tokens.find(store, shared)
    assert all(token.token_id in str(caught.value) for token, _ in made if token.token_id[0] == shared)
    for name in ("", "jobx_", "zz"):
        with pytest.raises(TokenNotFound, match="number 7"):
            tokens.find(store, name)


# --- the commands ---------------------------------------------------------------------------------------------------


def test_a_new_token_stands_alone_on_standard_output(commands: Commands) -> None:
    done = commands.jobx("token", "create", "CI", "--scope", "submit", "--scope", "read", "--workflow", "words")
    assert done.exit_code == 0
    assert re.fullmatch(r"jobx_[0-9a-f]{10}_[0-9a-f]{64}\n", done.stdout)
    assert "first token" in done.stderr
    assert "There is no workflow 'words' yet." in done.stderr
    [token] = listed(commands)
    assert (token["description"], token["scopes"], token["workflow_names"]) == ("CI", ["submit", "read"], ["words"])
    assert token["expires_timestamp"] is None
    assert "first token" not in commands.run(group, "create", "CI", "--scope", "admin").stderr


def test_a_new_token_as_json_is_the_one_place_that_has_it(commands: Commands) -> None:
    shown = commands.printed(group, "create", "x", "--scope", "admin", "--json")
    assert (shown["entity_name"], shown["primary_key"]) == ("token", shown["data"]["token_id"])
    text = shown["data"].pop("token")
    assert text.startswith(f"jobx_{shown['primary_key']}_")
    assert listed(commands) == [shown["data"]]


def test_a_list_shows_no_secret_nor_its_digest(commands: Commands) -> None:
    secret = created(commands).rpartition("_")[2]
    digest = tokens.digest(secret)
    for option in ([], ["--json"]):
        shown = commands.run(group, "list", *option).output
        assert "somebody" in shown
        assert secret not in shown
        assert digest not in shown


def test_a_list_is_in_the_order_of_making_and_tells_what_has_expired(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [created(commands, "--expires", when).split("_")[1] for when in ("1h", "30d", "2h")]
    now = time.time()
    monkeypatch.setattr("mr.cli.tokens.time.time", lambda: now + 3 * 3600)
    rows = [line.split("\t") for line in commands.run(group, "list").stdout.splitlines()]
    assert [row[0] for row in rows] == ids
    assert [row[-1].endswith("(expired)") for row in rows] == [True, False, True]


@pytest.mark.parametrize(
    ("when", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43200), ("90d", 90 * 86400), ("2w", 14 * 86400)]
)
def test_a_token_expires_after_a_while(commands: Commands, when: str, seconds: int) -> None:
    created(commands, "--expires", when)
    [token] = listed(commands)
    assert abs(token["expires_timestamp"] - token["created_timestamp"] - seconds) < 60


@pytest.mark.parametrize(
    ("when", "moment"),
    [("2199-01-31", 7229174400), ("2199-01-31T01:00", 7229178000), ("2199-01-31T01:00+01:00", 7229174400)],
)
def test_a_token_expires_at_a_date_of_utc(commands: Commands, when: str, moment: int) -> None:
    created(commands, "--expires", when)
    assert [token["expires_timestamp"] for token in listed(commands)] == [moment]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x"],
        ["x", "--scope", "write"],
        *(["x", "--scope", "read", "--expires", when] for when in ("", "0d", "-1d", "90", "9999999999w", "2020-01-01")),
        ["x", "--scope", "read", "--expires", "2030-02-30"],
    ],
)
def test_what_cannot_be_read_is_usage(commands: Commands, arguments: list[str]) -> None:
    done = commands.run(group, "create", *arguments)
    assert done.exit_code == 2
    assert "Usage" in done.stderr
    assert not (commands.directory / "data").exists()


def test_what_cannot_be_stored_is_told(commands: Commands) -> None:
    assert "description" in commands.said(group, "create", "", "--scope", "read")
    assert "no name" in commands.said(group, "create", "x", "--scope", "read", "--workflow", "no name")


def test_a_revoked_token_is_gone(commands: Commands) -> None:
    first, second = created(commands), created(commands)
    done = commands.run(group, "revoke", first.split("_")[1])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "somebody" in done.stderr
    assert "last" not in done.stderr
    assert [token["token_id"] for token in listed(commands)] == [second.split("_")[1]]
    done = commands.run(group, "revoke", second, "--json")
    assert json.loads(done.stdout)["primary_key"] == second.split("_")[1]
    assert "last" in done.stderr
    assert listed(commands) == []


def test_revoking_what_is_not_there_says_what_is(commands: Commands) -> None:
    assert "There are none." in commands.said(group, "revoke", "abc")
    token_id = created(commands).split("_")[1]
    said = commands.said(group, "revoke", "zz")
    assert "There is no token 'zz'." in said
    assert f"{token_id} (somebody)" in said
    assert len(listed(commands)) == 1


def test_a_token_given_to_the_wrong_command_is_not_repeated(commands: Commands) -> None:
    secret = created(commands).rpartition("_")[2]
    gone = "0" * 10 if not secret.startswith("0" * 10) else "1" * 10
    for text in (secret[::-1], f"jobx_{gone}_{secret}"):
        said = commands.said(group, "revoke", text)
        assert secret not in said
        assert secret[::-1] not in said
