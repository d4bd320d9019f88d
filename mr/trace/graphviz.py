"""Pictures, made by graphviz's program ``dot`` within bounds."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Literal

from mr.errors import DrawingFailed, GraphvizMissing
from mr.trace.page import one_line

Format = Literal["svg", "png"]

TIMEOUT_S = 15.0
MEMORY_KIB = 1024 * 1024

_BOUNDED = 'ulimit -v "$1" 2>/dev/null; exec "$2" "-T$3"'
"""A shell sets the bound, since what Python runs between fork and exec is not safe where there are threads."""

_FOREIGN = re.compile(rb"<!DOCTYPE[^>]*>\s*|<!--.*?-->\s*", re.DOTALL)
"""Of an SVG: names a document elsewhere, and says by what it was made."""


def render(dot_text: str, fmt: Format) -> bytes:
    """The drawing of it. An SVG has no scripts, and refers to nothing elsewhere.

    :raises GraphvizMissing: the program ``dot`` is not there.
    :raises DrawingFailed: it could not draw that, or not in time, or not with the memory that it may have.
    """
    program = shutil.which("dot")
    if program is None:
        raise GraphvizMissing(
            "Drawings are made by graphviz, and there is no program 'dot' on the PATH. Install it; on Debian and "
            "Ubuntu: apt-get install graphviz. Without it there is the drawing as DOT, and the tree as text."
        )
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", _BOUNDED, "sh", str(MEMORY_KIB), program, fmt],
            input=dot_text.encode("utf-8", "replace"),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DrawingFailed(
            f"Graphviz did not finish the drawing within {TIMEOUT_S:g} s. Look at the tree as text instead."
        ) from error
    except OSError as error:
        raise DrawingFailed(f"Graphviz's dot cannot be run: {error}. Install it again.") from error
    if done.returncode or not done.stdout:
        said = one_line(done.stderr.decode("utf-8", "replace"), 500)
        raise DrawingFailed(
            f"Graphviz's dot ended with {done.returncode}: {said or 'it said nothing'} (It may take "
            f"{MEMORY_KIB // 1024} MiB of memory.) Look at the tree as text instead."
        )
    return _FOREIGN.sub(b"", done.stdout) if fmt == "svg" else done.stdout
