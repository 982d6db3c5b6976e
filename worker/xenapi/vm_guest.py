"""VMs: what the guest is told, and what it says of itself (xapi.md 13.3, 13.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.errors import XenAPIFailure
from worker.retry import Kind, kind_of
from worker.xenapi.session import Session


def set_xenstore_data(session: Session, vm_ref: str, data: Mapping[str, str]) -> None:
    """Replace the map; of a running VM also what is live below vm-data and FIST, in one transaction."""
    session.call("VM.set_xenstore_data", vm_ref, dict(data))


def is_windows(session: Session, vm_rec: Mapping[str, Any]) -> bool:
    """Tell whether the guest's tools report a Windows. One call; none for a VM whose guest has reported nothing."""
    metrics_ref = vm_rec["guest_metrics"]
    if metrics_ref == "OpaqueRef:NULL":
        return False
    try:
        told: dict[str, str] = session.call("VM_guest_metrics.get_os_version", metrics_ref)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise
        return False
    return any("windows" in told.get(key, "").lower() for key in ("distro", "name", "uname"))
