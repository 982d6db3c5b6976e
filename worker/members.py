"""The members of `VMOps`: one method for each operation and query, by the names of the original class.

An operation's method returns its `Handle`; a query's returns the answer. Fields: `vmops tasks NAME`.
"""

from __future__ import annotations

from typing import Any

from worker.handle import Handle
from worker.members_xenstore import Client, Instance, XenStoreMembers

_BUILD_SECRETS = ["admin_password", "files.*.secret_contents", "image_token"]

#: The secret fields of each operation. Workers publish them, too; a client must not send one in clear before they have.
SECRET_FIELDS: dict[str, list[str]] = {
    "inject_file": ["secret_contents"],
    "rescue": _BUILD_SECRETS,
    "set_admin_password": ["new_pass"],
    "snapshot": ["image_token"],
    "spawn": _BUILD_SECRETS,
    "spawn_rescue": _BUILD_SECRETS,
}


class Members(XenStoreMembers):
    """Mixed into `worker.client.VMOps`."""

    # -- snapshot

    def snapshot(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Push the disks of a VM, as they are now, into images."""
        return self.submit("snapshot", {"instance": instance, **fields}, operation_id=operation_id)

    # -- spawn

    def spawn(self: Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Make a VM of an image and start it: `instance` (uuid, name), `image_id`, `flavor`, `networks` ..."""
        return self.submit("spawn", fields, operation_id=operation_id)

    def spawn_rescue(self: Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Make the rescue VM of an instance and start it; fields as for `spawn`."""
        return self.submit("spawn_rescue", fields, operation_id=operation_id)

    # -- power

    def power_on(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Start a VM, on its host or wherever the pool can."""
        return self.submit("power_on", {"instance": instance, **fields}, operation_id=operation_id)

    def power_off(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Halt a VM."""
        return self.submit("power_off", {"instance": instance, **fields}, operation_id=operation_id)

    def reboot(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Reboot a VM: SOFT asks its guest, HARD replaces its domain."""
        return self.submit("reboot", {"instance": instance, **fields}, operation_id=operation_id)

    def pause(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Stop the CPUs of a running VM."""
        return self.submit("pause", {"instance": instance, **fields}, operation_id=operation_id)

    def unpause(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Let a paused VM run on."""
        return self.submit("unpause", {"instance": instance, **fields}, operation_id=operation_id)

    def suspend(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Write a VM's memory to disk and end its domain."""
        return self.submit("suspend", {"instance": instance, **fields}, operation_id=operation_id)

    def resume(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Bring a suspended VM back."""
        return self.submit("resume", {"instance": instance, **fields}, operation_id=operation_id)

    # -- resize and move

    def migrate_disk_and_power_off(
        self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Bring a VM's disks to `dest` in the size of `instance_type`, and halt it."""
        return self.submit("migrate_disk_and_power_off", {"instance": instance, **fields}, operation_id=operation_id)

    def finish_migration(
        self: Client, *, migration: dict[str, str], operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Make and start the VM whose disks were moved; `migration` is in that operation's result."""
        return self.submit("finish_migration", {"migration": migration, **fields}, operation_id=operation_id)

    def confirm_migration(
        self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Remove what a resize or move has left: from now on there is no way back."""
        return self.submit("confirm_migration", {"instance": instance, **fields}, operation_id=operation_id)

    def finish_revert_migration(
        self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Remove what a resize or move has made, and give the VM that was left its name and power back."""
        return self.submit("finish_revert_migration", {"instance": instance, **fields}, operation_id=operation_id)

    def live_migrate(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Move a running VM to another host, storage repository or pool, without halting it."""
        return self.submit("live_migrate", {"instance": instance, **fields}, operation_id=operation_id)

    # -- destroy

    def destroy(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Remove a VM and those of its disks whose marks say that they are the instance's."""
        return self.submit("destroy", {"instance": instance, **fields}, operation_id=operation_id)

    # -- rescue

    def rescue(self: Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Halt an instance's VM and start a rescue VM that has its disks; fields as for `spawn`."""
        return self.submit("rescue", fields, operation_id=operation_id)

    def unrescue(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Remove an instance's rescue VM and bring the instance back as it was."""
        return self.submit("unrescue", {"instance": instance, **fields}, operation_id=operation_id)

    # -- network

    def create_vifs(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Give a VM interfaces (`networks`), without plugging them into its running guest."""
        return self.submit("create_vifs", {"instance": instance, **fields}, operation_id=operation_id)

    def plug_vifs(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Give a VM interfaces (`networks`), and plug them into its running guest."""
        return self.submit("plug_vifs", {"instance": instance, **fields}, operation_id=operation_id)

    def unplug_vifs(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Take interfaces (`macs`) from a VM, also while it runs."""
        return self.submit("unplug_vifs", {"instance": instance, **fields}, operation_id=operation_id)

    # -- guest

    def get_agent_version(
        self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Ask a guest's agent for its version, also while the guest boots."""
        return self.submit("get_agent_version", {"instance": instance, **fields}, operation_id=operation_id)

    def agent_update(
        self: Client, *, instance: Instance, url: str, md5sum: str, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Let a guest's agent replace itself."""
        return self.submit(
            "agent_update", {"instance": instance, "url": url, "md5sum": md5sum, **fields}, operation_id=operation_id
        )

    def set_admin_password(
        self: Client,
        *,
        instance: Instance,
        new_pass: str | dict[str, str],
        operation_id: str | None = None,
        **fields: Any,
    ) -> Handle:
        """Set the administrator's password by the agent; an SSH key or a config drive is safer."""
        return self.submit(
            "set_admin_password", {"instance": instance, "new_pass": new_pass, **fields}, operation_id=operation_id
        )

    def inject_file(
        self: Client, *, instance: Instance, path: str, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Let a guest's agent write a small file: `contents`, `contents_base64` or `secret_contents`."""
        return self.submit("inject_file", {"instance": instance, "path": path, **fields}, operation_id=operation_id)

    def reset_network(self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any) -> Handle:
        """Let a guest's agent set its network up as it was told."""
        return self.submit("reset_network", {"instance": instance, **fields}, operation_id=operation_id)

    def inject_network_info(
        self: Client, *, instance: Instance, network_info: list[Any], operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Tell a guest its addresses."""
        return self.submit(
            "inject_network_info",
            {"instance": instance, "network_info": network_info, **fields},
            operation_id=operation_id,
        )

    def inject_hostname(
        self: Client, *, instance: Instance, hostname: str, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Tell a guest its host name."""
        return self.submit(
            "inject_hostname", {"instance": instance, "hostname": hostname, **fields}, operation_id=operation_id
        )

    # -- firewall

    def refresh_security_group_rules(
        self: Client, *, security_group_id: str, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Let hosts enforce what a security group allows (`rules`, OpenStack's fields)."""
        request = {"security_group_id": security_group_id, **fields}
        return self.submit("refresh_security_group_rules", request, operation_id=operation_id)

    def refresh_security_group_members(
        self: Client, *, security_group_id: str, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Let VMs join and leave a security group (`members`), and let hosts know its members."""
        request = {"security_group_id": security_group_id, **fields}
        return self.submit("refresh_security_group_members", request, operation_id=operation_id)

    def refresh_provider_fw_rules(self: Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Let hosts enforce what the provider denies (`rules`)."""
        return self.submit("refresh_provider_fw_rules", fields, operation_id=operation_id)

    def unfilter_instance(
        self: Client, *, instance: Instance, operation_id: str | None = None, **fields: Any
    ) -> Handle:
        """Let a VM leave its security groups, so that it is filtered no more."""
        return self.submit("unfilter_instance", {"instance": instance, **fields}, operation_id=operation_id)

    def poll_firewall(self: Client, **fields: Any) -> dict[str, Any]:
        """Let the hosts of a pool have the rules of their VMs, wherever those are now."""
        answer: dict[str, Any] = self.query("poll_firewall", fields)
        return answer

    # -- information: these return the answer

    def list_instances(self: Client, **fields: Any) -> list[str]:
        """Name the VMs of a pool, halted ones too."""
        answer: list[str] = self.query("list_instances", fields)
        return answer

    def list_instances_detail(self: Client, **fields: Any) -> list[dict[str, Any]]:
        """Describe the VMs of a pool, halted ones too."""
        answer: list[dict[str, Any]] = self.query("list_instances_detail", fields)
        return answer

    def get_info(self: Client, *, instance: Instance, **fields: Any) -> dict[str, Any]:
        """Tell a VM's power state and size."""
        answer: dict[str, Any] = self.query("get_info", {"instance": instance, **fields})
        return answer

    def get_diagnostics(self: Client, *, instance: Instance, **fields: Any) -> dict[str, float | None]:
        """Tell a VM's newest figures, by XAPI's names."""
        answer: dict[str, float | None] = self.query("get_diagnostics", {"instance": instance, **fields})
        return answer

    def get_all_bw_usage(
        self: Client, *, start_time: float, stop_time: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Count the bytes that went over the interfaces of running VMs between two moments."""
        span = {"start_time": start_time, "stop_time": stop_time}
        answer: dict[str, Any] = self.query("get_all_bw_usage", {**span, **fields})
        return answer

    def get_console_output(self: Client, *, instance: Instance, **fields: Any) -> dict[str, Any]:
        """Return the end of what a VM's guest wrote to its console, also of a halted VM."""
        answer: dict[str, Any] = self.query("get_console_output", {"instance": instance, **fields})
        return answer

    def get_host_plugins(self: Client, **fields: Any) -> list[dict[str, Any]]:
        """Tell which version of vmops's dom0 plugins each host of a pool has."""
        answer: list[dict[str, Any]] = self.query("get_host_plugins", fields)
        return answer

    def get_worker(self: Client, **fields: Any) -> dict[str, Any]:
        """Tell what a worker has and reaches: programs, the image store, how its clock goes."""
        answer: dict[str, Any] = self.query("get_worker", fields)
        return answer

    def get_vnc_console(self: Client, *, instance: Instance, **fields: Any) -> dict[str, Any]:
        """Tell where a VM's console is, with a short-lived session that opens it: a secret."""
        answer: dict[str, Any] = self.query("get_vnc_console", {"instance": instance, **fields})
        return answer

    # -- pollers: beat runs them; by hand they return what they have found and submitted

    def poll_rebooting_instances(self: Client, *, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """Reboot HARD the VMs whose SOFT reboot takes longer than `timeout` seconds; default: the setting."""
        answer: dict[str, Any] = self.query("poll_rebooting_instances", {"timeout": timeout, **fields})
        return answer

    def poll_rescued_instances(self: Client, *, timeout: float | None = None, **fields: Any) -> dict[str, Any]:
        """End the rescues that have lasted longer than `timeout` seconds; default: the setting."""
        answer: dict[str, Any] = self.query("poll_rescued_instances", {"timeout": timeout, **fields})
        return answer

    def poll_unconfirmed_resizes(
        self: Client, *, resize_confirm_window: float | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Confirm the resizes that have waited longer than so many seconds; default: the setting."""
        wish = {"resize_confirm_window": resize_confirm_window, **fields}
        answer: dict[str, Any] = self.query("poll_unconfirmed_resizes", wish)
        return answer

    def poll_orphans(self: Client, *, operation_id: str | None = None, **fields: Any) -> Handle:
        """Report what dead operations have left in a pool; with `clean`, destroy it. An operation."""
        return self.submit("poll_orphans", fields, operation_id=operation_id)
