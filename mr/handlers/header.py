"""What a handler's file says of itself: from source to a checked :class:`mr.model.entities.Handler`.

The header is a docstring: prose, a line that starts with ``**`` (``**json``; YAML by default), then metadata::

    handler_type: mapper            # mapper, combiner or reducer
    required_capability: none
    argument_spec:                  # what the body finds its input under
        - {name: arguments, type: list}
    parameters:                     # of a mapper that starts a job
        - {name: text, type: string, required: true, description: What to count.}

A file that defines a function ``mapper``, ``combiner`` or ``reducer`` needs no header. Nothing here runs a handler.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import keyword
from typing import Any, cast, get_args

import msgspec

from mr.errors import InvalidHandler
from mr.handlers.documents import Document, nearest, parse_json, parse_yaml, shown
from mr.handlers.processors.base import HANDLER_TYPES, Inspection, Processor
from mr.handlers.processors.python import PythonProcessor, default_argument
from mr.model import names, pairs
from mr.model.entities import Argument, Handler, HandlerType, Parameter

NO_CAPABILITY = "none"
"""What a handler requires that any worker may run."""

PARAMETER_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
    "any": (object,),
}
ARGUMENT_TYPES = ("list", "iterator")

_METADATA = ("handler_type", "required_capability", "argument_spec", "parameters", "description")
_PROCESSORS: tuple[Processor, ...] = (PythonProcessor(),)

assert get_args(HandlerType) == HANDLER_TYPES


def processor_for(extension: str) -> Processor | None:
    """The processor of files with that extension (with its dot), if any."""
    return next((one for one in _PROCESSORS if extension in one.extensions), None)


def source_types() -> list[str]:
    return [one.source_type for one in _PROCESSORS]


def read_handler(workflow_name: str, handler_name: str, source: str, path: str, source_type: str = "python") -> Handler:
    """The handler that a file holds.

    :raises InvalidHandler: with every problem of syntax, header and names, as ``path:line: what``.
    """
    processor = _processor(source_type, path)
    found = processor.inspect(source, path)
    description, document = _split(found, path)
    problems = document.problems
    if problems:
        raise InvalidHandler(problems)
    document.name((), names.check_handler_name, handler_name)
    metadata = document.mapping((), document.value, _METADATA, "A handler's header")
    handler_type = _handler_type(document, metadata, found)
    handler = _versioned(
        Handler(
            handler_name=handler_name,
            workflow_name=workflow_name,
            description=document.text(("description",), metadata.get("description"), description),
            handler_type=cast(HandlerType, handler_type or "mapper"),
            argument_spec=_arguments(document, metadata.get("argument_spec"), handler_type),
            parameters=_parameters(document, metadata.get("parameters"), handler_type),
            required_capability=_capability(document, metadata.get("required_capability")),
            source_type=source_type,
            source_code=source,
            version="",
            path=path,
        )
    )
    if problems:
        raise InvalidHandler(problems)
    return handler


def make_handler(
    workflow_name: str,
    handler_name: str,
    description: str,
    handler_type: str,
    source: str,
    *,
    source_type: str = "python",
    argument_spec: list[Argument] | None = None,
    required_capability: str = NO_CAPABILITY,
    path: str = "",
) -> Handler:
    """A handler whose metadata was given beside its source; a header in the source is prose then.

    :raises InvalidHandler: something of it is wrong.
    """
    path = path or f"{handler_name}.py"
    found = _processor(source_type, path).inspect(source, path)
    given: dict[str, Any] = {"handler_type": handler_type, "required_capability": required_capability}
    if argument_spec:
        given["argument_spec"] = [{"name": argument.name, "type": argument.type} for argument in argument_spec]
    document = Document(path, 1, given, {})
    document.name((), names.check_handler_name, handler_name)
    checked = _handler_type(document, given, found)
    handler = _versioned(
        Handler(
            handler_name=handler_name,
            workflow_name=workflow_name,
            description=description,
            handler_type=cast(HandlerType, checked or "mapper"),
            argument_spec=_arguments(document, given.get("argument_spec"), checked),
            parameters=[],
            required_capability=_capability(document, required_capability),
            source_type=source_type,
            source_code=source,
            version="",
            path=path,
        )
    )
    if document.problems:
        raise InvalidHandler(document.problems)
    return handler


def version_of(handler: Handler) -> str:
    """A hash of everything that decides what runs: equal versions run alike."""
    deciding = {
        "name": handler.handler_name,
        "type": handler.handler_type,
        "arguments": [[argument.name, argument.type] for argument in handler.argument_spec],
        "parameters": [msgspec.to_builtins(parameter) for parameter in handler.parameters],
        "capability": handler.required_capability,
        "language": handler.source_type,
        "source": handler.source_code,
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def _versioned(handler: Handler) -> Handler:
    try:
        return msgspec.structs.replace(handler, version=version_of(handler))
    except (TypeError, ValueError):
        # A default that is not JSON was told already.
        return handler


def _processor(source_type: str, path: str) -> Processor:
    for one in _PROCESSORS:
        if one.source_type == source_type:
            return one
    raise InvalidHandler(
        [f"{path}:1: There is no source type {source_type!r}.{nearest(source_type, source_types())}"]
    )  # fmt: skip


def _split(found: Inspection, path: str) -> tuple[str, Document]:
    """The header's prose, and its metadata."""
    lines = found.header.splitlines()
    for index, line in enumerate(lines):
        if not line.strip().startswith("**"):
            continue
        language = line.strip()[2:].strip()
        first_line = found.header_line + index + 1
        # Without the indentation of a docstring, and with as many lines.
        text = inspect.cleandoc("\n".join(["x", *lines[index + 1 :]]))[2:] if lines[index + 1 :] else ""
        prose = inspect.cleandoc("\n".join(lines[:index])).strip()
        if language not in ("", "yaml", "json"):
            raise InvalidHandler([f"{path}:{first_line - 1}: After ** comes json, yaml or nothing, not {language!r}."])
        parse = parse_json if language == "json" else parse_yaml
        return prose, parse(text, path, first_line)
    return inspect.cleandoc(found.header).strip(), Document(path, found.line, None, {})


def _handler_type(document: Document, metadata: dict[str, Any], found: Inspection) -> str:
    """The type, by the header or the function; empty, and a problem, if it cannot be told."""
    if "handler_type" not in metadata:
        if not found.function:
            document.problem(
                (),
                "There is neither a header that names the handler_type nor a function mapper, combiner or reducer.",
            )
        return found.function
    handler_type = document.choice(("handler_type",), metadata["handler_type"], HANDLER_TYPES)
    # A combiner is a reducer over one mapper's output, so a function may serve as either.
    if found.function and handler_type and (found.function == "mapper") != (handler_type == "mapper"):
        what = f"'handler_type' is {handler_type}, and line {found.line} defines {found.function}()."
        document.problem(("handler_type",), what)
    return handler_type


def _capability(document: Document, value: Any) -> str:
    if value is None:
        return NO_CAPABILITY
    document.name(("required_capability",), names.check_capability, value)
    return str(value)


def _arguments(document: Document, value: Any, handler_type: str) -> list[Argument]:
    place = ("argument_spec",)
    default = [Argument(name=default_argument(handler_type))]
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 1:
        what = (
            f"'argument_spec' has to be a list of one argument, as in '- name: {default[0].name}', not {shown(value)}."
        )
        document.problem(place, what)
        return default
    given = document.mapping((*place, 0), value[0], ("name", "type"), "An argument")
    name = document.text((*place, 0, "name"), given.get("name"), default[0].name)
    if not name.isidentifier() or keyword.iskeyword(name):
        document.problem((*place, 0, "name"), f"The argument's name {name!r} cannot be the name of a variable.")
    kind = document.choice((*place, 0, "type"), given.get("type", "list"), ARGUMENT_TYPES)
    return [Argument(name=name, type=kind or "list")]


def _parameters(document: Document, value: Any, handler_type: str) -> list[Parameter]:
    place = ("parameters",)
    if value is None:
        return []
    if not isinstance(value, list):
        document.problem(place, f"'parameters' has to be a list, not {shown(value)}.")
        return []
    if handler_type in ("combiner", "reducer"):
        document.problem(place, f"A {handler_type} has no parameters; they are for mappers.")
    parameters: list[Parameter] = []
    for index, one in enumerate(value):
        inner = (*place, index)
        given = document.mapping(inner, one, ("name", "type", "required", "default", "description"), "A parameter")
        name = document.text((*inner, "name"), given.get("name"))
        if not name:
            document.problem(inner, "A parameter has to have a name.")
        if any(other.name == name for other in parameters):
            document.problem((*inner, "name"), f"There is a parameter {name!r} already.")
        parameters.append(_parameter(document, inner, name, given))
    return parameters


def _parameter(document: Document, place: tuple[Any, ...], name: str, given: dict[str, Any]) -> Parameter:
    kind = document.choice((*place, "type"), given.get("type", "any"), PARAMETER_TYPES)
    required = given.get("required", "default" not in given)
    if not isinstance(required, bool):
        document.problem((*place, "required"), f"'required' has to be true or false, not {shown(required)}.")
        required = True
    default = given.get("default")
    if default is not None:
        is_boolean = isinstance(default, bool) and kind not in ("boolean", "any")
        if kind and (is_boolean or not isinstance(default, PARAMETER_TYPES[kind])):
            document.problem((*place, "default"), f"The default of a {kind} cannot be {shown(default)}.")
        try:
            pairs.value_text(default)
        except pairs.InvalidPair as error:
            document.problem((*place, "default"), f"{error} Put quotes around it.")
    return Parameter(
        name=name,
        type=kind or "any",
        required=required,
        default=default,
        description=document.text((*place, "description"), given.get("description")),
    )
