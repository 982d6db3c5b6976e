"""First to third step: the VMs of the instance, halted and removed. Disks stay until the last step."""

from __future__ import annotations

from functools import partial
from typing import Any

from tasks.destroy.request import DestroyRequest
from tasks.parts import disks, kernels, power
from tasks.parts.instances import hold_of, instance_uuid
from tasks.parts.migrated import refuse_migrating
from worker.errors import RequestError
from worker.network.desired import groups_of
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import vbd, vm, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import Found


@step
def find_vms(op: Op, pool: Session) -> None:
    """Find the VM, its rescue VM and what they have attached; have the instance to oneself. Changes nothing."""
    request = op.request(DestroyRequest)
    named, rescuers = vm.family(pool, **request.instance.model_dump(mode="json"))
    found = [*rescuers, *named]
    _hold(op, request, found)
    for one in named:
        if vm.is_rescue_vm(one.rec) and instance_uuid(one.rec):
            raise RequestError(
                f"VM {one.rec['name_label']!r} is the rescue VM of instance {instance_uuid(one.rec)}: "
                "unrescue the instance, or destroy it by its uuid."
            )
    for one in found:
        refuse_migrating(one.rec, "destroyed")
        rec = {"ref": one.ref, **one.rec}
        power.assert_unlocked(rec, "destroy")
        if rec["power_state"] != "Halted":
            power.assert_unlocked(rec, "hard_shutdown")
    if not found:
        op.note("there is no such VM: looking for disks it may have left" if request.instance.uuid else "no such VM")
    uuids = [instance_uuid(one.rec) for one in found] + [request.instance.uuid and str(request.instance.uuid)]
    op.remember(
        instance=next((uuid.lower() for uuid in uuids if uuid), None),
        vms=[_facts(one) for one in found],
        kernel_paths=kernels.paths_of(one.rec for one in found),
        disks=disks.attached(vbd.of_vms(pool, [one.ref for one in found]).values()),
    )


def _hold(op: Op, request: DestroyRequest, found: list[Found]) -> None:
    """Have the instance to oneself; for one that is not there (yet), its uuid or name, which a spawn holds."""
    holds = dict.fromkeys(hold_of(one.rec) for one in found)
    if not found and request.instance.uuid:
        holds = {f"instance:{request.instance.uuid}": None}
    elif not found and request.instance.name:
        holds = {f"name:{request.instance.name}": None}
    for hold in holds:
        # Who has the name already does not wait for the instance: a spawn takes them in the other order.
        has_name = any(held.startswith("name:") for held in op.record.holds)
        op.hold(hold, queue=request.on_conflict == "wait" and not has_name)


def _facts(found: Found) -> dict[str, Any]:
    names = ("uuid", "name_label", "power_state", "blocked_operations")
    return {"ref": found.ref, "is_filtered": bool(groups_of(found.rec)), **{name: found.rec[name] for name in names}}


@step
def shut_down(op: Op, pool: Session) -> None:
    """Halt the VMs, after asking their guests if the request says so."""
    timeout_s = op.request(DestroyRequest).clean_timeout_s
    for rec in op.data["vms"]:
        if rec["power_state"] == "Halted":
            continue
        if timeout_s is not None and rec["power_state"] == "Running":
            name = f"clean shutdown of {rec['uuid']}"
            begin = partial(vm_power.begin_clean_shutdown, pool, rec["ref"])
            power.ask(op, pool, name, begin, patience_s=timeout_s)
            power.halt(pool, rec)
            power.drop(op, pool, name)
        else:
            power.halt(pool, rec)


@step
def remove_vms(op: Op, pool: Session) -> None:
    """Remove the records, the rescue VM's first. VBDs and VIFs go with them; one that is gone is no error."""
    for rec in op.data["vms"]:
        power.remove(pool, rec)
    op.set_result(vms=[rec["uuid"] for rec in op.data["vms"]])
