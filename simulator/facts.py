"""What the simulated hosts, VMs and drivers say of themselves (xapi.md 6.6; observed records)."""

from __future__ import annotations

from typing import Any

from simulator.model.types import NULL
from simulator.model.words import words

MIB = 1 << 20
VM_MEMORY = 256 * MIB
HOST_MEMORY = 256 << 30
HOST_OVERHEAD = 2 << 30
HOST_CPUS = 8
CPU_FEATURES = "1fcbfbff-f7fa3203-2c100800-00000121-00000001-000007ab-00000000-00000000-00001000-9c000400-00000000"

SM_FEATURES = words(
    """
    SR_PROBE SR_UPDATE SR_SUPPORTS_LOCAL_CACHING VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH VDI_UPDATE
    VDI_CLONE VDI_SNAPSHOT VDI_RESIZE VDI_MIRROR VDI_GENERATE_CONFIG VDI_CONFIG_CBT VDI_ACTIVATE VDI_DEACTIVATE
    THIN_PROVISIONING VDI_READ_CACHING
    """
)
POOL_OPERATIONS = (
    "cluster_create",
    "sync_updates",
    "tls_verification_enable",
    "designate_new_master",
    "exchange_ca_certificates_on_join",
    "configure_repositories",
    "apply_updates",
    "ha_enable",
    "get_updates",
    "cert_refresh",
    "copy_primary_host_certs",
    "exchange_certificates_on_join",
)
LICENCE = words(
    """
    restrict_vlan restrict_qos restrict_pool_attached_storage restrict_pooling restrict_rbac restrict_dmc
    restrict_checkpoint restrict_cpu_masking restrict_vmss restrict_dr restrict_vif_locking
    restrict_storage_xen_motion restrict_vgpu restrict_xen_motion restrict_guest_ip_setting restrict_nested_virt
    restrict_set_vcpus_number_live restrict_cbt restrict_usb_passthrough restrict_zstd_export restrict_updates
    restrict_netapp restrict_equalogic restrict_marathon restrict_email_alerting restrict_historical_performance
    restrict_wlb restrict_connection platform_filter regular_nag_dialog restrict_vmpr restrict_intellicache
    restrict_gpu restrict_integrated_gpu_passthrough restrict_vss restrict_guest_agent_auto_update
    restrict_pci_device_for_auto_update restrict_ad restrict_live_patching restrict_pvs_proxy restrict_igmp_snooping
    restrict_rpu restrict_pool_size restrict_network_sriov restrict_corosync restrict_pool_secret_rotation
    restrict_certificate_verification restrict_internal_repo_access
    """
)
_BIOS_STRINGS = words(
    """
    bios-vendor bios-version system-manufacturer system-product-name system-version system-serial-number
    baseboard-manufacturer baseboard-product-name baseboard-version baseboard-serial-number hp-rombios
    """
)
_SOFTWARE = {
    "product_version": "8.3.0",
    "product_version_text": "8.3",
    "product_version_text_short": "8.3",
    "platform_name": "XCP",
    "platform_version": "3.4.0",
    "product_brand": "XCP-ng",
    "build_number": "release/sim",
    "git_id": "0",
    "hostname": "localhost",
    "date": "20240701T00:00:00Z",
    "xencenter_min": "2.21",
    "xencenter_max": "2.21",
    "xapi": "24.10",
    "xapi_build": "24.10.0",
    "xen": "4.17.0-sim",
    "linux": "4.19.0+1",
    "network_backend": "openvswitch",
    "db_schema": "5.775",
}
_CPU = {
    "cpu_count": str(HOST_CPUS),
    "socket_count": "1",
    "threads_per_core": "1",
    "vendor": "GenuineIntel",
    "speed": "2400.000",
    "modelname": "Simulated CPU",
    "family": "6",
    "model": "85",
    "stepping": "7",
    "flags": "fpu vme de pse tsc msr vmx",
    "features_pv": CPU_FEATURES,
    "features_hvm": CPU_FEATURES,
    "features_hvm_host": CPU_FEATURES,
    "features_pv_host": CPU_FEATURES,
}


def host_facts(number: int, address: str, now: str) -> dict[str, Any]:
    """Return the fields of the host of this number, which answers at `address`."""
    name = f"host-{number + 1}"
    return {
        "name_label": name,
        "name_description": "Default install",
        "memory_overhead": HOST_OVERHEAD,
        "allowed_operations": ["vm_migrate", "provision", "vm_resume", "evacuate", "vm_start"],
        "API_version_major": 2,
        "API_version_minor": 21,
        "API_version_vendor": "XenSource",
        "enabled": True,
        "software_version": dict(_SOFTWARE),
        "other_config": {"agent_start_time": now, "boot_time": now},
        "capabilities": ["xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64"],
        "sched_policy": "credit",
        "supported_bootloaders": ["pygrub", "eliloader"],
        "cpu_info": dict(_CPU),
        "hostname": name,
        "address": address,
        "license_params": {"enable_xha": "true", **dict.fromkeys(LICENCE, "false")},
        "license_server": {"address": "localhost", "port": "27000"},
        "edition": "xcp-ng",
        "editions": ["xcp-ng"],
        "virtual_hardware_platform_versions": [0, 1, 2],
        "chipset_info": {"iommu": "false"},
        "display": "enabled",
        "ssl_legacy": False,
        "bios_strings": dict.fromkeys(_BIOS_STRINGS, "")
        | {"oem-1": "Xen", "oem-2": "MS_VM_CERT/SHA1/bdbeb6e0a816d43fa6d3fe8aaef04c2bad9d3e3d"},
    }


def vm_record(name: str, memory: int, other_config: dict[str, str]) -> dict[str, Any]:
    """Return a constructor's struct for an ordinary Linux VM."""
    limits = {f"memory_{one}": memory for one in ("static_max", "dynamic_max", "dynamic_min")}
    return {
        "name_label": name,
        "user_version": 1,
        "is_a_template": False,
        "affinity": NULL,
        **limits,
        "memory_static_min": 128 * MIB,
        "VCPUs_params": {},
        "VCPUs_max": 1,
        "VCPUs_at_startup": 1,
        "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart",
        "actions_after_crash": "restart",
        "HVM_boot_policy": "BIOS order",
        "HVM_boot_params": {"order": "cd"},
        "platform": {"acpi": "1", "viridian": "true"},
        "other_config": dict(other_config),
    }
