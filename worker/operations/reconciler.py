"""Sends on every operation that stopped moving: a lost message, a dead worker, a wiped broker.

An operation is suspected when its time in the journal's `live` index has passed: sent and not delivered within
`submit_grace_s`, or claimed and not renewed for two leases. One that was sent may just be behind others in its queue:
of those, only as many are sent again as the queue is short of. So a long queue is not made longer, and a wiped one is
filled again at once.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from celery.utils.log import get_task_logger

from worker.errors import UnknownOperation
from worker.operations import outcome
from worker.operations.catalogue import definition_for, is_declared, queue_of
from worker.operations.record import Direction, Record
from worker.operations.runtime import Runtime
from worker.operations.singleton import singleton
from worker.operations.states import FINAL, State
from worker.operations.watcher import send, sending

logger = get_task_logger(__name__)


def reconcile(runtime: Runtime) -> int:
    """Send suspected operations on, close rows left open; return how many operations were sent."""
    journal = runtime.journal
    with singleton(runtime, f"{journal.prefix}:reconciler") as alone:
        if not alone:
            return 0
        runtime.publish_catalogue()
        suspects = _suspects(runtime)
        stopped = [record for record in suspects if not _is_queued(record)]
        stopped += _lost(runtime, [record for record in suspects if _is_queued(record)])
        for record in stopped:
            _redrive(runtime, record)
        _announce(runtime)
        journal.expire_index()
        return len(stopped)


def _suspects(runtime: Runtime) -> list[Record]:
    """Return the operations that should have moved by now and that this worker can send."""
    ids = runtime.journal.suspects()
    found = []
    for operation_id, record in zip(ids, runtime.journal.get_all(ids), strict=True):
        if record is None or (record.state in FINAL | {State.STUCK} and not record.resume):
            runtime.journal.forget(operation_id)
        elif record.position < 0 and not runtime.is_known(record.name):
            outcome.refuse(runtime, record, UnknownOperation(f"No worker knows an operation {record.name!r}."))
        elif record.position >= 0 and not is_declared(record.name):
            logger.warning("operation %s waits for a worker that knows %s", record.id, record.name)
            runtime.journal.suspect_later([record.id])
        else:
            found.append(record)
    return found


def _is_queued(record: Record) -> bool:
    """Tell whether the operation was sent and nobody has claimed it, so that it may be in a queue."""
    return not (record.token or record.cancel or record.resume)


def _lost(runtime: Runtime, sent: list[Record]) -> list[Record]:
    """Return those, of operations that were sent, whose messages are missing; the others wait in their queues."""
    if not sent:
        return []
    expected = Counter(queue_of(*one) for one in runtime.journal.sent())
    lost: list[Record] = []
    for queue, group in groupby(sorted(sent, key=_queue_and_age), _queue):
        records = list(group)
        missing = max(0, expected[queue] - runtime.queue_length(queue))
        lost += records[:missing]
        runtime.journal.suspect_later([record.id for record in records[missing:]])
    return lost


def _queue(record: Record) -> str:
    return queue_of(record.name, record.position, record.pool)


def _queue_and_age(record: Record) -> tuple[str, int]:
    return _queue(record), record.updated_at or 0


def _redrive(runtime: Runtime, record: Record) -> None:
    runtime.journal.suspect_later([record.id])
    with sending(record):
        if record.resume:
            outcome.resume_stuck(runtime, definition_for(record), record)
        elif record.cancel and record.direction is Direction.RUN and record.position >= 0:
            outcome.turn_if_free(runtime, definition_for(record), record)
        else:
            send(runtime, record)


def _announce(runtime: Runtime) -> None:
    """Close rows; those of operations that have just ended are still the business of the worker that ended them."""
    journal = runtime.journal
    ids = journal.unannounced()
    for operation_id, record in zip(ids, journal.get_all(ids), strict=True):
        if record is None:
            journal.forget(operation_id)
        elif outcome.seconds_since(record.updated_at, journal) > runtime.settings.submit_grace_s:
            outcome.announce(runtime, record)
