"""What every queue driver promises. Nothing here is stronger than ``mr.queue.base``: at least once, in no order."""

from __future__ import annotations

import select
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from servers import need
from servers.nsq import Nsqd
from servers.process import wait_until

from mr.errors import InvalidInput, InvalidName, TooLarge
from mr.queue.base import Consumer, Delivery, Message, Queue
from mr.queue.memory import MemoryQueue
from mr.queue.nsq import NsqQueue
from mr.queue.sqlite import SqliteQueue

PATIENCE = 20.0
"""Seconds after which something that should have happened has not."""

QUIET = 0.4
"""Seconds for which something that must not happen is watched for."""

OpenConsumer = Callable[..., Consumer]


@pytest.fixture(scope="module")
def nsqd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nsqd]:
    """One server for all cases: each has topics of its own."""
    need("nsq")
    with Nsqd(tmp_path_factory.mktemp("nsqd")) as nsqd:
        yield nsqd


@pytest.fixture(params=["memory", "sqlite", "nsq"])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Queue]:
    queue: Queue
    if request.param == "memory":
        queue = MemoryQueue()
    elif request.param == "sqlite":
        queue = SqliteQueue(tmp_path / "queue.db")
    else:
        queue = NsqQueue(f"nsq://{request.getfixturevalue('nsqd').tcp_address}")
    yield queue
    queue.close()


@pytest.fixture
def topic() -> str:
    """A topic of this test's own, since a server may outlive it."""
    return f"t.{uuid.uuid4().hex}"


@pytest.fixture
def consume(queue: Queue, request: pytest.FixtureRequest) -> Iterator[OpenConsumer]:
    """Makes consumers of some topics, and closes them in the end."""
    made = []

    def consume(*topics: str, channel: str = "c", max_in_flight: int = 100, visibility: float = 60.0) -> Consumer:
        consumer = queue.consumer(channel, max_in_flight=max_in_flight, visibility=visibility)
        made.append(consumer)
        consumer.subscribe(topics)
        if isinstance(queue, NsqQueue):
            # Subscribing waits for no network: what is published until nsqd has heard of it is for others.
            wait_until(lambda: has_channels(request.getfixturevalue("nsqd"), topics, channel), "subscribed", PATIENCE)
        return consumer

    yield consume
    for consumer in made:
        consumer.close()


def has_channels(nsqd: Nsqd, topics: Iterable[str], channel: str) -> bool:
    channels = {
        (topic["topic_name"], channel["channel_name"])
        for topic in nsqd.stats()["topics"]
        for channel in topic["channels"]
    }
    return channels >= {(topic, channel) for topic in topics}


def messages(topic: str, count: int) -> list[Message]:
    return [Message(topic, b"%d" % number) for number in range(count)]


def take(consumer: Consumer, count: int, *, finish: bool = False) -> list[Delivery]:
    """Receives until ``count`` deliveries are there."""
    taken: list[Delivery] = []
    give_up = time.monotonic() + PATIENCE
    while len(taken) < count:
        assert time.monotonic() < give_up, f"{len(taken)} of {count} messages came: {[d.body for d in taken]}"
        received = consumer.receive(min(16, count - len(taken)), 0.2)
        taken += received
        if finish:
            consumer.finish(received)
    return taken


def bodies(deliveries: list[Delivery]) -> set[bytes]:
    return {delivery.body for delivery in deliveries}


def is_readable(consumer: Consumer, seconds: float) -> bool:
    poll = select.poll()
    poll.register(consumer.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def let_settle(consumer: Consumer) -> None:
    """Asks, as an event loop would, until the consumer's descriptor is silent."""
    give_up = time.monotonic() + PATIENCE
    while is_readable(consumer, 0.1):
        assert time.monotonic() < give_up, "The descriptor stays readable although there is nothing to receive."
        assert consumer.receive(16, 0) == []


# --- delivery ------------------------------------------------------------------------------------------------


def test_a_message_arrives_with_topic_body_and_first_attempt(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    queue.publish([Message(topic, b"\x00any bytes\xff")])
    (delivery,) = take(consumer, 1)
    assert (delivery.topic, delivery.body, delivery.attempts) == (topic, b"\x00any bytes\xff", 1)


def test_a_large_batch_arrives_whole(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    queue.publish(messages(topic, 1000))
    assert len(bodies(take(consumer, 1000, finish=True))) == 1000


def test_one_batch_reaches_several_topics(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(f"{topic}.a", f"{topic}.b")
    queue.publish([Message(f"{topic}.a", b"for a"), Message(f"{topic}.b", b"for b")])
    assert {(d.topic, d.body) for d in take(consumer, 2)} == {(f"{topic}.a", b"for a"), (f"{topic}.b", b"for b")}


def test_publishing_nothing_is_allowed(queue: Queue) -> None:
    queue.publish([])


def test_every_channel_gets_every_message(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    one, other = consume(topic, channel="one"), consume(topic, channel="other")
    queue.publish(messages(topic, 20))
    assert bodies(take(one, 20, finish=True)) == bodies(take(other, 20, finish=True)) == bodies_of(20)


def bodies_of(count: int) -> set[bytes]:
    return {message.body for message in messages("any", count)}


def test_consumers_of_one_channel_share_its_messages(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    one, other = consume(topic, max_in_flight=10), consume(topic, max_in_flight=10)
    queue.publish(messages(topic, 20))
    of_one, of_other = bodies(take(one, 10)), bodies(take(other, 10))
    assert not of_one & of_other
    assert of_one | of_other == bodies_of(20)


def test_a_topic_without_a_channel_keeps_its_messages_for_the_first(
    queue: Queue, topic: str, consume: OpenConsumer
) -> None:
    queue.publish(messages(topic, 20))
    assert bodies(take(consume(topic), 20)) == bodies_of(20)


def test_a_channel_keeps_its_messages_while_nobody_consumes(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consume(topic).close()
    queue.publish(messages(topic, 20))
    assert bodies(take(consume(topic), 20)) == bodies_of(20)


def test_threads_may_publish_at_once(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)

    def publish(thread: int) -> None:
        for number in range(25):
            queue.publish([Message(topic, b"%d-%d" % (thread, number))])

    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    arrived = bodies(take(consumer, 200, finish=True))
    for thread in threads:
        thread.join()
    assert arrived == {b"%d-%d" % (thread, number) for thread in range(8) for number in range(25)}


def test_a_backlog_of_one_topic_does_not_starve_another(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish(messages(f"{topic}.big", 1000))
    consumer = consume(f"{topic}.big", f"{topic}.small", max_in_flight=4)
    queue.publish(messages(f"{topic}.small", 5))
    seen_small: set[bytes] = set()
    seen = 0
    while len(seen_small) < 5:
        seen += 1
        assert seen < 500, "Half of the large topic went by before the small one had its turn."
        (delivery,) = take(consumer, 1, finish=True)
        if delivery.topic == f"{topic}.small":
            seen_small.add(delivery.body)


# --- in flight -----------------------------------------------------------------------------------------------


def test_a_finished_message_never_comes_back(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic, visibility=1.0)
    queue.publish(messages(topic, 3))
    take(consumer, 3, finish=True)
    assert consumer.receive(16, 1.0 + QUIET) == []
    consumer.close()
    assert consume(topic).receive(16, QUIET) == []


def test_no_more_than_max_in_flight_are_held(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic, max_in_flight=3)
    queue.publish(messages(topic, 5))
    held = take(consumer, 3)
    assert consumer.receive(16, QUIET) == []
    consumer.finish(held[:2])
    assert bodies(held) | bodies(take(consumer, 2)) == bodies_of(5)


def test_receive_answers_at_most_limit(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish(messages(topic, 5))
    consumer = consume(topic)
    received = consumer.receive(2, PATIENCE)
    assert 1 <= len(received) <= 2
    assert bodies(received) | bodies(take(consumer, 5 - len(received))) == bodies_of(5)


def test_a_message_not_finished_in_time_is_delivered_again(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish([Message(topic, b"slow")])
    consumer = consume(topic, visibility=1.0)
    (first,) = take(consumer, 1)
    (second,) = take(consumer, 1)
    assert (first.body, second.body) == (b"slow", b"slow")
    assert (first.attempts, second.attempts) == (1, 2)


def test_touch_keeps_a_message_in_flight(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish([Message(topic, b"slow")])
    holder = consume(topic, visibility=2.0)
    held = take(holder, 1)
    watcher = consume(topic)
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        assert watcher.receive(16, 0.5) == []
        holder.touch(held)
    # And it comes once the touching ends, so it was there all the while.
    assert bodies(take(watcher, 1)) == {b"slow"}


def test_a_late_finish_requeue_or_touch_does_nothing_to_the_next_holder(
    queue: Queue, topic: str, consume: OpenConsumer
) -> None:
    queue.publish([Message(topic, b"slow")])
    late = consume(topic, max_in_flight=1, visibility=1.0)
    held = take(late, 1)
    holder = consume(topic)
    (delivery,) = take(holder, 1)
    assert delivery.attempts > 1
    late.requeue(held)
    late.touch(held)
    late.finish(held)
    late.close()
    watcher = consume(topic)
    assert watcher.receive(16, QUIET) == []
    # Nor was it ended: it is still the holder's to give back.
    holder.close()
    assert bodies(take(watcher, 1)) == {b"slow"}


def test_requeue_gives_a_message_back(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish([Message(topic, b"again")])
    one = consume(topic)
    one.requeue(take(one, 1))
    one.subscribe([])
    (delivery,) = take(consume(topic), 1)
    assert (delivery.body, delivery.attempts > 1) == (b"again", True)


def test_requeue_may_be_delayed(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish([Message(topic, b"again")])
    consumer = consume(topic, max_in_flight=1)
    held = take(consumer, 1)
    before = time.monotonic()
    consumer.requeue(held, delay=1.0)
    # A requeued message is not in flight: there is room for another.
    queue.publish([Message(topic, b"meanwhile")])
    assert bodies(take(consumer, 1, finish=True)) == {b"meanwhile"}
    assert bodies(take(consumer, 1)) == {b"again"}
    assert time.monotonic() - before >= 0.9


def test_a_delayed_message_comes_when_its_delay_is_over(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    before = time.monotonic()
    queue.publish([Message(topic, b"later", delay=1.0), Message(topic, b"now")])
    assert bodies(take(consumer, 1)) == {b"now"}
    assert bodies(take(consumer, 1)) == {b"later"}
    assert time.monotonic() - before >= 0.9


def test_closing_gives_everything_in_flight_back(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish(messages(topic, 5))
    leaving = consume(topic)
    take(leaving, 5)
    leaving.close()
    leaving.close()
    deliveries = take(consume(topic), 5)
    assert bodies(deliveries) == bodies_of(5)
    assert all(delivery.attempts > 1 for delivery in deliveries)


# --- subscribing ---------------------------------------------------------------------------------------------


def test_without_a_topic_nothing_comes(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    queue.publish(messages(topic, 1))
    assert consume().receive(16, QUIET) == []


def test_subscribing_replaces_the_topics(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    old, new = f"{topic}.old", f"{topic}.new"
    consumer = consume(old)
    queue.publish([Message(old, b"1"), Message(new, b"2")])
    assert bodies(take(consumer, 1, finish=True)) == {b"1"}
    consumer.subscribe([new])
    assert bodies(take(consumer, 1, finish=True)) == {b"2"}
    queue.publish([Message(old, b"3"), Message(new, b"4")])
    assert bodies(take(consumer, 1, finish=True)) == {b"4"}
    assert consumer.receive(16, QUIET) == []
    assert bodies(take(consume(old), 1)) == {b"3"}


def test_subscribing_again_to_the_same_topics_changes_nothing(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    queue.publish(messages(topic, 2))
    held = take(consumer, 1)
    consumer.subscribe([topic, topic])
    consumer.finish(held)
    assert bodies(held) | bodies(take(consumer, 1, finish=True)) == bodies_of(2)
    assert consumer.receive(16, QUIET) == []


# --- waiting -------------------------------------------------------------------------------------------------


def test_receive_waits_for_a_message(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    let_settle(consumer)
    publisher = threading.Timer(0.3, queue.publish, [[Message(topic, b"at last")]])
    publisher.start()
    received = consumer.receive(16, PATIENCE)
    publisher.join()
    assert bodies(received) == {b"at last"}


def test_receive_with_no_timeout_does_not_wait(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    before = time.monotonic()
    assert consumer.receive(16, 0) == []
    assert time.monotonic() - before < 30


def test_the_descriptor_turns_readable_when_a_message_comes(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    let_settle(consumer)
    queue.publish([Message(topic, b"ring")])
    assert is_readable(consumer, PATIENCE)
    assert bodies(take(consumer, 1)) == {b"ring"}


def test_the_descriptor_follows_a_new_subscription(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(f"{topic}.old")
    descriptor = consumer.fileno()
    consumer.subscribe([f"{topic}.new"])
    assert consumer.fileno() == descriptor
    let_settle(consumer)
    queue.publish([Message(f"{topic}.new", b"ring")])
    assert is_readable(consumer, PATIENCE)


def test_the_descriptor_is_silent_while_a_consumer_is_full(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic, max_in_flight=1)
    queue.publish(messages(topic, 3))
    take(consumer, 1)
    let_settle(consumer)
    assert consumer.idle_for() > 0


def test_what_is_left_after_a_batch_is_announced(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic)
    queue.publish(messages(topic, 2))
    take(consumer, 1)
    assert consumer.idle_for() == 0 or is_readable(consumer, PATIENCE)


@pytest.mark.parametrize("end", ["finish", "requeue"])
def test_a_full_consumer_learns_of_more_when_it_has_room(
    queue: Queue, topic: str, consume: OpenConsumer, end: str
) -> None:
    consumer = consume(topic, max_in_flight=1)
    queue.publish(messages(topic, 2))
    held = take(consumer, 1)
    let_settle(consumer)
    getattr(consumer, end)(held)
    assert consumer.idle_for() == 0 or is_readable(consumer, PATIENCE)
    take(consumer, 1)


def test_an_event_loop_that_only_polls_gets_everything(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    consumer = consume(topic, max_in_flight=4, visibility=1.0)
    queue.publish([*messages(topic, 40), Message(topic, b"delayed", delay=0.5)])
    arrived: set[bytes] = set()
    asked = 0
    give_up = time.monotonic() + PATIENCE
    never_finished = {b"39"}
    again = False
    while not again or len(arrived) < 41:
        assert time.monotonic() < give_up, f"{len(arrived)} of 41 messages came."
        is_readable(consumer, min(consumer.idle_for(), 5.0))
        received = consumer.receive(3, 0)
        asked += 1
        arrived |= bodies(received)
        again = again or any(delivery.attempts > 1 for delivery in received if delivery.body in never_finished)
        consumer.finish([d for d in received if d.body not in never_finished or d.attempts > 1])
    assert asked < 400, "The loop was woken far more often than there was anything to do."


# --- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a" * 65, "with space", "slash/ed", "é", "new\nline", "line\n"])
def test_a_name_that_is_not_allowed_is_refused(queue: Queue, topic: str, consume: OpenConsumer, name: str) -> None:
    with pytest.raises(InvalidName):
        queue.publish([Message(name, b"x")])
    with pytest.raises(InvalidName):
        queue.consumer(name, max_in_flight=1)
    consumer = consume(topic)
    with pytest.raises(InvalidName):
        consumer.subscribe([name])


def test_the_longest_name_and_the_largest_body_are_taken(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    name = (topic + "._-" + "Z" * 64)[:64]
    body = b"x" * queue.max_body_bytes
    queue.publish([Message(name, body)])
    (delivery,) = take(consume(name), 1)
    assert delivery.body == body


def test_a_body_over_the_limit_is_refused_with_its_whole_batch(queue: Queue, topic: str, consume: OpenConsumer) -> None:
    with pytest.raises(TooLarge) as refusal:
        queue.publish([Message(topic, b"small"), Message(topic, b"x" * (queue.max_body_bytes + 1))])
    assert refusal.value.limit == queue.max_body_bytes
    assert consume(topic).receive(16, QUIET) == []


@pytest.mark.parametrize("message", [Message("t", b""), Message("t", b"x", -1.0), Message("t", b"x", float("nan"))])
def test_a_message_that_means_nothing_is_refused(queue: Queue, message: Message) -> None:
    with pytest.raises(InvalidInput):
        queue.publish([message])


@pytest.mark.parametrize(("max_in_flight", "visibility"), [(0, 60.0), (1, 0.0), (1, float("inf"))])
def test_a_consumer_that_could_do_nothing_is_refused(queue: Queue, max_in_flight: int, visibility: float) -> None:
    with pytest.raises(InvalidInput):
        queue.consumer("c", max_in_flight=max_in_flight, visibility=visibility)
