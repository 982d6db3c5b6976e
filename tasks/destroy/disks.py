"""Last step: the instance's disks, by their marks, once no VM has them any more."""

from __future__ import annotations

from typing import Any

from tasks.parts import calls
from tasks.parts.instances import INSTANCE, ROLE
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
    fails.
    """
    attached = {disk["vdi_ref"]: disk for disk in op.data["disks"]}
    free = vdi.unattached(pool)
    others = _elsewhere(op, pool, [ref for ref in attached if ref not in free and ref not in _gone(op)])
    volumes = {ref for ref, disk in attached.items() if disk["is_volume"]}
    kept = []
    failures = []
    for ref, rec in free.items():
        role = role_of(rec, op.data["instance"])
        if role and ref not in volumes:
            try:
                _destroy(op, pool, ref, {"vdi_uuid": rec["uuid"], "role": role})
            except XenAPIFailure as error:
                failures.append(error)
        elif ref in attached and not attached[ref]["is_cd"]:
            kept.append({"vdi_uuid": rec["uuid"], "why": "volume" if ref in volumes else "no mark of the instance"})
    for ref, rec in others.items():
        if not attached[ref]["is_cd"]:
            kept.append({"vdi_uuid": rec["uuid"], "why": "volume" if ref in volumes else "attached to another VM"})
    op.set_result(destroyed=op.data.get("destroyed", []), kept=kept)
    if failures:
        raise failures[0]


def role_of(vdi_rec: dict[str, Any], instance: str | None) -> str | None:
    """Return what the disk is for the instance, None when no mark proves that it is the instance's own."""
    marks: dict[str, str] = vdi_rec["other_config"]
    if instance is None or vdi_rec["is_a_snapshot"] or vdi_rec["sharable"]:
        return None
    for owner, role in ((INSTANCE, ROLE), (_NOVA_INSTANCE, _NOVA_ROLE)):
        if marks.get(owner, "").lower() == instance and marks.get(role) in _ROLES:
            return marks[role]
    return None


def _gone(op: Op) -> set[str]:
    return {one["vdi_ref"] for one in op.data.get("removed", [])}


def _destroy(op: Op, pool: Session, vdi_ref: str, facts: dict[str, str]) -> None:
    calls.destroy(op, pool, vdi_ref)
    destroyed = [*op.data.get("destroyed", []), facts]
    op.remember(destroyed=destroyed, removed=[*op.data.get("removed", []), {"vdi_ref": vdi_ref}])


def _elsewhere(op: Op, pool: Session, vdi_refs: list[str]) -> Recs:
    """Return those of the disks that exist; some VM has them attached. None of ours may: raises Redo."""
    if not vdi_refs:
        return {}
    vm_refs = [rec["ref"] for rec in op.data["vms"]]
    records = event.records(pool, [*(f"VDI/{ref}" for ref in vdi_refs), *(f"VM/{ref}" for ref in vm_refs)])
    if any(cls == "vm" for cls, _ in records):
        raise Redo("shut_down", "the VM has come back: XAPI lost its last minutes")
    return {ref: rec for (cls, ref), rec in records.items() if cls == "vdi"}
