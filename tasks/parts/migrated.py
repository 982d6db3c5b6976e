"""What says on a VM that it is being resized or moved: for the operations that do, the poller, and people.

The mark is on the VM that is left (`side` source) and, once there is one, on the VM that takes its place (destination).
Each has its own times, by its own pool's clock.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worker.errors import RequestError
from worker.xenapi.vm import MIGRATION_KEY

#: On a disk that has been carried over whole: the migration. So its removal with the VM that was left is proven right.
CARRIED = "vmops.carried"
#: On a disk that is being filled: the uuid of the disk that it is made from.
MADE_FROM = "vmops.made-from"
#: On the VM that took the place, and on its disks: the migration that they were made by.
MIGRATED_BY = "vmops.migrated-by"
#: The end of the name of a VM that is left, as Nova gives it.
LEFT_NAME = "-orig"
#: What keeps the VM that is left halted: each is compared by itself (operations.md 14).
LOCKS = ("start", "start_on")
_LOCK_TEXT = "moved by vmops: migration "

MOVING, MOVED, FINISHING, FINISHED = "moving", "moved", "finishing", "finished"
#: On a VM that was left for another pool: `finished` is said by the VM there, which can be confirmed.
FINISHED_THERE = "finished there"
CONFIRMING, REVERTING = "confirming", "reverting"
#: On a VM that is back as it was: what was made at the destination has yet to be removed.
REVERTED = "reverted"


@dataclass(frozen=True, slots=True)
class Mark:
    """What `other_config` says under `MIGRATION_KEY`."""

    state: str
    entered: int
    """Since when, seconds of the pool's clock."""
    operation: str
    """The operation that brought it into this state."""
    migration: str
    """The operation that moved the disks: what it made bears its mark."""
    side: str
    name: str
    """The instance's name."""
    power: str
    """The power state to go back to, Running or Halted."""
    source: dict[str, str]
    """Of the VM that is left: pool, vm_uuid."""
    destination: dict[str, str]
    """Of the VM that takes its place: pool, host (uuid or ""), vm_uuid once it is there."""
    halted_at: float = 0.0
    """When the guest was halted, seconds since the epoch by the worker's clock."""
    disks: list[dict[str, Any]] = field(default_factory=list)
    """The destination's disks: vdi_uuid, made_from, userdevice, mode, type, bootable."""

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    def plain(self) -> dict[str, Any]:
        """Return the mark as plain data, for the journal."""
        return asdict(self)

    def on(self, side: str) -> Mark:
        """Return the mark as the VM of the other side bears it."""
        return replace(self, side=side)

    def at(self, state: str, entered: int, operation: str) -> Mark:
        """Return the mark in another state."""
        return replace(self, state=state, entered=entered, operation=operation)

    @classmethod
    def of(cls, vm_rec: dict[str, Any]) -> Mark | None:
        """Return a VM's mark, None when it has none. Raises RequestError for one that cannot be read."""
        text = vm_rec["other_config"].get(MIGRATION_KEY)
        if text is None:
            return None
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            raise RequestError(
                f"VM {vm_rec['name_label']!r} has a damaged mark in other_config:{MIGRATION_KEY}: somebody has changed "
                "it. Look at the VM, then take the key away."
            ) from None


def left_name(name: str) -> str:
    """Return the name of the VM that is left."""
    return f"{name}{LEFT_NAME}"


def lock_text(migration: str) -> str:
    """Return what somebody is told who wants to start the VM that is left."""
    return f"{_LOCK_TEXT}{migration}"


def locks_of(vm_rec: dict[str, Any], migration: str) -> list[str]:
    """Return the locks that a migration has put on the VM."""
    blocked: dict[str, str] = vm_rec["blocked_operations"]
    return [key for key in LOCKS if blocked.get(key) == lock_text(migration)]


def refuse_migrating(vm_rec: dict[str, Any], wish: str) -> None:
    """Raise RequestError when a VM is being resized or moved: it has a twin, or soon will."""
    mark = Mark.of(vm_rec)
    if mark is not None:
        way = "finish" if mark.state in {MOVING, MOVED, FINISHING} else "confirm"
        raise RequestError(
            f"VM {vm_rec['name_label']!r} is being resized or moved (state {mark.state!r}, migration "
            f"{mark.migration}) and cannot be {wish}: {way} or revert that first."
        )
