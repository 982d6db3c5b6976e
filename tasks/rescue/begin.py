"""What a rescue does to the instance's own VM: find it and its disks, halt it, lock it, and say so on it.

`original` is that VM; `vm` is the rescue VM, as everywhere in a build.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tasks.parts import disks, power
from tasks.parts.calls import ended
from tasks.parts.entered import RESCUED, Rescued
from tasks.parts.lost import await_lost, intend
from tasks.parts.migrated import refuse_migrating
from tasks.parts.power import Rec
from tasks.parts.rescued import LOCKS, POWER_BEFORE, lock_text, locks_of
from tasks.rescue.request import RescueRequest
from worker.errors import (
    DiskNotFound,
    InstanceInRescue,
    InstanceLocked,
    InstanceNotFound,
    RequestError,
)
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.xenapi import event, host, vbd, vm, vm_power, xapi_task
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

_ASK, _CUT = "Async.VM.clean_shutdown", "VM.hard_shutdown"
_ASKING = "clean shutdown"
#: Positions on the rescue VM: its own root 0, the instance's 1, swap 2, its own CD 3 (operations.md 3.4).
_ROOT, _ROOT_IN_RESCUE, _SWAP, _FIRST_EPHEMERAL = 0, 1, 2, 4
_MOVE_CHECK_S = 60.0
_MOVE_DEADLINE_S = 6 * 3600.0


@step
def find_vm(op: Op, pool: Session) -> None:
    """Find the instance's own VM and its disks, have the instance to oneself, refuse what cannot be rescued.

    Changes nothing.
    """
    request = op.request(RescueRequest)
    instance = str(request.instance.uuid)
    op.hold(f"instance:{instance}", queue=request.on_conflict == "wait")
    named, rescuers = vm.family(pool, uuid=instance)
    found = _one(pool, request, named)
    _assert_rescuable(found, rescuers, is_asked=request.clean_timeout_s is not None)
    moves = vm_power.moves(found.rec)
    if moves:
        until = [Until("vm", found.ref, f"current_operations/{ref}", [name]) for ref, name in moves.items()]
        raise Wait("the VM is being migrated", until=until, check_every_s=_MOVE_CHECK_S, deadline_s=_MOVE_DEADLINE_S)
    attached, sr_refs = _disks(pool, found, instance)
    is_running = found.rec["power_state"] == "Running"
    op.remember(
        original=power.part_of(found),
        beside={
            "disks": attached,
            "sr_ref": sr_refs[0],
            "sr_refs": sr_refs,
            "memory": {found.rec["resident_on"]: int(found.rec["memory_dynamic_max"])} if is_running else {},
        },
    )


def _one(pool: Session, request: RescueRequest, named: list[Found]) -> Found:
    uuid, name = request.instance.uuid, request.instance.name
    if not named:
        raise InstanceNotFound(
            f"Pool {pool.pool_name!r} has no VM of instance {uuid}. Check the uuid, and that the VM is in this pool."
        )
    if named[0].rec["name_label"] != name:
        raise RequestError(f"The VM of instance {uuid} is called {named[0].rec['name_label']!r}, not {name!r}.")
    return named[0]


def _assert_rescuable(found: Found, rescuers: list[Found], *, is_asked: bool) -> None:
    refuse_migrating(found.rec, "rescued")
    rec = power.part_of(found)
    if rescuers:
        raise InstanceInRescue(
            f"{power.title(rec)} is in rescue already, with VM {rescuers[0].rec['name_label']!r}: unrescue it first."
        )
    if locks_of(rec):
        raise InstanceLocked(
            f"{power.title(rec)} is still locked by rescue {next(iter(locks_of(rec).values()))}, whose VM is gone: "
            "unrescue it first."
        )
    power.assert_unlocked(rec, "start", "start_on")
    if rec["power_state"] == "Running":
        power.assert_unlocked(rec, "hard_shutdown", *(["clean_shutdown"] if is_asked else []))
    elif rec["power_state"] != "Halted":
        advice = {"Suspended": "resume it", "Paused": "unpause it"}.get(rec["power_state"], "reset it")
        raise power.refuse_state(rec, "rescued", f"its memory would be lost; {advice}, or power it off first")


def _disks(pool: Session, found: Found, instance: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what the rescue VM shall have attached, the root disk first, and where these disks are. Two calls.

    Volumes are never attached. Raises DiskNotFound.
    """
    vbd_recs = [rec for rec in vbd.of_vm(pool, found.ref).values() if rec["type"] == "Disk" and not rec["empty"]]
    by_position = {vbd.position(rec["userdevice"]): rec for rec in vbd_recs if not disks.is_volume(rec)}
    vdi_recs = event.records(pool, [f"VDI/{rec['VDI']}" for rec in by_position.values()]) if by_position else {}
    root = by_position.get(_ROOT)
    if root is None or vdi_recs.get(("vdi", root["VDI"]), {"missing": True})["missing"]:
        raise DiskNotFound(
            f"VM {found.rec['name_label']!r} has no root disk of its own at position 0 that a rescue VM could have: "
            "there is nothing to rescue. A volume is repaired by attaching it to another VM."
        )
    made = [_attachment(root, _ROOT_IN_RESCUE, "root")]
    for position, rec in sorted(by_position.items()):
        vdi_rec = vdi_recs.get(("vdi", rec["VDI"]))
        role = disks.role_of(vdi_rec, instance) if vdi_rec and not vdi_rec["missing"] else None
        if (role == "swap" and position == _SWAP) or (role == "ephemeral" and position >= _FIRST_EPHEMERAL):
            made.append(_attachment(rec, position, role))
    sr_refs = dict.fromkeys(str(vdi_recs["vdi", disk["vdi_ref"]]["SR"]) for disk in made)
    return made, list(sr_refs)


def _attachment(vbd_rec: dict[str, Any], position: int, role: str) -> dict[str, Any]:
    return {
        "role": role,
        "userdevice": str(position),
        "vdi_ref": vbd_rec["VDI"],
        "mode": vbd_rec["mode"],
        "type": "Disk",
        "bootable": False,
    }


# -- halted


def bring_back(op: Op, pool: Session) -> None:
    """Start the VM again if it was running, once nothing is on its way that would halt it. Raises Wait."""
    if not op.data.get("stopping"):
        return
    task_ref = op.data.get("begun", {}).get(_ASKING)
    if task_ref:
        xapi_task.cancel(pool, task_ref)
        ended(pool, task_ref, "the guest was asked to shut down")
    else:
        await_lost(op, pool, _ASK)
    await_lost(op, pool, _CUT)
    rec = _now(op, pool)
    if rec is None:
        return
    before: Rec = op.data["original"]
    if before["power_state"] == "Running" and rec["power_state"] == "Halted":
        power.start(op, pool, rec, [before["resident_on"]])
    vm_power.remove_from_other_config(pool, rec["ref"], POWER_BEFORE)


@step(undo=bring_back, weight=5)
def shut_down(op: Op, pool: Session) -> None:
    """Write the power state on the VM, then halt it, after asking its guest if the request says so."""
    rec: Rec = op.data["original"]
    if not op.data.get("stopping"):
        op.remember(stopping=True)
        vm_power.add_to_other_config(pool, rec["ref"], POWER_BEFORE, rec["power_state"])
    timeout_s = op.request(RescueRequest).clean_timeout_s
    if rec["power_state"] == "Halted":
        return
    if timeout_s is not None:
        _ask(op, pool, rec, timeout_s)
    intend(op, _CUT)
    power.halt(pool, rec)
    power.drop(op, pool, _ASKING)


def _ask(op: Op, pool: Session, rec: Rec, timeout_s: float) -> None:
    """Ask the guest and wait; what comes of it is met by cutting the power, which leaves a halted VM alone."""
    if _ASKING not in op.data.get("begun", {}):
        intend(op, _ASK)
    outcome = power.ask(
        op, pool, _ASKING, partial(vm_power.begin_clean_shutdown, pool, rec["ref"]), patience_s=timeout_s
    )
    if outcome is None:
        op.note(f"the guest did not shut down within {timeout_s:g} s: its power is cut")
    elif outcome.error is not None:
        op.note(f"the guest did not shut down ({outcome.error.code}): its power is cut")


# -- locked


def unlock(op: Op, pool: Session) -> None:
    """Take this operation's locks away, no other."""
    if not op.data.get("locking"):
        return
    rec = _now(op, pool)
    if rec is not None:
        vm_power.unblock(pool, rec["ref"], [key for key, owner in locks_of(rec).items() if owner == op.id])


@step(undo=unlock)
def lock(op: Op, pool: Session) -> None:
    """Forbid every way to start the VM, and see that it is halted: somebody may have started it in between."""
    op.remember(locking=True)
    rec = power.reread(pool, op.data["original"]) if op.record.attempts.get("lock", 1) > 1 else op.data["original"]
    _lock(op, pool, rec)
    rec = power.reread(pool, rec)
    if rec["power_state"] != "Halted":
        power.halt(pool, rec)


def _lock(op: Op, pool: Session, rec: Rec) -> None:
    """Set the locks that are not there. Other people's are kept: they forbid the same."""
    free = [key for key in LOCKS if key not in rec["blocked_operations"]]
    vm_power.block(pool, rec["ref"], free, lock_text(op.id))


# -- in rescue


def unmark(op: Op, pool: Session) -> None:
    """Take the mark of an instance in rescue away."""
    rec = _now(op, pool) if op.data.get("marking") else None
    if rec is not None:
        vm_power.remove_from_other_config(pool, rec["ref"], RESCUED)


@step(undo=unmark)
def mark_rescued(op: Op, pool: Session) -> None:
    """Say on the VM since when it is in rescue. What XAPI may have forgotten of the locks and marks is set again."""
    rec = power.reread(pool, op.data["original"])
    _lock(op, pool, rec)
    if POWER_BEFORE not in rec["other_config"]:
        vm_power.add_to_other_config(pool, rec["ref"], POWER_BEFORE, op.data["original"]["power_state"])
    epoch = host.servertime(pool, op.data["plan"]["master"])
    op.remember(marking=True)
    vm_power.add_to_other_config(pool, rec["ref"], RESCUED, str(Rescued(epoch, op.id)))
    op.set_result(
        rescued={"vm_uuid": rec["uuid"], "power_state_before": op.data["original"]["power_state"], "entered": epoch}
    )


def _now(op: Op, pool: Session) -> Rec | None:
    """Return the instance's own VM as it is now, None when it is gone."""
    try:
        return power.reread(pool, op.data["original"])
    except InstanceNotFound:
        return None
