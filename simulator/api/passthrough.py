"""VTPM.*, and VGPU, VUSB and PUSB on hosts that have no such hardware (xapi.md 7.2)."""

from __future__ import annotations

from typing import Any

from simulator.api import vm_rules
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure

_MOST_VTPMS = 1


def _assert_halted(vm: Row) -> None:
    if vm["power_state"] != "Halted":
        raise Failure("VM_BAD_POWER_STATE", vm.ref, "halted", vm["power_state"].lower())


@call("VTPM.create", "&VM", "bool", returns="@VTPM")
def vtpm_create(ctx: Context, vm: Row, is_unique: bool) -> str:  # noqa: FBT001 - the call's signature
    """Give a halted VM a TPM. Raises VTPM_MAX_AMOUNT_REACHED, NOT_IMPLEMENTED for a unique one."""
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "create_vtpm")
        if len(vm["VTPMs"]) >= _MOST_VTPMS:
            raise Failure("VTPM_MAX_AMOUNT_REACHED", str(_MOST_VTPMS))
        if is_unique:
            raise Failure("NOT_IMPLEMENTED", "VTPM.create with is_unique")
        values = {"uuid": ctx.pool.ids.uuid(), "VM": vm.ref, "allowed_operations": ["destroy"]}
        vtpm = db.create("VTPM", ctx.pool.ids.ref(), values)
        vm_rules.refresh(db, vm)
        return vtpm.ref


@call("VTPM.destroy", "&VTPM")
def vtpm_destroy(ctx: Context, vtpm: Row) -> None:
    """Take the TPM from a halted VM. Raises VM_BAD_POWER_STATE."""
    with ctx.db as db:
        vm = db.find("VM", vtpm["VM"])
        if vm is not None:
            _assert_halted(vm)
        db.delete(vtpm)
        if vm is not None:
            vm_rules.refresh(db, vm)


@call("VGPU.create", "&VM", "&GPU_group", "string?", "string->string?", "@VGPU_type?", returns="@VGPU")
def vgpu_create(ctx: Context, vm: Row, group: Row, device: str | None, *rest: Any) -> str:
    """Refuse with GPU_GROUP_CONTAINS_NO_PGPUS: no host has a GPU to give away."""
    del ctx, rest
    _assert_halted(vm)
    if device not in (None, "0"):
        raise Failure("INVALID_DEVICE", str(device))
    raise Failure("GPU_GROUP_CONTAINS_NO_PGPUS", group.ref)


@call("VUSB.create", "&VM", "&USB_group", "string->string?", returns="@VUSB")
def vusb_create(ctx: Context, vm: Row, group: Row, other_config: dict[str, str] | None) -> str:
    """Refuse with USB_GROUP_CONTAINS_NO_PUSBS: no host has a USB device."""
    del ctx, vm, other_config
    raise Failure("USB_GROUP_CONTAINS_NO_PUSBS", group.ref)


@call("PUSB.scan", "&host")
def pusb_scan(ctx: Context, host: Row) -> None:
    """Find nothing."""
    del ctx, host
