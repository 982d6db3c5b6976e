"""Calls whose answer may get lost: whoever repeats the step waits until they have ended, and then looks for the marks.

    if was_intended(op, "VM.create"):
        await_lost(op, pool, "VM.create")
        found = ...  # by its marks
    if found is None:
        intend(op, "VM.create")
        vm.create(...)

So the journal knows of a call before it goes out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.parts.calls import seen_from, until_ended
from worker.errors import XenAPIFailure
from worker.operations.op import Op
from worker.operations.wait import Redo
from worker.retry import Kind, kind_of
from worker.xenapi import xapi_task
from worker.xenapi.session import Session


def intend(op: Op, call: str) -> None:
    """Note that a call goes out now. Raises LeaseLost."""
    op.remember(intended={**op.data.get("intended", {}), call: None})


def was_intended(op: Op, call: str) -> bool:
    """Tell whether an earlier run may have sent the call."""
    return call in op.data.get("intended", {})


def await_lost(op: Op, pool: Session, call: str) -> None:
    """Wait until no call of this name that may be ours is on its way: those that the first look finds.

    A call goes on in XAPI after its caller has died, and has a task as long (xapi-observed.md). Raises Wait.
    """
    if not was_intended(op, call):
        return
    intended: dict[str, list[str] | None] = op.data["intended"]
    pending = xapi_task.pending(pool, call)
    known = intended[call]
    if known is None:
        op.remember(intended={**intended, call: pending})
    else:
        pending = [task_ref for task_ref in pending if task_ref in known]
    if pending:
        raise seen_from(op, pool, until_ended(pending, f"a {call} of unknown outcome ends"))


@contextmanager
def redone_from(step: str) -> Iterator[None]:
    """Go back to `step` when something that an earlier step made is gone: XAPI forgets its last minutes when it dies.

    Raises Redo.
    """
    try:
        yield
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
        raise Redo(step, f"what was made for the VM is gone ({error})") from error
