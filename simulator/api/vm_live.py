"""Memory of VMs while they run, and what else a client may ask of them (xapi.md 14.2)."""

from __future__ import annotations

from simulator.api import domains, vm_rules
from simulator.api.registry import Context, call
from simulator.api.vm_copy import memory_overhead
from simulator.api.vm_power import on_vm
from simulator.api.vm_settings import set_memory_dynamic_range
from simulator.core.database import Row
from simulator.core.failures import Failure

_MIB = 1 << 20
_AGILE_CODES = {"SR": "HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED", "network": "HA_CONSTRAINT_VIOLATION_NETWORK_NOT_SHARED"}


@call("VM.set_memory_target_live", "&VM", "int")
def set_memory_target_live(ctx: Context, vm: Row, target: int) -> None:
    """Set both dynamic limits, which makes the target theirs. Raises MEMORY_CONSTRAINT_VIOLATION_ORDER."""
    set_memory_dynamic_range(ctx, vm, target, target)


@call("VM.wait_memory_target_live", "&VM")
def wait_memory_target_live(ctx: Context, vm: Row) -> None:
    """Return when a running VM has reached its memory target; a simulated balloon is as fast as the call."""
    with on_vm(ctx, vm, "awaiting_memory_live"):
        ctx.progress(1.0)


@call("VM.get_cooperative", "&VM", returns="bool")
def get_cooperative(ctx: Context, vm: Row) -> bool:
    """Tell that the balloon follows its target."""
    del ctx, vm
    return True


@call("VM.set_shadow_multiplier_live", "&VM", "float")
def set_shadow_multiplier_live(ctx: Context, vm: Row, value: float) -> None:
    """Set the shadow memory factor of a running VM. Raises INVALID_VALUE, HOST_NOT_ENOUGH_FREE_MEMORY."""
    with on_vm(ctx, vm, "changing_shadow_memory_live"), ctx.db as db:
        if value < 1.0:
            raise Failure("INVALID_VALUE", "multiplier", f"{value:g}")
        overhead = memory_overhead(vm.values | {"HVM_shadow_multiplier": value})
        free = domains.free_memory(ctx, db.row("host", vm["resident_on"]))
        more = overhead - vm["memory_overhead"]
        if more > free:
            raise Failure("HOST_NOT_ENOUGH_FREE_MEMORY", str(more), str(free))
        db.put(vm, HVM_shadow_multiplier=value, memory_overhead=overhead)


@call("VM.maximise_memory", "&VM", "int", "bool", returns="int")
def maximise_memory(ctx: Context, vm: Row, total: int, approximate: bool) -> int:  # noqa: FBT001 - the call's signature
    """Return the largest memory_static_max, in whole MiB, with which the VM fits into `total` bytes.

    Approximately: as if it had its VCPUs rounded up to a multiple of eight, so that adding some later changes nothing.
    """
    del ctx
    vcpus = -(-vm["VCPUs_max"] // 8) * 8 if approximate else vm["VCPUs_max"]
    room = total - memory_overhead(vm.values | {"VCPUs_max": vcpus})
    return max(0, room // _MIB * _MIB)


@call("VM.add_to_VCPUs_params_live", "&VM", "string", "string")
def add_to_vcpus_params_live(ctx: Context, vm: Row, key: str, value: str) -> None:
    """Refuse, as XAPI does (xapi.md 14.2)."""
    del ctx, vm, key, value
    raise Failure("NOT_IMPLEMENTED", "VM.add_to_VCPUs_params_live")


@call("VM.assert_agile", "&VM")
def assert_agile(ctx: Context, vm: Row) -> None:
    """Raise what binds a VM to one host: HA_CONSTRAINT_VIOLATION_SR_NOT_SHARED, ..._NETWORK_NOT_SHARED."""
    with ctx.db as db:
        hosts = {host.ref for host in db.rows("host")}
        for vbd in db.linked(vm, "VBDs", "VBD"):
            vdi = db.find("VDI", vbd["VDI"])
            sr = db.find("SR", vdi["SR"]) if vdi is not None else None
            if sr is not None and not sr["shared"] and len(hosts) > 1:
                raise Failure(_AGILE_CODES["SR"], sr.ref)
        for vif in db.linked(vm, "VIFs", "VIF"):
            network = db.find("network", vif["network"])
            pifs = db.linked(network, "PIFs", "PIF") if network is not None else []
            if network is not None and pifs and {pif["host"] for pif in pifs} != hosts:
                raise Failure(_AGILE_CODES["network"], network.ref)


@call("VM.copy_bios_strings", "&VM", "&host")
def copy_bios_strings(ctx: Context, vm: Row, host: Row) -> None:
    """Give a VM the BIOS strings of a host. Raises VM_BIOS_STRINGS_ALREADY_SET."""
    set_bios_strings(ctx, vm, host["bios_strings"])


@call("VM.set_bios_strings", "&VM", "string->string")
def set_bios_strings(ctx: Context, vm: Row, value: dict[str, str]) -> None:
    """Set the BIOS strings once, before the first start. Raises VM_BIOS_STRINGS_ALREADY_SET."""
    with ctx.db as db:
        if vm["bios_strings"]:
            raise Failure("VM_BIOS_STRINGS_ALREADY_SET")
        db.put(vm, bios_strings=value)
        vm_rules.refresh(db, vm)
