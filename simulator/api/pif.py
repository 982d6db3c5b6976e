"""PIF.*: a host's interfaces, physical or made of others (xapi.md 6.6).

A host has the NICs of `NICS`; a scan finds those that have no record. VLANs, bonds and tunnels make PIFs of their own
(`vlan.py`, `bond.py`), on the rules that are here.
"""

from __future__ import annotations

import itertools
from typing import Any

from simulator.api.addresses import assert_cidr, assert_ip, is_mac
from simulator.api.network import is_reachable
from simulator.api.registry import Context, call
from simulator.core.database import Database, Row, is_null
from simulator.core.failures import Failure
from simulator.model.types import NULL

NICS = ("eth0", "eth1")
_IPV6 = 6
_LIVE = ("Running", "Paused")
_NO_IP: dict[str, Any] = {"ip_configuration_mode": "None", "IP": "", "netmask": "", "gateway": "", "DNS": ""}
_DHCP_NETMASK = "255.255.255.0"
#: Properties of a physical PIF or a bond, and the values they take.
_PROPERTIES = {"gro": ("on", "off")}


# -- records


def _nics(host: Row) -> dict[str, str]:
    """Return the MACs of a host's NICs by device, made from the host's uuid."""
    return {
        device: f"52:54:00:{number:02x}:{host['uuid'][:2]}:{host['uuid'][2:4]}" for number, device in enumerate(NICS)
    }


def new_pif(ctx: Context, host: Row, network: Row, **fields: Any) -> Row:
    """Make the record of an interface, not plugged, with metrics unless `fields` name some; the database is locked."""
    db, ids = ctx.db, ctx.pool.ids
    if "metrics" not in fields:
        values = {"uuid": ids.uuid(), "carrier": True, "speed": 10000, "duplex": True, "device_name": "Simulated NIC"}
        fields["metrics"] = db.create("PIF_metrics", ids.ref(), values).ref
    base = {
        "uuid": ids.uuid(),
        "host": host.ref,
        "network": network.ref,
        "MTU": network["MTU"],
        "VLAN": -1,
        "currently_attached": False,
        "managed": True,
    }
    return db.create("PIF", ids.ref(), base | fields)


def introduce_nic(ctx: Context, host: Row, device: str, mac: str, *, managed: bool = True) -> Row:
    """Make the record of a NIC, on the network of its device's bridge; the database is locked."""
    bridge = f"xenbr{device[3:]}" if device.startswith("eth") else f"br{device}"
    found = [network for network in ctx.db.rows("network") if network["bridge"] == bridge]
    if found:
        network = found[0]
    else:
        label = f"Pool-wide network associated with {device}"
        values = {"uuid": ctx.pool.ids.uuid(), "name_label": label, "bridge": bridge}
        network = ctx.db.create("network", ctx.pool.ids.ref(), values)
    properties = {"gro": "on"} if managed else {}
    fields = {"device": device, "MAC": mac, "physical": True, "managed": managed, "properties": properties}
    return new_pif(ctx, host, network, **fields)


def make_nics(ctx: Context, host: Row) -> None:
    """Make the records of a new host's NICs, plugged; eth0 is the management interface. The database is locked."""
    for device, mac in _nics(host).items():
        bring_up(ctx.db, introduce_nic(ctx, host, device, mac))
    managing = next(pif for pif in ctx.db.linked(host, "PIFs", "PIF") if pif["device"] == NICS[0])
    values = {"management": True, "ip_configuration_mode": "Static", "IP": host["address"]}
    ctx.db.put(managing, **values, netmask="255.255.255.0", DNS="")


def drop_pif(db: Database, pif: Row) -> None:
    """Remove an interface's record, and its metrics unless another one shares them; the database is locked."""
    metrics = db.find("PIF_metrics", pif["metrics"])
    if metrics is not None and not any(one["metrics"] == metrics.ref for one in db.rows("PIF") if one.ref != pif.ref):
        db.delete(metrics)
    db.delete(pif)


# -- rules


def assert_no_other_local_pifs(db: Database, host: Row, network: Row) -> None:
    """Raise NETWORK_ALREADY_CONNECTED when the host has an interface on the network."""
    for pif in db.linked(network, "PIFs", "PIF"):
        if pif["host"] == host.ref:
            raise Failure("NETWORK_ALREADY_CONNECTED", host.ref, pif.ref)


def assert_pif_managed(pif: Row) -> None:
    """Raise PIF_UNMANAGED for an interface that XAPI leaves alone."""
    if not pif["managed"]:
        raise Failure("PIF_UNMANAGED", pif.ref)


def assert_no_protection(ctx: Context, pif: Row) -> None:
    """Raise HA_IS_ENABLED or REDO_LOG_IS_ENABLED: an interface in use is not touched then."""
    if pif["currently_attached"]:
        if ctx.pool.pool_row["ha_enabled"]:
            raise Failure("HA_IS_ENABLED")
        if ctx.pool.pool_row["redo_log_enabled"]:
            raise Failure("REDO_LOG_IS_ENABLED")


def _assert_free(pif: Row) -> None:
    """Raise what forbids to forget an interface: bonds, VLANs and tunnels on it, or its own being one."""
    if not is_null(pif["bond_slave_of"]) or pif["bond_master_of"]:
        raise Failure("PIF_ALREADY_BONDED", pif.ref)
    if pif["VLAN_slave_of"] or pif["VLAN"] >= 0:
        raise Failure("PIF_VLAN_STILL_EXISTS", pif.ref)
    if pif["tunnel_transport_PIF_of"] or pif["tunnel_access_PIF_of"]:
        raise Failure("PIF_TUNNEL_STILL_EXISTS", pif.ref)


def assert_not_management(pif: Row) -> None:
    """Raise PIF_IS_MANAGEMENT_INTERFACE for the interface that the host is managed through."""
    if pif["management"]:
        raise Failure("PIF_IS_MANAGEMENT_INTERFACE", pif.ref)


# -- up and down


def bring_up(db: Database, pif: Row) -> None:
    """Plug an interface. One of bond and members is up at a time. The database is locked."""
    if not pif["currently_attached"]:
        db.put(pif, currently_attached=True)
    for bond in db.linked(pif, "bond_master_of", "Bond"):
        for member in db.linked(bond, "slaves", "PIF"):
            db.put(member, currently_attached=False)
    for tunnel in db.linked(pif, "tunnel_access_PIF_of", "tunnel"):
        db.put(tunnel, status=tunnel["status"] | {"active": "true"})


def bring_down(db: Database, pif: Row) -> None:
    """Unplug an interface; the database is locked."""
    if pif["currently_attached"]:
        db.put(pif, currently_attached=False)
    for tunnel in db.linked(pif, "tunnel_access_PIF_of", "tunnel"):
        db.put(tunnel, status=tunnel["status"] | {"active": "false"})


def bring_network_up(db: Database, network: Row, host: Row) -> None:
    """Plug a host's interface on a network that a VIF needs there; the database is locked."""
    for pif in db.linked(network, "PIFs", "PIF"):
        if pif["host"] == host.ref and pif["managed"] and not pif["currently_attached"]:
            bring_up(db, pif)


@call("network.attach", "&network", "&host")
def network_attach(ctx: Context, network: Row, host: Row) -> None:
    """Bring a network up on a host. Raises HOST_CANNOT_ATTACH_NETWORK."""
    with ctx.db as db:
        if not is_reachable(db, network, host):
            raise Failure("HOST_CANNOT_ATTACH_NETWORK", host.ref, network.ref)
        bring_network_up(db, network, host)


@call("PIF.plug", "&PIF")
def pif_plug(ctx: Context, pif: Row) -> None:
    """Bring an interface up. Raises CANNOT_PLUG_BOND_SLAVE, TRANSPORT_PIF_NOT_CONFIGURED, PIF_UNMANAGED."""
    with ctx.db as db:
        assert_pif_managed(pif)
        for tunnel in db.linked(pif, "tunnel_access_PIF_of", "tunnel"):
            transport = db.row("PIF", tunnel["transport_PIF"])
            if transport["ip_configuration_mode"] == "None":
                raise Failure("TRANSPORT_PIF_NOT_CONFIGURED", transport.ref)
            bring_up(db, transport)
        if not is_null(pif["bond_slave_of"]):
            raise Failure("CANNOT_PLUG_BOND_SLAVE", pif.ref)
        bring_up(db, pif)


@call("PIF.unplug", "&PIF")
def pif_unplug(ctx: Context, pif: Row) -> None:
    """Take an interface down. Raises PIF_IS_MANAGEMENT_INTERFACE, VIF_IN_USE, PIF_DOES_NOT_ALLOW_UNPLUG."""
    with ctx.db as db:
        assert_pif_managed(pif)
        assert_no_protection(ctx, pif)
        if pif["currently_attached"]:
            assert_not_management(pif)
        _assert_no_vifs_in_use(db, pif)
        if pif["disallow_unplug"]:
            raise Failure("PIF_DOES_NOT_ALLOW_UNPLUG", pif.ref)
        for tunnel in db.linked(pif, "tunnel_transport_PIF_of", "tunnel"):
            access = db.find("PIF", tunnel["access_PIF"])
            if access is not None:
                bring_down(db, access)
        bring_down(db, pif)


def _assert_no_vifs_in_use(db: Database, pif: Row) -> None:
    network = db.row("network", pif["network"])
    for vif in db.linked(network, "VIFs", "VIF"):
        vm = db.find("VM", vif["VM"])
        is_local = vm is not None and vm["resident_on"] == pif["host"] and vm["power_state"] in _LIVE
        if is_local and vif["currently_attached"]:
            raise Failure("VIF_IN_USE", network.ref, vif.ref)


# -- NICs


@call("PIF.scan", "&host")
def pif_scan(ctx: Context, host: Row) -> None:
    """Make records of the host's NICs that have none."""
    with ctx.db as db:
        known = {pif["device"] for pif in db.linked(host, "PIFs", "PIF") if pif["physical"]}
        for device, mac in _nics(host).items():
            if device not in known:
                introduce_nic(ctx, host, device, mac)


@call("PIF.introduce", "&host", "string", "string", "bool?", returns="@PIF")
def pif_introduce(ctx: Context, host: Row, mac: str, device: str, managed: bool | None) -> str:  # noqa: FBT001 - signature
    """Make the record of one NIC. Raises MAC_INVALID, DUPLICATE_PIF_DEVICE_NAME, and a long one for no such NIC."""
    with ctx.db as db:
        nics = _nics(host)
        address = mac.lower() or nics.get(device, "")
        if not is_mac(address):
            raise Failure("MAC_INVALID", address)
        if any(pif["device"] == device and pif["physical"] for pif in db.linked(host, "PIFs", "PIF")):
            raise Failure("DUPLICATE_PIF_DEVICE_NAME", device)
        if nics.get(device) != address:
            code = "COULD_NOT_FIND_NETWORK_INTERFACE_WITH_SPECIFIED_DEVICE_NAME_AND_MAC_ADDRESS"
            raise Failure(code, device, address)
        return introduce_nic(ctx, host, device, address, managed=managed is not False).ref


@call("PIF.forget", "&PIF")
def pif_forget(ctx: Context, pif: Row) -> None:
    """Drop the record of a NIC. Raises PIF_ALREADY_BONDED, PIF_VLAN_STILL_EXISTS, PIF_IS_MANAGEMENT_INTERFACE."""
    with ctx.db as db:
        _assert_free(pif)
        assert_not_management(pif)
        assert_no_protection(ctx, pif)
        bring_down(db, pif)
        drop_pif(db, pif)


@call(
    "PIF.db_introduce", "string", "&network", "&host", "string", "int", "int", "bool", "ip_configuration_mode",
    "string", "string", "string", "string", "@Bond", "@VLAN", "bool", "string->string", "bool",
    "ipv6_configuration_mode?", "string*?", "string?", "primary_address_type?", "bool?", "string->string?",
    returns="@PIF",
)  # fmt: skip
def pif_db_introduce(ctx: Context, device: str, network: Row, host: Row, *rest: Any) -> str:
    """Make a record as it is told, without looking at the hardware."""
    names = (
        "MAC", "MTU", "VLAN", "physical", "ip_configuration_mode", "IP", "netmask", "gateway", "DNS", "bond_slave_of",
        "VLAN_master_of", "management", "other_config", "disallow_unplug", "ipv6_configuration_mode", "IPv6",
        "ipv6_gateway", "primary_address_type", "managed", "properties",
    )  # fmt: skip
    fields = {name: value for name, value in zip(names, rest, strict=False) if value is not None}
    with ctx.db:
        return new_pif(ctx, host, network, **fields | {"device": device, "bond_slave_of": NULL}).ref


@call("PIF.db_forget", "&PIF")
def pif_db_forget(ctx: Context, pif: Row) -> None:
    """Drop a record, whatever it is."""
    with ctx.db as db:
        drop_pif(db, pif)


# -- addresses


def _dhcp_lease(db: Database) -> dict[str, str]:
    """Return what the network's DHCP server gives: an address of 198.51.100.0/24, documentation's own."""
    taken = {pif["IP"] for pif in db.rows("PIF")}
    address = next(text for number in itertools.count(10) if (text := f"198.51.100.{number}") not in taken)
    return {"IP": address, "netmask": _DHCP_NETMASK, "gateway": "198.51.100.1", "DNS": "198.51.100.1"}


@call("PIF.reconfigure_ip", "&PIF", "ip_configuration_mode", "string", "string", "string", "string")
def pif_reconfigure_ip(ctx: Context, pif: Row, mode: str, *texts: str) -> None:
    """Set how an interface gets its IPv4 address. Raises INVALID_IP_ADDRESS_SPECIFIED, PIF_IS_MANAGEMENT_INTERFACE.

    The management interface takes it too, but its host goes on answering where it answers.
    """
    wish = dict(zip(("IP", "netmask", "gateway", "DNS"), texts, strict=True))
    with ctx.db as db:
        assert_no_protection(ctx, pif)
        for field in ("IP", "netmask", "gateway"):
            is_wanted = mode == "Static" and field != "gateway"
            if is_wanted or wish[field]:
                assert_ip(wish[field], field)
        if mode == "None" and pif["primary_address_type"] == "IPv4":
            assert_not_management(pif)
        if not wish["DNS"]:
            wish["DNS"] = pif["DNS"]
        if mode == "DHCP" and pif["currently_attached"]:
            wish = _dhcp_lease(db)
        db.put(pif, ip_configuration_mode=mode, **wish)


@call("PIF.reconfigure_ipv6", "&PIF", "ipv6_configuration_mode", "string", "string", "string")
def pif_reconfigure_ipv6(ctx: Context, pif: Row, mode: str, *texts: str) -> None:
    """Set how an interface gets its IPv6 address. Raises INVALID_CIDR_ADDRESS_SPECIFIED and the like."""
    address, gateway, dns = texts
    with ctx.db as db:
        assert_no_protection(ctx, pif)
        if gateway:
            assert_ip(gateway, "gateway", _IPV6)
        if mode == "Static" or address:
            assert_cidr(address, "IPv6", _IPV6)
        if mode == "None" and pif["primary_address_type"] == "IPv6":
            assert_not_management(pif)
        values = {"ipv6_configuration_mode": mode, "IPv6": [address] if address else [], "ipv6_gateway": gateway}
        db.put(pif, **values | {"DNS": dns or pif["DNS"]})


@call("PIF.set_primary_address_type", "&PIF", "primary_address_type")
def pif_set_primary_address_type(ctx: Context, pif: Row, value: str) -> None:
    """Choose which address counts. Raises PIF_IS_MANAGEMENT_INTERFACE."""
    with ctx.db as db:
        assert_no_protection(ctx, pif)
        assert_not_management(pif)
        db.put(pif, primary_address_type=value)


def copy_addresses(db: Database, source: Row, target: Row) -> None:
    """Move the IP configuration of an interface to another one; the database is locked."""
    fields = [*_NO_IP, "ipv6_configuration_mode", "IPv6", "ipv6_gateway", "primary_address_type"]
    db.put(target, **{field: source[field] for field in fields})
    db.put(source, **_NO_IP, ipv6_configuration_mode="None", IPv6=[], ipv6_gateway="")


# -- switches


@call("PIF.set_disallow_unplug", "&PIF", "bool")
def pif_set_disallow_unplug(ctx: Context, pif: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Protect an interface from PIF.unplug."""
    with ctx.db as db:
        db.put(pif, disallow_unplug=value)


@call("PIF.set_property", "&PIF", "string", "string")
def pif_set_property(ctx: Context, pif: Row, name: str, value: str) -> None:
    """Switch offloading. Raises INVALID_VALUE, CANNOT_CHANGE_PIF_PROPERTIES for VLANs, tunnels and bond members."""
    if value not in _PROPERTIES.get(name, ()):
        raise Failure("INVALID_VALUE", "properties", f"{name} = {value}")
    with ctx.db as db:
        if pif["VLAN"] >= 0 or pif["tunnel_access_PIF_of"] or not is_null(pif["bond_slave_of"]):
            raise Failure("CANNOT_CHANGE_PIF_PROPERTIES", pif.ref)
        bonds = db.linked(pif, "bond_master_of", "Bond")
        members = [member for bond in bonds for member in db.linked(bond, "slaves", "PIF")]
        for one in [pif, *members]:
            db.put(one, properties=one["properties"] | {name: value})
