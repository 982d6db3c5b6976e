"""What an appliance may do now, by the power states of its VMs."""

from __future__ import annotations

from simulator.core.database import Database, Row
from simulator.core.failures import Failure, in_progress

_OPERATIONS = ("start", "clean_shutdown", "hard_shutdown", "shutdown")
#: The power states of which an operation needs at least one VM, and what XAPI says without.
_NEEDED = {
    "start": (("Halted",), "No VMs in the appliance are halted."),
    "clean_shutdown": (("Running",), "No VMs in the appliance are running."),
    **dict.fromkeys(
        ("hard_shutdown", "shutdown"),
        (("Running", "Paused", "Suspended"), "All VMs in the appliance are halted."),
    ),
}


def why_not(db: Database, appliance: Row, operation: str) -> Failure | None:
    """Return what forbids an operation on an appliance now, or None."""
    for task_ref, name in appliance["current_operations"].items():
        return in_progress("VM_appliance", appliance.ref, name, task_ref)
    states = {vm["power_state"] for vm in db.linked(appliance, "VMs", "VM")}
    if not states:
        return Failure("OPERATION_NOT_ALLOWED", "Appliance has no VMs.")
    needed, text = _NEEDED[operation]
    return Failure("OPERATION_NOT_ALLOWED", text) if states.isdisjoint(needed) else None


def refresh(db: Database, appliance: Row) -> None:
    """Recompute the appliance's allowed_operations."""
    allowed = [one for one in _OPERATIONS if why_not(db, appliance, one) is None]
    if set(allowed) != set(appliance["allowed_operations"]):
        db.put(appliance, allowed_operations=allowed)
