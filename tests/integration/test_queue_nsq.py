"""The queue on NSQ when nsqd are killed, frozen, found and refused, and what only it has."""

from __future__ import annotations

import asyncio
import logging
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from servers import need
from servers.certificates import Authority
from servers.nsq import AuthServer, Nsqd, Nsqlookupd
from servers.process import wait_until

from mr.errors import InvalidConfig, QueueUnavailable
from mr.queue.base import Consumer, Delivery, Message
from mr.queue.nsq import NsqQueue, publisher, wire
from mr.queue.nsq.envelope import Letter, seal, unseal
from mr.queue.nsq.holdings import Flight, Holdings, Source
from mr.queue.nsq.link import Link
from mr.queue.nsq.settings import Address
from mr.queue.nsq.shares import ROTATE_S, SETTLE_S, Share, divide, share_out

PATIENCE = 30.0
"""Seconds after which something that should have happened has not. Far below the visibility timeout of 60 s, so that
what comes back within it was given back."""

MakeNsqd = Callable[..., Nsqd]


@pytest.fixture(scope="module")
def shared_nsqd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsqd]:
    """For tests that leave it as it is."""
    need("nsq")
    with Nsqd(tmp_path_factory.mktemp("nsqd")) as nsqd:
        yield nsqd


@pytest.fixture
def make_nsqd(tmp_path: Path) -> Iterator[MakeNsqd]:
    """Starts servers of this test's own."""
    need("nsq")
    made: list[Nsqd] = []

    def make(**options: object) -> Nsqd:
        made.append(Nsqd(tmp_path / f"nsqd{len(made)}", **options).start())  # type: ignore[arg-type]
        return made[-1]

    yield make
    for nsqd in made:
        nsqd.kill()


@pytest.fixture
def open_queue() -> Iterator[Callable[[str], NsqQueue]]:
    opened: list[NsqQueue] = []

    def open_queue(url: str) -> NsqQueue:
        opened.append(NsqQueue(url))
        return opened[-1]

    yield open_queue
    for queue in opened:
        queue.close()


OpenQueue = Callable[[str], NsqQueue]


@pytest.fixture
def consume() -> Iterator[Callable[..., Consumer]]:
    made: list[Consumer] = []

    def consume(queue: NsqQueue, *topics: str, channel: str = "c", max_in_flight: int = 100) -> Consumer:
        made.append(queue.consumer(channel, max_in_flight=max_in_flight))
        made[-1].subscribe(topics)
        return made[-1]

    yield consume
    for consumer in made:
        consumer.close()


@pytest.fixture
def topic() -> str:
    return f"t.{uuid.uuid4().hex}"


def url_of(*nsqds: Nsqd, options: str = "") -> str:
    return f"nsq://{','.join(nsqd.tcp_address for nsqd in nsqds)}{options}"


def messages(topic: str, count: int) -> list[Message]:
    return [Message(topic, b"%d" % number) for number in range(count)]


def url_address(nsqd: Nsqd) -> Address:
    host, _, port = nsqd.tcp_address.rpartition(":")
    return Address(host, int(port))


def publish_when_back(queue: NsqQueue, message: Message) -> None:
    def is_back() -> bool:
        try:
            queue.publish([message])
        except QueueUnavailable:
            return False
        return True

    wait_until(is_back, "it is published to again", PATIENCE)


def take(consumer: Consumer, count: int, *, finish: bool = True) -> list[Delivery]:
    """Receives until ``count`` different bodies are there, through whatever goes wrong meanwhile."""
    taken: dict[bytes, Delivery] = {}
    give_up = time.monotonic() + PATIENCE
    while len(taken) < count:
        assert time.monotonic() < give_up, f"{len(taken)} of {count} messages came."
        try:
            received = consumer.receive(16, 0.2)
        except QueueUnavailable:
            continue
        taken |= {delivery.body: delivery for delivery in received}
        if finish:
            consumer.finish(received)
    return list(taken.values())


def trouble_of(consumer: Consumer) -> str:
    """What receiving says is wrong, once it says so."""
    give_up = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < give_up, "Nothing was said to be wrong."
        try:
            consumer.receive(16, 0.2)
        except QueueUnavailable as error:
            return str(error)


def until_connected(nsqd: Nsqd, *topics: str, clients: int = 1) -> None:
    wait_until(lambda: all(clients_of(nsqd, topic) >= clients for topic in topics), "consumers are connected", PATIENCE)


def clients_of(nsqd: Nsqd, topic: str) -> int:
    """How many connections consume it."""
    found = [each["channels"] for each in nsqd.stats()["topics"] if each["topic_name"] == topic]
    return sum(channel["client_count"] for channels in found for channel in channels)


def in_flight(nsqd: Nsqd, *topics: str, count: str = "in_flight_count") -> int:
    """How many messages consumers have, or another count of theirs."""
    return sum(
        client[count]
        for topic in nsqd.stats()["topics"]
        for channel in topic["channels"]
        for client in channel["clients"] or ()
        if topic["topic_name"] in topics
    )


# --- death ---------------------------------------------------------------------------------------------------


def test_a_killed_nsqd_counts_as_a_restart_and_consuming_goes_on(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    nsqd = make_nsqd()
    queue = open_queue(url_of(nsqd))
    consumer = consume(queue, topic, max_in_flight=1)
    queue.publish(messages(topic, 50))
    (held,) = take(consumer, 1, finish=False)
    assert consumer.restarts() == 0
    nsqd.kill()
    nsqd.start()
    wait_until(lambda: consumer.restarts() > 0, "the restart was noticed", PATIENCE)
    queue.publish([Message(topic, b"after")])
    # Its memory went with it.
    assert [delivery.body for delivery in take(consumer, 1)] == [b"after"]
    consumer.finish([held])
    assert consumer.receive(16, 0.2) == []


def test_while_the_only_nsqd_is_down_it_is_named(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    nsqd = make_nsqd()
    queue = open_queue(url_of(nsqd))
    consumer = consume(queue, topic)
    queue.publish(messages(topic, 1))
    take(consumer, 1)
    nsqd.kill()
    for _ in range(3):
        with pytest.raises(QueueUnavailable, match=nsqd.tcp_address):
            queue.publish(messages(topic, 1))
    assert nsqd.tcp_address in trouble_of(consumer)
    with pytest.raises(QueueUnavailable, match="Connection refused"):
        queue.publish([])
    nsqd.start()
    publish_when_back(queue, Message(topic, b"back"))
    take(consumer, 1)
    assert consumer.receive(1, 0) == []


def test_who_hears_of_a_restart_can_publish_at_once(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    nsqd = make_nsqd()
    queue = open_queue(url_of(nsqd))
    consumer = consume(queue, topic)
    until_connected(nsqd, topic)
    nsqd.freeze()

    def is_left_alone_for_long() -> bool:
        with pytest.raises(QueueUnavailable):
            queue.publish(messages(topic, 1))
        return all(server._avoid_s >= 1.0 for server in queue._publisher._servers.values())

    wait_until(is_left_alone_for_long, "it has failed some times", PATIENCE)
    nsqd.kill()
    nsqd.start()
    wait_until(lambda: consumer.restarts() > 0, "the restart was noticed", PATIENCE)
    queue.publish([Message(topic, b"again")])
    assert [delivery.body for delivery in take(consumer, 1)] == [b"again"]


def test_one_of_two_is_killed_and_nobody_notices(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    one, other = make_nsqd(), make_nsqd()
    queue = open_queue(url_of(one, other))
    consumer = consume(queue, topic)
    until_connected(one, topic)
    until_connected(other, topic)
    queue.publish(messages(topic, 300))
    assert len(take(consumer, 300)) == 300
    one.kill()
    for number in range(20):
        queue.publish([Message(topic, b"after %d" % number)])
    assert len(take(consumer, 20)) == 20
    one.start()
    wait_until(lambda: consumer.restarts() > 0, "the restart was noticed", PATIENCE)


def test_messages_go_to_every_nsqd(make_nsqd: MakeNsqd, open_queue: OpenQueue, topic: str) -> None:
    nsqds = [make_nsqd(), make_nsqd()]
    queue = open_queue(url_of(*nsqds))
    for _ in range(10):
        queue.publish(messages(topic, 1))
    queue.publish(messages(f"{topic}.batch", 500))
    for nsqd in nsqds:
        counts = {each["topic_name"]: each["message_count"] for each in nsqd.stats()["topics"]}
        assert counts == {topic: 5, f"{topic}.batch": 250}


def test_an_nsqd_that_restarted_unnoticed_is_published_to_without_an_error(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, topic: str
) -> None:
    nsqd = make_nsqd()
    queue = open_queue(url_of(nsqd))
    for _ in range(3):
        queue.publish(messages(topic, 1))
        nsqd.restart()
    queue.publish(messages(topic, 1))
    assert sum(each["depth"] for each in nsqd.stats()["topics"]) == 4


def test_a_frozen_nsqd_holds_nobody_up(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    one, other = make_nsqd(), make_nsqd()
    queue = open_queue(url_of(one, other))
    consumer = consume(queue, topic, max_in_flight=400)
    until_connected(one, topic)
    until_connected(other, topic)
    queue.publish(messages(topic, 300))
    held = take(consumer, 300, finish=False)
    one.freeze()
    for number in range(10):
        queue.publish([Message(topic, b"after %d" % number)])
    consumer.touch(held)
    consumer.requeue(held[:50])
    consumer.finish(held[50:])
    missing = {b"after %d" % number for number in range(10)}
    while missing:
        missing -= {delivery.body for delivery in take(consumer, 1)}
    # Of the living one, what was given back came again.
    wait_until(
        lambda: not consumer.finish(consumer.receive(16, 0)) and in_flight(other, topic) == 0, "all is done", PATIENCE
    )
    one.thaw()


def test_nobody_who_publishes_waits_to_see_whether_a_frozen_nsqd_is_back(
    make_nsqd: MakeNsqd, open_queue: OpenQueue, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_look = publisher._Server.check
    looked: list[threading.Thread] = []

    def look(server: publisher._Server) -> None:
        looked.append(threading.current_thread())
        really_look(server)

    monkeypatch.setattr(publisher._Server, "check", look)
    one, other = make_nsqd(), make_nsqd()
    queue = open_queue(url_of(one, other))
    queue.publish(messages(topic, 300))
    one.freeze()

    def has_looked() -> bool:
        queue.publish(messages(topic, 1))
        return len(looked) >= 2

    wait_until(has_looked, "somebody looked whether it is back", PATIENCE)
    assert threading.current_thread() not in looked
    one.thaw()

    def is_published_to_again() -> bool:
        queue.publish(messages(topic, 1))
        return one.stats()["topics"][0]["message_count"] > 160

    wait_until(is_published_to_again, "it is published to again", PATIENCE)


def test_a_lonely_frozen_nsqd_is_told_and_found_again(
    make_nsqd: MakeNsqd,
    open_queue: OpenQueue,
    consume: Callable[..., Consumer],
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_S", 1)
    nsqd = make_nsqd()
    queue = open_queue(url_of(nsqd))
    consumer = consume(queue, topic)
    queue.publish(messages(topic, 1))
    take(consumer, 1)
    nsqd.freeze()
    with pytest.raises(QueueUnavailable, match=f"{nsqd.tcp_address} does not answer"):
        queue.publish(messages(topic, 1))
    assert f"{nsqd.tcp_address} does not answer" in trouble_of(consumer)
    nsqd.thaw()
    wait_until(lambda: consumer.restarts() > 0, "it was found again", PATIENCE)

    def is_consumed() -> bool:
        # Some still go to the connection that is gone, until nsqd has seen that it is.
        publish_when_back(queue, Message(topic, b"after"))
        received = consumer.receive(16, 0.5)
        consumer.finish(received)
        return b"after" in {delivery.body for delivery in received}

    wait_until(is_consumed, "it is consumed from again", PATIENCE)


def test_a_quiet_connection_is_kept(
    shared_nsqd: Nsqd,
    open_queue: OpenQueue,
    consume: Callable[..., Consumer],
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "HEARTBEAT_S", 1)
    consumer = consume(open_queue(url_of(shared_nsqd)), topic)
    until_connected(shared_nsqd, topic)

    def is_old() -> bool:
        found = [each["channels"] for each in shared_nsqd.stats()["topics"] if each["topic_name"] == topic]
        return any(
            time.time() - client["connect_ts"] > 4 for (channel,) in found for client in channel["clients"] or ()
        )

    # nsqd closes one that leaves two heartbeats unanswered.
    wait_until(is_old, "a connection that lasts", PATIENCE)
    assert consumer.restarts() == 0


def test_closing_beside_a_frozen_nsqd_ends_the_thread(make_nsqd: MakeNsqd, open_queue: OpenQueue, topic: str) -> None:
    nsqd = make_nsqd()
    queue = open_queue(url_of(nsqd))
    consumer = queue.consumer("c", max_in_flight=10)
    consumer.subscribe([topic])
    until_connected(nsqd, topic)
    nsqd.freeze()
    consumer.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "nsq-consumer"]
    nsqd.kill()


def test_closing_in_the_middle_of_a_flood_loses_nothing_for_a_minute(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    for number in range(40):
        queue.publish([Message(topic, b"%d-%d-" % (number, part) + b"x" * 10_000) for part in range(50)])
    seen: set[bytes] = set()
    for _ in range(5):
        consumer = queue.consumer("c", max_in_flight=1000)
        consumer.subscribe([topic])
        while len(seen) < 1500 and not (received := consumer.receive(500, PATIENCE)):
            pass
        seen |= {delivery.body for delivery in received[:10]}
        consumer.finish(received[:10])
        consumer.close()
    seen |= {delivery.body for delivery in take(consume(queue, topic), 2000 - len(seen))}
    assert len(seen) == 2000


# --- discovery -----------------------------------------------------------------------------------------------


def test_an_nsqd_that_comes_later_is_found(
    tmp_path: Path, make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    need("nsq")
    with Nsqlookupd(tmp_path / "lookupd") as lookupd:
        queue = open_queue(lookupd.url)
        consumer = consume(queue, topic)
        with pytest.raises(QueueUnavailable, match=f"registered at nsqlookupd {lookupd.http_address}"):
            queue.publish(messages(topic, 1))
        assert lookupd.http_address in trouble_of(consumer)
        first = make_nsqd(lookupds=[lookupd])
        until_connected(first, topic)
        queue.publish(messages(topic, 10))
        assert len(take(consumer, 10)) == 10
        assert consumer.restarts() == 0
        second = make_nsqd(lookupds=[lookupd])
        until_connected(second, topic)
        wait_until(lambda: consumer.restarts() > 0, "a new one may be one that lost everything", PATIENCE)

        def both_are_published_to() -> bool:
            queue.publish(messages(topic, 2))
            return all(nsqd.stats()["topics"][0]["message_count"] for nsqd in (first, second))

        wait_until(both_are_published_to, "both are published to", PATIENCE)
        first.kill()
        for number in range(10):
            queue.publish([Message(topic, b"after %d" % number)])
        assert len({d.body for d in take(consumer, 10) if d.body.startswith(b"after")}) > 0


def test_what_nsqlookupd_knew_still_holds_while_it_is_down_and_when_it_has_forgotten(
    tmp_path: Path, make_nsqd: MakeNsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    need("nsq")
    with Nsqlookupd(tmp_path / "lookupd") as lookupd:
        nsqd = make_nsqd(lookupds=[lookupd])
        queue = open_queue(lookupd.url)
        wait_until(lambda: len(queue.nodes()) == 1, "it is registered", PATIENCE)
        assert str(queue.nodes()[0].http_port) == nsqd.http_address.rpartition(":")[2]
        consumer = consume(queue, topic)
        until_connected(nsqd, topic)
        lookupd.restart()
        asked = lookupd.log.count("/nodes")
        # An nsqd takes some seconds to register again; until then this is an answer that names none.
        wait_until(lambda: lookupd.log.count("/nodes") > asked, "it was asked again", PATIENCE)
        queue.publish(messages(topic, 10))
        assert len(take(consumer, 10)) == 10
        lookupd.kill()
        nsqd.restart()
        wait_until(lambda: consumer.restarts() > 0, "it was found again", PATIENCE)
        queue.publish(messages(topic, 10))
        assert len(take(consumer, 10)) == 10


def test_no_nsqlookupd_at_all_is_told(
    tmp_path: Path, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    lookupd = Nsqlookupd(tmp_path / "lookupd")
    queue = open_queue(lookupd.url)
    with pytest.raises(QueueUnavailable, match=f"nsqlookupd {lookupd.http_address} cannot be reached"):
        queue.publish(messages(topic, 1))
    assert f"nsqlookupd {lookupd.http_address} cannot be reached" in trouble_of(consume(queue, topic))


# --- who is let in -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nsqd, Authority]]:
    """An nsqd with TLS, client certificates and a secret."""
    need("nsq")
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with (
        AuthServer("s3cret word") as auth,
        Nsqd(tmp_path_factory.mktemp("nsqd"), tls=authority, client_certificates=True, auth=auth) as nsqd,
    ):
        yield nsqd, authority


def options(authority: Authority, secret: str | None = "s3cret%20word", *, client: bool = True) -> str:
    pair = authority.client("client")
    said = f"?tls=1&ca={authority.ca}"
    if client:
        said += f"&cert={pair.cert}&key={pair.key}"
    return said + (f"&secret={secret}" if secret else "")


def test_with_tls_certificate_and_secret_all_goes_well(
    guarded: tuple[Nsqd, Authority], open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    nsqd, authority = guarded
    queue = open_queue(url_of(nsqd, options=options(authority)))
    consumer = consume(queue, topic)
    queue.publish([*messages(topic, 1000), Message(topic, b"large" * 100_000)])
    assert len(take(consumer, 1001)) == 1001
    (client,) = nsqd.stats()["topics"][0]["channels"][0]["clients"]
    assert client["tls"] and client["authed"]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda authority: "?secret=s3cret%20word", "tls=1"),
        (lambda authority: options(authority, secret=None), "wants a secret"),
        (lambda authority: options(authority, secret="wrong-one"), "the secret in the URL is wrong"),
        (lambda authority: options(authority, client=False), "TLS"),
        (lambda authority: f"?tls=1&secret=s3cret%20word&ca={_stranger(authority).ca}", "is not trusted"),
        (lambda authority: "?tls=1&secret=s3cret%20word", "is not trusted"),
    ],
    ids=["no TLS", "no secret", "wrong secret", "no certificate", "another authority", "no authority"],
)
def test_who_is_not_let_in_is_told_why_and_the_secret_is_not(
    guarded: tuple[Nsqd, Authority],
    open_queue: OpenQueue,
    consume: Callable[..., Consumer],
    topic: str,
    caplog: pytest.LogCaptureFixture,
    wrong: Callable[[Authority], str],
    what: str,
) -> None:
    nsqd, authority = guarded
    caplog.set_level(logging.INFO)
    queue = open_queue(url_of(nsqd, options=wrong(authority)))
    with pytest.raises(QueueUnavailable) as refused:
        queue.publish(messages(topic, 1))
    told = [str(refused.value), trouble_of(consume(queue, topic))]
    for text in told:
        assert what in text
        assert nsqd.tcp_address in text
        assert "s3cret" not in text and "wrong-one" not in text
    tried = nsqd.log.count("new client")
    wait_until(lambda: nsqd.log.count("new client") >= tried + 3, "it is tried again", PATIENCE)
    # About which nothing new is to be told.
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert not any("s3cret" in text or "wrong-one" in text for text in warnings)


def _stranger(authority: Authority) -> Authority:
    directory = authority.ca.parent / "stranger"
    directory.mkdir(exist_ok=True)
    return Authority(directory)


def test_tls_where_nsqd_has_none_is_refused_before_the_secret_is_sent(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd, options="?tls=1&secret=s3cret"))
    with pytest.raises(QueueUnavailable, match="does not offer TLS"):
        queue.publish(messages(topic, 1))
    assert "does not offer TLS" in trouble_of(consume(queue, topic))


def test_the_port_of_the_http_interface_is_told_from_the_right_one(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(f"nsq://{shared_nsqd.http_address}")
    with pytest.raises(QueueUnavailable, match="does not speak NSQ's protocol"):
        queue.publish(messages(topic, 1))
    assert "does not speak NSQ's protocol" in trouble_of(consume(queue, topic))


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    guarded: tuple[Nsqd, Authority], tmp_path: Path
) -> None:
    pair = guarded[1].client("client")
    key = tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "pkey", "-in", pair.key, "-aes256", "-passout", "pass:word", "-out", key],
        check=True,
        capture_output=True,
    )
    with pytest.raises(InvalidConfig, match="password"):
        NsqQueue(f"nsq://a?tls=1&cert={pair.cert}&key={key}")


@pytest.mark.parametrize(
    "url",
    [
        "nsq://a?ca=/ca.pem",
        "nsq://a?http=nsqd",
        "nsq://a?http=0",
        "nsq://a?tls=yes",
        "nsq://a?tls=1&ca=/nowhere/ca.pem",
        "nsq://a?tls=1&cert=/nowhere/cert.pem",
        "nsq://",
        "nsq://user@a",
        "nsq://a?secrets=x",
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        NsqQueue(url)
    assert refused.value.parameter == "MR_QUEUE_URL"


# --- delays --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsqd]:
    """Defers nothing for longer than a second."""
    need("nsq")
    with Nsqd(tmp_path_factory.mktemp("nsqd"), args=["--max-req-timeout=1s"]) as nsqd:
        yield nsqd


def test_what_is_deferred_for_longer_than_nsqd_can_comes_in_time(
    impatient: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(impatient))
    consumer = consume(queue, topic)
    # nsqd looks for what is due in a new channel only after some seconds.
    queue.publish([Message(topic, b"first", 0.1)])
    take(consumer, 1)
    before = time.monotonic()
    queue.publish([Message(topic, b"now"), Message(topic, b"late", 3.5), Message(topic, b"soon", 0.5)])
    taken = take(consumer, 3)
    assert time.monotonic() - before >= 3.4
    assert [(delivery.body, delivery.attempts) for delivery in taken] == [(b"now", 1), (b"soon", 1), (b"late", 1)]


def test_what_is_given_back_for_longer_than_nsqd_can_comes_in_time_and_on_its_channel_alone(
    impatient: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(impatient))
    # From which it learns what this nsqd can.
    queue.publish([Message(f"{topic}.other", b"x", 2.0)])
    consumer, other = consume(queue, topic), consume(queue, topic, channel="other")
    until_connected(impatient, topic, clients=2)
    queue.publish(messages(topic, 1))
    (held,) = take(consumer, 1, finish=False)
    take(other, 1)
    queue.publish([Message(topic, b"first", 0.1)])
    take(consumer, 1)
    take(other, 1)
    before = time.monotonic()
    consumer.requeue([held], 3.0)
    (again,) = take(consumer, 1)
    assert time.monotonic() - before >= 2.9
    assert again.body == held.body
    assert other.receive(16, 0.5) == []
    wait_until(lambda: in_flight(impatient, topic) == 0, "nothing is left", PATIENCE)


def test_an_hour_and_more_is_published_and_not_seen(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    consumer = consume(queue, topic)
    queue.publish([Message(topic, b"tomorrow", 86400.0), Message(topic, b"now")])
    (now,) = take(consumer, 1, finish=False)
    consumer.requeue([now], 86400.0)
    (channel,) = (each["channels"][0] for each in shared_nsqd.stats()["topics"] if each["topic_name"] == topic)
    assert channel["deferred_count"] >= 1
    assert consumer.receive(16, 0.3) == []


def test_a_body_that_looks_like_an_envelope_comes_as_it_is(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    envelope = seal(Letter(time.time() + 1000, 3, "nobody", b"body"))
    forged = {envelope[:length] for length in range(8, len(envelope))}
    queue.publish([Message(topic, body) for body in forged])
    queue.publish([Message(topic, envelope, 0.01)])
    assert {delivery.body for delivery in take(consume(queue, topic), len(forged) + 1)} == {*forged, envelope}


def test_what_somebody_else_published_is_never_taken_for_an_envelope(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    cut = seal(Letter(time.time() + 1000, 3, "nobody", b"body"))[:15]
    connection = publisher._Connection(url_address(shared_nsqd), NsqQueue(url_of(shared_nsqd))._settings)
    connection.send(list(wire.publish(topic, [cut])))
    connection.close()
    (delivery,) = take(consume(open_queue(url_of(shared_nsqd)), topic), 1)
    assert delivery.body == cut


# --- sharing -------------------------------------------------------------------------------------------------


def test_ten_thousand_messages_all_come_and_never_too_many_are_held(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    topics = [f"{topic}.{number}" for number in range(4)]
    for each in topics:
        queue.publish(messages(each, 2500))
    bound = 50
    consumer = consume(queue, *topics, max_in_flight=bound)
    seen: set[tuple[str, bytes]] = set()
    held: list[Delivery] = []
    most = 0
    give_up = time.monotonic() + PATIENCE
    while len(seen) < 10_000:
        assert time.monotonic() < give_up, f"{len(seen)} messages came."
        held += consumer.receive(64, 0.2)
        assert len(held) <= bound
        seen |= {(delivery.topic, delivery.body) for delivery in held}
        if len(seen) % 7 == 0:
            most = max(most, in_flight(shared_nsqd, *topics))
        # By and by: some are held all the time.
        ended, held = held[:30], held[30:]
        consumer.finish(ended)
    assert bound / 2 < most <= bound


def test_more_topics_than_may_be_in_flight_are_all_served(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    topics = [f"{topic}.{number}" for number in range(12)]
    consumer = consume(queue, *topics, max_in_flight=2)
    until_connected(shared_nsqd, *topics)
    # A backlog that never ends, and one message for each of the others.
    queue.publish(messages(topics[0], 5000))
    for each in topics[1:]:
        queue.publish([Message(each, b"small")])
    waiting = set(topics)
    give_up = time.monotonic() + PATIENCE
    while waiting:
        assert time.monotonic() < give_up, f"{len(waiting)} topics had no turn."
        received = consumer.receive(2, 0.2)
        assert len(received) <= 2
        waiting -= {delivery.topic for delivery in received}
        consumer.finish(received)


def test_what_is_held_of_a_topic_that_is_given_up_may_still_be_finished(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    leaving = consume(queue, topic)
    queue.publish(messages(topic, 50))
    held = take(leaving, 10, finish=False)
    leaving.subscribe([f"{topic}.other"])
    assert leaving.receive(16, 0) == []
    # Whatever else it had goes to others.
    staying = consume(queue, topic)
    assert len(take(staying, 50 - len(held))) == 50 - len(held)
    leaving.finish(held)
    wait_until(lambda: clients_of(shared_nsqd, topic) == 1, "it has left", PATIENCE)
    assert staying.receive(16, 0.2) == []


def test_topics_that_are_left_and_taken_up_again_at_once_are_consumed(
    shared_nsqd: Nsqd, open_queue: OpenQueue, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_open = Link.open
    go = threading.Event()
    begun: list[Link] = []
    ended: list[Link] = []

    async def open_slowly(link: Link, *arguments: Any) -> None:
        """Misses being cancelled, as asyncio.wait_for may before Python 3.12."""
        begun.append(link)
        while not go.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        await really_open(link, *arguments)
        ended.append(link)

    monkeypatch.setattr(Link, "open", open_slowly)
    queue = open_queue(url_of(shared_nsqd))
    topics = [f"{topic}.{number}" for number in range(5)]
    consumer = queue.consumer("c", max_in_flight=100)
    with closing(consumer):
        for number in range(1, 4):
            consumer.subscribe(topics)
            wait_until(lambda number=number: len(begun) == number * len(topics), "connections are opened", PATIENCE)
            consumer.subscribe([])
        consumer.subscribe(topics)
        wait_until(lambda: len(begun) == 4 * len(topics), "connections are opened", PATIENCE)
        go.set()
        wait_until(lambda: len(ended) == 4 * len(topics), "connections are open", PATIENCE)
        wait_until(lambda: all(clients_of(shared_nsqd, each) == 1 for each in topics), "one is kept of each", PATIENCE)
        queue.publish([Message(each, each.encode()) for each in topics])
        assert len(take(consumer, len(topics))) == len(topics)


def test_what_a_busy_consumer_has_not_asked_for_goes_to_an_idle_one(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    queue = open_queue(url_of(shared_nsqd))
    busy = consume(queue, topic)
    queue.publish(messages(topic, 100))
    # One that asks for many, and then works on what it has got.
    held = busy.receive(20, PATIENCE)
    wait_until(lambda: in_flight(shared_nsqd, topic) > len(held), "it has more at hand", PATIENCE)
    wait_until(lambda: in_flight(shared_nsqd, topic) == len(held), "it has given that back", PATIENCE)
    wait_until(lambda: in_flight(shared_nsqd, topic, count="ready_count") == 0, "it takes no more", PATIENCE)
    idle = consume(queue, topic)
    others = take(idle, 100 - len(held))
    assert not {delivery.body for delivery in held} & {delivery.body for delivery in others}
    # What it was promised and could not keep makes its descriptor readable: it shall ask again.
    idle.subscribe([])
    queue.publish([Message(topic, b"more")])
    assert select.select([busy.fileno()], [], [], PATIENCE)[0]
    assert [delivery.body for delivery in take(busy, 1)] == [b"more"]


# --- greenlets -----------------------------------------------------------------------------------------------

_GREENLETS = """
import sys
from mr.web import patched
import gevent
from mr.errors import QueueUnavailable
from mr.queue.base import Message
from mr.queue.nsq import NsqQueue

queue, topic, ticks, failed = NsqQueue(sys.argv[1]), sys.argv[2], 0, 0

def tick():
    global ticks
    while True:
        gevent.sleep(0.01)
        ticks += 1

def publish(number):
    global failed
    try:
        queue.publish([Message(topic, b"%d" % number)])
    except QueueUnavailable:
        failed += 1

clock = gevent.spawn(tick)
gevent.joinall([gevent.spawn(publish, number) for number in range(int(sys.argv[3]))], raise_error=True)
queue.close()
print(ticks, failed)
"""


def publish_from_greenlets(url: str, topic: str, count: int) -> tuple[int, int]:
    """How often the hub came round meanwhile, and how many failed."""
    command = [sys.executable, "-c", _GREENLETS, url, topic, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    ticks, failed = done.stdout.split()
    return int(ticks), int(failed)


def test_a_hundred_greenlets_publish_at_once(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    _, failed = publish_from_greenlets(url_of(shared_nsqd), topic, 100)
    assert failed == 0
    assert len(take(consume(open_queue(url_of(shared_nsqd)), topic), 100)) == 100


def test_greenlets_go_on_while_nsqd_is_frozen(make_nsqd: MakeNsqd, topic: str) -> None:
    nsqd = make_nsqd()
    nsqd.freeze()
    ticks, failed = publish_from_greenlets(url_of(nsqd), topic, 100)
    assert failed == 100
    # A hub that hung with the first of them would have come round not even once.
    assert ticks > 10


def test_with_tls_greenlets_publish_too(
    guarded: tuple[Nsqd, Authority], open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    nsqd, authority = guarded
    url = url_of(nsqd, options=options(authority))
    assert publish_from_greenlets(url, topic, 20)[1] == 0
    assert len(take(consume(open_queue(url), topic), 20)) == 20


_FORKED = """
import os, sys
from mr.queue.base import Message
from mr.queue.nsq import NsqQueue

queue, topic = NsqQueue(sys.argv[1]), sys.argv[2]
queue.publish([Message(topic, b"first")])
child = os.fork()
name = b"parent %d" if child else b"child %d"
for number in range(50):
    queue.publish([Message(topic, name % number)])
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_has_connections_of_its_own(
    shared_nsqd: Nsqd, open_queue: OpenQueue, consume: Callable[..., Consumer], topic: str
) -> None:
    url = url_of(shared_nsqd)
    subprocess.run([sys.executable, "-c", _FORKED, url, topic], timeout=PATIENCE, check=True)
    assert len(take(consume(open_queue(url), topic), 101)) == 101


# --- reckoning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "wants", "granted"),
    [
        (0, [1, 5], [0, 0]),
        (1, [1, 5], [1, 0]),
        (10, [1, 2, 3], [1, 2, 3]),
        (10, [100, 1, 100], [4, 1, 5]),
        (100, [], []),
    ],
)
def test_what_one_leaves_the_others_have(total: int, wants: list[int], granted: list[int]) -> None:
    assert divide(total, wants) == granted


def test_a_share_that_was_lowered_counts_until_nsqd_has_heard_of_it() -> None:
    one, other = Share(), Share()
    one.most = other.most = 10
    one.allot(10, 0.0)
    one.take_in(0, 0.0)
    other.take_in(0, 0.0)
    first = share_out([one, other], 10, 10, 1.0)
    assert [(share, rdy) for share, rdy in first.changes] == [(one, 5)] or one.rdy < 10
    assert other.rdy == 0
    assert first.again_in is not None
    share_out([one, other], 10, 10, 1.0 + 2 * SETTLE_S)
    assert other.rdy > 0
    assert one.rdy + other.rdy <= 10


def test_where_there_is_room_for_one_each_has_it_in_turn() -> None:
    shares = [Share() for _ in range(5)]
    had: set[int] = set()
    now = 0.0
    for _ in range(30):
        share_out(shares, 1, 1, now)
        open_ones = [number for number, share in enumerate(shares) if share.rdy]
        assert len(open_ones) <= 1
        had.update(open_ones)
        now += ROTATE_S
    assert had == set(range(5))


def at_hand(holdings: Holdings, topic: str, count: int) -> None:
    """Puts so many messages there."""
    source = Source()
    now = time.monotonic()
    holdings.add(topic, [Flight(source, topic, b"%016d" % n, b"x", 1, now, now + 60) for n in range(count)])


def test_no_more_are_given_out_than_may_be_in_flight_however_many_are_at_hand() -> None:
    holdings = Holdings(3)
    holdings.want(["t"])
    at_hand(holdings, "t", 5)
    taken = holdings.take(2)
    assert len(taken) == 2
    assert len(holdings.take(10)) == 1
    assert select.select([holdings.fileno()], [], [], 0)[0] == []
    assert len(holdings.end(taken)) == 2
    assert holdings.end(taken) == []
    assert select.select([holdings.fileno()], [], [], 0)[0]
    assert len(holdings.take(10)) == 2
    holdings.close()


def test_every_topic_has_its_turn_with_who_takes_one_at_a_time() -> None:
    holdings = Holdings(1000)
    topics = [f"t{number}" for number in range(5)]
    holdings.want(topics)
    for topic in topics:
        at_hand(holdings, topic, 100)
    assert {delivery.topic for delivery in holdings.take(5)} == set(topics)
    assert {delivery.topic for _ in range(100) for delivery in holdings.take(1)} == set(topics)
    holdings.close()


def test_an_envelope_is_what_was_put_in() -> None:
    letter = Letter(1_700_000_000.25, 70_000, "channel", b"\x00body")
    assert unseal(seal(letter)) == letter._replace(hops=0xFFFF)


def test_frames_are_found_however_they_are_cut() -> None:
    data = b"\x00\x00\x00\x06\x00\x00\x00\x00OK" + b"\x00\x00\x00\x0f\x00\x00\x00\x00_heartbeat_"
    for size in range(1, len(data)):
        rest, found = b"", []
        for start in range(0, len(data), size):
            frames, rest = wire.split(rest + data[start : start + size])
            found += frames
        assert found == [(0, b"OK"), (0, b"_heartbeat_")]
        assert rest == b""
