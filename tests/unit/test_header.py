"""From a handler's source to what the platform knows of it."""

from __future__ import annotations

import pytest

from mr.errors import InvalidHandler
from mr.handlers.header import make_handler, read_handler
from mr.model.entities import Argument, Handler, Parameter

CLASSIC = '''"""
Counts words.

Slowly.

**
handler_type: mapper
required_capability: big_box
argument_spec:
    - name: lines
      type: iterator
parameters:
    - {name: text, type: string, description: What to count.}
    - {name: limit, type: integer, default: 10}
"""

yield MrConfigureToReturn()

for key, line in lines:
    for word in line.split():
        yield word, 1
'''


def read(source: str, name: str = "split", path: str = "map/split.py") -> Handler:
    return read_handler("words", name, source, path)


def problems(source: str, name: str = "split") -> list[str]:
    with pytest.raises(InvalidHandler) as caught:
        read(source, name, "split.py")
    return caught.value.problems


def test_a_docstring_header_says_everything() -> None:
    handler = read(CLASSIC)
    assert handler.handler_name == "split"
    assert handler.workflow_name == "words"
    assert handler.description == "Counts words.\n\nSlowly."
    assert handler.handler_type == "mapper"
    assert handler.required_capability == "big_box"
    assert handler.argument_spec == [Argument(name="lines", type="iterator")]
    assert handler.parameters == [
        Parameter(name="text", type="string", description="What to count."),
        Parameter(name="limit", type="integer", required=False, default=10),
    ]
    assert handler.source_code == CLASSIC
    assert handler.path == "map/split.py"


def test_a_header_may_be_json() -> None:
    source = (
        '"""Adds.\n\n**json\n{\n\t"handler_type": "reducer"\n}\n"""\nfor key, values in results:\n    yield key, 1\n'
    )
    handler = read(source)
    assert (handler.handler_type, handler.description, handler.argument_spec[0].name) == ("reducer", "Adds.", "results")
    assert problems(source.replace("}", "")) == ["split.py:5: This is not JSON: Expecting ',' delimiter"]
    assert problems(source.replace("reducer", "reduce"))[0].startswith("split.py:5: 'handler_type' has to be one of")


def test_a_function_needs_no_header() -> None:
    handler = read('"""Adds."""\n\ndef combiner(results):\n    yield from results\n')
    assert (handler.handler_type, handler.description, handler.required_capability) == ("combiner", "Adds.", "none")


def test_reading_a_handler_does_not_run_it() -> None:
    read("raise SystemExit('this ran')\n\ndef mapper(arguments):\n    pass\n")


def test_a_body_may_yield_return_and_import_from_the_future() -> None:
    read('"""\n**\nhandler_type: mapper\n"""\nfrom __future__ import annotations\nif 0:\n    return []\nyield 1\n')


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def mapper(arguments):\n    x = = 1\n", "split.py:2: invalid syntax"),
        ("def mapper(a):\n    pass\n\ndef reducer(a):\n    pass\n", "split.py:4: There is more than one handler"),
        ("def mapper(a):\n    pass\n\nyield 1\n", "split.py:4: 'yield' outside function (the file defines mapper()"),
        ("async def mapper(a):\n    pass\n", "split.py:1: mapper is async"),
        ("x = 1\n", "split.py:1: There is neither a header"),
        ("", "split.py:1: There is neither a header"),
        ("def mapper(a):\n    return '\0'\n", "split.py:1:"),
        ('"""\n**toml\nx = 1\n"""\n', "split.py:2: After ** comes json, yaml or nothing, not 'toml'."),
        ('"""\n**\nhandler_type: [mapper\n"""\n', "split.py:3: This is not YAML"),
        ('"""\n**\n- mapper\n"""\n', "split.py:3: A handler's header has to be a mapping"),
        ('"""\n**\nhandler_type: reducer\n"""\ndef mapper(a):\n    pass\n', "split.py:3: 'handler_type' is reducer"),
        (
            '"""\n**\nhandler_type: mapper\nhandler_type: mapper\n"""\n',
            "split.py:4: 'handler_type' stands here a second",
        ),
        ("(" * 5000 + ")" * 5000, "split.py:1:"),
    ],
)
def test_a_problem_is_told_with_file_and_line(source: str, told: str) -> None:
    assert problems(source)[0].startswith(told)


def test_all_problems_of_a_header_are_told_at_once() -> None:
    source = '''"""
Counts.

**
handler_typ: mapper
handler_type: maper
required_capability: far_too_long_a_capability
argument_spec: arguments
parameters:
    - name: text
      type: text
    - name: text
      default: 2020-01-01
    - type: boolean
      name: flag
      required: maybe
      default: 3
      extra: 1
"""
'''
    told = problems(source, "a b")
    for expected in [
        "split.py:5: The handler name 'a b' has characters",
        "split.py:5: A handler's header has no setting 'handler_typ'. Did you mean 'handler_type'?",
        "split.py:6: 'handler_type' has to be one of mapper, combiner, reducer, not 'maper'. Did you mean 'mapper'?",
        "split.py:7: The capability name",
        "split.py:8: 'argument_spec' has to be a list of one argument",
        "split.py:11: 'type' has to be one of string,",
        "split.py:12: There is a parameter 'text' already.",
        "split.py:13: A value is not JSON",
        "split.py:16: 'required' has to be true or false, not 'maybe'.",
        "split.py:17: The default of a boolean cannot be 3.",
        "split.py:18: A parameter has no setting 'extra'.",
    ]:
        assert any(line.startswith(expected) for line in told), (expected, told)
    assert len(told) == 11


def test_the_version_changes_with_everything_that_decides_what_runs_and_with_nothing_else() -> None:
    version = read(CLASSIC).version
    assert version == read(CLASSIC, path="elsewhere.py").version
    assert version != read(CLASSIC, name="other").version
    assert version != read(CLASSIC + "\n").version
    body = "for k, v in results:\n    yield k, 1\n"
    one = make_handler("w", "add", "", "reducer", body)
    assert one.version == make_handler("v", "add", "said otherwise", "reducer", body).version
    assert one.version != make_handler("w", "add", "", "combiner", body).version
    assert one.version != make_handler("w", "add", "", "reducer", body, required_capability="gpu").version
    lazy = [Argument(name="results", type="iterator")]
    assert one.version != make_handler("w", "add", "", "reducer", body, argument_spec=lazy).version


def test_a_handler_made_from_parts_is_checked_as_well() -> None:
    with pytest.raises(InvalidHandler) as caught:
        make_handler("w", "a/b", "", "reduser", "yield 1\n", argument_spec=[Argument(name="1x", type="set")])
    assert len(caught.value.problems) == 4
    with pytest.raises(InvalidHandler, match="no source type 'pyton'"):
        make_handler("w", "a", "", "reducer", "yield 1\n", source_type="pyton")
