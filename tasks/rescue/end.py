"""The other steps of an unrescue: the rescue VM and its own disks go, the instance's own VM comes back."""

from __future__ import annotations

from typing import Any

from tasks.parts import disks, power
from tasks.parts.disks import Recs
from tasks.parts.instances import NOVA_DISK_INSTANCE, OPERATION, is_copy
from tasks.parts.power import NULL
from tasks.parts.rescued import POWER_BEFORE, RESCUED
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
        if ref not in volumes and ref not in op.data["own_disks"] and _is_of_the_rescue(op, ref, rec)
    }
    return {ref: role for ref, role in roles.items() if role}


def _is_of_the_rescue(op: Op, vdi_ref: str, vdi_rec: dict[str, Any]) -> bool:
    marks: dict[str, str] = vdi_rec["other_config"]
    if marks.get(OPERATION) in op.data["makers"]:
        return not is_copy(vdi_ref, vdi_rec)
    return OPERATION not in marks and NOVA_DISK_INSTANCE in marks and vdi_ref in op.data["novas"]


@step
def unlock(op: Op, pool: Session) -> None:
    """Let the instance's own VM start again. What others have forbidden stays forbidden."""
    if not op.data.get("is_left_alone"):
        vm_power.unblock(pool, op.data["vm"]["ref"], op.data["locks"])


@step(weight=5)
def restore(op: Op, pool: Session) -> None:
    """Start the VM if it ran before the rescue, on its own host or any other; then take the marks away."""
    if op.data.get("is_left_alone"):
        return
    rec = power.look(op, pool)
    state = rec["power_state"]
    if op.data["before"] == "Running" and state == "Halted":
        power.start(op, pool, rec, [rec["affinity"]] if rec["affinity"] != NULL else [])
        state = "Running"
    for key in (RESCUED, POWER_BEFORE):
        vm_power.remove_from_other_config(pool, rec["ref"], key)
    power.set_outcome(op, state, rescue_vms=[one["uuid"] for one in op.data["vms"]])
