"""Taking a migration back, and what its operations share. The marks decide what is removed.

Order: the VM that took the place is halted and removed, the VM that was left gets its name, its power and its freedom
back, and only then the destination's disks go. They bear the migration's mark; nothing else is touched. The last thing
is to take the mark off the VM: until then it says what is left to do. Nothing of what was made is halted or removed
before the VM that was left has been seen: if that one is gone, or its pool away, there is nothing else.
"""

from __future__ import annotations

from typing import Any

from tasks.parts import power
from tasks.parts.calls import destroy
from tasks.parts.instances import OPERATION, hold_of
from tasks.parts.migrated import CARRIED, MADE_FROM, MIGRATED_BY, REVERTED, Mark, left_name, locks_of
from worker.errors import InstanceGone, RequestError, XenAPIFailure
from worker.operations.op import Op
from worker.operations.wait import Wait
from worker.retry import Kind, kind_of
from worker.xenapi import event, host, vbd, vdi, vm, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import MIGRATION_KEY, Found

Rec = dict[str, Any]
#: A pool does not die so often in so long.
_AGAIN_S = 3600.0


def pool_time(pool: Session) -> int:
    """Return the pool's clock. Two calls."""
    records = event.records(pool, ["pool"])
    return host.servertime(pool, next(rec["master"] for rec in records.values()))


def set_mark(pool: Session, vm_ref: str, mark: Mark) -> None:
    """Write a VM's mark; a VM that is gone is left alone."""
    try:
        vm_power.add_to_other_config(pool, vm_ref, MIGRATION_KEY, str(mark))
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


def hold_both(op: Op, mark: Mark, vm_rec: Rec, *, queue: bool) -> None:
    """Have the instance to oneself in both pools, in the order in which every migration takes them."""
    for side in (mark.source, mark.destination):
        op.hold(hold_of(vm_rec), queue=queue, pool=side["pool"])


def made_by(pool: Session, name: str, migration: str) -> list[Found]:
    """Return the VMs that were made for a migration. One call."""
    return [one for one in vm.matching(pool, name=name) if one.rec["other_config"].get(MIGRATED_BY) == migration]


def _is_left_by(found: Found, mark: Mark) -> bool:
    """Tell whether a VM is the one that a migration has left.

    A mark is changed by taking it away and setting it: of whoever was cut off between, name and locks tell.
    """
    own = Mark.of(found.rec)
    if own is None:
        return found.rec["name_label"] == left_name(mark.name) and bool(locks_of(found.rec, mark.migration))
    return (own.migration, own.side) == (mark.migration, "source")


# -- taking back


def take_back(op: Op, here: Session, there: Session | None, mark: Mark, *, power_on: bool, is_made: bool) -> None:
    """Take a migration back, in this module's order; of a pool that is gone (None) nothing is asked.

    `is_made`: there may be a VM that took the place. What a pool has lost that died meanwhile is done again. Raises
    Wait, InstanceGone.
    """
    if there is not None and is_made:
        left_by(here, mark)
        _remove_successor(there, mark)
    _bring_back(op, here, mark, power_on=power_on)
    if there is not None:
        _discard_disks(op, there, mark)
    left = left_by(here, mark)
    if not _is_back(left) or (there is not None and made_by(there, mark.name, mark.migration)):
        raise Wait("a pool has lost its last minutes: it begins again", check_every_s=0.0, deadline_s=_AGAIN_S)
    unmark(here, left.ref)


def _remove_successor(there: Session, mark: Mark) -> None:
    """Halt and remove the VM that took the place; its disks stay. One that is gone is no error."""
    for found in made_by(there, mark.name, mark.migration):
        rec = {"ref": found.ref, **found.rec}
        if rec["power_state"] != "Halted":
            power.halt(there, rec)
        power.remove(there, rec)


def _bring_back(op: Op, here: Session, mark: Mark, *, power_on: bool) -> None:
    """Give the VM that was left its name and freedom, start it if it shall run, and say so on it.

    One that says so already is left alone: whoever comes again has only the destination's disks to remove.
    """
    found = left_by(here, mark)
    if _is_back(found):
        return
    rec = {"ref": found.ref, **found.rec}
    if rec["name_label"] != mark.name:
        vm.set_name_label(here, found.ref, mark.name)
    locks = locks_of(rec, mark.migration)
    if locks:
        vm_power.unblock(here, found.ref, locks)
    if power_on and rec["power_state"] == "Halted":
        unlocked = {key: text for key, text in rec["blocked_operations"].items() if key not in locks}
        hosts = [rec["affinity"]] if rec["affinity"] != power.NULL else []
        power.start_again(op, here, {**rec, "blocked_operations": unlocked}, hosts)
    for one in vbd.of_vm(here, found.ref).values():
        if not one["empty"]:
            vdi.remove_from_other_config(here, one["VDI"], CARRIED)
    set_mark(here, found.ref, mark.on("source").at(REVERTED, pool_time(here), op.id))


def _is_back(found: Found) -> bool:
    mark = Mark.of(found.rec)
    return mark is not None and mark.state == REVERTED


def unmark(pool: Session, vm_ref: str) -> None:
    """Take a VM's mark off; a VM that is gone is left alone."""
    try:
        vm_power.remove_from_other_config(pool, vm_ref, MIGRATION_KEY)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


def source_of(here: Session, mark: Mark) -> Found | None:
    """Return the VM that is left, None when it is gone or knows nothing of the migration any more. One call."""
    found = vm.matching(here, vm_uuid=mark.source["vm_uuid"])
    return next((one for one in found if _is_left_by(one, mark)), None)


def left_by(here: Session, mark: Mark) -> Found:
    """Return the VM that is left, also when XAPI has lost what the migration has written on it. One call.

    Raises InstanceGone when it is there no more: what was made of it is all there is then.
    """
    for found in vm.matching(here, vm_uuid=mark.source["vm_uuid"]):
        if MIGRATION_KEY not in found.rec["other_config"] or _is_left_by(found, mark):
            return found
    raise InstanceGone(
        f"The VM that the migration of {mark.name!r} has left is gone from pool {here.pool_name!r}: what was made of "
        f"it in pool {mark.destination['pool']!r} is kept."
    )


def _discard_disks(op: Op, there: Session, mark: Mark) -> None:
    """Destroy the destination's disks that this migration has made."""
    for vdi_ref, rec in _known(there, mark).items():
        marks = rec["other_config"]
        if mark.migration in {marks.get(OPERATION), marks.get(MIGRATED_BY)} and MADE_FROM in marks:
            destroy(op, there, vdi_ref)


def _known(there: Session, mark: Mark) -> dict[str, Rec]:
    refs = [disk["vdi_ref"] for disk in mark.disks]
    records = event.records(there, [f"VDI/{ref}" for ref in refs]) if refs else {}
    uuids = {disk["vdi_uuid"] for disk in mark.disks}
    return {ref: rec for (_, ref), rec in records.items() if rec["uuid"] in uuids}


def required(mark: Mark | None, vm_rec: Rec) -> Mark:
    """Return the mark. Raises RequestError for a VM that has none."""
    if mark is None:
        raise RequestError(f"VM {vm_rec['name_label']!r} is not being resized or moved: there is nothing to do.")
    return mark
