"""Who may call: what tokens let in, what they do not tell, and whom a proxy's word makes the client."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_web_application import Stack, eventually, is_problem, open_stack
from werkzeug.test import TestResponse

from mr.config import Config
from mr.errors import InvalidConfig, StoreUnavailable
from mr.kv.base import Entry, Event, Put, Txn
from mr.kv.memory import MemoryStore
from mr.model import catalog, keys, tokens
from mr.model.entities import encode
from mr.model.records import Scope
from mr.web.access import REFUSAL, Access, Caller, Need
from mr.web.problems import Forbidden, Unauthorized
from mr.web.views import Views

UNIX = ""
"""The address of a Unix socket's peer."""

OTHER = "192.0.2.7"


@pytest.fixture
def stacks(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    opened: list[Stack] = []

    def open_one(**settings: str) -> Stack:
        opened.append(open_stack(tmp_path, **settings))
        return opened[-1]

    yield open_one
    for stack in opened:
        stack.front.stop()


@pytest.fixture
def stack(stacks: Callable[..., Stack]) -> Stack:
    return stacks()


def make(stack: Stack, *scopes: Scope, workflows: Sequence[str] = (), expires: float | None = None) -> dict[str, str]:
    """The header of a new token."""
    return bearer(tokens.create(stack.store, "x", scopes or ("admin",), workflows, expires)[1])


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def revoke(stack: Stack, header: dict[str, str]) -> None:
    tokens.revoke(stack.store, tokens.find(stack.store, header["Authorization"].split()[1]))


def ask(stack: Stack, path: str = "/", address: str = "127.0.0.1", method: str = "GET", **headers: str) -> TestResponse:
    """What a client of that address is answered."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return stack.client.open(path, method=method, headers=named, environ_overrides={"REMOTE_ADDR": address})


def is_let_in(answer: TestResponse) -> bool:
    if answer.status_code == 200:
        return True
    assert is_problem(answer, 401, "unauthorized")["detail"] == REFUSAL
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="jobx"'
    return False


# --- whether a token is asked for -----------------------------------------------------------------------------------


def test_without_any_token_this_machine_is_let_in_and_nobody_else(stack: Stack) -> None:
    for address in ("127.0.0.1", "127.5.5.5", "::1", "::ffff:127.0.0.1", UNIX):
        assert is_let_in(ask(stack, address=address))
    for address in (OTHER, "::ffff:192.0.2.7", "2001:db8::1", "unknown", "nonsense", "0.0.0.0"):
        assert not is_let_in(ask(stack, address=address))


def test_a_unix_socket_is_not_open_to_whoever_comes_through_the_proxy(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_BIND="unix:/run/x.sock")
    assert is_let_in(ask(stack, address=UNIX))
    assert is_let_in(ask(stack, address=UNIX, X_Forwarded_For="127.0.0.1"))
    assert not is_let_in(ask(stack, address=UNIX, X_Forwarded_For=OTHER))
    assert not is_let_in(ask(stack, address=UNIX, X_Forwarded_For=f"127.0.0.1, {OTHER}"))


@pytest.mark.parametrize("sign", ["X_Forwarded_Proto", "X_Forwarded_Host", "X_Real_IP", "Forwarded", "Via"])
def test_a_proxy_that_does_not_name_the_client_is_not_taken_for_it(stack: Stack, sign: str) -> None:
    assert not is_let_in(ask(stack, address=UNIX, **{sign: "https"}))


def test_a_server_that_others_can_reach_lets_nobody_in_without_a_token(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_BIND="0.0.0.0:80")
    for address in ("127.0.0.1", OTHER, UNIX):
        assert not is_let_in(ask(stack, address=address))
    token = make(stack)
    assert is_let_in(ask(stack, address=OTHER, **token))
    revoke(stack, token)
    eventually(lambda: not is_let_in(ask(stack, **token)))
    assert not is_let_in(ask(stack))


def test_one_token_is_enough_to_ask_everyone_for_one(stack: Stack) -> None:
    assert is_let_in(ask(stack))
    token = make(stack)
    eventually(lambda: not is_let_in(ask(stack)))
    assert is_let_in(ask(stack, **token))
    revoke(stack, token)
    eventually(lambda: is_let_in(ask(stack)))


def test_a_token_that_has_expired_counts_as_one(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    token = make(stack, expires=time.time() + 3600)
    assert is_let_in(ask(stack, **token))
    now = time.time()
    monkeypatch.setattr("mr.web.access.time.time", lambda: now + 3600)
    assert not is_let_in(ask(stack, **token))
    assert not is_let_in(ask(stack))


def test_a_token_that_cannot_be_read_lets_nobody_in_and_counts_as_one(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    token = make(stack)
    token_id = token["Authorization"].split("_")[1]
    stack.store.commit([Txn(puts=(Put(keys.token(token_id), b"{"),))])
    eventually(lambda: not is_let_in(ask(stack, **token)))
    assert not is_let_in(ask(stack))
    eventually(lambda: "of no use" in caplog.text)
    caplog.clear()
    stack.front.access.check()
    assert not caplog.text


def test_anonymous_clients_are_let_in_where_that_is_meant_but_wrong_tokens_are_not(
    stacks: Callable[..., Stack],
) -> None:
    stack = stacks(MR_ALLOW_ANONYMOUS="1", MR_BIND="0.0.0.0:80", MR_API_TOKENS="good")
    make(stack)
    assert is_let_in(ask(stack, address=OTHER))
    assert is_let_in(ask(stack, address=OTHER, Authorization="Basic dTpw"))
    assert is_let_in(ask(stack, address=OTHER, Authorization="Bearer good"))
    assert not is_let_in(ask(stack, address=OTHER, Authorization="Bearer bad"))


def test_health_is_told_to_everyone(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_BIND="0.0.0.0:80")
    for header in ({}, bearer("bad")):
        for path in ("/healthz", "/readyz"):
            assert ask(stack, path, OTHER, **header).status_code == 200


def test_a_start_asks_the_store_only_where_it_matters() -> None:
    def fail() -> bool:
        raise AssertionError

    for environ in ({}, {"MR_API_TOKENS": "a"}, {"MR_ALLOW_ANONYMOUS": "1"}):
        bind = "0.0.0.0:80" if environ else "127.0.0.1:80"
        Config.read({"MR_BIND": bind, **environ}).check_exposure(fail)
    config = Config.read({"MR_BIND": "0.0.0.0:80"})
    config.check_exposure(lambda: True)
    with pytest.raises(InvalidConfig, match="jobx token create"):
        config.check_exposure(lambda: False)


# --- what is wrong with it ------------------------------------------------------------------------------------------


def test_nobody_learns_what_is_wrong_with_a_token(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    good, revoked, expired = make(stack), make(stack), make(stack, expires=time.time() + 60)
    revoke(stack, revoked)
    eventually(lambda: not is_let_in(ask(stack, **revoked)) and not is_let_in(ask(stack)))
    now = time.time()
    monkeypatch.setattr("mr.web.access.time.time", lambda: now + 60)
    text = good["Authorization"].split()[1]
    last = "0" if text[-1] != "0" else "1"
    answers = [
        ask(stack, **header)
        for header in (
            {},
            revoked,
            expired,
            bearer(text[:-1] + last),
            bearer(re.sub("_.*_", "_0000000000_", text)),
            bearer(text.upper()),
            bearer(""),
            bearer("é"),
            bearer("jobx_"),
            {"Authorization": text},
            {"Authorization": f"Basic {text}"},
            {"Authorization": ""},
        )
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {(401, answers[0].text)}
    assert all(answer.headers["WWW-Authenticate"] for answer in answers)
    for header in (good, {"Authorization": f"bearer  {text} "}):
        assert is_let_in(ask(stack, **header))


def test_tokens_of_the_settings_go_on_working_beside_those_of_the_store(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_API_TOKENS="first,second")
    stored = make(stack, "read", workflows=["words"])
    for header in (bearer("first"), bearer("second")):
        for method, path, status in [
            ("POST", "/job/words/wordcount?blocking=false", 202),
            ("GET", "/request/words/last", 200),
            ("GET", "/request/wrods/last", 404),
            ("DELETE", "/request/words/last", 200),
        ]:
            assert ask(stack, path, OTHER, method, **header).status_code == status
    assert ask(stack, "/request/words/last", **stored).status_code == 200
    assert not is_let_in(ask(stack, **bearer("third")))


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaf", ["changed", "check"])
def test_a_revoked_token_stops_by_the_watch_and_also_without_it(
    stacks: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch, deaf: str
) -> None:
    stack = stacks()
    monkeypatch.setattr(stack.front.access, deaf, lambda *arguments: None)
    token, other = make(stack), make(stack)
    assert is_let_in(ask(stack, **token))
    revoke(stack, token)
    eventually(lambda: not is_let_in(ask(stack, **token)))
    assert is_let_in(ask(stack, **other))


def test_a_change_that_the_watch_missed_is_found(stacks: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacks()
    monkeypatch.setattr(stack.front.access, "changed", lambda event: None)
    token, text = tokens.create(stack.store, "x", ["read"])
    assert ask(stack, "/job/words/wordcount", method="POST", **bearer(text)).status_code == 403
    changed = {name: getattr(token, name) for name in token.__struct_fields__} | {"scopes": ["submit"]}
    stack.put((keys.token(token.token_id), type(token)(**changed)))
    path = "/job/words/wordcount?blocking=false"
    eventually(lambda: ask(stack, path, method="POST", **bearer(text)).status_code == 202)


class CountingStore(MemoryStore):
    """Counts what is asked, and can be away."""

    is_away = False
    asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.is_away:
            raise StoreUnavailable("The store is away.")

    def get(self, keys: Sequence[str]) -> list[Entry | None]:
        self._ask()
        return super().get(keys)

    def list(self, prefix: str, **options: Any) -> list[Entry]:  # type: ignore[override]
        self._ask()
        return super().list(prefix, **options)


def opened(store: MemoryStore) -> Access:
    access = Access(store, Config.read({"MR_DATA_DIR": "/nowhere"}))
    access.check()
    return access


def guess(access: Access, number: int) -> None:
    with pytest.raises(Unauthorized):
        access.caller(f"Bearer jobx_{number:010x}_{'0' * 64}", "127.0.0.1")


def test_a_token_that_was_just_made_works_before_anybody_told_of_it() -> None:
    store = MemoryStore()
    access = opened(store)
    token, text = tokens.create(store, "x", ["read"])
    assert access.caller(f"Bearer {text}", OTHER).token_id == token.token_id


def test_known_tokens_cost_the_store_nothing() -> None:
    store = CountingStore()
    _, text = tokens.create(store, "x", ["read"])
    access = opened(store)
    store.asked = 0
    for _ in range(100):
        access.caller(f"Bearer {text}", OTHER)
    assert store.asked == 0


def test_guessing_costs_the_store_little_and_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CountingStore()
    _, text = tokens.create(store, "x", ["read"])
    access = opened(store)
    now = time.monotonic()
    monkeypatch.setattr("mr.web.access.time.monotonic", lambda: now)
    paused = []
    monkeypatch.setattr("mr.web.access.time.sleep", paused.append)
    store.asked = 0
    for number in range(1000):
        guess(access, number)
    assert 0 < store.asked <= 20
    assert len(paused) == 1000 - store.asked
    access.caller(f"Bearer {text}", OTHER)
    # Who comes with a new one meanwhile is let in when the watch has told of it.
    token, newer = tokens.create(store, "y", ["read"])
    event = Event(keys.token(token.token_id), encode(token), store.revision())
    monkeypatch.setattr("mr.web.access.time.sleep", lambda seconds: access.changed(event))
    assert access.caller(f"Bearer {newer}", OTHER).token_id == token.token_id
    now += 1
    store.asked = 0
    guess(access, 1000)
    assert store.asked == 1


def test_what_is_no_token_of_this_form_is_not_looked_for() -> None:
    store = CountingStore()
    access = opened(store)
    store.asked = 0
    for text in ("", "x", "jobx_x_y", "0" * 100):
        with pytest.raises(Unauthorized):
            access.caller(f"Bearer {text}", OTHER)
    assert store.asked == 0


def test_a_token_that_is_revoked_while_it_is_looked_for_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    access = opened(store)
    token, text = tokens.create(store, "x", ["read"])
    get = store.get

    def get_late(names: Sequence[str]) -> list[Entry | None]:
        found = get(names)
        tokens.revoke(store, token)
        access.changed(Event(names[0], None, store.revision()))
        return found

    monkeypatch.setattr(store, "get", get_late)
    access.caller(f"Bearer {text}", OTHER)
    monkeypatch.undo()
    with pytest.raises(Unauthorized):
        access.caller(f"Bearer {text}", OTHER)


def test_with_the_store_away_known_tokens_work_and_others_are_not_called_wrong() -> None:
    store = CountingStore()
    _, text = tokens.create(store, "x", ["read"])
    access = opened(store)
    store.is_away = True
    access.caller(f"Bearer {text}", OTHER)
    _, newer = tokens.create(store, "y", ["read"])
    store.asked = 0
    for number in range(100):
        for one in (f"jobx_{number:010x}_{'0' * 64}", newer):
            with pytest.raises(StoreUnavailable, match="The store is away"):
                access.caller(f"Bearer {one}", OTHER)
    assert store.asked == 1  # such a store may take its time, and everyone would wait for it
    with pytest.raises(Unauthorized):
        access.caller("", OTHER)
    store.is_away = False
    access.check()
    _, newest = tokens.create(store, "z", ["read"])
    for one in (newer, newest):
        access.caller(f"Bearer {one}", OTHER)


def test_who_cannot_know_whether_there_are_tokens_lets_nobody_in() -> None:
    store = CountingStore()
    store.is_away = True
    access = Access(store, Config.read({"MR_DATA_DIR": "/nowhere"}))
    with pytest.raises(StoreUnavailable):
        access.check()
    with pytest.raises(StoreUnavailable):
        access.caller("", "127.0.0.1")
    with pytest.raises(Unauthorized):
        access.caller("", OTHER)
    store.is_away = False
    access.check()
    access.caller("", "127.0.0.1")


def test_a_store_that_is_away_is_503_for_a_token_that_is_not_known(stack: Stack) -> None:
    known = make(stack)
    assert is_let_in(ask(stack, **known))
    stack.store.is_away = True
    is_problem(ask(stack, **bearer(f"jobx_{0:010x}_{0:064x}")), 503, "store-unavailable")
    assert is_let_in(ask(stack, **known))


# --- scopes ---------------------------------------------------------------------------------------------------------


def test_every_view_says_what_it_takes(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    app = stack.client.application
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}
    monkeypatch.setattr(app, "add_url_rule", lambda *arguments, **options: None)
    monkeypatch.setattr(app, "_got_first_request", False)
    needs = Views(stack.front).register(app)
    assert endpoints == needs.keys()
    assert [endpoint for endpoint, need in needs.items() if need is Need.NOTHING] == ["GET /healthz", "GET /readyz"]


def test_a_view_that_says_nothing_is_refused_to_everybody(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.client.application, "_got_first_request", False)
    stack.client.application.add_url_rule("/forgotten", "forgotten", lambda: "secret")
    answers = [ask(stack, "/forgotten"), ask(stack, "/forgotten", **make(stack))]
    for answer in answers:
        is_problem(answer, 403, "forbidden")
        assert "secret" not in answer.text


def paths_of_requests(stack: Stack) -> list[tuple[str, str]]:
    """Method and path, with ``ID`` for the request's, of every view that is about one request."""
    found = []
    for rule in stack.client.application.url_map.iter_rules():
        if "request_id" in rule.arguments:
            path = rule.rule.replace("<workflow>", "words").replace("<request_id>", "ID")
            path = re.sub(r"<any\((\w+),.*>", r"dot", path)
            found += [(method, path) for method in (rule.methods or ()) if method in ("GET", "POST", "DELETE")]
    assert len(found) >= 5
    return sorted(found)


def test_with_read_every_request_is_seen_and_none_is_touched(stack: Stack) -> None:
    request_id = stack.submit()
    reader = make(stack, "read")
    for method, path in paths_of_requests(stack):
        for name in (request_id, "last"):
            answer = ask(stack, path.replace("ID", name), method=method, **reader)
            if method == "GET":
                assert answer.status_code in (200, 202), path
            else:
                problem = is_problem(answer, 403, "forbidden")
                assert problem["scope"] == "admin"
    problem = is_problem(ask(stack, "/job/words/wordcount", method="POST", **reader), 403, "forbidden")
    assert (problem["scope"], "'submit'" in problem["detail"]) == ("submit", True)
    assert stack.running() == [request_id]


def in_turn(one: tuple[str, str]) -> int:
    """Only what was looked at can be cancelled, and only what was cancelled be redriven, in a test of all of it."""
    return ("GET", "DELETE", "POST").index(one[0])


def test_with_submit_only_what_was_posted_with_it_is_seen_and_steered(stack: Stack) -> None:
    submitter, another = make(stack, "submit"), make(stack, "submit")
    theirs = stack.submit(headers=another)
    for method, path in paths_of_requests(stack):
        for name in (theirs, "last"):
            answer = ask(stack, path.replace("ID", name), method=method, **submitter)
            problem = is_problem(answer, 403, "forbidden")
            assert problem["scope"] == ("read" if method == "GET" else "admin")
            if name == "last":
                assert theirs not in answer.text + str(answer.headers)
    ours = stack.submit(headers=submitter)
    for method, path in sorted(paths_of_requests(stack), key=in_turn):
        answer = ask(stack, path.replace("ID", ours), method=method, **submitter)
        assert answer.status_code in (200, 202), (method, path)
    assert stack.running() == [theirs, ours]
    assert stack.request(ours).epoch == 1
    token_id = submitter["Authorization"].split("_")[1]
    assert stack.request(ours).context == {"requester_ip": "127.0.0.1", "token_id": token_id}


def test_a_request_that_nobodys_token_posted_is_nobodys_own(stacks: Callable[..., Stack]) -> None:
    stack = stacks(MR_ALLOW_ANONYMOUS="1")
    request_id = stack.submit()
    assert "token_id" not in stack.request(request_id).context
    is_problem(ask(stack, f"/request/words/{request_id}", **make(stack, "submit")), 403, "forbidden")


def test_own_requests_are_an_exception_for_views_of_one_request_and_for_submit_alone(stack: Stack) -> None:
    request = stack.request(stack.submit(headers=make(stack, "submit")))
    poster = Caller(request.context["token_id"], frozenset({"submit"}))
    poster.check_request(Need.SEE, request)
    for need in (Need.READ, Need.ADMIN):
        with pytest.raises(Forbidden):
            poster.check(need, None)
    with pytest.raises(Forbidden):
        poster._replace(scopes=frozenset({"read"})).check_request(Need.STEER, request)
    nobody = msgspec.structs.replace(request, context={})
    with pytest.raises(Forbidden):
        poster._replace(token_id=None).check_request(Need.SEE, nobody)


def test_with_admin_everything_is_allowed(stack: Stack) -> None:
    request_id = stack.submit()
    admin = make(stack, "admin")
    for method, path in sorted(paths_of_requests(stack), key=in_turn):
        assert ask(stack, path.replace("ID", request_id), method=method, **admin).status_code in (200, 202)
    assert stack.request(request_id).epoch == 1


# --- workflows ------------------------------------------------------------------------------------------------------


def test_a_token_of_one_workflow_learns_nothing_of_others(stack: Stack) -> None:
    for name in ("secret", "words2"):
        catalog.create_workflow(stack.store, name, "")
    request_id = stack.submit()
    words, nowhere = make(stack, workflows=["words"]), make(stack, workflows=["mine"])
    told = []
    for workflow in ("secret", "words2", "nothing", "no name", "x" * 40):
        for method, path in [
            ("GET", f"/request/{workflow}/last"),
            ("GET", f"/request/{workflow}/{request_id}"),
            ("GET", f"/request/{workflow}/nonsense"),
            ("GET", f"/request/{workflow}/last/result"),
            ("DELETE", f"/request/{workflow}/last"),
            ("POST", f"/job/{workflow}/wordcount"),
        ]:
            answer = ask(stack, path, method=method, **words)
            is_problem(answer, 403, "forbidden")
            assert repr(workflow) in answer.get_json()["detail"]
            told.append(answer.text.replace(workflow, "W"))
    assert len(set(told)) == 1
    for path in ("/request/mine/last", f"/request/mine/{request_id}", "/request/mine/x", "/", "/nothing", "/job/a/b"):
        answer = ask(stack, path, **nowhere)
        assert answer.status_code in (200, 404, 405)
        assert "secret" not in answer.text
        assert "words" not in answer.text
    is_problem(ask(stack, "/job/mine/x", method="POST", **nowhere), 404, "workflow-not-found")
    assert "secret" in ask(stack, "/request/mine/last", **make(stack)).text


def test_a_token_of_one_workflow_is_good_for_it(stack: Stack) -> None:
    token = make(stack, "submit", "read", workflows=["other", "words"])
    request_id = stack.submit(headers=token)
    assert ask(stack, f"/request/words/{request_id}", **token).status_code == 200
    is_problem(ask(stack, "/request/words/last/tree", **make(stack, workflows=["other"])), 403, "forbidden")


# --- proxies --------------------------------------------------------------------------------------------------------


def requester(stack: Stack, address: str, forwarded: str | None) -> str:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    overrides = {"REMOTE_ADDR": address}
    return str(stack.request(stack.submit(headers=headers, environ_overrides=overrides)).context["requester_ip"])


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ("unix", UNIX, None, UNIX),
        ("unix", UNIX, OTHER, OTHER),
        ("unix", UNIX, f"6.6.6.6, {OTHER}", OTHER),
        ("unix", UNIX, f"garbage, {OTHER}", OTHER),
        ("unix", UNIX, f"6.6.6.6,, {OTHER} ,", OTHER),
        ("unix", UNIX, "2001:DB8::1", "2001:db8::1"),
        ("unix", UNIX, "[2001:db8::1]:4711", "2001:db8::1"),
        ("unix", UNIX, f"{OTHER}:4711", OTHER),
        ("unix", UNIX, f"::ffff:{OTHER}", OTHER),
        ("unix", UNIX, f"{OTHER}, unix:", OTHER),
        ("unix", UNIX, "unix:", UNIX),
        ("unix", "127.0.0.1", "6.6.6.6", "127.0.0.1"),
        ("unix", OTHER, "6.6.6.6", OTHER),
        ("none", UNIX, "6.6.6.6", UNIX),
        ("10.0.0.0/8", UNIX, "6.6.6.6", UNIX),
        ("10.0.0.0/8", "10.1.2.3", OTHER, OTHER),
        ("10.0.0.0/8", "::ffff:10.1.2.3", OTHER, OTHER),
        ("10.0.0.0/8", "11.1.2.3", "6.6.6.6", "11.1.2.3"),
        ("unix,10.0.0.0/8", UNIX, f"6.6.6.6, {OTHER}, 10.1.1.1, 10.2.2.2", OTHER),
        ("unix,10.0.0.0/8", UNIX, "10.3.3.3, 10.1.1.1", "10.3.3.3"),
        ("unix,10.0.0.0/8", UNIX, "10.3.3.3, 6.6.6.6, 10.1.1.1", "6.6.6.6"),
        ("unix,2001:db8::/32", UNIX, f"{OTHER}, 2001:db8::1", OTHER),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(
    stacks: Callable[..., Stack], trusted: str, peer: str, forwarded: str | None, client: str
) -> None:
    stack = stacks(MR_TRUSTED_PROXIES=trusted, MR_ALLOW_ANONYMOUS="1")
    assert requester(stack, peer, forwarded) == client


FORGED = {
    "X_Forwarded_For": "127.0.0.1",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "evil.example",
    "X_Real_IP": "127.0.0.1",
    "Forwarded": "for=127.0.0.1;host=evil.example;proto=https",
}


def test_what_an_untrusted_peer_forges_changes_nothing(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    assert not is_let_in(ask(stack, address=OTHER, **FORGED))
    for _ in range(3):
        answer = ask(stack, "/job/words/wordcount?blocking=false", method="POST", **FORGED)
        assert answer.status_code == 202
    assert answer.headers["Location"].startswith("http://localhost/request/")
    assert stack.request(answer.get_json()["request_id"]).context == {"requester_ip": "127.0.0.1"}
    forged = ask(stack, "/job/words/wordcount", method="POST", Origin="http://evil.example", **FORGED)
    is_problem(forged, 403, "foreign-origin")
    # It may also be a proxy that nobody named: that is told, once.
    assert caplog.text.count("MR_TRUSTED_PROXIES") == 1
    assert ask(stack, X_Forwarded_For="nonsense", X_Forwarded_Host="/", X_Forwarded_Proto="x").status_code == 200


def test_a_trusted_proxy_says_how_it_was_reached(stack: Stack) -> None:
    through = {"X_Forwarded_For": "127.0.0.1", "X_Forwarded_Proto": "HTTPS", "X_Forwarded_Host": "jobs.example:8443"}
    path = "/job/words/wordcount?blocking=false"
    answer = ask(stack, path, UNIX, "POST", Origin="https://jobs.example:8443", **through)
    assert answer.status_code == 202
    assert answer.headers["Location"].startswith("https://jobs.example:8443/request/words/")
    is_problem(ask(stack, path, UNIX, "POST", Origin="https://localhost", **through), 403, "foreign-origin")
    through["X_Forwarded_Host"] = "evil.example, jobs.example"
    is_problem(ask(stack, path, UNIX, "POST", Origin="https://evil.example", **through), 403, "foreign-origin")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-For", "unknown"),
        ("X-Forwarded-For", "6.6.6.6, 1.2.3"),
        ("X-Forwarded-For", "fe80::1%eth0"),
        ("X-Forwarded-For", "jobs.example"),
        ("X-Forwarded-Proto", "ftp"),
        ("X-Forwarded-Host", "jobs.example/path"),
        ("X-Forwarded-Host", "user@jobs.example"),
        ("X-Forwarded-Host", 'a"b'),
        ("X-Forwarded-Host", "jobs.example:port"),
    ],
)
def test_what_a_trusted_proxy_sends_has_to_be_readable(stack: Stack, name: str, value: str) -> None:
    make(stack)
    headers = {"X_Forwarded_For": "127.0.0.1", name.replace("-", "_"): value}
    for path in ("/", "/healthz"):
        problem = is_problem(ask(stack, path, UNIX, **headers), 400, "invalid-input")
        assert problem["parameter"] == name


def test_proxies_are_addresses_networks_and_unix() -> None:
    def read(text: str) -> tuple[str, ...]:
        return Config.read({"MR_TRUSTED_PROXIES": text}).trusted_proxies

    assert read("") == ("unix",)
    assert read("none") == ()
    assert read("unix, 10.0.0.0/8,::1, 192.0.2.1") == ("unix", "10.0.0.0/8", "::1", "192.0.2.1")
    for text in ("localhost", "10.0.0.1/8", "10.0.0.0/33", "*", "unix:", "none,unix", "10.0.0.1:80"):
        with pytest.raises(InvalidConfig) as caught:
            read(text)
        assert caught.value.parameter == "MR_TRUSTED_PROXIES"
        assert "10.0.0.0/8" in str(caught.value)
