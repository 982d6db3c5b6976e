"""What says on a VM that its instance is in rescue: for rescue and unrescue, the poller, and people.

All of it is on the instance's own VM, which is halted meanwhile; the rescue VM has the role `rescue`.
"""

from __future__ import annotations

from typing import Any

from tasks.parts.entered import Rescued

#: In `other_config`: a `Rescued` as text, since when and by which rescue.
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


def entered(vm_rec: dict[str, Any]) -> Rescued | None:
    """Return since when the instance is in rescue, and by which operation; None when it does not say so."""
    try:
        return Rescued.parse(vm_rec["other_config"].get(RESCUED, ""))
    except ValueError:
        return None
