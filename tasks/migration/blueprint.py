"""How the VM at the destination is made after the one that is left: what is taken over, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.parts.instances import DISK, OPERATION, SNAPSHOT_OPERATION
from tasks.parts.migrated import CARRIED, MADE_FROM, MIGRATED_BY
from tasks.provision.check import MIB
from tasks.provision.machine import vcpu_params
from tasks.provision.networks import locked_to
from tasks.provision.request import Flavor
from worker.xenapi.vm import MIGRATION_KEY

#: Fields of the record that a new VM gets as they are (xapi.md 6.1); the empty ones of old hosts may be missing.
_TAKEN_OVER = (
    "name_description",
    "user_version",
    "actions_after_shutdown",
    "actions_after_reboot",
    "actions_after_crash",
    "PV_bootloader",
    "PV_kernel",
    "PV_ramdisk",
    "PV_args",
    "PV_bootloader_args",
    "PV_legacy_args",
    "HVM_boot_policy",
    "HVM_boot_params",
    "HVM_shadow_multiplier",
    "PCI_bus",
    "recommendations",
    "ha_restart_priority",
    "tags",
    "start_delay",
    "shutdown_delay",
    "order",
    "version",
    "has_vendor_device",
    "domain_type",
    "NVRAM",
)
_CORES = "cores-per-socket"
#: What reaches a guest (xapi.md 13.3); the rest is XAPI's own.
_GUEST_DATA = ("vm-data/", "FIST/")
#: Keys of `other_config` that speak of one object, and not of what takes its place.
OWN_KEYS = frozenset(
    {
        *(OPERATION, DISK, MIGRATION_KEY, MIGRATED_BY, CARRIED, MADE_FROM, SNAPSHOT_OPERATION),
        *("vmops.cached-as", "vmops.cached-at", "vmops.image", "vmops.image-checksum"),
        *("vmops.rebooting", "vmops.rescued", "last_dom_id"),
    }
)


def kept_keys(other_config: Mapping[str, str]) -> dict[str, str]:
    """Return what of an `other_config` holds for the successor too: identity, role, firewall, other people's keys."""
    return {key: text for key, text in other_config.items() if key not in OWN_KEYS}


def vm_struct(former: Mapping[str, Any], flavor: Flavor, affinity: str) -> dict[str, Any]:
    """Return the struct of a VM like `former`, in the size of the flavor; without its name."""
    memory = str(flavor.memory_mb * MIB)
    platform = dict(former["platform"])
    if flavor.vcpus % int(platform.get(_CORES) or 1):
        del platform[_CORES]
    shares = {key: text for key, text in former["VCPUs_params"].items() if key not in {"weight", "cap"}}
    return {
        **{name: former[name] for name in _TAKEN_OVER if name in former},
        "is_a_template": False,
        "affinity": affinity,
        "memory_static_min": "0",
        "memory_static_max": memory,
        "memory_dynamic_min": memory,
        "memory_dynamic_max": memory,
        "memory_target": memory,
        "VCPUs_max": str(flavor.vcpus),
        "VCPUs_at_startup": str(flavor.vcpus),
        "VCPUs_params": {**shares, **vcpu_params(flavor)},
        "platform": platform,
        "other_config": kept_keys(former["other_config"]),
        "xenstore_data": {key: text for key, text in former["xenstore_data"].items() if key.startswith(_GUEST_DATA)},
        "ha_always_run": False,
        "blocked_operations": {},
    }


def vbd_fields(former: Mapping[str, Any], operation_id: str) -> dict[str, Any]:
    """Return the fields of a disk's VBD like `former`, but for VM, disk and device."""
    names = ("mode", "type", "bootable", "unpluggable", "qos_algorithm_type", "qos_algorithm_params")
    kept = {name: former[name] for name in names if name in former}
    return {**kept, "other_config": {**kept_keys(former["other_config"]), OPERATION: operation_id}}


def vif_fields(former: Mapping[str, Any], operation_id: str, own: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the fields of an interface like `former`, but for network, device and address.

    With `own` addresses it is locked to them, unless `former` has been told otherwise.
    """
    names = ("MTU", "qos_algorithm_type", "qos_algorithm_params", "locking_mode", "ipv4_allowed", "ipv6_allowed")
    kept = {name: former[name] for name in names if name in former}
    if own is not None and former["locking_mode"] == "network_default":
        kept |= locked_to(own)
    return {**kept, "other_config": {**kept_keys(former["other_config"]), OPERATION: operation_id}}
