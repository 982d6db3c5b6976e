"""A pool without VMs whose networks are tried out, and what most tests need of it."""

from __future__ import annotations

from typing import Any

from tests.support.official import vif_record
from tests.support.simulator import vm_record
from tests.support.worker import eventually

OPTIONS = ("--vms", "0", "--guest-writes", "0", "--boot-time", "10ms")


class Shortcuts:
    """What most tests need of a pool."""

    def __init__(self, xen: Any) -> None:
        self.xen = xen

    def network(self, **fields: Any) -> str:
        ref: str = self.xen.network.create({"name_label": "net", "other_config": {}} | fields)
        return ref

    def pif(self, device: str, host: int = 0) -> str:
        host_ref = self.xen.host.get_all()[host]
        found = [ref for ref in self.xen.host.get_PIFs(host_ref) if self.xen.PIF.get_device(ref) == device]
        return str(found[0])

    def network_of(self, device: str) -> str:
        return str(self.xen.PIF.get_network(self.pif(device)))

    def vm(self, network_ref: str | None = None, *, runs: bool = False) -> tuple[str, str]:
        """Make a VM with one VIF; return both."""
        vm_ref = self.xen.VM.create(vm_record())
        vif_ref = self.xen.VIF.create(vif_record(vm_ref, network_ref or self.network_of("eth0")))
        if runs:
            self.xen.VM.start(vm_ref, False, False)
            eventually(lambda: self.xen.VM_guest_metrics.get_os_version(self.xen.VM.get_guest_metrics(vm_ref)))
        return vm_ref, vif_ref


def tidy(xen: Any) -> None:
    """Leave the pool as it was found: two NICs in use, no VM, no network of a test."""
    for vm_ref, vm in xen.VM.get_all_records().items():
        if not vm["is_control_domain"]:
            if vm["power_state"] != "Halted":
                xen.VM.hard_shutdown(vm_ref)
            xen.VM.destroy(vm_ref)
    for calls in (xen.Bond, xen.VLAN, xen.tunnel):
        for ref in calls.get_all():
            calls.destroy(ref)
    xen.PIF.scan(xen.host.get_all()[0])
    for pif_ref, pif in xen.PIF.get_all_records().items():
        if not pif["management"]:
            xen.PIF.reconfigure_ip(pif_ref, "None", "", "", "", "")
            xen.PIF.reconfigure_ipv6(pif_ref, "None", "", "", "")
            xen.PIF.set_primary_address_type(pif_ref, "IPv4")
            xen.PIF.set_property(pif_ref, "gro", "on")
            xen.PIF.plug(pif_ref)
    for network_ref, network in xen.network.get_all_records().items():
        if not network["PIFs"] and network["bridge"] != "xenapi":
            xen.network.destroy(network_ref)
