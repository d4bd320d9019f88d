"""Where a result goes as a file, below the directory that the platform has for results.

Each workflow has a directory of its own there, which no writer of another one's request gets out of.
"""

from __future__ import annotations

import os.path
import re
from typing import NamedTuple

from mr.config import Config
from mr.errors import InvalidInput
from mr.model.deliveries import Writer
from mr.model.names import MAX_NAME, MAX_WORKFLOW_NAME
from mr.results.formats import FORMATS

_PLACEHOLDER = re.compile(r"\{(.*?)\}")
_MAX_NAME_BYTES = 255
_BY_EXTENSION = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


class Place(NamedTuple):
    """``parts`` are the names below the platform's directory, that of the workflow first."""

    root: str
    parts: tuple[str, ...]
    format: str
    is_directory: bool

    def __str__(self) -> str:
        return os.path.join(self.root, *self.parts)


def place_of(config: Config, writer: Writer, workflow: str, job: str, request_id: str) -> Place:
    """Where the file, or the directory, of that request's result stands.

    :raises InvalidInput: there is no directory for results, or the path cannot be one.
    """
    root = config.result_file_writer_output_path
    if not root:
        raise InvalidInput(
            "This platform writes no files: MR_RESULT_FILE_WRITER_OUTPUT_PATH, the directory for them, is not set.",
            "MR_RESULT_FILE_WRITER_OUTPUT_PATH",
        )
    options, default = writer.options, config.result_file_writer_write_as_directory
    is_directory = options["directory"] == "1" if "directory" in options else default
    extension = os.path.splitext(writer.place)[1].lower()
    form = options.get("format") or _BY_EXTENSION.get(extension) or config.result_file_writer_format
    if not writer.place:
        name = request_id if is_directory else f"{request_id}{FORMATS[form].extension}"
        return Place(root, (workflow, name), form, is_directory)
    names = {"workflow": workflow, "job": job, "request_id": request_id}
    filled = [_filled(part, names, writer.place) for part in writer.place.split("/")]
    return Place(root, (workflow, *filled), form, is_directory)


def check(config: Config, writer: Writer) -> None:
    """Whether there is a place whatever the names of workflow and job are.

    :raises InvalidInput: see :func:`place_of`.
    """
    place_of(config, writer, "w" * MAX_WORKFLOW_NAME, "j" * MAX_NAME, "r" * 18)


def _filled(part: str, names: dict[str, str], path: str) -> str:
    for unknown in set(_PLACEHOLDER.findall(part)) - set(names):
        raise InvalidInput(
            f"'file:{path[:200]}': there is no {{{unknown}}}, only {', '.join(f'{{{name}}}' for name in names)}."
        )
    filled = _PLACEHOLDER.sub(lambda found: names[found[1]], part)
    # What is not finished yet has names with a dot.
    if not filled or filled.startswith(".") or "\0" in filled:
        raise InvalidInput(f"'file:{path[:200]}': no name in a path is empty or begins with a dot.")
    if len(filled.encode()) > _MAX_NAME_BYTES:
        raise InvalidInput(f"'file:{path[:200]}': a name in a path can get longer than {_MAX_NAME_BYTES} bytes.")
    return filled
