"""Whatever a handler does, it costs an attempt: the worker tells what happened, and the next task is answered.

Every test plays its handler on a pool and then, on each runner of the same pool, a normal task (see ``with_pool``).
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from runner_harness import Outcome, expect_well, follow, handler, opened, play, task, until, until_async, with_pool

from mr.errors import InvalidConfig, RunnerBroken
from mr.handlers.pool import RunnerPool
from mr.handlers.protocol import Failed

HERE = os.path.dirname(__file__)


def misplayed(source: str, size: int = 1, wall_s: float = 0.0, **limits: Any) -> Failed:
    """How a handler fails, on a pool of its own that then goes on working."""
    found: list[Failed] = []

    async def test(pool: RunnerPool) -> None:
        outcome = await play(pool, task(handler(source, path="bad.py"), wall_s=wall_s))
        assert isinstance(outcome.end, Failed), outcome
        found.append(outcome.end)

    with_pool(test, size, **limits)
    return found[0]


def running(marker: str) -> list[psutil.Process]:
    """Processes with that word among their arguments."""
    return [one for one in psutil.process_iter(["cmdline"]) if marker in (one.info["cmdline"] or [])]


# --- exits and signals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import os\nprint('last words')\nos._exit(3)\n", "exit code 3"),
        ("import os\nprint('last words')\nos._exit(0)\n", "exit code 0"),
        ("import sys\nprint('last words')\nsys.exit(4)\n", "exit code 4"),
        ("import sys\nprint('last words')\nsys.exit('said why')\n", "'said why' (str)): exit code 1"),
        ("print('last words')\nraise SystemExit\n", "exit code 0"),
    ],
)
def test_a_handler_that_exits_is_told_with_its_code_and_its_output(source: str, told: str) -> None:
    failure = misplayed(source)
    assert failure.exception_type == "HandlerExited"
    assert told in failure.exception_message
    assert failure.stdout == "last words\n"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import ctypes\nctypes.string_at(0)\n", "SIGSEGV"),
        ("import os\nos.abort()\n", "SIGABRT"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "SIGKILL"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n", "SIGTERM"),
        ("import os, signal\nos.killpg(0, signal.SIGKILL)\n", "SIGKILL"),
    ],
)
def test_a_handler_that_dies_is_told_with_the_signal(source: str, name: str) -> None:
    failure = misplayed(source)
    assert failure.exception_type == "HandlerKilled"
    assert name in failure.exception_message
    assert failure.fatal


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "GeneratorExit", "BaseException"])
def test_exceptions_that_are_no_errors_are_failures_as_well(error: str) -> None:
    failure = misplayed(f"raise {error}()\n")
    assert failure.exception_type == error


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass\n",
        "import time\ntime.sleep(1000)\n",
        "import signal, time\nfor n in range(1, 32):\n  if n not in (9, 19):\n    signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n  time.sleep(1)\n",
        "while True:\n  try:\n    while True: pass\n  except BaseException: pass\n",
        "yield MrConfigureToReturn()\nwhile True: yield 1, 1\n",
        "yield MrConfigureToMap('x')\nwhile True: yield 1, 1\n",
    ],
)
def test_a_handler_that_takes_too_long_is_killed(source: str) -> None:
    began = time.monotonic()
    failure = misplayed(source, wall_s=0.3)
    assert (failure.exception_type, "0.3 s" in failure.exception_message) == ("HandlerTimeout", True)
    assert time.monotonic() - began < 30


def test_the_pools_own_limit_of_time_holds_too() -> None:
    found: list[Outcome] = []

    async def test(pool: RunnerPool) -> None:
        found.append(await play(pool, task(handler("while True: pass\n"), wall_s=100.0)))

    with_pool(test, wall_s=0.3)
    assert found[0].failure.exception_type == "HandlerTimeout"


def test_a_handler_that_uses_too_much_processor_time_is_ended() -> None:
    failure = misplayed("while True: pass\n", cpu_s=1)
    assert (failure.exception_type, "processor" in failure.exception_message) == ("HandlerTimeout", True)


def test_cancel_is_seen_by_a_handler_that_looks() -> None:
    found: list[Any] = []

    async def test(pool: RunnerPool) -> None:
        source = """
        import time
        yield MrConfigureToReturn()
        print("started")
        while not ctx.is_cancelled:
            time.sleep(0.005)
        yield "cancelled", True
        """
        runner = await pool.acquire()
        running = asyncio.ensure_future(follow(runner, task(handler(source))))
        await until_async(lambda: runner._out._total > 0, what="the handler's start")
        runner.cancel()
        found.append(await asyncio.wait_for(running, 5))
        pool.release(runner)

    with_pool(test)
    assert found[0].finished.stdout == "started\n"
    assert found[0].output == [["cancelled", True]]


def test_cancel_ends_a_handler_that_does_not_look_within_a_second() -> None:
    found: list[Any] = []

    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        running = asyncio.ensure_future(follow(runner, task(handler("print('started')\nwhile True: pass\n"))))
        await until_async(lambda: runner._out._total > 0, what="the handler's start")
        began = time.monotonic()
        runner.cancel()
        found.append(await asyncio.wait_for(running, 5))
        found.append(time.monotonic() - began)
        pool.release(runner)

    with_pool(test)
    assert (found[0].failure.exception_type, "cancelled" in found[0].failure.exception_message) == (
        "HandlerKilled",
        True,
    )
    assert found[1] < 5


# --- memory and output ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "hog = []\nwhile True:\n    hog.append(bytearray(64 << 20))\n",
        "hog = []\nwhile True:\n    hog.append('x' * 1000)\n",
        "yield MrConfigureToReturn()\nfor number in range(1 << 30):\n    yield number, 'x' * (90_000 + number)\n",
        "x = [0] * (1 << 40)\n",
    ],
)
def test_a_memory_hog_runs_out_of_memory(source: str) -> None:
    failure = misplayed(source, memory_bytes=256 << 20)
    assert failure.exception_type == "HandlerOutOfMemory"
    assert str(256 << 20) in failure.exception_message
    assert failure.fatal


def test_a_gigabyte_of_output_is_cut_and_no_process_grows_with_it() -> None:
    source = """
    import os, resource
    yield MrConfigureToReturn()
    print("the head")
    block = "x" * 1023 + "\\n"
    for number in range(1 << 10):
        os.write(1, block.encode() * 1024)
    print("the tail")
    yield "peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: list[Outcome] = []

    async def test(pool: RunnerPool) -> None:
        found.append(await play(pool, task(handler(source), wall_s=60.0)))

    with_pool(test, output_bytes=100_000)
    text = found[0].finished.stdout
    assert text.startswith("the head\n")
    assert text.endswith("the tail\n")
    assert re.search(r"… 1073[67]\d{5} bytes left out …", text)
    assert len(text) < 60_000
    assert found[0].output[0][1] < 200 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


# --- processes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("escape", ["", "os.setsid()", "os.setsid(); os.fork() and os._exit(0)"])
def test_too_many_processes_are_ended_all_of_them(escape: str, tmp_path: Path) -> None:
    source = f"""
    import os, time
    for number in range(150):
        if os.fork() == 0:
            {escape or "pass"}
            with open({str(tmp_path)!r} + "/" + str(os.getpid()), "w"): pass
            time.sleep(60)
            os._exit(0)
    time.sleep(60)
    """
    began = time.monotonic()
    failure = misplayed(source, processes=32)
    assert (failure.exception_type, "32 processes" in failure.exception_message) == ("HandlerKilled", True)
    assert time.monotonic() - began < 20
    until(
        lambda: not any(psutil.pid_exists(int(name)) for name in os.listdir(tmp_path)), what="the end of all processes"
    )


@pytest.mark.parametrize("escape", ["", "os.getpgrp() == os.getpid() or os.setsid()"])
def test_a_fork_bomb_is_put_out(escape: str) -> None:
    # It ends by itself, should all else fail.
    source = f"""
    import os, time
    end = time.monotonic() + 3
    while time.monotonic() < end:
        os.fork()
        {escape or "pass"}
    os._exit(0)
    """
    failure = misplayed(source, size=2, processes=32)
    assert (failure.exception_type, "32 processes" in failure.exception_message) == ("HandlerKilled", True)


def test_processes_that_a_handler_leaves_behind_are_ended_before_the_next_task(tmp_path: Path) -> None:
    marker = f"left-behind-{os.getpid()}"
    source = f"""
    import os, subprocess, sys
    yield MrConfigureToReturn()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)", {marker!r}]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        subprocess.Popen(sleep)
        os._exit(0)
    yield 1, 1
    """

    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        process = runner.process
        outcome = await follow(runner, task(handler(source)))
        assert outcome.output == [[1, 1]]
        assert running(marker) == []
        pool.release(runner)
        # It was tidied up and not replaced.
        assert (await pool.acquire()).process == process
        pool.release(runner)

    with_pool(test)


def test_a_forked_child_that_comes_back_from_the_handler_does_no_harm() -> None:
    source = """
    import os
    yield MrConfigureToReturn()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        yield "parent", 1
    else:
        yield "child", 1
    """
    found: list[Outcome] = []

    async def test(pool: RunnerPool) -> None:
        found.append(await play(pool, handler(source)))

    with_pool(test)
    assert found[0].output == [["parent", 1]]


def test_killing_the_zygote_costs_an_attempt_and_no_more() -> None:
    failure = misplayed("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)\n", size=2)
    assert (failure.exception_type, failure.fatal) == ("HandlerKilled", True)


def test_stopping_the_zygote_is_no_hang() -> None:
    began = time.monotonic()
    source = "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nwhile True: pass\n"
    failure = misplayed(source, size=2, wall_s=0.3)
    assert failure.exception_type == "HandlerTimeout"
    assert time.monotonic() - began < 20


def test_what_a_killed_handler_started_ends_with_it() -> None:
    marker = f"started-{os.getpid()}"
    source = f"""
    import subprocess, sys
    sleep = [sys.executable, "-c", "import time; time.sleep(60)", {marker!r}]
    subprocess.Popen(sleep)
    subprocess.Popen(sleep, start_new_session=True)
    while True: pass
    """

    async def test(pool: RunnerPool) -> None:
        outcome = await play(pool, task(handler(source), wall_s=0.5))
        assert outcome.failure.exception_type == "HandlerTimeout"
        assert running(marker) == []

    with_pool(test)


# --- the channel ---------------------------------------------------------------------------------------------------

FIND_CHANNEL = """
import os, socket, stat, time
channel = next(fd for fd in range(3, 2000) if os.path.exists(f"/proc/self/fd/{fd}")
               and stat.S_ISSOCK(os.fstat(fd).st_mode))
"""


@pytest.mark.parametrize(
    "rubbish",
    [
        "os.write(channel, b'\\xff' * 100)",
        "os.write(channel, (5).to_bytes(4, 'big') + b'hello')",
        "os.write(channel, (2**31).to_bytes(4, 'big'))",
        "os.write(channel, b'\\0\\0\\0\\0')",
    ],
)
def test_rubbish_on_the_channel_costs_the_runner_its_life(rubbish: str) -> None:
    failure = misplayed(f"{FIND_CHANNEL}\n{rubbish}\ntime.sleep(60)\n")
    assert (failure.exception_type, failure.fatal) == ("HandlerContractError", True)
    assert "channel" in failure.exception_message


def test_the_end_of_another_task_is_rubbish() -> None:
    source = """
    import msgspec
    from mr.handlers.protocol import Finished
    body = msgspec.msgpack.encode(Finished(session=b"{}", stdout="", stderr="", task_id=123456))
    os.write(channel, len(body).to_bytes(4, "big") + body)
    time.sleep(60)
    """
    failure = misplayed(FIND_CHANNEL + "\n".join(line.strip() for line in source.splitlines()) + "\n")
    assert failure.exception_type == "HandlerContractError"


@pytest.mark.parametrize(
    "what", ["os.close(channel)", "os.dup2(0, channel)", "socket.socket(fileno=channel).shutdown(2)"]
)
def test_a_closed_channel_is_no_hang(what: str) -> None:
    failure = misplayed(f"{FIND_CHANNEL}\n{what}\n")
    assert (failure.exception_type, failure.fatal) == ("HandlerContractError", True)
    assert "closed the runner's own channel" in failure.exception_message


def test_rubbish_after_the_end_is_noticed() -> None:
    source = f"""{FIND_CHANNEL}
yield MrConfigureToReturn()
import threading
threading.Timer(0.1, os.write, (channel, b"late rubbish")).start()
yield 1, 1
"""

    async def test(pool: RunnerPool) -> None:
        outcome = await play(pool, handler(source))
        assert outcome.output == [[1, 1]]
        assert outcome.finished.fatal

    with_pool(test)


def test_a_runner_that_reads_nothing_is_no_hang() -> None:
    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        os.kill(runner.process, signal.SIGSTOP)
        inputs = [[["key", "x" * 1000]] * 1000] * 8
        outcome = await asyncio.wait_for(follow(runner, task(handler("x = 1\n"), wall_s=0.3), inputs), 10)
        assert outcome.failure.exception_type == "HandlerTimeout"
        pool.release(runner)

    with_pool(test)


def test_a_worker_that_reads_slowly_holds_the_handler_back() -> None:
    source = "yield MrConfigureToMap('next')\nfor n in range(100_000):\n    yield n, 'x' * 500\n"

    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        seen = 0
        async for event in runner.run(task(handler(source)), [b"[]"]):
            assert runner._queued < 3 << 20
            seen += len(getattr(event, "pairs", ()))
            if seen < 5000:
                await asyncio.sleep(0.01)
        assert seen == 100_000
        pool.release(runner)

    with_pool(test)


# --- what is left between tasks ------------------------------------------------------------------------------------


def test_a_task_leaves_nothing_for_the_next_one() -> None:
    messy = """
    import os, signal, sys, io, gc, resource
    yield MrConfigureToReturn()
    global counter
    counter = globals().get("counter", 0) + 1
    yield "counter", counter
    yield "was", [os.getcwd(), os.environ.get("LEFT"), os.umask(0o077), sys.path[:1], os.listdir(),
                  signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, gc.isenabled(),
                  resource.getrlimit(resource.RLIMIT_NOFILE)[0], sorted(signal.pthread_sigmask(0, ()))]
    os.environ["LEFT"] = "behind"
    del os.environ["HOME"]
    open("left", "w").close()
    os.makedirs("left-too/deep")
    os.chdir("/")
    sys.path.insert(0, "/left")
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.alarm(1)
    gc.disable()
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.stdout.write("no newline")
    sys.stdout = io.StringIO()
    """

    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        first = await follow(runner, task(handler(messy)))
        second = await follow(runner, task(handler(messy)))
        assert first.output == second.output
        assert dict(first.output)["counter"] == 1
        assert (first.finished.stdout, second.finished.stdout) == ("no newline", "no newline")
        assert not second.finished.fatal
        pool.release(runner)

    with_pool(test)


@pytest.mark.parametrize(
    "source",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nreturn []\n",
        "import os\nos.close(1)\nreturn []\n",
        "import os\nos.dup2(0, 2)\nreturn []\n",
        "import sys\nsys.stdout.close()\nreturn []\n",
        "import os, sys\nsys.kept = [os.dup(0) for _ in range(100)]\nreturn []\n",
        "import sys\nsys.kept = bytearray(200 << 20)\nreturn []\n",
    ],
)
def test_a_runner_that_cannot_be_put_in_order_is_replaced(source: str) -> None:
    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        outcome = await follow(runner, task(handler(source)))
        assert outcome.finished.fatal
        pool.release(runner)

    with_pool(test, memory_bytes=512 << 20)


def test_a_handler_is_sent_once_and_the_oldest_is_forgotten() -> None:
    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        bodies = [handler(f"yield MrConfigureToReturn()\nyield {number}, 0\n") for number in range(100)]
        for number in [*range(100), *range(99, -1, -1), 5, 99, 5]:
            outcome = await follow(runner, task(bodies[number]))
            assert outcome.output == [[number, 0]]
        assert len(runner._known) == 64
        pool.release(runner)

    with_pool(test)


# --- the pool ------------------------------------------------------------------------------------------------------


def test_tasks_run_side_by_side_and_wait_for_a_free_runner() -> None:
    source = "import os, time\nyield MrConfigureToReturn()\ntime.sleep(0.05)\nyield os.getpid(), 1\n"

    async def test(pool: RunnerPool) -> None:
        outcomes = await asyncio.gather(*[play(pool, handler(source)) for _ in range(8)])
        assert len({outcome.output[0][0] for outcome in outcomes}) == 2

    with_pool(test, size=2)


def test_a_run_that_nobody_follows_to_its_end_is_ended() -> None:
    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        events = runner.run(task(handler("yield MrConfigureToMap('x')\nwhile True: yield 1, 'x' * 1000\n")), [b"[]"])
        async for _ in events:
            break
        await events.aclose()  # type: ignore[attr-defined]
        pool.release(runner)
        with pytest.raises(RunnerBroken):
            await follow(runner, task(handler("return []\n")))

    with_pool(test)


def test_a_runner_that_is_given_back_too_early_is_not_given_to_others() -> None:
    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        events = runner.run(task(handler("while True: pass\n")), [b"[]"])
        running = asyncio.ensure_future(anext_of(events))
        await until_async(lambda: runner.is_running)
        pool.release(runner)
        assert isinstance(await running, Failed)

    with_pool(test)


async def anext_of(events: Any) -> Any:
    return await events.__anext__()


def test_an_idle_runner_that_dies_is_replaced() -> None:
    async def test(pool: RunnerPool) -> None:
        runner = await pool.acquire()
        pool.release(runner)
        os.kill(runner.process, signal.SIGKILL)
        await until_async(lambda: not runner.is_usable, what="the notice of its death")

    with_pool(test)


def test_closing_ends_what_runs() -> None:
    async def main() -> None:
        async with opened(2) as pool:
            runner = await pool.acquire()
            assert runner.process
            running = asyncio.ensure_future(follow(runner, task(handler("print('x')\nwhile True: pass\n"))))
            await until_async(lambda: runner._out._total > 0)
            waiters = [asyncio.ensure_future(pool.acquire()) for _ in range(3)]
            await asyncio.sleep(0)
        assert (await running).failure.exception_type == "HandlerKilled"
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert sum(isinstance(outcome, RunnerBroken) for outcome in outcomes) == 2
        assert not psutil.pid_exists(runner.process)
        with pytest.raises(RunnerBroken):
            await pool.acquire()

    asyncio.run(main())


def test_a_scope_factory_that_is_not_there_is_told_at_the_start() -> None:
    async def main() -> None:
        with pytest.raises(InvalidConfig, match="MR_WORKFLOW_SCOPE_FACTORY_FQ_CLASS"):
            async with opened(scope_factory="nothing.like.This"):
                pass

    asyncio.run(main())


def test_a_worker_with_many_open_files_starts_runners_that_have_none_of_them() -> None:
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(500)]
    try:
        for fd in kept:
            os.set_inheritable(fd, True)

        async def test(pool: RunnerPool) -> None:
            source = (
                "import os\nyield MrConfigureToReturn()\nyield 'open', sorted(map(int, os.listdir('/proc/self/fd')))\n"
            )
            found = (await play(pool, handler(source))).output[0][1]
            assert found[:3] == [0, 1, 2]
            # Its channel, and the listing itself.
            assert len(found) == 5

        with_pool(test)
    finally:
        for fd in kept:
            os.close(fd)


WORKER = """
import asyncio, sys, threading
sys.path.insert(0, sys.argv[1])
from runner_harness import follow, handler, opened, task

SOURCE = '''
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
open("{0}/" + str(os.getpid()), "w").close()
while True: time.sleep(0.01)
'''.format(sys.argv[2])

async def main():
    async with opened(3) as pool:
        busy = await pool.acquire()
        await follow(busy, task(handler(SOURCE)))

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_runners_end_with_their_worker_however_it_ends(number: int, tmp_path: Path) -> None:
    worker = subprocess.Popen([sys.executable, "-c", WORKER, HERE, str(tmp_path)])
    try:
        until(lambda: len(os.listdir(tmp_path)) == 1, 20, "the handler's start")
        below = psutil.Process(worker.pid).children(recursive=True)
        # The zygote, three runners, and what one of them started.
        assert len(below) == 5
        worker.send_signal(number)
        worker.wait()
        began = time.monotonic()
        until(lambda: not any(one.is_running() and one.status() != "zombie" for one in below), 5, "the end of all")
        assert time.monotonic() - began < 1.0
    finally:
        worker.kill()
        worker.wait()


def test_a_storm_of_good_and_bad_tasks_is_weathered() -> None:
    bad = [
        "1/0\n",
        "import os\nos._exit(1)\n",
        "import ctypes\nctypes.string_at(0)\n",
        "yield 5\n",
        "while True: pass\n",
    ]

    async def test(pool: RunnerPool) -> None:
        async def one(number: int) -> None:
            outcome = await play(pool, task(handler(bad[number % len(bad)]), wall_s=0.1))
            assert isinstance(outcome.end, Failed)

        await asyncio.gather(*[one(number) for number in range(40)])
        await expect_well(pool)

    with_pool(test, size=3)
