"""How attempts end that do not end well: retried, failed, or let go."""

from __future__ import annotations

import logging

from mr.engine import transitions as t
from mr.engine.join import after_child, wake
from mr.engine.ops import Commit, Env, Flow, Get, Publish
from mr.engine.transitions import Hold
from mr.handlers.protocol import Failed, Finished, Told
from mr.model import ids, keys
from mr.model.entities import Failure
from mr.model.places import place_of
from mr.model.records import Mark, Owner

log = logging.getLogger(__name__)


def lost_too_often(env: Env, hold: Hold) -> bool:
    """Whether so many workers vanished while they ran this that it is to blame itself."""
    return hold.record.lost > env.settings.max_lost


def clip(env: Env, event: Finished | Failed) -> tuple[str, str]:
    """The kept end of what the handler printed, on its output and its error output."""
    limit = env.settings.kept_output_chars
    return event.stdout[-limit:], event.stderr[-limit:]


def abandon(hold: Hold) -> Flow[None]:
    """After any refusal: a claim that is still ours would keep the invocation from everybody else."""
    yield Commit(t.abandon(hold.own, hold.token))


def failed(exception_type: str, message: str) -> Failed:
    """The failure of an attempt that the platform itself found."""
    return Failed(exception_type=exception_type, exception_message=message, traceback="", stdout="", stderr="")


def input_is_missing(env: Env, hold: Hold) -> Flow[None]:
    """Only a claim that has lost its ground should miss its input; where it stands, the input is lost for good."""
    scene = hold.scene
    own, live = yield Get(((hold.own, Owner), (keys.live(scene.workflow, scene.id), Mark)))
    if own.created == hold.token and live.created == scene.live:
        message = "What it should run on is gone from the store or the shared files."
        yield from fail_or_retry(env, hold, failed("CorruptRecord", message), is_final=True)
    else:
        yield from abandon(hold)


def handler_of(hold: Hold, event: Failed | Told) -> str:
    """Which handler that comes from: a map runs its combiner, too, and its runner says which of them it was."""
    step = hold.scene.step(hold.record)
    if hold.record.direction == "reduce":
        return step.reduce_handler_name
    is_combiner = event.handler_name and event.handler_name == step.combine_handler_name
    return step.combine_handler_name if is_combiner else step.map_handler_name


def fail_or_retry(env: Env, hold: Hold, event: Failed | None, is_final: bool = False) -> Flow[None]:
    """An attempt failed (``event`` None: too many workers were lost). Another one follows, or it is final."""
    step = hold.scene.step(hold.record)
    if event is None:
        message = f"{hold.record.lost} workers were lost while they ran this (MR_MAX_LOST is {env.settings.max_lost})."
        event = failed("WorkerLost", message)
        is_final = True
    handler = handler_of(hold, event)
    limit = env.settings.kept_output_chars
    failure = Failure(
        exception_type=event.exception_type[:256],
        exception_message=event.exception_message[:limit],
        traceback=event.traceback[-limit:],
        attempt=hold.record.attempt,
        handler_name=handler,
    )
    output = clip(env, event)
    if not is_final and hold.record.failures + 1 < step.max_attempts:
        yield from _retry(env, hold, failure, output)
        return
    change, is_tolerated = t.fail(hold, failure, output, env.clock())
    answer = yield Commit(change)
    if not answer.ok:
        yield from abandon(hold)
        return
    fields = {"workflow": hold.scene.workflow, "request": hold.scene.id, "invocation": hold.id}
    place = place_of(failure.traceback) or handler
    # A tolerated one may be one of thousands.
    level = logging.INFO if is_tolerated else logging.WARNING
    message = f"{failure.exception_type}: {failure.exception_message}"
    log.log(level, "%s of %s failed: %s (%s)", hold.id, hold.scene.workflow, message, place, extra=fields)
    if is_tolerated and hold.seal is not None and hold.seal.record is not None:
        yield from after_child(env, hold.scene, ids.map_of(hold.id), hold.seal.record, answer.versions, has_failed=True)


def _retry(env: Env, hold: Hold, failure: Failure, output: tuple[str, str]) -> Flow[None]:
    """Exponential backoff with jitter over its upper half."""
    settings = env.settings
    ceiling = min(settings.max_backoff_s, settings.backoff_s * 2.0 ** min(hold.record.failures, 30))
    pause = ceiling * (0.5 + 0.5 * env.jitter())
    answer = yield Commit(t.retry(hold, failure, output, env.clock() + pause))
    if answer.ok:
        yield Publish((wake(hold.scene, hold.record.step_name, hold.id, delay=pause),))
    else:
        yield from abandon(hold)
