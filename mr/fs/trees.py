"""Opens the tree that a URL names. A new technology is a module and a line here."""

from __future__ import annotations

from mr.errors import InvalidConfig
from mr.fs.tree import Tree

SCHEMES = ("file",)


def open_tree(url: str) -> Tree:
    """The shared filesystem of ``MR_FS_URL``.

    :raises InvalidConfig: there is no driver for it.
    """
    # Here, and not above: every runner imports this module, and few handlers use files.
    from mr.urls import local_path, masked_url

    scheme = url.partition(":")[0]
    if scheme == "file":
        from mr.fs.local_tree import LocalTree

        return LocalTree(local_path(url))
    what = "there is no driver for it"
    if scheme == "memory":
        what = "a filesystem in memory is one process's own, and a platform has several"
    raise InvalidConfig(f"MR_FS_URL is {masked_url(url)!r}: {what}. Give {schemes()}.", "MR_FS_URL")


def schemes() -> str:
    """The URLs that there are drivers for, for messages."""
    return " or ".join(f"{scheme}:///PATH" for scheme in SCHEMES)
