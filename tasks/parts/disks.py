"""Disks that go with their VM: which ones marks prove to be the instance's, and their end.

Operations that use this remember `vms` (the VMs that go: ref ...), `disks` (what those have attached: `attached`), and
leave `doomed` and `done`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tasks.parts import calls
from tasks.parts.instances import DISK, INSTANCE, NOVA_DISK_INSTANCE, NOVA_DISK_ROLE, ROLE, VOLUME, is_copy
from worker.errors import XenAPIFailure
from worker.operations.op import Op
from worker.operations.wait import Redo
from worker.xenapi import event, vdi
from worker.xenapi.session import Session

_NULL = "OpaqueRef:NULL"
#: What an instance's own disks are for. Cached images (`image`) belong to nobody.
OWN_ROLES = frozenset({"root", "swap", "ephemeral", "configdrive", "cdrom", "rescue"})

Recs = dict[str, dict[str, Any]]
"""Disks: ref -> record."""


def attached(vbd_recs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what VBDs attach: each disk once, as a volume when one of its VBDs says so."""
    disks: dict[str, dict[str, Any]] = {}
    for rec in vbd_recs:
        if rec["empty"] or rec["VDI"] == _NULL:
            continue
        disk = disks.setdefault(rec["VDI"], {"vdi_ref": rec["VDI"], "is_volume": False, "is_cd": True})
        disk["is_volume"] |= is_volume(rec)
        disk["is_cd"] &= rec["type"] == "CD"
    return list(disks.values())


def is_volume(vbd_rec: dict[str, Any]) -> bool:
    """Tell whether a VBD attaches a volume of somebody else's."""
    return str(vbd_rec["other_config"].get(VOLUME, "")).lower() == "true"


def role_of(vdi_rec: dict[str, Any], instance: str | None) -> str | None:
    """Return what the disk is for the instance, None when no mark proves that it is the instance's own."""
    marks: dict[str, str] = vdi_rec["other_config"]
    if instance is None or vdi_rec["is_a_snapshot"] or vdi_rec["sharable"]:
        return None
    for owner, role in ((INSTANCE, ROLE), (NOVA_DISK_INSTANCE, NOVA_DISK_ROLE)):
        if marks.get(owner, "").lower() == instance and marks.get(role) in OWN_ROLES:
            return marks[role]
    return None


def is_config_drive(vdi_rec: dict[str, Any]) -> bool:
    """Tell whether a mark, ours or Nova's, says that the disk is a config drive: the password may be on it."""
    marks: dict[str, str] = vdi_rec["other_config"]
    return "configdrive" in {marks.get(ROLE), marks.get(NOVA_DISK_ROLE)}


def is_anothers_copy(op: Op, free: Recs, vdi_ref: str) -> bool:
    """Tell whether the disk bears the marks of another one that it was made of.

    What the VMs had attached, and names a disk that is gone, is their own: a revert or a move has put it in its place.
    """
    rec = free[vdi_ref]
    is_in_place = (
        vdi_ref in {disk["vdi_ref"] for disk in op.data["disks"]} and rec["other_config"].get(DISK) not in free
    )
    return is_copy(vdi_ref, rec) and not is_in_place


def destroy_own(op: Op, pool: Session, choose: Callable[[Op, Recs], dict[str, str]], *, redo: str) -> None:
    """Destroy the disks that `choose` picks, with their roles, from those that no VM has any more.

    A disk that any VM has attached, and a snapshot, are not among them. Every disk is tried before this fails. The
    result names what is gone, and what the VMs had and is kept. Raises Redo to the step `redo` when a VM has come back.
    """
    had = {disk["vdi_ref"]: disk for disk in op.data["disks"]}
    free = vdi.unattached(pool)
    # Decided once: when the first disks are gone, a copy of one would look like the only one.
    doomed = op.data["doomed"] if "doomed" in op.data else _chosen(choose(op, free), free)
    missing = [ref for ref in {**had, **doomed} if ref not in free and ref not in op.data.get("done", [])]
    others = _elsewhere(op, pool, missing, redo)
    op.remember(doomed=doomed)
    failures = _destroy_all(op, pool, [ref for ref in doomed if ref in free])
    kept = [
        {"vdi_uuid": rec["uuid"], "why": _why_kept(had.get(ref), ref in others, is_copy(ref, rec))}
        for ref, rec in {**free, **others}.items()
        if ref in others or (ref in had and ref not in doomed)
        if not had.get(ref, {}).get("is_cd")
    ]
    op.set_result(destroyed=[facts for ref, facts in doomed.items() if ref not in {*others, *failures}], kept=kept)
    if failures:
        raise next(iter(failures.values()))


def _chosen(roles: dict[str, str], free: Recs) -> dict[str, dict[str, str]]:
    return {ref: {"vdi_uuid": free[ref]["uuid"], "role": role} for ref, role in roles.items()}


def _destroy_all(op: Op, pool: Session, vdi_refs: list[str]) -> dict[str, XenAPIFailure]:
    """Destroy the disks; return what failed."""
    failures = {}
    for ref in vdi_refs:
        try:
            calls.destroy(op, pool, ref)
        except XenAPIFailure as error:
            failures[ref] = error
        else:
            op.remember(done=[*op.data.get("done", []), ref])
    return failures


def _why_kept(disk: dict[str, Any] | None, is_elsewhere: bool, is_a_copy: bool) -> str:  # noqa: FBT001 - claims
    if disk is not None and disk["is_volume"]:
        return "volume"
    if is_elsewhere:
        return "attached to another VM"
    return "copy of another disk" if is_a_copy else "no mark of the instance"


def _elsewhere(op: Op, pool: Session, vdi_refs: list[str], redo: str) -> Recs:
    """Return those of the disks that exist; some VM has them attached. None of those that go may: raises Redo."""
    if not vdi_refs:
        return {}
    vm_refs = [rec["ref"] for rec in op.data["vms"]]
    records = event.records(pool, [*(f"VDI/{ref}" for ref in vdi_refs), *(f"VM/{ref}" for ref in vm_refs)])
    if any(cls == "vm" for cls, _ in records):
        raise Redo(redo, "the VM has come back: XAPI lost its last minutes")
    return {ref: rec for (cls, ref), rec in records.items() if cls == "vdi"}
