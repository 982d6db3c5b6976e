"""The states of an operation and the moves between them, as data."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an operation stands."""

    QUEUED = "queued"
    """In the journal; its next step has been, or will be, sent to a worker."""
    RUNNING = "running"
    """A worker carries out a step."""
    WAITING = "waiting"
    """Parked: for a condition in the pool, for its turn at a VM, or for the next try of a step."""
    SUCCEEDED = "succeeded"
    """Ended well."""
    FAILED = "failed"
    """Ended with an error before anything was touched, or (`InstanceGone`) when there was nothing more to do; or an
    operator has given it up."""
    UNDOING = "undoing"
    """A step failed; the steps before it are being undone."""
    UNDONE = "undone"
    """Ended with an error; every step was undone."""
    STUCK = "stuck"
    """An undo (or a step past the point of no return) could not be completed: an operator must look.

    It keeps its VM; cancelling it tries again, giving it up leaves all as it is."""
    CANCELLING = "cancelling"
    """Asked to stop; the steps are being undone."""
    CANCELLED = "cancelled"
    """Ended by request; every step was undone."""


#: The states that an operation never leaves.
FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.UNDONE, State.CANCELLED})

#: The states in which the next task is an undo.
TURNED = frozenset({State.UNDOING, State.CANCELLING})

#: Allowed moves: new state -> the states it may come from.
MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.WAITING}),
    State.RUNNING: frozenset({State.QUEUED, State.RUNNING, State.WAITING, State.STUCK}),
    State.WAITING: frozenset({State.RUNNING}),
    State.SUCCEEDED: frozenset({State.RUNNING}),
    State.FAILED: frozenset({State.QUEUED, State.RUNNING, State.WAITING, State.UNDOING, State.CANCELLING, State.STUCK}),
    State.UNDOING: frozenset({State.RUNNING, State.UNDOING, State.STUCK}),
    State.UNDONE: frozenset({State.UNDOING}),
    State.STUCK: frozenset({State.RUNNING, State.UNDOING, State.CANCELLING}),
    State.CANCELLING: frozenset({State.QUEUED, State.RUNNING, State.WAITING, State.CANCELLING, State.STUCK}),
    State.CANCELLED: frozenset({State.QUEUED, State.RUNNING, State.WAITING, State.CANCELLING}),
}

#: What AsyncResult(operation id).state says for each state (Celery's names; PROGRESS is the usual custom one).
CELERY_STATE: dict[State, str] = {
    State.QUEUED: "STARTED",
    State.RUNNING: "PROGRESS",
    State.WAITING: "PROGRESS",
    State.SUCCEEDED: "SUCCESS",
    State.FAILED: "FAILURE",
    State.UNDOING: "PROGRESS",
    State.UNDONE: "FAILURE",
    State.STUCK: "FAILURE",
    State.CANCELLING: "PROGRESS",
    State.CANCELLED: "REVOKED",
}
