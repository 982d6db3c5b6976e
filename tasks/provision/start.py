"""Last step of a build: start the VM on the host that was asked for, or else on any that can, and say what was made."""

from __future__ import annotations

from functools import partial

from tasks.parts.calls import carry_out, ended
from tasks.parts.lost import await_lost, intend, redone_from, was_intended
from tasks.provision.check import NULL
from tasks.provision.request import BuildRequest
from worker.errors import InsufficientFreeMemory, NoValidHost, XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.retry import Kind, kind_of
from worker.xenapi import event, vm_power
from worker.xenapi.session import Session

_CALLS = {False: "Async.VM.start", True: "Async.VM.start_on"}
_STARTED = {"running", "paused"}
#: Reasons of one host, which another may not have (xapi.md 5.2).
_REASONS_OF_A_HOST = ("HOST_", "VM_REQUIRES_", "VM_HOST_", "VM_INCOMPATIBLE_")
#: Begun calls bear the names under which `carry_out` remembers them.
_NAMES = {False: "start anywhere", True: "start there"}


def stop_vm(op: Op, pool: Session) -> None:
    """Shut the VM down the hard way, also one that a call on its way is about to start. Raises Wait."""
    for is_there, call in _CALLS.items():
        task_ref = op.data.get("begun", {}).get(_NAMES[is_there])
        if task_ref:
            ended(pool, task_ref, "the pool is starting the VM")
        elif was_intended(op, call):
            await_lost(op, pool, call)
    if not any(was_intended(op, call) for call in _CALLS.values()):
        return
    try:
        vm_power.hard_shutdown(pool, op.data["vm"]["ref"])
    except XenAPIFailure as error:
        if vm_power.actual_state(error) != "halted" and kind_of(error) is not Kind.GONE:
            raise


@step(undo=stop_vm, weight=5)
def start_vm(op: Op, pool: Session) -> None:
    """Start the VM unless it shall stay halted; the result tells uuid, power state, host and disks."""
    plan = op.data["plan"]
    with redone_from("make_root_disk"):
        if op.request(BuildRequest).start != "no":
            there = None if plan["affinity"] == NULL or op.data.get("start_anywhere") else plan["affinity"]
            is_started = there is not None and _start(op, pool, there)
            if not is_started and plan.get("is_pinned"):
                raise NoValidHost(
                    f"VM {plan['name']!r} may start on one host only, for its security groups, and cannot."
                )
            if not is_started:
                op.remember(start_anywhere=True)
                _start(op, pool, None)
        _report(op, pool)


def _start(op: Op, pool: Session, host_ref: str | None) -> bool:
    """Start the VM; tell whether it is. False: that host cannot, but another might.

    Raises InsufficientFreeMemory and NoValidHost at once: whoever chose the pool may choose another.
    """
    is_there = host_ref is not None
    name = op.data["plan"]["name"]
    paused = op.request(BuildRequest).start == "paused"
    intend(op, _CALLS[is_there])
    vm_ref = op.data["vm"]["ref"]
    if host_ref is None:
        begin = partial(vm_power.begin_start, pool, vm_ref, paused=paused)
    else:
        begin = partial(vm_power.begin_start_on, pool, vm_ref, host_ref, paused=paused)
    try:
        carry_out(op, pool, _NAMES[is_there], begin, "the pool is starting the VM")
    except XenAPIFailure as error:
        if vm_power.actual_state(error) in _STARTED:
            return True  # by an earlier call whose answer was lost
        if is_there and error.code.startswith(_REASONS_OF_A_HOST):
            op.note(f"the host that was asked for cannot start the VM ({error}): any other may")
            return False
        if error.code in {"HOST_NOT_ENOUGH_FREE_MEMORY", "VMS_FAILED_TO_COOPERATE"}:
            raise InsufficientFreeMemory(
                f"No host has the memory for VM {name!r} any more ({error}): choose another pool, or free some."
            ) from error
        if error.code == "NO_HOSTS_AVAILABLE":
            raise NoValidHost(
                f"No host of pool {pool.pool_name!r} can start VM {name!r}: look at which hosts are enabled, and "
                "at their storage and networks."
            ) from error
        raise
    return True


def _report(op: Op, pool: Session) -> None:
    vm_ref = op.data["vm"]["ref"]
    disks = op.data["disks"]
    records = event.records(pool, [f"VM/{vm_ref}", *(f"VDI/{disk['vdi_ref']}" for disk in disks), "host"])
    vm_rec = records.get(("vm", vm_ref))
    vdi_recs = {ref: rec for (cls, ref), rec in records.items() if cls == "vdi"}
    if vm_rec is None or len(vdi_recs) < len(disks):
        raise XenAPIFailure(["HANDLE_INVALID", "VM" if vm_rec is None else "VDI", vm_ref])
    made = [
        {
            "role": disk["role"],
            "userdevice": disk["userdevice"],
            "vdi_uuid": vdi_recs[disk["vdi_ref"]]["uuid"],
            "size": int(vdi_recs[disk["vdi_ref"]]["virtual_size"]),
        }
        for disk in disks
    ]
    op.remember(vm={"ref": vm_ref, "uuid": vm_rec["uuid"]})
    op.set_result(
        vm_uuid=vm_rec["uuid"],
        name=vm_rec["name_label"],
        power_state=vm_rec["power_state"],
        host=records.get(("host", vm_rec["resident_on"]), {}).get("uuid"),
        root_disk={"vdi_uuid": made[0]["vdi_uuid"], "size": made[0]["size"]},
        disks=made,
    )
