"""Fourth step: each snapshot straight from the pool into its image, and its undo."""

from __future__ import annotations

from dataclasses import asdict
from math import inf
from typing import Any, Literal

from tasks.parts.snapshots import Disk, vanished
from tasks.snapshot.disks import own_image_id
from tasks.snapshot.request import SnapshotRequest
from worker.errors import ImageWedged, XenAPIFailure
from worker.images.image import ImageMeta
from worker.images.push import Pushed, PushPlan, already_pushed, push
from worker.images.store import ImageStore, ensure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Redo
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import transfer, xapi_task
from worker.xenapi.session import Session

#: An image of our own that is still `saving` so long after an upload began was left so by an image service that died.
_OWN_WEDGED_AFTER_S = 60.0


def withdraw_images(op: Op, pool: Session, images: ImageStore) -> None:
    """Delete the images that this operation made, end its exports. A caller's image stays, queued."""
    for disk in op.data.get("disks", []):
        if not disk.get("push_intended"):
            continue
        _end_exports(op, pool, disk)
        if disk["image_is_ours"]:
            for image_id in [disk["image_id"], *disk.get("former_images", [])]:
                images.delete(image_id)


@step(undo=withdraw_images, queue="transfers", weight=90)
def push_to_glance(op: Op, pool: Session, images: ImageStore, settings: Settings) -> None:
    """Export each snapshot straight into its image; the root disk last, as its image may be the caller's."""
    request = op.request(SnapshotRequest)
    disks = op.data["disks"]
    for done, disk in enumerate(reversed(disks)):
        if disk.get("pushed"):
            continue
        if disk.get("push_intended"):
            _end_exports(op, pool, disk)
            for image_id in disk.get("former_images", []):
                images.delete(image_id)
        disk["push_intended"] = True
        op.remember(disks=disks)
        if disk["image_is_ours"]:
            ensure(images, _new_image(op, request, disk), "vmops_operation")
        disk["pushed"] = _push_disk(op, pool, images, disk, _Watch(op, settings, done, len(disks)))
        op.remember(disks=disks)
    op.set_result(images=[disk["pushed"] for disk in disks])


def _push_disk(op: Op, pool: Session, images: ImageStore, disk: Disk, watch: _Watch) -> dict[str, Any]:
    request = op.request(SnapshotRequest)
    plan = PushPlan(
        format=request.format,
        properties=_properties(op, request),
        virtual_size=disk["virtual_size"],
        compression_level=request.compression_level,
        wedged_after_s=min(watch.settings.image_wedged_after_s, _OWN_WEDGED_AFTER_S if disk["image_is_ours"] else inf),
    )
    pushed = _look(op, images, disk, plan, watch)
    if pushed is None:
        source_format: Literal["raw", "vhd"] = "raw" if request.format == "raw" else "vhd"
        task_ref = xapi_task.create(pool, _export_label(op, disk))
        try:
            with transfer.export_vdi(pool, disk["snapshot_ref"], source_format, task_ref=task_ref) as export:
                export.on_idle = op.check
                pushed = push(images, disk["image_id"], export, plan, watch)
        except XenAPIFailure as error:
            if kind_of(error) is not Kind.GONE:
                raise
            disk["snapshot_ref"] = None
            op.remember(disks=op.data["disks"])
            raise Redo("take_snapshot", vanished(disk)) from error
    return {"userdevice": disk["userdevice"], "format": request.format, **asdict(pushed)}


def _look(op: Op, images: ImageStore, disk: Disk, plan: PushPlan, watch: _Watch) -> Pushed | None:
    """Return what an earlier try has finished; replace an image of ours that was left `saving` for ever.

    So a killed image service leaves it (images.md 4). Nobody knows of the image yet, and its id cannot be used again.
    """
    try:
        return already_pushed(images, disk["image_id"], plan, watch)
    except ImageWedged:
        if not disk["image_is_ours"]:
            raise
    former = disk["image_id"]
    disk["former_images"] = [*disk.get("former_images", []), former]
    disk["image_id"] = own_image_id(op.id, disk["userdevice"], len(disk["former_images"]))
    op.remember(disks=op.data["disks"])
    op.note(f"image {former} was left saving by an image service that died: replaced by {disk['image_id']}")
    images.delete(former)
    ensure(images, _new_image(op, op.request(SnapshotRequest), disk), "vmops_operation")
    return None


class _Watch:
    """Tells the operation how far a push is, and the push whether to go on."""

    def __init__(self, op: Op, settings: Settings, done: int, total: int) -> None:
        self.settings = settings
        self._op = op
        self._done = done
        self._total = total

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report bytes of this disk as a fraction of all disks."""
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        self._op.progress((self._done + min(fraction, 1.0)) / self._total)

    def check(self) -> None:
        """Raise Cancelled or LeaseLost when the push must stop."""
        self._op.check()


def _export_label(op: Op, disk: Disk) -> str:
    return f"vmops export {op.id} disk {disk['userdevice']}"


def _end_exports(op: Op, pool: Session, disk: Disk) -> None:
    """Remove the pool's tasks of exports that died with their worker."""
    for task_ref in xapi_task.named(pool, _export_label(op, disk)):
        xapi_task.discard(pool, task_ref)


def _new_image(op: Op, request: SnapshotRequest, disk: Disk) -> ImageMeta:
    name = request.name or f"{op.data['vm']['name']} snapshot"
    if request.disks == "all":
        name = f"{name} (disk {disk['userdevice']})"
    return ImageMeta(image_id=disk["image_id"], name=name, properties={"vmops_operation": op.id})


def _properties(op: Op, request: SnapshotRequest) -> dict[str, str]:
    """Return the image properties of images.md 13; the caller's win over ours, but for the mark."""
    facts = op.data["vm"]
    return {
        "image_type": "snapshot",
        "instance_uuid": facts["instance_uuid"],
        "vm_mode": facts["vm_mode"],
        **request.properties,
        "vmops_operation": op.id,
    }
