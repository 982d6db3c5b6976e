"""Sends on every operation that stopped moving: a lost message, a dead worker, a wiped broker.

An operation is suspected when its time in the journal's `live` index has passed: sent and not delivered within
`submit_grace_s`, or claimed and not renewed for two leases.
"""

from __future__ import annotations

from worker.errors import OperationNotFound
from worker.operations import outcome
from worker.operations.catalogue import definition_of
from worker.operations.record import Direction
from worker.operations.runtime import Runtime
from worker.operations.singleton import singleton
from worker.operations.states import FINAL, State
from worker.operations.watcher import send

#: An ended operation may still be announced by the worker that ended it for this long.
_ANNOUNCE_AFTER_S = 10.0


def reconcile(runtime: Runtime) -> int:
    """Send suspected operations on, close rows left open; return how many operations were sent."""
    journal = runtime.journal
    with singleton(journal.redis, f"{journal.prefix}:reconciler", 60) as alone:
        if not alone:
            return 0
        sent = 0
        for operation_id in journal.suspects():
            sent += _redrive(runtime, operation_id)
        for operation_id in journal.unannounced():
            _announce(runtime, operation_id)
        journal.expire_index()
        return sent


def _redrive(runtime: Runtime, operation_id: str) -> int:
    journal = runtime.journal
    try:
        record = journal.get(operation_id)
    except OperationNotFound:
        journal.forget(operation_id)
        return 0
    if record.resume:
        outcome.resume_stuck(runtime, definition_of(record.name), record)
        return 1
    if record.state in FINAL or record.state is State.STUCK:
        journal.forget(operation_id)
        return 0
    journal.suspect_later(operation_id)
    if record.cancel and record.direction is Direction.RUN and record.position >= 0:
        outcome.turn_if_free(runtime, definition_of(record.name), record)
    else:
        send(runtime, record)
    return 1


def _announce(runtime: Runtime, operation_id: str) -> None:
    try:
        record = runtime.journal.get(operation_id)
    except OperationNotFound:
        runtime.journal.forget(operation_id)
        return
    if outcome.seconds_since(record.ended_at, runtime.journal) > _ANNOUNCE_AFTER_S:
        outcome.announce(runtime, operation_id)
