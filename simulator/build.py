"""Making a pool, and VMs and disks in it, without going through calls."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from simulator import disks
from simulator.api import device_rules, domains, vm_rules
from simulator.api.registry import Context
from simulator.api.sr import make_pbd, make_sr
from simulator.api.vm_copy import make_vm
from simulator.core.database import Row
from simulator.core.ids import mac_address
from simulator.model.types import NULL
from simulator.pool import Pool
from simulator.storage import load_ext4

MIB = 1 << 20
VM_MEMORY = 256 * MIB
HOST_MEMORY = 256 << 30
HOST_OVERHEAD = 2 << 30
_HOST_CPUS = 8
_FEATURES = "1fcbfbff-f7fa3203-2c100800-00000121-00000001-000007ab-00000000-00000000-00001000-9c000400-00000000"
_VM_KEYS = frozenset({"name", "disks", "running", "count", "other_config"})
_DISK_KEYS = frozenset({"size", "content", "chain_depth"})
_CHUNK = 1 << 20

_SM_FEATURES = (
    "SR_PROBE SR_UPDATE SR_SUPPORTS_LOCAL_CACHING VDI_CREATE VDI_DELETE VDI_ATTACH VDI_DETACH VDI_UPDATE VDI_CLONE "
    "VDI_SNAPSHOT VDI_RESIZE VDI_MIRROR VDI_GENERATE_CONFIG VDI_CONFIG_CBT VDI_ACTIVATE VDI_DEACTIVATE "
    "THIN_PROVISIONING VDI_READ_CACHING"
).split()
_LICENCE = (
    "restrict_vlan restrict_qos restrict_pool_attached_storage restrict_pooling restrict_rbac restrict_dmc "
    "restrict_checkpoint restrict_cpu_masking restrict_vmss restrict_dr restrict_vif_locking "
    "restrict_storage_xen_motion restrict_vgpu restrict_xen_motion restrict_guest_ip_setting restrict_nested_virt "
    "restrict_set_vcpus_number_live restrict_cbt restrict_usb_passthrough restrict_zstd_export restrict_updates"
).split()


@dataclass(frozen=True, slots=True)
class DiskWish:
    """One disk to make."""

    size: int
    content: str = "zero"
    chain_depth: int = 1


def _disk_wish(wish: dict[str, Any], default_size: int) -> DiskWish:
    if set(wish) - _DISK_KEYS:
        raise ValueError(f"unknown keys; known: {', '.join(sorted(_DISK_KEYS))}")
    if wish.get("content", "zero") not in ("ext4", "zero", "random"):
        raise ValueError("content is ext4, zero or random")
    return DiskWish(int(wish.get("size", default_size)), wish.get("content", "zero"), int(wish.get("chain_depth", 1)))


class Builder:
    """Fills a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ctx = Context(pool, "build", None)

    # -- the pool itself

    def build(self) -> None:
        """Make hosts, networks, a repository shared by all hosts, and the VMs that the settings ask for."""
        pool, settings = self._pool, self._pool.settings
        with pool.db:
            hosts = [self._host(number) for number in range(max(1, settings.hosts))]
            network = self._network()
            for number, host in enumerate(hosts):
                self._pif(host, network, number)
            self._sm()
            sr = make_sr(pool, "Shared storage" if len(hosts) > 1 else "Local storage", "ext", shared=len(hosts) > 1)
            for host in hosts:
                make_pbd(pool, host, sr, {"device": "/dev/sdb"})
            self._pool_object(hosts[0], sr)
            for host in hosts:
                self._pool.db.put(host, suspend_image_sr=NULL)
        pool.open_repository(sr)
        for number in range(settings.vms):
            content = "ext4" if number == 0 else "zero"
            disk = {"size": settings.vm_disk_size, "content": content}
            self.add_vm({"name": f"demo-{number + 1:02d}", "disks": [disk], "running": True})
        with pool.db:
            disks.scan(pool, sr, introduces=False)

    def _new(self, cls: str, **values: Any) -> Row:
        return self._pool.db.create(cls, self._pool.ids.ref(), {"uuid": self._pool.ids.uuid()} | values)

    def _pool_object(self, master: Row, sr: Row) -> None:
        self._new(
            "pool",
            master=master.ref,
            default_SR=sr.ref,
            suspend_image_SR=sr.ref,
            other_config={"memory-ratio-hvm": "0.25", "memory-ratio-pv": "0.25"},
            restrictions={"enable_xha": "true", **dict.fromkeys(_LICENCE, "false")},
            ha_cluster_stack="xhad",
            allowed_operations=["designate_new_master", "ha_enable", "cluster_create"],
            cpu_info={
                "features_hvm_host": _FEATURES,
                "features_hvm": _FEATURES,
                "features_pv_host": _FEATURES,
                "features_pv": _FEATURES,
                "socket_count": "1",
                "cpu_count": str(_HOST_CPUS),
                "vendor": "GenuineIntel",
            },
        )

    def _host(self, number: int) -> Row:
        pool = self._pool
        now = f"{pool.clock.now():.0f}."
        metrics = self._new("host_metrics", memory_total=HOST_MEMORY, live=True, last_updated=pool.clock.stamp())
        host = self._new("host", **_host_facts(number, pool.settings.host, now) | {"metrics": metrics.ref})
        for index in range(_HOST_CPUS):
            self._new("host_cpu", host=host.ref, number=index, vendor="GenuineIntel", speed=2400, modelname="Simulated CPU")
        dom0 = self._dom0(host, number)
        pool.db.put(host, control_domain=dom0.ref)
        return host

    def _dom0(self, host: Row, number: int) -> Row:
        db = self._pool.db
        vm = make_vm(self._ctx, _vm_record(f"Control domain on host: host-{number + 1}", HOST_OVERHEAD, {}))
        db.put(vm, is_control_domain=True, power_state="Running", resident_on=host.ref, domid=0, domain_type="pv",
               HVM_boot_policy="", memory_overhead=0, memory_target=HOST_OVERHEAD)  # fmt: skip
        vm_rules.refresh(db, vm)
        return vm

    def _network(self) -> Row:
        label = "Pool-wide network associated with eth0"
        return self._new("network", name_label=label, bridge="xenbr0", MTU=1500)

    def _pif(self, host: Row, network: Row, number: int) -> None:
        metrics = self._new("PIF_metrics", carrier=True, device_name="Simulated", speed=10000, duplex=True)
        self._new(
            "PIF",
            device="eth0",
            network=network.ref,
            host=host.ref,
            MAC=f"52:54:00:00:00:{number + 1:02x}",
            MTU=1500,
            VLAN=-1,
            physical=True,
            currently_attached=True,
            management=True,
            ip_configuration_mode="Static",
            IP=host["address"],
            netmask="255.255.255.0",
            primary_address_type="IPv4",
            ipv6_configuration_mode="None",
            managed=True,
            disallow_unplug=True,
            metrics=metrics.ref,
        )

    def _sm(self) -> None:
        for kind, label in (("ext", "Local EXT3 VHD"), ("nfs", "NFS VHD"), ("lvm", "Local VHD on LVM"), ("file", "File VHD")):
            self._new(
                "SM",
                type=kind,
                name_label=label,
                name_description="SR plugin which represents disks as VHD files",
                vendor="Citrix Systems Inc",
                copyright="(C) 2008 Citrix Systems Inc",
                version="1.0",
                required_api_version="1.0",
                features={**dict.fromkeys(_SM_FEATURES, 1), "VDI_RESET_ON_BOOT": 2},
                capabilities=[*_SM_FEATURES, "VDI_RESET_ON_BOOT"],
                driver_filename=f"/opt/xensource/sm/{kind.upper()}SR",
            )

    # -- VMs and disks

    def add_vm(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Make a VM with disks and an interface; start it at once when `running`. Raises ValueError with a sentence."""
        if set(wish) - _VM_KEYS:
            raise ValueError(f"unknown keys; known: {', '.join(sorted(_VM_KEYS))}")
        count = int(wish.get("count", 1))
        if count > 1:
            name = wish.get("name", "vm")
            one = {key: value for key, value in wish.items() if key != "count"}
            return {"vms": [self.add_vm(one | {"name": f"{name}-{index + 1}"}) for index in range(count)]}
        sr = self._pool.db.row("SR", self._pool.pool_row["default_SR"])
        size = self._pool.settings.vm_disk_size
        vdis = [self._disk(sr, _disk_wish(disk, size), wish.get("name", "vm")) for disk in wish.get("disks", [{}])]
        with self._pool.db as db:
            vm = make_vm(self._ctx, _vm_record(wish.get("name", "vm"), VM_MEMORY, wish.get("other_config", {})))
            for position, vdi in enumerate(vdis):
                self._vbd(vm, vdi, str(position))
            self._vif(vm)
            vm_rules.refresh(db, vm)
        if wish.get("running"):
            self._run(vm)
        return {"uuid": vm["uuid"], "ref": vm.ref, "vdis": [vdi["uuid"] for vdi in vdis]}

    def add_vdis(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Make `count` small disks that one halted VM owns."""
        count, size = int(wish.get("count", 1)), int(wish.get("size", 2 * MIB))
        sr = self._pool.db.row("SR", self._pool.pool_row["default_SR"])
        repository = self._pool.repository(sr)
        uuids = [self._pool.ids.uuid() for _index in range(count)]
        for uuid in uuids:
            repository.create(uuid, size)
        with self._pool.db as db:
            vm = make_vm(self._ctx, _vm_record(wish.get("name", "disk-owner"), VM_MEMORY, {}))
            rows = [disks.new_record(self._pool, sr, repository.node(uuid), {"name_label": uuid}) for uuid in uuids]
            for position, row in enumerate(rows):
                self._vbd(vm, row, str(position))
            vm_rules.refresh(db, vm)
        return {"uuid": vm["uuid"], "vdis": uuids}

    def _disk(self, sr: Row, wish: DiskWish, name: str) -> Row:
        """Make a disk with its content and a chain of the wished depth below it."""
        repository = self._pool.repository(sr)
        uuid = self._pool.ids.uuid()
        repository.create(uuid, wish.size)
        if wish.content == "ext4":
            load_ext4(repository, uuid)
            with self._pool.db as db:
                db.note(f"content/{uuid}", "ext4")
        elif wish.content == "random":
            source = random.Random(self._pool.settings.seed)  # noqa: S311 - content, no secret
            for offset in range(0, wish.size, _CHUNK):
                repository.write(uuid, offset, source.randbytes(min(_CHUNK, wish.size - offset)))
        for level in range(wish.chain_depth - 1):
            snapshot_uuid, base_uuid = self._pool.ids.uuid(), self._pool.ids.uuid()
            repository.write(uuid, level * 4096, b"level %d" % level)
            repository.snapshot(uuid, snapshot_uuid, base_uuid)
            repository.delete(snapshot_uuid)
            with self._pool.db:
                hidden = {"name_label": "base copy", "managed": False, "read_only": True}
                disks.new_record(self._pool, sr, repository.node(base_uuid), hidden)
        with self._pool.db:
            return disks.new_record(self._pool, sr, repository.node(uuid), {"name_label": f"{name} disk"})

    def _vbd(self, vm: Row, vdi: Row, position: str) -> Row:
        metrics = self._new("VBD_metrics")
        vbd = self._new(
            "VBD", VM=vm.ref, VDI=vdi.ref, userdevice=position, bootable=position == "0", mode="RW", type="Disk",
            unpluggable=True, metrics=metrics.ref,
        )  # fmt: skip
        device_rules.refresh_device(self._pool.db, vbd)
        return vbd

    def _vif(self, vm: Row) -> None:
        metrics = self._new("VIF_metrics")
        network = self._pool.db.rows("network")[0]
        mac = mac_address(vm["other_config"]["mac_seed"], 0)
        vif = self._new(
            "VIF", VM=vm.ref, network=network.ref, device="0", MAC=mac, MAC_autogenerated=True, MTU=1500,
            metrics=metrics.ref, locking_mode="network_default", ipv4_configuration_mode="None",
            ipv6_configuration_mode="None",
        )  # fmt: skip
        device_rules.refresh_device(self._pool.db, vif)

    def _run(self, vm: Row) -> None:
        """Let a VM be one that has been running for a while: its guest has reported."""
        pool = self._pool
        with pool.db as db:
            host = domains.choose_host(self._ctx, vm)
            domains.begin_domain(self._ctx, vm, host, paused=False)
            pool.guests.booted(vm)
            pool.guests.report_now(vm)
            vm_rules.refresh(db, vm)
        pool.guests.resumed(vm)


def _host_facts(number: int, address: str, now: str) -> dict[str, Any]:
    name = f"host-{number + 1}"
    shown = address if number == 0 else f"127.0.0.{number + 1}"
    return {
        "name_label": name,
        "name_description": "Default install",
        "memory_overhead": HOST_OVERHEAD,
        "allowed_operations": ["vm_migrate", "provision", "vm_resume", "evacuate", "vm_start"],
        "API_version_major": 2,
        "API_version_minor": 21,
        "API_version_vendor": "XenSource",
        "enabled": True,
        "software_version": {
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
        },
        "other_config": {"agent_start_time": now, "boot_time": now},
        "capabilities": ["xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64"],
        "sched_policy": "credit",
        "supported_bootloaders": ["pygrub", "eliloader"],
        "cpu_info": {
            "cpu_count": str(_HOST_CPUS),
            "socket_count": "1",
            "threads_per_core": "1",
            "vendor": "GenuineIntel",
            "speed": "2400.000",
            "modelname": "Simulated CPU",
            "family": "6",
            "model": "85",
            "stepping": "7",
            "flags": "fpu vme de pse tsc msr vmx",
            "features_pv": _FEATURES,
            "features_hvm": _FEATURES,
            "features_hvm_host": _FEATURES,
            "features_pv_host": _FEATURES,
        },
        "hostname": name,
        "address": shown,
        "license_params": {"enable_xha": "true", **dict.fromkeys(_LICENCE, "false")},
        "license_server": {"address": "localhost", "port": "27000"},
        "edition": "xcp-ng",
        "editions": ["xcp-ng"],
        "virtual_hardware_platform_versions": [0, 1, 2],
        "chipset_info": {"iommu": "false"},
        "display": "enabled",
    }


def _vm_record(name: str, memory: int, other_config: dict[str, str]) -> dict[str, Any]:
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
