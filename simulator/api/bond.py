"""Bond.*: what moves from the members to the bond and back (xapi.md 6.6)."""

from __future__ import annotations

import itertools
from typing import Any

from simulator.api.addresses import is_mac
from simulator.api.network import assert_managed
from simulator.api.pif import (
    assert_no_other_local_pifs,
    assert_pif_managed,
    bring_up,
    copy_addresses,
    drop_pif,
    new_pif,
)
from simulator.api.registry import Context, call
from simulator.api.vlan import make_vlan
from simulator.core.database import Database, Row, is_null
from simulator.core.failures import Failure
from simulator.model.types import NULL

#: Properties of a LACP bond: the values they take (None: any number) and what they are when nothing is said.
_LACP: dict[str, tuple[tuple[str, ...] | None, str | None]] = {
    "hashing_algorithm": (("src_mac", "tcpudp_ports"), "tcpudp_ports"),
    "lacp-time": (("fast", "slow"), "slow"),
    "lacp-aggregation-key": (None, None),
    "lacp-fallback-ab": (("true", "false"), "true"),
}


def _known(mode: str) -> dict[str, tuple[tuple[str, ...] | None, str | None]]:
    return _LACP if mode == "lacp" else {}


def _is_valid(mode: str, name: str, value: str) -> bool:
    if name not in _known(mode):
        return False
    values, _default = _known(mode)[name]
    return value.isdecimal() if values is None else value in values


def _assert_property(mode: str, name: str, value: str) -> None:
    if not _is_valid(mode, name, value):
        raise Failure("INVALID_VALUE", "properties", f"{name} = {value}")


def _with_defaults(mode: str, properties: dict[str, str]) -> dict[str, str]:
    return {name: text for name, (_values, text) in _known(mode).items() if text is not None} | properties


def _assert_member(db: Database, pif: Row) -> None:
    """Raise what forbids an interface to join a bond."""
    if db.find("Bond", pif["bond_slave_of"]) is not None:
        raise Failure("PIF_ALREADY_BONDED", pif.ref)
    if pif["VLAN"] >= 0:
        raise Failure("PIF_VLAN_EXISTS", pif["device"])
    if pif["tunnel_access_PIF_of"]:
        raise Failure("IS_TUNNEL_ACCESS_PIF", pif.ref)
    assert_pif_managed(pif)


def _primary(members: list[Row]) -> Row:
    """Return the member whose address and MAC the bond takes: the management one, one with an address, the first."""
    configured = [pif for pif in members if pif["ip_configuration_mode"] != "None"]
    managing = [pif for pif in members if pif["management"]]
    return (managing or configured or members)[0]


def _members(db: Database, refs: list[str]) -> list[Row]:
    """Return the members of a new bond. Raises what forbids it."""
    members = [db.row("PIF", ref) for ref in dict.fromkeys(refs)]
    if not members:
        raise Failure("PIF_BOND_NEEDS_MORE_MEMBERS")
    for pif in members:
        _assert_member(db, pif)
    if len({pif["host"] for pif in members}) > 1:
        raise Failure("PIF_CANNOT_BOND_CROSS_HOST")
    if any(pif["properties"] != members[0]["properties"] for pif in members):
        raise Failure("INCOMPATIBLE_PIF_PROPERTIES")
    if sum(pif["ip_configuration_mode"] != "None" for pif in members) > 1:
        raise Failure("PIF_BOND_MORE_THAN_ONE_IP")
    return members


@call("Bond.create", "&network", "@PIF*", "string", "bond_mode?", "string->string?", returns="@Bond")
def bond_create(
    ctx: Context, network: Row, refs: list[str], mac: str, mode: str | None, properties: dict[str, str] | None
) -> str:
    """Make a bond and its interface, with the members' address, VLANs and VIFs. Raises PIF_ALREADY_BONDED and kin."""
    chosen = mode or "balance-slb"
    with ctx.db as db:
        assert_managed(network)
        if refs:
            host = db.row("host", db.row("PIF", refs[0])["host"])
            assert_no_other_local_pifs(db, host, network)
        if mac and not is_mac(mac):
            raise Failure("MAC_INVALID", mac)
        for name, value in (properties or {}).items():
            _assert_property(chosen, name, value)
        members = _members(db, refs)
        wish = {"mode": chosen, "properties": _with_defaults(chosen, properties or {})}
        return _make(ctx, network, members, mac, wish).ref


def _make(ctx: Context, network: Row, members: list[Row], mac: str, wish: dict[str, Any]) -> Row:
    db, ids = ctx.db, ctx.pool.ids
    primary = _primary(members)
    host = db.row("host", primary["host"])
    devices = {pif["device"] for pif in db.linked(host, "PIFs", "PIF")}
    device = next(name for number in itertools.count() if (name := f"bond{number}") not in devices)
    values = {"device": device, "MAC": mac or primary["MAC"], "properties": dict(primary["properties"])}
    master = new_pif(ctx, host, network, **values)
    links = sum(_has_carrier(db, pif) for pif in members)
    values = {"uuid": ids.uuid(), "master": master.ref, "primary_slave": primary.ref, "links_up": links}
    bond = db.create("Bond", ids.ref(), values | wish | {"auto_update_mac": not mac})
    for pif in members:
        db.put(pif, bond_slave_of=bond.ref)
    copy_addresses(db, primary, master)
    _move_management(db, primary, master)
    bring_up(db, master)
    for pif in members:
        _move_vlans(ctx, pif, master)
        _move_tunnels(db, pif, master)
        _move_vifs(db, host, pif["network"], network.ref)
    if any(pif["disallow_unplug"] for pif in members):
        db.put(master, disallow_unplug=True)
        for pif in members:
            db.put(pif, disallow_unplug=False)
    return bond


def _has_carrier(db: Database, pif: Row) -> bool:
    metrics = db.find("PIF_metrics", pif["metrics"])
    return metrics is not None and bool(metrics["carrier"])


def _move_management(db: Database, source: Row, target: Row) -> None:
    if source["management"]:
        db.put(source, management=False)
        db.put(target, management=True)


def _move_tunnels(db: Database, source: Row, target: Row) -> None:
    for tunnel in db.linked(source, "tunnel_transport_PIF_of", "tunnel"):
        db.put(tunnel, transport_PIF=target.ref)


def _move_vlans(ctx: Context, source: Row, target: Row) -> None:
    """Make the VLANs of an interface anew on another one, with their networks and addresses."""
    db = ctx.db
    tags = {vlan["tag"] for vlan in db.linked(target, "VLAN_slave_of", "VLAN")}
    for vlan in db.linked(source, "VLAN_slave_of", "VLAN"):
        old = db.row("PIF", vlan["untagged_PIF"])
        network = db.row("network", old["network"])
        if vlan["tag"] not in tags:
            moved = db.row("PIF", make_vlan(ctx, target, vlan["tag"], network)["untagged_PIF"])
            copy_addresses(db, old, moved)
            db.put(moved, other_config=old["other_config"], disallow_unplug=old["disallow_unplug"])
            _move_management(db, old, moved)
        drop_pif(db, old)
        db.delete(vlan)


def _move_vifs(db: Database, host: Row, source_ref: str, target_ref: str) -> None:
    """Move the VIFs of the host's VMs to another network: of those that run there, or can run nowhere else."""
    is_alone = len(db.rows("host")) == 1
    for vif in db.linked(db.row("network", source_ref), "VIFs", "VIF"):
        vm = db.find("VM", vif["VM"])
        if vm is not None and (vm["resident_on"] == host.ref or (is_alone and vm["resident_on"] == NULL)):
            db.put(vif, network=target_ref)


@call("Bond.destroy", "&Bond")
def bond_destroy(ctx: Context, bond: Row) -> None:
    """Undo a bond: the primary member takes back address, VLANs and VIFs."""
    with ctx.db as db:
        master, primary = db.row("PIF", bond["master"]), db.row("PIF", bond["primary_slave"])
        members = db.linked(bond, "slaves", "PIF")
        host = db.row("host", master["host"])
        was_plugged = master["currently_attached"]
        for pif in members:
            db.put(pif, bond_slave_of=NULL)
        copy_addresses(db, master, primary)
        _move_management(db, master, primary)
        _move_vlans(ctx, master, primary)
        _move_tunnels(db, master, primary)
        _move_vifs(db, host, master["network"], primary["network"])
        if master["disallow_unplug"]:
            db.put(primary, disallow_unplug=True)
        db.delete(bond)
        drop_pif(db, master)
        if was_plugged:
            for pif in members:
                bring_up(db, pif)


@call("Bond.set_mode", "&Bond", "bond_mode")
def bond_set_mode(ctx: Context, bond: Row, value: str) -> None:
    """Choose how the members share the work; properties that the mode does not know go."""
    with ctx.db as db:
        kept = {name: text for name, text in bond["properties"].items() if _is_valid(value, name, text)}
        db.put(bond, mode=value, properties=_with_defaults(value, kept))
        _bring_master_up(db, bond)


@call("Bond.set_property", "&Bond", "string", "string")
def bond_set_property(ctx: Context, bond: Row, name: str, value: str) -> None:
    """Set a property of the bond's mode. Raises INVALID_VALUE."""
    with ctx.db as db:
        _assert_property(bond["mode"], name, value)
        db.put(bond, properties=bond["properties"] | {name: value})
        _bring_master_up(db, bond)


def _bring_master_up(db: Database, bond: Row) -> None:
    master = db.find("PIF", bond["master"])
    if master is not None and is_null(master["bond_slave_of"]):
        bring_up(db, master)
