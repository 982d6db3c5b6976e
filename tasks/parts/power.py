"""What the operations on a VM's power share: the VM as it is now, starting, halting, asking the guest, refusals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tasks.parts.calls import carry_out
from tasks.parts.filtering import able_hosts
from tasks.parts.instances import acting, take
from worker.errors import (
    GuestUnable,
    InstanceLocked,
    InstanceNotFound,
    NoValidHost,
    WrongPowerState,
    XenAPIFailure,
)
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.retry import Kind, kind_of
from worker.xenapi import vm_power, xapi_task
from worker.xenapi.session import Session
from worker.xenapi.vm import Found
from worker.xenapi.xapi_task import Outcome

NULL = "OpaqueRef:NULL"
_KEPT = (
    "uuid",
    "name_label",
    "power_state",
    "domid",
    "resident_on",
    "affinity",
    "blocked_operations",
    "current_operations",
    "other_config",
)
_SHORT_S = 3.0
_CHECK_S = 60.0
_CANCEL_S = 3.0
_LOST_CALLS_S = 2 * 3600.0
#: Between two looks whether there is room for a VM by now; and what people may need to make some.
_ROOM_CHECK_S, _ROOM_S = 10.0, 24 * 3600.0
#: What says that one host cannot take the VM, while another may (xapi.md 5.2).
_PLACEMENT = (
    "CANNOT_CONTACT_HOST",
    "HOST_",
    "NO_HOSTS_AVAILABLE",
    "VMS_FAILED_TO_COOPERATE",
    "VM_HOST_INCOMPATIBLE",
    "VM_INCOMPATIBLE_WITH_THIS_HOST",
    "VM_REQUIRES_",
)

Rec = dict[str, Any]
"""What is known of a VM: part of its record, and its ref as `ref`."""


# -- the VM


def acting_vm(op: Op, pool: Session) -> Rec:
    """Return the VM that runs for the instance: the rescue VM when there is one. Raises as `take`."""
    return part_of(acting(pool, take(op, pool)))


def seen(op: Op, pool: Session) -> Rec:
    """Return the VM as the step before has just seen it; as it is now when this step was begun before."""
    known: Rec = op.data["vm"]
    return known if op.record.attempts.get(op.record.step, 1) == 1 else look(op, pool)


def look(op: Op, pool: Session) -> Rec:
    """Return the VM as it is now. Raises InstanceNotFound. One call."""
    return reread(pool, op.data["vm"])


def reread(pool: Session, known: Rec) -> Rec:
    """Return a VM as it is now. Raises InstanceNotFound. One call."""
    try:
        return _part(known["ref"], vm_power.get(pool, known["ref"]))
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
        raise InstanceNotFound(f"{title(known)} has left pool {pool.pool_name!r} meanwhile.") from error


def title(rec: Rec) -> str:
    """Return how messages call the VM."""
    return f"VM {rec['name_label']!r}"


def part_of(found: Found) -> Rec:
    """Return what steps need to know of a VM."""
    return _part(found.ref, found.rec)


def _part(vm_ref: str, vm_rec: dict[str, Any]) -> Rec:
    return {"ref": vm_ref, **{field: vm_rec[field] for field in _KEPT}}


def set_outcome(op: Op, power_state: str, **more: Any) -> None:
    """Say in the operation's result which VM it was and what state it is in."""
    op.set_result(vm_uuid=op.data["vm"]["uuid"], power_state=power_state, **more)


# -- refusals


def refuse_state(rec: Rec, wish: str, advice: str) -> WrongPowerState:
    """Return the error for a VM that is in no state for what is wished."""
    state = str(rec["power_state"]).lower()
    return WrongPowerState(f"{title(rec)} is {state} and cannot be {wish}: {advice}.")


def assert_unlocked(rec: Rec, *operations: str) -> None:
    """Raise InstanceLocked when one of the operations is forbidden on the VM's record."""
    for operation in operations:
        if operation in rec["blocked_operations"]:
            raise locked(rec, operation, rec["blocked_operations"][operation])


def locked(rec: Rec, operation: str, text: str) -> InstanceLocked:
    """Return the error for a VM whose record forbids an operation."""
    why = f" ({text})" if text else ""
    return InstanceLocked(
        f"{title(rec)} is locked: its blocked_operations forbid {operation}{why}. End the rescue, the migration or "
        "whatever else has set the lock, or take the key away."
    )


def explained(rec: Rec, error: XenAPIFailure, wish: str) -> Exception:
    """Return the error with a sentence that helps, or as it is when it is worth another try."""
    if error.code == "OPERATION_BLOCKED":
        return locked(rec, error.call.removeprefix("VM.") or wish, error.params[-1] if error.params else "")
    if error.code.startswith("VM_LACKS_FEATURE"):
        return GuestUnable(f"{title(rec)} cannot be {wish}: its guest has no PV drivers ({error.code}).")
    if error.code == "VM_NON_SUSPENDABLE":
        return GuestUnable(f"{title(rec)} cannot be {wish}: its guest says {error.params[-1]!r}.")
    return error


# -- doing


def start(op: Op, pool: Session, rec: Rec, host_refs: Sequence[str] = ()) -> None:
    """Boot a halted VM on the first of the hosts that takes it, else wherever the pool can.

    A VM in security groups starts only where its rules are enforced by then. One that runs already is no error. Raises
    Wait, NoValidHost, InstanceLocked.
    """
    assert_unlocked(rec, "start", "start_on")
    refusals: dict[str, str] = op.data.get("refusals", {}).get(rec["ref"], {})
    able = able_hosts(op, pool, rec)
    places = [ref for ref in host_refs if able is None or ref in able] + (able or [])
    begins = {ref: partial(vm_power.begin_start_on, pool, rec["ref"], ref) for ref in places}
    if able is None:
        begins["the pool"] = partial(vm_power.begin_start, pool, rec["ref"])
    for place, begin in begins.items():
        if place in refusals:
            continue
        try:
            carry_out(op, pool, f"start {rec['ref']} on {place}", begin, "the VM is starting")
        except XenAPIFailure as error:
            if vm_power.actual_state(error) in {"running", "paused"}:
                return
            if not is_placement(error):
                raise explained(rec, error, "started") from error
            refusals[place] = str(error)
            op.remember(refusals={**op.data.get("refusals", {}), rec["ref"]: refusals})
            op.note(f"not started on {place}: {error}")
        else:
            return
    op.remember(refusals={**op.data.get("refusals", {}), rec["ref"]: {}})  # the next try asks all of them again
    raise NoValidHost(f"No host of pool {pool.pool_name!r} can start {title(rec)}: {'; '.join(refusals.values())}.")


def start_again(op: Op, pool: Session, rec: Rec, host_refs: Sequence[str] = ()) -> None:
    """Boot a VM that ran before, as `start`; while no host has room for it, wait until one has. Raises Wait."""
    try:
        start(op, pool, rec, host_refs)
    except NoValidHost as error:
        raise Wait(f"a host to take it ({error})", check_every_s=_ROOM_CHECK_S, deadline_s=_ROOM_S) from error


def is_placement(error: XenAPIFailure) -> bool:
    """Tell whether a host, or no host of the pool, can take the VM."""
    is_missing_host = error.code == "HANDLE_INVALID" and error.params[:1] == ["host"]
    return is_missing_host or error.code.startswith(_PLACEMENT)


def halt(pool: Session, rec: Rec) -> None:
    """End the domain or the memory image at once; a VM that is halted or gone is no error.

    Safe to repeat: so a lost answer is resolved by the step's next try.
    """
    try:
        vm_power.hard_shutdown(pool, rec["ref"])
    except XenAPIFailure as error:
        if vm_power.actual_state(error) != "halted" and kind_of(error) is not Kind.GONE:
            raise explained(rec, error, "powered off") from error


def remove(pool: Session, rec: Rec) -> None:
    """Remove a halted VM's record with its VBDs and VIFs; its disks stay. One that is gone is no error.

    One that somebody has started meanwhile is halted again.
    """
    try:
        _remove(pool, rec)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


def _remove(pool: Session, rec: Rec) -> None:
    try:
        vm_power.destroy(pool, rec["ref"])
    except XenAPIFailure as error:
        if not vm_power.actual_state(error):
            raise
        halt(pool, rec)
        vm_power.destroy(pool, rec["ref"])


def ask(op: Op, pool: Session, name: str, begin: Callable[[], str], *, patience_s: float) -> Outcome | None:
    """Carry out a call in which the guest must act, and return how it ended; None when the patience is at its end.

    The call is begun once, and goes on when this returns None. Raises Wait.
    """
    begun = op.data.get("begun", {})
    if name not in begun:
        begun[name] = begin()
        op.remember(begun=begun)
    outcome = await_guest(pool, begun[name], patience_s - op.waited_s)
    if outcome is not None:
        drop(op, pool, name)
    return outcome


def await_guest(pool: Session, task_ref: str, left_s: float) -> Outcome | None:
    """Return how a call ended, None when it has not and no time is left. Raises Wait."""
    outcome = xapi_task.wait(pool, task_ref, max(0.0, min(_SHORT_S, left_s)))
    if outcome.is_final:
        return outcome
    if left_s <= 0:
        return None
    raise waiting("the guest to react", [Until("task", task_ref, "status", ["pending"])], left_s)


def waiting(reason: str, until: Sequence[Until], left_s: float) -> Wait:
    """Return what to raise while waiting for the guest for at most `left_s` more."""
    check_every_s = max(0.2, min(_CHECK_S, left_s))
    return Wait(reason, until=until, check_every_s=check_every_s, deadline_s=2 * _LOST_CALLS_S)


def drop(op: Op, pool: Session, name: str) -> None:
    """Remove the task of a call that has ended, or that nobody waits for any more."""
    begun = op.data.get("begun", {})
    task_ref = begun.pop(name, None)
    if task_ref is not None:
        op.remember(begun=begun)
        xapi_task.finish(pool, task_ref)


def call_off(pool: Session, task_ref: str) -> None:
    """Ask the pool to give up a call that waits for the guest; XAPI may not listen, or too late (operations.md 14)."""
    xapi_task.cancel(pool, task_ref)
    xapi_task.wait(pool, task_ref, _CANCEL_S)
    xapi_task.finish(pool, task_ref)
