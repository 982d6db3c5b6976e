"""Calls that may wait long inside XAPI, where everything else on the storage repository goes first (xapi.md 8.4).

They are begun once, and waited for without a worker when they take longer than a moment (xapi-observed.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from worker.errors import UnknownResult, XenAPIFailure
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.retry import Kind, kind_of
from worker.xenapi import sr, vdi, xapi_task
from worker.xenapi.session import Session
from worker.xenapi.xapi_task import Outcome

#: A call usually ends within this time.
_SHORT_S = 3.0
_DEADLINE_S = 2 * 3600.0  # XAPI's own limit for waiting on a lock (xapi.md 4.2)
_CHECK_S, _FAR_CHECK_S = 60.0, 2.0
_UNAVAILABLE = "SR_BACKEND_FAILURE_46"


def ended(pool: Session, task_ref: str, reason: str, deadline_s: float = _DEADLINE_S) -> Outcome:
    """Return how a call ended and remove its task. Raises Wait while it is on its way."""
    outcome = xapi_task.wait(pool, task_ref, _SHORT_S)
    if not outcome.is_final:
        raise until_ended([task_ref], reason, deadline_s)
    if outcome.status != "vanished":
        xapi_task.finish(pool, task_ref)
    return outcome


def until_ended(task_refs: Sequence[str], reason: str, deadline_s: float = _DEADLINE_S) -> Wait:
    """Return what to raise while calls are on their way."""
    return Wait(
        reason,
        until=[Until("task", task_ref, "status", ["pending"]) for task_ref in task_refs],
        check_every_s=_CHECK_S,
        deadline_s=deadline_s,
    )


def seen_from(op: Op, pool: Session, wait: Wait) -> Wait:
    """Return what to raise for a wait for something in `pool`: only the operation's own pool wakes it by events."""
    if pool.pool_name == op.pool_name:
        return wait
    return Wait(wait.reason, check_every_s=_FAR_CHECK_S, deadline_s=wait.deadline_s)


def carry_out(
    op: Op, pool: Session, name: str, begin: Callable[[], str], reason: str, *, deadline_s: float = _DEADLINE_S
) -> str:
    """Carry out a call that may be repeated and return its result.

    A later run of the step waits on for the call that was begun; `name` tells it from the operation's other calls.
    Raises Wait (for at most `deadline_s`), XenAPIFailure, and UnknownResult when XAPI has forgotten the call: then the
    next run begins it anew.
    """
    begun = op.data.get("begun", {})
    if name not in begun:
        begun[name] = begin()
        op.remember(begun=begun)
    try:
        outcome = ended(pool, begun.pop(name), reason, deadline_s)
    except Wait as wait:
        raise seen_from(op, pool, wait) from None
    op.remember(begun=begun)
    if outcome.status == "vanished":
        raise UnknownResult(f"Pool {pool.pool_name!r} was restarted while {reason}.")
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def scan(op: Op, pool: Session, sr_ref: str) -> None:
    """Let the storage manager compare a repository's records with what is there. Raises as `carry_out`."""
    begin = partial(sr.start_scan, pool, sr_ref)
    carry_out(op, pool, f"scan {sr_ref}", begin, "the pool is scanning the storage repository")


def destroy(op: Op, pool: Session, vdi_ref: str) -> None:
    """Destroy a disk; one that is gone already is no error. Raises as `carry_out`."""
    begin = partial(vdi.start_destroy, pool, vdi_ref)
    try:
        carry_out(op, pool, f"destroy {vdi_ref}", begin, "the pool is destroying a disk")
    except XenAPIFailure as error:
        if kind_of(error) is Kind.GONE:
            return
        if error.code == _UNAVAILABLE:
            # It is busy; or only its record has come back, from before XAPI died, which a scan drops (xapi.md 8.4).
            scan(op, pool, vdi.get(pool, vdi_ref)["SR"])
        raise
