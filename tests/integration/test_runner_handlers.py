"""What authors of handlers see: input, output, sessions, scope, tracebacks, contracts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runner_harness import Outcome, handler, play, task, with_pool

from mr.handlers.pool import RunnerPool
from mr.handlers.protocol import Children, Output
from mr.model.entities import Argument, Handler


def played(one: Handler, *inputs: object, combiner: Handler | None = None, **more: object) -> Outcome:
    """What comes of one task on a pool of its own."""
    found: list[Outcome] = []

    async def test(pool: RunnerPool) -> None:
        found.append(await play(pool, task(one, combiner, **more), inputs or ([],)))

    with_pool(test)
    return found[0]


ADD = handler(
    """
    def reducer(results):
        for word, counts in results:
            yield word, sum(counts)
    """,
    "reducer",
    "add",
)


def test_a_mapper_that_maps_gives_its_children_in_order() -> None:
    source = """
    yield MrConfigureToMap("next")
    for number in range(1000):
        yield number, {"text": "ä" * 10}
    """
    found = played(handler(source))
    assert found.direction == "next"
    assert found.children == [[number, {"text": "ä" * 10}] for number in range(1000)]
    assert all(len(frame.pairs) <= 256 for frame in found.frames if isinstance(frame, Children))


def test_a_mapper_that_returns_has_its_pairs_in_the_order_of_groups() -> None:
    source = """
    yield MrConfigureToReturn()
    for key in ["b", 2, None, "a", [1, "x"], True, 1.5, "b"]:
        yield key, [key]
    """
    found = played(handler(source))
    assert found.direction == ""
    assert [key for key, _ in found.output] == [None, True, 1.5, 2, "a", "b", "b", [1, "x"]]
    assert all(value == [key] for key, value in found.output)


def test_arguments_are_pairs_with_lists_as_tuples() -> None:
    source = """
    yield MrConfigureToReturn()
    assert isinstance(arguments, list)
    yield "seen", repr(arguments)
    """
    found = played(handler(source), [["a", {"x": [1]}], [[1, [2]], None]], [[True, 1.0]])
    assert found.output == [["seen", "[('a', {'x': [1]}), ((1, (2,)), None), (True, 1.0)]"]]


def test_an_iterator_is_lazy() -> None:
    source = """
    yield MrConfigureToReturn()
    yield "first", next(lines)[1]
    yield "is a list", isinstance(lines, list)
    """
    lazy = Argument(name="lines", type="iterator")
    # The second input is never looked at, so that it is no JSON does not matter.
    found: list[Outcome] = []

    async def test(pool: RunnerPool) -> None:
        found.append(await play(pool, handler(source, argument=lazy), [[["a", 1]], [["b", 2]]]))

    with_pool(test)
    assert found[0].output == [["first", 1], ["is a list", False]]


def test_the_combiner_works_on_the_mappers_groups() -> None:
    source = """
    yield MrConfigureToReturn()
    for word in "to be or not to be".split():
        yield word, 1
    """
    found = played(handler(source), combiner=ADD)
    assert found.output == [["be", 2], ["not", 1], ["or", 1], ["to", 2]]


def test_a_reducer_gets_groups_in_order_with_values_in_order_of_arrival() -> None:
    source = "for key, values in results:\n    yield key, values\n"
    found = played(handler(source, "reducer"), [["b", 1], [1, 2], ["a", 3]], [["b", 4], [[1], 5], ["b", 6]])
    assert found.output == [[1, [2]], ["a", [3]], ["b", [1, 4, 6]], [[1], [5]]]


def test_the_partitions_of_a_reduce_are_the_whole() -> None:
    pairs = [[f"word-{number % 50}", number] for number in range(500)]
    source = "for key, values in results:\n    yield key, values\n"
    found: list[object] = []

    async def test(pool: RunnerPool) -> None:
        for partition in range(3):
            part = await play(pool, task(handler(source, "reducer"), partition=partition, partitions=3), [pairs])
            assert 0 < len(part.output) < 50
            found.extend(part.output)

    with_pool(test)
    assert sorted(found) == sorted([f"word-{n}", list(range(n, 500, 50))] for n in range(50))  # type: ignore[type-var]


def test_no_pairs_are_a_valid_outcome() -> None:
    assert played(handler("yield MrConfigureToReturn()\n")).output == []
    assert played(handler("yield MrConfigureToMap('next')\n")).children == []
    assert played(ADD).output == []


def test_a_handler_may_return_its_pairs() -> None:
    assert played(handler("return [('a', 1), ['b', 2]]\n")).output == [["a", 1], ["b", 2]]
    found = played(handler("yield MrConfigureToMap('next')\nyield 1, 1\nreturn {2: 2}.items()\n"))
    assert (found.direction, found.children) == ("next", [[1, 1], [2, 2]])
    found = played(
        handler("def reducer(results):\n    return ((k, len(v)) for k, v in results)\n", "reducer"), [["a", 1]]
    )
    assert found.output == [["a", 1]]


def test_a_value_is_kept_as_it_was_when_it_was_yielded() -> None:
    source = """
    yield MrConfigureToReturn()
    value = []
    for number in range(3):
        value.append(number)
        yield number, value
    """
    keep = handler("for key, values in results:\n    yield key, values[0]\n", "combiner", "keep")
    expected = [[0, [0]], [1, [0, 1]], [2, [0, 1, 2]]]
    assert played(handler(source)).output == expected
    assert played(handler(source), combiner=keep).output == expected


def test_large_output_comes_in_pieces() -> None:
    source = """
    yield MrConfigureToReturn()
    for number in range(20000):
        yield number, "x" * 100
    yield 20000, "y" * 1000000
    """
    found = played(handler(source))
    assert [key for key, _ in found.output] == list(range(20001))
    pieces = [frame for frame in found.frames if isinstance(frame, Output)]
    assert len(pieces) > 30
    assert all(len(piece.pairs) <= 65536 for piece in pieces[:-1])
    assert found.output[-1][1] == "y" * 1000000


def test_large_input_arrives() -> None:
    inputs = [[[number, "x" * 1000] for number in range(start, start + 1000)] for start in range(0, 20000, 1000)]
    found = played(handler("for key, values in results:\n    yield key % 10, 1\n", "reducer"), *inputs)
    assert len(found.output) == 20000


# --- session, scope and context ----------------------------------------------------------------------------------


def test_mapper_and_combiner_share_a_session_that_the_reducer_reads() -> None:
    mapper = """
    S_SET("started", {"at": [1, 2]})
    yield MrConfigureToReturn()
    yield 1, S_GET("started")["at"]
    """
    combiner = """
    S_SET("combined", S_GET("started")["at"][0])
    for key, values in results:
        yield key, ctx.session_list()
    """
    reducer = """
    for key, values in results:
        yield key, [ctx.session_get("combined"), S_LIST(), S_GET("nothing", "default")]
    """
    first = played(handler(mapper), combiner=handler(combiner, "combiner", "c"))
    assert first.output == [[1, ["combined", "started"]]]
    session = first.finished.session
    assert json.loads(session) == {"started": {"at": [1, 2]}, "combined": 1}
    second = played(handler(reducer, "reducer"), [[1, 1]], session=session)
    assert second.output == [[1, [1, ["combined", "started"], "default"]]]


def test_a_reducer_cannot_write_the_session_and_a_missing_name_is_told() -> None:
    failure = played(handler("yield 1, 1\nS_SET('a', 1)\n", "reducer", path="add.py")).failure
    assert failure.exception_type == "HandlerContractError"
    assert failure.exception_message.startswith("add.py:2: The session belongs to the mapper")
    failure = played(handler("S_GET('nothing')\n", "reducer")).failure
    assert (failure.exception_type, "'nothing'" in failure.exception_message) == ("KeyError", True)


def test_the_context_says_where_the_handler_runs() -> None:
    source = """
    yield MrConfigureToReturn()
    yield "ctx", [ctx.request_id, ctx.invocation_id, ctx.workflow_name, ctx.handler_name]
    yield "more", [ctx.is_cancelled, ctx.auxiliary]
    yield "paths", JOIN("a", "b") + SEP
    """
    found = played(handler(source))
    assert found.output == [
        ["ctx", ["request-1", "invocation-1", "words", "split"]],
        ["more", [False, None]],
        ["paths", "a/b/"],
    ]


def test_what_a_handler_prints_logs_and_runs_is_kept() -> None:
    source = """
    import os, sys
    yield MrConfigureToReturn()
    print("printed")
    PRINT("told")
    LOG.info("%s and %d", "logged", 1)
    NOTIFY.warning("100% noted")
    try:
        1 / 0
    except ZeroDivisionError:
        EMAIL.exception("failed: %s", "why")
    yield "cat", RUN(["cat"], input_data="from cat\\n")
    yield "shell", RUN("echo $EXTRA; exit 3", env={"EXTRA": "from shell"}, success_code=3)
    os.write(1, b"raw \\xff\\n")
    sys.stdout.write("without an end")
    """
    found = played(handler(source, path="split.py"))
    assert found.output == [["cat", 0], ["shell", 3]]
    assert found.finished.stdout == "printed\ntold\nfrom cat\nfrom shell\nraw \ufffd\nwithout an end"
    lines = found.finished.stderr.splitlines()
    assert lines[:4] == ["INFO: logged and 1", "WARNING NOTIFY: 100% noted", "ERROR EMAIL: failed: why",
                         "Traceback (most recent call last):"]  # fmt: skip
    assert lines[4] == '  File "split.py", line 9, in mapper'
    noted, mailed = found.told
    assert (noted.channel, noted.level, noted.text) == ("NOTIFY", "WARNING", "100% noted")
    assert (mailed.channel, mailed.level) == ("EMAIL", "ERROR")
    assert mailed.text.splitlines()[:3] == ["failed: why", *lines[3:5]]


def test_others_are_told_of_a_bounded_number_of_messages_also_from_threads_and_not_by_forks() -> None:
    source = """
    import os, threading
    yield MrConfigureToReturn()
    threads = [threading.Thread(target=lambda: [HTTP.info("thread") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(500):
        yield number, "x" * 1000
    for thread in threads:
        thread.join()
    child = os.fork()
    if not child:
        HTTP.info("forked")
        os._exit(0)
    os.waitpid(child, 0)
    for number in range(50):
        HTTP.info("%d", number)
    """
    found = played(handler(source))
    assert [message.text for message in found.told] == ["thread"] * 80 + [str(number) for number in range(20)]
    assert len(found.output) == 500
    assert found.finished.stderr.count("not of more") == 1
    assert "INFO HTTP: 49" in found.finished.stderr and "INFO HTTP: forked" in found.finished.stderr


def test_the_environment_has_no_secrets_and_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MR_KV_URL", "etcd://user:secret@host")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    source = """
    import os, tempfile
    yield MrConfigureToReturn()
    yield "env", sorted(os.environ)
    yield "home", os.environ["HOME"] == os.getcwd() == tempfile.gettempdir()
    yield "files", os.listdir()
    """
    found = dict(played(handler(source)).output)
    assert set(found["env"]) <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "HOME", "TMPDIR"}
    assert found["home"] is True
    assert found["files"] == []


def test_a_scope_factory_adds_globals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "team_scope.py").write_text(
        "class Factory:\n"
        "    def get_scope(self, workflow_name, handler_name):\n"
        "        return {'WHERE': workflow_name + '/' + handler_name}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found: list[Outcome] = []

    async def test(pool: RunnerPool) -> None:
        found.append(await play(pool, handler("yield MrConfigureToReturn()\nyield 'where', WHERE\n")))

    with_pool(test, scope_factory="team_scope.Factory")
    assert found[0].output == [["where", "words/split"]]


# --- failures ----------------------------------------------------------------------------------------------------


def test_a_traceback_shows_the_handlers_file_line_and_source_and_nothing_of_the_platform() -> None:
    source = """
    yield MrConfigureToReturn()

    def helper(value):
        return 1 / value

    print("before")
    yield 1, helper(0)
    """
    failure = played(handler(source, path="map/split.py")).failure
    assert (failure.exception_type, failure.exception_message) == ("ZeroDivisionError", "division by zero")
    lines = failure.traceback.splitlines()
    assert '  File "map/split.py", line 8, in mapper' in lines
    assert "    yield 1, helper(0)" in lines
    assert '  File "map/split.py", line 5, in helper' in lines
    assert "    return 1 / value" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "mr/handlers" not in failure.traceback
    assert failure.stdout == "before\n"
    assert not failure.fatal


def test_a_function_form_keeps_its_lines_and_chained_exceptions() -> None:
    source = '''
    """Doc."""
    import json

    def mapper(arguments):
        yield MrConfigureToReturn()
        try:
            json.loads("{")
        except ValueError as error:
            raise RuntimeError("wrapped") from error
    '''
    told = played(handler(source, path="split.py")).failure.traceback
    assert 'File "split.py", line 8, in mapper' in told
    assert 'File "split.py", line 10, in mapper' in told
    assert "direct cause" in told
    assert "mr/handlers" not in told


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "\nyield 1, 2\n",
            "split.py:2: A mapper's first yield has to be MrConfigureToMap(STEP) or MrConfigureToReturn()",
        ),
        ("\nyield MrConfigureToReturn\n", "split.py:2: A mapper's first yield"),
        ("x = 1\n", "split.py:1: A mapper's first yield has to be"),
        (
            "yield MrConfigureToReturn()\n\nyield 5\n",
            "split.py:3: A handler yields pairs (key, value); this one yielded 5",
        ),
        ("yield MrConfigureToReturn()\nyield 'ab'\n", "split.py:2: A handler yields pairs"),
        ("yield MrConfigureToReturn()\nyield {}, 1\n", "split.py:2: A key has to be null"),
        ("yield MrConfigureToMap('x')\nyield 1, float('nan')\n", "split.py:2: A value is not JSON: nan"),
        ("yield MrConfigureToMap('x')\nyield 1, {1, 2}\n", "split.py:2: A value is not JSON: {1, 2}"),
        (
            "yield MrConfigureToReturn()\nyield MrConfigureToReturn()\n",
            "split.py:2: MrConfigureToReturn() came a second",
        ),
        ("return 5\n", "split.py:1: A handler may return pairs, and this one returned 5 (int)."),
        ("yield MrConfigureToReturn()\nreturn {'a': 1}\n", "split.py:1: A handler may return pairs"),
        ("S_SET('a', float('inf'))\n", "split.py:1: A value is not JSON: inf"),
        ("yield MrConfigureToReturn()\nyield 1, 'x' * (17 * 1024 * 1024)\n", "split.py:2: A pair has 17825795 bytes"),
        (
            "def f():\n  yield 1\n  yield 7\nyield MrConfigureToReturn()\nyield from f()\n",
            "split.py:2: A handler yields",
        ),
    ],
)
def test_a_breach_of_the_contract_is_told_with_file_and_line(source: str, told: str) -> None:
    failure = played(handler(source, path="split.py")).failure
    assert failure.exception_type == "HandlerContractError"
    assert failure.exception_message.startswith(told)
    assert not failure.fatal


def test_the_source_line_of_a_breach_is_in_the_traceback() -> None:
    failure = played(handler("yield MrConfigureToReturn()\nyield 5  # here\n", path="split.py")).failure
    assert '  File "split.py", line 2, in mapper\n    yield 5  # here\n' in failure.traceback


def test_a_reducer_that_configures_is_told_so() -> None:
    failure = played(handler("yield MrConfigureToReturn()\n", "reducer")).failure
    assert "is for mappers" in failure.exception_message


def test_exceptions_that_cannot_be_told_are_told_somehow() -> None:
    source = """
    class Odd(Exception):
        def __str__(self):
            raise ValueError("no")
    raise Odd()
    """
    failure = played(handler(source)).failure
    assert failure.exception_type == "Odd"
    failure = played(handler("raise ValueError('\\ud800' + 'x' * 10_000_000)\n")).failure
    assert failure.exception_type == "ValueError"
    assert len(failure.exception_message) < 20_000
    assert len(failure.traceback) < 70_000
    failure = played(handler("def f():\n    f()\nf()\n")).failure
    assert failure.exception_type == "RecursionError"
    assert len(failure.traceback) < 10_000
