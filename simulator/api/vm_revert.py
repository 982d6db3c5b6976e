"""VM.checkpoint and VM.revert (xapi.md 9.2; observed/xapi-snapshot-diffs.txt)."""

from __future__ import annotations

import contextlib
from typing import Any

from simulator.api import device_rules, domains, vdi, vm_rules
from simulator.api.registry import Context, call
from simulator.api.vm_copy import (
    clone_disk,
    copy_disks,
    copy_record,
    copy_vbd,
    copy_vif,
    drop_device,
    snapshot_disk,
    snapshot_record,
)
from simulator.api.vm_metadata import record_of
from simulator.api.vm_power import on_vm, save_memory
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.schema import CLASSES
from simulator.model.types import EPOCH, NULL, Ref, SetOf
from simulator.model.words import words

#: Fields that a revert leaves as they are.
_KEPT = frozenset(
    words(
        """
        uuid power_state parent allowed_operations current_operations metrics guest_metrics resident_on
        scheduled_to_be_resident_on domid suspend_VDI snapshots children tags affinity VBDs VIFs consoles VUSBs VGPUs
        VTPMs snapshot_schedule attached_PCIs crash_dumps generation_id blocked_operations
        """
    )
)


@call("VM.checkpoint", "&VM", "string", returns="@VM")
def checkpoint(ctx: Context, vm: Row, label: str) -> str:
    """Snapshot disks and memory; a running VM is suspended for it and goes on afterwards."""
    with on_vm(ctx, vm, "checkpoint"):
        state = vm["power_state"]
        image = _memory_image(ctx, vm, state)
        if state == "Running":
            ctx.pool.guests.paused(vm)
            with ctx.db as db:
                db.put(vm, power_state="Suspended")
        try:
            disks = copy_disks(ctx, vm, snapshot_disk, "VDI.snapshot", [])
            with ctx.db as db:
                db.put(vm, power_state=state)
                fields = {"name_label": label, "power_state": "Suspended", "suspend_VDI": image.ref}
                return snapshot_record(ctx, vm, disks, fields).ref
        finally:
            with ctx.db as db:
                db.put(vm, power_state=state)
            if state == "Running":
                ctx.pool.guests.resumed(vm)


def _memory_image(ctx: Context, vm: Row, state: str) -> Row:
    suspended = ctx.db.find("VDI", vm["suspend_VDI"]) if state == "Suspended" else None
    return snapshot_disk(ctx, suspended) if suspended is not None else save_memory(ctx, vm)


@call("VM.revert", "&VM")
def revert(ctx: Context, snapshot: Row) -> None:
    """Bring a VM back to a snapshot: its disks are replaced by clones of the snapshot's.

    A VM that is gone is made again with its old uuid (xapi.md 9.2). Raises VM_REVERT_FAILED for what is no snapshot.
    """
    if not snapshot["is_a_snapshot"]:
        raise Failure("VM_REVERT_FAILED", snapshot.ref, NULL)
    with on_vm(ctx, snapshot, "revert"):
        vm = ctx.db.find("VM", snapshot["snapshot_of"]) or _made_again(ctx, snapshot)
        if vm["power_state"] != "Halted":
            with on_vm(ctx, vm, "hard_shutdown"):
                domains.end(ctx, vm)
        with ctx.pool.operations.on(ctx, vm, "reverting", lambda: None, lambda: vm_rules.refresh(ctx.db, vm)):
            _replace(ctx, vm, snapshot)


def _made_again(ctx: Context, snapshot: Row) -> Row:
    """Make the record of a snapshot's VM that was destroyed. Raises VM_REVERT_FAILED."""
    saved = record_of(snapshot)
    with ctx.db as db:
        if not saved or saved["uuid"] in db.tables["VM"].by_uuid:
            raise Failure("VM_REVERT_FAILED", snapshot.ref, NULL)
        vm = copy_record(ctx, snapshot, {}, {"uuid": saved["uuid"], "is_a_snapshot": False}, new_macs=False)
        for vif in db.linked(vm, "VIFs", "VIF"):
            drop_device(ctx, vif)
        db.put(snapshot, snapshot_of=vm.ref)
        return vm


def _replace(ctx: Context, vm: Row, snapshot: Row) -> None:
    clones = copy_disks(ctx, snapshot, clone_disk, "VDI.clone", [])
    image = ctx.db.find("VDI", snapshot["suspend_VDI"])
    memory = clone_disk(ctx, image).ref if image is not None else NULL
    outdated = _outdated_disks(ctx, vm, snapshot)
    with ctx.db as db:
        for device in [*db.linked(vm, "VBDs", "VBD"), *db.linked(vm, "VIFs", "VIF")]:
            drop_device(ctx, device)
        for snapshot_ref, clone_ref in clones.items():
            _repoint(ctx, db.row("VDI", snapshot_ref)["snapshot_of"], clone_ref)
        for vbd in db.linked(snapshot, "VBDs", "VBD"):
            copy_vbd(ctx, vbd, vm, clones.get(vbd["VDI"], vbd["VDI"]))
        for vif in db.linked(snapshot, "VIFs", "VIF"):
            copy_vif(ctx, vif, vm, new_mac=False)
        _restore_record(ctx, vm, snapshot, memory)
    for disk in outdated:
        # One that somebody else uses stays.
        with contextlib.suppress(Failure):
            with ctx.db as db:
                device_rules.assert_vdi(db, disk, "destroy")
            vdi.discard(ctx, disk)


def _outdated_disks(ctx: Context, vm: Row, snapshot: Row) -> list[Row]:
    """Return the VM's disks of which the snapshot has a version; others are left behind unattached."""
    db = ctx.db
    with db:
        taken = [db.find("VDI", vbd["VDI"]) for vbd in db.linked(snapshot, "VBDs", "VBD")]
        versions = {disk["snapshot_of"] for disk in taken if disk is not None}
        disks = [db.find("VDI", ref) for ref in dict.fromkeys(vbd["VDI"] for vbd in db.linked(vm, "VBDs", "VBD"))]
        return [disk for disk in disks if disk is not None and disk.ref in versions]


def _repoint(ctx: Context, old_ref: str, new_ref: str) -> None:
    """Make every snapshot of the old disk one of the new disk."""
    db = ctx.db
    for disk in db.rows("VDI"):
        if disk["snapshot_of"] == old_ref and disk["is_a_snapshot"]:
            db.put(disk, snapshot_of=new_ref)
    new = db.find("VDI", new_ref)
    if new is not None:
        db.put(new, is_a_snapshot=False, snapshot_time=EPOCH)
        device_rules.refresh_vdi(db, new)


def _existing(ctx: Context, vm: Row, field: str, value: Any) -> Any:
    """Return a saved value, without references to what is gone."""
    kind = vm.spec.fields[field].type
    if isinstance(kind, Ref) and (kind.class_name not in CLASSES or ctx.db.find(kind.class_name, value) is None):
        return NULL
    if isinstance(kind, SetOf) and isinstance(kind.item, Ref):
        return [ref for ref in value if ctx.db.find(kind.item.class_name, ref) is not None]
    return value


def _restore_record(ctx: Context, vm: Row, snapshot: Row, memory_ref: str) -> None:
    db = ctx.db
    saved = record_of(snapshot)
    values = {name: _existing(ctx, vm, name, value) for name, value in saved.items() if name not in _KEPT}
    values |= {
        "is_a_template": False,
        "is_a_snapshot": False,
        "snapshot_of": NULL,
        "snapshot_time": EPOCH,
        "snapshot_info": {},
        "snapshot_metadata": "",
        "ha_always_run": False,
        "power_state": snapshot["power_state"],
        "suspend_VDI": memory_ref,
        "parent": snapshot.ref,
        "generation_id": ctx.pool.ids.generation_id(),
    }
    db.put(vm, **values)
    for cls, field in (("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")):
        source, old = db.find(cls, snapshot[field]), db.find(cls, vm[field])
        if source is not None:
            if old is not None:
                db.delete(old)
            copy = db.create(cls, ctx.pool.ids.ref(), source.values | {"uuid": ctx.pool.ids.uuid()})
            db.put(vm, **{field: copy.ref})
    vm_rules.refresh(db, vm)
