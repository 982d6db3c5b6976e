"""network.*: bridges, and which hosts reach them (xapi.md 5.3, 6.6; names of bridges: xapi-observed.md)."""

from __future__ import annotations

from typing import Any

from simulator.api.registry import Context, call
from simulator.api.vm_copy import drop_device
from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.model.types import NULL

#: Beginnings of bridge names that XAPI and the kernel keep for themselves; a bridge's name is an interface's.
_RESERVED = ("xen", "xapi", "vif", "tap", "eth")
_LONGEST_BRIDGE = 15
_DEFAULT_MTU = 1500
_SYSTEM_MARK = "is_host_internal_management_network"
_CONFLICTS = {"nbd": "insecure_nbd", "insecure_nbd": "nbd"}


def _bridge(ctx: Context, wish: str) -> str:
    """Return the bridge of a new network. Raises INVALID_VALUE for a reserved name, BRIDGE_NAME_EXISTS."""
    taken = {network["bridge"] for network in ctx.db.rows("network")}
    if not wish:
        number = int(ctx.db.notes.get("bridge", -1)) + 1
        while f"xapi{number}" in taken:
            number += 1
        ctx.db.note("bridge", number)
        return f"xapi{number}"
    if wish.startswith(_RESERVED) or len(wish) > _LONGEST_BRIDGE:
        raise Failure("INVALID_VALUE", "bridge", wish)
    if wish in taken:
        raise Failure("BRIDGE_NAME_EXISTS", wish)
    return wish


@call("network.create", "record:network", returns="@network")
def network_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make a network; without a bridge name it gets one. Raises INVALID_VALUE, BRIDGE_NAME_EXISTS."""
    with ctx.db as db:
        mtu = record.get("MTU", _DEFAULT_MTU)
        values = record | {
            "uuid": ctx.pool.ids.uuid(),
            "bridge": _bridge(ctx, record.get("bridge", "")),
            "MTU": mtu if mtu > 0 else _DEFAULT_MTU,
        }
        return db.create("network", ctx.pool.ids.ref(), values).ref


@call("network.destroy", "&network")
def network_destroy(ctx: Context, network: Row) -> None:
    """Remove a network with its idle VIFs. Raises NETWORK_CONTAINS_VIF for attached ones, NETWORK_CONTAINS_PIF."""
    with ctx.db as db:
        vifs = db.linked(network, "VIFs", "VIF")
        attached = [vif.ref for vif in vifs if vif["currently_attached"]]
        if attached:
            raise Failure("NETWORK_CONTAINS_VIF", *attached)
        if network["PIFs"]:
            raise Failure("NETWORK_CONTAINS_PIF", *network["PIFs"])
        if network["other_config"].get(_SYSTEM_MARK) == "true":
            raise Failure("CANNOT_DESTROY_SYSTEM_NETWORK", network.ref)
        for vif in vifs:
            drop_device(ctx, vif)
        db.delete(network)


@call("network.set_default_locking_mode", "&network", "network_default_locking_mode")
def network_set_default_locking_mode(ctx: Context, network: Row, value: str) -> None:
    """Choose what interfaces do by default. Raises VIF_IN_USE while one is attached."""
    with ctx.db as db:
        for vif in db.linked(network, "VIFs", "VIF"):
            if vif["currently_attached"]:
                raise Failure("VIF_IN_USE", network.ref, vif.ref)
        db.put(network, default_locking_mode=value)


@call("network.add_purpose", "&network", "network_purpose")
def network_add_purpose(ctx: Context, network: Row, value: str) -> None:
    """Give a network a purpose. Raises NETWORK_INCOMPATIBLE_PURPOSES: no pool has both kinds of NBD network."""
    with ctx.db as db:
        for other in db.rows("network"):
            if _CONFLICTS[value] in other["purpose"]:
                raise Failure("NETWORK_INCOMPATIBLE_PURPOSES", value, _CONFLICTS[value])
        if value not in network["purpose"]:
            db.put(network, purpose=[*network["purpose"], value])


@call("network.remove_purpose", "&network", "network_purpose")
def network_remove_purpose(ctx: Context, network: Row, value: str) -> None:
    """Take a purpose from a network."""
    with ctx.db as db:
        if value in network["purpose"]:
            db.put(network, purpose=[one for one in network["purpose"] if one != value])


def make_internal_network(ctx: Context) -> Row:
    """Make the network that every pool has for guests to talk to their host; the database is locked."""
    values = {
        "uuid": ctx.pool.ids.uuid(),
        "name_label": "Host internal management network",
        "name_description": "Network on which guests are given a link-local address to talk XenAPI with",
        "bridge": "xenapi",
        "other_config": {
            "is_guest_installer_network": "true",
            _SYSTEM_MARK: "true",
            "ip_begin": "169.254.0.1",
            "ip_end": "169.254.255.254",
            "netmask": "255.255.0.0",
        },
    }
    return ctx.db.create("network", ctx.pool.ids.ref(), values)


def assert_managed(network: Row) -> None:
    """Raise NETWORK_UNMANAGED for a network whose bridge XAPI does not make."""
    if not network["managed"]:
        raise Failure("NETWORK_UNMANAGED", network.ref)


def is_reachable(db: Database, network: Row, host: Row) -> bool:
    """Tell whether a host can attach VIFs to a network: it has a PIF there, or nobody has and no other host uses it."""
    pifs = db.linked(network, "PIFs", "PIF")
    if pifs:
        return any(pif["host"] == host.ref for pif in pifs)
    for vif in db.linked(network, "VIFs", "VIF"):
        vm = db.find("VM", vif["VM"]) if vif["currently_attached"] else None
        if vm is not None and vm["resident_on"] not in (NULL, host.ref):
            return False
    return True
