"""The steps that take interfaces from a VM."""

from __future__ import annotations

from typing import Any

from tasks.network.request import UnplugVifsRequest
from tasks.parts.instances import take
from tasks.parts.power import refuse_state
from worker.errors import GuestUnable, XenAPIFailure
from worker.operations.definition import step
from worker.operations.op import Op
from worker.retry import Kind, kind_of
from worker.xenapi import event, vif, vm_power
from worker.xenapi.session import Session


@step
def find_vifs(op: Op, pool: Session) -> None:
    """Find the VM and those of the interfaces that it has; one that it does not have is no error. Changes nothing."""
    found = take(op, pool)
    records = event.records(pool, [f"VIF/{ref}" for ref in found.rec["VIFs"]]) if found.rec["VIFs"] else {}
    wanted = set(op.request(UnplugVifsRequest).macs)
    doomed = [
        {"ref": ref, "uuid": rec["uuid"], "mac": rec["MAC"].lower(), "is_attached": rec["currently_attached"]}
        for (cls, ref), rec in records.items()
        if cls == "vif" and rec["MAC"].lower() in wanted
    ]
    attached = [one for one in doomed if one["is_attached"]]
    if attached and found.rec["power_state"] != "Running":
        raise refuse_state(found.rec, "parted from its interface", "resume or unpause it first, or power it off")
    op.remember(name=found.rec["name_label"], doomed=doomed)
    op.set_result(vm_uuid=found.rec["uuid"])


def plug_back(op: Op, pool: Session) -> None:
    """Plug the interfaces again that were plugged, as far as they are there and the VM runs."""
    for one in _attached(op):
        try:
            vif.plug(pool, one["ref"])
        except XenAPIFailure as error:
            if kind_of(error) is not Kind.GONE and not vm_power.actual_state(error):
                raise


@step(undo=plug_back)
def unplug(op: Op, pool: Session) -> None:
    """Detach the interfaces from the running guest. Raises GuestUnable when it has no drivers for that."""
    for one in _attached(op):
        try:
            vif.unplug(pool, one["ref"])
        except XenAPIFailure as error:
            if error.code == "VM_MISSING_PV_DRIVERS":
                raise GuestUnable(
                    f"The guest of VM {op.data['name']!r} has no PV drivers and does not let interface {one['mac']} "
                    "go while it runs: power it off first."
                ) from error
            if kind_of(error) is not Kind.GONE and vm_power.actual_state(error) != "halted":
                raise


@step
def remove(op: Op, pool: Session) -> None:
    """Remove the interfaces; one that is gone is no error."""
    for one in op.data["doomed"]:
        try:
            vif.destroy(pool, one["ref"])
        except XenAPIFailure as error:
            if kind_of(error) is not Kind.GONE:
                raise
    op.set_result(removed=[{"mac": one["mac"], "vif_uuid": one["uuid"]} for one in op.data["doomed"]])


def _attached(op: Op) -> list[dict[str, Any]]:
    return [one for one in op.data["doomed"] if one["is_attached"]]
