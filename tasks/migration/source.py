"""The VM that is left: renamed and marked first, halted between the two transfers; and all of it taken back.

Whatever fails: the guest is started again before anything else is cleaned up, and its name given back before the
destination is asked anything, which may be gone.
"""

from __future__ import annotations

import time
from functools import partial

from tasks.migration.request import MigrateRequest
from tasks.migration.target import begin_anew, discard_targets, end_copies, end_exports
from tasks.parts import power
from tasks.parts.migrated import CARRIED, LOCKS, MOVED, MOVING, Mark, left_name, lock_text, locks_of
from worker.errors import GuestUnable, InstanceNotFound, WrongPowerState, XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.resources import Pools
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import event, host, vdi, vm, vm_power, xapi_task
from worker.xenapi.session import Session
from worker.xenapi.vm import MIGRATION_KEY

_CLEAN = "clean shutdown"
#: A guest that was asked to shut down, and then not waited for, is watched for so long before it counts as running.
_SECOND_THOUGHTS_S = 5.0


def mark_of(op: Op, state: str, entered: int) -> Mark:
    """Return the mark of the VM that this operation moves."""
    dest = op.request(MigrateRequest).dest
    rec = op.data["vm"]
    return Mark(
        state=state,
        entered=entered,
        operation=op.id,
        migration=op.id,
        side="source",
        name=rec["name"],
        power=op.data.get("power_before", rec["power_state"]),
        source={"pool": op.pool_name, "vm_uuid": rec["uuid"]},
        destination={"pool": op.data["there"], "host": str(dest.host or "")},
        halted_at=op.data.get("halted_at", 0.0),
        disks=[disk["target"] for disk in op.data["disks"] if disk.get("sent")],
    )


# -- name and mark


def give_back(op: Op, pool: Session, pools: Pools, settings: Settings) -> None:
    """Give the VM its name back and take the marks off; then remove what was made at the destination."""
    if "entered" not in op.data:
        return
    rec = op.data["vm"]
    try:
        if vm_power.get(pool, rec["ref"])["name_label"] != rec["name"]:
            vm.set_name_label(pool, rec["ref"], rec["name"])
        vm_power.remove_from_other_config(pool, rec["ref"], MIGRATION_KEY)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
    end_exports(op, pool)
    discard_targets(op, pools(op.data["there"]), settings)


@step(undo=give_back)
def mark_source(op: Op, pool: Session) -> None:
    """Say on the VM that it is about to move, and call it `<name>-orig`: so every recovery finds it the same."""
    if "entered" not in op.data:
        op.remember(entered=host.servertime(pool, op.data["master"]))
    rec = op.data["vm"]
    vm_power.add_to_other_config(pool, rec["ref"], MIGRATION_KEY, str(mark_of(op, MOVING, op.data["entered"])))
    vm.set_name_label(pool, rec["ref"], left_name(rec["name"]))


# -- power


def power_on_again(op: Op, pool: Session) -> None:
    """Let the VM be started again, and start it if it ran. Its disks are free when they are copied no more."""
    if "power_before" not in op.data:
        return
    end_copies(op, pool)
    was_asked = _CLEAN in op.data.get("begun", {})
    if was_asked:
        xapi_task.cancel(pool, op.data["begun"][_CLEAN])
    try:
        rec = power.look(op, pool)
    except InstanceNotFound:
        return
    if was_asked and rec["power_state"] == "Running" and op.waited_s < _SECOND_THOUGHTS_S:
        raise Wait(
            "the guest may still do what it was asked for, and shut down",
            until=[Until("vm", rec["ref"], "power_state", ["Running"])],
            check_every_s=_SECOND_THOUGHTS_S,
            deadline_s=10 * _SECOND_THOUGHTS_S,
        )
    power.drop(op, pool, _CLEAN)
    locks = locks_of(rec, op.id)
    if locks:
        vm_power.unblock(pool, rec["ref"], locks)
    if op.data["power_before"] == "Running" and rec["power_state"] == "Halted":
        unlocked = {key: text for key, text in rec["blocked_operations"].items() if key not in locks}
        hosts = [rec_host] if (rec_host := op.data["vm"]["resident_on"]) != power.NULL else []
        power.start_again(op, pool, {**rec, "blocked_operations": unlocked}, hosts)


@step(undo=power_on_again)
def power_off(op: Op, pool: Session) -> None:
    """Halt the guest, asking it first, and forbid it to be started: from now on its disks stay as they are."""
    request = op.request(MigrateRequest)
    rec = power.look(op, pool)
    if "power_before" not in op.data:
        if rec["power_state"] not in {"Running", "Halted"}:
            raise power.refuse_state(rec, "resized", "resume or unpause it, or power it off first")
        op.remember(power_before=rec["power_state"])
    ours = locks_of(rec, op.id)
    if len(ours) < len(LOCKS):
        power.assert_unlocked(rec, *(key for key in LOCKS if key not in ours))  # somebody's lock is not ours to replace
        vm_power.block(pool, rec["ref"], LOCKS, lock_text(op.id))
    if rec["power_state"] == "Running" and request.clean_timeout_s is not None:
        begin = partial(vm_power.begin_clean_shutdown, pool, rec["ref"])
        outcome = power.ask(op, pool, _CLEAN, begin, patience_s=request.clean_timeout_s)
        rec = power.look(op, pool)
        if rec["power_state"] != "Halted":
            why = "in time" if outcome is None else f"({outcome.error.code if outcome.error else outcome.status})"
            if not request.force:
                raise GuestUnable(
                    f"{power.title(rec)} has not shut down {why}: look into the guest, give it more time, or submit "
                    "with force=true."
                )
            op.note(f"the guest has not shut down {why}: its power is cut")
    if rec["power_state"] != "Halted":
        power.halt(pool, rec)
        power.drop(op, pool, _CLEAN)
    if "halted_at" not in op.data:
        op.remember(halted_at=time.time())


def assert_halted(op: Op, pool: Session) -> power.Rec:
    """Return the VM as it is now. Raises WrongPowerState when somebody has started the VM, against our lock."""
    rec = power.look(op, pool)
    if rec["power_state"] != "Halted":
        raise WrongPowerState(f"{power.title(rec)} was started by somebody while its disks were moved: submit again.")
    return rec


# -- the end


def take_marks_off_disks(op: Op, pool: Session) -> None:
    """Take off the marks that say that the disks have been carried over."""
    if not op.data.get("handing_over"):
        return
    for disk in op.data["disks"]:
        try:
            vdi.remove_from_other_config(pool, disk["vdi_ref"], CARRIED)
        except XenAPIFailure as error:
            if kind_of(error) is not Kind.GONE:
                raise


@step(undo=take_marks_off_disks)
def hand_over(op: Op, pool: Session, pools: Pools) -> None:
    """Look once more at both sides, and say on the VM that its disks are at the destination."""
    _check_targets(op, pools(op.data["there"]))
    op.remember(handing_over=True)
    for disk in op.data["disks"]:
        vdi.add_to_other_config(pool, disk["vdi_ref"], CARRIED, op.id)
    rec = op.data["vm"]
    if len(locks_of(assert_halted(op, pool), op.id)) < len(LOCKS):  # XAPI has lost its last minutes
        vm_power.block(pool, rec["ref"], LOCKS, lock_text(op.id))
    mark = mark_of(op, MOVED, host.servertime(pool, op.data["master"]))
    vm_power.add_to_other_config(pool, rec["ref"], MIGRATION_KEY, str(mark))
    vm.set_name_label(pool, rec["ref"], left_name(rec["name"]))
    op.set_result(
        migration={"pool": op.pool_name, "vm_uuid": rec["uuid"], "id": op.id},
        pool=op.data["there"],
        disks=[
            {**disk["target"], "transport": disk["transport"], "bytes": disk.get("bytes", {})}
            for disk in op.data["disks"]
        ],
        not_carried=op.data["volumes"],
        missing_networks=op.data.get("missing_networks", []),
        power_before=mark.power,
    )


def _check_targets(op: Op, there: Session) -> None:
    records = event.records(there, [f"VDI/{disk['target']['vdi_ref']}" for disk in op.data["disks"]])
    lost = [disk for disk in op.data["disks"] if ("vdi", disk["target"]["vdi_ref"]) not in records]
    if lost:
        begin_anew(op, lost, "a disk at the destination has vanished: XAPI lost its last minutes")
