"""Bodies are taken as strict JSON, or refused with what is wrong."""

from __future__ import annotations

import json

import pytest

from mr.errors import InvalidInput
from mr.web.strict_json import MAX_NESTING, parse


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, 2.5, "é😀", {"b": True}], "c": {}},
        10**400,
        -(10**4000),
        'a "quoted \\ [text] {with} brackets',
        ["[" * 500, '"{' * 500],
        [[]] * 1000,
        "\x00\x1f",
    ],
)
def test_what_is_json_is_taken_as_it_is(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": Infinity}', "Infinity"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": 1, "a": 1}', "'a' stands twice"),
        (b'{"x": [{"deep": {"b": 1, "b": 2}}]}', "'b' stands twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b"\xff\xfe[\x00]\x00", "UTF-8"),
        (b"{'a': 1}", "line 1 column 2"),
        (b'{"a": 1,}', "JSON"),
        (b'{"a": 1} x', "JSON"),
        (b"", "JSON"),
        (b'"\n"', "JSON"),
        (b"9" * 5000, "4300"),
    ],
)
def test_what_two_readers_could_take_differently_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        parse(text)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"[]\\"[":'])
def test_deep_nesting_is_refused_before_it_costs_anything(opening: bytes) -> None:
    with pytest.raises(InvalidInput, match=f"more than {MAX_NESTING} deep"):
        parse(opening * 100_000)


def test_the_limit_of_nesting_is_exact() -> None:
    parse(b"[" * MAX_NESTING + b"]" * MAX_NESTING)
    with pytest.raises(InvalidInput, match="deep"):
        parse(b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1))


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse(b'"\\ud83d\\ude00"') == "😀"
