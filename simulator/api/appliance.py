"""VM_appliance.* and VMSS.*: VMs that are started, stopped and snapshotted together (xapi.md 7.4)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from simulator.api import appliance_rules, vm_rules
from simulator.api.registry import Context, call, dispatch
from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.core.tasks import FINAL
from simulator.model.types import NULL

_LOOK_S = 0.02


def _assert(db: Database, appliance: Row, operation: str) -> None:
    failure = appliance_rules.why_not(db, appliance, operation)
    if failure is not None:
        raise failure


@call("VM_appliance.create", "record:VM_appliance", returns="@VM_appliance")
def appliance_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make an appliance without VMs."""
    with ctx.db as db:
        return db.create("VM_appliance", ctx.pool.ids.ref(), record | {"uuid": ctx.pool.ids.uuid()}).ref


@call("VM_appliance.destroy", "&VM_appliance")
def appliance_destroy(ctx: Context, appliance: Row) -> None:
    """Remove an appliance; its VMs stay."""
    with ctx.db as db:
        for vm in db.linked(appliance, "VMs", "VM"):
            db.put(vm, appliance=NULL)
        db.delete(appliance)


@call("VM.set_appliance", "&VM", "@VM_appliance")
def vm_set_appliance(ctx: Context, vm: Row, appliance_ref: str) -> None:
    """Put a VM into an appliance, or take it out (null). Raises OPERATION_NOT_ALLOWED for a control domain."""
    with ctx.db as db:
        if vm["is_control_domain"]:
            raise Failure("OPERATION_NOT_ALLOWED", "Control domains cannot be assigned to appliances")
        new = None if appliance_ref == NULL else db.row("VM_appliance", appliance_ref)
        old = db.find("VM_appliance", vm["appliance"])
        db.put(vm, appliance=appliance_ref)
        for appliance in (old, new):
            if appliance is not None:
                appliance_rules.refresh(db, appliance)
        vm_rules.refresh(db, vm)


@contextlib.contextmanager
def _on_appliance(ctx: Context, appliance: Row, operation: str) -> Iterator[None]:
    db = ctx.db
    with ctx.pool.operations.on(
        ctx,
        appliance,
        operation,
        lambda: _assert(db, appliance, operation),
        lambda: appliance_rules.refresh(db, appliance),
    ):
        yield


def _all_done(ctx: Context, refs: list[str]) -> bool:
    with ctx.db as db:
        tasks = [db.find("task", ref) for ref in refs]
        return all(task is None or task["status"] in FINAL for task in tasks)


def _together(ctx: Context, name: str, vms: list[Row], arguments: tuple[Any, ...]) -> None:
    """Begin a call on VMs at the same time, each as a task of its own, and wait for all."""
    session_ref = ctx.session.ref if ctx.session is not None else NULL
    refs = []
    for vm in vms:
        with contextlib.suppress(Failure):
            refs.append(dispatch(ctx.pool, f"Async.{name}", [session_ref, vm.ref, *arguments])[1])
    while not _all_done(ctx, refs):
        ctx.pool.tasks.check_cancelled(ctx.task)
        ctx.pool.clock.wait(_LOOK_S)


def _perform(ctx: Context, appliance: Row, operation: str, state: str, *arguments: Any) -> None:
    """Bring the VMs into a power state, those of one order together; starts go upwards, all else downwards.

    Raises OPERATION_PARTIALLY_FAILED with the VMs that are not in it afterwards.
    """
    with _on_appliance(ctx, appliance, operation):
        with ctx.db as db:
            vms = [vm for vm in db.linked(appliance, "VMs", "VM") if vm["power_state"] != state]
        vms.sort(key=lambda vm: vm["order"], reverse=operation != "start")
        verb = "hard_shutdown" if operation == "shutdown" else operation
        for _order, group in groupby(vms, key=lambda vm: vm["order"]):
            _together(ctx, f"VM.{verb}", list(group), arguments)
        failed = [vm.ref for vm in vms if vm["power_state"] != state]
        if failed:
            raise Failure("OPERATION_PARTIALLY_FAILED", f"VM_appliance.{verb}", *failed)


@call("VM_appliance.start", "&VM_appliance", "bool")
def appliance_start(ctx: Context, appliance: Row, paused: bool) -> None:  # noqa: FBT001 - the call's signature
    """Start the VMs in their order. Raises OPERATION_PARTIALLY_FAILED."""
    _perform(ctx, appliance, "start", "Paused" if paused else "Running", paused, False)


@call("VM_appliance.clean_shutdown", "&VM_appliance")
def appliance_clean_shutdown(ctx: Context, appliance: Row) -> None:
    """Shut the VMs down cleanly, against their order. Raises OPERATION_PARTIALLY_FAILED."""
    _perform(ctx, appliance, "clean_shutdown", "Halted")


@call("VM_appliance.hard_shutdown", "&VM_appliance")
def appliance_hard_shutdown(ctx: Context, appliance: Row) -> None:
    """End the VMs against their order. Raises OPERATION_PARTIALLY_FAILED."""
    _perform(ctx, appliance, "hard_shutdown", "Halted")


@call("VM_appliance.shutdown", "&VM_appliance")
def appliance_shutdown(ctx: Context, appliance: Row) -> None:
    """Do what hard_shutdown does, as XAPI does."""
    _perform(ctx, appliance, "shutdown", "Halted")
