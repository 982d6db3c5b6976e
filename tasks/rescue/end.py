"""The other steps of an unrescue: the rescue VM and its own disks go, the instance's own VM comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tasks.parts import disks, power
from tasks.parts.disks import Recs
from tasks.parts.entered import RESCUED
from tasks.parts.instances import NOVA_DISK_INSTANCE, OPERATION
from tasks.parts.power import NULL
from tasks.parts.rescued import POWER_BEFORE
from worker.errors import InstanceGone, InstanceNotFound, XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import vm_power
from worker.xenapi.session import Session


@step
def halt_rescue_vms(op: Op, pool: Session) -> None:
    """Cut the rescue VM's power."""
    for rec in op.data.get("vms", []):
        if rec["power_state"] != "Halted":
            power.halt(pool, rec)


@step
def remove_rescue_vms(op: Op, pool: Session) -> None:
    """Remove the rescue VM's record, with its VBDs and VIFs. Every disk stays."""
    for rec in op.data.get("vms", []):
        power.remove(pool, rec)


@step
def destroy_rescue_disks(op: Op, pool: Session) -> None:
    """Destroy the disks that bear the mark of the rescue; of a rescue by Nova the root disk that its VM had.

    Never a disk that any VM has attached, or that the instance's own VM had when this began.
    """
    if not op.data.get("is_left_alone"):
        disks.destroy_own(op, pool, _own, redo="halt_rescue_vms")


def _own(op: Op, free: Recs) -> dict[str, str]:
    volumes = {disk["vdi_ref"] for disk in op.data["disks"] if disk["is_volume"]}
    roles = {
        ref: disks.role_of(rec, op.data["instance"])
        for ref, rec in free.items()
        if ref not in volumes and ref not in op.data["own_disks"] and _is_of_the_rescue(op, free, ref)
    }
    return {ref: role for ref, role in roles.items() if role}


def _is_of_the_rescue(op: Op, free: Recs, vdi_ref: str) -> bool:
    marks: dict[str, str] = free[vdi_ref]["other_config"]
    if marks.get(OPERATION) in op.data["makers"]:
        return not disks.is_anothers_copy(op, free, vdi_ref)
    return OPERATION not in marks and NOVA_DISK_INSTANCE in marks and vdi_ref in op.data["novas"]


@step
def unlock(op: Op, pool: Session) -> None:
    """Let the instance's own VM start again. What others have forbidden stays forbidden."""
    if not op.data.get("is_left_alone"):
        with _vm_needed(op):
            vm_power.unblock(pool, op.data["vm"]["ref"], op.data["locks"])


@step(weight=5)
def restore(op: Op, pool: Session) -> None:
    """Start the VM if it ran before the rescue, on its own host or any other; then take the marks away."""
    if op.data.get("is_left_alone"):
        return
    with _vm_needed(op):
        _restore(op, pool)


def _restore(op: Op, pool: Session) -> None:
    rec = power.look(op, pool)
    state = rec["power_state"]
    if op.data["before"] == "Running" and state == "Halted":
        power.start(op, pool, rec, [rec["affinity"]] if rec["affinity"] != NULL else [])
        state = "Running"
    for key in (RESCUED, POWER_BEFORE):
        vm_power.remove_from_other_config(pool, rec["ref"], key)
    power.set_outcome(op, state, rescue_vms=[one["uuid"] for one in op.data["vms"]])


@contextmanager
def _vm_needed(op: Op) -> Iterator[None]:
    """Raise InstanceGone when the instance's own VM, which must come back, has been destroyed meanwhile."""
    try:
        yield
    except (XenAPIFailure, InstanceNotFound) as error:
        if isinstance(error, XenAPIFailure) and (error.code, error.params[:1]) != ("HANDLE_INVALID", ["VM"]):
            raise
        raise InstanceGone(
            f"{power.title(op.data['vm'])} was destroyed by somebody while its rescue was ended. Its rescue VM is "
            "removed, and its own disks are kept: save what is needed, then destroy the instance by its uuid."
        ) from error
