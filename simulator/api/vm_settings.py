"""The VM's own setters: memory, VCPUs, templates (xapi.md 14.2; observed/vm-operation-matrix.json)."""

from __future__ import annotations

from typing import Any

from simulator.api import domains, vm_rules
from simulator.api.registry import Context, call
from simulator.api.vm_copy import memory_overhead
from simulator.api.vm_power import on_vm
from simulator.core.database import Row
from simulator.core.failures import Failure

_VCPUS_RULE = "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max"


def _assert(ctx: Context, vm: Row, operation: str) -> None:
    vm_rules.assert_allowed(ctx.db, vm, operation)


def _put(ctx: Context, vm: Row, **fields: Any) -> None:
    ctx.db.put(vm, **fields)
    vm_rules.refresh(ctx.db, vm)


@call("VM.set_is_a_template", "&VM", "bool", has_async=False)
def set_is_a_template(ctx: Context, vm: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Make a halted VM a template, or a template a VM."""
    with ctx.db:
        if value:
            _assert(ctx, vm, "make_into_template")
        _put(ctx, vm, is_a_template=value)


@call("VM.set_VCPUs_max", "&VM", "int", has_async=False)
def set_vcpus_max(ctx: Context, vm: Row, value: int) -> None:
    """Set the most VCPUs of a halted VM. Raises INVALID_VALUE."""
    with ctx.db:
        _assert(ctx, vm, "changing_VCPUs")
        if value < 1 or value < vm["VCPUs_at_startup"]:
            raise Failure("INVALID_VALUE", _VCPUS_RULE, str(value))
        _put(ctx, vm, VCPUs_max=value, memory_overhead=memory_overhead(vm.values | {"VCPUs_max": value}))


@call("VM.set_VCPUs_at_startup", "&VM", "int", has_async=False)
def set_vcpus_at_startup(ctx: Context, vm: Row, value: int) -> None:
    """Set the VCPUs that the VM starts with, in any state. Raises INVALID_VALUE."""
    with ctx.db:
        if not 1 <= value <= vm["VCPUs_max"]:
            raise Failure("INVALID_VALUE", _VCPUS_RULE, str(value))
        _put(ctx, vm, VCPUs_at_startup=value)


@call("VM.set_VCPUs_number_live", "&VM", "int")
def set_vcpus_number_live(ctx: Context, vm: Row, value: int) -> None:
    """Change the VCPUs of a running VM whose guest can do it. Raises INVALID_VALUE."""
    with on_vm(ctx, vm, "changing_VCPUs_live"), ctx.db as db:
        if not 1 <= value <= vm["VCPUs_max"]:
            raise Failure("INVALID_VALUE", _VCPUS_RULE, str(value))
        db.put(vm, VCPUs_at_startup=value)
        metrics = db.find("VM_metrics", vm["metrics"])
        if metrics is not None:
            utilisation = {str(number): 0.0 for number in range(value)} | metrics["VCPUs_utilisation"]
            kept = {number: share for number, share in utilisation.items() if int(number) < value}
            db.put(metrics, VCPUs_number=value, VCPUs_utilisation=kept, last_updated=ctx.pool.clock.stamp())


def _assert_order(vm: Row, limits: dict[str, int]) -> None:
    """Raise MEMORY_CONSTRAINT_VIOLATION_ORDER unless the limits, with those that stay, ascend."""
    merged = {
        name: limits.get(name, vm[f"memory_{name}"])
        for name in ("static_min", "dynamic_min", "dynamic_max", "static_max")
    }
    if list(merged.values()) != sorted(merged.values()):
        raise Failure("MEMORY_CONSTRAINT_VIOLATION_ORDER")


def _put_memory(ctx: Context, vm: Row, limits: dict[str, int]) -> None:
    """Write memory limits. Raises MEMORY_CONSTRAINT_VIOLATION_ORDER."""
    _assert_order(vm, limits)
    _put(ctx, vm, **{f"memory_{name}": value for name, value in limits.items()})


@call("VM.set_memory_limits", "&VM", "int", "int", "int", "int")
def set_memory_limits(ctx: Context, vm: Row, static_min: int, static_max: int, *dynamic: int) -> None:
    """Set all limits of a halted VM."""
    with ctx.db as db:
        _assert(ctx, vm, "changing_memory_limits")
        limits = {"static_min": static_min, "static_max": static_max}
        _put_memory(ctx, vm, limits | {"dynamic_min": dynamic[0], "dynamic_max": dynamic[1]})
        db.put(vm, memory_target=dynamic[0])


@call("VM.set_memory", "&VM", "int")
def set_memory(ctx: Context, vm: Row, value: int) -> None:
    """Set all limits but the smallest of a halted VM to one value."""
    with ctx.db:
        _assert(ctx, vm, "changing_memory_limits")
        _put_memory(ctx, vm, dict.fromkeys(("dynamic_min", "dynamic_max", "static_max"), value))
        ctx.db.put(vm, memory_target=value)


@call("VM.set_memory_static_range", "&VM", "int", "int")
def set_memory_static_range(ctx: Context, vm: Row, least: int, most: int) -> None:
    """Set the static limits of a halted VM."""
    with ctx.db:
        _assert(ctx, vm, "changing_static_range")
        _put_memory(ctx, vm, {"static_min": least, "static_max": most})


@call("VM.set_memory_dynamic_range", "&VM", "int", "int")
def set_memory_dynamic_range(ctx: Context, vm: Row, least: int, most: int) -> None:
    """Set the dynamic limits of a halted or running VM; a running one balloons to the lower.

    Raises MEMORY_CONSTRAINT_VIOLATION_ORDER, HOST_NOT_ENOUGH_FREE_MEMORY.
    """
    with on_vm(ctx, vm, "changing_dynamic_range"), ctx.db as db:
        limits = {"dynamic_min": least, "dynamic_max": most}
        _assert_order(vm, limits)
        if vm["power_state"] == "Running":
            free = domains.free_memory(ctx, db.row("host", vm["resident_on"]))
            more = least - vm["memory_dynamic_min"]
            if more > free:
                raise Failure("HOST_NOT_ENOUGH_FREE_MEMORY", str(more), str(free))
        _put_memory(ctx, vm, limits)
        db.put(vm, memory_target=least)
        metrics = db.find("VM_metrics", vm["metrics"])
        if metrics is not None and vm["power_state"] == "Running":
            db.put(metrics, memory_actual=least, last_updated=ctx.pool.clock.stamp())


@call("VM.set_memory_static_max", "&VM", "int", has_async=False)
def set_memory_static_max(ctx: Context, vm: Row, value: int) -> None:
    """Set one limit."""
    set_memory_static_range(ctx, vm, vm["memory_static_min"], value)


@call("VM.set_memory_static_min", "&VM", "int", has_async=False)
def set_memory_static_min(ctx: Context, vm: Row, value: int) -> None:
    """Set one limit."""
    set_memory_static_range(ctx, vm, value, vm["memory_static_max"])


@call("VM.set_memory_dynamic_max", "&VM", "int", has_async=False)
def set_memory_dynamic_max(ctx: Context, vm: Row, value: int) -> None:
    """Set one limit."""
    set_memory_dynamic_range(ctx, vm, vm["memory_dynamic_min"], value)


@call("VM.set_memory_dynamic_min", "&VM", "int", has_async=False)
def set_memory_dynamic_min(ctx: Context, vm: Row, value: int) -> None:
    """Set one limit."""
    set_memory_dynamic_range(ctx, vm, value, vm["memory_dynamic_max"])


@call("VM.compute_memory_overhead", "&VM", returns="int")
def compute_memory_overhead(ctx: Context, vm: Row) -> int:
    """Return the toolstack's own memory for the VM."""
    del ctx
    return memory_overhead(vm.values)


@call("VM.set_HVM_boot_policy", "&VM", "string", has_async=False)
def set_hvm_boot_policy(ctx: Context, vm: Row, value: str) -> None:
    """Choose HVM booting; the domain type follows."""
    with ctx.db:
        _put(ctx, vm, HVM_boot_policy=value, domain_type="hvm" if value else "pv")


@call("VM.set_domain_type", "&VM", "domain_type", has_async=False)
def set_domain_type(ctx: Context, vm: Row, value: str) -> None:
    """Choose the domain type."""
    with ctx.db:
        _put(ctx, vm, domain_type=value, HVM_boot_policy="BIOS order" if value == "hvm" else "")


@call("VM.set_HVM_shadow_multiplier", "&VM", "float", has_async=False)
def set_hvm_shadow_multiplier(ctx: Context, vm: Row, value: float) -> None:
    """Set the shadow memory factor of a halted VM. Raises INVALID_VALUE below 1."""
    with ctx.db:
        _assert(ctx, vm, "changing_shadow_memory")
        if value < 1.0:
            raise Failure("INVALID_VALUE", "HVM_shadow_multiplier", str(value))
        _put(ctx, vm, HVM_shadow_multiplier=value)


@call("VM.set_NVRAM", "&VM", "string->string", has_async=False)
def set_nvram(ctx: Context, vm: Row, value: dict[str, str]) -> None:
    """Replace the NVRAM of a halted VM."""
    with ctx.db:
        _assert(ctx, vm, "changing_NVRAM")
        _put(ctx, vm, NVRAM=value)


@call("VM.add_to_NVRAM", "&VM", "string", "string", has_async=False)
def add_to_nvram(ctx: Context, vm: Row, key: str, value: str) -> None:
    """Add a key to the NVRAM of a halted VM."""
    set_nvram(ctx, vm, vm["NVRAM"] | {key: value})


@call("VM.remove_from_NVRAM", "&VM", "string", has_async=False)
def remove_from_nvram(ctx: Context, vm: Row, key: str) -> None:
    """Remove a key from the NVRAM of a halted VM."""
    set_nvram(ctx, vm, {one: value for one, value in vm["NVRAM"].items() if one != key})
