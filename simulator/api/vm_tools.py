"""VM.*: the smaller calls about services, recovery and device models; SR.probe (xapi.md 7.1)."""

from __future__ import annotations

from typing import Any

from simulator.api import vm_rules
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure


@call("VM.send_sysrq", "&VM", "string")
def send_sysrq(ctx: Context, vm: Row, key: str) -> None:
    """Refuse, as XAPI does, once it is clear that the VM runs."""
    del key
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "send_sysrq")
    raise Failure("NOT_IMPLEMENTED", "send_sysrq")


@call("VM.send_trigger", "&VM", "string")
def send_trigger(ctx: Context, vm: Row, trigger: str) -> None:
    """Refuse, as XAPI does, once it is clear that the VM runs."""
    del trigger
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "send_trigger")
    raise Failure("NOT_IMPLEMENTED", "send_trigger")


@call("VM.query_services", "&VM", returns="string->string")
def query_services(ctx: Context, vm: Row) -> dict[str, str]:
    """Return what a driver domain offers: an ordinary VM offers nothing."""
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "query_services")
    return {}


@call("VM.restart_device_models", "&VM")
def restart_device_models(ctx: Context, vm: Row) -> None:
    """Give a running VM a new device model; nobody notices. Raises VM_BAD_POWER_STATE, VM_LACKS_FEATURE."""
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "pool_migrate")


# -- recovery from a copy of the database


def _srs_of(ctx: Context, vms: list[Row]) -> list[Row]:
    db = ctx.db
    found: dict[str, Row] = {}
    for vm in vms:
        for vbd in db.linked(vm, "VBDs", "VBD"):
            vdi = db.find("VDI", vbd["VDI"])
            sr = db.find("SR", vdi["SR"]) if vdi is not None and vbd["type"] == "Disk" else None
            if sr is not None:
                found[sr.ref] = sr
    return list(found.values())


def _missing(ctx: Context, vms: list[Row]) -> list[Row]:
    """Return the repositories of the VMs' disks that no host has plugged."""
    return [
        sr for sr in _srs_of(ctx, vms) if not any(pbd["currently_attached"] for pbd in ctx.db.linked(sr, "PBDs", "PBD"))
    ]


def _assert_recoverable(ctx: Context, vms: list[Row]) -> None:
    for vm in vms:
        for sr in _missing(ctx, [vm]):
            raise Failure("VM_REQUIRES_SR", vm.ref, sr.ref)


@call("VM.assert_can_be_recovered", "&VM", "@session")
def vm_assert_can_be_recovered(ctx: Context, vm: Row, session_ref: str) -> None:
    """Raise VM_IS_PART_OF_AN_APPLIANCE, or VM_REQUIRES_SR for a repository that is not plugged."""
    with ctx.db as db:
        db.row("session", session_ref)
        appliance = db.find("VM_appliance", vm["appliance"])
        if appliance is not None:
            raise Failure("VM_IS_PART_OF_AN_APPLIANCE", vm.ref, appliance.ref)
        _assert_recoverable(ctx, [vm])


@call("VM.get_SRs_required_for_recovery", "&VM", "@session", returns="@SR*")
def vm_get_srs_required_for_recovery(ctx: Context, vm: Row, session_ref: str) -> list[str]:
    """Return the repositories that would have to be plugged."""
    with ctx.db as db:
        db.row("session", session_ref)
        return [sr.ref for sr in _missing(ctx, [vm])]


@call("VM_appliance.assert_can_be_recovered", "&VM_appliance", "@session")
def appliance_assert_can_be_recovered(ctx: Context, appliance: Row, session_ref: str) -> None:
    """Raise VM_REQUIRES_SR for a repository that is not plugged."""
    with ctx.db as db:
        db.row("session", session_ref)
        _assert_recoverable(ctx, db.linked(appliance, "VMs", "VM"))


@call("VM_appliance.get_SRs_required_for_recovery", "&VM_appliance", "@session", returns="@SR*")
def appliance_get_srs_required_for_recovery(ctx: Context, appliance: Row, session_ref: str) -> list[str]:
    """Return the repositories that would have to be plugged."""
    with ctx.db as db:
        db.row("session", session_ref)
        return [sr.ref for sr in _missing(ctx, db.linked(appliance, "VMs", "VM"))]


# -- what the pool has no licence or software for


@call("Cluster.create", "@PIF", "string", "bool", "float", "float", returns="@Cluster")
@call("Cluster.pool_create", "@network", "string", "float", "float", returns="@Cluster")
def cluster_create(ctx: Context, *arguments: Any) -> str:
    """Refuse with LICENCE_RESTRICTION: clustering is not part of this edition."""
    del ctx, arguments
    raise Failure("LICENCE_RESTRICTION", "Corosync")


@call("DR_task.create", "string", "string->string", "string*", returns="@DR_task")
def dr_task_create(ctx: Context, kind: str, *arguments: Any) -> str:
    """Refuse with OPERATION_NOT_ALLOWED: no driver keeps a copy of the database."""
    del ctx, arguments
    raise Failure("OPERATION_NOT_ALLOWED", f"Disaster recovery not supported on SRs of type {kind}")
