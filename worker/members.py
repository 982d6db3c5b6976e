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
