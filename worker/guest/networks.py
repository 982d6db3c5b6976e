"""Network documents for config drives, made of what the request says of its networks.

That is the layout which agents read in XenStore (dom0-and-guest.md 7): `ips`, `ip6s`, `gateway`, `dns`, `routes`. An
interface without addresses asks DHCP.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from pydantic import BaseModel, Field

#: The default route's network and mask.
_ANY4, _ANY6 = str(IPv4Address(0)), str(IPv6Address(0))


class _Lenient(BaseModel):
    """Other keys are for other readers."""


class Address4(_Lenient):
    """An IPv4 address; of several the first is the primary one."""

    ip: IPv4Address
    netmask: IPv4Address
    gateway: IPv4Address | None = None


class Address6(_Lenient):
    """An IPv6 address; its netmask is a prefix length."""

    ip: IPv6Address
    netmask: int = Field(ge=0, le=128)
    gateway: IPv6Address | None = None


class Route(_Lenient):
    """A route beside the default one."""

    route: IPv4Address
    netmask: IPv4Address
    gateway: IPv4Address


class Interface(_Lenient):
    """One interface of the guest."""

    mac: str
    ips: list[Address4] = []
    ip6s: list[Address6] = []
    gateway: IPv4Address | None = None
    gateway_v6: IPv6Address | None = None
    dns: list[IPv4Address | IPv6Address] = []
    routes: list[Route] = []

    def gateway4(self) -> IPv4Address | None:
        """Return where the default route goes."""
        return self.gateway or next((one.gateway for one in self.ips if one.gateway), None)

    def gateway6(self) -> IPv6Address | None:
        """Return where IPv6's default route goes."""
        return self.gateway_v6 or next((one.gateway for one in self.ip6s if one.gateway), None)


def network_data(interfaces: Sequence[Interface]) -> dict[str, Any]:
    """Return OpenStack's network_data.json."""
    networks: list[dict[str, Any]] = []
    for device, one in enumerate(interfaces):
        networks += [{"link": f"interface{device}", **network} for network in _networks(one)]
    return {
        "links": [
            {"id": f"interface{device}", "type": "phy", "ethernet_mac_address": one.mac, "mtu": None}
            for device, one in enumerate(interfaces)
        ],
        "networks": [{"id": f"network{number}", **network} for number, network in enumerate(networks)],
        "services": [{"type": "dns", "address": address} for address in _name_servers(interfaces)],
    }


def network_config(interfaces: Sequence[Interface]) -> dict[str, Any]:
    """Return cloud-init's network-config, version 1: every cloud-init reads that."""
    config: list[dict[str, Any]] = [
        {"type": "physical", "name": f"eth{device}", "mac_address": one.mac, "subnets": _subnets(one)}
        for device, one in enumerate(interfaces)
    ]
    servers = _name_servers(interfaces)
    if servers:
        config.append({"type": "nameserver", "address": servers})
    return {"version": 1, "config": config}


def _networks(one: Interface) -> list[dict[str, Any]]:
    """Return the entries of network_data.json; the first of each family has the routes."""
    entries: list[dict[str, Any]] = []
    for number, v4 in enumerate(one.ips):
        routes = _routes(one) if number == 0 else []
        entry = {"type": "ipv4", "ip_address": str(v4.ip), "netmask": str(v4.netmask), "routes": routes}
        gateway = one.gateway4()
        if number == 0 and gateway:
            routes.insert(0, {"network": _ANY4, "netmask": _ANY4, "gateway": str(gateway)})
        entries.append(entry)
    for number, v6 in enumerate(one.ip6s):
        gateway6 = one.gateway6() if number == 0 else None
        routes = [{"network": _ANY6, "netmask": _ANY6, "gateway": str(gateway6)}] if gateway6 else []
        netmask = str(IPv6Address(((1 << v6.netmask) - 1) << (128 - v6.netmask)))
        entries.append({"type": "ipv6", "ip_address": str(v6.ip), "netmask": netmask, "routes": routes})
    return entries or [{"type": "ipv4_dhcp"}]


def _subnets(one: Interface) -> list[dict[str, Any]]:
    """Return the subnets of network-config; the first of each family has the routes."""
    subnets: list[dict[str, Any]] = []
    for number, v4 in enumerate(one.ips):
        subnet: dict[str, Any] = {"type": "static", "address": str(v4.ip), "netmask": str(v4.netmask)}
        gateway = one.gateway4()
        if number == 0 and gateway:
            subnet["gateway"] = str(gateway)
        if number == 0 and one.routes:
            subnet["routes"] = _routes(one)
        subnets.append(subnet)
    for number, v6 in enumerate(one.ip6s):
        subnet = {"type": "static6", "address": f"{v6.ip}/{v6.netmask}"}
        gateway6 = one.gateway6()
        if number == 0 and gateway6:
            subnet["gateway"] = str(gateway6)
        subnets.append(subnet)
    return subnets or [{"type": "dhcp4"}]


def _routes(one: Interface) -> list[dict[str, Any]]:
    return [{"network": str(r.route), "netmask": str(r.netmask), "gateway": str(r.gateway)} for r in one.routes]


def _name_servers(interfaces: Sequence[Interface]) -> list[str]:
    """Return each name server once, in order."""
    return list(dict.fromkeys(str(server) for one in interfaces for server in one.dns))
