"""Whether there is room on a disk, and whether it is one of this machine at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mr.findings import Finding, size

_NETWORKED = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "lustre", "gfs2", "ocfs2", "glusterfs", "beegfs"})
_LITTLE = 0.05
_LITTLE_BYTES = 1 << 30
_NONE_BYTES = 64 << 20


def examine_space(path: Path) -> Finding:
    """How much room the disk has that ``path`` is, or will be, on."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    total, _, free = shutil.disk_usage(there)
    point, _ = _mount(there)
    text = f"{size(free)} of {size(total)} are free on the disk of {point or there}."
    if free < _NONE_BYTES:
        advice = "Free some space, or move things elsewhere (MR_DATA_DIR): writes are about to be refused."
        return Finding("problem", "disk", text, advice)
    if free < min(_LITTLE_BYTES, _LITTLE * total):
        return Finding("warning", "disk", text, "Free some space: a full disk stops all work.")
    return Finding("ok", "disk", text)


def is_networked(path: Path) -> bool:
    """Whether other machines have that filesystem, too, as far as its type tells."""
    _, kind = _mount(path)
    return kind in _NETWORKED or kind.removeprefix("fuse.") in (*_NETWORKED, "sshfs", "s3fs")


def _mount(path: Path) -> tuple[str, str]:
    """Where the filesystem that holds ``path`` is mounted, and its type; empty where nobody knows."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return "", ""
    wanted = os.path.realpath(path)
    found = ("", "")
    for line in mounts:
        # Documented in proc(5): the mount point is the fifth field, its type the first after a hyphen by itself.
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        is_above = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        # Of two at one point the later one covers the earlier.
        if is_above and len(point) >= len(found[0]):
            found = (point, after.split(" ")[0])
    return found
