"""finish_migration: make the VM whose disks have been moved, in its new size, and start it.

    find_moved -> prepare -> build -> boot -> settle

It is made like the VM that is left: what that one's record, interfaces and XenStore data say, but for memory,
processors and host; so are its disks' names and marks. Left behind when it fails: nothing. Then the whole move is taken
back: the VM that was left has its name again and runs if it ran before, and the disks at the destination are gone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from tasks.migration import back
from tasks.migration.blueprint import kept_keys, vbd_fields, vif_fields, vm_struct
from tasks.migration.check import check_memory, root_of
from tasks.migration.request import FinishRequest
from tasks.parts import power
from tasks.parts.disks import is_volume
from tasks.parts.instances import DISK, OPERATION, instance_uuid
from tasks.parts.lost import await_lost, intend, was_intended
from tasks.parts.migrated import (
    FINISHED,
    FINISHED_THERE,
    FINISHING,
    MADE_FROM,
    MIGRATED_BY,
    MOVED,
    Mark,
    locks_of,
)
from tasks.provision.check import GIB, NULL, Facts
from tasks.provision.guestdata import mac_of
from tasks.provision.networks import Records, ensure_network, fields_of, find_network
from tasks.provision.request import Network
from worker.errors import InstanceExists, RequestError, WrongPowerState
from worker.network.desired import addresses_of, groups_of
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.resources import Pools
from worker.xenapi import event, vbd, vdi, vif, vm, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

_CREATE = "VM.create"


@step
def find_moved(op: Op, pools: Pools) -> None:
    """Find the VM that is left, and have the instance to oneself in both pools. Changes nothing."""
    request = op.request(FinishRequest)
    here = pools(request.migration.pool)
    found = vm.find(here, vm_uuid=str(request.migration.vm_uuid))
    back.hold_both(op, _checked(op, found), found.rec, queue=request.on_conflict == "wait")
    found = vm.find(here, vm_uuid=str(request.migration.vm_uuid))
    mark = _checked(op, found)
    if found.rec["power_state"] != "Halted":
        raise WrongPowerState(f"VM {found.rec['name_label']!r} runs again: its disks at the destination are outdated.")
    for position, wish in enumerate(request.networks or []):
        if groups_of(found.rec) and not wish.addresses:
            raise RequestError(
                f"VM {mark.name!r} is in security groups: give networks.{position} the addresses that are its own "
                "(ipv4_allowed, ipv6_allowed, or info.ips)."
            )
    owner = instance_uuid(found.rec) or found.rec["uuid"]
    op.remember(mark=mark.plain(), left={"ref": found.ref}, instance=owner)


def _checked(op: Op, found: Found) -> Mark:
    mark = back.required(Mark.of(found.rec), found.rec)
    wanted = op.request(FinishRequest).migration.id
    if mark.side != "source" or (wanted is not None and str(wanted) != mark.migration):
        raise RequestError(f"VM {found.rec['name_label']!r} was not left by this migration: check vm_uuid and id.")
    if mark.state != MOVED:
        raise RequestError(
            f"The migration of VM {mark.name!r} is in state {mark.state!r}: only a moved one can be finished."
        )
    if mark.destination["pool"] != op.pool_name:
        raise RequestError(f"The disks of VM {mark.name!r} are in pool {mark.destination['pool']!r}: name that one.")
    return mark


def _mark(op: Op) -> Mark:
    return Mark(**op.data["mark"])


# -- preparing


def take_back(op: Op, pool: Session, pools: Pools) -> None:
    """Take the whole move back. The VM that was left comes first. Raises Wait."""
    mark, is_made = _mark(op), was_intended(op, _CREATE)
    if is_made:
        await_lost(op, pool, _CREATE)
    here = pools(mark.source["pool"])
    back.take_back(op, here, pool, mark, power_on=mark.power == "Running", is_made=is_made)


@step(undo=take_back)
def prepare(op: Op, pool: Session, pools: Pools) -> None:
    """Choose networks and hosts, and make the disks as large as the flavor says."""
    mark, here = _mark(op), pools(_mark(op).source["pool"])
    back.set_mark(here, op.data["left"]["ref"], mark.at(FINISHING, back.pool_time(here), op.id))
    request = op.request(FinishRequest)
    disks = [f"VDI/{disk['vdi_ref']}" for disk in mark.disks]
    records = event.records(pool, ["pool", "host", "host_metrics", "SR", "PBD", "network", "PIF", *disks])
    facts = Facts(records, pool.pool_name)
    vdis = {ref: rec for (cls, ref), rec in records.items() if cls == "vdi"}
    lost = [disk["vdi_uuid"] for disk in mark.disks if disk["vdi_ref"] not in vdis]
    if lost:
        raise RequestError(
            f"The disks {', '.join(lost)} are gone from pool {pool.pool_name!r}: the move is taken back."
        )
    for found in vm.matching(pool, name=mark.name):
        if found.rec["other_config"].get(MIGRATED_BY) != mark.migration:
            raise InstanceExists(f"Pool {pool.pool_name!r} has another VM called {mark.name!r} ({found.rec['uuid']}).")
    hosts = facts.hosts(
        sorted({rec["SR"] for rec in vdis.values()}), mark.destination["host"] or None, request.instance_type.vcpus
    )
    if _shall_run(op):
        check_memory(pool, request.instance_type, hosts)
    interfaces = _interfaces(op, pool, here, records)
    if request.resize_instance:
        _grow(pool, request, mark, vdis)
    wanted = [one.ref for one in hosts if one.rec["uuid"] == mark.destination["host"]]
    op.remember(interfaces=interfaces, affinity=wanted[0] if wanted else NULL)


def _shall_run(op: Op) -> bool:
    wish = op.request(FinishRequest).power_on
    return _mark(op).power == "Running" if wish is None else wish


def _interfaces(op: Op, pool: Session, here: Session, records: Records) -> list[dict[str, Any]]:
    """Return what the interfaces shall be, by device: as asked for, or those of the VM that is left.

    Where XAPI's locks stand in for security groups, those of a VM that is in one are locked to their addresses.
    """
    wishes, left_ref = op.request(FinishRequest).networks, op.data["left"]["ref"]
    former = sorted(vif.of_vm(here, left_ref).values(), key=lambda rec: int(rec["device"]))
    names = event.records(here, ["network", f"VM/{left_ref}"])
    left_rec = names["vm", left_ref]
    is_locked = bool(groups_of(left_rec)) and pool.settings.firewall == "xapi-lock"
    if wishes is not None:
        macs = {rec["device"]: rec["MAC"] for rec in former}
        owner = op.data["instance"]
        return [
            {
                "network": find_network(records, one, pool.pool_name) or ensure_network(op, pool, one),
                "mac": one.mac or macs.get(str(device)) or mac_of(owner, device),
                "device": str(device),
                **fields_of(op, one, is_locked=is_locked),
            }
            for device, one in enumerate(wishes)
        ]
    known = "uuid" if here.pool_name == pool.pool_name else "name_label"
    return [
        {
            "network": find_network(records, Network(network=names["network", rec["network"]][known]), pool.pool_name),
            "mac": rec["MAC"],
            "device": rec["device"],
            **vif_fields(rec, op.id, addresses_of(rec, left_rec) if is_locked else None),
        }
        for rec in former
    ]


def _grow(pool: Session, request: FinishRequest, mark: Mark, vdis: dict[str, dict[str, Any]]) -> None:
    """Make the root disk as large as the flavor's; and the last ephemeral one, when all of them are below it."""
    root = root_of(mark.disks)["vdi_ref"]
    wishes = {root: request.instance_type.root_gb * GIB}
    ephemeral = [disk["vdi_ref"] for disk in mark.disks if disk["role"] == "ephemeral"]
    if ephemeral:
        others = sum(int(vdis[ref]["virtual_size"]) for ref in ephemeral[:-1])
        wishes[ephemeral[-1]] = request.instance_type.ephemeral_gb * GIB - others
    for ref, wish in wishes.items():
        if int(vdis[ref]["virtual_size"]) < wish:
            vdi.resize(pool, ref, wish)


# -- building


@step
def build(op: Op, pool: Session, pools: Pools) -> None:
    """Make the VM with its disks and interfaces, each once."""
    mark, here = _mark(op), pools(_mark(op).source["pool"])
    made: list[Found] = []
    if was_intended(op, _CREATE):
        await_lost(op, pool, _CREATE)
        made = back.made_by(pool, mark.name, mark.migration)
    if made:
        vm_ref = made[0].ref
    else:
        former = vm_power.get(here, op.data["left"]["ref"])
        struct = vm_struct(former, op.request(FinishRequest).instance_type, op.data["affinity"])
        struct["name_label"] = mark.name
        struct["other_config"] |= {OPERATION: op.id, MIGRATED_BY: mark.migration}
        ours = locks_of(former, mark.migration)
        disks = event.records(here, [f"VDI/{disk['source_ref']}" for disk in mark.disks])
        op.remember(
            locks={key: text for key, text in former["blocked_operations"].items() if key not in ours},
            disk_names={ref: (rec["name_label"], kept_keys(rec["other_config"])) for (_, ref), rec in disks.items()},
        )
        intend(op, _CREATE)
        vm_ref = vm.create(pool, struct)
    op.remember(vm={"ref": vm_ref})
    _attach(op, pool, here, vm_ref)
    taken = {rec["device"] for rec in vif.of_vm(pool, vm_ref).values()} if op.data.get("vifs_begun") else set()
    op.remember(vifs_begun=True)
    for one in op.data["interfaces"]:
        fields = dict(one)
        network, device, mac = fields.pop("network"), fields.pop("device"), fields.pop("mac")
        if device not in taken:
            vif.create(pool, vm_ref, network, device, mac, **fields)


def _attach(op: Op, pool: Session, here: Session, vm_ref: str) -> None:
    """Attach the disks at their positions; within a pool also the volumes, which belong to somebody else."""
    taken = {rec["userdevice"] for rec in vbd.of_vm(pool, vm_ref).values()} if op.data.get("disks_begun") else set()
    op.remember(disks_begun=True)
    former = vbd.of_vm(here, op.data["left"]["ref"]).values()
    of_disk = {rec["VDI"]: rec for rec in former}
    for disk in _mark(op).disks:
        if disk["userdevice"] not in taken:
            rec = of_disk.get(disk["source_ref"], {**disk, "other_config": {}})
            vbd.create(pool, vm_ref, disk["vdi_ref"], disk["userdevice"], **vbd_fields(rec, op.id))
    for rec in former if here.pool_name == pool.pool_name else ():
        if rec["userdevice"] not in taken and is_volume(rec):
            vbd.create(pool, vm_ref, rec["VDI"], rec["userdevice"], **vbd_fields(rec, op.id))


def stop(op: Op, pool: Session, pools: Pools) -> None:
    """Halt the VM again, also one that a call on its way is about to start. Raises Wait.

    Not before the VM that was left has been seen: until it can run, this one does.
    """
    back.left_by(pools(_mark(op).source["pool"]), _mark(op))
    for call in ("Async.VM.start", "Async.VM.start_on"):
        await_lost(op, pool, call)
    for found in back.made_by(pool, _mark(op).name, _mark(op).migration):
        power.halt(pool, {"ref": found.ref, **found.rec})


@step(undo=stop, weight=5)
def boot(op: Op, pool: Session) -> None:
    """Start the VM if it shall run, on the wanted host if that can, and wait until it runs."""
    if not _shall_run(op):
        return
    rec = {"ref": op.data["vm"]["ref"], **vm_power.get(pool, op.data["vm"]["ref"])}
    if rec["power_state"] != "Running":
        for call in ("Async.VM.start", "Async.VM.start_on"):
            intend(op, call)
        power.start(op, pool, rec, [op.data["affinity"]] if op.data["affinity"] != NULL else [])
    if "started_at" not in op.data:
        op.remember(started_at=time.time())


@step
def settle(op: Op, pool: Session, pools: Pools) -> None:
    """Give the disks their names and marks, and say on both VMs that the move waits for being confirmed.

    What people have forbidden on the VM that is left is forbidden on this one, too. The other pool comes last: without
    it this VM can still be confirmed.
    """
    mark, here = _mark(op), pools(_mark(op).source["pool"])
    rec = vm_power.get(pool, op.data["vm"]["ref"])
    _name_disks(op, pool, mark)
    for key, text in op.data.get("locks", {}).items():
        vm_power.block(pool, op.data["vm"]["ref"], [key], text)
    there = {**mark.destination, "vm_uuid": rec["uuid"]}
    mark = replace(mark, destination=there)
    own = mark.on("destination").at(FINISHED, back.pool_time(pool), op.id)
    back.set_mark(pool, op.data["vm"]["ref"], own)
    state = FINISHED if here.pool_name == pool.pool_name else FINISHED_THERE
    back.set_mark(here, op.data["left"]["ref"], mark.at(state, back.pool_time(here), op.id))
    started_at = op.data.get("started_at")
    op.set_result(
        vm_uuid=rec["uuid"],
        name=mark.name,
        power_state=rec["power_state"],
        disks=[disk["vdi_uuid"] for disk in mark.disks],
        downtime_s=round(started_at - mark.halted_at, 3) if started_at and mark.halted_at else None,
        entered=own.entered,
    )


def _name_disks(op: Op, pool: Session, mark: Mark) -> None:
    """Let each disk be called and marked as the one that it was made from."""
    for disk in mark.disks:
        name, kept = op.data["disk_names"].get(disk["source_ref"], (mark.name, {}))
        own = {OPERATION: op.id, MIGRATED_BY: mark.migration, MADE_FROM: disk["made_from"], DISK: disk["vdi_ref"]}
        vdi.set_other_config(pool, disk["vdi_ref"], kept | own)
        vdi.set_name_label(pool, disk["vdi_ref"], name)


finish_migration = operation("finish_migration", FinishRequest, find_moved, prepare, build, boot, settle, doc=__doc__)
