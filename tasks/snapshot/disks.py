"""What the steps know of the disks: plain data, kept in the journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import NAMESPACE_OID, uuid5

Disk = dict[str, Any]
"""userdevice, vdi_ref, vdi_uuid, sr_ref, virtual_size, image_id, image_is_ours; later ancestors, intended,
snapshot_task, snapshot_ref, has_lost_call, push_intended, former_images, pushed."""


def own_image_id(operation_id: str, userdevice: str, number: int = 0) -> str:
    """Return the id of an image that an operation makes: no try makes a second one. `number` counts replacements."""
    again = f" replacement {number}" if number else ""
    return str(uuid5(NAMESPACE_OID, f"vmops {operation_id} disk {userdevice}{again}"))


def by_sr(disks: list[Disk]) -> Iterable[tuple[str, list[Disk]]]:
    """Yield each storage repository with its disks, in the order of the disks."""
    for sr_ref in dict.fromkeys(disk["sr_ref"] for disk in disks):
        yield sr_ref, [disk for disk in disks if disk["sr_ref"] == sr_ref]


def not_pushed(disks: list[Disk]) -> list[Disk]:
    """Return the disks whose snapshots are still needed."""
    return [disk for disk in disks if not disk.get("pushed")]


def vanished(disk: Disk) -> str:
    """Say why the operation goes back."""
    return f"the snapshot of disk {disk['userdevice']} has vanished from the pool: XAPI lost its last minutes"
