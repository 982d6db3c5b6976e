"""VBD.* (xapi.md 6.4, 8.1; transcripts 050 to 057, 081 to 084)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from simulator.api import device_rules, domains
from simulator.api.registry import Context, call
from simulator.api.vm_copy import drop_device
from simulator.core.database import Row
from simulator.core.failures import Failure, in_progress
from simulator.model.types import NULL

_LINUX_NAME = re.compile(r"(?:xvd|hd|sd)([a-z]+)\Z")
VBD_POSITIONS = 255


def _position(userdevice: str) -> int:
    """Return the number of a disk position. Raises INVALID_DEVICE."""
    if userdevice.isdigit():
        return int(userdevice)
    match = _LINUX_NAME.match(userdevice)
    if not match:
        raise Failure("INVALID_DEVICE", userdevice)
    number = 0
    for letter in match[1]:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def free_positions(taken: set[str], positions: int) -> list[str]:
    """Return the device numbers below `positions` that are not taken."""
    return [str(number) for number in range(positions) if str(number) not in taken]


@call("VM.get_allowed_VBD_devices", "&VM", returns="string*", has_async=False)
def get_allowed_vbd_devices(ctx: Context, vm: Row) -> list[str]:
    """Return the free disk positions."""
    return free_positions({vbd["userdevice"] for vbd in ctx.db.linked(vm, "VBDs", "VBD")}, VBD_POSITIONS)


def _check_vbd(ctx: Context, vm: Row, record: dict[str, Any]) -> None:
    """Raise what forbids a new VBD."""
    for task_ref, name in vm["current_operations"].items():
        if name in ("pool_migrate", "migrate_send"):
            raise in_progress("VM", vm.ref, name, task_ref)
    if record["type"] == "CD":
        if record["mode"] != "RO":
            raise Failure("VBD_CDS_MUST_BE_READONLY")
    elif record["empty"]:
        raise Failure("VBD_NOT_REMOVABLE_MEDIA", "in constructor")
    if not record["empty"]:
        vdi = ctx.db.row("VDI", record["VDI"])
        if vdi["read_only"] and record["mode"] == "RW":
            raise Failure("VDI_READONLY", vdi.ref)


def _vbd_position(ctx: Context, vm: Row, wish: str) -> str:
    """Return the position of a new VBD. Raises INVALID_DEVICE, DEVICE_ALREADY_EXISTS."""
    if wish == "autodetect":
        free: list[str] = get_allowed_vbd_devices(ctx, vm)
        if not free:
            raise Failure("INVALID_DEVICE", wish)
        return free[0]
    number = _position(wish)
    if any(_position(vbd["userdevice"]) == number for vbd in ctx.db.linked(vm, "VBDs", "VBD")):
        raise Failure("DEVICE_ALREADY_EXISTS", wish)
    return str(number) if wish.isdigit() else wish


@call("VBD.create", "record:VBD", returns="@VBD")
def vbd_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a VBD, not plugged. Raises DEVICE_ALREADY_EXISTS, INVALID_DEVICE, VDI_READONLY."""
    with ctx.db as db:
        vm = db.row("VM", record["VM"])
        _check_vbd(ctx, vm, record)
        position = _vbd_position(ctx, vm, record["userdevice"])
        keeps = vm["power_state"] == "Suspended"
        values = record | {
            "uuid": ctx.pool.ids.uuid(),
            "userdevice": position,
            "VDI": NULL if record["empty"] else record["VDI"],
            "currently_attached": keeps and record.get("currently_attached", False),
            "device": record.get("device", "") if keeps else "",
            "metrics": db.create("VBD_metrics", ctx.pool.ids.ref(), {"uuid": ctx.pool.ids.uuid()}).ref,
        }
        vbd = db.create("VBD", ctx.pool.ids.ref(), values)
        device_rules.refresh_device(db, vbd)
        return vbd.ref


@call("VBD.destroy", "&VBD")
def vbd_destroy(ctx: Context, vbd: Row) -> None:
    """Remove a detached VBD."""
    with ctx.db as db:
        vm = db.row("VM", vbd["VM"])
        if vbd["currently_attached"]:
            raise Failure("OPERATION_NOT_ALLOWED", f"VBD '{vbd['uuid']}' still attached to '{vm['uuid']}'")
        drop_device(ctx, vbd)


def _assert_device(ctx: Context, device: Row, operation: str) -> None:
    device_rules.assert_device(ctx.db, device, operation)
    if device.cls == "VBD" and operation == "plug":
        device_rules.assert_attachable(ctx.db, device)


@contextlib.contextmanager
def on_device(ctx: Context, device: Row, operation: str) -> Iterator[None]:
    """Hold a VBD or VIF for one operation."""
    with ctx.pool.operations.on(
        ctx,
        device,
        operation,
        lambda: _assert_device(ctx, device, operation),
        lambda: device_rules.refresh_device_and_disk(ctx.db, device),
    ):
        yield


@call("VBD.plug", "&VBD")
def vbd_plug(ctx: Context, vbd: Row) -> None:
    """Attach a disk to its running VM. Raises VDI_IN_USE, DEVICE_ALREADY_ATTACHED."""
    with on_device(ctx, vbd, "plug"), ctx.db as db:
        domains.attach_vbd(ctx, vbd, db.row("host", db.row("VM", vbd["VM"])["resident_on"]))


@call("VBD.unplug", "&VBD")
def vbd_unplug(ctx: Context, vbd: Row) -> None:
    """Detach a disk from its running VM. Raises VBD_NOT_UNPLUGGABLE, DEVICE_ALREADY_DETACHED."""
    with on_device(ctx, vbd, "unplug"), ctx.db:
        if not vbd["unpluggable"]:
            raise Failure("VBD_NOT_UNPLUGGABLE", vbd.ref)
        domains.detach_vbd(ctx, vbd)


@call("VBD.unplug_force", "&VBD")
def vbd_unplug_force(ctx: Context, vbd: Row) -> None:
    """Detach a disk without asking the guest."""
    with on_device(ctx, vbd, "unplug_force"), ctx.db:
        domains.detach_vbd(ctx, vbd)


@call("VBD.assert_attachable", "&VBD")
def vbd_assert_attachable(ctx: Context, vbd: Row) -> None:
    """Raise what keeps the disk from being attached."""
    with ctx.db as db:
        device_rules.assert_attachable(db, vbd)


@call("VBD.insert", "&VBD", "&VDI")
def vbd_insert(ctx: Context, vbd: Row, vdi: Row) -> None:
    """Put a medium into an empty drive."""
    with ctx.db as db:
        if vbd["type"] != "CD":
            raise Failure("VBD_NOT_REMOVABLE_MEDIA", vbd.ref)
        if not vbd["empty"]:
            raise Failure("VBD_NOT_EMPTY", vbd.ref)
        db.put(vbd, VDI=vdi.ref, empty=False)
        device_rules.refresh_device(db, vbd)


@call("VBD.eject", "&VBD")
def vbd_eject(ctx: Context, vbd: Row) -> None:
    """Take the medium out of a drive."""
    with ctx.db as db:
        if vbd["type"] != "CD":
            raise Failure("VBD_NOT_REMOVABLE_MEDIA", vbd.ref)
        if vbd["empty"]:
            raise Failure("VBD_IS_EMPTY", vbd.ref)
        db.put(vbd, VDI=NULL, empty=True)
        device_rules.refresh_device(db, vbd)


@call("VBD.set_mode", "&VBD", "vbd_mode")
def vbd_set_mode(ctx: Context, vbd: Row, value: str) -> None:
    """Change between RO and RW while the VM is halted."""
    with ctx.db as db:
        vm = db.row("VM", vbd["VM"])
        if vm["power_state"] != "Halted":
            raise Failure("VM_BAD_POWER_STATE", vm.ref, "halted", vm["power_state"].lower())
        db.put(vbd, mode=value)
