"""Compares answers with the description at ``/openapi.json``."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

_TOLD = ("Location", "Retry-After", "WWW-Authenticate", "Allow")
"""Headers that are described where they are sent, beside all that begin with X-."""

_OURS = "X-"
_OF_PROXIES = ("X-Accel-Buffering",)
_ID = "urn:description"


class Description:
    """What the server says of itself, taken at its word: objects have no other properties than those described."""

    def __init__(self, document: Any) -> None:
        self.document = copy.deepcopy(document)
        for schema in _schemas(self.document):
            if schema.get("type") == "object" and "properties" in schema:
                schema.setdefault("additionalProperties", False)
        resource = Resource(contents=self.document, specification=DRAFT202012)
        self._registry: Registry[Any] = Registry().with_resource(_ID, resource)
        self.seen: Counter[tuple[str, str, int]] = Counter()
        """How often each operation, by method and path, answered with each status."""

    def operations(self) -> set[tuple[str, str]]:
        return {(method.upper(), path) for path, found in self.document["paths"].items() for method in found}

    def check(self, method: str, url: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Fails where the answer is not as described."""
        path = self._path(url)
        operation = self.document["paths"][path].get(method.lower())
        if operation is None:
            assert status == 405, f"{method} {path} is not described, and answered {status}"
            operation = next(iter(self.document["paths"][path].values()))
        where = f"{method} {url} {status}"
        self.seen[method, path, status] += 1
        assert str(status) in operation["responses"], f"{where} is not described"
        response = self._resolved(operation["responses"][str(status)])
        described = {name.lower() for name in response.get("headers", {})}
        for name in headers.keys():  # noqa: SIM118 - those of Werkzeug are pairs otherwise
            is_told = name in _TOLD or (name.upper().startswith(_OURS) and name not in _OF_PROXIES)
            assert not is_told or name.lower() in described, f"{where}: the header {name} is not described"
        self._check_body(where, response, headers, body)

    def _check_body(self, where: str, response: Any, headers: Mapping[str, str], body: bytes) -> None:
        if not body and "content" not in response:
            return
        kind = headers["Content-Type"].partition(";")[0]
        assert kind in response["content"], f"{where}: {kind} is not described"
        schema = response["content"][kind]["schema"]
        if kind.endswith(("/json", "+json")):
            self.validate(json.loads(body), schema, where)

    def validate(self, value: Any, schema: Any, where: str = "") -> None:
        validator = Draft202012Validator(_absolute(schema), registry=self._registry)
        errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
        assert not errors, f"{where}: {errors}"

    def _path(self, url: str) -> str:
        asked = url.partition("?")[0]
        for path in sorted(self.document["paths"], key=lambda path: path.count("{")):
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), asked):
                return str(path)
        raise AssertionError(f"{url} is not described")

    def _resolved(self, part: Any) -> Any:
        while "$ref" in part:
            found: Any = self.document
            for name in part["$ref"].removeprefix("#/").split("/"):
                found = found[name]
            part = found
        return part


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for inner in part.values():
            yield from _schemas(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _schemas(inner)


def _absolute(part: Any) -> Any:
    """The same schema with references that hold outside of the document, too."""
    if isinstance(part, dict):
        return {
            name: _ID + inner if name == "$ref" and isinstance(inner, str) else _absolute(inner)
            for name, inner in part.items()
        }
    return [_absolute(inner) for inner in part] if isinstance(part, list) else part
