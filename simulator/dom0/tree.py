"""What the toolstack writes into XenStore for a domain (dom0-and-guest.md 5.1, xapi.md 13.3)."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.dom0.nodes import MOST_BYTES, Permission, Permissions, XenStoreError, absolute, grown
from simulator.dom0.xenstore import XenStore

#: Folders of a domain that its guest may write.
GUEST_FOLDERS = (
    "attr",
    "control",
    "data",
    "device",
    "drivers",
    "error",
    "feature",
    "hvmloader",
    "messages",
    "rrd",
    "vm-data",
    "xenserver",
    "xenserver/attr",
)
#: Where keys of VM.xenstore_data must lie to reach the guest.
DATA_FOLDERS = ("vm-data", "FIST")
_CONNECTED = "4"
_DISKS_BY_OLD_NUMBERS = 16


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a domain: its class, number and the keys of its two ends."""

    kind: str
    backend: str
    number: int
    front: tuple[tuple[str, str], ...]
    back: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain, as its trees show it. Memory is in KiB."""

    domid: int
    vm_uuid: str
    name: str
    unique_id: str
    vcpus: int
    memory: tuple[tuple[str, int], ...]
    data: tuple[tuple[str, str], ...]
    """Keys and values of VM.xenstore_data that reach the guest."""
    devices: tuple[Device, ...] = field(default=())

    @property
    def path(self) -> str:
        """The domain's folder."""
        return f"/local/domain/{self.domid}"


def guest_data(xenstore_data: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what of VM.xenstore_data reaches the guest."""
    return tuple((key, value) for key, value in xenstore_data.items() if key.startswith(("vm-data/", "FIST/")))


def begin(store: XenStore, domain: Domain) -> None:
    """Write the trees of a new domain, and say that it exists."""
    readable = (Permission("n", 0), Permission("r", domain.domid))
    writable = (Permission("n", domain.domid),)
    values = {
        "vm": f"/vm/{domain.vm_uuid}",
        "vss": f"/vss/{domain.vm_uuid}",
        "name": domain.name,
        "domid": str(domain.domid),
        "unique-domain-id": domain.unique_id,
        "cpu": "",
        "memory": "",
        "console": "",
        "console/type": "xenconsoled",
        "console/limit": "65536",
        **dict.fromkeys(GUEST_FOLDERS, ""),
        "control/platform-feature-multiprocessor-suspend": "1",
        "control/platform-feature-xs_reset_watches": "1",
    }
    for number in range(domain.vcpus):
        values |= {f"cpu/{number}": "", f"cpu/{number}/availability": "online"}
    values |= {f"memory/{name}": str(size) for name, size in domain.memory}
    store.plant(domain.path, grown(values, readable, dict.fromkeys(GUEST_FOLDERS, writable)))
    _write_data(store, domain, writable)
    for device in domain.devices:
        plug(store, domain, device)
    virtual = {
        "uuid": domain.vm_uuid,
        "name": domain.name,
        "domains": "",
        f"domains/{domain.domid}": domain.path,
    }
    store.plant(f"/vm/{domain.vm_uuid}", grown(virtual, readable, {}))
    store.plant(f"/vss/{domain.vm_uuid}", grown({}, readable, {}))
    store.introduce(domain.domid)


def _write_data(store: XenStore, domain: Domain, writable: Permissions) -> None:
    """Write vm-data and FIST. A key that XenStore refuses is left out: the domain is built all the same."""
    for key, value in domain.data:
        path = f"{domain.path}/{key.rstrip('/')}"
        if _is_storable(path, value):
            store.update({path: value}, [one.text() for one in writable])


def _is_storable(path: str, value: str) -> bool:
    try:
        absolute(path, 0)
    except XenStoreError:
        return False
    return len(path.encode()) + 1 + len(value.encode()) <= MOST_BYTES


def plug(store: XenStore, domain: Domain, device: Device) -> None:
    """Write both ends of a device."""
    front, back = _ends(domain, device)
    ours = (Permission("n", 0), Permission("r", domain.domid))
    theirs = (Permission("n", domain.domid), Permission("r", 0))
    backend = {"frontend": front, "frontend-id": str(domain.domid), "online": "1", "state": _CONNECTED}
    store.plant(back, grown(backend | dict(device.back), ours, {}))
    frontend = {"backend": back, "backend-id": "0", "state": _CONNECTED}
    store.plant(front, grown(frontend | dict(device.front), theirs, {}))


def unplug(store: XenStore, domain: Domain, device: Device) -> None:
    """Remove both ends of a device."""
    store.update(dict.fromkeys(_ends(domain, device), None))


def _ends(domain: Domain, device: Device) -> tuple[str, str]:
    front = f"{domain.path}/device/{device.kind}/{device.number}"
    return front, f"/local/domain/0/backend/{device.backend}/{domain.domid}/{device.number}"


def change(store: XenStore, old: Domain, new: Domain) -> None:
    """Bring the trees of a living domain in line with its devices and memory."""
    for device in old.devices:
        if device not in new.devices:
            unplug(store, new, device)
    for device in new.devices:
        if device not in old.devices:
            plug(store, new, device)
    if old.memory != new.memory:
        store.update({f"{new.path}/memory/{name}": str(size) for name, size in new.memory})


def end(store: XenStore, domain: Domain) -> None:
    """Remove the trees of a domain, and say that it is gone."""
    gone = [domain.path, f"/vm/{domain.vm_uuid}", f"/vss/{domain.vm_uuid}"]
    gone += [f"/local/domain/0/backend/{kind}/{domain.domid}" for kind in {device.backend for device in domain.devices}]
    store.update(dict.fromkeys(gone, None))
    store.release(domain.domid)


def begin_dom0(store: XenStore, vm_uuid: str, memory_kib: int) -> None:
    """Write what dom0 itself has, and where consoles are logged (dom0-and-guest.md 10.4)."""
    store.update(
        {
            "/tool": "",
            "/tool/xenstored": "",
            "/vm": "",
            "/vss": "",
            f"/vm/{vm_uuid}/uuid": vm_uuid,
            f"/vm/{vm_uuid}/name": "Domain-0",
            "/local/domain/0/name": "Domain-0",
            "/local/domain/0/domid": "0",
            "/local/domain/0/vm": f"/vm/{vm_uuid}",
            "/local/domain/0/memory/target": str(memory_kib),
            "/local/domain/0/backend": "",
            "/local/logconsole/@": "/var/log/xen/console.%d.log",
        }
    )
    store.introduce(0)


def disk_number(position: int) -> int:
    """Return the number of a disk's device: those of xvda to xvdp are spaced by 16."""
    if position < _DISKS_BY_OLD_NUMBERS:
        return 202 << 8 | position << 4
    return 1 << 28 | position << 8
