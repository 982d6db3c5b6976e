"""What Celery's users see of an operation: `AsyncResult(operation id)` and the row in Flower."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import current_task

from worker.operations.states import CELERY_STATE, FINAL, State

if TYPE_CHECKING:
    from celery import Celery

    from worker.operations.record import Record


#: How often the closing event is sent when the broker does not take it; after that the reconciler repeats it.
_TRIES = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5}


def key(operation_id: str) -> str:
    """Return the key that Celery's Redis result backend reads for a task."""
    return f"celery-task-meta-{operation_id}"


def failure_text(record: Record) -> str:
    """Say in one sentence why the operation did not succeed."""
    if record.state is State.CANCELLED:
        return "cancelled on request; everything was undone"
    error = record.error or {"step": record.step, "code": "Unknown", "message": "no cause was recorded"}
    endings = {
        State.STUCK: " Not everything could be undone: `vmops show` tells what is left, `vmops cancel` tries again.",
        State.UNDONE: " Everything was undone.",
    }
    where = f" in {error['step']}" if error["step"] else ""
    return f"{error['message']} [{error['code']}{where}]{endings.get(record.state, '')}"


def meta(record: Record) -> str:
    """Return the result of the operation in the form that Celery stores."""
    status = CELERY_STATE[record.state]
    result: Any = record.summary()
    if status == "SUCCESS":
        result = record.result
    elif status in {"FAILURE", "REVOKED"}:
        kind = (
            ("TaskRevokedError", "celery.exceptions") if status == "REVOKED" else ("OperationFailed", "worker.errors")
        )
        result = {"exc_type": kind[0], "exc_message": [failure_text(record)], "exc_module": kind[1]}
    ended = record.state in FINAL or record.state is State.STUCK
    done = datetime.now(UTC).isoformat() if ended else None
    return json.dumps(
        {"status": status, "result": result, "traceback": None, "children": [], "date_done": done, "task_id": record.id}
    )


def send_closing_event(app: Celery, record: Record) -> None:
    """Close the operation's row in Flower: the event that the entry task kept back (see `EntryRequest`).

    Raises OperationalError, OSError when the broker is away.
    """
    runtime = ((record.ended_at or 0) - (record.started_at or record.ended_at or 0)) / 1000
    fields: dict[str, Any]
    if record.state is State.SUCCEEDED:
        kind, fields = "task-succeeded", {"result": json.dumps(record.result), "runtime": runtime}
    elif record.state is State.CANCELLED:
        kind, fields = "task-revoked", {"terminated": False, "signum": None, "expired": False}
    else:
        kind, fields = "task-failed", {"exception": f"OperationFailed({failure_text(record)!r})", "traceback": ""}
    worker = current_task.request.hostname if current_task else None
    with app.events.default_dispatcher(hostname=worker) as dispatcher:
        dispatcher.send(kind, uuid=record.id, retry=True, retry_policy=_TRIES, **fields)
