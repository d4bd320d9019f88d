"""How many children of one parent are on their way at once: as many as keep the runners busy, and few more.

Messages of one topic are taken in the order of their coming. What a wide parent has sent is therefore what a small
request has to wait for, and what it has not sent is in nobody's way.
"""

from __future__ import annotations

from typing import NamedTuple

from mr.engine.ops import Env, Flow, List, Settings
from mr.engine.transitions import Scene
from mr.model import keys
from mr.model.records import Seal
from mr.model.workers import Registration

_UNKNOWN = 8
"""How many children are sent for each runner where nobody knows how long they take: most of what short ones could use.
Workers look behind those that turn out to be long."""

_RETRIED = 4
"""As many where they may be retried: one that waits for its next attempt keeps its place."""

_PER_SHARD = 3


class Window(NamedTuple):
    """``size`` children are sent at once, each one's end sends the next. It is a multiple of ``shards``."""

    size: int
    shards: int


def window(env: Env, scene: Scene, step_name: str, children: int, above: Seal | None) -> Flow[Window]:
    """The window of a parent that maps to ``step_name``; ``above`` is the seal of its own parent."""
    settings = env.settings
    if children <= env.runners:
        return _sharded(children, settings)
    runners = yield from _runners(env, scene, step_name)
    least = runners + max(1, runners // 4)
    size = max(least, round(runners * _each(env, scene, step_name)))
    if above is not None:
        # Its siblings have children, too, as many at once as the window above lets them.
        size = max(least, size // max(1, min(above.children, above.window)))
    return _sharded(min(size, children), settings)


def _each(env: Env, scene: Scene, step_name: str) -> float:
    step = scene.manifest.steps[step_name]
    handlers = scene.manifest.handlers
    known = env.at_hand(scene.workflow, (handlers[step.map_handler_name], handlers[step.reduce_handler_name]))
    each = _UNKNOWN if known is None else known
    return max(each, _RETRIED) if step.max_attempts > 1 else each


def _runners(env: Env, scene: Scene, step_name: str) -> Flow[int]:
    """Those of all live workers that can run the step's mapper; this one's, where it is not registered."""
    capability = scene.manifest.capabilities[scene.manifest.steps[step_name].map_handler_name]
    reads = yield List(keys.workers(scene.workflow), Registration)
    registered: list[Registration] = [read.record for read in reads if read.record is not None]
    return max(env.runners, sum(one.runners for one in registered if capability in one.capabilities))


def _sharded(size: int, settings: Settings) -> Window:
    """A shard sends its next child when one of its own ends: few children of one may not keep the others of it back."""
    size = max(1, min(size, settings.window))
    shards = settings.shards if size >= 2 * settings.shards else max(1, size // _PER_SHARD)
    return Window(shards * -(-size // shards), shards)
