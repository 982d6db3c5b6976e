"""First step of a build: everything that can be refused is refused here, before anything is made.

Order of the checks: image, name, storage, networks, hosts and their memory (operations.md 5.4; there the last ones came
after a long download).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.parts.instances import OPERATION, instance_uuid
from tasks.provision.drive import check_drive
from tasks.provision.filtering import check_groups
from tasks.provision.guestdata import flag_of, guest_data, mac_of
from tasks.provision.kernel import kernels_of
from tasks.provision.networks import find_network
from tasks.provision.request import BuildRequest
from tasks.provision.setup import guest_wishes
from tasks.provision.wishes import disks_of
from worker.errors import (
    ImageTooLarge,
    InstanceExists,
    InsufficientFreeMemory,
    NoValidHost,
    RequestError,
    StorageRepositoryNotFound,
    StorageUnsupported,
)
from worker.images.fetch import check_fetchable
from worker.images.image import Image
from worker.images.store import ImageStore
from worker.network.groups import Groups
from worker.operations.definition import step
from worker.operations.op import Op
from worker.settings import Settings
from worker.xenapi import event, host, kernel_files, vm
from worker.xenapi.session import Session

MIB, GIB = 1 << 20, 1 << 30
NULL = "OpaqueRef:NULL"
#: An image may be so much larger than the flavor's root disk: partition tables and rounding (operations.md 15.2).
_ALLOWANCE_BYTES = 10 * GIB

Records = dict[tuple[str, str], dict[str, Any]]


@step
def check_request(op: Op, pool: Session, images: ImageStore, settings: Settings, groups: Groups) -> None:
    """Refuse what cannot work, choose storage, networks and hosts. Changes nothing.

    An operation that makes a VM `beside` another one, which it halts first, remembers what that means here: `sr_ref`
    (the default storage), `sr_refs` (others that the host must see), `memory` (what gets free: host -> bytes), and
    `disks` for `attach_disks`.

    From here on the build is one of the pool's `max_builds`, until it ends.
    """
    request = op.request(BuildRequest)
    check_groups(op, request, groups, settings)
    instance = str(request.instance.uuid)
    op.hold(f"instance:{instance}")
    op.hold(f"name:{request.vm_name}")
    image = images.describe(str(request.image_id))
    _check_image(image, request)
    kernels = kernels_of(request, image, images, settings)
    os_type = request.os_type or image.properties.get("os_type")
    macs = [one.mac or mac_of(instance, device) for device, one in enumerate(request.networks)]
    wishes = guest_wishes(request, image.properties, os_type, settings)
    flag = flag_of(dict(image.properties))
    data = guest_data(request, os_type, flag, macs, settings)
    check_drive(request, os_type, macs)
    disks = disks_of(request, os_type, settings)
    op.hold("builds", at_most=pool.settings.max_builds)
    _check_name(op, pool, request)
    facts = Facts(event.records(pool, ["pool", "host", "host_metrics", "SR", "PBD", "network", "PIF"]), pool.pool_name)
    beside = op.data.get("beside", {})
    sr_ref = facts.storage(str(request.sr) if request.sr else None, beside.get("sr_ref"))
    networks = [find_network(facts.records, one, pool.pool_name) for one in request.networks]
    sr_refs = dict.fromkeys([sr_ref, *beside.get("sr_refs", [])])
    hosts = facts.hosts(list(sr_refs), str(request.host) if request.host else None, request.flavor.vcpus)
    _check_memory(pool, request, hosts, beside.get("memory", {}))
    if kernels:
        for one in hosts:
            kernel_files.on_host(pool, one.ref)  # PluginMissing: the file could not be brought there
    wanted = hosts[0] if request.host and hosts[0].rec["uuid"] == str(request.host) else None
    op.remember(
        plan={
            "instance": instance,
            "name": request.vm_name,
            "description": description_of(request),
            "role": request.role,
            "image": {"id": image.id, "kind": image.disk_format},
            "device_id": image.properties.get("hw_device_id"),
            "vm_mode": "pv" if kernels else vm_mode_of(request, image),
            "kernels": kernels,
            "host_refs": [one.ref for one in hosts],
            "os_type": os_type,
            "master": facts.master,
            "sr_ref": sr_ref,
            "sr_uuid": facts.records["sr", sr_ref]["uuid"],
            "affinity": wanted.ref if wanted else NULL,
            "networks": [{"ref": ref, "mac": mac} for ref, mac in zip(networks, macs, strict=True)],
            "disks": disks,
            "xenstore_data": data,
            "guest": wishes,
        }
    )


def description_of(request: BuildRequest) -> str:
    """Return the description that the VM gets: for people, and to find a VM of the instance by."""
    return f"{'rescue VM of ' if request.role else ''}instance {request.instance.uuid}"


def vm_mode_of(request: BuildRequest, image: Image) -> str:
    """Return pv or hvm: what the request says, then the image.

    Nova made PV guests of Linux images without a word; current hosts start PV guests no more, so that must be asked
    for.
    """
    if request.vm_mode:
        return request.vm_mode
    wish = image.properties.get("vm_mode") or image.properties.get("hw_vm_mode")
    return "pv" if wish in {"pv", "xen"} else "hvm"


def _check_image(image: Image, request: BuildRequest) -> None:
    check_fetchable(image)
    flavor = request.flavor
    if image.min_ram > flavor.memory_mb or (flavor.root_gb and image.min_disk > flavor.root_gb):
        raise ImageTooLarge(
            f"Image {image.id} asks for {image.min_ram} MiB of memory and {image.min_disk} GiB of disk; the flavor has "
            f"{flavor.memory_mb} MiB and {flavor.root_gb} GiB."
        )
    if image.disk_format == "iso" and not flavor.root_gb:
        raise ImageTooLarge(f"Image {image.id} is an ISO: give the flavor a root_gb for the disk to install to.")
    if image.disk_format == "iso" and request.role == "rescue" and request.config_drive is not None:
        raise RequestError(
            f"Image {image.id} is an ISO, whose CD has the config drive's position in a rescue VM: leave config_drive "
            "out, or take another image."
        )
    if image.disk_format != "iso":
        check_size(request, image.virtual_size or 0)


def check_size(request: BuildRequest, virtual_size: int) -> None:
    """Raise ImageTooLarge for an image whose disk is larger than the flavor's; most stores tell only with the data."""
    root_gb = request.flavor.root_gb
    if root_gb and virtual_size > root_gb * GIB + _ALLOWANCE_BYTES:
        raise ImageTooLarge(
            f"Image {request.image_id} makes a disk of {virtual_size / GIB:.1f} GiB, the flavor's root disk has "
            f"{root_gb} GiB."
        )


def _check_name(op: Op, pool: Session, request: BuildRequest) -> None:
    """Refuse a name that a VM bears, and an instance that has such a VM under another name, by its description."""
    instance = str(request.instance.uuid)
    for found in vm.like(pool, request.vm_name, description_of(request)):
        if found.rec["other_config"].get(OPERATION) == op.id:
            continue
        name, owner = found.rec["name_label"], instance_uuid(found.rec)
        which = f"Pool {pool.pool_name!r} has a VM called {name!r} already ({found.rec['uuid']}"
        if owner is not None and owner.lower() == instance:
            raise InstanceExists(
                f"{which}) of this instance: keep that one, or {'unrescue' if request.role else 'destroy'} the "
                "instance first."
            )
        if name == request.vm_name:
            of = "of no instance" if owner is None else f"of instance {owner}"
            raise InstanceExists(f"{which}, {of}): choose another name, or destroy that one.")


class Facts:
    """What the pool says of its hosts, storage and networks, as one call brought it."""

    def __init__(self, records: Records, pool_name: str) -> None:
        """Take what `event.records` returned."""
        self.records = records
        self._pool = pool_name

    def _of(self, cls: str) -> list[tuple[str, dict[str, Any]]]:
        return [(ref, rec) for (name, ref), rec in self.records.items() if name == cls]

    @property
    def master(self) -> str:
        """The master's ref."""
        (_, pool_rec), *_ = self._of("pool")
        return str(pool_rec["master"])

    def storage(self, sr_uuid: str | None, default_ref: str | None = None) -> str:
        """Return the ref of a storage repository, by default `default_ref`, or else the pool's default one.

        Raises StorageRepositoryNotFound, and StorageUnsupported for one that holds no disks.
        """
        if sr_uuid is None:
            (_, pool_rec), *_ = self._of("pool")
            wanted_ref = str(default_ref or pool_rec["default_SR"])
            found = [wanted_ref] if ("sr", wanted_ref) in self.records else []
        else:
            found = [ref for ref, rec in self._of("sr") if rec["uuid"] == sr_uuid]
        if not found:
            what = f"storage repository {sr_uuid}: check sr" if sr_uuid else "default storage repository: name one (sr)"
            raise StorageRepositoryNotFound(f"Pool {self._pool!r} has no {what}.")
        rec = self.records["sr", found[0]]
        if rec["content_type"] in {"iso", "disk"}:
            raise StorageUnsupported(
                f"Storage repository {rec['name_label']!r} is of type {rec['type']} and holds no disks of VMs: name "
                "another one with sr."
            )
        return found[0]

    def hosts(self, sr_refs: Sequence[str], wanted_uuid: str | None, vcpus: int) -> list[Host]:
        """Return the hosts that could run the VM, the wanted one first. Raises NoValidHost when there is none."""
        plugged = {(rec["SR"], rec["host"]) for _, rec in self._of("pbd") if rec["currently_attached"]}
        known = [Host(ref, rec) for ref, rec in self._of("host")]
        if wanted_uuid and all(one.rec["uuid"] != wanted_uuid for one in known):
            raise NoValidHost(f"Pool {self._pool!r} has no host {wanted_uuid}: check host, or leave it out.")
        seeing = [one for one in known if all((sr_ref, one.ref) in plugged for sr_ref in sr_refs)]
        usable = [one for one in seeing if one.rec["enabled"] and self._lives(one)]
        large = [one for one in usable if int(one.rec["cpu_info"].get("cpu_count", vcpus)) >= vcpus]
        if not large:
            which = f"with {vcpus} processors" if usable else "that is enabled and sees storage repository"
            names = " and ".join(repr(self.records["sr", sr_ref]["name_label"]) for sr_ref in sr_refs)
            where = "" if usable else f" {names}"
            raise NoValidHost(f"Pool {self._pool!r} has no living host {which}{where}.")
        return sorted(large, key=lambda one: (one.rec["uuid"] != wanted_uuid, one.rec["name_label"]))

    def _lives(self, one: Host) -> bool:
        return bool(self.records.get(("host_metrics", one.rec["metrics"]), {}).get("live"))


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the pool."""

    ref: str
    rec: dict[str, Any]


def _check_memory(pool: Session, request: BuildRequest, hosts: list[Host], freed: Mapping[str, int]) -> None:
    """Raise InsufficientFreeMemory unless a host has room now; asks no more hosts than needed."""
    needed = request.flavor.memory_mb * MIB
    best = 0
    for one in hosts:
        best = max(best, host.free_memory(pool, one.ref) + freed.get(one.ref, 0))
        if best >= needed:
            return
    names = ", ".join(one.rec["name_label"] for one in hosts[:5])
    raise InsufficientFreeMemory(
        f"No host has {request.flavor.memory_mb} MiB of free memory (the most is {best // MIB} MiB; asked: {names})."
    )
