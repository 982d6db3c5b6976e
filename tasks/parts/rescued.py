"""What says on a VM that its instance is in rescue: for rescue and unrescue, the poller, and people.

All of it is on the instance's own VM, which is halted meanwhile; the rescue VM has the role `rescue`.
"""

from __future__ import annotations

from typing import Any

#: In `other_config`: "<epoch, in the pool's time> <operation id>", since when and by which rescue.
RESCUED = "vmops.rescued"
#: In `other_config`: the power state to go back to, "Running" or "Halted".
POWER_BEFORE = "vmops.power-before-rescue"
#: Keys of `blocked_operations` that keep the VM halted: each is compared by itself (operations.md 8.3).
LOCKS = ("start", "start_on", "resume", "resume_on")
_LOCK_TEXT = "in rescue by vmops: operation "


def lock_text(operation_id: str) -> str:
    """Return what somebody is told who wants to start the VM."""
    return f"{_LOCK_TEXT}{operation_id}"


def locks_of(vm_rec: dict[str, Any]) -> dict[str, str]:
    """Return which operations a rescue of ours forbids on the VM: key -> id of the operation."""
    blocked: dict[str, str] = vm_rec["blocked_operations"]
    return {key: blocked[key].removeprefix(_LOCK_TEXT) for key in LOCKS if blocked.get(key, "").startswith(_LOCK_TEXT)}


def entered(vm_rec: dict[str, Any]) -> tuple[int, str] | None:
    """Return when the instance went into rescue (epoch, in the pool's time) and by which operation, if it says so."""
    epoch, _, operation_id = str(vm_rec["other_config"].get(RESCUED, "")).partition(" ")
    return (int(epoch), operation_id) if epoch.isdecimal() else None
