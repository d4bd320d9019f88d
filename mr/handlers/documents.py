"""YAML and JSON documents written by people: every value with its line, every problem as ``path:line: what``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any

import yaml

from mr.errors import InvalidHandler, InvalidName

Place = tuple[Any, ...]
"""The way to a value: names and indexes from the document's root."""


class Document:
    """A parsed document. ``problems`` collects what is wrong with it."""

    def __init__(self, path: str, first_line: int, value: Any, lines: dict[Place, int]) -> None:
        self.path = path
        self.value = value
        self.problems: list[str] = []
        self._first_line = first_line
        self._lines = lines

    def problem(self, place: Place, what: str) -> None:
        while place and place not in self._lines:
            place = place[:-1]
        self.problems.append(f"{self.path}:{self._lines.get(place, self._first_line)}: {what}")

    def mapping(self, place: Place, value: Any, known: Iterable[str], what: str) -> dict[str, Any]:
        """The known entries of a mapping; unknown ones, and anything that is no mapping, are problems."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problem(place, f"{what} has to be a mapping of names to values, not {shown(value)}.")
            return {}
        names = list(known)
        for key in value:
            if key not in names:
                self.problem((*place, key), f"{what} has no setting {key!r}.{nearest(key, names)}")
        return {key: found for key, found in value.items() if key in names}

    def named(self, place: Place, value: Any, what: str) -> dict[str, Any]:
        """The entries of a mapping whose names are free, as long as they are text."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problem(place, f"{what} has to be a mapping of names, not {shown(value)}.")
            return {}
        for key in value:
            if not isinstance(key, str):
                self.problem((*place, key), f"The name {key!r} is not text. Put quotes around it.")
        return {key: found for key, found in value.items() if isinstance(key, str)}

    def text(self, place: Place, value: Any, default: str = "") -> str:
        if value is None:
            return default
        if not isinstance(value, str):
            self.problem(place, f"{place[-1]!r} has to be text, not {shown(value)}.")
            return default
        return value

    def choice(self, place: Place, value: Any, choices: Iterable[str]) -> str:
        """One of the choices; empty, and a problem, if it is none of them."""
        among = list(choices)
        if value not in among or not isinstance(value, str):
            self.problem(place, f"{place[-1]!r} has to be one of {', '.join(among)}, not {shown(value)}."
                                f"{nearest(value, among)}")  # fmt: skip
            return ""
        return value

    def name(self, place: Place, check: Any, value: Any) -> None:
        """Check a name with one of :mod:`mr.model.names`."""
        try:
            check(value)
        except InvalidName as error:
            self.problem(place, str(error))

    def integer(self, place: Place, value: Any, default: int, least: int, most: int | None = None) -> int:
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or value < least
            or (most is not None and value > most)
        ):
            up_to = f" to {most}" if most is not None else " up"
            self.problem(place, f"{place[-1]!r} has to be a whole number from {least}{up_to}, not {shown(value)}.")
            return default
        return value


def parse_yaml(text: str, path: str, first_line: int = 1) -> Document:
    """:raises InvalidHandler: it is not YAML."""
    loader = yaml.SafeLoader(_cleaned(text, path, first_line))
    try:
        node = loader.get_single_node()
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = first_line + (mark.line if mark else 0)
        raise InvalidHandler([f"{path}:{line}: This is not YAML: {error.problem or error}"]) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InvalidHandler([f"{path}:{first_line}: This is not YAML: {error}"]) from None
    finally:
        loader.dispose()
    document = Document(path, first_line, value, {})
    if node is not None:
        _walk(node, (), document, set())
    return document


def parse_json(text: str, path: str, first_line: int = 1) -> Document:
    """:raises InvalidHandler: it is not JSON."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidHandler([f"{path}:{first_line + error.lineno - 1}: This is not JSON: {error.msg}"]) from None
    except (ValueError, RecursionError) as error:
        raise InvalidHandler([f"{path}:{first_line}: This is not JSON: {error}"]) from None
    try:
        # Most JSON is YAML, and the parser for that one knows the lines.
        document = parse_yaml(text.replace("\t", " "), path, first_line)
    except InvalidHandler:
        return Document(path, first_line, value, {})
    document.value = value
    return document


def nearest(word: object, words: Iterable[str]) -> str:
    """A suggestion, to end a message with, or nothing."""
    found = difflib.get_close_matches(str(word), list(words), 1)
    return f" Did you mean {found[0]!r}?" if found else ""


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _cleaned(text: str, path: str, first_line: int) -> str:
    try:
        yaml.reader.Reader(text)
    except yaml.reader.ReaderError as error:
        line = first_line + text[: int(error.position)].count("\n")
        raise InvalidHandler([f"{path}:{line}: There is a character that YAML does not allow: {error}"]) from None
    return text


def _walk(node: yaml.Node, place: Place, document: Document, seen: set[int]) -> None:
    """Note the line of every value, and names that stand twice. Aliases are followed once."""
    document._lines.setdefault(place, document._first_line + node.start_mark.line)
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*place, index), document, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[Any] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = yaml.SafeLoader("").construct_object(key) if key.tag != "tag:yaml.org,2002:merge" else "<<"
            inner = (*place, name)
            document._lines[inner] = document._first_line + key.start_mark.line
            if name in names:
                document.problem(inner, f"{name!r} stands here a second time.")
            names.add(name)
            _walk(value, inner, document, seen)
