"""Handlers in Python."""

from __future__ import annotations

import ast
import linecache
import sys
import warnings
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import Any

from mr.errors import InvalidHandler
from mr.handlers.processors.base import HANDLER_TYPES, Inspection, Processor, Program
from mr.model.entities import Handler


class PythonProcessor(Processor):
    """The source is the body of a generator, or a module with one of ``mapper``, ``combiner`` and ``reducer``."""

    source_type = "python"
    extensions = (".py",)

    def inspect(self, source: str, path: str) -> Inspection:
        tree = _parse(source, path)
        function, line = _function(tree, path)
        _code(tree, path, function, "mapper", "arguments")
        first = tree.body[0] if tree.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return Inspection(first.value.value, first.lineno, function, line)
        return Inspection("", 1, function, line)

    def compile(self, handler: Handler) -> Program:
        return PythonProgram(handler)


class PythonProgram(Program):
    def __init__(self, handler: Handler) -> None:
        self.path = handler.path or f"{handler.handler_name}.py"
        tree = _parse(handler.source_code, self.path)
        function, self.line = _function(tree, self.path)
        argument = handler.argument_spec[0].name if handler.argument_spec else default_argument(handler.handler_type)
        self.name = function or handler.handler_type
        self._code = _code(tree, self.path, function, self.name, argument)
        source = handler.source_code
        self._lines = (len(source), None, source.splitlines(keepends=True), self.path)

    def start(self, scope: Mapping[str, Any], argument: Any) -> Any:
        # Two workflows may have a file of the same name, so the lines that tracebacks show are set with every start.
        linecache.cache[self.path] = self._lines
        # Some of the library (dataclasses, pickle) looks for the module of a class or function among the imported ones.
        module = sys.modules[self.module_name] = ModuleType(self.module_name)
        names = vars(module)
        names.update(scope, __file__=self.path)
        exec(self._code, names)
        return names[self.name](argument)


def default_argument(handler_type: str) -> str:
    return "arguments" if handler_type == "mapper" else "results"


def _parse(source: str, path: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            # An invalid escape in a string is its author's business, not a line in the platform's log.
            warnings.simplefilter("ignore")
            return ast.parse(source, path)
    except SyntaxError as error:
        raise InvalidHandler([f"{path}:{error.lineno or 1}: {error.msg}"]) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidHandler([f"{path}:1: {error or 'The source is nested too deeply.'}"]) from None


def _function(tree: ast.Module, path: str) -> tuple[str, int]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name in HANDLER_TYPES:
            raise InvalidHandler([f"{path}:{node.lineno}: {node.name} is async; a handler is a plain function."])
        if isinstance(node, ast.FunctionDef) and node.name in HANDLER_TYPES:
            found.append(node)
    if len(found) > 1:
        names = " and ".join(dict.fromkeys(node.name for node in found))
        raise InvalidHandler([f"{path}:{found[1].lineno}: There is more than one handler ({names}); give each a file."])
    return (found[0].name, found[0].lineno) if found else ("", 1)


def _code(tree: ast.Module, path: str, function: str, name: str, argument: str) -> CodeType:
    module = tree if function else _wrapped(tree, name, argument)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(module, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        hint = ""
        if function and "outside function" in error.msg:
            hint = f" (the file defines {function}(), so it is a module and not the body of a generator)"
        raise InvalidHandler([f"{path}:{error.lineno or 1}: {error.msg}{hint}"]) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidHandler([f"{path}:1: {error or 'The source is nested too deeply.'}"]) from None


def _wrapped(tree: ast.Module, name: str, argument: str) -> ast.Module:
    """The tree as the body of a function. Nodes keep their places, so that no line number moves."""
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    body = [node for node in tree.body if node not in future]
    module = ast.parse(f"def {name}({argument}): pass")
    definition = module.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.body = body or definition.body
    module.body[:0] = future
    return module
