"""Posted arguments are checked against what a mapper declares, and cast where nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from mr.errors import InvalidInput
from mr.model.entities import Parameter
from mr.web.parameters import check_arguments


@pytest.mark.parametrize(
    ("kind", "given", "taken"),
    [
        ("string", "5", "5"),
        ("string", "", ""),
        ("integer", 5, 5),
        ("integer", "5", 5),
        ("integer", "-5", -5),
        ("integer", 5.0, 5),
        ("integer", 10**100, 10**100),
        ("number", 2.5, 2.5),
        ("number", 2, 2),
        ("number", "2.5", 2.5),
        ("number", "1e3", 1000.0),
        ("number", "7", 7),
        ("boolean", True, True),
        ("boolean", "false", False),
        ("boolean", "1", True),
        ("list", [1], [1]),
        ("list", "[1, 2]", [1, 2]),
        ("object", {"a": 1}, {"a": 1}),
        ("object", '{"a": 1}', {"a": 1}),
        ("any", None, None),
        ("any", [1], [1]),
    ],
)
def test_a_value_of_the_type_is_taken_and_its_text_cast(kind: str, given: Any, taken: Any) -> None:
    checked = check_arguments([Parameter(name="x", type=kind)], {"x": given})["x"]
    assert checked == taken
    assert type(checked) is type(taken)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("string", 5),
        ("string", None),
        ("integer", True),
        ("integer", 5.5),
        ("integer", "5.0"),
        ("integer", "five"),
        ("integer", "1_000"),
        ("integer", ""),
        ("integer", "9" * 5000),
        ("number", "nan"),
        ("number", "1e999"),
        ("number", "9" * 5000),
        ("number", False),
        ("boolean", 1),
        ("boolean", "maybe"),
        ("list", {"a": 1}),
        ("list", "1, 2"),
        ("list", "[NaN]"),
        ("list", "[" * 100_000),
        ("object", [1]),
        ("object", '{"a": 1, "a": 2}'),
    ],
)
def test_another_type_is_refused_by_the_name_of_its_parameter(kind: str, given: Any) -> None:
    with pytest.raises(InvalidInput, match="'count' has to be") as caught:
        check_arguments([Parameter(name="count", type=kind)], {"count": given})
    assert caught.value.parameter == "count"


def test_defaults_are_filled_in_after_what_was_given() -> None:
    parameters = [
        Parameter(name="a", type="integer", required=False, default=1),
        Parameter(name="b", type="integer"),
        Parameter(name="c", required=False),
        Parameter(name="d", required=False, default=[]),
    ]
    assert list(check_arguments(parameters, {"b": 2}).items()) == [("b", 2), ("a", 1), ("d", [])]


def test_a_missing_parameter_is_named_with_its_description() -> None:
    with pytest.raises(InvalidInput, match=r"'text' \(what to count\) is missing") as caught:
        check_arguments([Parameter(name="text", description="what to count")], {})
    assert caught.value.parameter == "text"


def test_an_undeclared_argument_is_refused_with_the_nearest_that_there_is() -> None:
    with pytest.raises(InvalidInput, match=r"no parameter 'txet'. Did you mean 'text'\?") as caught:
        check_arguments([Parameter(name="text")], {"txet": 1})
    assert caught.value.parameter == "txet"


def test_where_nothing_is_declared_everything_is_taken() -> None:
    assert check_arguments([], {"b": 1, "a": None}) == {"b": 1, "a": None}
