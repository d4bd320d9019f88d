"""What a worker does with messages, handlers that misbehave, signals and the loss of its lease."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from mr.engine.shell import topic
from mr.kv.base import Put, Txn
from mr.model import keys
from mr.model.entities import encode
from mr.queue.base import Message
from tests.integration.worker_harness import Bench, bench, processes_of, until

ADD = """
def reducer(results):
    for key, values in results:
        yield key, sum(values)
"""
ONE = """
def mapper(arguments):
    yield MrConfigureToReturn()
    for key, value in arguments:
        yield key, value
"""
FAN = """
def mapper(arguments):
    yield MrConfigureToMap("leaf")
    for _, count in arguments:
        for number in range(count):
            yield number, 1
"""
LEAF = """
def mapper(arguments):
    yield MrConfigureToReturn()
    for _, value in arguments:
        yield "n", value
"""
TOUCH = """
import os, time

def mapper(arguments):
    yield MrConfigureToReturn()
    for _, (path, seconds) in arguments:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(seconds)
        yield "ran", 1
"""
JOBS = """
steps:
  one: {map: one, reduce: add}
  fan: {map: fan, reduce: add}
  parts: {map: fan, reduce: add, partitions: 3}
  leaf: {map: leaf, combine: add, reduce: add}
  touch: {map: touch, reduce: add}
jobs:
  one: {step: one}
  fan: {step: fan}
  parts: {step: parts}
  touch: {step: touch}
"""
FILES = {"jobs.yaml": JOBS, "one.py": ONE, "fan.py": FAN, "leaf.py": LEAF, "add.py": ADD, "touch.py": TOUCH}


@pytest.fixture
def platform(tmp_path: Path, backing: dict[str, str]) -> Iterator[Bench]:
    with bench(tmp_path, **backing) as made:
        made.apply(FILES)
        yield made


def ran(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_request_is_mapped_and_reduced(platform: Bench) -> None:
    platform.worker()
    request_id = platform.submit("one", a=1, b=2)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == [["a", 1], ["b", 2]]
    by_direction = {one.direction: one for one in platform.invocations(request_id)}
    assert by_direction["map"].state == by_direction["reduce"].state == "done"
    assert by_direction["reduce"].parent_invocation_id == by_direction["map"].invocation_id


def test_children_are_counted_once_and_reduced(platform: Bench) -> None:
    platform.worker()
    request_id = platform.submit("fan", count=1500)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == [["n", 1500]]


def test_partitions_do_not_change_the_answer(platform: Bench) -> None:
    platform.worker()
    request_id = platform.submit("parts", count=20)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == [["n", 20]]
    assert sum(one.direction == "reduce" for one in platform.invocations(request_id)) == 20 + 3


def test_no_children_is_an_empty_answer(platform: Bench) -> None:
    platform.worker()
    request_id = platform.submit("fan", count=0)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == []


def test_what_was_submitted_while_no_worker_ran_is_run_later(platform: Bench) -> None:
    request_id = platform.submit("one", a=1)
    platform.worker()
    assert platform.wait(request_id).state == "done"


def test_a_message_that_never_came_is_made_good_by_the_sweep(platform: Bench) -> None:
    consumer = platform.platform.queue.consumer("general_worker", max_in_flight=10)
    consumer.subscribe([topic("w", "map", "general")])
    request_id = platform.submit("one", a=1)
    taken = consumer.receive(10, 5)
    consumer.finish(taken)
    consumer.close()
    assert len(taken) == 1
    platform.worker()
    assert platform.wait(request_id, 40).state == "done"


def test_messages_that_mean_nothing_are_dropped(platform: Bench) -> None:
    where = topic("w", "map", "general")
    bodies = [b"rubbish", b'{"request": "none", "invocation": "none.0"}', b'{"request": 1}']
    platform.platform.queue.publish([Message(where, body) for body in bodies])
    platform.worker()
    request_id = platform.submit("one", a=1)
    assert platform.wait(request_id).state == "done"


def test_a_large_value_goes_through_files(platform: Bench) -> None:
    platform.worker()
    text = "x" * 300_000
    platform.apply({**FILES, "add.py": "def reducer(results):\n    for k, vs in results:\n        yield k, vs\n"})
    request_id = platform.submit("one", text=text)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == [["text", [text]]]
    spilled = [path for path in (platform.directory / "data").rglob("*post_reduce*") if path.is_file()]
    assert len(spilled) == 1


def test_a_handler_that_raises_fails_its_request_with_file_and_line(platform: Bench) -> None:
    platform.apply({**FILES, "one.py": "def mapper(arguments):\n    yield MrConfigureToReturn()\n    1 / 0\n"})
    platform.worker()
    request_id = platform.submit("one", a=1)
    platform.wait(request_id)
    error = platform.failed(request_id).error
    assert error is not None
    assert error.exception_type == "ZeroDivisionError"
    assert "one.py" in error.traceback
    assert "line 3" in error.traceback
    assert error.attempt == 1


def test_a_combiner_that_raises_is_named_and_not_its_mapper(platform: Bench) -> None:
    jobs = "steps: {one: {map: one, combine: sums, reduce: add}}\njobs: {one: {step: one}}\n"
    sums = "def combiner(results):\n    for key, values in results:\n        yield key, 1 / 0\n"
    platform.apply({**FILES, "jobs.yaml": jobs, "sums.py": sums})
    platform.worker()
    request_id = platform.submit("one", a=1)
    platform.wait(request_id)
    invocation = platform.failed(request_id)
    assert invocation.error is not None
    assert (invocation.direction, invocation.error.handler_name) == ("map", "sums")
    assert 'File "sums.py", line 3, in combiner' in invocation.error.traceback


def test_attempts_are_made_as_often_as_the_step_says(platform: Bench) -> None:
    marks = platform.directory / "marks"
    broken = TOUCH.replace('yield "ran", 1', "raise OSError('always')")
    platform.apply(
        {**FILES, "jobs.yaml": JOBS.replace("map: touch,", "map: touch, max_attempts: 3,"), "touch.py": broken}
    )
    platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 0])
    platform.wait(request_id)
    assert platform.failed(request_id).failures == 3
    assert ran(marks) == 3


def test_a_step_that_is_not_there_is_named(platform: Bench) -> None:
    platform.apply({**FILES, "fan.py": FAN.replace('"leaf"', '"laef"')})
    platform.worker()
    request_id = platform.submit("fan", count=3)
    platform.wait(request_id)
    error = platform.failed(request_id).error
    assert error is not None
    assert error.exception_type == "StepNotFound"
    assert "laef" in error.exception_message
    assert "leaf" in error.exception_message


def test_a_step_that_maps_to_itself_for_ever_is_ended(tmp_path: Path) -> None:
    with bench(tmp_path, MR_MAX_DEPTH=5) as platform:
        platform.apply({**FILES, "fan.py": FAN.replace('"leaf"', '"fan"')})
        platform.worker()
        request_id = platform.submit("fan", count=1)
        platform.wait(request_id)
        error = platform.failed(request_id).error
        assert error is not None
        assert "MR_MAX_DEPTH" in error.exception_message


def test_tolerated_failures_leave_the_rest(platform: Bench) -> None:
    jobs = JOBS.replace("fan: {map: fan, reduce: add}", "fan: {map: fan, reduce: add, max_failed_children: 30%}")
    some = FAN.replace("yield number, 1", "yield number, number % 5")
    leaf = LEAF.replace(
        'yield "n", value', 'if value == 4:\n            raise ValueError("four")\n        yield "n", 1'
    )
    platform.apply({**FILES, "jobs.yaml": jobs, "fan.py": some, "leaf.py": leaf})
    platform.worker()
    request_id = platform.submit("fan", count=20)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == [["n", 16]]


def test_more_failures_than_tolerated_fail_the_request_and_say_why(platform: Bench) -> None:
    jobs = JOBS.replace("fan: {map: fan, reduce: add}", "fan: {map: fan, reduce: add, max_failed_children: 1}")
    platform.apply({**FILES, "jobs.yaml": jobs, "leaf.py": LEAF.replace('yield "n", value', 'raise ValueError("no")')})
    platform.worker()
    request_id = platform.submit("fan", count=6)
    platform.wait(request_id)
    failed = platform.failed(request_id)
    assert failed.step_name == "fan"
    assert failed.error is not None
    assert failed.error.exception_type == "ValueError"
    assert "children failed and 1 may" in failed.error.exception_message


def test_a_request_runs_to_its_end_on_its_manifest(platform: Bench) -> None:
    marks = platform.directory / "marks"
    platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 1.5])
    until(lambda: ran(marks), explain=platform.log)
    platform.apply({**FILES, "add.py": ADD.replace("sum(values)", "-1")})
    later = platform.submit("one", a=1)
    platform.wait(later)
    platform.wait(request_id)
    assert platform.pairs(later) == [["a", -1]]
    assert platform.pairs(request_id) == [["ran", 1]]


def test_a_cancelled_handler_is_stopped(platform: Bench) -> None:
    marks = platform.directory / "marks"
    worker = platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 600])
    until(lambda: ran(marks), explain=platform.log)
    pid = int(marks.read_text())
    assert platform.cancel(request_id).state == "cancelled"
    until(lambda: not psutil.pid_exists(pid), 5, platform.log)
    assert worker.poll() is None
    assert platform.wait(platform.submit("one", a=1)).state == "done"


def test_sigterm_lets_a_short_handler_finish(platform: Bench) -> None:
    marks = platform.directory / "marks"
    worker = platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 1.0])
    until(lambda: ran(marks), explain=platform.log)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    platform.worker()
    assert platform.wait(request_id).state == "done"
    assert ran(marks) == 1


@pytest.mark.slow
def test_sigterm_hands_a_long_handler_to_another_worker(platform: Bench) -> None:
    marks = platform.directory / "marks"
    first = platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 14])
    until(lambda: ran(marks), explain=platform.log)
    platform.worker()
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 0
    until(lambda: ran(marks) == 2, 10, platform.log)
    assert platform.wait(request_id).state == "done"
    mapped = next(one for one in platform.invocations(request_id) if one.direction == "map")
    assert mapped.lost == 0


def test_a_killed_worker_takes_its_runners_along_and_its_work_is_done_again(platform: Bench) -> None:
    marks = platform.directory / "marks"
    first = platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 3])
    until(lambda: ran(marks), explain=platform.log)
    runners = processes_of(first)
    first.kill()
    psutil.wait_procs(runners, timeout=2)
    assert not [one for one in runners if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    platform.worker()
    assert platform.wait(request_id).state == "done"
    assert ran(marks) == 2


def test_a_worker_that_was_stopped_for_longer_than_its_lease_does_no_harm(platform: Bench) -> None:
    marks = platform.directory / "marks"
    first = platform.worker()
    request_id = platform.submit("touch", x=[str(marks), 1])
    until(lambda: ran(marks), explain=platform.log)
    first.send_signal(signal.SIGSTOP)
    platform.worker()
    until(lambda: ran(marks) == 2, 30, platform.log)
    assert platform.wait(request_id).state == "done"
    first.send_signal(signal.SIGCONT)
    assert platform.wait(platform.submit("one", a=1)).state == "done"
    assert platform.pairs(request_id) == [["ran", 1]]


def test_a_lease_that_vanished_is_replaced(platform: Bench) -> None:
    platform.worker()
    assert platform.wait(platform.submit("one", a=1)).state == "done"
    until(lambda: platform.store.get([keys.sweeper("w")])[0], explain=platform.log)
    [owned] = platform.store.get([keys.sweeper("w")])
    assert owned is not None
    platform.store.revoke(owned.lease)
    request_id = platform.submit("fan", count=50)
    assert platform.wait(request_id).state == "done"
    until(lambda: platform.store.get([keys.sweeper("w")])[0], explain=platform.log)


def test_work_of_another_capability_is_left_to_those_who_have_it(platform: Bench) -> None:
    body = '"""\nNeeds something.\n\n**\nhandler_type: mapper\nrequired_capability: special\nargument_spec:\n'
    body += "    - name: arguments\n      type: list\n" + '"""\nyield MrConfigureToReturn()\nyield "here", 1\n'
    platform.apply({**FILES, "one.py": body})
    platform.worker()
    request_id = platform.submit("one", a=1)
    assert platform.wait(platform.submit("fan", count=5)).state == "done"
    assert not platform.request(request_id).is_done
    platform.worker(MR_SYSTEM_CAPABILITIES="special")
    assert platform.wait(request_id).state == "done"


def test_a_workflow_that_comes_later_is_found(platform: Bench) -> None:
    platform.worker()
    assert platform.wait(platform.submit("one", a=1)).state == "done"
    platform.apply(FILES, workflow="later")
    request_id = platform.submit("one", workflow="later", a=1)
    assert platform.wait(request_id, workflow="later").state == "done"


def test_an_ended_request_is_removed_after_its_retention_with_all_that_belongs_to_it(platform: Bench) -> None:
    platform.worker()
    request_id = platform.submit("fan", count=30)
    platform.wait(request_id)
    ended = platform.request(request_id)
    assert ended.expires_timestamp is not None
    past = Put(keys.request("w", request_id), encode(msgspec.structs.replace(ended, expires_timestamp=1.0)))
    due = keys.expire("w", ended.expires_timestamp, request_id)
    platform.store.commit([Txn(puts=(past, Put(keys.expire("w", 1.0, request_id), b"{}")), deletes=(due,))])
    until(lambda: platform.store.get([keys.request("w", request_id)]) == [None], 30, platform.log)
    assert [one.key for one in platform.store.list("") if request_id in one.key] == []


def test_a_session_that_is_too_large_fails_the_request_once(platform: Bench) -> None:
    big = "def mapper(arguments):\n    S_SET('x', 'y' * 400_000)\n    yield MrConfigureToReturn()\n    yield 'a', 1\n"
    platform.apply({**FILES, "one.py": big})
    platform.worker()
    request_id = platform.submit("one", a=1)
    platform.wait(request_id)
    failed = platform.failed(request_id)
    assert failed.error is not None
    assert failed.error.exception_type == "HandlerContractError"
    assert "session" in failed.error.exception_message
    assert (failed.attempt, failed.lost) == (1, 0)


def test_attempts_that_spill_and_fail_leave_no_open_file(platform: Bench) -> None:
    spills = "def mapper(arguments):\n    yield MrConfigureToReturn()\n    yield 1, 'x' * 3_000_000\n    1 / 0\n"
    platform.apply({**FILES, "one.py": spills})
    worker = platform.worker()
    platform.wait(platform.submit("one", a=1))
    before = psutil.Process(worker.pid).num_fds()
    for _ in range(5):
        platform.wait(platform.submit("one", a=1))
    assert psutil.Process(worker.pid).num_fds() <= before + 1
    assert not [path for path in (platform.directory / "data").rglob(".*post_combine*")]


def test_a_record_that_nobody_can_read_keeps_no_other_request_from_being_swept(platform: Bench) -> None:
    consumer = platform.platform.queue.consumer("general_worker", max_in_flight=10)
    consumer.subscribe([topic("w", "map", "general")])
    broken, good = platform.submit("one", a=1), platform.submit("one", a=1)
    until(lambda: consumer.finish(found := consumer.receive(10, 1)) or not found)
    consumer.close()
    where = keys.invocation("w", broken, f"{broken}.0")
    platform.store.commit([Txn(puts=(Put(where, b"rubbish"),))])
    platform.worker()
    assert platform.wait(good, 40).state == "done"


def test_what_is_below_a_tolerated_failure_is_not_run(platform: Bench) -> None:
    marks = platform.directory / "marks"
    jobs = """
steps:
  top: {map: top, reduce: add, max_failed_children: 1}
  middle: {map: middle, reduce: add}
  touch: {map: touch, reduce: add}
jobs: {top: {step: top}}
"""
    top = "def mapper(arguments):\n    yield MrConfigureToMap('middle')\n    yield from arguments\n"
    middle = (
        "def mapper(arguments):\n    yield MrConfigureToMap('touch')\n"
        "    for key, (path, count) in arguments:\n        yield 'bad', [None, 0]\n"
        "        for number in range(count):\n            yield number, [path, 0.2]\n"
    )
    platform.apply({**FILES, "jobs.yaml": jobs, "top.py": top, "middle.py": middle})
    platform.worker(MR_RUNNERS=1)
    request_id = platform.submit("top", x=[str(marks), 40])
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == []
    assert ran(marks) < 20


def test_a_worker_takes_over_from_one_that_lost_its_lease_while_it_ran_much(platform: Bench) -> None:
    marks = platform.directory / "marks"
    many = "def mapper(arguments):\n    yield MrConfigureToMap('touch')\n    for _, path in arguments:\n"
    many += "        for number in range(200):\n            yield number, [path, 0.1]\n"
    platform.apply({**FILES, "fan.py": many})
    platform.worker(MR_RUNNERS=4)
    request_id = platform.submit("fan", x=str(marks))
    for _ in range(3):
        seen = ran(marks)
        until(lambda seen=seen: ran(marks) > seen, explain=platform.log)  # type: ignore[misc]
        until(lambda: platform.store.get([keys.sweeper("w")])[0], explain=platform.log)
        [owned] = platform.store.get([keys.sweeper("w")])
        assert owned is not None
        platform.store.revoke(owned.lease)
    assert platform.wait(request_id).state == "done"
    assert platform.pairs(request_id) == [["ran", 200]]
