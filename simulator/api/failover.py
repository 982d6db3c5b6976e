"""HA's planning on a pool without HA: what would fit where when hosts fail (xapi.md 7.2)."""

from __future__ import annotations

from simulator.api import domains
from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.model.types import NULL

_PROTECTED = "restart"
Plan = dict[str, str]
"""Where each VM would run; null for nowhere."""


def _live_hosts(ctx: Context) -> list[Row]:
    found = []
    for host in ctx.db.rows("host"):
        metrics = ctx.db.find("host_metrics", host["metrics"])
        if host["enabled"] and metrics is not None and metrics["live"]:
            found.append(host)
    return found


def _placed(vms: list[Row], room: dict[str, int]) -> Plan:
    """Put VMs, the largest first, where there is room enough: the fullest host that still takes one."""
    plan: Plan = {}
    for vm in sorted(vms, key=domains.memory_needed, reverse=True):
        needed = domains.memory_needed(vm)
        fitting = sorted((free, ref) for ref, free in room.items() if free >= needed)
        plan[vm.ref] = fitting[0][1] if fitting else NULL
        if fitting:
            room[fitting[0][1]] -= needed
    return plan


def _protected(ctx: Context) -> list[Row]:
    return [
        vm
        for vm in ctx.db.rows("VM")
        if vm["ha_restart_priority"] == _PROTECTED and vm["ha_always_run"] and not vm["is_a_template"]
    ]


def _tolerated(ctx: Context, vms: list[Row]) -> int:
    """Return how many hosts may fail, whichever: the VMs still fit on the smallest that are left."""
    hosts = _live_hosts(ctx)
    wanted = {vm.ref for vm in vms}
    room: dict[str, int] = {}
    for host in hosts:
        own = [vm for vm in ctx.db.linked(host, "resident_VMs", "VM") if vm.ref in wanted]
        room[host.ref] = domains.free_memory(ctx, host) + sum(domains.memory_needed(vm) for vm in own)
    smallest = sorted(room, key=lambda ref: room[ref])
    for count in range(len(hosts) - 1, 0, -1):
        left = {ref: room[ref] for ref in smallest[: len(hosts) - count]}
        if NULL not in _placed(vms, left).values():
            return count
    return 0


@call("pool.ha_compute_max_host_failures_to_tolerate", returns="int", has_async=False)
def ha_compute_max(ctx: Context) -> int:
    """Return how many hosts may fail before a protected VM finds no place."""
    with ctx.db:
        return _tolerated(ctx, _protected(ctx))


@call("pool.ha_compute_hypothetical_max_host_failures_to_tolerate", "@VM->string", returns="int", has_async=False)
def ha_compute_hypothetical_max(ctx: Context, configuration: dict[str, str]) -> int:
    """Return how many hosts might fail if these VMs had these restart priorities."""
    with ctx.db as db:
        return _tolerated(ctx, [db.row("VM", ref) for ref, value in configuration.items() if value == _PROTECTED])


@call("pool.ha_failover_plan_exists", "int", returns="bool", has_async=False)
def ha_failover_plan_exists(ctx: Context, count: int) -> bool:
    """Tell whether that many hosts may fail."""
    with ctx.db:
        return count <= _tolerated(ctx, _protected(ctx))


@call("pool.ha_compute_vm_failover_plan", "@host*", "@VM*", returns="@VM->string->string", has_async=False)
def ha_compute_vm_failover_plan(ctx: Context, hosts: list[str], vms: list[str]) -> dict[str, dict[str, str]]:
    """Return where these VMs would run if these hosts failed: a host, or the code of the failure."""
    with ctx.db as db:
        failed = {db.row("host", ref).ref for ref in hosts}
        room = {host.ref: domains.free_memory(ctx, host) for host in _live_hosts(ctx) if host.ref not in failed}
        plan = _placed([db.row("VM", ref) for ref in vms], room)
    return {
        vm_ref: {"error_code": "HOST_NOT_ENOUGH_FREE_MEMORY"} if host_ref == NULL else {"host": host_ref}
        for vm_ref, host_ref in plan.items()
    }
