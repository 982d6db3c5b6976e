"""Second step: one snapshot of each disk, however often the step is run, and its undo.

A snapshot is known by `other_config["vmops.snapshot-operation"]`. The key is put on the VM's disk before the call,
because VDI.snapshot copies other_config and takes no mark of its own (xapi.md 9.1), and is removed from it afterwards.
"""

from __future__ import annotations

from typing import Any

from tasks.snapshot.disks import Disk, by_sr
from tasks.snapshot.request import SnapshotRequest
from worker.errors import StorageUnsupported, XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Redo, Until, Wait
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import sr, vdi, xapi_task
from worker.xenapi.session import Session

MARK = "vmops.snapshot-operation"
#: Chain length at which the storage manager refuses another snapshot (xapi.md 9.1).
CHAIN_LIMIT = 30
#: A snapshot call usually ends within this time; longer ones are waited for without a worker.
_SNAPSHOT_SHORT_S = 5.0
_SNAPSHOT_DEADLINE_S = 2 * 3600.0  # XAPI's own limit for waiting on a lock (xapi.md 4.2)
_TASK_CHECK_S = 60.0


def forget_snapshot(op: Op, pool: Session) -> None:
    """Destroy this operation's snapshots, also one whose call was on its way; take the mark off the VM's disks."""
    disks = [disk for disk in op.data.get("disks", []) if disk.get("intended")]
    if any(not disk.get("snapshot_ref") for disk in disks):
        _await_snapshot_calls(op, pool)
    for disk in disks:
        if disk.get("snapshot_task"):
            xapi_task.finish(pool, disk["snapshot_task"])
    for sr_ref, in_sr in by_sr(disks):
        records = vdi.in_sr(pool, sr_ref)
        taken = {disk.get("snapshot_ref") for disk in in_sr}
        for vdi_ref, rec in records.items():
            if vdi_ref in taken or _maker(rec) == op.id:
                vdi.destroy_if_present(pool, vdi_ref)
        for disk in in_sr:
            if disk["vdi_ref"] in records:
                _unmark(pool, disk)


@step(undo=forget_snapshot)
def take_snapshot(op: Op, pool: Session, settings: Settings) -> None:
    """Snapshot each disk once: a second run finds the first one's by its mark."""
    disks = op.data["disks"]
    for sr_ref, in_sr in by_sr(disks):
        records = vdi.in_sr(pool, sr_ref)
        chain = vdi.Chain(records)
        for disk in in_sr:
            if not disk.get("snapshot_ref"):
                _sweep(op, pool, disk, records)
                disk["snapshot_ref"] = _adopt(op, disk, records) or _take(op, pool, settings, disk, chain)
                op.remember(disks=disks)
            _unmark(pool, disk)
        # The collector starts only after a scan, and parents are true only after one (operations.md 6.1, xapi.md 9.3).
        sr.scan(pool, sr_ref)


def _sweep(op: Op, pool: Session, disk: Disk, records: dict[str, dict[str, Any]]) -> None:
    """Destroy the disk's snapshots that operations left behind which are dead by now."""
    for vdi_ref, rec in records.items():
        owner = _maker(rec) if rec["snapshot_of"] == disk["vdi_ref"] else None
        if owner and owner != op.id and not op.live(owner):
            vdi.destroy_if_present(pool, vdi_ref)
            op.note(f"destroyed snapshot {rec['uuid']}, left behind by operation {owner}")


def _adopt(op: Op, disk: Disk, records: dict[str, dict[str, Any]]) -> str | None:
    for vdi_ref, rec in records.items():
        if rec["snapshot_of"] == disk["vdi_ref"] and _maker(rec) == op.id:
            return vdi_ref
    return None


def _maker(rec: dict[str, Any]) -> str | None:
    """Return the operation that made this snapshot, None when none of ours did.

    A snapshot of the whole VM that somebody took while the disk bore our mark has it too, but belongs to a VM.
    """
    return rec["other_config"].get(MARK) if rec["is_a_snapshot"] and not rec["VBDs"] else None


def _take(op: Op, pool: Session, settings: Settings, disk: Disk, chain: vdi.Chain) -> str:
    disks = op.data["disks"]
    if disk.get("snapshot_task"):
        found = _outcome(pool, disk, disk["snapshot_task"])
        if found:
            return found
    elif disk.get("intended"):
        # The call went out, and what became of it is unknown: let every snapshot call of the pool end, then look.
        _await_snapshot_calls(op, pool)
        records = vdi.in_sr(pool, disk["sr_ref"])
        found = _adopt(op, disk, records)
        if found:
            return found
    disk["ancestors"] = chain.ancestors(disk["vdi_uuid"])
    _check_chain(op, pool, settings, disk)
    disk["intended"] = True
    disk["snapshot_task"] = None
    op.remember(disks=disks, calls_on_the_way=None)
    if chain.rec_of(disk["vdi_uuid"])["other_config"].get(MARK) != op.id:
        vdi.add_to_other_config(pool, disk["vdi_ref"], MARK, op.id)
    disk["snapshot_task"] = vdi.start_snapshot(pool, disk["vdi_ref"])
    op.remember(disks=disks)
    taken = _outcome(pool, disk, disk["snapshot_task"])
    if taken is None:
        raise Redo("take_snapshot", "the pool forgot the snapshot call: XAPI was restarted")
    return taken


def _outcome(pool: Session, disk: Disk, task_ref: str) -> str | None:
    """Return what the snapshot call made; None when XAPI has forgotten the call."""
    outcome = xapi_task.wait(pool, task_ref, _SNAPSHOT_SHORT_S)
    if outcome.status == "pending":
        raise Wait(
            "the pool is taking the snapshot",
            until=[Until("task", task_ref, "status", ["pending"])],
            check_every_s=_TASK_CHECK_S,
            deadline_s=_SNAPSHOT_DEADLINE_S,
        )
    if outcome.status == "vanished":
        disk["snapshot_task"] = None
        return None
    xapi_task.finish(pool, task_ref)
    if outcome.status == "success":
        return outcome.result
    disk["snapshot_task"] = None
    raise outcome.error or XenAPIFailure(["TASK_CANCELLED", task_ref], "VDI.snapshot")


def _await_snapshot_calls(op: Op, pool: Session) -> None:
    """Wait until no snapshot call that may be ours is on its way: those that the first look finds."""
    pending = xapi_task.pending(pool, "Async.VDI.snapshot")
    known = op.data.get("calls_on_the_way")
    if known is None:
        op.remember(calls_on_the_way=pending)
    else:
        pending = [task_ref for task_ref in pending if task_ref in known]
    if pending:
        raise Wait(
            "a snapshot call of unknown outcome ends",
            until=[Until("task", task_ref, "status", ["pending"]) for task_ref in pending],
            check_every_s=_TASK_CHECK_S,
            deadline_s=_SNAPSHOT_DEADLINE_S,
        )


def _check_chain(op: Op, pool: Session, settings: Settings, disk: Disk) -> None:
    if len(disk["ancestors"]) + 1 < CHAIN_LIMIT:
        return
    what = f"The chain of VDI {disk['vdi_uuid']} has reached the storage manager's limit of {CHAIN_LIMIT}"
    if not sr.can_coalesce(sr.get(pool, disk["sr_ref"])):
        raise StorageUnsupported(f"{what}, and coalescing is switched off on its storage repository: switch it on.")
    sr.scan(pool, disk["sr_ref"])
    raise Wait(
        f"{what}: it must coalesce first",
        until=[Until("vdi", disk["vdi_ref"], "sm_config/vhd-parent", disk["ancestors"][:1])],
        check_every_s=settings.coalesce_check_s,
        deadline_s=op.request(SnapshotRequest).coalesce_budget_s or settings.coalesce_budget_s,
    )


def _unmark(pool: Session, disk: Disk) -> None:
    """Take the mark off the VM's disk, if the disk is still there."""
    try:
        vdi.remove_from_other_config(pool, disk["vdi_ref"], MARK)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
