"""The steps that give a VM interfaces."""

from __future__ import annotations

from typing import Any

from tasks.network.request import VifsRequest
from tasks.parts import filtering
from tasks.parts.instances import OPERATION, instance_uuid, take
from tasks.parts.lost import await_lost, intend, was_intended
from tasks.provision.guestdata import mac_of
from tasks.provision.networks import ensure_network, fields_of, find_network
from worker.errors import NetworkMismatch, RequestError, XenAPIFailure
from worker.network.desired import groups_of
from worker.network.enforcement import Enforcer
from worker.network.groups import Groups
from worker.operations.definition import step
from worker.operations.op import Op
from worker.retry import Kind, kind_of
from worker.xenapi import event, vif, vm_power
from worker.xenapi.session import Session

#: XAPI allows so many interfaces.
_POSITIONS = [str(number) for number in range(7)]
_CREATE = "VIF.create"
#: What says that the guest takes no interface while it runs (xapi.md 8.2).
_NOT_NOW = frozenset({"VM_MISSING_PV_DRIVERS", "OPERATION_NOT_ALLOWED", "VM_BAD_POWER_STATE"})

Recs = dict[str, dict[str, Any]]
"""Interfaces: ref -> record."""


@step
def find_vm(op: Op, pool: Session) -> None:
    """Find the VM, its interfaces and the networks; refuse what cannot be. Changes nothing."""
    request = op.request(VifsRequest)
    found = take(op, pool)
    records = event.records(pool, [*(f"VIF/{ref}" for ref in found.rec["VIFs"]), "network", "PIF"])
    instance = instance_uuid(found.rec)
    plan = []
    for position, wish in enumerate(request.networks):
        if wish.mac is None and instance is None:
            raise RequestError(f"VM {found.rec['name_label']!r} is no instance's: give networks.{position}.mac.")
        mac = wish.mac or mac_of(str(instance).lower(), position)
        if groups_of(found.rec) and not wish.addresses:
            raise RequestError(
                f"VM {found.rec['name_label']!r} is in security groups: give networks.{position} the addresses that "
                "are its own (ipv4_allowed, ipv6_allowed, or info.ips)."
            )
        plan.append({"mac": mac, "network": find_network(records, wish, pool.pool_name)})
    if len({one["mac"] for one in plan}) != len(plan):
        raise RequestError("Two of the networks would get the same mac: give each its own.")
    vifs = {ref: rec for (cls, ref), rec in records.items() if cls == "vif"}
    _check(plan, vifs, records, found.rec["name_label"])
    op.remember(
        vm={"ref": found.ref, "uuid": found.rec["uuid"], "is_running": found.rec["power_state"] == "Running"},
        is_filtered=bool(groups_of(found.rec)),
        plan=plan,
        vifs={ref: {name: rec[name] for name in ("MAC", "device", "currently_attached")} for ref, rec in vifs.items()},
    )


def _check(plan: list[dict[str, Any]], vifs: Recs, records: Any, name: str) -> None:
    present = {rec["MAC"].lower(): rec for rec in vifs.values()}
    for one in plan:
        there = present.get(one["mac"])
        if there is not None and there["network"] != one["network"]:
            other = records["network", there["network"]]["name_label"]
            raise NetworkMismatch(
                f"VM {name!r} has interface {one['mac']} on network {other!r}: unplug it first, or take another mac."
            )
    wanted = sum(one["mac"] not in present for one in plan)
    if wanted > len(_POSITIONS) - len(vifs):
        raise RequestError(f"VM {name!r} has {len(vifs)} interfaces and XAPI allows {len(_POSITIONS)}: unplug some.")


def remove_made(op: Op, pool: Session) -> None:
    """Remove the interfaces that this operation made. Raises Wait."""
    if not was_intended(op, _CREATE):
        return
    await_lost(op, pool, _CREATE)
    for ref, rec in vif.of_vm(pool, op.data["vm"]["ref"]).items():
        if rec["other_config"].get(OPERATION) == op.id:
            try:
                _remove(pool, ref, rec)
            except XenAPIFailure as error:
                if kind_of(error) is not Kind.GONE:
                    raise


def _remove(pool: Session, vif_ref: str, vif_rec: dict[str, Any]) -> None:
    if vif_rec["currently_attached"]:
        try:
            vif.unplug(pool, vif_ref)
        except XenAPIFailure as error:
            if vm_power.actual_state(error) != "halted":
                raise
    vif.destroy(pool, vif_ref)


@step(undo=remove_made)
def make_vifs(op: Op, pool: Session) -> None:
    """Make the interfaces that the VM does not have, each at its position or the first free one. Raises Wait."""
    request = op.request(VifsRequest)
    vm_ref = op.data["vm"]["ref"]
    vifs = op.data["vifs"]
    is_locked = op.data["is_filtered"] and pool.settings.firewall == "xapi-lock"
    if was_intended(op, _CREATE):
        await_lost(op, pool, _CREATE)
        vifs = vif.of_vm(pool, vm_ref)
    present = {rec["MAC"].lower() for rec in vifs.values()}
    free = [one for one in _POSITIONS if one not in {rec["device"] for rec in vifs.values()}]
    for position, (wish, one) in enumerate(zip(request.networks, op.data["plan"], strict=True)):
        if one["mac"] in present:
            continue
        network_ref = one["network"] or ensure_network(op, pool, wish)
        device = str(position) if str(position) in free else free[0]
        free.remove(device)
        intend(op, _CREATE)
        vif.create(pool, vm_ref, network_ref, device, one["mac"], **fields_of(op, wish, is_locked=is_locked))


@step
def filter_vifs(op: Op, pool: Session, groups: Groups, enforcer: Enforcer) -> None:
    """Let the hosts enforce the rules of the VM's security groups on its new interfaces, before they are plugged."""
    if op.data["is_filtered"]:
        filtering.spread(pool, groups, enforcer)


@step
def plug(op: Op, pool: Session) -> None:
    """Plug the interfaces into the running guest; what cannot be plugged now is noted."""
    if not op.data["vm"]["is_running"]:
        return
    wanted = {one["mac"] for one in op.data["plan"]}
    for ref, rec in vif.of_vm(pool, op.data["vm"]["ref"]).items():
        if rec["MAC"].lower() in wanted and not rec["currently_attached"]:
            try:
                vif.plug(pool, ref)
            except XenAPIFailure as error:
                if error.code not in _NOT_NOW:
                    raise
                op.note(f"interface {rec['MAC']} is there from the VM's next start on: {error.code}")


@step
def report(op: Op, pool: Session) -> None:
    """Say which interfaces there are, which of them are new, and which are plugged."""
    vifs = {rec["MAC"].lower(): rec for rec in vif.of_vm(pool, op.data["vm"]["ref"]).values()}
    op.set_result(
        vm_uuid=op.data["vm"]["uuid"],
        vifs=[
            {
                "mac": one["mac"],
                "vif_uuid": rec["uuid"],
                "device": rec["device"],
                "is_new": rec["other_config"].get(OPERATION) == op.id,
                "is_plugged": rec["currently_attached"],
            }
            for one in op.data["plan"]
            if (rec := vifs.get(one["mac"]))
        ],
    )
