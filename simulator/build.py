"""Making a pool, and VMs and disks in it, without going through calls."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from simulator import disks, guests
from simulator.api import device_rules, domains, vm_rules
from simulator.api.network import make_internal_network
from simulator.api.people import make_roles
from simulator.api.pif import make_nics
from simulator.api.registry import Context
from simulator.api.sr import make_pbd, make_sr
from simulator.api.vm_copy import make_vm
from simulator.core.database import Row
from simulator.core.ids import mac_address
from simulator.facts import (
    CPU_FEATURES,
    HOST_CPUS,
    HOST_MEMORY,
    HOST_OVERHEAD,
    LICENCE,
    MIB,
    POOL_OPERATIONS,
    SM_FEATURES,
    VM_MEMORY,
    host_facts,
    vm_record,
)
from simulator.members import addresses
from simulator.model.types import NULL
from simulator.model.words import words
from simulator.pool import Pool
from simulator.storage import load_ext4

_VM_KEYS = frozenset({"name", "disks", "running", "count", "other_config", "xenstore_data", "guest"})
_DISK_KEYS = frozenset({"size", "content", "chain_depth", "snapshots"})
_CHUNK = 1 << 20
#: Without this nova-agent leaves (dom0-and-guest.md 6.1).
_NOVA_DATA = {"vm-data/provider_data/provider": "rackspace"}


@dataclass(frozen=True, slots=True)
class DiskWish:
    """One disk to make."""

    size: int
    content: str = "zero"
    chain_depth: int = 1
    snapshots: bool = True
    """Whether it lies on a repository that can take snapshots."""


def _disk_wish(wish: dict[str, Any], default_size: int) -> DiskWish:
    if set(wish) - _DISK_KEYS:
        raise ValueError(f"unknown keys; known: {', '.join(sorted(_DISK_KEYS))}")
    if wish.get("content", "zero") not in ("ext4", "zero", "random"):
        raise ValueError("content is ext4, zero or random")
    return DiskWish(
        int(wish.get("size", default_size)),
        wish.get("content", "zero"),
        int(wish.get("chain_depth", 1)),
        bool(wish.get("snapshots", True)),
    )


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
            for host in hosts:
                make_nics(self._ctx, host)
            make_internal_network(self._ctx)
            make_roles(self._ctx)
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
            restrictions={"enable_xha": "true", **dict.fromkeys(LICENCE, "false")},
            ha_cluster_stack="xhad",
            allowed_operations=list(POOL_OPERATIONS),
            cpu_info={
                "features_hvm_host": CPU_FEATURES,
                "features_hvm": CPU_FEATURES,
                "features_pv_host": CPU_FEATURES,
                "features_pv": CPU_FEATURES,
                "socket_count": "1",
                "cpu_count": str(HOST_CPUS),
                "vendor": "GenuineIntel",
            },
        )

    def _host(self, number: int) -> Row:
        pool = self._pool
        now = f"{pool.clock.now():.0f}."
        address = addresses(pool.settings, number + 1)[number][0]
        metrics = self._new("host_metrics", memory_total=HOST_MEMORY, live=True, last_updated=pool.clock.stamp())
        host = self._new("host", **host_facts(number, address, now) | {"metrics": metrics.ref})
        for index in range(HOST_CPUS):
            self._new(
                "host_cpu", host=host.ref, number=index, vendor="GenuineIntel", speed=2400, modelname="Simulated CPU"
            )
        dom0 = self._dom0(host, number)
        pool.db.put(host, control_domain=dom0.ref)
        return host

    def _dom0(self, host: Row, number: int) -> Row:
        db = self._pool.db
        vm = make_vm(self._ctx, vm_record(f"Control domain on host: host-{number + 1}", HOST_OVERHEAD, {}))
        db.put(vm, is_control_domain=True, power_state="Running", resident_on=host.ref, domid=0, domain_type="pv",
               HVM_boot_policy="", memory_overhead=0, memory_target=HOST_OVERHEAD)  # fmt: skip
        vm_rules.refresh(db, vm)
        return vm

    def _sm(self) -> None:
        for kind, label in (
            ("ext", "Local EXT3 VHD"),
            ("nfs", "NFS VHD"),
            ("lvm", "Local VHD on LVM"),
            ("file", "File VHD"),
        ):
            self._new(
                "SM",
                type=kind,
                name_label=label,
                name_description="SR plugin which represents disks as VHD files",
                vendor="Citrix Systems Inc",
                copyright="(C) 2008 Citrix Systems Inc",
                version="1.0",
                required_api_version="1.0",
                features={**dict.fromkeys(SM_FEATURES, 1), "VDI_RESET_ON_BOOT": 2},
                capabilities=[*SM_FEATURES, "VDI_RESET_ON_BOOT"],
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
        guests.check(wish.get("guest", {}))
        size = self._pool.settings.vm_disk_size
        vdis = [self._disk(_disk_wish(disk, size), wish.get("name", "vm")) for disk in wish.get("disks", [{}])]
        with self._pool.db as db:
            vm = make_vm(self._ctx, vm_record(wish.get("name", "vm"), VM_MEMORY, wish.get("other_config", {})))
            for position, vdi in enumerate(vdis):
                self._vbd(vm, vdi, str(position))
            self._vif(vm)
            self._guest(vm, wish)
            vm_rules.refresh(db, vm)
        if wish.get("running"):
            self._run(vm)
        return {"uuid": vm["uuid"], "ref": vm.ref, "vdis": [vdi["uuid"] for vdi in vdis]}

    def _guest(self, vm: Row, wish: dict[str, Any]) -> None:
        """Give a VM what its guest finds in XenStore, and its habits. A cloud that has nova-agent names itself."""
        habits = self._pool.guests.change(vm, wish.get("guest", {}))
        default = _NOVA_DATA if habits["guest_agent"] == "nova-agent" else {}
        self._pool.db.put(vm, xenstore_data=wish.get("xenstore_data", default))

    def add_vdis(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Make `count` small disks that one halted VM owns."""
        count, size = int(wish.get("count", 1)), int(wish.get("size", 2 * MIB))
        sr = self._pool.db.row("SR", self._pool.pool_row["default_SR"])
        repository = self._pool.repository(sr)
        uuids = [self._pool.ids.uuid() for _index in range(count)]
        for uuid in uuids:
            repository.create(uuid, size)
        with self._pool.db as db:
            vm = make_vm(self._ctx, vm_record(wish.get("name", "disk-owner"), VM_MEMORY, {}))
            rows = [disks.new_record(self._pool, sr, uuid, {"name_label": uuid}) for uuid in uuids]
            for position, row in enumerate(rows):
                self._vbd(vm, row, str(position))
            vm_rules.refresh(db, vm)
        return {"uuid": vm["uuid"], "vdis": uuids}

    def _plain_repository(self) -> Row:
        """Return the repository of disks that are whole LUNs, made at first use: its driver takes no snapshots."""
        pool = self._pool
        found = [sr for sr in pool.db.rows("SR") if sr["type"] == "rawhba"]
        if found:
            return found[0]
        with pool.db as db:
            features = words("SR_PROBE SR_UPDATE VDI_ATTACH VDI_DETACH VDI_DELETE VDI_UPDATE")
            self._new("SM", type="rawhba", name_label="Raw LUNs", vendor="Citrix Systems Inc", version="1.0",
                      features=dict.fromkeys(features, 1), capabilities=list(features))  # fmt: skip
            sr = make_sr(pool, "Raw LUNs", "rawhba", shared=True)
            for host in db.rows("host"):
                make_pbd(pool, host, sr, {})
        pool.open_repository(sr)
        return sr

    def _disk(self, wish: DiskWish, name: str) -> Row:
        """Make a disk with its content and a chain of the wished depth below it."""
        default_sr = self._pool.db.row("SR", self._pool.pool_row["default_SR"])
        sr = default_sr if wish.snapshots else self._plain_repository()
        repository = self._pool.repository(sr)
        uuid = self._pool.ids.uuid()
        repository.create(uuid, wish.size)
        if wish.content == "ext4":
            load_ext4(repository, uuid)
            with self._pool.db as db:
                db.note(f"content/{uuid}", "ext4")
        elif wish.content == "random":
            source = random.Random(f"{self._pool.settings.seed} {uuid}")  # noqa: S311 - content, no secret
            for offset in range(0, wish.size, _CHUNK):
                repository.write(uuid, offset, source.randbytes(min(_CHUNK, wish.size - offset)))
        with self._pool.collector(sr).turn:
            return self._chain(sr, uuid, wish, name)

    def _chain(self, sr: Row, uuid: str, wish: DiskWish, name: str) -> Row:
        """Put the wished links below a disk and make the records of all."""
        repository = self._pool.repository(sr)
        for level in range(wish.chain_depth - 1):
            snapshot_uuid, base_uuid = self._pool.ids.uuid(), self._pool.ids.uuid()
            repository.write(uuid, level * 4096, b"level %d" % level)
            repository.snapshot(uuid, snapshot_uuid, base_uuid)
            repository.delete(snapshot_uuid)
            with self._pool.db:
                hidden = {"name_label": "base copy", "managed": False, "read_only": True}
                disks.new_record(self._pool, sr, base_uuid, hidden)
        with self._pool.db:
            return disks.new_record(self._pool, sr, uuid, {"name_label": f"{name} disk"})

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
