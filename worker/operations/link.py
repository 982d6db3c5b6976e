"""One delivery of one link: claim, act, write down what came of it. The journal decides; Celery only carries.

A link that does not advance the operation cuts the tail of its chain, so that Celery does not send the next link
(celery.md 9.3). Whoever changes an operation's direction, or wakes it, sends a new chain from the journal's position.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_task_logger
from redis.exceptions import RedisError

from worker import retry
from worker.errors import (
    AttemptsExhausted,
    Cancelled,
    DeadlineExceeded,
    InstanceGone,
    LeaseLost,
    VmopsError,
    XenAPIFailure,
)
from worker.operations import outcome
from worker.operations.catalogue import Definition
from worker.operations.journal import Claim, Link
from worker.operations.lease import Lease, clock_s
from worker.operations.op import Op
from worker.operations.record import Direction, Record
from worker.operations.runtime import Runtime, current, resource
from worker.operations.wait import Redo, Wait

if TYPE_CHECKING:
    from celery import Task

logger = get_task_logger(__name__)

#: An operation whose work keeps vanishing ends after this many returns to an earlier step.
_MAX_REWINDS = 5


class StepFailed(Exception):
    """A step did not get through this time; the journal has the details."""


def carry_out(task: Task[Any, Any], definition: Definition, link: Link) -> None:
    """Carry out one delivery of a link. Raises StepFailed for Flower's sake only."""
    runtime = current()
    asked_at_s = clock_s()
    claim, record = runtime.journal.claim(link, uuid4().hex, runtime.settings.lease_ttl_s)
    if record is None:
        task.request.chain = None
        logger.info("%s of %s dropped: %s", link.step, link.operation_id, claim)
        if claim is Claim.CANCEL:
            outcome.turn_if_free(runtime, definition, runtime.journal.get(link.operation_id))
        return
    advanced = False
    lease = Lease(runtime, record, asked_at_s)
    try:
        with lease.kept():
            advanced = _act(runtime, definition, record, lease)
    finally:
        if not advanced:
            task.request.chain = None


def _act(runtime: Runtime, definition: Definition, record: Record, lease: Lease) -> bool:
    op = Op(runtime, definition, record, lease)
    body = definition.steps[record.position].body(record.direction)
    needs = _parameters(body)
    try:
        _check_attempts(runtime, record)
        lease.guard()
        body(**{name: resource(name)(op) for name in needs})
    except Wait as wait:
        _park(runtime, definition, op, wait)
        return False
    except Redo as redo:
        if record.rewinds >= _MAX_REWINDS:
            _fail(
                runtime,
                definition,
                op,
                AttemptsExhausted(f"Went back {record.rewinds} times; now again: {redo.reason}."),
            )
        else:
            outcome.go_back(runtime, definition, op.record, redo)
        return False
    except LeaseLost as error:
        logger.warning("%s of %s gave up: %s", body.__name__, record.id, error)
        return False
    except RedisError as error:
        # Nothing can be written down now. The lease runs out, and the reconciler sends the step again.
        logger.warning("%s of %s has lost the journal: %s", body.__name__, record.id, error)
        return False
    except Cancelled:
        return outcome.turn(runtime, definition, op.record, None)
    except Exception as error:  # noqa: BLE001 - the base of all steps: every error ends in the journal
        _fail(runtime, definition, op, error)
        raise StepFailed(f"{type(error).__name__}: {error}") from None
    return outcome.advance(runtime, definition, op.record)


@cache
def _parameters(body: Callable[..., None]) -> tuple[str, ...]:
    return tuple(inspect.signature(body).parameters)


def _check_attempts(runtime: Runtime, record: Record) -> None:
    if record.silent_tries > runtime.settings.max_attempts:
        raise AttemptsExhausted(
            f"Step {record.step} was begun {record.silent_tries} times without coming to an end: its workers died."
        )


def _park(runtime: Runtime, definition: Definition, op: Op, wait: Wait) -> None:
    waited_s = op.seconds_since(outcome.waits_since(op.record, wait))
    if waited_s > wait.deadline_s:
        _fail(runtime, definition, op, DeadlineExceeded(f"Waited {waited_s:.0f} s, and still {wait.reason}."))
    else:
        outcome.park(runtime, op.record, wait)


def _fail(runtime: Runtime, definition: Definition, op: Op, error: Exception) -> None:
    if not isinstance(error, VmopsError | OSError | SoftTimeLimitExceeded):
        logger.error("step %s of operation %s met an unforeseen error", op.record.step, op.id, exc_info=error)
    record = op.record
    past_return = record.direction is Direction.RUN and record.position > definition.point_of_no_return
    if past_return and isinstance(error, InstanceGone):
        outcome.fail(runtime, record, error)
        return
    if record.direction is Direction.UNDO or past_return:
        outcome.retry_or_give_up(runtime, definition, record, error)
        return
    transient = retry.is_worth_retrying(error) or isinstance(error, SoftTimeLimitExceeded)
    if (
        isinstance(error, XenAPIFailure)
        and error.code == "INTERNAL_ERROR"
        and record.failures >= retry.INTERNAL_ERROR_TRIES
    ):
        transient = False
    failing_s = outcome.seconds_since(record.failing_since, runtime.journal)
    if transient and failing_s < runtime.settings.step_deadline_s:
        outcome.retry_later(runtime, record, error, retry.delay_of(error, runtime.settings))
    else:
        if transient:
            error = DeadlineExceeded(f"Tried for {failing_s:.0f} s; the last error was: {error}")
        outcome.turn(runtime, definition, record, error)
