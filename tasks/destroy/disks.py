"""Fourth step: the instance's disks, by their marks, once no VM has them any more."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tasks.parts.disks import Recs, destroy_own, is_anothers_copy, role_of
from tasks.parts.instances import DISK, OPERATION
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi.session import Session


@step
def destroy_disks(op: Op, pool: Session) -> None:
    """Destroy the disks whose marks name the instance, whether its VM had them or an earlier one left them.

    A disk that any VM has attached, a volume, a copy, and a snapshot are never touched. Every disk is tried before the
    step fails. The result names what is gone and what was detached and kept.
    """
    destroy_own(op, pool, _own, redo="shut_down")


def _own(op: Op, free: Recs) -> dict[str, str]:
    volumes = {disk["vdi_ref"] for disk in op.data["disks"] if disk["is_volume"]}
    roles = {ref: role_of(rec, op.data["instance"]) for ref, rec in free.items() if ref not in volumes}
    had = {disk["vdi_ref"] for disk in op.data["disks"]}
    claims = Counter(_claim(free[ref], role) for ref, role in roles.items() if role)
    return {
        ref: role
        for ref, role in roles.items()
        if role and not is_anothers_copy(op, free, ref) and (ref in had or claims[_claim(free[ref], role)] == 1)
    }


def _claim(rec: dict[str, Any], role: str) -> tuple[str | None, ...]:
    """Return what no two disks of an instance have in common, but a disk and its clone: the clone bears its marks.

    What the VM had is proven to be its own, and what bears its own ref. Disks older than that mark, and Nova's, are
    kept when two claim the same.
    """
    marks: dict[str, str] = rec["other_config"]
    return role, marks.get(OPERATION), marks.get(DISK) and rec["uuid"]
