"""What may come of a step: the operation goes on, waits, is tried again, turns round, or ends."""

from __future__ import annotations

from dataclasses import replace

from celery.utils.log import get_task_logger
from kombu.exceptions import OperationalError

from worker import retry
from worker.errors import VmopsError
from worker.operations import results
from worker.operations.catalogue import Definition
from worker.operations.journal import Journal, Move
from worker.operations.progress import percent
from worker.operations.record import Direction, Record
from worker.operations.runtime import Runtime
from worker.operations.states import TURNED, State
from worker.operations.wait import Redo, Wait

logger = get_task_logger(__name__)

#: What a step leaves in the journal while it is tried; removed when the next step begins.
_PER_STEP = ("failures", "failing_since", "waiting_since", "step_started_at", "wait")
#: Tries of one undo whose error looks permanent, before the next undo is turned to.
_UNDO_TRIES = 5


def seconds_since(moment_ms: int | None, journal: Journal) -> float:
    """Return the age of a moment of the journal's clock; 0 when it has not come."""
    return 0.0 if moment_ms is None else (journal.now_ms() - moment_ms) / 1000


def describe(record: Record, error: BaseException) -> dict[str, str]:
    """Return an error as the journal keeps it."""
    code = error.code if isinstance(error, VmopsError) else type(error).__name__
    return {"step": record.step, "code": code, "message": str(error) or type(error).__name__}


def _finish(runtime: Runtime, record: Record, move: Move) -> bool:
    moved_at = runtime.journal.move(record, move)
    if moved_at:
        announce(runtime, replace(record.changed(move.state, move.set), ended_at=moved_at))
    return bool(moved_at)


def announce(runtime: Runtime, record: Record) -> None:
    """Close the operation's row in Flower; the reconciler repeats it when this fails, or the process dies."""
    try:
        results.send_closing_event(runtime.app, record)
    except (OperationalError, OSError) as error:
        logger.warning("the end of operation %s is not announced yet: %s", record.id, error)
    else:
        runtime.journal.announced(record.id)


def advance(runtime: Runtime, definition: Definition, record: Record) -> bool:
    """Note that the step is done; tell whether the chain's next link may be sent."""
    if record.direction is Direction.UNDO:
        return _advance_undo(runtime, definition, record)
    following = record.position + 1
    if following == len(definition.steps):
        result = record.data.get("result")
        fields = {"result": result, "progress": 100.0}
        end = Move(State.SUCCEEDED, "none", fields, drop=_PER_STEP, text="succeeded", ended=record.step)
        _finish(runtime, record, end)
        return False
    fields = {
        "position": following,
        "step": definition.step_name(Direction.RUN, following),
        "progress": max(record.progress, percent(definition.weights, following)),
    }
    # Past the point of no return a wish to cancel that came too late is dropped.
    drop = (*_PER_STEP, "cancel") if record.position >= definition.point_of_no_return else _PER_STEP
    move = Move(
        State.QUEUED,
        "live",
        fields,
        drop=drop,
        due_in_s=runtime.settings.submit_grace_s,
        text="next step",
        ended=record.step,
    )
    return bool(runtime.journal.move(record, move))


def _advance_undo(runtime: Runtime, definition: Definition, record: Record) -> bool:
    following = definition.next_undo(record.position)
    if following is None:
        end_undo(runtime, record)
        return False
    fields = {"position": following, "step": definition.step_name(Direction.UNDO, following)}
    move = Move(
        record.state, "live", fields, drop=_PER_STEP, due_in_s=runtime.settings.submit_grace_s, text="next undo"
    )
    return bool(runtime.journal.move(record, move))


def end_undo(runtime: Runtime, record: Record) -> None:
    """End an operation whose last undo has been tried."""
    if record.undo_errors:
        text = f"{len(record.undo_errors)} undo(s) failed"
        fields = {"undo_errors": record.undo_errors}
        _finish(runtime, record, Move(State.STUCK, "none", fields, drop=_PER_STEP, text=text))
    else:
        state = State.CANCELLED if record.state is State.CANCELLING else State.UNDONE
        _finish(runtime, record, Move(state, "none", {}, drop=_PER_STEP, text="everything is undone"))


def turn(runtime: Runtime, definition: Definition, record: Record, error: BaseException | None) -> bool:
    """Begin to undo: because of `error`, or (None) because somebody asked. False: the chain must not go on."""
    cause = {"error": describe(record, error)} if error else {}
    positions = definition.undo_positions(max(record.position, 0))
    text = cause["error"]["message"] if error else "stops on request"
    if not positions:
        state = State.FAILED if error else State.CANCELLED
        _finish(runtime, record, Move(state, "none", cause, drop=_PER_STEP, text=text))
        return False
    state = State.UNDOING if error else State.CANCELLING
    fields = {
        **cause,
        "direction": Direction.UNDO,
        "position": positions[0],
        "step": definition.step_name(Direction.UNDO, positions[0]),
    }
    move = Move(state, "live", fields, drop=_PER_STEP, due_in_s=runtime.settings.submit_grace_s, text=text)
    if runtime.journal.move(record, move):
        runtime.submit(record.changed(state, fields))
    return False


def fail(runtime: Runtime, record: Record, error: VmopsError) -> None:
    """End an operation past its point of no return that has nothing more to do, and has not done what was asked."""
    fields = {"error": describe(record, error)}
    _finish(runtime, record, Move(State.FAILED, "none", fields, drop=_PER_STEP, text=str(error)))


def turn_if_free(runtime: Runtime, definition: Definition, record: Record) -> None:
    """Begin to undo an operation that was asked to stop while no worker was at it."""
    turn(runtime, definition, replace(record, token=""), None)


def go_back(runtime: Runtime, definition: Definition, record: Record, redo: Redo) -> None:
    """Go back to an earlier step whose work has vanished."""
    position = next(i for i, step in enumerate(definition.steps) if step.name == redo.step)
    fields = {"position": position, "step": redo.step, "rewinds": record.rewinds + 1}
    move = Move(
        State.QUEUED, "live", fields, drop=_PER_STEP, due_in_s=runtime.settings.submit_grace_s, text=redo.reason
    )
    if runtime.journal.move(record, move):
        runtime.submit(record.changed(State.QUEUED, fields))


def waits_since(record: Record, wait: Wait) -> int | None:
    """Return since when the step waits: for its turn since it was begun, which takes nothing from its other waits."""
    return record.step_started_at if wait.hold else record.waiting_since


def park(runtime: Runtime, record: Record, wait: Wait) -> None:
    """Give the slot back until the watcher wakes the operation."""
    state = record.state if record.state in TURNED else State.WAITING
    remaining_s = wait.deadline_s - seconds_since(waits_since(record, wait), runtime.journal)
    move = Move(
        state,
        "waiting",
        {"wait": {"reason": wait.reason}},
        drop=("failures", "failing_since"),
        due_in_s=max(0.0, min(wait.check_every_s, remaining_s + 1)),
        watch=wait.watch(),
        hold=wait.hold,
        counts=wait.hold is None,
        text=wait.reason,
    )
    runtime.journal.move(record, move)


def retry_later(runtime: Runtime, record: Record, error: BaseException, backoff: retry.Backoff) -> None:
    """Let the watcher send the step again after a delay."""
    failures = record.failures + 1
    delay_s = backoff.delay_s(failures)
    state = record.state if record.state in TURNED else State.WAITING
    fields: dict[str, object] = {
        "failures": failures,
        "failing_since": record.failing_since or runtime.journal.now_ms(),
        "wait": {"reason": f"the next try ({error})"},
    }
    text = f"try {failures} failed, next in {delay_s:.1f} s: {error}"
    runtime.journal.move(record, Move(state, "waiting", fields, due_in_s=delay_s, text=text))


def retry_or_give_up(runtime: Runtime, definition: Definition, record: Record, error: BaseException) -> None:
    """Try an undo, or a step past the point of no return, again and again; at last leave it to an operator."""
    settings = runtime.settings
    transient = retry.is_worth_retrying(error)
    failing_s = seconds_since(record.failing_since, runtime.journal)
    if failing_s < settings.undo_deadline_s and (transient or record.failures + 1 < _UNDO_TRIES):
        retry_later(runtime, record, error, retry.delay_of(error, settings))
        return
    if record.direction is Direction.RUN:
        fields: dict[str, object] = {"error": describe(record, error)}
        _finish(runtime, record, Move(State.STUCK, "none", fields, drop=_PER_STEP, text=str(error)))
        return
    errors = [*record.undo_errors, {**describe(record, error), "position": str(record.position)}]
    following = definition.next_undo(record.position)
    if following is None:
        end_undo(runtime, replace(record, undo_errors=errors))
        return
    fields = {
        "undo_errors": errors,
        "position": following,
        "step": definition.step_name(Direction.UNDO, following),
    }
    move = Move(
        record.state, "live", fields, drop=_PER_STEP, due_in_s=settings.submit_grace_s, text=f"gave up: {error}"
    )
    if runtime.journal.move(record, move):
        runtime.submit(record.changed(record.state, fields))


def refuse(runtime: Runtime, record: Record, error: VmopsError) -> None:
    """End an operation whose request cannot be carried out, before anything of it was begun."""
    fields = {"error": describe(record, error), "position": 0}
    _finish(runtime, record, Move(State.FAILED, "none", fields, text=str(error)))


def resume_stuck(runtime: Runtime, definition: Definition, record: Record) -> None:
    """Try again what an operation is stuck at."""
    if record.direction is Direction.RUN:
        state, fields = State.RUNNING, dict[str, object]()
    else:
        state = State.UNDOING if record.error else State.CANCELLING
        position = int(record.undo_errors[0]["position"]) if record.undo_errors else record.position
        fields = {"undo_errors": [], "position": position, "step": definition.step_name(Direction.UNDO, position)}
    move = Move(state, "live", fields, drop=("resume",), due_in_s=runtime.settings.submit_grace_s, text="tried again")
    if runtime.journal.move(replace(record, token=""), move):
        runtime.submit(record.changed(state, fields))
