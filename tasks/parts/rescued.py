"""What keeps an instance's own VM halted while it is in rescue, and how it was before.

Since when it is in rescue is another mark (`tasks.parts.entered`). All of them are on the instance's own VM; the rescue
VM has the role `rescue`.
"""

from __future__ import annotations

from typing import Any

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
