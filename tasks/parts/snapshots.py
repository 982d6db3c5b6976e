"""Snapshots of a VM's disks as steps: one of each disk, however often the step is run; its undo; and the clean-up.

What the steps know of the disks travels as plain data under `disks`, in the order of the disks; under `collectors` is
which storage repositories coalesce.

A snapshot is known by `other_config["vmops.snapshot-operation"]`. The key is put on the VM's disk before the call,
because VDI.snapshot copies other_config and takes no mark of its own (xapi.md 9.1), and is removed from it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tasks.parts.calls import destroy, ended, scan, until_ended
from tasks.parts.instances import SNAPSHOT_OPERATION
from worker.errors import DiskNotFound, StorageUnsupported, XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Redo, Until, Wait
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import sr, vdi, xapi_task
from worker.xenapi.session import Session

#: Chain length at which the storage manager refuses another snapshot (xapi.md 9.1).
CHAIN_LIMIT = 30

Records = dict[str, dict[str, Any]]
"""The disks of a storage repository: ref -> record."""
Disk = dict[str, Any]
"""userdevice, vdi_ref, vdi_uuid, sr_ref, and what the operation adds; here ancestors, intended, snapshot_task,
snapshot_ref, has_lost_call. Once `pushed` is set the disk's snapshot is needed no more, or never was."""


def by_sr(disks: list[Disk]) -> Iterator[tuple[str, list[Disk]]]:
    """Yield each storage repository with its disks, in the order of the disks."""
    for sr_ref in dict.fromkeys(disk["sr_ref"] for disk in disks):
        yield sr_ref, [disk for disk in disks if disk["sr_ref"] == sr_ref]


def not_pushed(disks: list[Disk]) -> list[Disk]:
    """Return the disks whose snapshots are still needed."""
    return [disk for disk in disks if not disk.get("pushed")]


def vanished(disk: Disk) -> str:
    """Say why the operation goes back."""
    return f"the snapshot of disk {disk['userdevice']} has vanished from the pool: XAPI lost its last minutes"


def why_never(pool: Session, vdi_rec: dict[str, Any], sr_rec: dict[str, Any]) -> str | None:
    """Return why a disk can never be snapshotted, None for one that can, or that only cannot at the moment."""
    if vdi_rec["sharable"]:
        return "is shared between VMs, and XenServer cannot snapshot such a disk: make it not sharable."
    if "snapshot" in vdi_rec["allowed_operations"]:
        return None
    if vdi_rec["sm_config"].get("type") != "raw" and sr.can_snapshot(pool, sr_rec):
        return None
    return (
        f"lies raw on storage repository {sr_rec['name_label']!r} of type {sr_rec['type']}, where it cannot be "
        "snapshotted: move it to one that keeps disks as VHDs."
    )


def forget_snapshot(op: Op, pool: Session) -> None:
    """Destroy this operation's snapshots, also one whose call was on its way; take the mark off the VM's disks."""
    disks = [disk for disk in op.data.get("disks", []) if disk.get("intended")]
    if any(not disk.get("snapshot_ref") for disk in disks):
        _await_snapshot_calls(op, pool)
    for sr_ref, in_sr in by_sr(disks):
        records = vdi.in_sr(pool, sr_ref)
        _destroy_all(op, pool, records, {disk.get("snapshot_ref") for disk in in_sr})
        for disk in in_sr:
            if disk["vdi_ref"] in records:
                _unmark(pool, disk)
    for task_ref in [*(disk.get("snapshot_task") for disk in disks), *op.data.get("begun", {}).values()]:
        if task_ref:
            xapi_task.finish(pool, task_ref)


@step
def discard_snapshot(op: Op, pool: Session) -> None:
    """Destroy the snapshots; one that is gone already is no error."""
    for sr_ref, in_sr in by_sr([disk for disk in op.data["disks"] if disk.get("snapshot_ref")]):
        lost = [disk for disk in in_sr if disk.get("has_lost_call")]
        if lost:
            # A call that XAPI had forgotten may have made a snapshot after all, behind that of its successor.
            _destroy_all(op, pool, vdi.in_sr(pool, sr_ref), {disk["snapshot_ref"] for disk in lost})
        for disk in in_sr:
            if disk in lost:
                _unmark(pool, disk)
            else:
                destroy(op, pool, disk["snapshot_ref"])


def _destroy_all(op: Op, pool: Session, records: Records, taken: set[str | None]) -> None:
    for vdi_ref, rec in records.items():
        if vdi_ref in taken or _maker(rec) == op.id:
            destroy(op, pool, vdi_ref)


@step(undo=forget_snapshot)
def take_snapshot(op: Op, pool: Session, settings: Settings) -> None:
    """Snapshot each disk once: a second run finds the first one's by its mark."""
    disks = op.data["disks"]
    for sr_ref, in_sr in by_sr(not_pushed(disks)):
        records = vdi.in_sr(pool, sr_ref)
        _sweep(op, pool, in_sr, records)
        for disk in in_sr:
            if disk.get("snapshot_ref") not in records:
                disk["snapshot_ref"] = _earlier(op, pool, disk, records) or _take(op, pool, settings, disk, records)
                op.remember(disks=disks)
            if not disk.get("has_lost_call"):  # what a lost call may still make shall bear the mark
                _unmark(pool, disk)
        # The collector starts only after a scan, and parents are true only after one (operations.md 6.1, xapi.md 9.3).
        scan(op, pool, sr_ref)


def _sweep(op: Op, pool: Session, disks: Iterable[Disk], records: Records) -> None:
    """Destroy the disks' snapshots that operations left behind which are dead by now; drop them from the records."""
    of_disks = {disk["vdi_ref"] for disk in disks}
    for vdi_ref, rec in list(records.items()):
        owner = _maker(rec) if rec["snapshot_of"] in of_disks else None
        if owner and owner != op.id and not op.live(owner):
            destroy(op, pool, vdi_ref)
            del records[vdi_ref]
            op.note(f"destroyed snapshot {rec['uuid']}, left behind by operation {owner}")


def _maker(rec: dict[str, Any]) -> str | None:
    """Return the operation that made this snapshot, None when none of ours did.

    A snapshot of the whole VM that somebody took while the disk bore our mark has it too, but belongs to a VM.
    """
    return rec["other_config"].get(SNAPSHOT_OPERATION) if rec["is_a_snapshot"] and not rec["VBDs"] else None


def _earlier(op: Op, pool: Session, disk: Disk, records: Records) -> str | None:
    """Return the snapshot that an earlier run took or began to take, None when there is none."""
    task_ref = disk.get("snapshot_task")
    if task_ref:
        outcome = ended(pool, task_ref, "the pool is taking the snapshot")
        disk["snapshot_task"] = None
        if outcome.status == "success":
            return outcome.result
        if outcome.error is not None:
            op.remember(disks=op.data["disks"])
            raise outcome.error
    if not disk.get("intended"):
        return _marked(op, disk, records)
    # The call went out, and what became of it is unknown: let every snapshot call of the pool end, then look.
    _await_snapshot_calls(op, pool)
    disk["has_lost_call"] = True
    return _marked(op, disk, vdi.in_sr(pool, disk["sr_ref"]))


def _marked(op: Op, disk: Disk, records: Records) -> str | None:
    for vdi_ref, rec in records.items():
        if rec["snapshot_of"] == disk["vdi_ref"] and _maker(rec) == op.id:
            return vdi_ref
    return None


def _take(op: Op, pool: Session, settings: Settings, disk: Disk, records: Records) -> str:
    disks = op.data["disks"]
    chain = vdi.Chain(records)
    if disk["vdi_ref"] not in records:
        raise DiskNotFound(
            f"Disk {disk['userdevice']} of VM {op.data['vm']['name']!r} (VDI {disk['vdi_uuid']}) has left its storage "
            "repository since the operation began: it was destroyed or moved. Submit again."
        )
    _check_chain(op, pool, settings, disk, chain)
    disk["intended"] = True
    op.remember(disks=disks, calls_on_the_way=None)
    if records[disk["vdi_ref"]]["other_config"].get(SNAPSHOT_OPERATION) != op.id:
        vdi.add_to_other_config(pool, disk["vdi_ref"], SNAPSHOT_OPERATION, op.id)
    disk["snapshot_task"] = vdi.start_snapshot(pool, disk["vdi_ref"])
    op.remember(disks=disks)
    taken = _earlier(op, pool, disk, records)
    if taken is None:
        raise Redo("take_snapshot", "the pool forgot the snapshot call: XAPI was restarted")
    return taken


def _await_snapshot_calls(op: Op, pool: Session) -> None:
    """Wait until no snapshot call that may be ours is on its way: those that the first look finds."""
    pending = xapi_task.pending(pool, "Async.VDI.snapshot")
    known = op.data.get("calls_on_the_way")
    if known is None:
        op.remember(calls_on_the_way=pending)
    else:
        pending = [task_ref for task_ref in pending if task_ref in known]
    if pending:
        raise until_ended(pending, "a snapshot call of unknown outcome ends")


def await_room(op: Op, pool: Session, settings: Settings, disks: list[Disk]) -> None:
    """Wait until the chain of each disk has room for one more link. One call for each storage repository.

    Raises as `_check_chain`.
    """
    for sr_ref, in_sr in by_sr(disks):
        chain = vdi.Chain(vdi.in_sr(pool, sr_ref))
        for disk in in_sr:
            _check_chain(op, pool, settings, disk, chain)


def _check_chain(op: Op, pool: Session, settings: Settings, disk: Disk, chain: vdi.Chain) -> None:
    """Wait for room in the chain when it has none. Raises Wait, and StorageUnsupported when there never will be any."""
    disk["ancestors"] = chain.ancestors(disk["vdi_uuid"])
    nodes = [disk["vdi_uuid"], *disk["ancestors"]]
    if len(nodes) < CHAIN_LIMIT:
        return
    what = f"chain of VDI {disk['vdi_uuid']} has reached the storage manager's limit of {CHAIN_LIMIT}"
    if not op.data["collectors"][disk["sr_ref"]]:
        raise StorageUnsupported(f"The {what}, and coalescing is switched off on its storage repository: switch it on.")
    if all(len(chain.children(parent)) > 1 for parent in disk["ancestors"]):
        raise StorageUnsupported(f"The {what}, and no link of it can be merged: delete old snapshots of the disk.")
    scan(op, pool, disk["sr_ref"])
    links = [uuid for uuid in disk["ancestors"] if uuid in chain]
    raise Wait(
        f"the {what}: it must coalesce first",
        until=[Until("vdi", chain.ref_of(uuid), "uuid", [uuid]) for uuid in links],
        check_every_s=settings.coalesce_check_s,
        deadline_s=op.data.get("coalesce_budget_s") or settings.coalesce_budget_s,
    )


def _unmark(pool: Session, disk: Disk) -> None:
    """Take the mark off the VM's disk, if the disk is still there."""
    try:
        vdi.remove_from_other_config(pool, disk["vdi_ref"], SNAPSHOT_OPERATION)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
