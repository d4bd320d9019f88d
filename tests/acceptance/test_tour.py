"""docs/tour.rst has every installed command, and each prints what the page shows."""

from __future__ import annotations

import difflib
import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import click

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = spec_from_loader(name, SourceFileLoader(name, str(SCRIPTS / name)))
    assert spec is not None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


tour, reference = load("tour"), load("reference")
PAGE = tour.PAGE.read_text(encoding="utf-8")


def test_every_command_is_run() -> None:
    lines = [line for block in tour.BLOCK.findall(PAGE) for line in tour.commands(block)]
    names = {entry.name for entry in reference.entries() if not isinstance(entry.command, click.Group)}
    names |= {"jobx worker"}
    assert len(names) > 60
    missing = [name for name in names if not any(re.search(rf"(^|; |\| ){name}( |$)", line) for line in lines)]
    assert missing == [], "Put them into docs/tour.rst, and run scripts/tour --write."


def test_each_prints_what_the_page_shows() -> None:
    now = tour.rerun(PAGE).rstrip("\n") + "\n"
    changed = difflib.unified_diff(PAGE.splitlines(), now.splitlines(), "docs/tour.rst", "now", lineterm="")
    assert now == PAGE, "If that is as it should be, run scripts/tour --write.\n" + "\n".join(changed)
