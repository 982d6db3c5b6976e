"""What tests of spawn need beside a `Rig`: images of a known content, requests, and claims about what is made."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from tests.support.rig import MIB, Rig
from tests.support.vhd_files import raw, some_blocks, vhd
from tests.support.worker import eventually
from worker.client import Handle
from worker.images.bundle import pack
from worker.images.directory import DirectoryStore
from worker.images.glance import GlanceStore
from worker.images.image import ImageMeta
from worker.images.store import ImageStore
from worker.images.vhd import vhd_to_raw
from worker.operations.states import FINAL, State

Kind = Literal["vhd", "raw", "bundle", "iso"]
SIZE = 8 * MIB
GIB = 1 << 30
_FORMATS = {"vhd": ("vhd", "bare"), "raw": ("raw", "bare"), "bundle": ("vhd", "ovf"), "iso": ("iso", "bare")}
_SEEN_BY_PEOPLE = "vmops image "


@dataclass(frozen=True)
class Picture:
    """An image in the store, and the disk that it holds."""

    id: str
    kind: Kind
    disk: bytes

    def digest(self, size: int = 0) -> str:
        """Return the SHA-256 of the disk, of the same disk enlarged to `size`."""
        digest = hashlib.sha256(self.disk)
        left = max(0, size - len(self.disk))
        while left:
            digest.update(bytes(min(left, 16 * MIB)))
            left -= min(left, 16 * MIB)
        return digest.hexdigest()


def store_of(rig: Rig) -> ImageStore:
    """The image store, as an administrator."""
    return DirectoryStore(rig.images) if rig.store == "directory" else GlanceStore(rig.glance.url)


def data_of(kind: Kind, seed: int = 7) -> tuple[bytes, bytes]:
    """Return an image's data, and the disk in it."""
    blocks = some_blocks(seed, 0, 2)
    disk = bytearray(raw(SIZE, blocks))
    if kind == "iso":
        disk[0x8001:0x8006] = b"CD001"
        return bytes(disk), bytes(disk)
    if kind == "raw":
        return bytes(disk), bytes(disk)
    made = vhd(SIZE, blocks)
    return (b"".join(pack(iter([made]), len(made))) if kind == "bundle" else made), bytes(disk)


def put_image(rig: Rig, kind: Kind = "vhd", *, seed: int = 7, data: bytes | None = None, **fields: Any) -> Picture:
    """Put an image into the store. `data` replaces what belongs there; `fields` are those of the image's record."""
    disk_format, container_format = _FORMATS[kind]
    given, disk = data_of(kind, seed)
    store = store_of(rig)
    meta = {"name": f"a {kind}", "disk_format": disk_format, "container_format": container_format, **fields}
    image = store.create(ImageMeta(**meta))
    store.upload(image.id, iter([given if data is None else data]))
    return Picture(image.id, kind, disk)


def request_for(image_id: str, **fields: Any) -> dict[str, Any]:
    """Return a request for a small VM of an image, under a name and uuid of its own."""
    uuid = str(uuid4())
    flavor = {"memory_mb": 64, "vcpus": 1, **fields.pop("flavor", {})}
    instance = {"uuid": uuid, "name": f"vm-{uuid[:8]}", **fields.pop("instance", {})}
    return {"instance": instance, "image_id": image_id, "flavor": flavor, **fields}


def spawn(rig: Rig, image_id: str, **fields: Any) -> Handle:
    """Submit a spawn."""
    return rig.client.spawn(**request_for(image_id, pool="lab", **fields))


def succeeded(rig: Rig, handle: Handle, timeout_s: float = 60) -> dict[str, Any]:
    """Wait for success; return the result."""
    record = rig.wait(handle, timeout_s)
    assert record.state == State.SUCCEEDED, (record.state, record.error, history(rig, handle))
    result: dict[str, Any] = record.result
    return result


def refused(rig: Rig, handle: Handle, code: str, state: State = State.FAILED, timeout_s: float = 60) -> str:
    """Wait for the end with this error; return its text."""
    record = rig.wait(handle, timeout_s)
    assert (record.state, (record.error or {}).get("code")) == (state, code), (record.state, record.error)
    text: str = record.error["message"]
    return text


def history(rig: Rig, handle: Handle) -> list[str]:
    """Return the texts of the operation's history."""
    return [fields["text"] for _, fields in rig.client.journal.events(handle.id)]


# -- what the pool has


def records(rig: Rig, cls: str) -> dict[str, dict[str, Any]]:
    """Return all records of a class."""
    with rig.simulator.session() as call:
        found: dict[str, dict[str, Any]] = call(f"{cls}.get_all_records")
    return found


def made_by(handle: Handle, found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of the records that bear the operation's mark."""
    return [rec for rec in found.values() if rec["other_config"].get("vmops.operation") == handle.id]


def vm_of(rig: Rig, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the VM that a result names."""
    (found,) = [rec for rec in records(rig, "VM").values() if rec["uuid"] == result["vm_uuid"]]
    return found


def devices_of(rig: Rig, vm_rec: Mapping[str, Any], cls: str = "VBD") -> list[dict[str, Any]]:
    """Return the VM's VBDs or VIFs, by position."""
    found = records(rig, cls)
    position = "userdevice" if cls == "VBD" else "device"
    return sorted((found[ref] for ref in vm_rec[f"{cls}s"]), key=lambda rec: str(rec[position]))


def is_cached_image(vdi_rec: Mapping[str, Any]) -> bool:
    """Tell whether a disk is a whole cached image, by what other deployments see of it."""
    other_config = vdi_rec["other_config"]
    return (
        vdi_rec["name_label"].startswith(_SEEN_BY_PEOPLE)
        and vdi_rec["name_description"] == "complete"
        and other_config.get("vmops.role") == "image"
        and other_config.get("vmops.cached-as") == vdi_rec["uuid"]
    )


def cached_images(rig: Rig, image_id: str) -> list[dict[str, Any]]:
    """Return the cached disks of an image."""
    name = f"{_SEEN_BY_PEOPLE}{image_id}"
    return [rec for rec in records(rig, "VDI").values() if rec["name_label"] == name]


def leaks(rig: Rig) -> dict[str, list[Any]]:
    """Return what belongs to nobody; whole cached images are kept on purpose."""
    found = rig.simulator.leaks()
    vdis = records(rig, "VDI")
    lost = [one for one in found.get("vdis", []) if one["ref"] in vdis]
    found["vdis"] = [one for one in lost if not is_cached_image(vdis[one["ref"]])]
    return {kind: objects for kind, objects in found.items() if objects}


def assert_tidy(rig: Rig) -> None:
    """No object that belongs to nobody, no lease, no open entry in the journal."""
    eventually(lambda: not leaks(rig))
    journal = rig.client.journal
    eventually(lambda: not journal.open_holds())
    assert all(record.state in FINAL for record in journal.find())


def assert_nothing_of(rig: Rig, handle: Handle) -> None:
    """The operation has left no VM, no device and no disk but a whole cached image."""
    for cls in ("VM", "VBD", "VIF"):
        assert made_by(handle, records(rig, cls)) == [], cls
    assert [rec for rec in made_by(handle, records(rig, "VDI")) if not is_cached_image(rec)] == []
    assert_tidy(rig)


def assert_spawned(rig: Rig, handle: Handle, picture: Picture, *, state: str = "Running") -> dict[str, Any]:
    """The operation has made one VM, of the right content, with everything marked; return its record."""
    result = succeeded(rig, handle)
    vm_rec = vm_of(rig, result)
    assert [rec["uuid"] for rec in made_by(handle, records(rig, "VM"))] == [vm_rec["uuid"]]
    assert vm_rec["power_state"] == result["power_state"] == state
    (vbd,) = devices_of(rig, vm_rec)
    assert (vbd["userdevice"], vbd["bootable"], vbd["mode"], vbd["type"]) == ("0", True, "RW", "Disk")
    disk = records(rig, "VDI")[vbd["VDI"]]
    assert disk["uuid"] == result["root_disk"]["vdi_uuid"]
    assert disk["name_label"] == vm_rec["name_label"]
    assert disk["name_description"] == disk["other_config"]["vmops.role"] == "root"
    assert disk["other_config"]["vmops.operation"] == handle.id
    assert disk["other_config"]["vmops.disk"] == vbd["VDI"]
    assert rig.simulator.disk(disk["uuid"])["sha256"] == picture.digest(int(disk["virtual_size"]))
    return vm_rec


def disk_file(rig: Rig, vdi_uuid: str, folder: Path) -> Path:
    """Export a disk into the folder; return the sparse file with its content."""
    packed, path = folder / f"{vdi_uuid}.vhd", folder / f"{vdi_uuid}.raw"
    with rig.simulator.session() as call, closing(rig.simulator.connect()) as connection, packed.open("wb") as file:
        size = int(call("VDI.get_virtual_size", call("VDI.get_by_uuid", vdi_uuid)))
        connection.request("GET", f"/export_raw_vdi?session_id={call.ref}&vdi={vdi_uuid}&format=vhd")
        shutil.copyfileobj(connection.getresponse(), file)
    vhd_to_raw(packed, path, size)
    return path


def remove(rig: Rig, handle: Handle) -> None:
    """Remove what an operation has made, but for a whole cached image."""
    with rig.simulator.session() as call:
        for vm_ref, vm_rec in call("VM.get_all_records").items():
            if vm_rec["other_config"].get("vmops.operation") == handle.id:
                if vm_rec["power_state"] != "Halted":
                    call("VM.hard_shutdown", vm_ref)
                call("VM.destroy", vm_ref)
        for vdi_ref, vdi_rec in call("VDI.get_all_records").items():
            is_its = vdi_rec["other_config"].get("vmops.operation") == handle.id
            if is_its and vdi_rec["managed"] and not is_cached_image(vdi_rec):
                call("VDI.destroy", vdi_ref)


_kept: dict[Path, Picture] = {}


def cached(rig: Rig) -> Picture:
    """Return an image that the storage repository has; the same for every call with a rig."""
    if rig.folder not in _kept:
        _kept[rig.folder] = put_image(rig)
        handle = spawn(rig, _kept[rig.folder].id)
        succeeded(rig, handle)
        remove(rig, handle)
    return _kept[rig.folder]
