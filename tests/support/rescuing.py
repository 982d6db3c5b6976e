"""What tests of rescue need beside a `Rig`: an instance with disks of known content, and claims about its rescue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.support.rig import MIB, Rig
from tests.support.simulator import Client, vm_record
from tests.support.spawning import Picture, leaks, records
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import FINAL

LOCKS = {"start", "start_on", "resume", "resume_on"}
#: An administrator's, on every instance here: it stays whatever happens.
FOREIGN_LOCK = {"make_into_template": "ask the owner"}
#: What the disks of an instance here are for, by position.
_ROLES = ("root", "volume", "swap", "", "ephemeral")


@dataclass(frozen=True)
class Patient:
    """An instance whose VM has a root disk, a volume, a swap disk, a disk without marks, and an ephemeral disk."""

    name: str
    instance: str
    vm_uuid: str
    vm_ref: str
    state: str
    """Its power state before anything."""
    contents: dict[str, str]
    """Uuid of a disk -> its content, by position."""

    @property
    def disks(self) -> list[str]:
        """Uuids of the disks, by position."""
        return list(self.contents)

    @property
    def root(self) -> str:
        """The root disk's uuid."""
        return self.disks[0]


def vbd_record(vm_ref: str, vdi_ref: str, position: str, **fields: Any) -> dict[str, Any]:
    """Return what VBD.create takes."""
    return {
        "VM": vm_ref,
        "VDI": vdi_ref,
        "userdevice": position,
        "bootable": False,
        "mode": "RW",
        "type": "Disk",
        "unpluggable": True,
        "empty": False,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        **fields,
    }


def new_patient(rig: Rig, *, running: bool = True, nova: bool = False) -> Patient:
    """Make an instance, with our marks or with Nova's; its guest writes nothing."""
    instance = str(uuid4())
    name = f"patient-{instance[:8]}"
    other_config = {"nova_uuid": instance} if nova else {"vmops.instance": instance, "vmops.operation": "its-spawn"}
    disks = [{"size": 2 * MIB, "content": "random"}] * len(_ROLES)
    made = rig.simulator.add_vm(name=name, disks=disks, running=running, other_config=other_config)
    with rig.simulator.session() as call:
        for vdi_uuid, role in zip(made["vdis"], _ROLES, strict=True):
            vdi_ref = call("VDI.get_by_uuid", vdi_uuid)
            if role == "volume":
                (vbd_ref,) = call("VDI.get_VBDs", vdi_ref)
                call("VBD.add_to_other_config", vbd_ref, "osvol", "True")
            elif role:
                call("VDI.set_other_config", vdi_ref, _marks(instance, role, vdi_ref, nova=nova))
        for key, text in FOREIGN_LOCK.items():
            call("VM.add_to_blocked_operations", made["ref"], key, text)
    contents = contents_of(rig, made["vdis"])
    return Patient(name, instance, made["uuid"], made["ref"], "Running" if running else "Halted", contents)


def _marks(instance: str, role: str, vdi_ref: str, *, nova: bool) -> dict[str, str]:
    if nova:
        return {"nova_instance_uuid": instance, "nova_disk_type": role}
    ours = {"vmops.instance": instance, "vmops.operation": "its-spawn", "vmops.role": role}
    return {**ours, "vmops.disk": vdi_ref}


def contents_of(rig: Rig, vdi_uuids: list[str]) -> dict[str, str]:
    """Return what the disks hold."""
    return {uuid: rig.simulator.disk(uuid)["sha256"] for uuid in vdi_uuids}


def request_for(patient: Patient, picture: Picture, **fields: Any) -> dict[str, Any]:
    """Return a request to rescue the instance."""
    instance = {"uuid": patient.instance, "name": patient.name}
    return {"instance": instance, "image_id": picture.id, "flavor": {"memory_mb": 64, "vcpus": 1}, **fields}


def rescue(rig: Rig, patient: Patient, picture: Picture, **fields: Any) -> Handle:
    """Submit a rescue."""
    return rig.client.rescue(**request_for(patient, picture, **fields))


def unrescue(rig: Rig, patient: Patient, **fields: Any) -> Handle:
    """Submit an unrescue."""
    return rig.client.unrescue(**{"instance": {"uuid": patient.instance}, **fields})


def own_vm(rig: Rig, patient: Patient) -> dict[str, Any]:
    """Return the record of the instance's own VM."""
    return records(rig, "VM")[patient.vm_ref]


def rescue_vms(rig: Rig, patient: Patient) -> dict[str, dict[str, Any]]:
    """Return the instance's rescue VMs, ref -> record."""
    found = records(rig, "VM").items()
    return {
        ref: rec for ref, rec in found if rec["name_label"] == f"{patient.name}-rescue" and not rec["is_a_snapshot"]
    }


def attached(rig: Rig, vm_ref: str) -> dict[str, str]:
    """Return what a VM has attached: position -> uuid of the disk."""
    vdis = records(rig, "VDI")
    return {rec["userdevice"]: vdis[rec["VDI"]]["uuid"] for rec in records(rig, "VBD").values() if rec["VM"] == vm_ref}


def assert_in_rescue(rig: Rig, patient: Patient, handle: Handle, picture: Picture) -> dict[str, Any]:
    """As after an undisturbed rescue; return the rescue VM's record."""
    ((ref, rescuer),) = rescue_vms(rig, patient).items()
    assert rescuer["power_state"] == "Running"
    assert rescuer["other_config"]["vmops.role"] == "rescue"
    assert rescuer["other_config"]["vmops.operation"] == handle.id
    devices = attached(rig, ref)
    made = devices.pop("0")
    assert devices == {"1": patient.root, "2": patient.disks[2], "4": patient.disks[4]}
    assert rig.simulator.disk(made)["sha256"] == picture.digest()
    rec = own_vm(rig, patient)
    assert rec["power_state"] == "Halted"
    assert rec["blocked_operations"].keys() == LOCKS | FOREIGN_LOCK.keys()
    assert all(handle.id in rec["blocked_operations"][key] for key in LOCKS)
    epoch, operation_id = rec["other_config"]["vmops.rescued"].split()
    assert (epoch.isdecimal(), operation_id) == (True, handle.id)
    assert_disks_untouched(rig, patient)
    assert_tidy(rig)
    return rescuer


def assert_as_before(rig: Rig, patient: Patient, *, state: str = "") -> None:
    """The instance is as it was: its power, locks, marks, disks; nothing of a rescue is left."""
    rec = own_vm(rig, patient)
    assert rec["power_state"] == (state or patient.state)
    assert rec["blocked_operations"] == FOREIGN_LOCK
    assert not {key for key in rec["other_config"] if "rescue" in key}
    assert rescue_vms(rig, patient) == {}
    assert_disks_untouched(rig, patient)
    assert [rec["uuid"] for rec in disks_of(rig, patient).values() if rec["uuid"] not in patient.contents] == []
    assert_tidy(rig)


def assert_disks_untouched(rig: Rig, patient: Patient) -> None:
    """The instance's own VM has its disks where they were, with what was on them."""
    assert attached(rig, patient.vm_ref) == {str(position): uuid for position, uuid in enumerate(patient.disks)}
    assert contents_of(rig, patient.disks) == patient.contents


def disks_of(rig: Rig, patient: Patient) -> Mapping[str, dict[str, Any]]:
    """Return the disks whose marks name the instance, ref -> record."""
    return {
        ref: rec
        for ref, rec in records(rig, "VDI").items()
        if rec["managed"] and patient.instance in {*rec["other_config"].values()}
    }


def assert_tidy(rig: Rig) -> None:
    """No object that belongs to nobody but whole cached images, no lease, no open entry in the journal."""
    eventually(lambda: not leaks(rig))
    journal = rig.client.journal
    eventually(lambda: not journal.open_holds())
    assert all(record.state in FINAL for record in journal.find())


def rescue_by_nova(call: Client, patient: Patient) -> tuple[str, str]:
    """Put the instance in rescue as Nova does: the VM is known by its name, its disk marked as the instance's root.

    Returns the rescue VM's ref and its disk's uuid.
    """
    other_config = {"nova_uuid": patient.instance}
    vm_ref = call("VM.create", vm_record(name_label=f"{patient.name}-rescue", other_config=other_config))
    own_ref = call("VDI.get_by_uuid", patient.root)
    disk: dict[str, Any] = {
        "name_label": f"{patient.name}-rescue",
        "name_description": "root",
        "virtual_size": str(2 * MIB),
    }
    disk |= {"SR": call("VDI.get_SR", own_ref), "type": "user", "sharable": False, "read_only": False}
    marks = {"nova_instance_uuid": patient.instance, "nova_disk_type": "root"}
    root_ref = call("VDI.create", {**disk, "other_config": marks})
    if call("VM.get_power_state", patient.vm_ref) != "Halted":
        call("VM.hard_shutdown", patient.vm_ref)
    call("VM.add_to_blocked_operations", patient.vm_ref, "start", "")
    call("VBD.create", vbd_record(vm_ref, root_ref, "0", bootable=True))
    call("VBD.create", vbd_record(vm_ref, own_ref, "1"))
    call("VM.start", vm_ref, False, False)
    return str(vm_ref), str(call("VDI.get_uuid", root_ref))
