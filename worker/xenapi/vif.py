"""VIFs: the interfaces of VMs (xapi.md 6.5, 8.2)."""

from __future__ import annotations

from typing import Any

from worker.errors import XenAPIFailure
from worker.xenapi import query
from worker.xenapi.session import Session


def of_vm(session: Session, vm_ref: str) -> dict[str, dict[str, Any]]:
    """Return the VM's interfaces, ref -> record. One call."""
    records: dict[str, dict[str, Any]] = session.call("VIF.get_all_records_where", query.equal("VM", vm_ref))
    return {ref: rec for ref, rec in records.items() if rec["VM"] == vm_ref}


def create(session: Session, vm_ref: str, network_ref: str, device: str, mac: str, **fields: Any) -> str:
    """Give a VM an interface, without plugging it; return its ref.

    `fields` are those of the record that differ from a plain one's. Raises XenAPIFailure DEVICE_ALREADY_EXISTS when the
    position is taken.
    """
    record = {
        "VM": vm_ref,
        "network": network_ref,
        "device": device,
        "MAC": mac,
        "MTU": "0",
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        "locking_mode": "network_default",
        "ipv4_allowed": [],
        "ipv6_allowed": [],
        **fields,
    }
    return str(session.call("VIF.create", record))


def plug(session: Session, vif_ref: str) -> None:
    """Attach an interface to its running VM; one that is attached is no error. Raises VM_MISSING_PV_DRIVERS."""
    _unless("DEVICE_ALREADY_ATTACHED", session, "VIF.plug", vif_ref)


def unplug(session: Session, vif_ref: str) -> None:
    """Detach an interface from its running VM; one that is detached is no error. Raises VM_MISSING_PV_DRIVERS."""
    _unless("DEVICE_ALREADY_DETACHED", session, "VIF.unplug", vif_ref)


def destroy(session: Session, vif_ref: str) -> None:
    """Remove a detached interface. Raises HANDLE_INVALID when it is gone."""
    session.call("VIF.destroy", vif_ref)


def _unless(code: str, session: Session, method: str, vif_ref: str) -> None:
    try:
        session.call(method, vif_ref)
    except XenAPIFailure as error:
        if error.code != code:
            raise
