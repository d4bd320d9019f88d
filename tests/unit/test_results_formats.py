"""Lines of pairs, and names of files for keys."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mr.model.pairs import as_tuple, key_text, value_text
from mr.results.formats import FORMATS
from mr.results.names import name_of

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
keys = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=4
)
TEXT, JSONL, CSV = (FORMATS[name] for name in ("text", "jsonl", "csv"))

SHORT = {"\\": "\\", "t": "\t", "n": "\n", "r": "\r", "s": " "}


def unescaped(text: str) -> str:
    """By the documented rules."""
    return re.sub(r"\\(?:u(....)|(.))", lambda found: chr(int(found[1], 16)) if found[1] else SHORT[found[2]], text)


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("be", 2, "be 2"),
        ("to be", "or not", "to\\sbe or not"),
        ("", "", " "),
        ("a\tb", "one\ntwo\r\n", "a\\tb one\\ntwo\\r\\n"),
        ("C:\\new", "C:\\new", "C:\\\\new C:\\\\new"),
        ("a\u2028b\u00a0c\x00", "\x85\x1b[31m", "a\\u2028b\\u00a0c\\u0000 \\u0085\\u001b[31m"),
        (1, None, "1 null"),
        (True, 1.5, "true 1.5"),
        (("a b", 1), ["a b", {"c": "ä\u2028"}], '["a\\u0020b",1] ["a b",{"c":"ä\\u2028"}]'),
    ],
)
def test_a_line_of_text_is_key_blank_value(key: Any, value: Any, line: str) -> None:
    assert TEXT.pair(key, value) == f"{line}\n"


@given(keys, values)
def test_text_is_one_line_of_which_the_first_blank_ends_the_key(key: Any, value: Any) -> None:
    line = TEXT.pair(as_tuple(key), value)
    assert line.splitlines() == [line[:-1]]
    first, blank, rest = line[:-1].partition(" ")
    assert blank and not re.search(r"\s", first)
    assert (unescaped(first) if isinstance(key, str) else json.loads(first)) == key
    assert (unescaped(rest) if isinstance(value, str) else json.loads(rest)) == value


# --- jsonl and csv --------------------------------------------------------------------------------------------------


@given(keys, values)
def test_a_line_of_json_says_exactly_what_the_pair_was(key: Any, value: Any) -> None:
    line = JSONL.pair(as_tuple(key), value)
    assert line.count("\n") == 1 and line.endswith("\n")
    read_key, read_value = json.loads(line)
    assert (key_text(read_key), read_value) == (key_text(key), value)
    assert json.loads(JSONL.value(value)) == value


@given(st.lists(st.tuples(keys, values), max_size=5))
def test_csv_is_read_back_cell_by_cell(pairs: list[tuple[Any, Any]]) -> None:
    text = CSV.names_of_pair + "".join(CSV.pair(as_tuple(key), value) for key, value in pairs)
    # The reader of Python 3.10 takes no NUL.
    rows = list(csv.reader(io.StringIO(text.replace("\0", "␀"), newline=""), strict=True))
    cells = [[one if isinstance(one, str) else value_text(one) for one in pair] for pair in pairs]
    assert rows == [["key", "value"], *([cell.replace("\0", "␀") for cell in row] for row in cells)]


def test_csv_has_the_line_breaks_and_quotes_of_its_rfc() -> None:
    assert CSV.pair('say "hi"', "one,\ntwo") == '"say ""hi""","one,\ntwo"\r\n'
    assert CSV.pair("", "") == ",\r\n"
    assert CSV.value("") == '""\r\n'
    assert CSV.pair("a\0b", "\r") == 'a\0b,"\r"\r\n'
    assert CSV.pair(1, [1, "a"]) == '1,"[1,""a""]"\r\n'
    assert (CSV.names_of_pair, CSV.names_of_value) == ("key,value\r\n", "value\r\n")


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["be", "2024-06-01", "example.com", "a_b", "0", "x" * 100])
def test_a_plain_key_is_its_own_name(key: str) -> None:
    assert name_of(key) == key


@pytest.mark.parametrize(
    ("key", "name"), [(None, "=null"), (True, "=true"), (1, "=1"), (-1.5, "=-1.5"), (1e300, "=1e+300")]
)
def test_a_scalar_is_named_by_its_json(key: Any, name: str) -> None:
    assert name_of(key) == name


HOSTILE = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb", "-rf", "_index", ".delivery",
    "con", "con.txt", "NUL", "com1", "lpt9.x", "a.", "a ", " a", "a:b", "a*", "~", "=1", "A", "a~b",
    "x" * 101, "y" * 5000, "ß", "ss", "é", "e\u0301", "ﬁ", "fi", "\U0001f600", "\uff21\uff22", "日本語" * 50,
    "\u0130", "\u0131", "a", "Hello", "hello", "HELLO",
    10**200, 10**200 + 1, (), ("a",), ("a", "b"), ("a,b",), ("../x",), 1, 1.0, "1", True, "true", None, "null",
]  # fmt: skip


def folded(name: str) -> str:
    """What the least particular filesystems take for one name."""
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", name).casefold())


def test_hostile_keys_have_safe_names_of_their_own() -> None:
    names = [name_of(key) for key in HOSTILE]
    assert len({folded(name) for name in names}) == len(HOSTILE)
    for name in names:
        check_name(name)


def check_name(name: str) -> None:
    assert name and len(f"{name}.jsonl".encode()) <= 255
    assert re.fullmatch(r"[\w=~.+-]+", name), name
    assert name[0] not in ".-", "it neither hides nor looks like an option"
    assert name[0] != "_" or "~" in name, "such names are the index's"
    assert name.split(".")[0] not in ("con", "prn", "aux", "nul", "com1", "lpt9")


@given(keys, keys)
def test_distinct_keys_never_have_names_that_a_filesystem_takes_for_one(one: Any, other: Any) -> None:
    one, other = as_tuple(one), as_tuple(other)
    check_name(name_of(one))
    assert (folded(name_of(one)) == folded(name_of(other))) is (key_text(one) == key_text(other))
