"""Third step of a build: the VM's record, by the conventions of operations.md 5.4; all it needs is in the one call."""

from __future__ import annotations

from typing import Any

from tasks.parts.instances import NOVA_INSTANCE, OPERATION, marks
from tasks.parts.lost import await_lost, intend, was_intended
from tasks.provision.check import MIB
from tasks.provision.request import BuildRequest, Flavor
from worker.errors import XenAPIFailure
from worker.network.desired import GROUP_KEY
from worker.operations.definition import step
from worker.operations.op import Op
from worker.retry import Kind, kind_of
from worker.xenapi import vm, vm_power
from worker.xenapi.session import Session

_CREATE = "VM.create"


def destroy_vm(op: Op, pool: Session) -> None:
    """Destroy the VM that this operation made, with its VBDs and VIFs; its disks stay. Raises Wait."""
    if not was_intended(op, _CREATE):
        return
    await_lost(op, pool, _CREATE)
    for found in _made(op, pool):
        try:
            vm_power.destroy(pool, found.ref)
        except XenAPIFailure as error:
            if kind_of(error) is not Kind.GONE:
                raise


@step(undo=destroy_vm)
def create_vm(op: Op, pool: Session) -> None:
    """Make the VM once: a second run finds the first one's by its mark."""
    made: list[vm.Found] = []
    if was_intended(op, _CREATE):
        await_lost(op, pool, _CREATE)
        made = _made(op, pool)
    if made:
        vm_ref = made[0].ref
    else:
        intend(op, _CREATE)
        vm_ref = vm.create(pool, _record(op))
    op.remember(vm={"ref": vm_ref})


def _made(op: Op, pool: Session) -> list[vm.Found]:
    found = vm.matching(pool, name=op.data["plan"]["name"])
    return [one for one in found if one.rec["other_config"].get(OPERATION) == op.id]


def _record(op: Op) -> dict[str, Any]:
    plan = op.data["plan"]
    flavor = op.request(BuildRequest).flavor
    memory = str(flavor.memory_mb * MIB)
    return {
        "name_label": plan["name"],
        "name_description": plan["description"],
        "user_version": "0",
        "is_a_template": False,
        "affinity": plan["affinity"],
        "memory_static_min": "0",
        "memory_static_max": memory,
        "memory_dynamic_min": memory,
        "memory_dynamic_max": memory,
        "memory_target": memory,
        "VCPUs_max": str(flavor.vcpus),
        "VCPUs_at_startup": str(flavor.vcpus),
        "VCPUs_params": vcpu_params(flavor),
        "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart",
        "actions_after_crash": "destroy",
        "platform": _platform(plan),
        "other_config": {
            **marks(op, plan["instance"], plan["role"]),
            NOVA_INSTANCE: plan["instance"],
            **{f"{GROUP_KEY}{group}": "" for group in op.request(BuildRequest).security_groups},
        },
        "xenstore_data": plan["xenstore_data"],
        "PCI_bus": "",
        "recommendations": "",
        "ha_restart_priority": "",
        "ha_always_run": False,
        "has_vendor_device": False,
        "tags": [],
        "blocked_operations": {},
        **_boot(plan["vm_mode"], has_kernel=bool(plan["kernels"])),
    }


def vcpu_params(flavor: Flavor) -> dict[str, str]:
    """Return the scheduler's parameters. Weight and cap go together: old hosts overlook a weight without cap."""
    params = {}
    if flavor.vcpu_weight is not None:
        params["weight"] = str(flavor.vcpu_weight)
    if params or flavor.vcpu_cap is not None:
        params["cap"] = str(flavor.vcpu_cap or 0)
    return params


def _platform(plan: dict[str, Any]) -> dict[str, str]:
    """Return the virtual hardware. Linux takes itself for a Hyper-V guest when it sees viridian."""
    is_windows = plan["os_type"] == "windows"
    platform = {
        "acpi": "true",
        "apic": "true",
        "pae": "true",
        "nx": "true" if plan["vm_mode"] == "hvm" else "false",
        "viridian": "true" if is_windows else "false",
        "timeoffset": "0",
    }
    if is_windows and plan["device_id"]:
        platform["device_id"] = str(plan["device_id"]).zfill(4)
    return platform


def _boot(vm_mode: str, *, has_kernel: bool) -> dict[str, Any]:
    """Return what the VM boots: an HVM guest its CD or disk, a PV guest the kernel in its disk.

    One that gets its kernel from dom0 (`put_kernel_files`) has the file system on the disk's first partition.
    """
    is_hvm = vm_mode == "hvm"
    return {
        "HVM_boot_policy": "BIOS order" if is_hvm else "",
        "HVM_boot_params": {"order": "dc"} if is_hvm else {},
        "domain_type": vm_mode,
        "PV_bootloader": "" if is_hvm or has_kernel else "pygrub",
        "PV_kernel": "",
        "PV_ramdisk": "",
        "PV_args": "root=/dev/xvda1" if has_kernel else "",
        "PV_bootloader_args": "",
        "PV_legacy_args": "",
    }
