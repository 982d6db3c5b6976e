"""VM.pool_migrate, VM.migrate_send and their kin: VMs change host, repository or pool (xapi.md 14.3, 14.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import simulator.motion_receive  # noqa: F401 - registers its handler
from simulator.api import device_rules, domains, motion_plan, vdi, vm_copy
from simulator.api.motion_copy import Local, Mover, properties
from simulator.api.motion_memory import able, migrate_within, send_memory
from simulator.api.motion_plan import Plan, Wish
from simulator.api.registry import Context, call
from simulator.api.vm_power import on_vm
from simulator.core.database import Row
from simulator.core.failures import Failure

if TYPE_CHECKING:
    from simulator.api.motion_remote import Remote

__all__ = ["migrate_within"]


@call("VM.pool_migrate", "&VM", "&host", "string->string")
def pool_migrate(ctx: Context, vm: Row, host: Row, options: dict[str, str]) -> None:
    """Move a running VM to another host, or within its own.

    Raises VM_LACKS_FEATURE, what forbids the VM on that host (HOST_NOT_ENOUGH_FREE_MEMORY, VM_REQUIRES_SR and so on),
    TASK_CANCELLED; the VM then runs on where it was.
    """
    if "network" in options:
        ctx.db.row("network", options["network"])
    migrate_within(ctx, vm, host, force=options.get("force") == "true")


_SEND = ("&VM", "string->string", "bool", "@VDI->@SR", "@VIF->@network", "string->string", "@VGPU->@GPU_group?")


@call("VM.assert_can_migrate", *_SEND)
def assert_can_migrate(ctx: Context, vm: Row, dest: dict[str, str], live: bool, *rest: Any) -> None:  # noqa: FBT001 - the call's signature
    """Raise what forbids VM.migrate_send with the same parameters."""
    del live
    vdi_map, vif_map, options = rest[:3]
    motion_plan.make(ctx, vm, Wish(dest, vdi_map, vif_map, options))


@call("VM.assert_can_migrate_sender", "&VM", "string->string", "bool", "@VDI->@SR", "@VIF->@network",
      "@VGPU->@GPU_group", "string->string")  # fmt: skip
def assert_can_migrate_sender(ctx: Context, vm: Row, dest: dict[str, str], live: bool, *rest: Any) -> None:  # noqa: FBT001 - the call's signature
    """Raise what forbids the source's part of a migration; the options come last here."""
    vdi_map, vif_map, _vgpu_map, options = rest
    assert_can_migrate(ctx, vm, dest, live, vdi_map, vif_map, options, None)


@call("VM.migrate_send", *_SEND, "@VDI->string?", returns="@VM")
def migrate_send(ctx: Context, vm: Row, dest: dict[str, str], live: bool, *rest: Any) -> str:  # noqa: FBT001 - the call's signature
    """Move a VM and its disks to other repositories of the pool, or to another pool; return it there.

    Raises what VM.assert_can_migrate does, TOO_MANY_STORAGE_MIGRATES, TASK_CANCELLED; both sides are then as before.
    """
    del live
    vdi_map, vif_map, options = rest[:3]
    return send(ctx, vm, Wish(dest, vdi_map, vif_map, options))


def send(ctx: Context, vm: Row, wish: Wish) -> str:
    """Do what VM.migrate_send does."""
    with on_vm(ctx, vm, "migrate_send"):
        with ctx.db:
            motion_plan.assert_not_too_many(ctx, vm)
        plan = motion_plan.make(ctx, vm, wish)
        if plan.remote is not None:
            return _send_away(ctx, plan, plan.remote)
        assert plan.host is not None  # noqa: S101 - one of the two is given
        _send_within(ctx, plan, plan.host)
        return vm.ref


# -- within the pool


def _send_within(ctx: Context, plan: Plan, host: Row) -> None:
    vm, mover = plan.vm, Mover(ctx, Local(ctx))
    is_running = vm["power_state"] == "Running"
    old_disks = [disk for chain in plan.chains for disk in [*chain.snapshots, chain.leaf]]
    try:
        mover.copy(plan.chains, live=is_running)
        if is_running and vm["resident_on"] != host.ref:
            with domains.placed(
                ctx, vm, lambda: able(ctx, vm, host, force=plan.force, storage_too=False), "vm_migrate"
            ):
                send_memory(ctx, vm, 0.8)
                _switch(ctx, plan, mover, host)
        else:
            _switch(ctx, plan, mover, None)
    except Failure:
        mover.undo()
        raise
    finally:
        if vm["power_state"] == "Running":
            ctx.pool.guests.moved(vm)
    mover.drop_frozen()
    _discard(ctx, old_disks)


def _switch(ctx: Context, plan: Plan, mover: Mover, host: Row | None) -> None:
    """Bring the last writes over, and make the VM use the new disks, on the new host if one is given."""
    vm = plan.vm
    ctx.pool.guests.paused(vm)
    mover.finish()
    with ctx.db as db:
        for old_ref, new_ref in mover.made.items():
            old, new = db.row("VDI", old_ref), db.row("VDI", new_ref)
            db.put(new, **properties(old), snapshot_of=mover.made.get(old["snapshot_of"], old["snapshot_of"]))
            _repoint(ctx, old, new)
        if host is not None:
            domains.move_domain(ctx, vm, host)


def _repoint(ctx: Context, old: Row, new: Row) -> None:
    """Put a new disk in the place of an old one; the database is locked."""
    db = ctx.db
    in_use = {key: one for key, one in old["sm_config"].items() if key.startswith("host_OpaqueRef:")}
    for vbd in db.linked(old, "VBDs", "VBD"):
        db.put(vbd, VDI=new.ref)
    for disk in db.rows("VDI"):
        if disk["snapshot_of"] == old.ref:
            db.put(disk, snapshot_of=new.ref)
    for vm in db.rows("VM"):
        if vm["suspend_VDI"] == old.ref:
            db.put(vm, suspend_VDI=new.ref)
    db.put(new, sm_config=new["sm_config"] | in_use)
    kept = {key: one for key, one in old["sm_config"].items() if key not in in_use}
    db.put(old, sm_config=kept)
    device_rules.refresh_vdi(db, old)
    device_rules.refresh_vdi(db, new)


def _discard(ctx: Context, disks: list[Row]) -> None:
    """Remove disks that have moved, and wake the collectors of their repositories."""
    for disk in disks:
        if ctx.db.find("VDI", disk.ref) is not None:
            vdi.discard(ctx, disk)
            ctx.pool.collector(ctx.db.row("SR", disk["SR"])).kick()


# -- to another pool


def _send_away(ctx: Context, plan: Plan, remote: Remote) -> str:
    vm, mover = plan.vm, Mover(ctx, remote)
    was_running = vm["power_state"] == "Running"
    new_vm_ref = ""
    try:
        mover.copy(plan.chains, live=was_running)
        if was_running and vm["power_state"] == "Running":
            send_memory(ctx, vm, 0.8)
        ctx.pool.guests.paused(vm)
        mover.finish()
        new_vm_ref = remote.import_metadata(motion_plan.document(ctx, plan, mover.made), restore=not plan.copies)
        if vm["power_state"] == "Running":
            habits = ctx.pool.db.notes.get(f"guest/{vm['uuid']}", {})
            remote.send_memory(vm["uuid"], habits)
    except Failure:
        _forget_there(remote, new_vm_ref)
        mover.undo()
        if vm["power_state"] == "Running":
            ctx.pool.guests.moved(vm)
        raise
    if not plan.copies:
        _leave(ctx, plan, mover)
    return new_vm_ref


def _forget_there(remote: Remote, new_vm_ref: str) -> None:
    """Remove the VM and its snapshots from the other pool, as far as it can be reached."""
    if not new_vm_ref:
        return
    try:
        for ref in [*remote.call("VM.get_snapshots", new_vm_ref), new_vm_ref]:
            remote.call("VM.destroy", ref)
    except Failure:
        return


def _leave(ctx: Context, plan: Plan, mover: Mover) -> None:
    """Remove what has moved: the VM, its snapshots, and their disks."""
    vm, pool = plan.vm, ctx.pool
    disks = [disk for chain in plan.chains for disk in [*chain.snapshots, chain.leaf]]
    pool.guests.paused(vm)
    with ctx.db as db:
        if vm["power_state"] != "Halted":
            domains.end_domain(ctx, vm, state="Halted")
        for row in [*db.linked(vm, "snapshots", "VM"), vm]:
            vm_copy.remove(ctx, row)
    mover.drop_frozen()
    _discard(ctx, disks)


@call("VDI.pool_migrate", "&VDI", "&SR", "string->string", returns="@VDI")
def vdi_pool_migrate(ctx: Context, disk: Row, sr: Row, options: dict[str, str]) -> str:
    """Move one disk of a running VM to another repository. Raises VDI_NEEDS_VM_FOR_MIGRATE when no VM uses it."""
    db = ctx.db
    with db:
        users = [vbd for vbd in device_rules.attached_vbds(db, disk) if not _is_dom0(ctx, vbd)]
        if not users:
            raise Failure("VDI_NEEDS_VM_FOR_MIGRATE", disk.ref)
        vbd = users[0]
        vm = db.row("VM", vbd["VM"])
        ours = [db.find("VDI", one["VDI"]) for one in db.linked(vm, "VBDs", "VBD") if one["type"] == "Disk"]
        vdi_map = {one.ref: one["SR"] for one in ours if one is not None} | {disk.ref: sr.ref}
        dest = {"host": str(vm["resident_on"])}
    if disk["SR"] == sr.ref:
        return disk.ref
    send(ctx, vm, Wish(dest, vdi_map, {}, options))
    return str(vbd["VDI"])


def _is_dom0(ctx: Context, vbd: Row) -> bool:
    return bool(ctx.db.row("VM", vbd["VM"])["is_control_domain"])


@call("host.migrate_receive", "&host", "&network", "string->string", returns="string->string")
def migrate_receive(ctx: Context, host: Row, network: Row, options: dict[str, str]) -> dict[str, str]:
    """Get ready for a VM of another pool; return what its VM.migrate_send needs.

    Raises HOST_CANNOT_ATTACH_NETWORK, PIF_HAS_NO_NETWORK_CONFIGURATION, INTERFACE_HAS_NO_IP.
    """
    del options
    pool, db = ctx.pool, ctx.db
    with db:
        pifs = [pif for pif in db.linked(network, "PIFs", "PIF") if pif["host"] == host.ref]
        if not pifs:
            raise Failure("HOST_CANNOT_ATTACH_NETWORK", host.ref, network.ref)
        if pifs[0]["ip_configuration_mode"] == "None" and pifs[0]["ipv6_configuration_mode"] == "None":
            raise Failure("PIF_HAS_NO_NETWORK_CONFIGURATION", pifs[0].ref)
        if not pifs[0]["IP"] and not pifs[0]["IPv6"]:
            raise Failure("INTERFACE_HAS_NO_IP", pifs[0].ref)
        session = pool.sessions.open(pool.settings.user, "storage motion")
        here, master = motion_plan.url_of(ctx, host), motion_plan.url_of(ctx, db.row("host", pool.master_ref))
    return {
        "SM": f"{here}/services/SM?session_id={session.ref}",
        "host": host.ref,
        "xenops": f"{here}/services/xenops?session_id={session.ref}",
        "session_id": session.ref,
        "master": f"{master}/",
    }
