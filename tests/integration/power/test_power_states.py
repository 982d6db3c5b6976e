"""power_on, power_off, pause, unpause, suspend, resume: each brings the VM into its state, or says why not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.power.support import FIRST_LOOK, NULL, VM, Ward
from tests.support.simulator import Client
from worker.operations.states import State

LOCK = {"resume", "resume_on"}


def hosts(call: Client) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = call("host.get_all_records")
    return found


# -- each from each state ----------------------------------------------------------------------------------------------

CHANGES = [
    ("power_on", "Halted", "Running"),
    ("power_off", "Running", "Halted"),
    ("power_off", "Paused", "Halted"),
    ("power_off", "Suspended", "Halted"),
    ("pause", "Running", "Paused"),
    ("unpause", "Paused", "Running"),
    ("suspend", "Running", "Suspended"),
    ("resume", "Suspended", "Running"),
]
DONE_ALREADY = [
    ("power_on", "Running"),
    ("power_on", "Paused"),
    ("power_off", "Halted"),
    ("pause", "Paused"),
    ("unpause", "Running"),
    ("resume", "Running"),
]
Refusals = list[tuple[str, dict[str, Any], str]]
"""Operation, fields, what is said."""
SOFT, HARD = {"reboot_type": "SOFT"}, {"reboot_type": "HARD"}
FLAVOR = {"memory_mb": 64, "vcpus": 1, "root_gb": 1}
RESIZE = {"dest": "lab", "instance_type": FLAVOR}
RESCUE = {"image_id": "6f2a1c9e-8d1b-4f0e-9a53-2f1f0a7c3d10", "flavor": FLAVOR}
#: What each state forbids. Snapshots, destroy and unrescue take a VM in any.
REFUSED: dict[str, Refusals] = {
    "Halted": [
        ("pause", {}, "only a running VM"),
        ("unpause", {}, "only a paused VM"),
        ("suspend", {}, "only a running VM"),
        ("resume", {}, "only a suspended VM"),
        ("live_migrate", {}, "start it"),
    ],
    "Paused": [
        ("suspend", {}, "only a running VM"),
        ("resume", {}, "only a suspended VM"),
        ("reboot", SOFT, "unpause it first"),
        ("rescue", RESCUE, "unpause it"),
        ("migrate_disk_and_power_off", RESIZE, "unpause it"),
        ("live_migrate", {}, "unpause it"),
    ],
    "Suspended": [
        ("power_on", {}, "resume it"),
        ("pause", {}, "only a running VM"),
        ("unpause", {}, "only a paused VM"),
        ("reboot", SOFT, "resume it"),
        ("reboot", HARD, "resume it"),
        ("rescue", RESCUE, "resume it"),
        ("migrate_disk_and_power_off", RESIZE, "resume"),
        ("live_migrate", {}, "resume"),
    ],
}
#: What a lock forbids: the key of blocked_operations is what is said.
LOCKED: dict[str, Refusals] = {
    "Running": [
        ("power_off", {}, "hard_shutdown"),
        ("pause", {}, "pause"),
        ("suspend", {}, "suspend"),
        ("reboot", SOFT, "clean_reboot"),
        ("reboot", HARD, "hard_reboot"),
    ],
    "Halted": [("power_on", {}, "start"), ("power_on", {}, "start_on"), ("reboot", SOFT, "start")],
    "Paused": [("unpause", {}, "unpause"), ("reboot", HARD, "hard_reboot")],
    "Suspended": [("resume", {}, "resume"), ("power_off", {}, "hard_shutdown")],
}


@pytest.mark.parametrize(("operation", "before", "after"), CHANGES)
def test_brings_the_vm_into_its_state(ward: Ward, operation: str, before: str, after: str) -> None:
    vm = ward.new_vm()
    ward.put(vm, before)
    assert ward.done(operation, vm) == {"vm_uuid": vm.uuid, "power_state": after}
    assert ward.state(vm) == after


@pytest.mark.parametrize(("operation", "state"), DONE_ALREADY)
def test_a_vm_in_the_wanted_state_costs_one_look(ward: Ward, operation: str, state: str) -> None:
    vm = ward.new_vm()
    ward.put(vm, state)
    assert ward.calls_of(lambda: ward.do(operation, vm)) == {"VM.get_all_records_where": 1}
    assert ward.state(vm) == state


def refused_untouched(ward: Ward, vm: VM, operation: str, code: str, fields: dict[str, Any]) -> str:
    """Submit what is refused at the first look, without a call that changes anything; return the text."""
    if operation == "rescue":  # takes the instance's own VM, by its uuid
        fields = {**fields, "instance": {"uuid": vm.instance, "name": vm.name}}
    ward.simulator.reset_stats()
    text = ward.refused(ward.do(operation, vm, **fields), code, state=State.FAILED)
    assert ward.simulator.calls().keys() <= FIRST_LOOK, operation
    assert vm.name in text
    return text


@pytest.mark.parametrize("state", REFUSED)
def test_another_state_is_refused_before_anything_is_touched(ward: Ward, state: str) -> None:
    vm = ward.new_vm()
    ward.put(vm, state)
    for operation, fields, advice in REFUSED[state]:
        text = refused_untouched(ward, vm, operation, "WrongPowerState", fields)
        assert state.lower() in text, operation
        assert advice in text, operation
    rec = ward.rec(vm)
    assert (rec["power_state"], rec["blocked_operations"]) == (state, {})


@pytest.mark.parametrize("state", LOCKED)
def test_a_locked_vm_is_refused_before_anything_is_touched(ward: Ward, state: str) -> None:
    vm = ward.new_vm()
    ward.put(vm, state)
    for operation, fields, key in LOCKED[state]:
        ward.call("VM.add_to_blocked_operations", vm.ref, key, "ask Alice")
        text = refused_untouched(ward, vm, operation, "InstanceLocked", fields)
        assert f"forbid {key} (ask Alice)" in text, operation
        ward.call("VM.remove_from_blocked_operations", vm.ref, key)
    assert ward.state(vm) == state


@pytest.mark.parametrize(
    ("operation", "before", "call"),
    [
        ("power_off", "Running", "VM.hard_shutdown"),
        ("pause", "Running", "VM.pause"),
        ("unpause", "Paused", "VM.unpause"),
    ],
)
def test_costs_two_calls(ward: Ward, operation: str, before: str, call: str) -> None:
    vm = ward.new_vm()
    ward.put(vm, before)
    assert ward.calls_of(lambda: ward.do(operation, vm)) == {"VM.get_all_records_where": 1, call: 1}


# -- power_on ----------------------------------------------------------------------------------------------------------


def test_starts_on_the_wanted_host(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        for ref, rec in hosts(call).items():
            ward.done("power_on", vm, host=rec["uuid"])
            assert call("VM.get_resident_on", vm.ref) == ref
            call("VM.hard_shutdown", vm.ref)


def test_starts_on_the_vms_affinity(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        for ref in hosts(call):
            call("VM.set_affinity", vm.ref, ref)
            ward.done("power_on", vm)
            assert call("VM.get_resident_on", vm.ref) == ref
            call("VM.hard_shutdown", vm.ref)


def test_starts_elsewhere_when_the_wanted_host_cannot(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        (wanted, wanted_rec), (other, _) = hosts(call).items()
        call("host.disable", wanted)
        handle = ward.do("power_on", vm, host=wanted_rec["uuid"])
        ward.succeeded(handle)
        assert call("VM.get_resident_on", vm.ref) == other
    assert any("HOST_DISABLED" in line for line in ward.history(handle))


def test_no_host_at_all_is_refused_with_the_reasons(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    with ward.simulator.session() as call:
        for ref in hosts(call):
            call("host.disable", ref)
        call("VM.set_affinity", vm.ref, ref)
    text = ward.refused(ward.do("power_on", vm), "NoValidHost")
    assert vm.name in text
    assert "HOST_DISABLED" in text
    assert ward.state(vm) == "Halted"


def test_an_unknown_host_is_refused(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    host = "01234567-89ab-cdef-0123-456789abcdef"
    assert host in ward.refused(ward.do("power_on", vm, host=host), "NoValidHost")
    assert ward.state(vm) == "Halted"


# -- power_off ---------------------------------------------------------------------------------------------------------


def test_a_guest_that_is_asked_shuts_itself_down(ward: Ward) -> None:
    vm = ward.new_vm()
    handle = ward.do("power_off", vm, clean_timeout_s=60)
    ward.succeeded(handle)
    assert ward.state(vm) == "Halted"
    assert not any("its power is cut" in line for line in ward.history(handle))


def test_a_guest_that_does_not_react_is_cut_off_after_its_time(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, ignores_clean_shutdown=True)
    handle = ward.do("power_off", vm, clean_timeout_s=1)
    ward.succeeded(handle)
    assert ward.state(vm) == "Halted"
    assert any("within 1 s" in line for line in ward.history(handle))


def test_a_guest_that_cannot_be_asked_is_cut_off_at_once(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, agent=False, pv_drivers=False)
    handle = ward.do("power_off", vm, clean_timeout_s=600)
    ward.succeeded(handle)
    assert ward.state(vm) == "Halted"
    assert any("VM_LACKS_FEATURE" in line for line in ward.history(handle))


def test_a_guest_is_asked_once_although_the_operation_is_parked(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, shutdown_s=600)
    ward.simulator.reset_stats()
    handle = ward.do("power_off", vm, clean_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    ward.simulator.control("POST", "clock", {"advance": 600})
    ward.succeeded(handle)
    assert ward.simulator.calls()["Async.VM.clean_shutdown"] == 1


def test_powering_off_a_suspended_vm_takes_its_memory_image_and_our_lock(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.done("suspend", vm)
    image = ward.rec(vm)["suspend_VDI"]
    ward.done("power_off", vm)
    rec = ward.rec(vm)
    assert (rec["power_state"], rec["suspend_VDI"], rec["blocked_operations"]) == ("Halted", NULL, {})
    assert image not in ward.call("VDI.get_all")


# -- suspend and resume ------------------------------------------------------------------------------------------------


def test_a_suspended_vm_is_locked_until_it_is_resumed(ward: Ward) -> None:
    vm = ward.new_vm()
    handle = ward.do("suspend", vm)
    ward.succeeded(handle)
    locks = ward.rec(vm)["blocked_operations"]
    assert set(locks) == LOCK
    assert all(handle.id in text for text in locks.values())
    with ward.simulator.session() as call:
        assert call.error("VM.resume", vm.ref, False, False)[0] == "OPERATION_BLOCKED"
    ward.done("resume", vm)
    rec = ward.rec(vm)
    assert (rec["power_state"], rec["blocked_operations"]) == ("Running", {})


def test_suspending_twice_is_once(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.done("suspend", vm)
    before = ward.rec(vm)
    assert ward.calls_of(lambda: ward.do("suspend", vm)) == {"VM.get_all_records_where": 1}
    assert ward.rec(vm)["suspend_VDI"] == before["suspend_VDI"]
    assert ward.rec(vm)["blocked_operations"] == before["blocked_operations"]


def test_a_guest_that_cannot_be_suspended_is_left_running_and_unlocked(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, agent=False, pv_drivers=False)
    text = ward.refused(ward.do("suspend", vm), "GuestUnable", state=State.UNDONE)
    assert "PV drivers" in text
    rec = ward.rec(vm)
    assert (rec["power_state"], rec["blocked_operations"]) == ("Running", {})


def test_a_lock_of_somebody_else_is_kept(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.call("VM.add_to_blocked_operations", vm.ref, "resume", "ask Alice")
    ward.done("suspend", vm)
    assert ward.rec(vm)["blocked_operations"]["resume"] == "ask Alice"
    ward.call("VM.remove_from_blocked_operations", vm.ref, "resume_on")
    assert "ask Alice" in ward.refused(ward.do("resume", vm), "InstanceLocked")
    assert ward.rec(vm)["blocked_operations"] == {"resume": "ask Alice"}


def test_a_vm_that_nova_has_suspended_is_resumed_and_can_be_started_later(ward: Ward) -> None:
    vm = ward.new_vm()
    with ward.simulator.session() as call:
        call("VM.add_to_other_config", vm.ref, "nova_uuid", vm.instance)
        call("VM.set_blocked_operations", vm.ref, {"start": ""})
        call("VM.suspend", vm.ref)
    ward.done("resume", vm)
    ward.done("power_off", vm)
    ward.done("power_on", vm)
    assert ward.state(vm) == "Running"


def test_a_resume_that_no_host_can_do_leaves_the_vm_suspended_and_locked(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.done("suspend", vm)
    with ward.simulator.session() as call:
        for ref in hosts(call):
            call("host.disable", ref)
    ward.refused(ward.do("resume", vm), "NoValidHost", state=State.UNDONE)
    rec = ward.rec(vm)
    assert rec["power_state"] == "Suspended"
    assert set(rec["blocked_operations"]) == LOCK
