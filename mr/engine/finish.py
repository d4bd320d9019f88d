"""How attempts end that do not end well: retried, failed, or let go."""

from __future__ import annotations

from mr.engine import transitions as t
from mr.engine.join import after_child, wake
from mr.engine.ops import Commit, Env, Flow, Publish
from mr.engine.transitions import Hold
from mr.handlers.protocol import Failed, Finished
from mr.model import ids
from mr.model.entities import Failure


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


def fail_or_retry(env: Env, hold: Hold, event: Failed | None, is_final: bool = False) -> Flow[None]:
    """An attempt failed (``event`` None: too many workers were lost). Another one follows, or it is final."""
    step = hold.scene.step(hold.record)
    handler = step.map_handler_name if hold.record.direction == "map" else step.reduce_handler_name
    if event is None:
        message = f"{hold.record.lost} workers were lost while they ran this (MR_MAX_LOST is {env.settings.max_lost})."
        event = Failed(exception_type="WorkerLost", exception_message=message, traceback="", stdout="", stderr="")
        is_final = True
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
    change, is_tolerated = t.fail(hold, failure, output, env.settings.shards, env.clock())
    answer = yield Commit(change)
    if not answer.ok:
        yield from abandon(hold)
    elif is_tolerated and hold.seal is not None and hold.seal.record is not None:
        yield from after_child(env, hold.scene, ids.map_of(hold.id), hold.seal.record, None)


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
