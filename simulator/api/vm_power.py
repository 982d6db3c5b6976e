"""VM.start to VM.power_state_reset (xapi.md 7; observed/vm-operation-matrix.json)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from simulator.api import device_rules, domains, vm_rules
from simulator.api.registry import Context, call
from simulator.api.vdi import new_record, on_sr, storage
from simulator.core.database import Row, is_null
from simulator.core.failures import Failure
from simulator.model.types import NULL

#: XAPI waits this long for a guest to shut down.
SHUTDOWN_TIMEOUT_S = 1200.0
_MEMORY_IMAGE = 4 << 20
_LOOK_S = 0.05


def refresh(ctx: Context, vm: Row) -> None:
    """Recompute allowed_operations of a VM and its devices; the database is locked."""
    vm_rules.refresh(ctx.db, vm)
    device_rules.refresh_devices(ctx.db, vm)


@contextlib.contextmanager
def on_vm(ctx: Context, vm: Row, operation: str) -> Iterator[None]:
    """Hold a VM for one operation."""
    with ctx.pool.operations.on(
        ctx,
        vm,
        operation,
        lambda: vm_rules.assert_allowed(ctx.db, vm, operation),
        lambda: refresh(ctx, vm),
    ):
        yield


@call("VM.start", "&VM", "bool", "bool")
def start(ctx: Context, vm: Row, start_paused: bool, force: bool) -> None:  # noqa: FBT001 - the call's signature
    """Boot on a host that can. Raises NO_HOSTS_AVAILABLE."""
    del force
    with on_vm(ctx, vm, "start"):
        domains.boot(ctx, vm, lambda: domains.choose_host(ctx, vm), paused=start_paused)


@call("VM.start_on", "&VM", "&host", "bool", "bool")
def start_on(ctx: Context, vm: Row, host: Row, start_paused: bool, force: bool) -> None:  # noqa: FBT001 - signature
    """Boot on the given host. Raises why that host cannot."""
    del force
    with on_vm(ctx, vm, "start_on"):
        domains.boot(ctx, vm, lambda: domains.given_host(ctx, vm, host), paused=start_paused)


@call("VM.pause", "&VM")
def pause(ctx: Context, vm: Row) -> None:
    """Stop the domain's CPUs."""
    with on_vm(ctx, vm, "pause"):
        ctx.pool.guests.paused(vm)
        with ctx.db as db:
            db.put(vm, power_state="Paused")


@call("VM.unpause", "&VM")
def unpause(ctx: Context, vm: Row) -> None:
    """Let the domain's CPUs run."""
    with on_vm(ctx, vm, "unpause"):
        with ctx.db as db:
            db.put(vm, power_state="Running")
        ctx.pool.guests.resumed(vm)


def _ask_guest(ctx: Context, vm: Row, failure: str) -> None:
    """Wait until the guest has shut itself down. Raises TASK_CANCELLED, VM_SHUTDOWN_TIMEOUT."""
    pool, domid = ctx.pool, vm["domid"]
    habits = pool.guests.habits(vm)
    needed_s = SHUTDOWN_TIMEOUT_S if habits.ignores_clean_shutdown else habits.shutdown_s
    deadline = pool.clock.now() + needed_s
    while (left_s := deadline - pool.clock.now()) > 0 and vm["domid"] == domid:
        pool.clock.wait(min(_LOOK_S, left_s))
        if habits.ignores_clean_shutdown:
            pool.tasks.check_cancelled(ctx.task)
    if vm["domid"] != domid:
        raise Failure("TASK_CANCELLED", ctx.task_ref)
    if habits.ignores_clean_shutdown:
        raise Failure(failure, vm.ref, f"{SHUTDOWN_TIMEOUT_S:.0f}.")


@call("VM.clean_shutdown", "&VM")
def clean_shutdown(ctx: Context, vm: Row) -> None:
    """Ask the guest to shut down, and wait. A cancelled task ends `cancelled`, the VM Halted all the same (seen)."""
    with on_vm(ctx, vm, "clean_shutdown"):
        _ask_guest(ctx, vm, "VM_SHUTDOWN_TIMEOUT")
        domains.end(ctx, vm)
    ctx.pool.tasks.check_cancelled(ctx.task)


@call("VM.hard_shutdown", "&VM")
def hard_shutdown(ctx: Context, vm: Row) -> None:
    """End the domain at once; a clean shutdown under way is cancelled, a suspended VM loses its memory image."""
    cancel_others(ctx, vm)
    with on_vm(ctx, vm, "hard_shutdown"):
        domains.end(ctx, vm)


def cancel_others(ctx: Context, vm: Row) -> None:
    """Cancel the tasks that a hard operation overtakes (xapi.md 7.2)."""
    with ctx.db as db:
        for task_ref, name in vm["current_operations"].items():
            task = db.find("task", task_ref)
            if task is not None and name in vm_rules.CANCELLED_BY_HARD:
                ctx.pool.tasks.cancel(task)


@call("VM.shutdown", "&VM")
def shutdown(ctx: Context, vm: Row) -> None:
    """Shut down cleanly, or hard when that does not work."""
    with on_vm(ctx, vm, "shutdown"):
        if vm["power_state"] == "Running" and vm_rules.has_pv_drivers(ctx.db, vm):
            with contextlib.suppress(Failure):
                _ask_guest(ctx, vm, "VM_SHUTDOWN_TIMEOUT")
        domains.end(ctx, vm)


@call("VM.clean_reboot", "&VM")
def clean_reboot(ctx: Context, vm: Row) -> None:
    """Ask the guest to reboot. Cancelled: the caller learns it when the guest is down; the VM runs (seen)."""
    with on_vm(ctx, vm, "clean_reboot"):
        _ask_guest(ctx, vm, "VM_SHUTDOWN_TIMEOUT")
        domains.reboot(ctx, vm)
    if ctx.pool.tasks.is_cancelled(ctx.task):
        raise Failure("TASK_CANCELLED", NULL)


@call("VM.hard_reboot", "&VM")
def hard_reboot(ctx: Context, vm: Row) -> None:
    """Replace the domain at once."""
    cancel_others(ctx, vm)
    with on_vm(ctx, vm, "hard_reboot"):
        domains.reboot(ctx, vm)


@call("VM.suspend", "&VM")
def suspend(ctx: Context, vm: Row) -> None:
    """Save memory to a disk and end the domain. Raises VM_NO_SUSPEND_SR."""
    with on_vm(ctx, vm, "suspend"):
        vdi = save_memory(ctx, vm)
        with ctx.db as db:
            domains.end_domain(ctx, vm, state="Suspended")
            db.put(vm, suspend_VDI=vdi.ref)
        ctx.pool.guests.paused(vm)


def suspend_sr(ctx: Context, vm: Row) -> Row:
    """Return where memory images go. Raises VM_NO_SUSPEND_SR."""
    for ref in (vm["suspend_SR"], ctx.pool.pool_row["suspend_image_SR"]):
        if not is_null(ref):
            return ctx.db.row("SR", ref)
    host = ctx.db.find("host", vm["resident_on"])
    if host is not None and not is_null(host["suspend_image_sr"]):
        return ctx.db.row("SR", host["suspend_image_sr"])
    raise Failure("VM_NO_SUSPEND_SR", vm.ref)


def save_memory(ctx: Context, vm: Row) -> Row:
    """Make a disk that holds the VM's memory."""
    sr = suspend_sr(ctx, vm)
    uuid = ctx.pool.ids.uuid()
    with on_sr(ctx, sr, "vdi_create"), storage():
        ctx.pool.repository(sr).create(uuid, _MEMORY_IMAGE)
        ctx.pool.repository(sr).write(uuid, 0, b"XenSavedDomain\n" + vm["uuid"].encode())
        return new_record(
            ctx, sr, uuid, name_label="Suspend image", name_description="Suspend image", type="suspend",
            other_config={"content_id": ctx.pool.ids.uuid()},
        )  # fmt: skip


@call("VM.resume", "&VM", "bool", "bool")
def resume(ctx: Context, vm: Row, start_paused: bool, force: bool) -> None:  # noqa: FBT001 - the call's signature
    """Bring a suspended VM back on a host that can."""
    del force
    with on_vm(ctx, vm, "resume"):
        _resume(ctx, vm, lambda: domains.choose_host(ctx, vm), paused=start_paused)


@call("VM.resume_on", "&VM", "&host", "bool", "bool")
def resume_on(ctx: Context, vm: Row, host: Row, start_paused: bool, force: bool) -> None:  # noqa: FBT001 - signature
    """Bring a suspended VM back on the given host."""
    del force
    with on_vm(ctx, vm, "resume_on"):
        _resume(ctx, vm, lambda: domains.given_host(ctx, vm, host), paused=start_paused)


def _resume(ctx: Context, vm: Row, choose: Callable[[], Row], *, paused: bool) -> None:
    with domains.placed(ctx, vm, choose, "vm_resume") as host, ctx.db:
        domains.begin_domain(ctx, vm, host, paused=paused)
    domains.drop_memory(ctx, vm)
    if not paused:
        ctx.pool.guests.resumed(vm)


@call("VM.power_state_reset", "&VM")
def power_state_reset(ctx: Context, vm: Row) -> None:
    """Forget the power state. Raises DOMAIN_EXISTS for a running domain; a paused one is reset (seen).

    A VM on a host without power has no domain, whatever its record says.
    """
    with ctx.db as db:
        if vm["power_state"] == "Running" and ctx.pool.hosts.has_domain(vm):
            raise Failure("DOMAIN_EXISTS", vm.ref)
        domains.end_domain(ctx, vm, state="Halted")
        db.put(vm, suspend_VDI=NULL)
        refresh(ctx, vm)


@call("VM.assert_can_boot_here", "&VM", "&host")
def assert_can_boot_here(ctx: Context, vm: Row, host: Row) -> None:
    """Raise why the host cannot run the VM."""
    domains.assert_can_boot(ctx, vm, host)


@call("VM.get_possible_hosts", "&VM", returns="@host*")
def get_possible_hosts(ctx: Context, vm: Row) -> list[str]:
    """Return the hosts that could run the VM."""
    return [host.ref for host in domains.possible_hosts(ctx, vm)]


@call("VM.assert_operation_valid", "&VM", "vm_operations")
def assert_operation_valid(ctx: Context, vm: Row, operation: str) -> None:
    """Raise why the operation is not possible now."""
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, operation)


@call("VM.update_allowed_operations", "&VM")
def update_allowed_operations(ctx: Context, vm: Row) -> None:
    """Recompute allowed_operations of the VM and its devices."""
    with ctx.db:
        refresh(ctx, vm)


@call("VM.get_boot_record", "&VM", returns="record:VM", has_async=False)
def get_boot_record(ctx: Context, vm: Row) -> dict[str, Any]:
    """Return the record that the running domain was made from."""
    with ctx.db as db:
        vm_rules.assert_allowed(db, vm, "get_boot_record")
        return dict(vm.values)
