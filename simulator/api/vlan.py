"""VLAN.*, tunnel.*, network_sriov.* and the older calls that make VLANs (xapi.md 6.6)."""

from __future__ import annotations

import itertools
from typing import Any

from simulator.api.network import assert_managed
from simulator.api.pif import (
    assert_no_other_local_pifs,
    assert_pif_managed,
    bring_up,
    drop_pif,
    new_pif,
    pif_plug,
    pif_unplug,
)
from simulator.api.registry import Context, call
from simulator.core.database import Row, is_null
from simulator.core.failures import Failure
from simulator.core.ids import mac_address

#: The MAC in the record of every VLAN's interface: its real one is that of the interface below.
VLAN_MAC = "fe:ff:ff:ff:ff:ff"
LARGEST_TAG = 4094


def _assert_taggable(ctx: Context, pif: Row, tag: int) -> None:
    """Raise what forbids a VLAN on an interface."""
    assert_pif_managed(pif)
    if not is_null(pif["bond_slave_of"]):
        raise Failure("CANNOT_ADD_VLAN_TO_BOND_SLAVE", pif.ref)
    if pif["VLAN"] >= 0:
        raise Failure("PIF_IS_VLAN", pif.ref)
    if pif["tunnel_access_PIF_of"]:
        raise Failure("IS_TUNNEL_ACCESS_PIF", pif.ref)
    if not 0 <= tag <= LARGEST_TAG:
        raise Failure("VLAN_TAG_INVALID", str(tag))
    if any(vlan["tag"] == tag for vlan in ctx.db.linked(pif, "VLAN_slave_of", "VLAN")):
        raise Failure("PIF_VLAN_EXISTS", pif["device"])


def make_vlan(ctx: Context, below: Row, tag: int, network: Row) -> Row:
    """Make a VLAN and its interface, plugged; the database is locked."""
    db, ids = ctx.db, ctx.pool.ids
    host = db.row("host", below["host"])
    fields: dict[str, Any] = {
        "device": below["device"],
        "MAC": VLAN_MAC,
        "MTU": below["MTU"],
        "VLAN": tag,
        "metrics": below["metrics"],
    }
    pif = new_pif(ctx, host, network, **fields)
    values = {"uuid": ids.uuid(), "tagged_PIF": below.ref, "untagged_PIF": pif.ref, "tag": tag}
    vlan = db.create("VLAN", ids.ref(), values)
    db.put(pif, VLAN_master_of=vlan.ref)
    bring_up(db, pif)
    return vlan


@call("VLAN.create", "&PIF", "int", "&network", returns="@VLAN")
def vlan_create(ctx: Context, pif: Row, tag: int, network: Row) -> str:
    """Make a VLAN on one host. Raises VLAN_TAG_INVALID, PIF_VLAN_EXISTS, PIF_IS_VLAN, NETWORK_ALREADY_CONNECTED."""
    with ctx.db as db:
        assert_managed(network)
        assert_no_other_local_pifs(db, db.row("host", pif["host"]), network)
        _assert_taggable(ctx, pif, tag)
        return make_vlan(ctx, pif, tag, network).ref


@call("VLAN.destroy", "&VLAN")
def vlan_destroy(ctx: Context, vlan: Row) -> None:
    """Remove a VLAN and its interface. Raises VIF_IN_USE, PIF_IS_MANAGEMENT_INTERFACE."""
    with ctx.db as db:
        pif = db.find("PIF", vlan["untagged_PIF"])
        if pif is not None:
            pif_unplug(ctx, pif)
            drop_pif(db, pif)
        db.delete(vlan)


@call("PIF.create_VLAN", "string", "&network", "&host", "int", returns="@PIF")
def pif_create_vlan(ctx: Context, device: str, network: Row, host: Row, tag: int) -> str:
    """Make a VLAN on the interface of a device. Raises INVALID_VALUE when the host has no such device."""
    with ctx.db as db:
        found = [pif for pif in db.linked(host, "PIFs", "PIF") if pif["device"] == device and pif["VLAN"] < 0]
        if not found:
            raise Failure("INVALID_VALUE", "device", device)
        vlan_ref = vlan_create(ctx, found[0], tag, network)
        return str(db.row("VLAN", vlan_ref)["untagged_PIF"])


@call("PIF.destroy", "&PIF")
def pif_destroy(ctx: Context, pif: Row) -> None:
    """Remove the VLAN that an interface belongs to. Raises PIF_IS_PHYSICAL for any other interface."""
    with ctx.db as db:
        if pif["VLAN"] < 0:
            raise Failure("PIF_IS_PHYSICAL", pif.ref)
        vlan = db.find("VLAN", pif["VLAN_master_of"])
        if vlan is None:
            drop_pif(db, pif)
        else:
            vlan_destroy(ctx, vlan)


@call("pool.create_VLAN", "string", "&network", "int", returns="@PIF*")
def pool_create_vlan(ctx: Context, device: str, network: Row, tag: int) -> list[str]:
    """Make a VLAN on a device of every host, or on none."""
    with ctx.db as db:
        return _all_or_none(ctx, [(pif_create_vlan, (device, network, host, tag)) for host in db.rows("host")])


@call("pool.create_VLAN_from_PIF", "&PIF", "&network", "int", returns="@PIF*")
def pool_create_vlan_from_pif(ctx: Context, pif: Row, network: Row, tag: int) -> list[str]:
    """Make a VLAN on every live host's interface of the same network, or on none."""
    with ctx.db as db:
        peers = [one for one in db.linked(db.row("network", pif["network"]), "PIFs", "PIF") if _is_live(ctx, one)]
        return _all_or_none(ctx, [(_vlan_pif, (one, tag, network)) for one in peers])


def _is_live(ctx: Context, pif: Row) -> bool:
    metrics = ctx.db.find("host_metrics", ctx.db.row("host", pif["host"])["metrics"])
    return metrics is not None and bool(metrics["live"])


def _vlan_pif(ctx: Context, pif: Row, tag: int, network: Row) -> str:
    return str(ctx.db.row("VLAN", vlan_create(ctx, pif, tag, network))["untagged_PIF"])


def _all_or_none(ctx: Context, makers: list[tuple[Any, tuple[Any, ...]]]) -> list[str]:
    made: list[str] = []
    try:
        for make, arguments in makers:
            made.append(make(ctx, *arguments))
    except Failure:
        for ref in made:
            pif_destroy(ctx, ctx.db.row("PIF", ref))
        raise
    return made


@call("tunnel.create", "&PIF", "&network", "tunnel_protocol?", returns="@tunnel")
def tunnel_create(ctx: Context, transport: Row, network: Row, protocol: str | None) -> str:
    """Make a tunnel on an interface. Raises IS_TUNNEL_ACCESS_PIF, TRANSPORT_PIF_NOT_CONFIGURED and the like."""
    db, ids = ctx.db, ctx.pool.ids
    with db:
        assert_managed(network)
        assert_pif_managed(transport)
        if not is_null(transport["bond_slave_of"]):
            raise Failure("CANNOT_ADD_TUNNEL_TO_BOND_SLAVE", transport.ref)
        if transport["tunnel_access_PIF_of"]:
            raise Failure("IS_TUNNEL_ACCESS_PIF", transport.ref)
        host = db.row("host", transport["host"])
        assert_no_other_local_pifs(db, host, network)
        if any(one["software_version"].get("network_backend") != "openvswitch" for one in db.rows("host")):
            raise Failure("OPENVSWITCH_NOT_ACTIVE")
        if transport["ip_configuration_mode"] == "None":
            raise Failure("TRANSPORT_PIF_NOT_CONFIGURED", transport.ref)
        devices = {pif["device"] for pif in db.linked(host, "PIFs", "PIF")}
        device = next(name for number in itertools.count() if (name := f"tunnel{number}") not in devices)
        mac = mac_address(ids.uuid(), 0)
        access = new_pif(ctx, host, network, device=device, MAC=mac, metrics=transport["metrics"])
        ends = {"uuid": ids.uuid(), "access_PIF": access.ref, "transport_PIF": transport.ref}
        tunnel = db.create("tunnel", ids.ref(), {**ends, "protocol": protocol or "gre"})
        pif_plug(ctx, access)
        return tunnel.ref


@call("tunnel.destroy", "&tunnel")
def tunnel_destroy(ctx: Context, tunnel: Row) -> None:
    """Remove a tunnel and its interface. Raises VIF_IN_USE."""
    with ctx.db as db:
        access = db.find("PIF", tunnel["access_PIF"])
        if access is not None:
            pif_unplug(ctx, access)
            drop_pif(db, access)
        db.delete(tunnel)


@call("network_sriov.create", "&PIF", "&network", returns="@network_sriov")
def network_sriov_create(ctx: Context, pif: Row, network: Row) -> str:
    """Refuse with PIF_IS_NOT_SRIOV_CAPABLE: no simulated NIC has virtual functions."""
    del ctx
    assert_managed(network)
    assert_pif_managed(pif)
    if not pif["physical"]:
        raise Failure("PIF_IS_NOT_PHYSICAL", pif.ref)
    raise Failure("PIF_IS_NOT_SRIOV_CAPABLE", pif.ref)


@call("network_sriov.destroy", "&network_sriov")
def network_sriov_destroy(ctx: Context, sriov: Row) -> None:
    """Remove the record: there is none on a pool whose NICs cannot do it."""
    with ctx.db as db:
        db.delete(sriov)


@call("network_sriov.get_remaining_capacity", "&network_sriov", returns="int")
def network_sriov_get_remaining_capacity(ctx: Context, sriov: Row) -> int:
    """Return 0: there are no virtual functions."""
    del ctx, sriov
    return 0
