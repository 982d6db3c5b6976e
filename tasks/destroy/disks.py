"""Last step: the instance's disks, by their marks, once no VM has them any more."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tasks.parts import calls
from tasks.parts.instances import DISK, INSTANCE, OPERATION, ROLE, is_copy
from worker.errors import XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Redo
from worker.xenapi import event, vdi
from worker.xenapi.session import Session

#: Nova's marks, since its Havana release (operations.md 3.2).
_NOVA_INSTANCE, _NOVA_ROLE = "nova_instance_uuid", "nova_disk_type"
#: What an instance's own disks are for. Cached images (`image`) belong to nobody.
_ROLES = frozenset({"root", "swap", "ephemeral", "configdrive", "cdrom", "rescue"})

Recs = dict[str, dict[str, Any]]
"""Disks: ref -> record."""


@step
def destroy_disks(op: Op, pool: Session) -> None:
    """Destroy the disks whose marks name the instance, whether its VM had them or an earlier one left them.

    A disk that any VM has attached, a volume, and a snapshot are never touched. Every disk is tried before the step
    fails. The result names what is gone and what was detached and kept.
    """
    attached = {disk["vdi_ref"]: disk for disk in op.data["disks"]}
    free = vdi.unattached(pool)
    # Decided once: when the first disks are gone, a copy of one would look like the only one.
    doomed = op.data["doomed"] if "doomed" in op.data else _own(op, free)
    missing = [ref for ref in {**attached, **doomed} if ref not in free and ref not in op.data.get("done", [])]
    others = _elsewhere(op, pool, missing)
    op.remember(doomed=doomed)
    failures = _destroy_all(op, pool, [ref for ref in doomed if ref in free])
    kept = [
        {"vdi_uuid": rec["uuid"], "why": _why_kept(attached.get(ref), ref in others)}
        for ref, rec in {**free, **others}.items()
        if ref in others or (ref in attached and ref not in doomed)
        if not attached.get(ref, {}).get("is_cd")
    ]
    op.set_result(destroyed=[facts for ref, facts in doomed.items() if ref not in {*others, *failures}], kept=kept)
    if failures:
        raise next(iter(failures.values()))


def _own(op: Op, free: Recs) -> dict[str, dict[str, str]]:
    volumes = {disk["vdi_ref"] for disk in op.data["disks"] if disk["is_volume"]}
    roles = {ref: role_of(rec, op.data["instance"]) for ref, rec in free.items() if ref not in volumes}
    attached = {disk["vdi_ref"] for disk in op.data["disks"]}
    claims = Counter(_claim(free[ref], role) for ref, role in roles.items() if role)
    return {
        ref: {"vdi_uuid": free[ref]["uuid"], "role": role}
        for ref, role in roles.items()
        if role and (ref in attached or (not is_copy(ref, free[ref]) and claims[_claim(free[ref], role)] == 1))
    }


def _claim(rec: dict[str, Any], role: str) -> tuple[str | None, ...]:
    """Return what no two disks of an instance have in common, but a disk and its clone: the clone bears its marks.

    What the VM had is proven to be its own, and what bears its own ref. Disks older than that mark, and Nova's, are
    kept when two claim the same.
    """
    marks: dict[str, str] = rec["other_config"]
    return role, marks.get(OPERATION), marks.get(DISK) and rec["uuid"]


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


def _why_kept(disk: dict[str, Any] | None, is_elsewhere: bool) -> str:  # noqa: FBT001 - a claim about the disk
    if disk is not None and disk["is_volume"]:
        return "volume"
    return "attached to another VM" if is_elsewhere else "no mark of the instance"


def role_of(vdi_rec: dict[str, Any], instance: str | None) -> str | None:
    """Return what the disk is for the instance, None when no mark proves that it is the instance's own."""
    marks: dict[str, str] = vdi_rec["other_config"]
    if instance is None or vdi_rec["is_a_snapshot"] or vdi_rec["sharable"]:
        return None
    for owner, role in ((INSTANCE, ROLE), (_NOVA_INSTANCE, _NOVA_ROLE)):
        if marks.get(owner, "").lower() == instance and marks.get(role) in _ROLES:
            return marks[role]
    return None


def _elsewhere(op: Op, pool: Session, vdi_refs: list[str]) -> Recs:
    """Return those of the disks that exist; some VM has them attached. None of ours may: raises Redo."""
    if not vdi_refs:
        return {}
    vm_refs = [rec["ref"] for rec in op.data["vms"]]
    records = event.records(pool, [*(f"VDI/{ref}" for ref in vdi_refs), *(f"VM/{ref}" for ref in vm_refs)])
    if any(cls == "vm" for cls, _ in records):
        raise Redo("shut_down", "the VM has come back: XAPI lost its last minutes")
    return {ref: rec for (cls, ref), rec in records.items() if cls == "vdi"}
