"""VMs: power, the locks on operations, marks, and their end (xapi.md 7).

`begin_...` starts a call that may take long and returns its task; the others return when XAPI has done it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from worker.errors import XenAPIFailure
from worker.xenapi.session import Session


def get(session: Session, vm_ref: str) -> dict[str, Any]:
    """Return the VM's record. Raises HANDLE_INVALID when the VM is gone."""
    record: dict[str, Any] = session.call("VM.get_record", vm_ref)
    return record


# -- power


def begin_start(session: Session, vm_ref: str, *, paused: bool = False) -> str:
    """Boot on a host that the pool chooses."""
    return session.call_async("VM.start", vm_ref, paused, False)


def begin_start_on(session: Session, vm_ref: str, host_ref: str, *, paused: bool = False) -> str:
    """Boot on this host and no other."""
    return session.call_async("VM.start_on", vm_ref, host_ref, paused, False)


def begin_clean_shutdown(session: Session, vm_ref: str) -> str:
    """Ask the guest to shut down; XAPI gives up after 20 minutes."""
    return session.call_async("VM.clean_shutdown", vm_ref)


def begin_clean_reboot(session: Session, vm_ref: str) -> str:
    """Ask the guest to reboot; XAPI gives up after 20 minutes."""
    return session.call_async("VM.clean_reboot", vm_ref)


def begin_suspend(session: Session, vm_ref: str) -> str:
    """Write the memory to a disk and end the domain."""
    return session.call_async("VM.suspend", vm_ref)


def begin_resume(session: Session, vm_ref: str) -> str:
    """Bring a suspended VM back on a host that the pool chooses, whatever that host's CPU features."""
    return session.call_async("VM.resume", vm_ref, False, True)


def begin_pool_migrate(session: Session, vm_ref: str, host_ref: str) -> str:
    """Move a running VM to another host of its pool that sees its disks (xapi.md 14.3)."""
    return session.call_async("VM.pool_migrate", vm_ref, host_ref, {"live": "true"})


@dataclass(frozen=True, slots=True)
class Maps:
    """Where the parts of a VM go: disk -> storage repository; between pools also interface -> network."""

    vdis: Mapping[str, str]
    vifs: Mapping[str, str]


def assert_can_migrate(session: Session, vm_ref: str, dest: Mapping[str, str], maps: Maps) -> None:
    """Raise what forbids `begin_migrate_send` with the same parameters (xapi.md 14.4)."""
    session.call("VM.assert_can_migrate", vm_ref, dict(dest), True, dict(maps.vdis), dict(maps.vifs), {}, {})


def begin_migrate_send(session: Session, vm_ref: str, dest: Mapping[str, str], maps: Maps) -> str:
    """Move a VM with its disks; `dest` is from `host.migrate_receive` of the pool that takes it."""
    return session.call_async("VM.migrate_send", vm_ref, dict(dest), True, dict(maps.vdis), dict(maps.vifs), {}, {})


def hard_shutdown(session: Session, vm_ref: str) -> None:
    """End the domain, or throw the memory image away. Overrules a clean shutdown or reboot (xapi.md 7.2)."""
    session.call("VM.hard_shutdown", vm_ref)


def hard_reboot(session: Session, vm_ref: str) -> None:
    """Replace the domain. Overrules a clean shutdown or reboot, and a migration (xapi.md 7.2)."""
    session.call("VM.hard_reboot", vm_ref)


def pause(session: Session, vm_ref: str) -> None:
    """Stop the CPUs."""
    session.call("VM.pause", vm_ref)


def unpause(session: Session, vm_ref: str) -> None:
    """Let the CPUs run on."""
    session.call("VM.unpause", vm_ref)


def destroy(session: Session, vm_ref: str) -> None:
    """Remove the VM with its VBDs and VIFs; its disks stay."""
    session.call("VM.destroy", vm_ref)


# -- locks and marks


def block(session: Session, vm_ref: str, operations: Iterable[str], text: str) -> None:
    """Forbid operations; whoever tries one is told `text`. A lock that was there gets the new text."""
    for operation in operations:
        _add(session, "blocked_operations", (vm_ref, operation, text))


def unblock(session: Session, vm_ref: str, operations: Iterable[str]) -> None:
    """Allow operations again; what is not forbidden is no error."""
    for operation in operations:
        session.call("VM.remove_from_blocked_operations", vm_ref, operation)


def add_to_other_config(session: Session, vm_ref: str, key: str, value: str) -> None:
    """Set one key, replacing its value if there is one."""
    _add(session, "other_config", (vm_ref, key, value))


def remove_from_other_config(session: Session, vm_ref: str, key: str) -> None:
    """Remove one key; a missing one is fine."""
    session.call("VM.remove_from_other_config", vm_ref, key)


def _add(session: Session, field: str, entry: tuple[str, str, str]) -> None:
    vm_ref, key, value = entry
    try:
        session.call(f"VM.add_to_{field}", vm_ref, key, value)
    except XenAPIFailure as failure:
        if failure.code != "MAP_DUPLICATE_KEY":
            raise
        session.call(f"VM.remove_from_{field}", vm_ref, key)
        session.call(f"VM.add_to_{field}", vm_ref, key, value)


# -- what refusals say


def actual_state(failure: XenAPIFailure) -> str:
    """Return the power state that a VM_BAD_POWER_STATE names (`halted`), "" for another failure.

    Two spellings occur (xapi.md 4.3).
    """
    is_one = failure.code == "VM_BAD_POWER_STATE" and failure.params
    return failure.params[-1].lower() if is_one else ""


#: Operations that move a VM to another host; a hard reboot aborts them (operations.md 14).
_MOVES = frozenset({"pool_migrate", "migrate_send"})


def moves(vm_rec: Mapping[str, Any]) -> dict[str, str]:
    """Return the migrations that are under way: task -> operation."""
    current: dict[str, str] = vm_rec["current_operations"]
    return {task_ref: name for task_ref, name in current.items() if name in _MOVES}
