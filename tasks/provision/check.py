"""First step of a build: everything that can be refused is refused here, before anything is made.

Order of the checks: image, name, storage, networks, hosts and their memory (operations.md 5.4; there the last ones came
after a long download).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.parts.instances import INSTANCE, OPERATION
from tasks.provision.request import BuildRequest, Network
from worker.errors import (
    ImageTooLarge,
    InstanceExists,
    InsufficientFreeMemory,
    NetworkNotFound,
    NoValidHost,
    StorageRepositoryNotFound,
)
from worker.images.fetch import check_fetchable
from worker.images.image import Image
from worker.images.store import ImageStore
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import event, host, vm
from worker.xenapi.session import Session

MIB, GIB = 1 << 20, 1 << 30
_NULL = "OpaqueRef:NULL"
#: An image may be so much larger than the flavor's root disk: partition tables and rounding (operations.md 15.2, 2013-08).
_ALLOWANCE_BYTES = 10 * GIB

Records = dict[tuple[str, str], dict[str, Any]]


@step
def check_request(op: Op, pool: Session, images: ImageStore) -> None:
    """Refuse what cannot work, choose storage, networks and hosts. Changes nothing."""
    request = op.request(BuildRequest)
    instance = str(request.instance.uuid)
    op.hold(f"instance:{instance}")
    op.hold(f"name:{request.instance.name}")
    image = images.describe(str(request.image_id))
    _check_image(image, request)
    _check_name(op, pool, request)
    records = event.records(pool, ["pool", "host", "host_metrics", "SR", "PBD", "network"])
    facts = Facts(records)
    sr_ref = facts.storage(request, pool.pool_name)
    networks = [facts.network(one, pool.pool_name) for one in request.networks]
    hosts = facts.hosts(sr_ref, str(request.host) if request.host else None)
    if not hosts:
        raise NoValidHost(
            f"Pool {pool.pool_name!r} has no enabled, living host that sees storage repository "
            f"{records['sr', sr_ref]['name_label']!r}."
        )
    _check_memory(pool, request, hosts, records)
    op.remember(
        plan={
            "instance": instance,
            "name": request.instance.name,
            "image": {"id": image.id, "kind": image.disk_format, "properties": dict(image.properties)},
            "vm_mode": vm_mode_of(request, image),
            "os_type": request.os_type or image.properties.get("os_type"),
            "sr_ref": sr_ref,
            "sr_uuid": records["sr", sr_ref]["uuid"],
            "affinity": hosts[0] if request.host else _NULL,
            "networks": networks,
        }
    )


def vm_mode_of(request: BuildRequest, image: Image) -> str:
    """Return pv or hvm: what the request says, then the image, then PV only where the image names a kernel.

    Nova made PV guests of Linux images without a word; current hosts start PV guests no more, so that must be asked
    for.
    """
    if request.vm_mode:
        return request.vm_mode
    wish = image.properties.get("vm_mode") or image.properties.get("hw_vm_mode")
    if wish in {"pv", "xen", "hvm", "hv"}:
        return "hvm" if wish in {"hvm", "hv"} else "pv"
    return "pv" if image.properties.get("kernel_id") else "hvm"


def _check_image(image: Image, request: BuildRequest) -> None:
    check_fetchable(image)
    flavor = request.flavor
    if image.min_ram > flavor.memory_mb or (flavor.root_gb and image.min_disk > flavor.root_gb):
        raise ImageTooLarge(
            f"Image {image.id} asks for {image.min_ram} MiB of memory and {image.min_disk} GiB of disk; the flavor has "
            f"{flavor.memory_mb} MiB and {flavor.root_gb} GiB."
        )
    size = image.virtual_size or 0
    if flavor.root_gb and image.disk_format != "iso" and size > flavor.root_gb * GIB + _ALLOWANCE_BYTES:
        raise ImageTooLarge(
            f"Image {image.id} makes a disk of {size / GIB:.1f} GiB, the flavor's root disk has {flavor.root_gb} GiB."
        )
    if image.disk_format == "iso" and not flavor.root_gb:
        raise ImageTooLarge(f"Image {image.id} is an ISO: give the flavor a root_gb for the disk to install to.")


def _check_name(op: Op, pool: Session, request: BuildRequest) -> None:
    for found in vm.matching(pool, name=request.instance.name):
        if found.rec["other_config"].get(OPERATION) != op.id:
            owner = found.rec["other_config"].get(INSTANCE, "no instance")
            raise InstanceExists(
                f"Pool {pool.pool_name!r} has a VM called {request.instance.name!r} already ({found.rec['uuid']}, of "
                f"{owner}): choose another name, or destroy that one."
            )


@dataclass(frozen=True)
class Facts:
    """What the pool says of its hosts, storage and networks, as one call brought it."""

    records: Records

    def _of(self, cls: str) -> list[tuple[str, dict[str, Any]]]:
        return [(ref, rec) for (name, ref), rec in self.records.items() if name == cls]

    def storage(self, request: BuildRequest, pool_name: str) -> str:
        """Return the storage repository's ref. Raises StorageRepositoryNotFound."""
        if request.sr is None:
            (_, pool_rec), *_ = self._of("pool")
            if ("sr", pool_rec["default_SR"]) in self.records:
                return str(pool_rec["default_SR"])
            raise StorageRepositoryNotFound(
                f"Pool {pool_name!r} has no default storage repository: set one, or name one with sr."
            )
        for ref, rec in self._of("sr"):
            if rec["uuid"] == str(request.sr):
                return ref
        raise StorageRepositoryNotFound(f"Pool {pool_name!r} has no storage repository {request.sr}: check sr.")

    def network(self, wish: Network, pool_name: str) -> str:
        """Return the ref of a network named by uuid, bridge or name. Raises NetworkNotFound."""
        found = [ref for ref, rec in self._of("network") if wish.network in (rec["uuid"], rec["bridge"])]
        found = found or [ref for ref, rec in self._of("network") if rec["name_label"] == wish.network]
        if len(found) != 1:
            count = "no network" if not found else f"{len(found)} networks"
            raise NetworkNotFound(
                f"Pool {pool_name!r} has {count} called {wish.network!r}: name it by its uuid or bridge."
            )
        return found[0]

    def hosts(self, sr_ref: str, wanted_uuid: str | None) -> list[str]:
        """Return the hosts that could run the VM, the wanted one first. Raises NoValidHost for an unknown one."""
        seeing = {rec["host"] for _, rec in self._of("pbd") if rec["SR"] == sr_ref and rec["currently_attached"]}
        known = dict(self._of("host"))
        if wanted_uuid and all(rec["uuid"] != wanted_uuid for rec in known.values()):
            raise NoValidHost(f"The pool has no host {wanted_uuid}: check host, or leave it out.")
        usable = [
            ref
            for ref, rec in known.items()
            if ref in seeing and rec["enabled"] and self.records.get(("host_metrics", rec["metrics"]), {}).get("live")
        ]
        return sorted(usable, key=lambda ref: (known[ref]["uuid"] != wanted_uuid, known[ref]["name_label"]))


def _check_memory(pool: Session, request: BuildRequest, hosts: list[str], records: Records) -> None:
    """Raise InsufficientFreeMemory unless a host has room now; asks no more hosts than needed."""
    needed = request.flavor.memory_mb * MIB
    best = 0
    for ref in hosts:
        best = max(best, host.free_memory(pool, ref))
        if best >= needed:
            return
    names = ", ".join(records["host", ref]["name_label"] for ref in hosts[:5])
    raise InsufficientFreeMemory(
        f"No host has {request.flavor.memory_mb} MiB of free memory (the most is {best // MIB} MiB; asked: {names})."
    )
