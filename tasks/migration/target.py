"""The disks at the destination: each made once, filled by the transport that the plan chose, or thrown away.

A disk that is being filled bears the migration's mark and the uuid of the disk that it is made from, and neither role
nor instance: until finish_migration it belongs to nobody else. Whether its base has arrived whole is in the journal; a
base that has not is thrown away with its disk. The difference may be written twice: it is the same each time, since the
VM is halted.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from tasks.parts.calls import carry_out, destroy, ended
from tasks.parts.instances import OPERATION
from tasks.parts.lost import await_lost, intend
from tasks.parts.migrated import MADE_FROM
from worker.disks import relay
from worker.disks.local import LocalDisk
from worker.disks.partitions import Layout
from worker.errors import XenAPIFailure
from worker.images import vhd
from worker.operations.op import Op
from worker.operations.wait import Redo
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import transfer, vdi, xapi_task
from worker.xenapi.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

CREATE, CLONE = "VDI.create", "VDI.clone"
_COPYING = "copy "
Disk = dict[str, Any]
"""What the steps know of a disk: tasks.migration.check, and here target, has_base, sent, bytes."""


class Watch:
    """Tells the operation how far the disks are, and a transfer whether to go on."""

    def __init__(self, op: Op, done: int, total: int) -> None:
        """`done` of `total` disks are through."""
        self._op, self._done, self._total = op, done, total

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report bytes of this disk as a fraction of all disks."""
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        self._op.progress((self._done + min(fraction, 1.0)) / self._total)

    def check(self) -> None:
        """Raise Cancelled or LeaseLost when the transfer must stop."""
        self._op.check()


def new_target(op: Op, there: Session, disk: Disk, size: int) -> str:
    """Return a new, empty disk for `disk`; what an earlier run made is thrown away. Raises Wait."""
    discard_target(op, there, disk)
    disk["creating"] = True
    op.remember(disks=op.data["disks"])
    intend(op, CREATE)
    mark = {OPERATION: op.id, MADE_FROM: disk["vdi_uuid"]}
    vdi_ref = vdi.create(there, disk["target_sr_ref"], _label(disk), size, mark)
    _remember_target(op, there, disk, vdi_ref)
    return vdi_ref


def _remember_target(op: Op, there: Session, disk: Disk, vdi_ref: str) -> None:
    fields = ("userdevice", "mode", "type", "bootable", "role")
    uuid = vdi.get(there, vdi_ref)["uuid"]
    disk["target"] = {
        "vdi_ref": vdi_ref,
        "vdi_uuid": uuid,
        "made_from": disk["vdi_uuid"],
        "source_ref": disk["vdi_ref"],
        **{field: disk[field] for field in fields},
    }
    op.remember(disks=op.data["disks"])


def discard_target(op: Op, there: Session, disk: Disk) -> None:
    """Destroy what was made for a disk, also by a call whose answer was lost. Raises Wait."""
    if disk.get("creating"):
        await_lost(op, there, CREATE)
        _end_tasks(there, disk, _import_label(op, disk))
        for vdi_ref, rec in vdi.named(there, disk["target_sr_ref"], [_label(disk)]).items():
            if rec["other_config"].get(OPERATION) == op.id and not rec["is_a_snapshot"]:
                destroy(op, there, vdi_ref)
    if disk.get("cloning"):
        _discard_clone(op, there, disk)
    disk.pop("target", None)


def discard_targets(op: Op, there: Session, settings: Settings) -> None:
    """Destroy everything that was made at the destination, and the worker's own files. Raises Wait."""
    for disk in op.data["disks"]:
        discard_target(op, there, disk)
        if disk["transport"] == "shrink":
            local_disk(op, disk, settings).discard()


def local_disk(op: Op, disk: Disk, settings: Settings) -> LocalDisk:
    """Return the worker's own files for a disk that becomes smaller."""
    kind, start, size = disk.get("layout", ("none", 0, disk["virtual_size"]))
    layout = Layout(kind, disk["virtual_size"], start, size)
    return LocalDisk(settings.work_dir, f"{op.id}-{disk['userdevice']}", layout, disk.get("snapshot_ref") or "")


def _label(disk: Disk) -> str:
    return f"vmops copy of {disk['vdi_uuid']}"


# -- streams


@contextmanager
def exported(
    op: Op, pool: Session, disk: Disk, source_ref: str, base_ref: str | None = None
) -> Iterator[tuple[transfer.Export, vhd.Head]]:
    """Begin to export a disk, or its difference from `base_ref`; give the export and its head."""
    task_ref = _new_task(op, pool, disk, _export_label(op, disk))
    with transfer.export_vdi(pool, source_ref, "vhd", base=base_ref, task_ref=task_ref) as export:
        export.on_idle = op.check
        yield export, relay.open_head(export, vhd.DIFFERENCING if base_ref else vhd.DYNAMIC)


def begin_import(op: Op, there: Session, disk: Disk, vdi_ref: str, length: int) -> transfer.Import:
    """Begin to fill a disk at the destination."""
    task_ref = _new_task(op, there, disk, _import_label(op, disk))
    target = transfer.import_vdi(there, vdi_ref, "vhd", length, task_ref=task_ref)
    target.on_idle = op.check
    return target


def _export_label(op: Op, disk: Disk) -> str:
    return f"vmops export {op.id} disk {disk['userdevice']}"


def _import_label(op: Op, disk: Disk) -> str:
    return f"vmops import {op.id} disk {disk['userdevice']}"


def _new_task(op: Op, pool: Session, disk: Disk, label: str) -> str:
    """Return a task for a transfer, in place of one whose worker has died."""
    _end_tasks(pool, disk, label)
    disk["labels"] = sorted({label, *disk.get("labels", [])})
    op.remember(disks=op.data["disks"])
    return xapi_task.create(pool, label)


def _end_tasks(pool: Session, disk: Disk, label: str) -> None:
    """Remove the tasks of transfers that died with their worker."""
    if label in disk.get("labels", []):
        for task_ref in xapi_task.named(pool, label):
            xapi_task.discard(pool, task_ref)


def end_exports(op: Op, pool: Session) -> None:
    """Remove the tasks of exports that died with their worker."""
    for disk in op.data["disks"]:
        _end_tasks(pool, disk, _export_label(op, disk))


# -- within a pool


def copy_into(op: Op, pool: Session, disk: Disk, source_ref: str, base_ref: str | None = None) -> None:
    """Let XAPI copy a disk, or its difference from `base_ref`, into the target of `disk`.

    A copy that nobody has seen the end of may go on in XAPI, and write over what comes after it: then the disk is begun
    anew, with another target. Raises Wait, Redo.
    """
    vdi_ref = disk["target"]["vdi_ref"]
    name = f"{_COPYING}{source_ref} into {vdi_ref}"
    if name not in op.data.get("begun", {}):
        if disk.get("copying"):
            begin_anew(op, [disk], f"nobody knows how the copying of disk {disk['userdevice']} has ended")
        disk["copying"] = True
        op.remember(disks=op.data["disks"])
    begin = partial(vdi.start_copy_into, pool, source_ref, vdi_ref, base_ref)
    try:
        carry_out(op, pool, name, begin, "the pool is copying a disk")
    except XenAPIFailure:
        disk["copying"] = False
        op.remember(disks=op.data["disks"])
        raise
    disk["copying"] = False  # written down with what the caller says of the disk


def end_copies(op: Op, pool: Session) -> None:
    """Have the pool give up the copies that are under way. Raises Wait until it has."""
    begun = op.data.get("begun", {})
    for name in [name for name in begun if name.startswith(_COPYING)]:
        xapi_task.cancel(pool, begun[name])
        ended(pool, begun.pop(name), "the pool gives up copying a disk")
        op.remember(begun=begun)


def make_clone(op: Op, pool: Session, disk: Disk) -> None:
    """Clone the halted VM's disk once; a clone is known by the mark that the disk bears meanwhile."""
    found = None
    if disk.get("cloning"):
        await_lost(op, pool, CLONE)
        found = _clone_of(op, pool, disk)
    mark = _clone_mark(op, disk)
    if found is None:
        disk |= {"cloning": True, "clone": None}
        op.remember(disks=op.data["disks"])
        vdi.add_to_other_config(pool, disk["vdi_ref"], MADE_FROM, mark)
        intend(op, CLONE)
        found = disk["clone"] = vdi.clone(pool, disk["vdi_ref"])
        op.remember(disks=op.data["disks"])
    vdi.set_other_config(pool, found, {OPERATION: op.id, MADE_FROM: mark})
    vdi.remove_from_other_config(pool, disk["vdi_ref"], MADE_FROM)
    _remember_target(op, pool, disk, found)


def _clone_mark(op: Op, disk: Disk) -> str:
    return f"{disk['vdi_uuid']} {op.id}"


def _clone_of(op: Op, pool: Session, disk: Disk) -> str | None:
    """Return the clone that this operation has made, None when there is none.

    A copy that somebody made at the same moment bears the mark too. Only an answer tells them apart: when none has
    come, nobody knows which of two is whose.
    """
    found = [
        ref
        for ref, rec in vdi.in_sr(pool, disk["sr_ref"]).items()
        if rec["other_config"].get(MADE_FROM) == _clone_mark(op, disk)
        if ref != disk["vdi_ref"] and not rec["is_a_snapshot"]
    ]
    ref = disk.get("clone") or (found[0] if len(found) == 1 else None)
    return ref if ref in found else None


def _discard_clone(op: Op, pool: Session, disk: Disk) -> None:
    """Take the mark off the VM's disk, and destroy its clone. Raises Wait."""
    await_lost(op, pool, CLONE)
    try:
        vdi.remove_from_other_config(pool, disk["vdi_ref"], MADE_FROM)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
    found = _clone_of(op, pool, disk)
    if found is not None:
        destroy(op, pool, found)


@contextmanager
def still_there(op: Op, disk: Disk) -> Iterator[None]:
    """Begin the disk anew when its snapshot or its copy has vanished: XAPI forgets its last minutes when it dies.

    Raises Redo.
    """
    try:
        yield
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
        begin_anew(op, [disk], f"what was made of disk {disk['userdevice']} is gone ({error})")


def begin_anew(op: Op, disks: list[Disk], reason: str) -> NoReturn:
    """Let disks be moved anew. Raises Redo."""
    for disk in disks:
        for key in ("target", "has_base", "sent", "copying", "bytes"):
            disk.pop(key, None)
    op.remember(disks=op.data["disks"])
    raise Redo("take_snapshot", reason)
