"""A tree as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from mr.model.deliveries import as_shown
from mr.trace.tree import Group, Node, Tree


def as_json(tree: Tree) -> dict[str, Any]:
    """``{"request": {…}, "total": N, "states": {…}, "root": node}``, for ``json.dumps``.

    A node has the fields of its invocation, ``seconds``, ``key`` (of a child that failed: JSON text), with data
    ``data`` (dataset name to ``count``, ``bytes``, the first ``pairs`` and ``cut``, see Preview), and ``groups``; a
    group ``step_name``, ``direction``, ``total``, ``states``, ``failing``, ``times`` (``p50``, ``p90``, ``longest`` in
    seconds, or null), ``is_folded``, ``nodes`` and ``below`` (groups without nodes).
    """
    root = None if tree.root is None else _node_as_json(tree.root)
    states = dict(sorted(tree.states.items()))
    return {"request": msgspec.to_builtins(as_shown(tree.request)), "total": tree.total, "states": states, "root": root}


def _node_as_json(node: Node) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(node.record)
    shown["seconds"] = node.seconds
    if node.key is not None:
        shown["key"] = node.key
    if node.data is not None:
        shown["data"] = {name: asdict(preview) for name, preview in node.data.items()}
    shown["groups"] = [_group_as_json(group) for group in node.groups]
    return shown


def _group_as_json(group: Group) -> dict[str, Any]:
    return {
        "step_name": group.step_name,
        "direction": group.direction,
        "total": group.total,
        "states": dict(sorted(group.states.items())),
        "failing": group.failing,
        "times": None if group.times is None else group.times._asdict(),
        "is_folded": group.is_folded,
        "nodes": [_node_as_json(node) for node in group.nodes],
        "below": [_group_as_json(inner) for inner in group.below],
    }
