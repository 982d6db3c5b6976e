"""The members of `VMOps`: one method for each operation and query, by the names of the original class.

An operation's method returns its `Handle`; a query's returns the answer. Fields: `vmops tasks NAME`.
"""

from __future__ import annotations

from typing import Any, Protocol

from worker.handle import Handle

Instance = dict[str, str]
"""Which VM: any of `uuid` (OpenStack's), `name`, `vm_uuid` (XenAPI's)."""


class _Client(Protocol):
    def submit(self, operation: str, request: dict[str, Any], *, operation_id: str | None = None) -> Handle: ...

    def query(self, name: str, request: dict[str, Any], *, timeout_s: float = 60.0) -> Any: ...


class Members:
    """Mixed into `worker.client.VMOps`."""

    # -- snapshot

    def snapshot(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Push the disks of a VM, as they are now, into images."""
        return self.submit("snapshot", {"instance": instance, **fields}, operation_id=operation_id)

    # -- spawn

    def spawn(self: _Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Make a VM of an image and start it: `instance` (uuid, name), `image_id`, `flavor`, `networks` ..."""
        return self.submit("spawn", fields, operation_id=operation_id)

    def spawn_rescue(self: _Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Make the rescue VM of an instance and start it; fields as for `spawn`."""
        return self.submit("spawn_rescue", fields, operation_id=operation_id)

    # -- power

    def power_on(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Start a VM, on its host or wherever the pool can."""
        return self.submit("power_on", {"instance": instance, **fields}, operation_id=operation_id)

    def power_off(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Halt a VM."""
        return self.submit("power_off", {"instance": instance, **fields}, operation_id=operation_id)

    def reboot(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Reboot a VM: SOFT asks its guest, HARD replaces its domain."""
        return self.submit("reboot", {"instance": instance, **fields}, operation_id=operation_id)

    def pause(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Stop the CPUs of a running VM."""
        return self.submit("pause", {"instance": instance, **fields}, operation_id=operation_id)

    def unpause(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Let a paused VM run on."""
        return self.submit("unpause", {"instance": instance, **fields}, operation_id=operation_id)

    def suspend(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Write a VM's memory to disk and end its domain."""
        return self.submit("suspend", {"instance": instance, **fields}, operation_id=operation_id)

    def resume(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Bring a suspended VM back."""
        return self.submit("resume", {"instance": instance, **fields}, operation_id=operation_id)

    # -- destroy

    def destroy(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Remove a VM and those of its disks whose marks say that they are the instance's."""
        return self.submit("destroy", {"instance": instance, **fields}, operation_id=operation_id)
