"""Results as files: one of all pairs, or a directory of one a key."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mr.config import Config
from mr.errors import DeliveryFailed
from mr.findings import Finding
from mr.local.disk import examine_space
from mr.model.deliveries import Writer
from mr.model.pairs import Key, key_text, value_text
from mr.results import drafts, places
from mr.results.formats import FORMATS, Format
from mr.results.names import name_of
from mr.results.reading import Result

INDEX = "_index.jsonl"
"""Says which file of a directory is of which key, ``{"file": …, "key": …}`` a line, in the order of the result."""

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
_BUFFER_BYTES = 256 * 1024


def write(config: Config, writer: Writer, result: Result, delivery_id: str) -> None:
    """Returns once the file, or the directory, is there and on the disk.

    :raises InvalidInput: there can be none of that name, or on this platform none at all.
    :raises DeliveryFailed: it could not be written; then there is what was there before, and nothing half-done.
    :raises FilesUnavailable: the result cannot be read.
    """
    request = result.request
    place = places.place_of(config, writer, request.workflow_name, request.job_name, request.request_id)
    try:
        with drafts.directory(place.root, place.parts[:-1]) as target:
            if place.is_directory:
                _write_directory(place, target, result, delivery_id)
            else:
                _write_file(place, target, result)
    except IsADirectoryError as error:
        raise DeliveryFailed(f"{place} is a directory, which no file replaces.", is_final=True) from error
    except OSError as error:
        raise DeliveryFailed(f"{place} cannot be written: {_reason(error)}") from error


def examine(root: str) -> list[Finding]:
    """Whether results could be written below that directory."""
    there = Path(root)
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        text = f"MR_RESULT_FILE_WRITER_OUTPUT_PATH is {root}, which this user cannot write to."
        return [Finding("problem", "results", text, "Give the user that JobX runs as the right, or name another.")]
    return [Finding("ok", "results", f"Results that are files go below {root}."), examine_space(there)]


def _reason(error: OSError) -> str:
    if error.errno == errno.EXDEV:
        return "it stands on another filesystem than the directory of its workflow."
    return f"{error.strerror or error}."


def _write_file(place: places.Place, target: int, result: Result) -> None:
    form = FORMATS[place.format]
    with drafts.draft(place.root, place.parts[0], "file") as made:
        descriptor = os.open(made.name, _APPEND, dir_fd=made.staging)
        with open(descriptor, "w", _BUFFER_BYTES, encoding="utf-8", newline="") as file:
            file.write(form.names_of_pair)
            file.writelines(form.pair(key, value) for key, value in result.pairs())
            file.flush()
            os.fsync(descriptor)
        drafts.settle_file(made, target, place.parts[-1])


def _write_directory(place: places.Place, target: int, result: Result, delivery_id: str) -> None:
    name = place.parts[-1]
    if drafts.made_by(target, name) == delivery_id:
        return
    with drafts.draft(place.root, place.parts[0], "directory") as made:
        with drafts.inside(made) as directory:
            _fill(directory, FORMATS[place.format], result.pairs())
        drafts.settle_directory(made, target, name, delivery_id)


def _fill(directory: int, form: Format, pairs: Iterator[tuple[Key, Any]]) -> None:
    with open(drafts.create(directory, INDEX), "w", encoding="utf-8") as index:
        for key, value in pairs:
            name = f"{name_of(key)}{form.extension}"
            try:
                file = drafts.create(directory, name)
                index.write(f'{{"file":{value_text(name)},"key":{key_text(key)}}}\n')
                line = form.names_of_value + form.value(value)
            except FileExistsError:
                # A reducer may yield a key again, near or far from the first time.
                file = os.open(name, _APPEND, dir_fd=directory)
                line = form.value(value)
            with open(file, "w", encoding="utf-8", newline="") as values:
                values.write(line)
