"""rescue: the instance's disks are there to be repaired, and nothing has happened to them."""

from __future__ import annotations

import pytest
from _pytest.mark import ParameterSet

from tests.integration.power.support import Ward
from tests.support.rescuing import (
    Patient,
    assert_as_before,
    assert_in_rescue,
    attached,
    contents_of,
    disks_of,
    new_patient,
    own_vm,
    request_for,
    rescue,
    rescue_vms,
    unrescue,
)
from tests.support.rig import MIB
from tests.support.spawning import Picture, put_image, records
from worker.client import Handle
from worker.operations.states import State


@pytest.fixture
def picture(ward: Ward) -> Picture:
    """The image that rescue VMs are made of."""
    return put_image(ward)


def in_rescue(ward: Ward, picture: Picture, patient: Patient) -> Handle:
    """Put the instance in rescue."""
    handle = rescue(ward, patient, picture)
    ward.succeeded(handle)
    return handle


@pytest.mark.parametrize("state", ["Running", "Halted"])
def test_an_instance_goes_into_rescue_and_comes_back_as_it_was(ward: Ward, picture: Picture, state: str) -> None:
    patient = new_patient(ward, running=state == "Running")
    handle = rescue(ward, patient, picture)
    result = ward.succeeded(handle)
    rescuer = assert_in_rescue(ward, patient, handle, picture)
    assert result["vm_uuid"] == rescuer["uuid"]
    assert result["rescued"]["vm_uuid"] == patient.vm_uuid
    assert result["rescued"]["power_state_before"] == patient.state
    assert own_vm(ward, patient)["other_config"]["vmops.rescued"].startswith(f"{result['rescued']['entered']} ")
    result = ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)
    assert result["power_state"] == patient.state
    assert result["rescue_vms"] == [rescuer["uuid"]]
    assert [one["role"] for one in result["destroyed"]] == ["root"]
    assert result["kept"] == []


def test_an_instance_of_nova_can_be_rescued(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward, nova=True)
    assert_in_rescue(ward, patient, in_rescue(ward, picture, patient), picture)
    ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)


def test_a_guest_is_asked_to_shut_down_when_the_request_says_so(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    handle = rescue(ward, patient, picture, clean_timeout_s=30)
    ward.succeeded(handle)
    assert not any("power is cut" in line for line in ward.history(handle))
    assert_in_rescue(ward, patient, handle, picture)


def test_a_guest_that_does_not_react_loses_its_power_after_its_time(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    ward.simulator.control("POST", f"guests/{patient.vm_uuid}", {"ignores_clean_shutdown": True})
    handle = rescue(ward, patient, picture, clean_timeout_s=0.5)
    ward.succeeded(handle)
    assert any("power is cut" in line for line in ward.history(handle))
    assert_in_rescue(ward, patient, handle, picture)


def test_a_vm_that_somebody_starts_before_it_is_locked_is_halted_again(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    fault = ward.simulator.add_fault(match="VM.add_to_blocked_operations", effect="pause", when="before", nth=1)
    handle = rescue(ward, patient, picture)
    ward.simulator.wait_for_hit(fault)
    ward.call("VM.start", patient.vm_ref, False, False)
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    assert_in_rescue(ward, patient, handle, picture)


# -- where the rescue VM is made


def test_the_memory_of_the_instance_itself_is_enough(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward, running=False)
    (first, *others) = ward.call("host.get_all")
    for other in others:
        ward.call("host.disable", other)
    memory = str(int(ward.call("host.compute_free_memory", first)) - 32 * MIB)
    ward.call("VM.set_memory_limits", patient.vm_ref, "0", memory, memory, memory)
    ward.call("VM.start", patient.vm_ref, False, False)
    assert int(ward.call("host.compute_free_memory", first)) < 64 * MIB
    assert_in_rescue(ward, patient, in_rescue(ward, picture, patient), picture)


def test_the_rescue_disk_is_made_where_the_root_disk_is(ward: Ward, picture: Picture) -> None:
    disk = {"size": 2 * MIB, "content": "random", "snapshots": False}
    vm = ward.new_vm(disk)
    patient = Patient(vm.name, vm.instance, vm.uuid, vm.ref, "Running", contents_of(ward, vm.vdis))
    ward.succeeded(rescue(ward, patient, picture, cache_image=False))
    assert len({rec["SR"] for rec in disks_of(ward, patient).values()}) == 1
    assert len(disks_of(ward, patient)) == 2


def test_an_iso_leaves_the_second_position_to_the_instances_disk(ward: Ward) -> None:
    patient = new_patient(ward)
    ward.succeeded(rescue(ward, patient, put_image(ward, "iso"), flavor={"memory_mb": 64, "vcpus": 1, "root_gb": 1}))
    (ref,) = rescue_vms(ward, patient)
    devices = attached(ward, ref)
    assert (devices["1"], set(devices)) == (patient.root, {"0", "1", "2", "3", "4"})
    ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)


def test_a_config_drive_is_the_rescue_vms_own(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    ward.succeeded(rescue(ward, patient, picture, config_drive={"ssh_keys": ["ssh-ed25519 AAAA me"]}))
    (ref,) = rescue_vms(ward, patient)
    assert set(attached(ward, ref)) == {"0", "1", "2", "3", "4"}
    result = ward.succeeded(unrescue(ward, patient))
    assert {one["role"] for one in result["destroyed"]} == {"root", "configdrive"}
    assert_as_before(ward, patient)


@pytest.mark.matrix
def test_what_xapi_forgets_in_the_middle_is_done_again(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward, running=False)
    ward.simulator.control("POST", "xapi", {"action": "flush"})
    fault = ward.simulator.add_fault(match="Async.VM.start", effect="pause", when="before", nth=1)
    handle = rescue(ward, patient, picture)
    ward.simulator.wait_for_hit(fault)
    ward.simulator.kill()
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    assert_in_rescue(ward, patient, handle, picture)
    ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)


# -- beside other operations


def test_of_two_rescues_the_second_waits_and_is_refused(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    fault = ward.simulator.add_fault(match="VM.create", effect="pause", nth=1)
    first = rescue(ward, patient, picture)
    ward.simulator.wait_for_hit(fault)
    ward.refused(rescue(ward, patient, picture, on_conflict="fail"), "OperationConflict", state=State.FAILED)
    second = rescue(ward, patient, picture)
    ward.await_wait(second, "in use by operation")
    ward.simulator.clear_faults()
    ward.succeeded(first)
    assert f"{patient.name}-rescue" in ward.refused(second, "InstanceInRescue", state=State.FAILED)
    assert_in_rescue(ward, patient, first, picture)


def test_a_reboot_of_an_instance_in_rescue_reboots_the_rescue_vm(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    handle = in_rescue(ward, picture, patient)
    (before,) = rescue_vms(ward, patient).values()
    ward.succeeded(ward.client.reboot(instance={"uuid": patient.instance}, reboot_type="HARD"))
    rescuer = assert_in_rescue(ward, patient, handle, picture)
    assert int(rescuer["domid"]) > int(before["domid"])


def test_an_instance_in_rescue_is_not_powered_on(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    handle = in_rescue(ward, picture, patient)
    text = ward.refused(ward.client.power_on(instance={"uuid": patient.instance}), "InstanceLocked")
    assert handle.id in text
    for call in ("start", "start_on"):
        host = () if call == "start" else (ward.call("host.get_all")[0],)
        with ward.simulator.session() as session:
            assert session.error(f"VM.{call}", patient.vm_ref, *host, False, False)[0] == "OPERATION_BLOCKED"


def test_an_instance_in_rescue_is_destroyed_with_its_rescue_vm(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    in_rescue(ward, picture, patient)
    ward.succeeded(ward.client.destroy(instance={"uuid": patient.instance}))
    assert rescue_vms(ward, patient) == {}
    assert patient.vm_ref not in records(ward, "VM")
    assert disks_of(ward, patient) == {}
    volume, unmarked = patient.disks[1], patient.disks[3]
    assert contents_of(ward, [volume, unmarked]) == {uuid: patient.contents[uuid] for uuid in (volume, unmarked)}


def test_a_vm_that_spawn_rescue_has_made_is_one_in_rescue(ward: Ward, picture: Picture) -> None:
    """It is beside the instance's own VM, and touches neither that nor its disks."""
    patient = new_patient(ward)
    ward.succeeded(ward.client.spawn_rescue(**request_for(patient, picture)))
    (ref,) = rescue_vms(ward, patient)
    assert set(attached(ward, ref)) == {"0"}
    ward.refused(rescue(ward, patient, picture), "InstanceInRescue", state=State.FAILED)
    ward.succeeded(unrescue(ward, patient))
    assert_as_before(ward, patient)


# -- taken back

STEPS = ["VBD.create", "VM.hard_shutdown", "VM.add_to_blocked_operations", "VDI.clone", "Async.VM.start"]


def first_of(values: list[str]) -> list[ParameterSet]:
    """Return cases of which `make test` has the first; `make test-matrix` has the others."""
    return [pytest.param(one, marks=[pytest.mark.matrix] if number else []) for number, one in enumerate(values)]


@pytest.mark.parametrize("call", first_of(STEPS))
def test_a_cancelled_rescue_leaves_the_instance_as_it_was(ward: Ward, picture: Picture, call: str) -> None:
    patient = new_patient(ward)
    fault = ward.simulator.add_fault(match=call, effect="pause", when="after", nth=1)
    handle = rescue(ward, patient, picture)
    ward.simulator.wait_for_hit(fault)
    handle.cancel()
    ward.simulator.clear_faults()
    assert ward.wait(handle).state == State.CANCELLED
    assert_as_before(ward, patient)


def test_a_rescue_cancelled_while_the_guest_is_asked_leaves_it_running(ward: Ward, picture: Picture) -> None:
    patient = new_patient(ward)
    ward.simulator.control("POST", f"guests/{patient.vm_uuid}", {"ignores_clean_shutdown": True})
    domid = own_vm(ward, patient)["domid"]
    handle = rescue(ward, patient, picture, clean_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    handle.cancel()
    assert ward.wait(handle).state == State.CANCELLED
    assert_as_before(ward, patient)
    assert own_vm(ward, patient)["domid"] == domid


LATE = ["Async.VM.start", "VM.create", "VBD.create", "VIF.create", "host.get_servertime"]


@pytest.mark.parametrize("call", first_of(LATE))
def test_a_failure_leaves_the_instance_as_it_was(ward: Ward, picture: Picture, call: str) -> None:
    patient = new_patient(ward, running=call != "VM.create")
    ward.simulator.add_fault(match=call, effect="failure", error=["PERMISSION_DENIED", "not today"], nth=1)
    handle = rescue(ward, patient, picture, networks=[{"network": "xenbr0"}], cache_image=False)
    assert "not today" in ward.refused(handle, "PERMISSION_DENIED", state=State.UNDONE)
    assert_as_before(ward, patient)
