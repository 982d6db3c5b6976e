"""VM.pool_migrate: a running guest goes to another host of its pool (xapi.md 14.3)."""

from __future__ import annotations

from simulator.api import domains
from simulator.api.registry import Context, call
from simulator.api.vm_power import on_vm
from simulator.core.database import Row
from simulator.core.failures import Failure

#: The memory of a guest goes over in so many steps; between two of them a migration can be cancelled.
STEPS, STEP_S = 10, 0.02


@call("VM.pool_migrate", "&VM", "&host", "string->string")
def pool_migrate(ctx: Context, vm: Row, host: Row, options: dict[str, str]) -> None:
    """Move a running VM to another host, or within its own.

    Raises VM_LACKS_FEATURE, what forbids the VM on that host (HOST_NOT_ENOUGH_FREE_MEMORY, VM_REQUIRES_SR and so on),
    TASK_CANCELLED; the VM then runs on where it was.
    """
    if "network" in options:
        ctx.db.row("network", options["network"])
    migrate_within(ctx, vm, host, force=options.get("force") == "true")


def migrate_within(ctx: Context, vm: Row, host: Row, *, force: bool = False) -> None:
    """Do what VM.pool_migrate does; the caller (host.evacuate) holds no mark on the VM."""
    with (
        on_vm(ctx, vm, "pool_migrate"),
        domains.placed(ctx, vm, lambda: _target(ctx, vm, host, force=force), "vm_migrate"),
    ):
        send_memory(ctx, vm, 0.0)
        ctx.pool.guests.paused(vm)
        with ctx.db:
            domains.move_domain(ctx, vm, host)
        ctx.pool.guests.moved(vm)


def _target(ctx: Context, vm: Row, host: Row, *, force: bool) -> Row:
    domains.assert_can_boot(ctx, vm, host, force=force)
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
