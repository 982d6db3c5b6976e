"""VMSS.*: schedules of snapshots. Nothing runs by the clock here; `snapshot_now` does what the clock would."""

from __future__ import annotations

import contextlib
from typing import Any

from simulator import messages
from simulator.api.registry import Context, call, dispatch
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.types import NULL

_DAYS = frozenset({"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"})
_MINUTES = frozenset({"0", "15", "30", "45"})
_HOURS = 24
_MOST_RETAINED = 10
#: The keys of a schedule by frequency, with what they are when nothing is said.
_KEYS = {
    "hourly": {"min": "0"},
    "daily": {"hour": "0", "min": "0"},
    "weekly": {"hour": "0", "min": "0", "days": "Monday"},
}
#: How a VM is snapshotted, by the schedule's type.
_CALLS = {"snapshot": "VM.snapshot", "checkpoint": "VM.checkpoint"}


def _is_valid(key: str, value: str) -> bool:
    if key == "min":
        return value in _MINUTES
    if key == "hour":
        return value.isdecimal() and int(value) < _HOURS
    return key == "days" and set(value.split(",")) <= _DAYS


def _assert_keys(schedule: dict[str, str]) -> None:
    """Raise INVALID_VALUE for a key or value that no schedule has."""
    for key, value in schedule.items():
        if not _is_valid(key, value):
            raise Failure("INVALID_VALUE", f"schedule:{key}", value)


def _fitting(frequency: str, schedule: dict[str, str]) -> dict[str, str]:
    """Return a schedule with exactly the keys of a frequency."""
    return {key: schedule.get(key, value) for key, value in _KEYS[frequency].items()}


def _assert_retained(value: int) -> None:
    if not 1 <= value <= _MOST_RETAINED:
        raise Failure("INVALID_VALUE", "retained_snapshots", str(value))


def _assert_type(value: str) -> None:
    if value not in _CALLS:
        raise Failure("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", NULL)


@call("VMSS.create", "record:VMSS", returns="@VMSS")
def vmss_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a schedule. Raises INVALID_VALUE."""
    schedule = record.get("schedule", {})
    _assert_type(record["type"])
    _assert_keys(schedule)
    _assert_retained(record.get("retained_snapshots", 7))
    values = {"uuid": ctx.pool.ids.uuid(), "schedule": _fitting(record["frequency"], schedule)}
    with ctx.db as db:
        return db.create("VMSS", ctx.pool.ids.ref(), record | values).ref


@call("VMSS.destroy", "&VMSS")
def vmss_destroy(ctx: Context, vmss: Row) -> None:
    """Remove a schedule with the messages about it. Raises VMSS_HAS_VM."""
    with ctx.db as db:
        if vmss["VMs"]:
            raise Failure("VMSS_HAS_VM")
        messages.drop_about(ctx.pool, vmss["uuid"])
        db.delete(vmss)


@call("VMSS.set_frequency", "&VMSS", "vmss_frequency")
def vmss_set_frequency(ctx: Context, vmss: Row, value: str) -> None:
    """Choose how often; the schedule gets the keys of it."""
    with ctx.db as db:
        db.put(vmss, frequency=value, schedule=_fitting(value, vmss["schedule"]))


@call("VMSS.set_schedule", "&VMSS", "string->string")
def vmss_set_schedule(ctx: Context, vmss: Row, value: dict[str, str]) -> None:
    """Choose when. Raises INVALID_VALUE."""
    _assert_keys(value)
    with ctx.db as db:
        db.put(vmss, schedule=value)


@call("VMSS.add_to_schedule", "&VMSS", "string", "string")
def vmss_add_to_schedule(ctx: Context, vmss: Row, key: str, value: str) -> None:
    """Add a key to the schedule. Raises INVALID_VALUE, MAP_DUPLICATE_KEY."""
    _assert_keys({key: value})
    with ctx.db as db:
        if key in vmss["schedule"]:
            raise Failure("MAP_DUPLICATE_KEY", "VMSS", "schedule", vmss.ref, key)
        db.put(vmss, schedule=vmss["schedule"] | {key: value})


@call("VMSS.set_retained_snapshots", "&VMSS", "int")
def vmss_set_retained_snapshots(ctx: Context, vmss: Row, value: int) -> None:
    """Choose how many snapshots of each VM stay, 1 to 10. Raises INVALID_VALUE."""
    _assert_retained(value)
    with ctx.db as db:
        db.put(vmss, retained_snapshots=value)


@call("VMSS.set_type", "&VMSS", "vmss_type")
def vmss_set_type(ctx: Context, vmss: Row, value: str) -> None:
    """Choose between snapshots and checkpoints. Raises VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED."""
    _assert_type(value)
    with ctx.db as db:
        db.put(vmss, type=value)


@call("VMSS.snapshot_now", "&VMSS", returns="string")
def vmss_snapshot_now(ctx: Context, vmss: Row) -> str:
    """Snapshot the schedule's VMs now, and remove the oldest of its snapshots that are too many."""
    with ctx.db as db:
        vms = db.linked(vmss, "VMs", "VM")
        db.put(vmss, last_run_time=ctx.pool.clock.stamp())
    for vm in vms:
        with contextlib.suppress(Failure):
            _snapshot(ctx, vmss, vm)
    return ""


def _snapshot(ctx: Context, vmss: Row, vm: Row) -> None:
    session_ref = ctx.session.ref if ctx.session is not None else NULL
    label = f"[{vmss['name_label']}]-{vm['name_label']}-{ctx.pool.clock.stamp()}"
    ref = dispatch(ctx.pool, _CALLS[vmss["type"]], [session_ref, vm.ref, label])[1]
    with ctx.db as db:
        db.put(db.row("VM", ref), is_vmss_snapshot=True)
        own = [one for one in db.linked(vm, "snapshots", "VM") if one["is_vmss_snapshot"]]
    own.sort(key=lambda one: one.created)
    for old in own[: -vmss["retained_snapshots"]]:
        dispatch(ctx.pool, "VM.destroy", [session_ref, old.ref])
