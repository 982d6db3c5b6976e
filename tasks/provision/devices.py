"""Fourth step of a build: the disks at their positions."""

from __future__ import annotations

from tasks.parts.instances import OPERATION, ROLE
from tasks.parts.lost import redone_from
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import vbd
from worker.xenapi.session import Session


@step
def attach_disks(op: Op, pool: Session) -> None:
    """Attach each disk once, those of another VM too that the operation says (`check_request`).

    What is attached goes with the VM when that is destroyed: the VBD, never the disk.
    """
    vm_ref = op.data["vm"]["ref"]
    with redone_from("make_root_disk"):
        taken = {rec["userdevice"] for rec in vbd.of_vm(pool, vm_ref).values()} if op.data.get("disks_begun") else set()
        op.remember(disks_begun=True)
        for disk in [*op.data["disks"], *op.data.get("beside", {}).get("disks", [])]:
            if disk["userdevice"] in taken:
                continue
            fields = {key: disk[key] for key in ("mode", "type", "bootable")}
            mark = {OPERATION: op.id, ROLE: disk["role"]}
            vbd.create(pool, vm_ref, disk["vdi_ref"], disk["userdevice"], **fields, other_config=mark)
