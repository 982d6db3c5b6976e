"""An operation as people and scripts see it: its steps, what it waits for, what went wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from rich.table import Table
from rich.text import Text

from worker.operations.catalogue import Definition
from worker.operations.record import Direction, Record
from worker.operations.states import FINAL, TURNED, State


class StepState(StrEnum):
    """Where one step of an operation stands."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    UNDOING = "undoing"
    UNDONE = "undone"
    UNDO_FAILED = "undo failed"


#: (mark, mark for terminals without Unicode, style)
MARKS: Mapping[StepState, tuple[str, str, str]] = {
    StepState.PENDING: ("·", ".", "dim"),
    StepState.QUEUED: ("›", ">", "cyan"),  # noqa: RUF001 - a mark for people
    StepState.RUNNING: ("▸", ">", "cyan"),
    StepState.WAITING: ("…", "~", "yellow"),
    StepState.DONE: ("✓", "+", "green"),
    StepState.FAILED: ("✗", "x", "red"),
    StepState.STOPPED: ("■", "x", "yellow"),
    StepState.UNDOING: ("↶", "<", "yellow"),
    StepState.UNDONE: ("↶", "<", "yellow"),
    StepState.UNDO_FAILED: ("✗", "x", "red"),
}

STATE_STYLES: Mapping[State, str] = {
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.UNDONE: "red",
    State.STUCK: "bold red",
    State.CANCELLED: "yellow",
    State.CANCELLING: "yellow",
    State.UNDOING: "yellow",
    State.WAITING: "yellow",
}

_ACTIVE = {State.QUEUED: StepState.QUEUED, State.RUNNING: StepState.RUNNING, State.WAITING: StepState.WAITING}


@dataclass(frozen=True)
class StepView:
    """One step of an operation."""

    name: str
    state: StepState
    attempts: int = 0
    began_at: int | None = None
    ended_at: int | None = None
    undo: str | None = None
    """Name of the step that takes it back."""
    undo_attempts: int = 0

    def seconds(self, now_ms: int) -> float | None:
        """Return how long it took, or takes so far; None before it has begun."""
        if not self.began_at:
            return None
        return ((self.ended_at or now_ms) - self.began_at) / 1000


def has_ended(record: Record) -> bool:
    """Tell whether nothing more will happen by itself."""
    return record.state in FINAL or record.state is State.STUCK


def steps_of(record: Record, definition: Definition | None) -> list[StepView]:
    """Return the steps in running order; of an operation that this version does not know, those that were begun."""
    if definition is None:
        names = list(dict.fromkeys([*record.times, *record.attempts, *([record.step] if record.step else [])]))
        return [_step(record, name, _unknown_state(record, name), None) for name in names]
    failed = _failed_position(record, definition)
    return [
        _step(record, step.name, _state_of(record, position, failed, step.undo), step.undo)
        for position, step in enumerate(definition.steps)
    ]


def _step(record: Record, name: str, state: StepState, undo: Any) -> StepView:
    began, ended = record.times.get(name, [None, None])
    if state in {StepState.RUNNING, StepState.WAITING, StepState.QUEUED} and record.step == name:
        began, ended = record.step_started_at, None
    undo_name = undo.__name__ if undo else None
    return StepView(
        name,
        state,
        record.attempts.get(name, 0),
        began,
        ended,
        undo_name,
        record.attempts.get(undo_name or "", 0),
    )


def _unknown_state(record: Record, name: str) -> StepState:
    if name == record.step and record.state in _ACTIVE:
        return _ACTIVE[record.state]
    return StepState.DONE if name in record.times else StepState.STOPPED


def _failed_position(record: Record, definition: Definition) -> int | None:
    """Return the position at which a turned operation turned round, None for one that goes, or went, forward."""
    if record.direction is Direction.RUN:
        return None
    names = [step.name for step in definition.steps]
    if record.error and record.error["step"] in names:
        return names.index(record.error["step"])
    begun = [position for position, name in enumerate(names) if record.attempts.get(name)]
    return max(begun, default=0)


def _state_of(record: Record, position: int, failed: int | None, undo: Any) -> StepState:
    if failed is None:
        return _forward_state(record, position)
    if position > failed:
        return StepState.PENDING
    undone = _undo_state(record, position, undo) if undo is not None else None
    if undone is not None or position < failed:
        return undone or StepState.DONE
    return StepState.FAILED if record.error else StepState.STOPPED


def _undo_state(record: Record, position: int, undo: Any) -> StepState | None:
    """Return how far the undo of a step is, None before it has begun."""
    if any(one.get("position") == str(position) for one in record.undo_errors):
        return StepState.UNDO_FAILED
    if position == record.position and record.state in TURNED:
        return StepState.UNDOING
    is_past = record.state not in TURNED or position > record.position
    return StepState.UNDONE if is_past and record.attempts.get(undo.__name__) else None


def _forward_state(record: Record, position: int) -> StepState:
    if record.state is State.SUCCEEDED or position < record.position:
        return StepState.DONE
    if position > record.position:
        return StepState.PENDING
    if record.state in {State.FAILED, State.STUCK}:
        return StepState.FAILED
    if record.state is State.CANCELLED:
        return StepState.STOPPED
    return _ACTIVE.get(record.state, StepState.QUEUED)


def advice(record: Record, definition: Definition | None) -> str | None:
    """Return what a person can do about where the operation stands, None when there is nothing to do."""
    if definition is None and record.state not in FINAL:
        return "Another release than this one began it, and a worker of that one has to carry it on: keep or start one."
    if record.state is State.STUCK:
        held = ", ".join(what.replace(":", " ") for what in record.holds)
        keeps = f" It keeps {held} until then." if held else ""
        goal = "goes on" if record.direction is Direction.RUN else "undoes the rest"
        return (
            f"Put the cause right, then `vmops cancel {record.id}` tries again and {goal}.{keeps} "
            "With --give-up it ends as it is."
        )
    if record.state in {State.QUEUED, State.RUNNING, State.WAITING}:
        is_late = record.direction is Direction.RUN and record.position > record.no_return
        cancel = f"`vmops cancel {record.id}` stops it and undoes what it did"
        follow = f"`vmops watch {record.id}` follows it"
        return f"{follow}; it can no longer be cancelled." if is_late else f"{follow}, {cancel}."
    return None


def left_behind(record: Record) -> list[str]:
    """Return what a stuck operation, or one given up, could not undo, or could not finish, one sentence each."""
    if record.state is State.STUCK and record.direction is Direction.RUN:
        error = record.error or {"step": record.step, "message": "no cause was recorded", "code": "Unknown"}
        return [f"{error['step']} has not been done: {error['message']} [{error['code']}]"]
    errors = record.undo_errors if record.state in {State.STUCK, State.FAILED} else []
    return [f"{one['step']} has not been done: {one['message']} [{one['code']}]" for one in errors]


def stamp(moment_ms: int | None) -> str | None:
    """Return a moment of the journal's clock as ISO 8601 in UTC."""
    if not moment_ms:
        return None
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds")


def local_time(moment_ms: int | None) -> str:
    """Return a moment of the journal's clock in the local zone, for people."""
    if not moment_ms:
        return ""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float | None) -> str:
    """Return a length of time for people."""
    if seconds is None:
        return ""
    if seconds < 100:  # noqa: PLR2004 - below that tenths matter
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def without_secrets(value: Any) -> Any:
    """Return a request with its sealed secrets taken out."""
    if isinstance(value, dict):
        return "***" if value.keys() == {"sealed"} else {key: without_secrets(one) for key, one in value.items()}
    return [without_secrets(one) for one in value] if isinstance(value, list) else value


def as_json(record: Record, definition: Definition | None) -> dict[str, Any]:
    """Return everything about an operation as plain data, secrets taken out."""
    steps = []
    for view in steps_of(record, definition):
        one = asdict(view)
        one["state"] = str(view.state)
        one["began_at"], one["ended_at"] = stamp(view.began_at), stamp(view.ended_at)
        steps.append(one)
    return {
        **record.summary(),
        "direction": str(record.direction),
        "request": without_secrets(record.request),
        "result": record.result,
        "created_at": stamp(record.created_at),
        "started_at": stamp(record.started_at),
        "ended_at": stamp(record.ended_at),
        "steps": steps,
        "undo_errors": record.undo_errors,
        "left_behind": left_behind(record),
        "holds": [] if record.state in FINAL else record.holds,
        "cancel_requested": record.cancel,
        "advice": advice(record, definition),
    }


def title_of(record: Record) -> str:
    """Return what the operation is, for people."""
    return f"{record.name} of {record.label}" if record.label else record.name


def steps_table(record: Record, definition: Definition | None, now_ms: int, *, unicode: bool) -> Table:
    """Return the steps as a table: mark, name, times begun, seconds."""
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "left"):
        table.add_column(justify=justify)
    for view in steps_of(record, definition):
        mark, plain, style = MARKS[view.state]
        attempts = f"{view.attempts} runs" if view.attempts > 1 else ""
        note = f"{view.undo}: {view.state}" if view.state in _UNDO_STATES and view.undo else ""
        if view.state is StepState.FAILED:
            note = "failed"
        table.add_row(
            Text(f"{mark if unicode else plain} {view.name}", style=style),
            Text(duration(view.seconds(now_ms))),
            Text(attempts, style="dim"),
            Text(note, style=style),
        )
    return table


_UNDO_STATES = {StepState.UNDOING, StepState.UNDONE, StepState.UNDO_FAILED}
