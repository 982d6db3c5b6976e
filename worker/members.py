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

    # -- rescue

    def rescue(self: _Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Halt an instance's VM and start a rescue VM that has its disks; fields as for `spawn`."""
        return self.submit("rescue", fields, operation_id=operation_id)

    def unrescue(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Remove an instance's rescue VM and bring the instance back as it was."""
        return self.submit("unrescue", {"instance": instance, **fields}, operation_id=operation_id)

    # -- network

    def create_vifs(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Give a VM interfaces (`networks`), without plugging them into its running guest."""
        return self.submit("create_vifs", {"instance": instance, **fields}, operation_id=operation_id)

    def plug_vifs(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Give a VM interfaces (`networks`), and plug them into its running guest."""
        return self.submit("plug_vifs", {"instance": instance, **fields}, operation_id=operation_id)

    def unplug_vifs(self: _Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Take interfaces (`macs`) from a VM, also while it runs."""
        return self.submit("unplug_vifs", {"instance": instance, **fields}, operation_id=operation_id)

    # -- information: these return the answer

    def list_instances(self: _Client, **fields: Any) -> list[str]:
        """Name the VMs of a pool, halted ones too."""
        answer: list[str] = self.query("list_instances", fields)
        return answer

    def list_instances_detail(self: _Client, **fields: Any) -> list[dict[str, Any]]:
        """Describe the VMs of a pool, halted ones too."""
        answer: list[dict[str, Any]] = self.query("list_instances_detail", fields)
        return answer

    def get_info(self: _Client, *, instance: Instance, **fields: Any) -> dict[str, Any]:
        """Tell a VM's power state and size."""
        answer: dict[str, Any] = self.query("get_info", {"instance": instance, **fields})
        return answer

    def get_diagnostics(self: _Client, *, instance: Instance, **fields: Any) -> dict[str, float | None]:
        """Tell a VM's newest figures, by XAPI's names."""
        answer: dict[str, float | None] = self.query("get_diagnostics", {"instance": instance, **fields})
        return answer

    def get_all_bw_usage(
        self: _Client, *, start_time: float, stop_time: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Count the bytes that went over the interfaces of running VMs between two moments."""
        span = {"start_time": start_time, "stop_time": stop_time}
        answer: dict[str, Any] = self.query("get_all_bw_usage", {**span, **fields})
        return answer

    def get_console_output(self: _Client, *, instance: Instance, **fields: Any) -> dict[str, Any]:
        """Return the end of what a VM's guest wrote to its console, also of a halted VM."""
        answer: dict[str, Any] = self.query("get_console_output", {"instance": instance, **fields})
        return answer

    def get_host_plugins(self: _Client, **fields: Any) -> list[dict[str, Any]]:
        """Tell which version of vmops's dom0 plugins each host of a pool has."""
        answer: list[dict[str, Any]] = self.query("get_host_plugins", fields)
        return answer

    def get_vnc_console(self: _Client, *, instance: Instance, **fields: Any) -> dict[str, Any]:
        """Tell where a VM's console is, with a short-lived session that opens it: a secret."""
        answer: dict[str, Any] = self.query("get_vnc_console", {"instance": instance, **fields})
        return answer

    # -- pollers: beat runs them; by hand they return what they have found and submitted

    def poll_rebooting_instances(self: _Client, *, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """Reboot HARD the VMs whose SOFT reboot takes longer than `timeout` seconds; default: the setting."""
        answer: dict[str, Any] = self.query("poll_rebooting_instances", {"timeout": timeout, **fields})
        return answer

    def poll_rescued_instances(self: _Client, *, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """End the rescues that have lasted longer than `timeout` seconds; default: the setting."""
        answer: dict[str, Any] = self.query("poll_rescued_instances", {"timeout": timeout, **fields})
        return answer

    def poll_unconfirmed_resizes(
        self: _Client, *, resize_confirm_window: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Confirm the resizes that have waited longer than so many seconds; default: the setting."""
        wish = {"resize_confirm_window": resize_confirm_window, **fields}
        answer: dict[str, Any] = self.query("poll_unconfirmed_resizes", wish)
        return answer

    def poll_orphans(self: _Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Report what dead operations have left in a pool; with `clean`, destroy it. An operation."""
        return self.submit("poll_orphans", fields, operation_id=operation_id)
