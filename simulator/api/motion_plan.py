"""What VM.assert_can_migrate looks at before a storage motion (xapi.md 14.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator import xva, xva_objects
from simulator.api import domains, motion_copy
from simulator.api.motion_copy import Chain
from simulator.api.motion_remote import Remote
from simulator.api.registry import Context
from simulator.core.database import Row
from simulator.core.failures import Failure, in_progress
from simulator.xva_import import MAPS_TO

MOST_AT_ONCE = 3
_SOURCE_NEEDS, _TARGET_NEEDS = ("VDI_SNAPSHOT", "VDI_MIRROR"), ("VDI_SNAPSHOT", "VDI_MIRROR_IN")


@dataclass(frozen=True, slots=True)
class Plan:
    """One migration, checked."""

    vm: Row
    host: Row | None
    """The destination in this pool; None: another pool."""
    remote: Remote | None
    chains: list[Chain]
    """The disks that move."""
    networks: dict[str, str]
    """The other pool's network of each VIF, snapshots' ones too."""
    copies: bool
    force: bool

    @property
    def vms(self) -> list[str]:
        """The references of the VMs that move: the VM, and its snapshots unless it is copied."""
        return [self.vm.ref, *([] if self.copies else self.vm["snapshots"])]


@dataclass(frozen=True, slots=True)
class Wish:
    """The parameters of VM.migrate_send."""

    dest: dict[str, str]
    vdi_map: dict[str, str]
    vif_map: dict[str, str]
    options: dict[str, str]


def make(ctx: Context, vm: Row, wish: Wish) -> Plan:
    """Return the plan of a migration. Raises what forbids it, in XAPI's order."""
    host = ctx.db.find("host", wish.dest.get("host", "")) if _is_ours(ctx, wish.dest) else None
    copies, force = wish.options.get("copy") == "true", wish.options.get("force") == "true"
    _assert_mode(vm, wish, copies=copies, is_local=host is not None)
    chains = motion_copy.chains_of(ctx, vm, wish.vdi_map, snapshots_too=not copies)
    if host is not None:
        moving = [chain for chain in chains if chain.leaf["SR"] != chain.sr_ref and not _is_image(chain.leaf)]
        _check_here(ctx, vm, host, moving, force=force)
        return Plan(vm, host, None, moving, {}, copies, force)
    remote = Remote(ctx, wish.dest)
    _check_there(ctx, vm, remote, chains)
    plan = Plan(vm, None, remote, chains, _networks(ctx, vm, wish.vif_map, copies=copies), copies, force)
    for network_ref in set(plan.networks.values()):
        remote.call("network.get_uuid", network_ref)
    _assert_movable(ctx, chains)
    remote.import_metadata(document(ctx, plan, {}), restore=not copies, dry_run=True)
    return plan


def _is_ours(ctx: Context, dest: Mapping[str, str]) -> bool:
    """Tell whether a destination is this pool: two simulated pools of the same seed have the same references."""
    master = ctx.db.row("host", ctx.pool.master_ref)
    return dest.get("master", "") in ("", f"{url_of(ctx, master)}/")


def url_of(ctx: Context, host: Row) -> str:
    """Return where a host answers: its address, and the pool's port, as nothing listens on the standard ones."""
    address = f"[{host['address']}]" if ":" in host["address"] else host["address"]
    return f"{'https' if ctx.pool.settings.tls else 'http'}://{address}:{ctx.pool.port}"


def _is_image(disk: Row) -> bool:
    """Tell whether a disk is a memory image: within a pool it stays where it is."""
    return bool(disk["type"] == "suspend")


def _assert_mode(vm: Row, wish: Wish, *, copies: bool, is_local: bool) -> None:
    if is_local and wish.vif_map:
        raise Failure(
            "OPERATION_NOT_ALLOWED", "Within a pool interfaces keep their networks: the VIF map has to be empty"
        )
    if is_local and copies:
        raise Failure("OPERATION_NOT_ALLOWED", "The option copy needs another pool; within one there is VM.copy")
    if copies and vm["power_state"] != "Halted":
        raise Failure("VM_BAD_POWER_STATE", vm.ref, "halted", vm["power_state"].lower())


def assert_not_too_many(ctx: Context, vm: Row) -> None:
    """Raise TOO_MANY_STORAGE_MIGRATES when so many others are under way."""
    others = [one for one in ctx.db.rows("VM") if "migrate_send" in one["current_operations"].values()]
    if len([one for one in others if one.ref != vm.ref]) >= MOST_AT_ONCE:
        raise Failure("TOO_MANY_STORAGE_MIGRATES", str(MOST_AT_ONCE))


def _lacking(features: Mapping[str, Any] | None, needed: tuple[str, ...]) -> list[str]:
    """Return what a driver lacks; one that mirrors can be mirrored into."""
    if features is None:
        return []
    have = set(features) | ({"VDI_MIRROR_IN"} if "VDI_MIRROR" in features else set())
    return [one for one in needed if one not in have]


def _assert_source(ctx: Context, chain: Chain) -> None:
    sr = ctx.db.row("SR", chain.leaf["SR"])
    _assert_able(sr.ref, _features(ctx, sr), _SOURCE_NEEDS)


def _assert_able(sr_ref: str, features: Mapping[str, Any] | None, needed: tuple[str, ...]) -> None:
    lacking = _lacking(features, needed)
    if lacking:
        raise Failure("SR_DOES_NOT_SUPPORT_MIGRATION", sr_ref, f"[{'; '.join(lacking)}]")


def _features(ctx: Context, sr: Row) -> Mapping[str, Any] | None:
    found = [sm["features"] for sm in ctx.db.rows("SM") if sm["type"] == sr["type"]]
    return found[0] if found else None


def _check_here(ctx: Context, vm: Row, host: Row, moving: list[Chain], *, force: bool) -> None:
    db = ctx.db
    plugged = {pbd["SR"] for pbd in db.linked(host, "PBDs", "PBD") if pbd["currently_attached"]}
    for chain in moving:
        _assert_source(ctx, chain)
        sr = db.row("SR", chain.sr_ref)
        _assert_able(sr.ref, _features(ctx, sr), _TARGET_NEEDS)
        if sr.ref not in plugged:
            raise Failure("VM_REQUIRES_SR", vm.ref, sr.ref)
    moved = {chain.leaf.ref for chain in moving}
    for vbd in db.linked(vm, "VBDs", "VBD"):
        disk = db.find("VDI", vbd["VDI"])
        if disk is not None and disk.ref not in moved and disk["SR"] not in plugged:
            raise Failure("VM_REQUIRES_SR", vm.ref, disk["SR"])
    is_here = vm["resident_on"] == host.ref
    domains.assert_can_boot(ctx, vm, host, storage_too=False, memory_too=not is_here, force=force)
    _assert_movable(ctx, moving)


def _check_there(ctx: Context, vm: Row, remote: Remote, chains: list[Chain]) -> None:
    drivers = {one["type"]: one["features"] for one in remote.call("SM.get_all_records").values()}
    for chain in chains:
        _assert_source(ctx, chain)
        sr = remote.call("SR.get_record", chain.sr_ref)
        _assert_able(chain.sr_ref, drivers.get(sr["type"]), _TARGET_NEEDS)
    host = remote.call("host.get_record", remote.host_ref)
    offered = [int(one) for one in host["virtual_hardware_platform_versions"]]
    if vm["hardware_platform_version"] and vm["hardware_platform_version"] not in offered:
        shown = f"[{'; '.join(str(one) for one in sorted(offered))}]"
        details = (remote.host_ref, shown, vm.ref, str(vm["hardware_platform_version"]))
        raise Failure("VM_HOST_INCOMPATIBLE_VIRTUAL_HARDWARE_PLATFORM_VERSION", *details)
    if not host["enabled"]:
        raise Failure("HOST_DISABLED", remote.host_ref)
    count = host["cpu_info"].get("cpu_count", "")
    if count.isdigit() and vm["VCPUs_max"] > int(count):
        raise Failure("HOST_NOT_ENOUGH_PCPUS", str(vm["VCPUs_max"]), count)
    if vm["power_state"] == "Running":
        needed, free = domains.memory_needed(vm), int(remote.call("host.compute_free_memory", remote.host_ref))
        if needed > free:
            raise Failure("HOST_NOT_ENOUGH_FREE_MEMORY", str(needed), str(free))


def _assert_movable(ctx: Context, chains: list[Chain]) -> None:
    del ctx
    for chain in chains:
        if chain.leaf["cbt_enabled"]:
            raise Failure("VDI_CBT_ENABLED", chain.leaf.ref)
        for task_ref, name in chain.leaf["current_operations"].items():
            raise in_progress("VDI", chain.leaf.ref, name, task_ref)


def _networks(ctx: Context, vm: Row, vif_map: dict[str, str], *, copies: bool) -> dict[str, str]:
    """Return the network of every VIF: as mapped, or as a sibling on the same network is. Raises VIF_NOT_IN_MAP."""
    db = ctx.db
    with db:
        snapshots = [] if copies else db.linked(vm, "snapshots", "VM")
        vifs = [vif for one in [vm, *snapshots] for vif in db.linked(one, "VIFs", "VIF")]
        by_network = {db.row("VIF", ref)["network"]: network for ref, network in vif_map.items()}
        found = {vif.ref: vif_map.get(vif.ref) or by_network.get(vif["network"]) for vif in vifs}
    for ref, network in found.items():
        if network is None:
            raise Failure("VIF_NOT_IN_MAP", ref)
    return {ref: network for ref, network in found.items() if network is not None}


def document(ctx: Context, plan: Plan, made: Mapping[str, str]) -> bytes:
    """Return the records of the VM and its snapshots for the other pool, each disk and VIF with what it is there."""
    db = ctx.db
    with db:
        vms = [db.row("VM", ref) for ref in plan.vms]
        changes: dict[str, dict[str, Any]] = {}
        for cls, maps in (("VDI", made), ("VIF", plan.networks)):
            for ref, there in maps.items():
                row = db.row(cls, ref)
                changes[ref] = {"other_config": row["other_config"] | {MAPS_TO: there}}
        if plan.vm["power_state"] != "Suspended":
            changes[plan.vm.ref] = {"power_state": "Halted", "resident_on": "", "domid": -1}
        return xva.metadata(ctx.pool, xva_objects.describe(ctx.pool, vms, keeps_power_state=True, changes=changes))
