"""From a handler's source to its pairs, without a process around it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mr.errors import InvalidHandler
from mr.handlers.compiler import HandlerContractError, Output, Session, compile_handler
from mr.handlers.header import make_handler
from mr.handlers.scope import standard_scope
from mr.handlers.tracebacks import handler_traceback
from mr.model.entities import Handler, HandlerType


def output(source: str, argument: Any = (), kind: HandlerType = "mapper", **scope: Any) -> Output:
    handler = make_handler("words", "h", "", kind, source, path="h.py")
    return Output(compile_handler(handler), {**standard_scope(), **scope}, argument)


def test_a_body_and_a_function_give_the_same() -> None:
    body = output("yield MrConfigureToReturn()\nfor key, value in arguments:\n    yield value, key\n", [(1, 2)])
    function = output(
        "def mapper(given):\n    yield MrConfigureToReturn()\n    for key, value in given:\n        yield value, key\n",
        [(1, 2)],
    )
    for found in (body, function):
        assert found.direction() is None
        assert list(found.pairs()) == [(2, 1)]


def test_helpers_recursion_comprehensions_and_classes_work_in_a_body() -> None:
    source = """
from __future__ import annotations
import math
from dataclasses import dataclass

@dataclass
class Point:
    x: int
    y: "int"

def size(n):
    return 1 if n == 0 else n * size(n - 1)

yield MrConfigureToMap("next")
factor = 2
yield "points", [Point(n * factor, 0).x for n in range(3)]
yield "size", size(4) + math.floor(1.5)
"""
    found = output(source)
    assert found.direction() == "next"
    assert list(found.pairs()) == [("points", [0, 2, 4]), ("size", 25)]


def test_globals_are_fresh_in_every_run() -> None:
    handler = make_handler("words", "h", "", "reducer", "seen = []\ndef reducer(results):\n    seen.append(1)\n"
                           "    yield 'seen', len(seen)\n")  # fmt: skip
    program = compile_handler(handler)
    for _ in range(2):
        assert list(Output(program, {}, []).pairs()) == [("seen", 1)]


def test_lines_are_those_of_the_file_whatever_the_form() -> None:
    source = '"""\n**\nhandler_type: mapper\n"""\n\nfrom __future__ import annotations\n\n\nraise ValueError("here")\n'
    with pytest.raises(ValueError) as caught:
        output(source).direction()
    told = handler_traceback(caught.value)
    assert told.endswith('  File "h.py", line 9, in mapper\n    raise ValueError("here")\nValueError: here')
    assert "mr/handlers" not in told


def test_two_handlers_with_one_file_name_show_their_own_lines() -> None:
    one, two = (make_handler("words", "h", "", "mapper", f"raise ValueError('{word}')\n", path="h.py") for word in "ab")
    programs = [compile_handler(one), compile_handler(two)]
    for program, word in [(programs[0], "a"), (programs[1], "b"), (programs[0], "a")]:
        with pytest.raises(ValueError) as caught:
            Output(program, {}, []).direction()
        assert f"    raise ValueError('{word}')" in handler_traceback(caught.value)


def test_the_line_of_a_breach_is_that_of_the_innermost_yield_of_the_handler() -> None:
    source = "def inner():\n    yield 1, 1\n    yield 7\n\nyield MrConfigureToReturn()\nyield from inner()\n"
    found = output(source)
    found.direction()
    with pytest.raises(HandlerContractError, match=r"^h\.py:3: A handler yields pairs .* yielded 7 \(int\)\.$"):
        list(found.texts())


def test_a_handlers_finally_runs_when_it_is_closed_and_its_errors_are_swallowed() -> None:
    events: list[str] = []
    source = "yield MrConfigureToReturn()\ntry:\n    yield 5\nfinally:\n    events.append('closed')\n    1 / 0\n"
    found = output(source, events=events)
    found.direction()
    with pytest.raises(HandlerContractError):
        list(found.pairs())
    found.close()
    assert events == ["closed"]


@pytest.mark.parametrize("source", ["return {'a': 1}\n", "return 'ab'\n", "return 5\n"])
def test_what_is_returned_has_to_be_pairs(source: str) -> None:
    with pytest.raises(HandlerContractError, match="A handler may return pairs"):
        output(source).direction()


def test_a_generator_that_is_returned_has_to_say_where_it_goes_and_a_list_need_not() -> None:
    with pytest.raises(HandlerContractError, match="first yield"):
        output("return ((n, n) for n in range(2))\n").direction()
    listed = output("return [(1, 1)]\n")
    assert listed.direction() is None
    assert list(listed.texts()) == [("1", "1")]


def test_source_of_an_unknown_language_or_with_wrong_syntax_is_refused() -> None:
    handler = make_handler("words", "h", "", "mapper", "x = 1\n")
    changed: dict[str, Any] = {name: getattr(handler, name) for name in handler.__struct_fields__}
    with pytest.raises(HandlerContractError, match="'cobol'"):
        compile_handler(Handler(**{**changed, "source_type": "cobol"}))
    with pytest.raises(InvalidHandler, match=r"h\.py:2:"):
        compile_handler(Handler(**{**changed, "source_code": "x = 1\ny = = 2\n"}))


def test_a_session_gives_copies_and_writes_strict_json() -> None:
    session = Session(b'{"a": [1]}', True)
    session.get("a").append(2)
    assert session.get("a") == [1]
    session.set("b", ("x", None))
    assert session.get("b") == ["x", None]
    assert session.list() == ["a", "b"]
    assert session.text() == b'{"a":[1],"b":["x",null]}'
    with pytest.raises(KeyError):
        session.get("c")
    with pytest.raises(HandlerContractError):
        session.set("c", float("nan"))
    with pytest.raises(HandlerContractError):
        session.set(5, "x")  # type: ignore[arg-type]
    with pytest.raises(HandlerContractError, match="only read"):
        Session(b"{}", False).set("a", 1)


def test_a_log_with_a_wrong_format_string_says_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    log = standard_scope()["LOG"]
    log.info("%d of %d", 1)
    log.error("%(name)s", {"name": "x"})
    log.debug(ValueError("100%"))
    assert capsys.readouterr().err == "INFO: %d of %d (1,)\nERROR: x\nDEBUG: 100%\n"


def test_the_runner_imports_little() -> None:
    import subprocess

    program = "import sys, mr.handlers.zygote; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split())
    assert not loaded & {"yaml", "flask", "gevent", "asyncio", "click", "rich", "http", "ssl"}
