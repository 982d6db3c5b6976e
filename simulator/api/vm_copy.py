"""Making and unmaking VMs: create, destroy, clone, copy, snapshot, provision (xapi.md 6.1, 6.2; records observed)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simulator.api import device_rules, vdi, vm_rules
from simulator.api.blob import drop_blob
from simulator.api.registry import Context, call
from simulator.api.vm_metadata import metadata_of
from simulator.api.vm_power import on_vm
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.core.ids import mac_address
from simulator.model.types import EPOCH, NULL

_OVERHEAD = 5 << 20
_OVERHEAD_PER_VCPU = 1 << 20
#: Fields that a copy of a VM does not take over.
_FRESH: dict[str, Any] = {
    "allowed_operations": [],
    "current_operations": {},
    "power_state": "Halted",
    "resident_on": NULL,
    "scheduled_to_be_resident_on": NULL,
    "suspend_VDI": NULL,
    "domid": -1,
    "appliance": NULL,
    "suspend_SR": NULL,
    "start_delay": 0,
    "shutdown_delay": 0,
    "order": 0,
    "version": 0,
    "protection_policy": NULL,
    "ha_always_run": False,
    "is_default_template": False,
    "blocked_operations": {},
    "consoles": [],
    "VIFs": [],
    "VBDs": [],
    "VUSBs": [],
    "VGPUs": [],
    "VTPMs": [],
    "blobs": {},
    "crash_dumps": [],
    "attached_PCIs": [],
    "snapshots": [],
    "children": [],
    "parent": NULL,
    "snapshot_metadata": "",
    "snapshot_info": {},
    "requires_reboot": False,
}
_DROPPED_KEYS = ("default_template", "xensource_internal")


def memory_overhead(vm: dict[str, Any]) -> int:
    """Return the toolstack's own memory for a VM (5 MiB for one VCPU and 256 MiB, as observed).

    The part that is shadow memory, a MiB for each VCPU, grows with HVM_shadow_multiplier.
    """
    vcpus = int(vm["VCPUs_max"])
    more = max(0.0, float(vm.get("HVM_shadow_multiplier", 1.0)) - 1.0)
    return _OVERHEAD + (vcpus - 1) * _OVERHEAD_PER_VCPU + math.ceil(more * vcpus) * _OVERHEAD_PER_VCPU


@call("VM.create", "record:VM", returns="@VM")
def create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a halted VM; memory and VCPUs are not checked before it starts. Raises VM_BAD_POWER_STATE."""
    with ctx.db:
        if record.get("power_state", "Halted") != "Halted" and record.get("suspend_VDI", NULL) == NULL:
            raise Failure("VM_BAD_POWER_STATE", NULL, "halted", record["power_state"].lower())
        return make_vm(ctx, record).ref


def make_vm(ctx: Context, record: dict[str, Any]) -> Row:
    """Make a VM's record and its metrics; the database is locked."""
    pool, db = ctx.pool, ctx.db
    metrics = db.create("VM_metrics", pool.ids.ref(), {"uuid": pool.ids.uuid(), "current_domain_type": "unspecified"})
    other_config = record["other_config"]
    kind = record.get("domain_type", "unspecified")
    values: dict[str, Any] = record | {
        "uuid": pool.ids.uuid(),
        "power_state": record.get("power_state", "Halted"),
        "domid": -1,
        "metrics": metrics.ref,
        "other_config": other_config if "mac_seed" in other_config else other_config | {"mac_seed": pool.ids.uuid()},
        "domain_type": kind if kind != "unspecified" else ("hvm" if record["HVM_boot_policy"] else "pv"),
        "memory_overhead": memory_overhead(record),
        "hardware_platform_version": max(2, record.get("hardware_platform_version", 0)),
        "has_vendor_device": record.get("has_vendor_device", True),
        "blocked_operations": {},
        "protection_policy": NULL,
        "snapshot_schedule": NULL,
        "is_vmss_snapshot": False,
        "snapshot_time": EPOCH,
    }
    vm = db.create("VM", pool.ids.ref(), values)
    vm_rules.refresh(db, vm)
    return vm


@call("VM.destroy", "&VM")
def destroy(ctx: Context, vm: Row) -> None:
    """Remove a VM with its devices and metrics; its disks and snapshots stay."""
    with on_vm(ctx, vm, "destroy"), ctx.db:
        remove(ctx, vm)


def remove(ctx: Context, vm: Row) -> None:
    """Delete a VM's record with those of its devices and metrics, and every pointer to it; the database is locked."""
    db = ctx.db
    for child in db.linked(vm, "children", "VM"):
        db.put(child, parent=vm["parent"])
    for snapshot in db.linked(vm, "snapshots", "VM"):
        db.put(snapshot, snapshot_of=NULL)
    for device in [
        *db.linked(vm, "VBDs", "VBD"),
        *db.linked(vm, "VIFs", "VIF"),
        *db.linked(vm, "consoles", "console"),
    ]:
        drop_device(ctx, device)
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        row = db.find(cls, vm[field])
        if row is not None:
            db.delete(row)
    for cls, field in (("VTPM", "VTPMs"), ("VUSB", "VUSBs"), ("VGPU", "VGPUs")):
        for one in db.linked(vm, field, cls):
            db.delete(one)
    for ref in vm["blobs"].values():
        blob = db.find("blob", ref)
        if blob is not None:
            drop_blob(ctx.pool, blob)
    db.note(f"guest/{vm['uuid']}", None)
    ctx.pool.agents.forget(vm)
    ctx.pool.guest_sockets.forget(vm)
    db.delete(vm)


def fresh() -> dict[str, Any]:
    """Return the fields that a VM made from another's record begins with."""
    return {name: value.copy() if isinstance(value, list | dict) else value for name, value in _FRESH.items()}


def drop_device(ctx: Context, device: Row) -> None:
    """Remove a VBD, VIF or console with its metrics; the database is locked."""
    db = ctx.db
    metrics = db.find(f"{device.cls}_metrics", device["metrics"]) if "metrics" in device.values else None
    if metrics is not None:
        db.delete(metrics)
    vdi_row = db.find("VDI", device["VDI"]) if device.cls == "VBD" else None
    db.delete(device)
    if vdi_row is not None:
        device_rules.refresh_vdi(db, vdi_row)


# -- copies of VMs

DiskMaker = Callable[[Context, Row], Row]


def snapshot_disk(ctx: Context, disk: Row) -> Row:
    """Snapshot one disk of a VM; tags are lost (observed)."""
    with vdi.on_sr(ctx, ctx.db.row("SR", disk["SR"]), "vdi_snapshot"), vdi.on_vdi(ctx, disk, "snapshot"):
        ctx.pool.clock.wait(ctx.pool.snapshot_s)
        return vdi.branch(ctx, disk, "snapshot")


def clone_disk(ctx: Context, disk: Row) -> Row:
    """Clone one disk of a VM."""
    with vdi.on_sr(ctx, ctx.db.row("SR", disk["SR"]), "vdi_clone"), vdi.on_vdi(ctx, disk, "clone"):
        return vdi.branch(ctx, disk, "clone")


def disk_vbds(ctx: Context, vm: Row, ignored: list[str]) -> list[Row]:
    """Return the VBDs whose disks are copied with the VM."""
    vbds = ctx.db.linked(vm, "VBDs", "VBD")
    return [vbd for vbd in vbds if vbd["type"] == "Disk" and not vbd["empty"] and vbd["VDI"] not in ignored]


def copy_disks(ctx: Context, vm: Row, make: DiskMaker, label: str, ignored: list[str]) -> dict[str, str]:
    """Copy the disks of a VM, each in a task of its own; return new disk by old one. Undone on failure."""
    made: dict[str, str] = {}
    refs = dict.fromkeys(vbd["VDI"] for vbd in disk_vbds(ctx, vm, ignored))
    for number, disk_ref in enumerate(refs):
        disk = ctx.db.row("VDI", disk_ref)
        parent = ctx.task.ref if ctx.task is not None else NULL
        task = ctx.pool.tasks.create(f"Async.{label}", ctx.session, subtask_of=parent)
        try:
            made[disk.ref] = make(Context(ctx.pool, label, ctx.session, task), disk).ref
            ctx.progress((number + 1) / len(refs))
        except Failure:
            for ref in made.values():
                vdi.discard(ctx, ctx.db.row("VDI", ref))
            raise
        finally:
            ctx.pool.tasks.discard(task)
    return made


def _copy_metrics(ctx: Context, vm: Row) -> dict[str, str]:
    refs = {}
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        row = ctx.db.find(cls, vm[field])
        if row is not None:
            refs[field] = ctx.db.create(cls, ctx.pool.ids.ref(), row.values | {"uuid": ctx.pool.ids.uuid()}).ref
    return {"metrics": NULL, "guest_metrics": NULL} | refs


def copy_record(ctx: Context, vm: Row, disks: dict[str, str], fields: dict[str, Any], *, new_macs: bool) -> Row:
    """Make the record of a VM's copy, with its devices; the database is locked."""
    db, pool = ctx.db, ctx.pool
    other_config = {key: value for key, value in vm["other_config"].items() if key not in _DROPPED_KEYS}
    if new_macs:
        other_config["mac_seed"] = pool.ids.uuid()
        if vm["is_a_template"]:
            other_config.setdefault("base_template_name", vm["name_label"])
    values = vm.values | _FRESH | _copy_metrics(ctx, vm)
    values |= {"uuid": pool.ids.uuid(), "generation_id": pool.ids.generation_id(), "other_config": other_config}
    copy = db.create("VM", pool.ids.ref(), values | fields)
    for vbd in db.linked(vm, "VBDs", "VBD"):
        if vbd["VDI"] in disks or vbd["type"] != "Disk":
            copy_vbd(ctx, vbd, copy, disks.get(vbd["VDI"], vbd["VDI"]))
    for vif in db.linked(vm, "VIFs", "VIF"):
        copy_vif(ctx, vif, copy, new_mac=new_macs)
    vm_rules.refresh(db, copy)
    return copy


def copy_vbd(ctx: Context, vbd: Row, vm: Row, vdi_ref: str) -> Row:
    """Make a copy of a VBD for another VM; disks are marked as owned (observed)."""
    owner = {"owner": ""} if vbd["type"] == "Disk" else {}
    values = vbd.values | {
        "uuid": ctx.pool.ids.uuid(),
        "VM": vm.ref,
        "VDI": vdi_ref,
        "currently_attached": False,
        "allowed_operations": [],
        "current_operations": {},
        "other_config": owner | vbd["other_config"],
        "metrics": ctx.db.create("VBD_metrics", ctx.pool.ids.ref(), {"uuid": ctx.pool.ids.uuid()}).ref,
    }
    return ctx.db.create("VBD", ctx.pool.ids.ref(), values)


def copy_vif(ctx: Context, vif: Row, vm: Row, *, new_mac: bool) -> Row:
    """Make a copy of a VIF for another VM."""
    values = vif.values | {
        "uuid": ctx.pool.ids.uuid(),
        "VM": vm.ref,
        "currently_attached": False,
        "allowed_operations": ["attach"],
        "current_operations": {},
        "MAC_autogenerated": new_mac,
        "metrics": ctx.db.create("VIF_metrics", ctx.pool.ids.ref(), {"uuid": ctx.pool.ids.uuid()}).ref,
    }
    if new_mac:
        values["MAC"] = mac_address(vm["other_config"]["mac_seed"], int(vif["device"]))
    return ctx.db.create("VIF", ctx.pool.ids.ref(), values)


_PLAIN = {"is_a_snapshot": False, "snapshot_of": NULL, "snapshot_time": EPOCH, "parent": NULL}


@call("VM.clone", "&VM", "string", returns="@VM")
def clone(ctx: Context, vm: Row, label: str) -> str:
    """Make a VM on clones of the disks."""
    with on_vm(ctx, vm, "clone"):
        disks = copy_disks(ctx, vm, clone_disk, "VDI.clone", [])
        with ctx.db:
            return copy_record(ctx, vm, disks, _PLAIN | {"name_label": label}, new_macs=True).ref


@call("VM.copy", "&VM", "string", "@SR", returns="@VM")
def copy(ctx: Context, vm: Row, label: str, sr_ref: str) -> str:
    """Make a VM on full copies of the disks, in the given repository or in their own."""
    with on_vm(ctx, vm, "copy"):
        disks = copy_disks(ctx, vm, lambda sub, disk: _copied(sub, disk, sr_ref), "VDI.copy", [])
        with ctx.db:
            return copy_record(ctx, vm, disks, _PLAIN | {"name_label": label}, new_macs=True).ref


def _copied(ctx: Context, disk: Row, sr_ref: str) -> Row:
    return ctx.db.row("VDI", vdi.copy(ctx, disk, sr_ref, None, None))


def snapshot_record(ctx: Context, vm: Row, disks: dict[str, str], fields: dict[str, Any]) -> Row:
    """Make the record of a snapshot: it becomes the VM's parent; the database is locked."""
    state = {"power-state-at-snapshot": vm["power_state"], "disk-snapshot-type": "crash_consistent"}
    values = {
        "is_a_snapshot": True,
        "is_a_template": True,
        "snapshot_of": vm.ref,
        "snapshot_time": ctx.pool.clock.stamp(),
        "snapshot_info": state,
        "snapshot_metadata": metadata_of(vm),
        "parent": vm["parent"],
    }
    row = copy_record(ctx, vm, disks, values | fields, new_macs=False)
    ctx.db.put(vm, parent=row.ref)
    return row


@call("VM.snapshot", "&VM", "string", "@VDI*?", returns="@VM")
def snapshot(ctx: Context, vm: Row, label: str, ignored: list[str] | None) -> str:
    """Snapshot every disk of a VM, whatever its power state; the new record appears when all disks exist."""
    with on_vm(ctx, vm, "snapshot"):
        disks = copy_disks(ctx, vm, snapshot_disk, "VDI.snapshot", ignored or [])
        with ctx.db:
            return snapshot_record(ctx, vm, disks, {"name_label": label}).ref


@call("VM.provision", "&VM")
def provision(ctx: Context, vm: Row) -> None:
    """Turn a copy of a template into a VM."""
    with on_vm(ctx, vm, "provision"), ctx.db as db:
        keys = ("disks", "postinstall")
        other_config = {key: value for key, value in vm["other_config"].items() if key not in keys}
        db.put(vm, is_a_template=False, other_config=other_config)
        vm_rules.refresh(db, vm)
