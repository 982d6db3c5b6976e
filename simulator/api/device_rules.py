"""What disks, devices and storage repositories may do now (xapi.md 8; records in observed/wire)."""

from __future__ import annotations

from simulator.api import vm_rules
from simulator.core.database import Database, Row
from simulator.core.failures import Failure, in_progress
from simulator.model.words import words

_VDI_FREE = words("generate_config forget destroy snapshot resize copy clone")
#: Operations that an attached disk allows.
_WITH_ATTACHED = frozenset(words("snapshot clone mirror enable_cbt disable_cbt resize_online data_destroy revert"))
#: Operations that a disk allows of which only the log of its changes is left.
_WITHOUT_DATA = frozenset(words("destroy forget data_destroy list_changed_blocks update"))
#: What the driver of a repository must be able to do (xapi.md 8.3).
_FEATURE_OF = {"snapshot": "VDI_SNAPSHOT", "clone": "VDI_CLONE"}
_SR_LISTED = words(
    """
    vdi_enable_cbt vdi_list_changed_blocks unplug plug pbd_create vdi_disable_cbt update pbd_destroy vdi_resize
    vdi_clone vdi_data_destroy scan vdi_snapshot vdi_mirror vdi_create vdi_destroy
    """
)


def attached_vbds(db: Database, vdi: Row) -> list[Row]:
    """Return the VBDs through which a disk is in use; those of suspended VMs do not count."""
    found = []
    for vbd in db.linked(vdi, "VBDs", "VBD"):
        vm = db.find("VM", vbd["VM"])
        if vbd["currently_attached"] and vm is not None and vm["power_state"] != "Suspended":
            found.append(vbd)
    return found


def _busy_vdi(db: Database, vdi: Row, operation: str) -> Failure | None:
    """Return what others do with a disk that keeps an operation waiting."""
    for task_ref, name in vdi["current_operations"].items():
        if name != "copy" or operation in ("snapshot", "destroy", "resize", "forget"):
            return in_progress("VDI", vdi.ref, name, task_ref)
    for vbd in db.linked(vdi, "VBDs", "VBD"):
        for task_ref, name in vbd["current_operations"].items():
            return in_progress("VBD", vbd.ref, name, task_ref)
    return None


def why_not_vdi(db: Database, vdi: Row, operation: str) -> Failure | None:
    """Return what forbids an operation on a disk now, or None."""
    if failure := _busy_vdi(db, vdi, operation):
        return failure
    if not vdi["managed"]:
        return Failure("VDI_NOT_MANAGED", vdi.ref)
    if vdi["type"] == "cbt_metadata" and operation not in _WITHOUT_DATA:
        return Failure("VDI_INCOMPATIBLE_TYPE", vdi.ref, "cbt_metadata")
    if operation in _FEATURE_OF and (failure := _cannot_branch(db, vdi, _FEATURE_OF[operation])):
        return failure
    attached = attached_vbds(db, vdi)
    if operation == "copy":
        attached = [vbd for vbd in attached if vbd["mode"] == "RW"]
    if attached and operation not in _WITH_ATTACHED:
        return Failure("VDI_IN_USE", vdi.ref, operation)
    return None


def _cannot_branch(db: Database, vdi: Row, feature: str) -> Failure | None:
    """Return why a disk can never be snapshotted or cloned: its driver, or several users."""
    sr = db.find("SR", vdi["SR"])
    drivers = [sm for sm in db.rows("SM") if sr is not None and sm["type"] == sr["type"]]
    if drivers and feature not in drivers[0]["features"]:
        return Failure("SR_OPERATION_NOT_SUPPORTED", vdi["SR"])
    return Failure("VDI_IS_SHARABLE", vdi.ref) if vdi["sharable"] else None


def assert_vdi(db: Database, vdi: Row, operation: str) -> None:
    """Raise what forbids an operation on a disk now."""
    failure = why_not_vdi(db, vdi, operation)
    if failure is not None:
        raise failure


def refresh_vdi(db: Database, vdi: Row) -> None:
    """Recompute the disk's allowed_operations."""
    allowed = [one for one in _VDI_FREE if why_not_vdi(db, vdi, one) is None]
    if set(allowed) != set(vdi["allowed_operations"]):
        db.put(vdi, allowed_operations=allowed)


def assert_sr(db: Database, sr: Row, operation: str) -> None:
    """Raise what forbids an operation on a storage repository now: any other one does, `plug` apart."""
    for task_ref, name in sr["current_operations"].items():
        if not (name == "plug" and operation == "plug"):
            raise in_progress("SR", sr.ref, name, task_ref)
    if operation not in ("plug", "pbd_create", "forget", "destroy", "unplug"):
        assert_plugged(db, sr)


def assert_plugged(db: Database, sr: Row) -> None:
    """Raise SR_NO_PBDS when no host has the repository plugged."""
    if not any(pbd["currently_attached"] for pbd in db.linked(sr, "PBDs", "PBD")):
        raise Failure("SR_NO_PBDS", sr.ref)


def refresh_sr(db: Database, sr: Row) -> None:
    """Recompute the repository's allowed_operations."""
    allowed = [] if sr["current_operations"] else _SR_LISTED
    if set(allowed) != set(sr["allowed_operations"]):
        db.put(sr, allowed_operations=list(allowed))


def why_not_device(db: Database, device: Row, operation: str) -> Failure | None:
    """Return what forbids plug, unplug or unplug_force of a VBD or VIF now, or None."""
    vm = db.row("VM", device["VM"])
    for task_ref, name in device["current_operations"].items():
        shown = f"{{{name}}}" if device.cls == "VIF" else name
        return in_progress(device.cls, device.ref, shown, task_ref)
    return _vm_forbids(vm) or _state_forbids(device, operation) or _no_hotplug(db, vm, device)


def _vm_forbids(vm: Row) -> Failure | None:
    for name in vm["current_operations"].values():
        if name in ("clean_shutdown", "hard_shutdown", "suspend", "pause"):
            return Failure("OPERATION_NOT_ALLOWED", f"Current operation on VM:{vm.ref} is {name}")
    if vm["power_state"] != "Running":
        return Failure("VM_BAD_POWER_STATE", vm.ref, "running", vm["power_state"].lower())
    return None


def _state_forbids(device: Row, operation: str) -> Failure | None:
    if operation == "plug" and device["currently_attached"]:
        return Failure("DEVICE_ALREADY_ATTACHED", device.ref)
    if operation != "plug" and not device["currently_attached"]:
        return Failure("DEVICE_ALREADY_DETACHED", device.ref)
    if device.cls == "VBD" and device["type"] == "CD":
        return Failure("OPERATION_NOT_ALLOWED", "HVM CDROMs cannot be hotplugged/unplugged, only inserted or ejected")
    return None


def _no_hotplug(db: Database, vm: Row, device: Row) -> Failure | None:
    if vm["is_control_domain"] or vm["domain_type"] != "hvm":
        return None
    metrics = db.find("VM_guest_metrics", vm["guest_metrics"])
    hint = metrics[f"can_use_hotplug_{device.cls.lower()}"] if metrics else "unspecified"
    if hint == "no":
        return Failure("OPERATION_NOT_ALLOWED", f"VM states it does not support {device.cls} hotplug.")
    if hint == "unspecified" and not vm_rules.has_pv_drivers(db, vm):
        return Failure("VM_MISSING_PV_DRIVERS", vm.ref)
    return None


def assert_device(db: Database, device: Row, operation: str) -> None:
    """Raise what forbids plug or unplug of a VBD or VIF now."""
    failure = why_not_device(db, device, operation)
    if failure is not None:
        raise failure


def _users(db: Database, vdi: Row) -> list[Row]:
    """Return the VBDs through which a disk is in use, or about to be."""
    busy = [vbd for vbd in db.linked(vdi, "VBDs", "VBD") if vbd["current_operations"]]
    return [*attached_vbds(db, vdi), *busy]


def assert_attachable(db: Database, vbd: Row) -> None:
    """Raise what keeps a VBD's disk from being attached: VDI_IN_USE, VDI_READONLY, VDI_NOT_MANAGED, a busy disk."""
    vdi = db.find("VDI", vbd["VDI"])
    if vdi is None:
        return
    if not vdi["managed"]:
        raise Failure("VDI_NOT_MANAGED", vbd.ref)
    if vdi["read_only"] and vbd["mode"] == "RW":
        raise Failure("VDI_READONLY", vdi.ref)
    for task_ref, name in vdi["current_operations"].items():
        if name not in ("copy", "mirror"):
            raise in_progress("VDI", vdi.ref, name, task_ref)
    others = [other for other in _users(db, vdi) if other.ref != vbd.ref]
    if others and not vdi["sharable"] and any(one["mode"] == "RW" for one in [vbd, *others]):
        raise Failure("VDI_IN_USE", vdi.ref)


def refresh_device(db: Database, device: Row) -> None:
    """Recompute a VBD's or VIF's allowed_operations."""
    vm = db.find("VM", device["VM"])
    if vm is None or device["current_operations"]:
        allowed: list[str] = []
    elif device.cls == "VIF":
        allowed = ["attach", "unplug"] if device["currently_attached"] else ["attach"]
    else:
        allowed = _vbd_allowed(vm, device)
    if set(allowed) != set(device["allowed_operations"]):
        db.put(device, allowed_operations=allowed)


def refresh_devices(db: Database, vm: Row) -> None:
    """Recompute allowed_operations of a VM's devices and disks: they depend on its power state."""
    for device in [*db.linked(vm, "VBDs", "VBD"), *db.linked(vm, "VIFs", "VIF")]:
        refresh_device_and_disk(db, device)


def refresh_device_and_disk(db: Database, device: Row) -> None:
    """Recompute allowed_operations of a device and of the disk behind it."""
    refresh_device(db, device)
    disk = db.find("VDI", device["VDI"]) if device.cls == "VBD" else None
    if disk is not None:
        refresh_vdi(db, disk)


def _vbd_allowed(vm: Row, vbd: Row) -> list[str]:
    is_cd = vbd["type"] == "CD"
    medium = [] if not is_cd else ["insert"] if vbd["empty"] else ["eject"]
    if vm["power_state"] == "Running" and vbd["currently_attached"]:
        return ["attach", "unpause", *(medium if is_cd else ["unplug", "unplug_force"]), "pause"]
    return ["attach", *medium]
