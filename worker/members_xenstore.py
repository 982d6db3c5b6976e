"""The members of `VMOps` that read and write XenStore (see `worker.members`)."""

from __future__ import annotations

from typing import Any, Protocol

from worker.handle import Handle

Instance = dict[str, str]
"""Which VM: any of `uuid` (OpenStack's), `name`, `vm_uuid` (XenAPI's)."""


class Client(Protocol):
    """What the members need of the client."""

    def submit(self, operation: str, request: dict[str, Any], *, operation_id: str | None = None) -> Handle:
        """Submit an operation."""

    def query(self, name: str, request: dict[str, Any], *, timeout_s: float = 60.0) -> Any:
        """Ask a question."""


class XenStoreMembers:
    """Mixed into `worker.members.Members`."""

    # -- xenstore: the parameter record, then the live record of a running domain; those that read return the answer

    def add_to_param_xenstore(
        self: Client, *, instance: Instance, key: str, val: Any, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Set one key of a VM's record."""
        return self.submit(
            "add_to_param_xenstore", {"instance": instance, "key": key, "val": val, **fields}, operation_id=operation_id
        )

    def write_to_param_xenstore(
        self: Client, *, instance: Instance, mapping: dict[str, Any], operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Set several keys of a VM's record."""
        return self.submit(
            "write_to_param_xenstore", {"instance": instance, "mapping": mapping, **fields}, operation_id=operation_id
        )

    def read_from_param_xenstore(
        self: Client, *, instance: Instance, keys: str | list[str] | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Read keys of a VM's record, or all; missing ones are None."""
        answer: dict[str, Any] = self.query("read_from_param_xenstore", {"instance": instance, "keys": keys, **fields})
        return answer

    def read_partial_from_param_xenstore(
        self: Client, *, instance: Instance, key_prefix: str, **fields: Any
    ) -> dict[str, Any]:
        """Read the keys of a VM's record that begin with a text."""
        answer: dict[str, Any] = self.query(
            "read_partial_from_param_xenstore", {"instance": instance, "key_prefix": key_prefix, **fields}
        )
        return answer

    def remove_from_param_xenstore(
        self: Client,
        *,
        instance: Instance,
        key_or_keys: str | list[str],
        operation_id: str | None = None,
        **fields: Any,
    ) -> Handle:
        """Remove keys from a VM's record; missing ones are ignored."""
        return self.submit(
            "remove_from_param_xenstore",
            {"instance": instance, "key_or_keys": key_or_keys, **fields},
            operation_id=operation_id,
        )

    def clear_param_xenstore(
        self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Remove every key of a VM's record."""
        return self.submit("clear_param_xenstore", {"instance": instance, **fields}, operation_id=operation_id)

    def add_to_xenstore(
        self: Client,
        *,
        instance: Instance,
        path: str,
        key: str,
        value: Any,
        operation_id: str | None = None,
        **fields: Any,
    ) -> Handle:
        """Set one key of the map at a place of the live record."""
        return self.submit(
            "add_to_xenstore",
            {"instance": instance, "path": path, "key": key, "value": value, **fields},
            operation_id=operation_id,
        )

    def write_to_xenstore(
        self: Client, *, instance: Instance, path: str, value: Any, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Write one node of the live record."""
        return self.submit(
            "write_to_xenstore",
            {"instance": instance, "path": path, "value": value, **fields},
            operation_id=operation_id,
        )

    def read_from_xenstore(self: Client, *, instance: Instance, path: str, **fields: Any) -> Any:
        """Read one node of the live record; None when there is none."""
        return self.query("read_from_xenstore", {"instance": instance, "path": path, **fields})

    def list_from_xenstore(self: Client, *, instance: Instance, path: str, **fields: Any) -> dict[str, Any] | None:
        """Read all below a place of the live record; None when there is nothing."""
        answer: dict[str, Any] | None = self.query("list_from_xenstore", {"instance": instance, "path": path, **fields})
        return answer

    def remove_from_xenstore(
        self: Client,
        *,
        instance: Instance,
        path: str,
        key_or_keys: str | list[str],
        operation_id: str | None = None,
        **fields: Any,
    ) -> Handle:
        """Remove keys at a place of the live record; missing ones are ignored."""
        return self.submit(
            "remove_from_xenstore",
            {"instance": instance, "path": path, "key_or_keys": key_or_keys, **fields},
            operation_id=operation_id,
        )

    def clear_xenstore(
        self: Client, *, instance: Instance, path: str, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Remove a node of the live record with all below it."""
        return self.submit("clear_xenstore", {"instance": instance, "path": path, **fields}, operation_id=operation_id)
