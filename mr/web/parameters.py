"""Posted arguments, checked against what the job's first mapper declares, and cast where that loses nothing."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mr.errors import InvalidInput
from mr.model.entities import Parameter
from mr.web import strict_json

_INTEGER = re.compile(r"[+-]?[0-9]{1,4300}")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def check_arguments(parameters: Sequence[Parameter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the handler gets them: those given, in their order, then defaults in the order of declaration.

    Where nothing is declared, everything is taken as it is. Text is cast to what is declared if it is the JSON text
    of it, so that forms and shells can give numbers, booleans, lists and objects.

    :raises InvalidInput: one is missing, of another type, or not declared; ``parameter`` is its name.
    """
    if not parameters:
        return dict(arguments)
    declared = {parameter.name: parameter for parameter in parameters}
    checked = {}
    for name, value in arguments.items():
        if name not in declared:
            raise InvalidInput(f"There is no parameter {name!r}. {_known(name, list(declared))}", name)
        checked[name] = _cast(declared[name], value)
    for parameter in parameters:
        if parameter.name in checked:
            continue
        if parameter.default is not None:
            checked[parameter.name] = parameter.default
        elif parameter.required:
            description = f" ({parameter.description})" if parameter.description else ""
            raise InvalidInput(
                f"The parameter {parameter.name!r}{description} is missing. Give it in 'arguments'.", parameter.name
            )
    return checked


def _known(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {nearest[0]!r}?" if nearest else f"There are: {', '.join(names)}."


def _cast(parameter: Parameter, value: Any) -> Any:
    cast = _CASTS.get(parameter.type)
    if cast is None:
        return value
    try:
        return cast(value)
    except ValueError:
        article = "an" if parameter.type[0] in "aeio" else "a"
        raise InvalidInput(
            f"The parameter {parameter.name!r} has to be {article} {parameter.type}, not {_shown(value)}.",
            parameter.name,
        ) from None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any) -> int | float:
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            return int(text)
        if not _NUMBER.fullmatch(text) or math.isinf(float(text)):
            raise ValueError
        return float(text)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError
    return value


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return _BOOLEANS[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


def _container(kind: type[list[Any]] | type[dict[str, Any]]) -> Callable[[Any], Any]:
    def cast(value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = strict_json.parse(value.encode())
            except InvalidInput:
                raise ValueError from None
        if not isinstance(value, kind):
            raise ValueError
        return value

    return cast


_CASTS: dict[str, Callable[[Any], Any]] = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "list": _container(list),
    "object": _container(dict),
}
