"""live_migrate: move a running VM to another host, storage repository or pool, without halting it.

    choose_place -> move -> settle

XAPI moves the VM (operations.md 16.1, xapi.md 14): within a pool by its memory alone when the host sees the storage,
else with its disks, and between pools. Left behind when it fails: the VM runs where it ran. It is where XAPI says it
is, so nothing is ever destroyed here. For a VM that shall have another size there is migrate_disk_and_power_off.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar
from uuid import UUID

from pydantic import Field

from tasks.parts import power
from tasks.parts.calls import carry_out, until_ended
from tasks.parts.filtering import expect, expect_no_more, refuse_unfiltered
from tasks.parts.instances import DISK, hold_of, is_copy, take_fresh
from tasks.parts.kernels import refuse_other_pool
from tasks.parts.migrated import refuse_migrating
from tasks.provision.check import NULL, Facts
from tasks.provision.networks import find_network
from tasks.provision.request import Network
from worker.errors import (
    InstanceGone,
    InstanceNotFound,
    InsufficientFreeMemory,
    NoValidHost,
    RequestError,
    XenAPIFailure,
)
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.request import InstanceRequest, Place
from worker.resources import Pools
from worker.retry import Kind, kind_of
from worker.xenapi import event, host, vbd, vdi, vif, vm, vm_power
from worker.xenapi.session import Session
from worker.xenapi.vm import Found

#: On a VM that moves between pools, so that it is known over there: the operation.
MARK = "vmops.live-migration"
#: Left in a disk's sm_config by XAPI; it would hinder the next move (operations.md 3.2).
_MIRROR = "base_mirror"
_MEMORY, _STORAGE = "pool_migrate", "migrate_send"
_REASON = "the pool is moving the VM"
_DEADLINE_S = 24 * 3600.0

Records = dict[tuple[str, str], dict[str, Any]]


class LiveDestination(Place):
    """Where to."""

    pool: str | None = Field(
        default=None, description="Name of a configured pool; default: the VM's own. `dest=NAME` says the same."
    )
    host: UUID | None = Field(default=None, description="Host; default: the one with the most free memory.")
    sr: UUID | None = Field(
        default=None,
        description="Storage repository for the disks; default: within a pool they stay, else the pool's default one.",
    )


class LiveMigrateRequest(InstanceRequest):
    """Which VM, and where to."""

    example: ClassVar[dict[str, Any]] = {
        "instance": {"name": "web01"},
        "dest": {"host": "0d5a2c64-6a0b-4f43-9b1e-3a51b3a3f1de"},
    }

    dest: LiveDestination = LiveDestination()
    networks: dict[str, str] = Field(
        default={},
        max_length=7,
        description="Between pools: for networks of the VM, by name, the name or uuid over there; default: the same.",
    )


@step
def choose_place(op: Op, pool: Session, pools: Pools) -> None:
    """Find the VM, the host, and how it gets there. Changes nothing."""
    request = op.request(LiveMigrateRequest)
    there = pools(request.dest.pool or pool.pool_name)
    found = take_fresh(op, pool)
    refuse_migrating(found.rec, "moved")
    is_far = there.pool_name != pool.pool_name
    if request.networks and not is_far:
        raise RequestError("networks goes with a move to another pool: within one, interfaces keep theirs.")
    if is_far:
        refuse_unfiltered(there, found.rec)
        refuse_other_pool(found.rec, there.pool_name)
        op.hold(hold_of(found.rec), queue=request.on_conflict == "wait", pool=there.pool_name)
    rec = {"ref": found.ref, **found.rec}
    power.assert_unlocked(rec, _MEMORY, _STORAGE)
    if rec["power_state"] != "Running":
        power.assert_unlocked(rec, "start")
        way = (
            "start it, or use migrate_disk_and_power_off" if rec["power_state"] == "Halted" else "resume or unpause it"
        )
        raise power.refuse_state(rec, "moved while it runs", way)
    disks = vbd.disks_of(pool, found.ref)
    here = event.records(pool, [*(f"VDI/{disk.vdi_ref}" for disk in disks), "network"])
    facts = Facts(
        event.records(there, ["pool", "host", "host_metrics", "SR", "PBD", "PIF", "network"]), there.pool_name
    )
    own_srs = {disk.vdi_ref: str(here["vdi", disk.vdi_ref]["SR"]) for disk in disks}
    wanted_sr = facts.storage(str(request.dest.sr) if request.dest.sr else None) if is_far or request.dest.sr else None
    target_srs = {ref: wanted_sr or sr_ref for ref, sr_ref in own_srs.items()}
    host_ref = _host(there, facts, request, rec, sorted(set(target_srs.values())))
    is_within = not is_far and target_srs == own_srs
    op.remember(
        vm={"ref": found.ref, **{name: rec[name] for name in ("uuid", "name_label", "power_state", "other_config")}},
        there=there.pool_name,
        host=host_ref,
        how=_MEMORY if is_within else _STORAGE,
        vdi_map=target_srs,
        **(_networks(pool, found, facts, request, here) if is_far else {"vif_map": {}, "bridges": {}}),
        network=_management(facts.records, host_ref),
    )


def _host(there: Session, facts: Facts, request: LiveMigrateRequest, rec: power.Rec, sr_refs: list[str]) -> str:
    """Return the host to move to. Raises NoValidHost, InsufficientFreeMemory."""
    wanted = str(request.dest.host) if request.dest.host else None
    hosts = facts.hosts(sr_refs, wanted, int(rec["VCPUs_max"]))
    if wanted and hosts[0].rec["uuid"] != wanted:
        raise NoValidHost(
            f"Host {wanted} of pool {there.pool_name!r} is off, disabled, too small, or does not see the storage."
        )
    if wanted and hosts[0].ref == rec["resident_on"]:
        return hosts[0].ref
    others = [one for one in hosts if one.ref != rec["resident_on"]]
    if not wanted and not others and request.dest.sr:
        return str(rec["resident_on"])  # only the disks move
    free = {one.ref: host.free_memory(there, one.ref) for one in ([hosts[0]] if wanted else others)}
    if not free:
        raise NoValidHost(f"Pool {there.pool_name!r} has no other host that could take {power.title(rec)}.")
    best = max(free, key=lambda ref: free[ref])
    if free[best] < int(rec["memory_static_max"]):
        raise InsufficientFreeMemory(
            f"{power.title(rec)} has {int(rec['memory_static_max']) >> 20} MiB of memory; the host has "
            f"{free[best] >> 20} MiB left."
        )
    return best


def _networks(
    pool: Session, found: Found, facts: Facts, request: LiveMigrateRequest, here: Records
) -> dict[str, dict[str, str]]:
    """Return the network over there of each interface, and its bridge. Raises NetworkNotFound, RequestError."""
    vif_map, bridges = {}, {}
    vifs = vif.of_vm(pool, found.ref)
    own = {ref: str(here["network", rec["network"]]["name_label"]) for ref, rec in vifs.items()}
    strange = sorted(request.networks.keys() - own.values())
    if strange:
        raise RequestError(
            f"networks: {power.title(found.rec)} has no interface on {', '.join(strange)}; it has: "
            f"{', '.join(sorted(set(own.values()))) or 'none'}."
        )
    for ref, rec in vifs.items():
        name = own[ref]
        wish = Network(network=request.networks.get(name, name))
        network_ref = find_network(facts.records, wish, str(request.dest.pool))
        if network_ref is None:
            raise RequestError(f"networks: there is no network for {name!r} over there.")
        vif_map[ref] = network_ref
        bridges[rec["uuid"]] = str(facts.records["network", network_ref]["bridge"])
    return {"vif_map": vif_map, "bridges": bridges}


def _management(records: Records, host_ref: str) -> str:
    """Return the network over which a host takes VMs."""
    pifs = [rec for (cls, _), rec in records.items() if cls == "pif" and rec["host"] == host_ref and rec["management"]]
    return str(pifs[0]["network"]) if pifs else NULL


# -- moving


def stay(op: Op, pool: Session, pools: Pools) -> None:
    """Ask the pool to give up the move, wait for what comes of it, and put the marks right. Raises Wait."""
    task_ref = op.data.get("begun", {}).get(op.data["how"])
    if task_ref:
        power.call_off(pool, task_ref)
    rec = _look(op, pool)
    moves = vm_power.moves(rec) if rec else {}
    if moves:
        raise until_ended(sorted(moves), "the pool gives up the move", _DEADLINE_S)
    there = pools(op.data["there"])
    for where in (pool,) if there.pool_name == pool.pool_name else (pool, there):
        for found in vm.matching(where, vm_uuid=op.data["vm"]["uuid"]):
            _put_right(op, where, found)
            if rec is None:
                op.note(f"{power.title(found.rec)} had arrived in pool {where.pool_name!r}, and stays there")
    expect_no_more(there, op.data["vm"])


@step(undo=stay, weight=20)
def move(op: Op, pool: Session, pools: Pools) -> None:
    """Let XAPI move the VM, once; a VM that has arrived already is left alone."""
    there = pools(op.data["there"])
    if op.data["how"] not in op.data.get("begun", {}):  # else the call tells
        rec = _look(op, pool)
        if _has_arrived(op, pool, there, rec):
            return
        if rec is None:
            raise InstanceNotFound(f"{power.title(op.data['vm'])} has left pool {pool.pool_name!r} meanwhile.")
        lost = sorted(vm_power.moves(rec))
        if lost:
            raise until_ended(lost, _REASON, _DEADLINE_S)
    begin = partial(_begin, op, pool, there)
    try:
        carry_out(op, pool, op.data["how"], begin, _REASON, deadline_s=_DEADLINE_S)
    except XenAPIFailure as error:
        raise power.explained(op.data["vm"], error, "moved") from error


def _look(op: Op, pool: Session) -> dict[str, Any] | None:
    try:
        return vm_power.get(pool, op.data["vm"]["ref"])
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
        return None


def _has_arrived(op: Op, pool: Session, there: Session, rec: dict[str, Any] | None) -> bool:
    if there.pool_name != pool.pool_name:
        return any(one.rec["other_config"].get(MARK) == op.id for one in _over_there(op, there)) and rec is None
    if rec is None or rec["resident_on"] != op.data["host"]:
        return False
    disks = event.records(pool, [f"VDI/{disk.vdi_ref}" for disk in vbd.disks_of(pool, op.data["vm"]["ref"])])
    return {one["SR"] for one in disks.values()} <= set(op.data["vdi_map"].values())


def _over_there(op: Op, there: Session) -> list[Found]:
    return vm.matching(there, vm_uuid=op.data["vm"]["uuid"])


def _begin(op: Op, pool: Session, there: Session) -> str:
    vm_ref = op.data["vm"]["ref"]
    expect(pool, there, op.data["vm"], op.data["host"], op.data["bridges"])
    if op.data["how"] == _MEMORY:
        return vm_power.begin_pool_migrate(pool, vm_ref, op.data["host"])
    vm_power.add_to_other_config(pool, vm_ref, MARK, op.id)
    maps = vm_power.Maps(op.data["vdi_map"], op.data["vif_map"])
    # Holds a session of the destination: never to be kept.
    dest = host.migrate_receive(there, op.data["host"], op.data["network"])
    vm_power.assert_can_migrate(pool, vm_ref, dest, maps)
    return vm_power.begin_migrate_send(pool, vm_ref, dest, maps)


def _put_right(op: Op, where: Session, found: Found) -> dict[str, dict[str, Any]]:
    """Take the move's marks off the VM and its disks, which may be new ones; return the disks."""
    if found.rec["other_config"].get(MARK) == op.id:
        vm_power.remove_from_other_config(where, found.ref, MARK)
    refs = [disk.vdi_ref for disk in vbd.disks_of(where, found.ref)]
    records = event.records(where, [f"VDI/{ref}" for ref in refs]) if refs else {}
    for ref in refs:
        rec = records["vdi", ref]
        if is_copy(ref, rec) and rec["other_config"][DISK] in op.data["vdi_map"]:
            vdi.add_to_other_config(where, ref, DISK, ref)
        if _MIRROR in rec["sm_config"]:
            vdi.remove_from_sm_config(where, ref, _MIRROR)
    return {ref: records["vdi", ref] for ref in refs}


@step
def settle(op: Op, pools: Pools) -> None:
    """Put the marks right on what is new, and say where the VM is. Raises InstanceGone."""
    there = pools(op.data["there"])
    arrived = _over_there(op, there)
    if not arrived:
        raise InstanceGone(f"{power.title(op.data['vm'])} is not in pool {there.pool_name!r}: look for it.")
    found = arrived[0]
    disks = _put_right(op, there, found)
    expect_no_more(there, op.data["vm"])
    resident = event.records(there, ["host"]).get(("host", found.rec["resident_on"]), {}).get("uuid")
    op.set_result(
        vm_uuid=found.rec["uuid"],
        pool=there.pool_name,
        host=resident,
        power_state=found.rec["power_state"],
        disks=[rec["uuid"] for rec in disks.values()],
    )


live_migrate = operation(
    "live_migrate", LiveMigrateRequest, choose_place, move, settle, point_of_no_return=move, doc=__doc__
)
