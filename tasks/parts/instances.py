"""VMs as operations see them: finding the one that is meant, having it to oneself, and what marks ours bear.

Everything that vmops makes in a pool carries these keys in `other_config` (design 3.2). Names are for people; Nova's
key and name endings are recognised too, so that VMs which Nova made are adopted.
"""

from __future__ import annotations

from typing import Any

from worker.operations.op import Op
from worker.operations.request import InstanceRequest
from worker.xenapi import vdi, vm, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

#: OpenStack's uuid of the instance; the second is Nova's.
INSTANCE, NOVA_INSTANCE = vm.INSTANCE_KEYS
#: The operation that made the object.
OPERATION = "vmops.operation"
#: What a disk or VM is for: root, swap, ephemeral, configdrive, cdrom, image (a cached image); rescue.
ROLE = vm.ROLE_KEY
#: Nova's marks on disks, since its Havana release (operations.md 3.2).
NOVA_DISK_INSTANCE, NOVA_DISK_ROLE = "nova_instance_uuid", "nova_disk_type"
#: On a snapshot, and on its disk while the snapshot is taken: the operation that takes it.
SNAPSHOT_OPERATION = "vmops.snapshot-operation"
#: On a disk that we made: its own ref. A clone takes its disk's marks along (xapi.md 9.1), and so bears another's.
DISK = "vmops.disk"
#: On a VBD: the disk is a volume of somebody else's, never to be destroyed with the VM.
VOLUME = "osvol"


def instance_uuid(vm_rec: dict[str, Any]) -> str | None:
    """Return OpenStack's uuid of the instance, None for a VM that neither we nor Nova made."""
    other_config: dict[str, str] = vm_rec["other_config"]
    return other_config.get(INSTANCE) or other_config.get(NOVA_INSTANCE)


def marks(op: Op, instance: str, role: str | None = None) -> dict[str, str]:
    """Return the `other_config` of something that this operation makes for an instance."""
    made = {INSTANCE: instance, OPERATION: op.id}
    return made if role is None else {**made, ROLE: role}


def claim_disk(pool: Session, vdi_ref: str, vdi_rec: dict[str, Any]) -> None:
    """Give a disk that an operation has made its own mark, `DISK`, unless it has it: what tells it from its clones.

    One call. A disk that has its marks from `VDI.set_other_config` gets this one there, without another call.
    """
    if vdi_rec["other_config"].get(DISK) != vdi_ref:
        vdi.add_to_other_config(pool, vdi_ref, DISK, vdi_ref)


def is_copy(vdi_ref: str, vdi_rec: dict[str, Any]) -> bool:
    """Tell whether the disk bears the marks of another one, which it is a clone of."""
    return bool(vdi_rec["other_config"].get(DISK, vdi_ref) != vdi_ref)


def hold_of(vm_rec: dict[str, Any]) -> str:
    """Return what an operation on this VM holds: its instance, so that the rescue VM and a VM being built count too.

    A VM that has none holds its own uuid, and one that takes another's place that one's until this is confirmed.
    """
    uuid = instance_uuid(vm_rec)
    if uuid:
        return f"instance:{uuid.lower()}"
    left = vm.migration_of(vm_rec).get("source")
    return f"vm:{left['vm_uuid'] if isinstance(left, dict) and 'vm_uuid' in left else vm_rec['uuid']}"


def take(op: Op, pool: Session) -> Found:
    """Find the request's VM and have it to oneself until the operation ends. One call.

    Raises InstanceNotFound, InstanceAmbiguous, and Wait or OperationConflict while another operation has the VM.
    """
    request = op.request(InstanceRequest)
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    op.hold(hold_of(found.rec), queue=request.on_conflict == "wait")
    return found


def take_fresh(op: Op, pool: Session) -> Found:
    """As `take`, with the record as it is now that no other operation changes it any more. Two calls."""
    found = take(op, pool)
    return Found(found.ref, vm_power.get(pool, found.ref))


def acting(pool: Session, found: Found) -> Found:
    """Return the VM that runs for the instance: the rescue VM when there is one. One call for an instance in rescue."""
    if found.rec["power_state"] == "Halted" and "start" in found.rec["blocked_operations"]:
        return vm.rescue_vm_of(pool, found.rec) or found
    return found
