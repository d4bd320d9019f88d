"""``FS`` in handlers: the files of their workflow, and of their request."""

from __future__ import annotations

from functools import cached_property

from mr.fs.shared import WorkflowFolder
from mr.fs.tree import Tree
from mr.fs.trees import open_tree
from mr.fs.writers import Unfinished


class SharedFiles:
    """What a runner has of the shared filesystem: opened when a handler first uses it, and then kept."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._unfinished = Unfinished()

    @cached_property
    def _tree(self) -> Tree:
        return open_tree(self._url)

    def of(self, workflow_name: str, request_id: str) -> WorkflowFolder:
        """``FS`` for a handler of that request."""
        return WorkflowFolder(lambda: self._tree, workflow_name, request_id, self._unfinished)

    def close(self) -> None:
        """A handler ended well: what it has not closed is closed now.

        :raises OSError: a file could not be written.
        """
        self._unfinished.close()

    def abandon(self) -> None:
        """A handler failed: nothing of what it has not closed is ever seen."""
        self._unfinished.abandon()
