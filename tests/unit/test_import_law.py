"""The package keeps the law of `scripts/check_imports`, and that law catches what it is there to catch."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def load_law() -> ModuleType:
    # A program without .py in its name: the import system has to be told that it is Python.
    path = REPOSITORY / "scripts" / "check_imports"
    spec = spec_from_loader("check_imports", SourceFileLoader("check_imports", str(path)))
    assert spec is not None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


law = load_law()


def breaches(root: Path, path: str, source: str) -> list[str]:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    found: list[str] = law.breaches(root)
    return found


def test_the_package_keeps_the_law() -> None:
    assert law.breaches(REPOSITORY / "mr") == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("kv/base.py", "from mr.model.entities import Request\n"),
        ("kv/base.py", "from mr.queue.base import Queue\n"),
        ("kv/base.py", "from ..queue.base import Queue\n"),
        ("kv/base.py", "from .. import engine\n"),
        ("kv/base.py", "from mr import engine\n"),
        ("kv/base.py", "def f():\n    import mr.engine.submit\n"),
        ("config.py", "from mr.local.file import open_file\n"),
        ("local/file.py", "from mr.config import Config\n"),
        ("web/views.py", "from mr.worker.loop import run\n"),
        ("engine/map.py", "from mr.unheard_of import x\n"),
        ("unheard_of/x.py", ""),
        ("engine/map.py", "import sqlite3\n"),
        ("kv/etcd.py", "from sqlite3 import connect\n"),
        ("worker/loop.py", "import gevent.monkey\n"),
        ("engine/map.py", "from flask import Flask\n"),
        ("model/keys.py", "import pickle\n"),
        ("model/keys.py", "import os\nHOME = os.environ['HOME']\n"),
        ("config.py", "import os\nHOME = os.getenv('HOME')\n"),
        ("kv/base.py", "from os import environ\n"),
        ("engine/map.py", "x = 1\n" * 601),
    ],
)
def test_a_breach_is_found(tmp_path: Path, path: str, source: str) -> None:
    found = breaches(tmp_path, path, source)
    assert len(found) == 1
    assert found[0].startswith(f"mr/{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/map.py", "from mr.kv.base import Store\nfrom mr.errors import JobxError\nfrom mr.engine import x\n"),
        ("config.py", "from mr.errors import InvalidConfig\nfrom mr.urls import address\n"),
        ("kv/sqlite.py", "import sqlite3\nfrom mr.local import file\nfrom . import base\n"),
        ("cli/main.py", "import os\nimport click\nfrom mr import __version__, app\nprint(os.environ)\n"),
        ("web/server.py", "import gevent.monkey\nimport flask\n"),
        ("engine/map.py", "x = 1\n" * 600),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path: Path, path: str, source: str) -> None:
    assert breaches(tmp_path, path, source) == []
