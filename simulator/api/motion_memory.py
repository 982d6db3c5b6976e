"""A running guest goes from host to host (xapi.md 14.3)."""

from __future__ import annotations

from simulator.api import domains
from simulator.api.registry import Context
from simulator.api.vm_power import on_vm
from simulator.core.database import Row
from simulator.core.failures import Failure

#: The memory of a guest goes over in so many steps; between two of them a migration can be cancelled.
STEPS, STEP_S = 10, 0.02


def migrate_within(ctx: Context, vm: Row, host: Row, *, force: bool = False) -> None:
    """Do what VM.pool_migrate does; the caller (host.evacuate) holds no mark on the VM. Raises as it does."""
    with (
        on_vm(ctx, vm, "pool_migrate"),
        domains.placed(ctx, vm, lambda: able(ctx, vm, host, force=force), "vm_migrate"),
    ):
        send_memory(ctx, vm, 0.0)
        ctx.pool.guests.paused(vm)
        with ctx.db:
            domains.move_domain(ctx, vm, host)
        ctx.pool.guests.moved(vm)


def able(ctx: Context, vm: Row, host: Row, *, force: bool = False, storage_too: bool = True) -> Row:
    """Return the host. Raises why it cannot take the VM."""
    domains.assert_can_boot(ctx, vm, host, force=force, storage_too=storage_too)
    return host


def send_memory(ctx: Context, vm: Row, begin: float) -> None:
    """Let a guest's memory go over while it runs on. Raises TASK_CANCELLED, also when the guest is gone meanwhile."""
    domid = vm["domid"]
    for step in range(STEPS):
        ctx.pool.tasks.check_cancelled(ctx.task)
        ctx.pool.clock.wait(STEP_S)
        if vm["domid"] != domid or vm["power_state"] != "Running":
            raise Failure("TASK_CANCELLED", ctx.task_ref)
        ctx.progress(begin + (1.0 - begin) * (step + 1) / (STEPS + 1))
    ctx.pool.tasks.check_cancelled(ctx.task)
