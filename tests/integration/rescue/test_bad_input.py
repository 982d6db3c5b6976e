"""rescue: what cannot be rescued is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.power.support import Ward
from tests.support.rescuing import Patient, assert_as_before, contents_of, new_patient, own_vm, request_for, rescue
from tests.support.spawning import put_image
from worker.operations.states import State

READS = {"VM.get_all_records_where", "VBD.get_all_records_where", "event.from", "session.login_with_password"}


def root_vbd(ward: Ward, patient: Patient) -> str:
    """Return the root disk's VBD."""
    (vbd_ref,) = ward.call("VDI.get_VBDs", ward.call("VDI.get_by_uuid", patient.root))
    return str(vbd_ref)


def lock(key: str) -> Callable[[Ward, Patient], None]:
    """Return what locks the VM as an administrator does."""
    return lambda ward, patient: ward.call("VM.add_to_blocked_operations", patient.vm_ref, key, "hands off")


def without_root(ward: Ward, patient: Patient) -> None:
    """Take the root disk from the VM."""
    ward.call("VM.hard_shutdown", patient.vm_ref)
    ward.call("VBD.destroy", root_vbd(ward, patient))


def with_a_volume_as_root(ward: Ward, patient: Patient) -> None:
    """Make the root disk a volume."""
    ward.call("VBD.add_to_other_config", root_vbd(ward, patient), "osvol", "True")


def locked_by_a_rescue_that_is_gone(ward: Ward, patient: Patient) -> None:
    """Lock the VM as a rescue does."""
    ward.call("VM.add_to_blocked_operations", patient.vm_ref, "start", "in rescue by vmops: operation 4711")


def neighbour(ward: Ward, patient: Patient) -> None:
    """Make somebody else's VM of the rescue VM's name."""
    ward.new_vm(name=f"{patient.name}-rescue", running=False)


STATES: dict[str, tuple[Callable[[Ward, Patient], Any], str, str]] = {
    "suspended": (lambda ward, patient: ward.call("VM.suspend", patient.vm_ref), "WrongPowerState", "resume it"),
    "paused": (lambda ward, patient: ward.call("VM.pause", patient.vm_ref), "WrongPowerState", "unpause it"),
    "start locked": (lock("start"), "InstanceLocked", "hands off"),
    "start_on locked": (lock("start_on"), "InstanceLocked", "hands off"),
    "hard_shutdown locked": (lock("hard_shutdown"), "InstanceLocked", "hands off"),
    "no root disk": (without_root, "DiskNotFound", "no root disk"),
    "a volume as root": (with_a_volume_as_root, "DiskNotFound", "no root disk of its own"),
    "half a rescue": (locked_by_a_rescue_that_is_gone, "InstanceLocked", "unrescue it first"),
    "name taken": (neighbour, "InstanceExists", "-rescue"),
}


@pytest.mark.parametrize("name", STATES)
def test_an_instance_that_cannot_be_rescued_is_refused_untouched(ward: Ward, name: str) -> None:
    prepare, code, advice = STATES[name]
    patient = new_patient(ward)
    prepare(ward, patient)
    before = own_vm(ward, patient)
    picture = put_image(ward)
    ward.simulator.reset_stats()
    assert advice in ward.refused(rescue(ward, patient, picture), code, state=State.FAILED)
    assert ward.simulator.calls().keys() <= READS
    volatile = {"allowed_operations", "current_operations"}
    after = own_vm(ward, patient)
    assert {key: after[key] for key in after.keys() - volatile} == {
        key: before[key] for key in before.keys() - volatile
    }
    assert contents_of(ward, patient.disks) == patient.contents


def test_what_forbids_only_a_shutdown_does_not_matter_to_a_halted_vm(ward: Ward) -> None:
    patient = new_patient(ward, running=False)
    lock("hard_shutdown")(ward, patient)
    ward.succeeded(rescue(ward, patient, put_image(ward)))


def test_another_instance_or_name_than_the_pool_has_is_refused(ward: Ward) -> None:
    patient, picture = new_patient(ward), put_image(ward)
    known = request_for(patient, picture)
    for instance, code in (
        ({"uuid": str(uuid4()), "name": patient.name}, "InstanceNotFound"),
        ({"uuid": patient.instance, "name": "another"}, "RequestError"),
    ):
        text = ward.refused(ward.client.rescue(**{**known, "instance": instance}), code, state=State.FAILED)
        assert instance["uuid"] in text
    assert_as_before(ward, patient)


def test_an_iso_and_a_config_drive_at_one_position_are_refused(ward: Ward) -> None:
    patient = new_patient(ward)
    fields = {"config_drive": {"form": "nocloud"}, "flavor": {"memory_mb": 64, "vcpus": 1, "root_gb": 1}}
    text = ward.refused(rescue(ward, patient, put_image(ward, "iso"), **fields), "RequestError", state=State.FAILED)
    assert "leave config_drive out" in text
    assert_as_before(ward, patient)


@pytest.mark.parametrize(
    "fields",
    [
        {"start": "no"},
        {"clean_timeout_s": 0},
        {"on_conflict": "maybe"},
        {"instance": {"name": "x"}},
        {"flavor": {"memory_mb": 15, "vcpus": 1}},
        {"destroy_original": True},
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_refused(ward: Ward, fields: dict[str, Any]) -> None:
    request = {"instance": {"uuid": str(uuid4()), "name": "x"}, "image_id": str(uuid4()), **fields}
    request.setdefault("flavor", {"memory_mb": 64, "vcpus": 1})
    text = ward.refused(ward.client.rescue(**request), "RequestError", state=State.FAILED)
    assert next(iter(fields)) in text


@pytest.mark.parametrize("fields", [{"instance": {}}, {"instance": {"name": "x"}, "only_if_entered": -1}], ids=str)
def test_an_unrescue_that_makes_no_sense_is_refused(ward: Ward, fields: dict[str, Any]) -> None:
    ward.refused(ward.client.unrescue(**fields), "RequestError", state=State.FAILED)
