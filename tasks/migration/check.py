"""First step of a resize or move: the VM, its disks, the destination, and all that can be refused. Changes nothing."""

from __future__ import annotations

from typing import Any

from tasks.migration.request import MigrateRequest
from tasks.parts.disks import is_volume, role_of
from tasks.parts.filtering import refuse_unfiltered
from tasks.parts.instances import ROLE, hold_of, instance_uuid, take_fresh
from tasks.parts.kernels import refuse_other_pool
from tasks.parts.migrated import LEFT_NAME, refuse_migrating
from tasks.parts.power import assert_unlocked, refuse_state
from tasks.parts.snapshots import why_never
from tasks.provision.check import GIB, MIB, Facts, Host
from tasks.provision.networks import find_network
from tasks.provision.request import Flavor, Network
from worker.disks import ext
from worker.errors import (
    DiskNotFound,
    InstanceExists,
    InsufficientFreeMemory,
    NetworkNotFound,
    RequestError,
    ResizeRefused,
    StorageFull,
    StorageUnsupported,
)
from worker.operations.definition import step
from worker.operations.op import Op
from worker.resources import Pools
from worker.xenapi import event, host, sr, vbd, vm
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

#: How a disk goes. A file system that has to become smaller goes through the worker's own folder, everything else
#: straight on: within a storage repository as a clone, within a pool as a copy that XAPI makes, else as a stream.
CLONE, COPY, STREAM, SHRINK = "clone", "copy", "stream", "shrink"

_KEPT = ("uuid", "name_label", "power_state", "domid", "resident_on", "affinity", "blocked_operations")
_ROLES = (ROLE, "nova_disk_type")
Records = dict[tuple[str, str], dict[str, Any]]


@step
def look_at_both(op: Op, pool: Session, pools: Pools) -> None:
    """Find the VM and the destination, have both to oneself, choose how each disk goes. Refuses what cannot work."""
    request = op.request(MigrateRequest)
    there = pools(request.dest.pool)
    found = take_fresh(op, pool)
    _check_vm(found.rec)
    _check_name(there, found)
    queue = request.on_conflict == "wait"
    op.hold(hold_of(found.rec), queue=queue, pool=there.pool_name)
    devices = [rec for rec in vbd.of_vm(pool, found.ref).values() if not rec["empty"]]
    looks = [*(f"VDI/{rec['VDI']}" for rec in devices), *(f"VIF/{ref}" for ref in found.rec["VIFs"])]
    here = event.records(pool, [*looks, "SR", "pool", "network"])
    devices = _that_go(devices, here, instance_uuid(found.rec))
    records = event.records(there, ["pool", "host", "host_metrics", "SR", "PBD", "network"])
    facts = Facts(records, there.pool_name)
    plans = [_plan(pool, rec, here, found.rec) for rec in devices if not is_volume(rec)]
    if not plans:
        raise DiskNotFound(f"VM {found.rec['name_label']!r} has no disk of its own: there is nothing to move.")
    _choose_storage(request, plans, facts, is_same_pool=there.pool_name == pool.pool_name)
    _check_flavor(request, plans)
    check_room(plans, records, there.pool_name)
    is_here = found if there.pool_name == pool.pool_name else None
    if is_here is None:
        refuse_unfiltered(there, found.rec)
        refuse_other_pool(found.rec, there.pool_name)
    wanted = str(request.dest.host) if request.dest.host else None
    sr_refs = sorted({disk["target_sr_ref"] for disk in plans})
    hosts = facts.hosts(sr_refs, wanted, request.instance_type.vcpus)
    if found.rec["power_state"] == "Running":
        check_memory(there, request.instance_type, hosts, is_here)
    op.remember(
        vm={"ref": found.ref, "name": found.rec["name_label"], **{field: found.rec[field] for field in _KEPT}},
        instance=instance_uuid(found.rec),
        master=next(rec["master"] for (cls, _), rec in here.items() if cls == "pool"),
        there=there.pool_name,
        disks=plans,
        collectors={disk["sr_ref"]: sr.can_coalesce(here["sr", disk["sr_ref"]]) for disk in plans},
        missing_networks=_missing_networks(op, here, facts, there) if is_here is None else [],
        volumes=[here["vdi", rec["VDI"]]["uuid"] for rec in devices if is_volume(rec)],
    )


def _check_vm(vm_rec: dict[str, Any]) -> None:
    refuse_migrating(vm_rec, "moved once more")
    if vm.is_rescue_vm(vm_rec) or str(vm_rec["name_label"]).endswith(LEFT_NAME):
        raise RequestError(f"VM {vm_rec['name_label']!r} is no instance's own VM by its name: name that one.")
    for field, what in (("VTPMs", "vTPM"), ("VGPUs", "vGPU"), ("attached_PCIs", "PCI device")):
        if vm_rec.get(field):
            raise RequestError(
                f"VM {vm_rec['name_label']!r} has a {what}, which cannot go with it: take it away first."
            )
    assert_unlocked(vm_rec, "start", "start_on", "clean_shutdown", "hard_shutdown", "destroy")
    if vm_rec["power_state"] not in {"Running", "Halted"}:
        raise refuse_state(vm_rec, "resized", "resume or unpause it, or power it off first")


def _check_name(there: Session, found: Found) -> None:
    """Refuse a name that another VM bears where this one shall have it: once it is halted, that would be late."""
    name = found.rec["name_label"]
    for one in vm.matching(there, name=name):
        if one.rec["uuid"] != found.rec["uuid"]:
            raise InstanceExists(
                f"Pool {there.pool_name!r} has another VM called {name!r} ({one.rec['uuid']}): rename one of them."
            )


def _missing_networks(op: Op, here: Records, facts: Facts, there: Session) -> list[str]:
    """Return the VM's networks that the other pool has not, and say so while the VM still runs."""
    wanted = {str(here["network", rec["network"]]["name_label"]) for (cls, _), rec in here.items() if cls == "vif"}
    missing = []
    for name in sorted(wanted):
        try:
            find_network(facts.records, Network(network=name), there.pool_name)
        except NetworkNotFound as error:
            op.note(f"{error} finish_migration needs to be told the networks")
            missing.append(name)
    return missing


def _that_go(vbd_recs: list[dict[str, Any]], here: Records, instance: str | None) -> list[dict[str, Any]]:
    """Return the VBDs of what goes along, by position: disks, and a CD that was made for the instance."""
    owner = instance.lower() if instance else None
    found = [
        rec
        for rec in vbd_recs
        if rec["type"] == "Disk" or (("vdi", rec["VDI"]) in here and role_of(here["vdi", rec["VDI"]], owner))
    ]
    return sorted(found, key=lambda rec: vbd.position(rec["userdevice"]))


def _plan(pool: Session, vbd_rec: dict[str, Any], here: Records, vm_rec: dict[str, Any]) -> dict[str, Any]:
    what = f"Disk {vbd_rec['userdevice']} of VM {vm_rec['name_label']!r}"
    vdi_rec = here.get(("vdi", vbd_rec["VDI"]))
    if vdi_rec is None:
        raise DiskNotFound(f"{what} has left the pool while it was looked at: submit again.")
    reason = why_never(pool, vdi_rec, here["sr", vdi_rec["SR"]])
    if reason:
        raise StorageUnsupported(f"{what} (VDI {vdi_rec['uuid']}) {reason}")
    marks = vdi_rec["other_config"]
    return {
        "userdevice": vbd_rec["userdevice"],
        "mode": vbd_rec["mode"],
        "type": vbd_rec["type"],
        "bootable": vbd_rec["bootable"],
        "vdi_ref": vbd_rec["VDI"],
        "vdi_uuid": vdi_rec["uuid"],
        "sr_ref": vdi_rec["SR"],
        "virtual_size": int(vdi_rec["virtual_size"]),
        "name_label": vdi_rec["name_label"],
        "role": next((marks[key] for key in _ROLES if key in marks), ""),
        "size": int(vdi_rec["virtual_size"]),
        # What a VHD holds by itself, without its parents: so much at least has to be written.
        "own_bytes": 0 if _is_thick(here["sr", vdi_rec["SR"]]) else int(vdi_rec["physical_utilisation"]),
    }


def root_of(disks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the root disk: at position 0, or the first that can be booted from, or the first."""
    at_0 = [disk for disk in disks if disk["userdevice"] in {"0", "xvda", "hda", "sda"}]
    return next(iter([*at_0, *(disk for disk in disks if disk["bootable"])]), disks[0])


def _choose_storage(request: MigrateRequest, plans: list[dict[str, Any]], facts: Facts, *, is_same_pool: bool) -> None:
    """Say for each disk where it goes to and how."""
    wanted = request.dest.sr
    default = None if is_same_pool and wanted is None else facts.storage(str(wanted) if wanted else None)
    for disk in plans:
        disk["target_sr_ref"] = default or disk["sr_ref"]
        if not is_same_pool:
            disk["transport"] = STREAM
        else:
            disk["transport"] = CLONE if disk["target_sr_ref"] == disk["sr_ref"] else COPY
    root = root_of(plans)
    wish = request.instance_type.root_gb * GIB
    if root["size"] > wish and request.auto_disk_config:
        if not wish:
            raise ResizeRefused(
                "The flavor has root_gb 0, and no disk can be made that small: choose another flavor, or submit with "
                "auto_disk_config=false, which keeps the disk as it is."
            )
        ext.find_tools()
        root |= {"transport": SHRINK, "size": wish}
    for disk in plans:
        disk["pushed"] = disk["transport"] == CLONE  # needs no snapshot: it is cloned when the VM is halted


def _check_flavor(request: MigrateRequest, plans: list[dict[str, Any]]) -> None:
    has = sum(disk["size"] for disk in plans if disk["role"] == "ephemeral")
    if has > request.instance_type.ephemeral_gb * GIB:
        raise ResizeRefused(
            f"The VM has {has / GIB:.1f} GiB of ephemeral disks and the flavor {request.instance_type.ephemeral_gb}: "
            "they cannot be made smaller. Choose a flavor with at least as much."
        )


def _is_thick(sr_rec: dict[str, Any]) -> bool:
    """Tell whether a disk takes its whole size from the beginning (xapi.md 6.3)."""
    return str(sr_rec["type"]).startswith("lvm")


def check_room(plans: list[dict[str, Any]], there: Records, pool_name: str) -> None:
    """Raise StorageFull where the disks have no room for certain; what their parents hold is not known here."""
    for sr_ref in {disk["target_sr_ref"] for disk in plans}:
        rec = there["sr", sr_ref]
        incoming = [disk for disk in plans if disk["target_sr_ref"] == sr_ref and disk["transport"] != CLONE]
        needed = sum(disk["size"] if _is_thick(rec) else min(disk["own_bytes"], disk["size"]) for disk in incoming)
        free = int(rec["physical_size"]) - int(rec["physical_utilisation"])
        if int(rec["physical_size"]) > 0 and needed > free:
            raise StorageFull(
                f"Storage repository {rec['name_label']!r} of pool {pool_name!r} has {max(free, 0) // MIB} MiB left, "
                f"and the disks take {needed // MIB} MiB at least: make room there, or name another one with dest.sr."
            )


def check_memory(there: Session, flavor: Flavor, hosts: list[Host], own: Found | None = None) -> None:
    """Raise InsufficientFreeMemory unless a host has room for the VM in its new size.

    `own` is the VM when it runs in the same pool: what it takes is free then.
    """
    best = 0
    for one in hosts:
        own_bytes = int(own.rec["memory_static_max"]) if own and own.rec["resident_on"] == one.ref else 0
        best = max(best, host.free_memory(there, one.ref) + own_bytes)
        if best >= flavor.memory_mb * MIB:
            return
    raise InsufficientFreeMemory(
        f"No host of pool {there.pool_name!r} has {flavor.memory_mb} MiB of free memory for the VM (the most is "
        f"{best // MIB} MiB)."
    )
