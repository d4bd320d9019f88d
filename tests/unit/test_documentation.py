"""The pages say what the code says, as far as a program can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mr.config import CLASSIC, Config
from mr.model import names

DOCS = Path(__file__).resolve().parents[2] / "docs"
OPERATIONS = (DOCS / "operations.rst").read_text(encoding="utf-8")
DERIVED = {"MR_DATA_DIR", "MR_KV_URL", "MR_QUEUE_URL", "MR_FS_URL", "MR_RUNNERS"}


def test_every_setting_is_told_with_its_default() -> None:
    rows = dict(re.findall(r"^   \* - ``(MR_\w+)``\n     -(.*)\n     - ", OPERATIONS, re.MULTILINE))
    settings = Config.read({"HOME": "/home/ada"}).describe()
    assert rows.keys() == {setting.name for setting in settings}
    for name, default, _ in settings:
        if name not in DERIVED:
            assert rows[name].strip(" `") == default, name


@pytest.mark.parametrize("name", CLASSIC)
def test_every_classic_form_is_told(name: str) -> None:
    assert f"``{name}" in OPERATIONS


def test_limits_of_names_are_told() -> None:
    assert f"{names.MAX_WORKFLOW_NAME} characters" in OPERATIONS
    assert f"{names.MAX_CAPABILITY} of the same" in OPERATIONS
    assert f"{names.MAX_NAME} of the same" in OPERATIONS


def test_the_index_names_every_page() -> None:
    index = (DOCS / "index.rst").read_text(encoding="utf-8")
    for page in DOCS.glob("*.rst"):
        assert page.stem == "index" or f":doc:`{page.stem}`" in index
