"""Which calls the master hands on to the host of their object, and what it says when that host is gone.

xapi.md 4.1: HOST_OFFLINE once the master has noticed, CANNOT_CONTACT_HOST before. The check of the VM's state comes
first, so a call that its state forbids never gets as far as the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simulator.api import vm_rules
from simulator.model.words import words

if TYPE_CHECKING:
    from simulator.api.registry import Context

#: Calls on a VM that its host carries out. VM.power_state_reset is for hosts that are gone: it is the master's own.
_ON_RESIDENT = words(
    """
    pause unpause clean_shutdown clean_reboot hard_shutdown hard_reboot shutdown suspend checkpoint pool_migrate
    migrate_send send_sysrq send_trigger call_plugin set_VCPUs_number_live
    """
)
_VM_CALLS = {f"VM.{name}": name for name in _ON_RESIDENT}
#: Calls on a device of a VM that runs.
_DEVICE_CALLS = {
    f"{cls}.{name}" for cls in ("VBD", "VIF") for name in words("plug unplug unplug_force insert eject move")
}
#: Calls whose first parameter is the host that carries them out.
_HOST_CALLS = {
    f"host.{name}"
    for name in words(
        """
        call_plugin call_extension has_extension reboot shutdown restart_agent enable get_servertime
        get_server_localtime set_hostname_live dmesg get_log send_debug_keys get_system_status_capabilities
        management_reconfigure syslog_reconfigure get_data_sources query_data_source record_data_source
        forget_data_source_archives backup_rrds install_server_certificate get_server_certificate
        """
    )
} | {"PIF.scan", "pool.eject", "pool.designate_new_master"}
#: Calls on an object of a host.
_OWNED_CALLS = {"PBD.plug", "PBD.unplug", "PIF.plug", "PIF.unplug", "PIF.reconfigure_ip", "PIF.reconfigure_ipv6"}


def assert_contact(ctx: Context, name: str, values: list[Any]) -> None:
    """Raise HOST_OFFLINE or CANNOT_CONTACT_HOST when the host that must carry out the call cannot be reached."""
    if name in _VM_CALLS:
        vm, operation = values[0], _VM_CALLS[name]
        with ctx.db as db:
            if operation in vm_rules.STATES and vm_rules.why_not(db, vm, operation) is not None:
                return
        ctx.pool.hosts.assert_contact(vm["resident_on"])
    elif name in _DEVICE_CALLS:
        vm = ctx.db.find("VM", values[0]["VM"])
        if vm is not None and vm["power_state"] in ("Running", "Paused"):
            ctx.pool.hosts.assert_contact(vm["resident_on"])
    elif name in _HOST_CALLS:
        ctx.pool.hosts.assert_contact(values[0].ref)
    elif name in _OWNED_CALLS:
        ctx.pool.hosts.assert_contact(values[0]["host"])
