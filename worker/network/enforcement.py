"""How a host enforces security groups: the back ends, the choice among them, and the calls of dom0's plugin.

    ovs        flows with connection tracking on Open vSwitch
    bridge     iptables, ip6tables, ipset and ebtables on Linux bridges
    xapi-lock  XAPI's own locks of VIFs: forged addresses are dropped, rules are not enforced
    none       nothing

`auto` takes `ovs` or `bridge`, whichever the host can do. A host that can do neither is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from worker.errors import FirewallUnsupported, PluginUnsupported
from worker.network import desired
from worker.network.desired import Objects
from worker.network.groups import Groups
from worker.xenapi import host, plugin
from worker.xenapi.session import Session

_FIREWALL, _INFO = "vmops-firewall", "vmops-info"
#: What a host can do changes when somebody works on it; a call that finds it changed asks anew.
_CAPABLE_FOR_S = 3600.0
_BRIDGE_NEEDS = ("iptables", "ip6tables", "ebtables", "ipset", "xenstore_socket")


class Backend(StrEnum):
    """What enforces."""

    OVS = "ovs"
    BRIDGE = "bridge"
    LOCK = "xapi-lock"
    NONE = "none"

    @property
    def has_rules(self) -> bool:
        """Whether rules are enforced, by dom0's plugin."""
        return self in {Backend.OVS, Backend.BRIDGE}


def choose(wish: str, can: Mapping[str, Any], host_name: str) -> Backend:
    """Return the back end of a host that says what it can do. Raises FirewallUnsupported."""
    is_bridge = can.get("network_backend") == "bridge"
    lacks = [name for name in _BRIDGE_NEEDS if not can.get(name)] if is_bridge else []
    if not is_bridge and not can.get("ct"):
        lacks = [f"Open vSwitch with connection tracking (it has {can.get('ovs_version') or 'none'})"]
    found = Backend.BRIDGE if is_bridge else Backend.OVS
    if lacks:
        raise FirewallUnsupported(
            f"Host {host_name!r} cannot enforce security groups: it lacks {', '.join(lacks)}. Install that, or set "
            "the pool's firewall to xapi-lock or none."
        )
    if wish not in ("auto", found):
        raise FirewallUnsupported(
            f"Host {host_name!r} cannot enforce security groups by {wish}: its network back end is "
            f"{'bridge' if is_bridge else 'openvswitch'}. Set the pool's firewall to {found}, or to auto."
        )
    return found


class Enforcer:
    """Enforces on the hosts of one pool; keeps in mind what they have."""

    def __init__(self, session: Session, groups: Groups, wish: str) -> None:
        """`wish` is the pool's setting."""
        self._session = session
        self._groups = groups
        self._wish = wish

    def backend(self, host_ref: str, host_rec: Mapping[str, Any]) -> Backend:
        """Return the back end of a host. Raises FirewallUnsupported, and as `plugin.call` does."""
        if self._wish in {Backend.LOCK, Backend.NONE}:
            return Backend(self._wish)
        name = f"capabilities:{host_rec['uuid']}"
        can = self._groups.kept(name)
        if can is None:
            can = plugin.call(self._session, host_ref, _INFO, "capabilities", {})
            self._groups.keep(name, can, _CAPABLE_FOR_S)
        return choose(self._wish, can, str(host_rec["name_label"]))

    def apply(self, host_ref: str, host_rec: Mapping[str, Any], objects: Objects, generation: int) -> bool:
        """Let a host have these objects and no other VIFs; tell whether it had to be called.

        What it has already is not sent. Raises FirewallUnsupported, and as `plugin.call` does.
        """
        name = _name(host_rec)
        had = self._groups.had(name) or {}
        changed, gone = desired.changes(objects, had)
        if not changed and not gone:
            return False
        backend = self.backend(host_ref, host_rec)
        if not backend.has_rules:
            return False
        dropped = [key for key in had if key not in objects]
        texts = list(desired.documents(changed, gone, backend, generation))
        self._groups.begin(name, generation, [*changed, *dropped])
        try:
            for arguments in texts:
                plugin.call(self._session, host_ref, _FIREWALL, "apply", arguments)
        except PluginUnsupported:
            self._groups.drop(f"capabilities:{host_rec['uuid']}")
            raise
        self._groups.note(name, generation, desired.digests(changed), dropped)
        return True

    def is_idle(self, host_rec: Mapping[str, Any]) -> bool:
        """Tell whether a host has said that it enforces nothing."""
        return self._groups.had(_name(host_rec)) == {}

    def verify(self, host_ref: str, host_rec: Mapping[str, Any], generation: int, valid_s: float) -> None:
        """Ask a host what it has, unless it was asked not long ago; let it enforce again what it has lost.

        Raises FirewallUnsupported, and as `plugin.call` does.
        """
        name = _name(host_rec)
        if self._groups.is_verified(name) or not self.backend(host_ref, host_rec).has_rules:
            return
        said = plugin.call(self._session, host_ref, _FIREWALL, "dump", {})
        if not said["is_live"]:
            plugin.call(self._session, host_ref, _FIREWALL, "restore", {})
        self._groups.note_all(name, generation, said["objects"], valid_s)


def _name(host_rec: Mapping[str, Any]) -> str:
    """Return a host's name in the store: what it has enforced is gone when it boots."""
    return f"{host_rec['uuid']}:{host.boot_time_of(host_rec)}"
