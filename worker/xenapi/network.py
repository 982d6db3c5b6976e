"""Networks and the VLANs below them (xapi.md 6.6)."""

from __future__ import annotations

from collections.abc import Mapping

from worker.xenapi.session import Session


def create(session: Session, name_label: str, other_config: Mapping[str, str]) -> str:
    """Make a network on a bridge that XAPI names; return its ref. Look for its name before repeating."""
    record = {
        "name_label": name_label,
        "name_description": "",
        "MTU": "1500",
        "bridge": "",
        "managed": True,
        "other_config": dict(other_config),
        "tags": [],
    }
    return str(session.call("network.create", record))


def create_vlan(session: Session, device: str, network_ref: str, tag: int) -> None:
    """Connect a network, on every host, to a VLAN of a device such as `eth0`. Raises PIF_VLAN_EXISTS."""
    session.call("pool.create_VLAN", device, network_ref, str(tag))
