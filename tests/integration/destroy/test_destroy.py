"""destroy: the VM goes, and of its disks those that marks prove to be the instance's; nothing else ever."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.integration.power.support import NULL, VM, Ward, mark
from tests.support.rescuing import vbd_record
from tests.support.rig import MIB
from tests.support.simulator import Client
from tests.support.worker import eventually
from worker.operations.states import State


def new_disk(call: Client, **fields: Any) -> str:
    """Make a disk; return its ref."""
    (pool,) = call("pool.get_all_records").values()
    record = {
        "name_label": "a disk",
        "name_description": "",
        "SR": pool["default_SR"],
        "virtual_size": str(2 * MIB),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
        **fields,
    }
    vdi_ref: str = call("VDI.create", record)
    return vdi_ref


def attach(call: Client, vm: VM, vdi_ref: str, position: str = "7", **fields: Any) -> None:
    """Attach a disk to a VM, at once when it runs."""
    vbd_ref = call("VBD.create", vbd_record(vm.ref, vdi_ref, position, **fields))
    if call("VM.get_power_state", vm.ref) == "Running":
        call("VBD.plug", vbd_ref)


def disks(ward: Ward) -> set[str]:
    """Return the uuids of the disks that are not links of chains."""
    return {rec["uuid"] for rec in ward.call("VDI.get_all_records").values() if rec["managed"]}


def assert_gone(ward: Ward, vm: VM) -> None:
    """Neither the VM nor a VBD or VIF of it is left."""
    with ward.simulator.session() as call:
        assert vm.uuid not in {rec["uuid"] for rec in call("VM.get_all_records").values()}
        for cls in ("VBD", "VIF"):
            assert vm.ref not in {rec["VM"] for rec in call(f"{cls}.get_all_records").values()}


def in_rescue(ward: Ward) -> tuple[VM, VM]:
    """Make a VM in rescue: locked, and its root attached to a rescue VM that runs."""
    vm = ward.new_vm(running=False)
    rescue = ward.new_vm(running=False, marked=False, name=f"{vm.name}-rescue")
    with ward.simulator.session() as call:
        for key in ("start", "start_on", "resume", "resume_on"):
            call("VM.add_to_blocked_operations", vm.ref, key, "in rescue")
        call("VM.add_to_other_config", rescue.ref, "vmops.instance", vm.instance)
        call("VM.add_to_other_config", rescue.ref, "vmops.role", "rescue")
        mark(call, call("VDI.get_by_uuid", rescue.vdis[0]), vm.instance, "root")
        call("VBD.create", vbd_record(rescue.ref, call("VDI.get_by_uuid", vm.vdis[0]), "1"))
        call("VM.start", rescue.ref, False, False)
    return vm, rescue


# -- the plain case ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["Running", "Paused", "Suspended", "Halted"])
def test_the_vm_and_its_disks_go(ward: Ward, state: str) -> None:
    vm = ward.new_vm({}, {})
    ward.put(vm, state)
    result = ward.done("destroy", vm)
    assert_gone(ward, vm)
    assert disks(ward) == set()
    assert result["vms"] == [vm.uuid]
    assert {one["vdi_uuid"] for one in result["destroyed"]} == set(vm.vdis)
    assert result["kept"] == []


def test_costs_eight_calls_in_all_whatever_the_pool_holds(ward: Ward) -> None:
    def cost() -> dict[str, int]:
        vm = ward.new_vm()
        ward.simulator.reset_stats()
        handle = ward.do("destroy", vm)
        ward.wait(handle)
        calls = ward.simulator.calls()
        ward.succeeded(handle)
        return calls

    first = cost()
    ward.simulator.control("POST", "vdis", {"count": 200, "size": 2 * MIB})
    for _ in range(5):
        ward.new_vm(running=False)
    looks = {"event.from", "task.get_record"}
    few, many = ({name: n for name, n in calls.items() if name not in looks} for calls in (first, cost()))
    assert few == many
    assert few == {
        "VM.get_all_records_where": 1,
        "VBD.get_all_records_where": 1,
        "VM.hard_shutdown": 1,
        "VM.destroy": 1,
        "VDI.get_all_records_where": 1,
        "Async.VDI.destroy": 1,
        "task.destroy": 1,
    }


def test_a_guest_is_asked_first_when_the_request_says_so(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.done("destroy", vm, clean_timeout_s=30)
    assert ward.simulator.calls()["Async.VM.clean_shutdown"] == 1
    assert_gone(ward, vm)


def test_a_guest_that_does_not_react_is_destroyed_after_its_time(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, ignores_clean_shutdown=True)
    ward.done("destroy", vm, clean_timeout_s=1)
    assert_gone(ward, vm)
    assert disks(ward) == set()


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_a_volume_is_detached_and_kept_whatever_its_marks(ward: Ward) -> None:
    vm = ward.new_vm()
    with ward.simulator.session() as call:
        vdi_ref = new_disk(call)
        mark(call, vdi_ref, vm.instance, "ephemeral")
        attach(call, vm, vdi_ref, other_config={"osvol": "True"})
        vdi_uuid = call("VDI.get_uuid", vdi_ref)
    before = ward.simulator.disk(vdi_uuid)["sha256"]
    result = ward.done("destroy", vm)
    assert disks(ward) == {vdi_uuid}
    assert ward.simulator.disk(vdi_uuid)["sha256"] == before
    assert ward.call("VDI.get_VBDs", vdi_ref) == []
    assert result["kept"] == [{"vdi_uuid": vdi_uuid, "why": "volume"}]


def test_disks_without_marks_are_kept_and_named(ward: Ward) -> None:
    vm = ward.new_vm({}, marked=False)
    before = ward.simulator.disk(vm.vdis[0])["sha256"]
    result = ward.done("destroy", vm)
    assert_gone(ward, vm)
    assert disks(ward) == set(vm.vdis)
    assert ward.simulator.disk(vm.vdis[0])["sha256"] == before
    assert result["destroyed"] == []
    assert result["kept"] == [{"vdi_uuid": vm.vdis[0], "why": "no mark of the instance"}]


@pytest.mark.parametrize("other_config", [{}, {"vmops.role": "root"}, {"vmops.role": "image"}, {"vmops.image": "4711"}])
def test_a_disk_of_nobody_is_kept(ward: Ward, other_config: dict[str, str]) -> None:
    vm = ward.new_vm()
    with ward.simulator.session() as call:
        vdi_uuid = call("VDI.get_uuid", new_disk(call, other_config=other_config))
    result = ward.done("destroy", vm)
    assert disks(ward) == {vdi_uuid}
    assert result["kept"] == []


def test_a_disk_of_another_instance_is_kept_though_it_is_attached_here(ward: Ward) -> None:
    vm, other = ward.new_vm(), ward.new_vm(running=False)
    with ward.simulator.session() as call:
        vdi_ref = new_disk(call)
        mark(call, vdi_ref, other.instance, "root")
        attach(call, vm, vdi_ref)
        vdi_uuid = call("VDI.get_uuid", vdi_ref)
    result = ward.done("destroy", vm)
    assert disks(ward) == {vdi_uuid, *other.vdis}
    assert result["kept"] == [{"vdi_uuid": vdi_uuid, "why": "no mark of the instance"}]


def test_a_disk_that_another_vm_has_attached_is_kept(ward: Ward) -> None:
    vm, other = ward.new_vm(running=False), ward.new_vm(running=False)
    with ward.simulator.session() as call:
        attach(call, other, call("VDI.get_by_uuid", vm.vdis[0]))
    result = ward.done("destroy", vm)
    assert_gone(ward, vm)
    assert disks(ward) == {vm.vdis[0], *other.vdis}
    assert result["kept"] == [{"vdi_uuid": vm.vdis[0], "why": "attached to another VM"}]


def test_snapshots_are_kept(ward: Ward) -> None:
    vm = ward.new_vm()
    with ward.simulator.session() as call:
        of_disk = call("VDI.snapshot", call("VDI.get_by_uuid", vm.vdis[0]), {})
        of_vm = call("VM.snapshot", vm.ref, "before", [])
        kept = {call("VDI.get_uuid", ref) for ref in (of_disk, call.root_disk(of_vm))}
    ward.done("destroy", vm)
    assert disks(ward) == kept
    assert of_vm in ward.call("VM.get_all")


def test_a_cd_of_a_library_is_kept_and_our_config_drive_is_not(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        library, config = new_disk(call, read_only=True), new_disk(call)
        mark(call, config, vm.instance, "configdrive")
        for position, vdi_ref in (("3", config), ("1", library)):
            attach(call, vm, vdi_ref, position, type="CD", mode="RO")
        kept = call("VDI.get_uuid", library)
    result = ward.done("destroy", vm)
    assert disks(ward) == {kept}
    assert result["kept"] == []
    assert "configdrive" in {one["role"] for one in result["destroyed"]}


def test_kernel_files_in_dom0_are_named(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    ward.call("VM.set_PV_kernel", vm.ref, "/boot/guest/4711")
    assert ward.done("destroy", vm)["kernel_files"] == ["/boot/guest/4711"]


def test_novas_marks_count(ward: Ward) -> None:
    vm = ward.new_vm({}, {}, marked=False)
    instance = str(uuid4())
    with ward.simulator.session() as call:
        call("VM.add_to_other_config", vm.ref, "nova_uuid", instance)
        root = call("VDI.get_by_uuid", vm.vdis[0])
        call("VDI.add_to_other_config", root, "nova_instance_uuid", instance)
        call("VDI.add_to_other_config", root, "nova_disk_type", "root")
    result = ward.succeeded(ward.client.destroy(instance={"uuid": instance}))
    assert_gone(ward, vm)
    assert disks(ward) == {vm.vdis[1]}
    assert result["destroyed"] == [{"vdi_uuid": vm.vdis[0], "role": "root"}]


# -- half there, or gone -----------------------------------------------------------------------------------------------


def test_a_second_destroy_finds_nothing_to_do(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.done("destroy", vm)
    for instance in ({"uuid": vm.instance}, {"name": vm.name}, {"vm_uuid": vm.uuid}):
        result = ward.succeeded(ward.client.destroy(instance=instance))
        assert result == {"vms": [], "destroyed": [], "kept": []}


def test_disks_that_outlived_their_vm_are_found_by_the_instances_uuid(ward: Ward) -> None:
    vm, other = ward.new_vm({}, {}, running=False), ward.new_vm()
    ward.call("VM.destroy", vm.ref)
    ward.succeeded(ward.client.destroy(instance={"uuid": vm.instance.upper()}))
    assert disks(ward) == set(other.vdis)


def test_somebodys_clone_of_a_disk_is_kept_though_it_bears_the_disks_marks(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        clone_ref = call("VDI.clone", call("VDI.get_by_uuid", vm.vdis[0]), {})
        clone = call("VDI.get_record", clone_ref)
    assert clone["other_config"]["vmops.instance"] == vm.instance
    ward.done("destroy", vm)
    assert_gone(ward, vm)
    assert disks(ward) == {clone["uuid"]}


def claimed(ward: Ward, vm: VM) -> tuple[str, str]:
    """Give the VM's disk its own mark, as a build does, and make a clone of it; return both uuids."""
    with ward.simulator.session() as call:
        vdi_ref = call("VDI.get_by_uuid", vm.vdis[0])
        call("VDI.add_to_other_config", vdi_ref, "vmops.disk", vdi_ref)
        return vm.vdis[0], call("VDI.get_uuid", call("VDI.clone", vdi_ref, {}))


def test_a_second_destroy_keeps_the_clone_whose_original_the_first_has_destroyed(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    _, clone = claimed(ward, vm)
    content = ward.simulator.disk(clone)["sha256"]
    ward.done("destroy", vm)
    result = ward.succeeded(ward.client.destroy(instance={"uuid": vm.instance}))
    assert result["destroyed"] == []
    assert disks(ward) == {clone}
    assert ward.simulator.disk(clone)["sha256"] == content


def test_a_disk_that_outlived_its_vm_is_told_from_its_clone(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    original, clone = claimed(ward, vm)
    ward.call("VM.destroy", vm.ref)
    result = ward.succeeded(ward.client.destroy(instance={"uuid": vm.instance}))
    assert result["destroyed"] == [{"vdi_uuid": original, "role": "root"}]
    assert disks(ward) == {clone}


def test_a_disk_that_a_revert_has_put_in_its_place_is_the_vms_own(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        vdi_ref = call("VDI.get_by_uuid", vm.vdis[0])
        call("VDI.add_to_other_config", vdi_ref, "vmops.disk", vdi_ref)
        snapshot = call("VM.snapshot", vm.ref, "before", [])
        call("VM.revert", snapshot)
        call("VM.destroy", snapshot)
        assert call("VDI.get_other_config", call.root_disk(vm.ref))["vmops.disk"] == vdi_ref != call.root_disk(vm.ref)
    result = ward.done("destroy", vm)
    assert [one["role"] for one in result["destroyed"]] == ["root"]


def test_a_copy_of_a_disk_that_somebody_gave_to_the_same_vm_is_kept(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    original, clone = claimed(ward, vm)
    with ward.simulator.session() as call:
        call("VBD.create", vbd_record(vm.ref, call("VDI.get_by_uuid", clone), "5"))
    result = ward.done("destroy", vm)
    assert [one["vdi_uuid"] for one in result["destroyed"]] == [original]
    assert result["kept"] == [{"vdi_uuid": clone, "why": "copy of another disk"}]
    assert disks(ward) == {clone}


def test_a_vm_that_lost_a_disk_is_destroyed(ward: Ward) -> None:
    vm = ward.new_vm({}, {}, running=False)
    with ward.simulator.session() as call:
        call("VDI.destroy", call("VDI.get_by_uuid", vm.vdis[0]))
    ward.done("destroy", vm)
    assert_gone(ward, vm)
    assert disks(ward) == set()


def test_a_disk_that_vanishes_under_the_operation_is_no_error(ward: Ward) -> None:
    vm = ward.new_vm({}, {}, running=False)
    fault = ward.simulator.add_fault(match="VM.destroy", effect="pause", when="before", nth=1)
    handle = ward.do("destroy", vm)
    ward.simulator.wait_for_hit(fault)
    with ward.simulator.session() as call:
        call("VDI.destroy", call("VDI.get_by_uuid", vm.vdis[0]))
    ward.simulator.clear_faults()
    result = ward.succeeded(handle)
    assert result["kept"] == []
    assert disks(ward) == set()


def test_a_vm_that_xapi_remembers_again_is_removed_again(ward: Ward) -> None:
    vm = ward.new_vm({}, {})
    ward.simulator.control("POST", "xapi", {"action": "flush"})
    fault = ward.simulator.add_fault(match="VDI.get_all_records_where", effect="pause", when="before", nth=1)
    handle = ward.do("destroy", vm)
    ward.simulator.wait_for_hit(fault)
    ward.simulator.kill()
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    assert_gone(ward, vm)
    assert disks(ward) == set()


def test_the_instances_other_operation_ends_first(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, ignores_clean_shutdown=True)
    first = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(first, "the guest to react")
    second = ward.client.destroy(instance={"uuid": vm.instance})
    ward.await_wait(second, "in use by operation")
    assert ward.state(vm) == "Running"
    first.cancel()
    ward.succeeded(second)
    assert_gone(ward, vm)


# -- rescue ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["uuid", "name", "vm_uuid"])
def test_an_instance_in_rescue_goes_with_its_rescue_vm(ward: Ward, by: str) -> None:
    vm, rescue = in_rescue(ward)
    instance = {by: {"uuid": vm.instance, "name": vm.name, "vm_uuid": vm.uuid}[by]}
    result = ward.succeeded(ward.client.destroy(instance=instance))
    assert result["vms"] == [rescue.uuid, vm.uuid]
    assert_gone(ward, vm)
    assert_gone(ward, rescue)
    assert disks(ward) == set()


def test_a_rescue_vm_is_not_destroyed_by_its_own_name(ward: Ward) -> None:
    vm, rescue = in_rescue(ward)
    for instance in ({"name": rescue.name}, {"vm_uuid": rescue.uuid}):
        text = ward.refused(ward.client.destroy(instance=instance), "RequestError", state=State.FAILED)
        assert vm.instance in text
    assert disks(ward) == {*vm.vdis, *rescue.vdis}
    assert ward.state(rescue) == "Running"


def test_a_rescue_vm_whose_instance_has_lost_its_vm_goes_by_the_instances_uuid(ward: Ward) -> None:
    vm, rescue = in_rescue(ward)
    ward.call("VM.destroy", vm.ref)
    result = ward.succeeded(ward.client.destroy(instance={"uuid": vm.instance}))
    assert result["vms"] == [rescue.uuid]
    assert disks(ward) == set()


# -- refusals and failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["destroy", "hard_shutdown"])
def test_a_protected_vm_is_refused_untouched(ward: Ward, key: str) -> None:
    vm = ward.new_vm()
    ward.call("VM.add_to_blocked_operations", vm.ref, key, "do not touch")
    assert "do not touch" in ward.refused(ward.do("destroy", vm), "InstanceLocked", state=State.FAILED)
    assert ward.state(vm) == "Running"
    assert disks(ward) == set(vm.vdis)


def test_a_name_that_several_vms_bear_is_refused(ward: Ward) -> None:
    vms = [ward.new_vm(name="twin"), ward.new_vm(name="twin")]
    text = ward.refused(ward.client.destroy(instance={"name": "twin"}), "InstanceAmbiguous", state=State.FAILED)
    assert all(vm.uuid in text for vm in vms)
    assert {ward.state(vm) for vm in vms} == {"Running"}


@pytest.mark.parametrize("fields", [{"instance": {}}, {"instance": {"name": "x"}, "keep_disks": True}])
def test_a_request_that_makes_no_sense_is_refused(ward: Ward, fields: dict[str, Any]) -> None:
    ward.refused(ward.client.destroy(**fields), "RequestError", state=State.FAILED)


def test_a_disk_in_use_is_waited_for(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.simulator.add_fault(match="*VDI.destroy", effect="failure", error=["VDI_IN_USE", NULL], nth=1, count=2)
    ward.done("destroy", vm)
    assert disks(ward) == set()


def test_one_disk_that_cannot_be_destroyed_does_not_save_the_others(ward: Ward) -> None:
    vm = ward.new_vm({}, {}, {})
    ward.simulator.add_fault(match="*VDI.destroy", effect="failure", error=["SR_NO_PBDS", NULL], nth=1)
    handle = ward.do("destroy", vm)
    ward.succeeded(handle)
    assert disks(ward) == set()
    assert any("SR_NO_PBDS" in line for line in ward.history(handle))


def test_what_can_never_be_destroyed_is_left_to_an_operator(ward: Ward) -> None:
    vm = ward.new_vm({}, {})
    fault = ward.simulator.add_fault(match="*VDI.destroy", effect="failure", error=["SR_NO_PBDS", NULL])
    handle = ward.do("destroy", vm)
    ward.refused(handle, "SR_NO_PBDS", state=State.STUCK)
    assert_gone(ward, vm)
    ward.simulator.clear_faults(fault)
    handle.cancel()  # of a stuck operation: try again
    eventually(lambda: handle.record().state == State.SUCCEEDED)
    assert disks(ward) == set()


def test_a_vm_that_somebody_starts_meanwhile_is_halted_again(ward: Ward) -> None:
    vm = ward.new_vm()
    fault = ward.simulator.add_fault(match="VM.destroy", effect="pause", when="before", nth=1)
    handle = ward.do("destroy", vm)
    ward.simulator.wait_for_hit(fault)
    ward.call("VM.start", vm.ref, False, False)
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    assert_gone(ward, vm)
    assert disks(ward) == set()
