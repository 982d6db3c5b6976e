"""unrescue: what the rescue made goes, nothing else does, and the instance is as it was before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.power.support import Ward
from tests.support.rescuing import (
    Patient,
    assert_as_before,
    assert_disks_untouched,
    assert_in_rescue,
    contents_of,
    disks_of,
    new_patient,
    own_vm,
    rescue,
    rescue_by_nova,
    rescue_vms,
    unrescue,
    vbd_record,
)
from tests.support.simulator import Client
from tests.support.spawning import Picture, put_image, records
from worker.client import Handle
from worker.operations.states import State


@pytest.fixture
def picture(ward: Ward) -> Picture:
    """The image that rescue VMs are made of."""
    return put_image(ward)


def in_rescue(ward: Ward, picture: Picture, **fields: Any) -> tuple[Patient, Handle, str]:
    """Make an instance in rescue; return it, the rescue, and the rescue VM's ref."""
    patient = new_patient(ward, **fields)
    handle = rescue(ward, patient, picture)
    ward.succeeded(handle)
    (ref,) = rescue_vms(ward, patient)
    return patient, handle, ref


# -- refused or left alone


def test_an_instance_that_is_not_in_rescue_is_refused(ward: Ward) -> None:
    patient = new_patient(ward)
    ward.refused(unrescue(ward, patient), "InstanceNotInRescue", state=State.FAILED)
    assert_as_before(ward, patient)


def test_a_vm_that_nova_has_suspended_is_not_taken_for_one_in_rescue(ward: Ward) -> None:
    patient = new_patient(ward, nova=True)
    ward.call("VM.suspend", patient.vm_ref)
    ward.call("VM.add_to_blocked_operations", patient.vm_ref, "start", "")
    ward.refused(unrescue(ward, patient), "InstanceNotInRescue", state=State.FAILED)
    assert own_vm(ward, patient)["blocked_operations"]["start"] == ""


def test_an_instance_without_its_own_vm_is_refused_and_its_rescue_vm_left_alone(ward: Ward, picture: Picture) -> None:
    """What is left of it is in the rescue VM."""
    patient, _, ref = in_rescue(ward, picture)
    ward.call("VM.destroy", patient.vm_ref)
    text = ward.refused(unrescue(ward, patient), "InstanceNotFound", state=State.FAILED)
    assert f"{patient.name}-rescue" in text
    assert records(ward, "VM")[ref]["power_state"] == "Running"
    assert contents_of(ward, patient.disks) == patient.contents


def test_a_rescue_vm_is_not_unrescued_by_its_own_name(ward: Ward, picture: Picture) -> None:
    patient, handle, ref = in_rescue(ward, picture)
    for instance in ({"name": f"{patient.name}-rescue"}, {"vm_uuid": records(ward, "VM")[ref]["uuid"]}):
        text = ward.refused(ward.client.unrescue(instance=instance), "RequestError", state=State.FAILED)
        assert patient.instance in text
    assert_in_rescue(ward, patient, handle, picture)


def test_only_the_rescue_that_was_meant_is_ended(ward: Ward, picture: Picture) -> None:
    patient, handle, _ = in_rescue(ward, picture)
    entered = int(own_vm(ward, patient)["other_config"]["vmops.rescued"].split()[0])
    instance = {"vm_uuid": patient.vm_uuid}
    stale = ward.client.unrescue(instance=instance, only_if_entered=entered - 1)
    assert ward.succeeded(stale)["is_left_alone"]
    assert any("left alone" in line for line in ward.history(stale))
    assert_in_rescue(ward, patient, handle, picture)
    ward.succeeded(ward.client.unrescue(instance=instance, only_if_entered=entered))
    assert_as_before(ward, patient)
    assert ward.succeeded(ward.client.unrescue(instance=instance, only_if_entered=entered))["is_left_alone"]
    assert_as_before(ward, patient)


@pytest.mark.parametrize("locked", ["the rescue VM", "the instance"])
def test_what_an_administrator_has_locked_is_refused_untouched(ward: Ward, picture: Picture, locked: str) -> None:
    patient, _, ref = in_rescue(ward, picture)
    if locked == "the instance":
        ward.call("VM.remove_from_blocked_operations", patient.vm_ref, "start")
        ward.call("VM.add_to_blocked_operations", patient.vm_ref, "start", "hands off")
    else:
        ward.call("VM.add_to_blocked_operations", ref, "destroy", "hands off")
    assert "hands off" in ward.refused(unrescue(ward, patient), "InstanceLocked", state=State.FAILED)
    assert records(ward, "VM")[ref]["power_state"] == "Running"
    assert_disks_untouched(ward, patient)


# -- half there


def without_rescue_vm(call: Client, _patient: Patient, ref: str) -> None:
    """Remove the rescue VM; its disk stays."""
    call("VM.hard_shutdown", ref)
    call("VM.destroy", ref)


def without_locks(call: Client, patient: Patient, _ref: str) -> None:
    """Take our locks away."""
    for key in ("start", "start_on", "resume", "resume_on"):
        call("VM.remove_from_blocked_operations", patient.vm_ref, key)


def without_marks(call: Client, patient: Patient, _ref: str) -> None:
    """Take the marks of the rescue away."""
    for key in ("vmops.rescued", "vmops.power-before-rescue"):
        call("VM.remove_from_other_config", patient.vm_ref, key)


def with_only_locks(call: Client, patient: Patient, ref: str) -> None:
    """Leave nothing but the locks."""
    without_rescue_vm(call, patient, ref)
    without_marks(call, patient, ref)


def with_only_marks(call: Client, patient: Patient, ref: str) -> None:
    """Leave nothing but the marks."""
    without_rescue_vm(call, patient, ref)
    without_locks(call, patient, ref)


def halted(call: Client, _patient: Patient, ref: str) -> None:
    """Halt the rescue VM."""
    call("VM.hard_shutdown", ref)


TELLING = [without_rescue_vm, with_only_locks]
HALVES = [
    *TELLING,
    *(pytest.param(one, marks=pytest.mark.matrix) for one in (without_locks, without_marks, with_only_marks, halted)),
]


@pytest.mark.parametrize("damage", HALVES, ids=lambda one: one.__name__)
def test_half_a_rescue_is_ended(ward: Ward, picture: Picture, damage: Callable[[Client, Patient, str], None]) -> None:
    patient, _, ref = in_rescue(ward, picture)
    with ward.simulator.session() as call:
        damage(call, patient, ref)
    ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)


@pytest.mark.matrix
def test_a_rescue_vm_that_xapi_remembers_again_is_removed_again(ward: Ward, picture: Picture) -> None:
    patient, _, _ = in_rescue(ward, picture)
    ward.simulator.control("POST", "xapi", {"action": "flush"})
    fault = ward.simulator.add_fault(match="VDI.get_all_records_where", effect="pause", when="before", nth=1)
    handle = unrescue(ward, patient)
    ward.simulator.wait_for_hit(fault)
    ward.simulator.kill()
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    assert_as_before(ward, patient)


def test_an_instance_whose_vm_is_destroyed_meanwhile_ends_the_unrescue_and_keeps_its_disks(
    ward: Ward, picture: Picture
) -> None:
    patient, _, _ = in_rescue(ward, picture)
    fault = ward.simulator.add_fault(match="VM.remove_from_blocked_operations", effect="pause", when="before", nth=1)
    handle = unrescue(ward, patient)
    ward.simulator.wait_for_hit(fault)
    ward.call("VM.destroy", patient.vm_ref)
    ward.simulator.clear_faults()
    assert "destroy the instance by its uuid" in ward.refused(handle, "InstanceGone", state=State.FAILED)
    assert rescue_vms(ward, patient) == {}
    assert contents_of(ward, patient.disks) == patient.contents
    result = ward.succeeded(ward.client.destroy(instance={"uuid": patient.instance}))
    assert {one["role"] for one in result["destroyed"]} == {"root", "swap", "ephemeral"}


# -- whose disk it is


def test_somebodys_disks_on_the_rescue_vm_are_kept_and_named(ward: Ward, picture: Picture) -> None:
    patient, _, ref = in_rescue(ward, picture)
    with ward.simulator.session() as call:
        own = call.root_disk(ref)
        clone = call("VDI.clone", own, {})
        other = call("VDI.clone", call("VDI.get_by_uuid", patient.root), {})
        call("VDI.set_other_config", other, {})
        call("VBD.create", vbd_record(ref, other, "6"))
        uuids = [call("VDI.get_uuid", one) for one in (clone, other)]
    before = contents_of(ward, uuids)
    result = ward.succeeded(unrescue(ward, patient))
    assert result["kept"] == [{"vdi_uuid": uuids[1], "why": "no mark of the instance"}]
    assert contents_of(ward, uuids) == before
    assert_disks_untouched(ward, patient)


def test_a_copy_of_the_rescue_vms_disk_that_somebody_gave_to_it_is_kept(ward: Ward, picture: Picture) -> None:
    patient, _, ref = in_rescue(ward, picture)
    with ward.simulator.session() as call:
        copy = call("VDI.clone", call.root_disk(ref), {})
        call("VBD.create", vbd_record(ref, copy, "6"))
        uuid = call("VDI.get_uuid", copy)
    content = contents_of(ward, [uuid])
    result = ward.succeeded(unrescue(ward, patient))
    assert result["kept"] == [{"vdi_uuid": uuid, "why": "copy of another disk"}]
    assert len(result["destroyed"]) == 1
    assert contents_of(ward, [uuid]) == content


def test_a_disk_that_a_revert_of_the_rescue_vm_has_put_in_place_goes_with_it(ward: Ward, picture: Picture) -> None:
    """It bears the mark of the disk that the revert has replaced. So it is after a move to other storage."""
    patient, _, ref = in_rescue(ward, picture)
    with ward.simulator.session() as call:
        call("VM.hard_shutdown", ref)
        for vbd_ref in call("VM.get_VBDs", ref):
            if call("VBD.get_userdevice", vbd_ref) != "0":
                call("VBD.destroy", vbd_ref)
        made = call.root_disk(ref)
        snapshot = call("VM.snapshot", ref, "before", [])
        call("VM.revert", snapshot)
        for vdi_ref in [call.root_disk(snapshot)]:
            call("VM.destroy", snapshot)
            call("VDI.destroy", vdi_ref)
        assert call.root_disk(ref) != made
    result = ward.succeeded(unrescue(ward, patient))
    assert [one["role"] for one in result["destroyed"]] == ["root"]
    assert_as_before(ward, patient)


def test_a_root_disk_that_the_instance_has_lost_is_kept(ward: Ward, picture: Picture) -> None:
    """Its own VM has it no more, and the rescue VM's end leaves it to nobody."""
    patient, _, _ = in_rescue(ward, picture, running=False)
    with ward.simulator.session() as call:
        for vbd_ref in call("VM.get_VBDs", patient.vm_ref):
            call("VBD.destroy", vbd_ref)
    result = ward.succeeded(unrescue(ward, patient))
    assert len(result["destroyed"]) == 1
    assert contents_of(ward, patient.disks) == patient.contents


# -- a rescue by Nova


def nova_rescue(ward: Ward) -> tuple[Patient, str, str]:
    """Make an instance that Nova has put in rescue; return it, its rescue VM's ref and that one's disk."""
    patient = new_patient(ward, nova=True)
    with ward.simulator.session() as call:
        return patient, *rescue_by_nova(call, patient)


def test_a_rescue_by_nova_is_ended(ward: Ward) -> None:
    patient, ref, disk = nova_rescue(ward)
    result = ward.succeeded(unrescue(ward, patient))
    assert [one["vdi_uuid"] for one in result["destroyed"]] == [disk]
    assert ref not in records(ward, "VM")
    assert own_vm(ward, patient)["power_state"] == "Running"
    assert "start" not in own_vm(ward, patient)["blocked_operations"]
    assert_disks_untouched(ward, patient)


def test_of_a_rescue_by_nova_no_disk_goes_when_the_instance_has_no_root_disk(ward: Ward) -> None:
    """Nova's marks are the same on both root disks."""
    patient, _, disk = nova_rescue(ward)
    with ward.simulator.session() as call:
        root = call("VDI.get_by_uuid", patient.root)
        for vbd_ref in call("VDI.get_VBDs", root):
            if call("VBD.get_VM", vbd_ref) == patient.vm_ref:
                call("VBD.destroy", vbd_ref)
    result = ward.succeeded(unrescue(ward, patient))
    assert result["destroyed"] == []
    assert {one["vdi_uuid"] for one in result["kept"]} == {patient.root, disk}
    assert contents_of(ward, patient.disks) == patient.contents
    assert disk in {rec["uuid"] for rec in disks_of(ward, patient).values()}
