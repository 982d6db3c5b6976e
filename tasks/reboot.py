"""reboot: ask the guest to reboot (SOFT), or replace its domain (HARD); never twice for one request.

    find -> ask_guest -> force -> forget_mark

Whether a reboot has happened shows in the VM's domid, which is noted before anything is asked: a changed one ends the
operation, however the answer got lost. While the guest is waited for, the VM carries `vmops.rebooting` for the poller:
since when, by the pool's clock, the XAPI task, the operation, the domain (`tasks.parts.entered`). It is gone when the
operation has ended, well or not.

Rules: operations.md 5.3, 9.1, 14.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from tasks.parts import power
from tasks.parts.entered import REBOOTING, Rebooting
from tasks.parts.lost import await_lost, intend, was_intended
from tasks.parts.power import Rec
from worker.errors import GuestUnable, UnknownResult, XenAPIFailure
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.request import InstanceRequest
from worker.operations.wait import Until, Wait
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import host, vm_power, xapi_task
from worker.xenapi.session import Session
from worker.xenapi.xapi_task import Outcome

_ASK, _FORCE = "Async.VM.clean_reboot", "VM.hard_reboot"
_MOVE_CHECK_S = 60.0
_MOVE_DEADLINE_S = 6 * 3600.0
#: These end a clean reboot without saying anything about the guest.
_NOT_THE_GUEST = frozenset({Kind.TRANSIENT, Kind.RELOGIN})


class RebootRequest(InstanceRequest):
    """Which VM, and how."""

    example: ClassVar[dict[str, Any]] = {
        "instance": {"name": "web01"},
        "reboot_type": "SOFT",
        "on_timeout": "hard",
    }

    reboot_type: Literal["SOFT", "HARD"] = Field(
        default="SOFT", description="SOFT asks the guest, HARD replaces its domain at once."
    )
    soft_timeout_s: float | None = Field(
        default=None, gt=0, le=3600, description="Time for the guest, seconds; default: the setting."
    )
    on_timeout: Literal["fail", "hard"] = Field(
        default="fail", description="When the guest does not reboot, or cannot be asked: fail, or reboot it HARD."
    )
    only_if_domid: int | None = Field(
        default=None,
        ge=0,
        description="Reboot only a VM that has this domid; one that was rebooted or halted meanwhile is left alone.",
    )


@step
def find(op: Op, pool: Session) -> None:
    """Find the VM (of an instance in rescue: the rescue VM), note its domid, let a migration end.

    A VM that is not in the domain that the request names any more is left alone. Refuses what cannot be rebooted.
    """
    request = op.request(RebootRequest)
    rec = power.acting_vm(op, pool)
    wanted = request.only_if_domid
    if wanted is not None and int(rec["domid"]) != wanted:
        op.note(f"left alone: it is not in domain {wanted} any more")
        op.remember(vm=rec, way="left alone")
        return
    _assert_fit(request, rec)
    moves = vm_power.moves(rec)
    if moves:
        until = [Until("vm", rec["ref"], f"current_operations/{ref}", [name]) for ref, name in moves.items()]
        reason = "the VM is being migrated"
        raise Wait(reason, until=until, check_every_s=_MOVE_CHECK_S, deadline_s=_MOVE_DEADLINE_S)
    op.remember(vm=rec)


def _assert_fit(request: RebootRequest, rec: Rec) -> None:
    """Raise WrongPowerState or InstanceLocked for what the first call would only meet later."""
    state, is_asked = rec["power_state"], request.reboot_type == "SOFT"
    if state == "Suspended":
        raise power.refuse_state(rec, "rebooted", "resume it first")
    if state == "Paused" and is_asked and request.on_timeout == "fail":
        raise power.refuse_state(rec, "asked to reboot", "unpause it first, or reboot it HARD, or with on_timeout=hard")
    if state == "Halted":
        power.assert_unlocked(rec, "start", "start_on")
    else:
        power.assert_unlocked(rec, "clean_reboot" if is_asked and state == "Running" else "hard_reboot")


# -- SOFT


def call_off(op: Op, pool: Session) -> None:
    """Ask the pool to give the guest's reboot up, and take the mark away."""
    task_ref = op.data.get("task_ref")
    if task_ref:
        power.call_off(pool, task_ref)
    _unmark(op, pool)


@step(undo=call_off)
def ask_guest(op: Op, pool: Session, settings: Settings) -> None:
    """SOFT: ask the guest once, and wait without a worker until it has rebooted, or its time is over."""
    request = op.request(RebootRequest)
    if request.reboot_type == "HARD" or op.data.get("way"):
        return  # nothing to ask, or it is clear already what is left to do
    patience_s = request.soft_timeout_s or settings.soft_timeout_s
    if not op.data.get("asked"):
        rec = _ask(op, pool)
        if rec is not None:
            _settle(op, rec, f"it is {str(rec['power_state']).lower()}")
            return
    task_ref = op.data.get("task_ref")
    if task_ref:
        _mark(op, pool, task_ref)
        outcome = power.await_guest(pool, task_ref, _left_s(op, patience_s))
        if outcome is not None and not _note_end(op, pool, outcome):
            return
    _await_domain(op, pool, patience_s)


def _left_s(op: Op, patience_s: float) -> float:
    """Return how much of its time the guest has left; a wait for its turn, or for the pool, takes nothing of it."""
    return patience_s - op.seconds_since(op.data["asked_ms"])


def _note_asked(op: Op, task_ref: str) -> None:
    op.remember(asked=True, task_ref=task_ref, asked_ms=op.began_ms)


def _ask(op: Op, pool: Session) -> Rec | None:
    """Ask the guest, or find that it has been asked. Returns the VM when there is nothing to wait for."""
    if was_intended(op, _ASK):
        rec = power.look(op, pool)
        begun = _asked_by(rec)
        if begun is None and not _has_rebooted(op, rec):
            await_lost(op, pool, _ASK)
            rec = power.look(op, pool)
            begun = _asked_by(rec)
        if begun is not None:
            _note_asked(op, begun)
            return None
    else:
        rec = power.seen(op, pool)
    if _has_rebooted(op, rec) or rec["power_state"] != "Running":
        return rec
    intend(op, _ASK)
    _note_asked(op, vm_power.begin_clean_reboot(pool, rec["ref"]))
    return None


def _asked_by(rec: Rec) -> str | None:
    """Return the task of a clean reboot that is under way, None when there is none."""
    current: dict[str, str] = rec["current_operations"]
    return next((task_ref for task_ref, name in current.items() if name == "clean_reboot"), None)


def _mark(op: Op, pool: Session, task_ref: str) -> None:
    if op.data.get("marked") == task_ref:
        return
    rec: Rec = op.data["vm"]
    mark = Rebooting(host.servertime(pool, rec["resident_on"]), task_ref, op.id, str(rec["domid"]))
    op.remember(marked="?")
    vm_power.add_to_other_config(pool, rec["ref"], REBOOTING, str(mark))
    op.remember(marked=task_ref)


def _note_end(op: Op, pool: Session, outcome: Outcome) -> bool:
    """Take note of how the call ended; tell whether the domain is still to be waited for.

    A success and a call that XAPI has forgotten leave that to the domid: the guest has been asked.
    """
    task_ref = op.data["task_ref"]
    error = outcome.error
    if error is None:
        if outcome.status != "vanished":
            xapi_task.finish(pool, task_ref)
        op.remember(task_ref=None)
        return True
    rec = power.look(op, pool)
    if kind_of(error) in _NOT_THE_GUEST and error.code != "TASK_CANCELLED" and not _has_rebooted(op, rec):
        op.remember(asked=False, task_ref=None)
        xapi_task.finish(pool, task_ref)
        raise error
    _settle(op, rec, _reason(rec, error))  # the last step, or the undo, removes the task
    return False


def _reason(rec: Rec, error: XenAPIFailure) -> str:
    if error.code == "OPERATION_BLOCKED":
        raise power.explained(rec, error, "rebooted") from error
    if error.code.startswith("VM_LACKS_FEATURE"):
        return "it has no PV drivers"
    return error.code


def _await_domain(op: Op, pool: Session, patience_s: float) -> None:
    """Wait until the VM has a new domain, within the guest's time. Raises Wait."""
    rec = power.look(op, pool)
    left_s = _left_s(op, patience_s)
    if _has_rebooted(op, rec) or rec["power_state"] == "Halted" or left_s <= 0:
        _settle(op, rec, f"it had {patience_s:g} s")
        return
    raise power.waiting("the guest to react", [Until("vm", rec["ref"], "domid", [str(rec["domid"])])], left_s)


def _settle(op: Op, rec: Rec, reason: str) -> None:
    """Decide what is left to do. Raises GuestUnable when the guest did not reboot and the request says `fail`."""
    if _has_rebooted(op, rec):
        op.remember(way="done")
    elif rec["power_state"] == "Halted":
        op.remember(way="start")
    elif op.request(RebootRequest).on_timeout == "hard":
        op.note(f"the guest did not reboot: {reason}")
        op.remember(way="hard")
    else:
        raise GuestUnable(
            f"The guest of {power.title(rec)} did not reboot: {reason}. Reboot it HARD, or with on_timeout=hard."
        )


# -- HARD


@step
def force(op: Op, pool: Session) -> None:
    """Replace the domain, or start a halted VM, when that is what is left to do."""
    way = op.data.get("way", "hard")
    if way in {"done", "left alone"}:
        return
    is_first_try = way == "hard" and op.record.attempts.get("force", 1) == 1 and "asked" not in op.data
    await_lost(op, pool, _FORCE)
    rec = op.data["vm"] if is_first_try else power.look(op, pool)
    if _has_rebooted(op, rec):
        return
    if rec["power_state"] == "Suspended":
        raise power.refuse_state(rec, "rebooted", "resume it first")
    if rec["power_state"] == "Halted":
        power.start(op, pool, rec)
        return
    intend(op, _FORCE)
    try:
        vm_power.hard_reboot(pool, rec["ref"])
    except UnknownResult:
        raise  # the next try waits for the call's end, and looks at the domid
    except XenAPIFailure as error:
        if vm_power.actual_state(error) == "halted":
            power.start(op, pool, rec)
            return
        raise power.explained(rec, error, "rebooted") from error


@step
def forget_mark(op: Op, pool: Session) -> None:
    """Take the mark away, also one that a dead operation has left."""
    _unmark(op, pool)
    if op.data.get("task_ref"):
        xapi_task.finish(pool, op.data["task_ref"])
    is_left_alone = op.data.get("way") == "left alone"
    power.set_outcome(op, op.data["vm"]["power_state"] if is_left_alone else "Running")


def _unmark(op: Op, pool: Session) -> None:
    rec: Rec = op.data["vm"]
    if not op.data.get("marked") and REBOOTING not in rec["other_config"]:
        return
    try:
        vm_power.remove_from_other_config(pool, rec["ref"], REBOOTING)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


def _has_rebooted(op: Op, rec: Rec) -> bool:
    return str(rec["power_state"]) == "Running" and str(rec["domid"]) != str(op.data["vm"]["domid"])


reboot = operation("reboot", RebootRequest, find, ask_guest, force, forget_mark, doc=__doc__)
