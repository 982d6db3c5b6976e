"""Interfaces of a VM and the networks that they are on: what every operation that makes some shares.

`create_vifs` is the fifth step of a build.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.parts.instances import OPERATION
from tasks.parts.lost import await_lost, intend, redone_from
from tasks.provision.request import BuildRequest, Network
from worker.errors import NetworkMismatch, NetworkNotFound
from worker.network.desired import ADDRESSES_KEY
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import event, network, vif
from worker.xenapi.session import Session

#: `other_config` key by which the virtual switch knows the port (operations.md 3.2).
PORT_KEY = "neutron-port-id"
#: On a network that was made for a VLAN: "<device> <tag>".
VLAN_KEY = "vmops.vlan"
_CREATE, _CREATE_VLAN = "network.create", "pool.create_VLAN"
_PATIENCE_S = 5.0

Records = Mapping[tuple[str, str], dict[str, Any]]


@step
def create_vifs(op: Op, pool: Session) -> None:
    """Make each interface once. They go with the VM when that is destroyed."""
    vm_ref = op.data["vm"]["ref"]
    request = op.request(BuildRequest)
    wishes = request.networks
    is_locked = bool(request.security_groups) and pool.settings.firewall == "xapi-lock"
    if not wishes:
        return
    with redone_from("make_root_disk"):
        taken = {rec["device"] for rec in vif.of_vm(pool, vm_ref).values()} if op.data.get("vifs_begun") else set()
        op.remember(vifs_begun=True)
        for device, (wish, found) in enumerate(zip(wishes, op.data["plan"]["networks"], strict=True)):
            if str(device) not in taken:
                network_ref = found["ref"] or ensure_network(op, pool, wish)
                vif.create(
                    pool, vm_ref, network_ref, str(device), found["mac"], **fields_of(op, wish, is_locked=is_locked)
                )


def fields_of(op: Op, wish: Network, *, is_locked: bool = False) -> dict[str, Any]:
    """Return what an interface's record has beside its network, position and MAC.

    `is_locked`: XAPI shall drop what does not come from the interface's own addresses, unless the wish says otherwise.
    """
    is_locked = wish.locking_mode == "locked" or (is_locked and wish.locking_mode == "network_default")
    other_config = {OPERATION: op.id}
    if wish.addresses:
        other_config[ADDRESSES_KEY] = " ".join(wish.addresses)
    if wish.port_id:
        other_config[PORT_KEY] = str(wish.port_id)
    fields: dict[str, Any] = {"other_config": other_config, "locking_mode": wish.locking_mode}
    if is_locked:
        fields |= locked_to(wish.addresses)
    if wish.rate_limit_kbps:
        fields["qos_algorithm_type"] = "ratelimit"
        fields["qos_algorithm_params"] = {"kbps": str(wish.rate_limit_kbps)}
    return fields


def locked_to(addresses: Iterable[str]) -> dict[str, Any]:
    """Return the fields of an interface that may send from these addresses only."""
    known = list(addresses)
    return {
        "locking_mode": "locked",
        "ipv4_allowed": [one for one in known if ":" not in one],
        "ipv6_allowed": [one for one in known if ":" in one],
    }


def find_network(records: Records, wish: Network, pool_name: str) -> str | None:
    """Return the ref of a network named by uuid, bridge or name; None for a VLAN's that has yet to be made.

    `records` has the classes network and PIF. Raises NetworkNotFound, and NetworkMismatch for one that is not connected
    to the VLAN that the wish names.
    """
    known = [(ref, rec) for (cls, ref), rec in records.items() if cls == "network"]
    found = [ref for ref, rec in known if wish.network in (rec["uuid"], rec["bridge"])]
    found = found or [ref for ref, rec in known if rec["name_label"] == wish.network]
    if not found and wish.vlan:
        return None
    if len(found) != 1:
        count = "no network" if not found else f"{len(found)} networks"
        raise NetworkNotFound(f"Pool {pool_name!r} has {count} called {wish.network!r}: take its uuid or bridge.")
    if wish.vlan:
        tags = {int(one["VLAN"]) for one in _pifs(records, found[0])} - {wish.vlan.tag}
        if tags or records["network", found[0]]["other_config"].get(VLAN_KEY, _mark(wish)) != _mark(wish):
            other = ", ".join(map(str, sorted(tags))).replace("-1", "none") or "another"
            raise NetworkMismatch(
                f"Network {wish.network!r} of pool {pool_name!r} is not on VLAN {wish.vlan.tag} of {wish.vlan.device} "
                f"(its VLAN: {other}): name another network, or correct vlan."
            )
    return found[0]


def ensure_network(op: Op, pool: Session, wish: Network) -> str:
    """Return the ref of a VLAN's network, made and connected on every host when there is none.

    One that was made stays when the operation fails: others may use it by then. Raises Wait, and as `find_network`.
    """
    with op.inside(f"network {wish.network}", patience_s=_PATIENCE_S):
        for call in (_CREATE, _CREATE_VLAN):
            await_lost(op, pool, call)
        records = event.records(pool, ["network", "PIF"])
        network_ref = find_network(records, wish, pool.pool_name)
        if network_ref is None:
            _assert_device(records, wish, pool.pool_name)
            intend(op, _CREATE)
            network_ref = network.create(pool, wish.network, {OPERATION: op.id, VLAN_KEY: _mark(wish)})
        if wish.vlan and not _pifs(records, network_ref):
            intend(op, _CREATE_VLAN)
            network.create_vlan(pool, wish.vlan.device, network_ref, wish.vlan.tag)
        return network_ref


def _assert_device(records: Records, wish: Network, pool_name: str) -> None:
    if wish.vlan is None:
        raise NetworkNotFound(f"Pool {pool_name!r} has no network called {wish.network!r}: take its uuid or bridge.")
    pifs = [rec for (cls, _), rec in records.items() if cls == "pif" and rec["device"] == wish.vlan.device]
    if not pifs:
        raise NetworkNotFound(f"No host of pool {pool_name!r} has a device {wish.vlan.device!r}: check vlan.device.")
    used = [rec for rec in pifs if int(rec["VLAN"]) == wish.vlan.tag]
    if used:
        name = records["network", used[0]["network"]]["name_label"]
        raise NetworkMismatch(
            f"VLAN {wish.vlan.tag} of {wish.vlan.device} is network {name!r} of pool {pool_name!r}: take that name."
        )


def _pifs(records: Records, network_ref: str) -> list[dict[str, Any]]:
    return [rec for (cls, _), rec in records.items() if cls == "pif" and rec["network"] == network_ref]


def _mark(wish: Network) -> str:
    return f"{wish.vlan.device} {wish.vlan.tag}" if wish.vlan else ""
