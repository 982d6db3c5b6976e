"""First step: the VM, its disks, and whether the request can be carried out at all."""

from __future__ import annotations

from typing import Any

from tasks.parts.disks import is_config_drive
from tasks.parts.instances import instance_uuid, take
from tasks.parts.snapshots import why_never
from tasks.snapshot.disks import own_image_id
from tasks.snapshot.request import SnapshotRequest
from worker.errors import DiskNotFound, ImageConflict, ImageNotFound, StorageUnsupported
from worker.images.image import ImageState
from worker.images.store import ImageStore
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import event, sr, vbd
from worker.xenapi.session import Session


@step
def find_disks(op: Op, pool: Session, images: ImageStore) -> None:
    """Find the VM and its disks, take the VM's lease, refuse what cannot work. Changes nothing."""
    request = op.request(SnapshotRequest)
    found = take(op, pool)
    attached = vbd.disks_of(pool, found.ref)
    # All disks, and the pool's few storage repositories, in one call.
    records = event.records(pool, [f"VDI/{disk.vdi_ref}" for disk in attached] + ["SR"])
    drives = {ref for (cls, ref), rec in records.items() if cls == "vdi" and is_config_drive(rec)}
    own = [disk for disk in attached if disk.vdi_ref not in drives]
    disks = _wanted(own, request.disks, found.rec["name_label"])
    plans = []
    collectors = {}
    for position, disk in enumerate(disks):
        what = f"Disk {disk.userdevice} of VM {found.rec['name_label']!r}"
        vdi_rec = records.get(("vdi", disk.vdi_ref))
        if vdi_rec is None:
            raise DiskNotFound(f"{what} has left the pool while it was looked at: submit again.")
        sr_rec = records["sr", vdi_rec["SR"]]
        collectors[vdi_rec["SR"]] = sr.can_coalesce(sr_rec)
        reason = why_never(pool, vdi_rec, sr_rec)
        if reason:
            advice = " Or leave it out with disks=root." if position else ""
            raise StorageUnsupported(f"{what} (VDI {vdi_rec['uuid']}) {reason}{advice}")
        given = request.image_id if position == 0 else None
        image_id = str(given or own_image_id(op.id, disk.userdevice))
        _check_image(images, image_id, op.id, given=given is not None)
        plans.append(
            {
                "userdevice": disk.userdevice,
                "vdi_ref": disk.vdi_ref,
                "vdi_uuid": vdi_rec["uuid"],
                "sr_ref": vdi_rec["SR"],
                "virtual_size": int(vdi_rec["virtual_size"]),
                "image_id": image_id,
                "image_is_ours": given is None,
            }
        )
    op.remember(vm=_facts(found.rec), disks=plans, collectors=collectors, coalesce_budget_s=request.coalesce_budget_s)


def _wanted(disks: list[vbd.Disk], which: str, vm_name: str) -> list[vbd.Disk]:
    """Return the root disk first, then (for `all`) the others."""
    root = next((one for one in disks if one.userdevice == "0"), None) or next(
        (one for one in disks if one.bootable), None
    )
    if root is None:
        raise DiskNotFound(
            f"VM {vm_name!r} has no root disk: give it one as userdevice 0, or mark one of its disks as bootable."
        )
    return [root, *(one for one in disks if one is not root)] if which == "all" else [root]


def _check_image(images: ImageStore, image_id: str, operation_id: str, *, given: bool) -> None:
    try:
        image = images.describe(image_id)
    except ImageNotFound:
        if given:
            raise
        return
    if image.state is not ImageState.QUEUED and image.properties.get("vmops_operation") != operation_id:
        raise ImageConflict(f"Image {image_id} is {image.state}; a snapshot needs a queued image: make a new one.")


def _facts(vm_rec: dict[str, Any]) -> dict[str, str]:
    return {
        "uuid": vm_rec["uuid"],
        "name": vm_rec["name_label"],
        "instance_uuid": instance_uuid(vm_rec) or vm_rec["uuid"],
        "vm_mode": "hvm" if vm_rec["HVM_boot_policy"] else "xen",
    }
