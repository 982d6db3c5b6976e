"""reboot: SOFT within the guest's time, HARD in two calls, and never a second one for one request."""

from __future__ import annotations

import calendar
import time
from typing import Literal

import pytest

from tests.integration.power.support import VM, Ward
from tests.support.worker import eventually
from worker.client import Handle
from worker.operations.states import State

Moment = Literal["before", "after"]
REBOOTING = "vmops.rebooting"


def marked(ward: Ward, vm: VM) -> str | None:
    """Return the mark of a reboot under way."""
    other_config: dict[str, str] = ward.rec(vm)["other_config"]
    return other_config.get(REBOOTING)


def pool_time(ward: Ward) -> int:
    """Return the pool's clock, seconds since the epoch."""
    with ward.simulator.session() as call:
        text = str(call("host.get_servertime", call("host.get_all")[0]))
    return calendar.timegm(time.strptime(text, "%Y%m%dT%H:%M:%SZ"))


def assert_rebooted_once(ward: Ward, vm: VM, before: int) -> None:
    """The VM runs in the next domain that the pool has made, and bears no mark."""
    rec = ward.rec(vm)
    assert (rec["power_state"], int(rec["domid"])) == ("Running", before + 1)
    assert REBOOTING not in rec["other_config"]


def assert_not_rebooted(ward: Ward, vm: VM, before: int) -> None:
    """The VM runs in the domain that it had, and bears no mark."""
    rec = ward.rec(vm)
    assert int(rec["domid"]) == before
    assert REBOOTING not in rec["other_config"]


def hung(ward: Ward) -> VM:
    """Make a VM whose guest does not listen."""
    vm = ward.new_vm()
    ward.guest(vm, ignores_clean_shutdown=True)
    return vm


# -- SOFT --------------------------------------------------------------------------------------------------------------


def test_a_soft_reboot_lets_the_guest_do_it(ward: Ward) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    assert ward.done("reboot", vm) == {"vm_uuid": vm.uuid, "power_state": "Running"}
    assert_rebooted_once(ward, vm, before)
    assert "VM.hard_reboot" not in ward.simulator.calls()


def test_a_reboot_under_way_shows_on_the_vm(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, shutdown_s=600)
    before = ward.domid(vm)
    handle = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    text = marked(ward, vm)
    assert text is not None
    entered, task_ref, operation_id, domid = text.split(" ")
    assert abs(int(entered) - pool_time(ward)) < 60
    assert ward.call("task.get_name_label", task_ref) == "Async.VM.clean_reboot"
    assert (operation_id, int(domid)) == (handle.id, before)
    ward.simulator.control("POST", "clock", {"advance": 600})
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)
    assert ward.simulator.calls()["Async.VM.clean_reboot"] == 1


def test_the_mark_is_in_the_pools_time(ward: Ward) -> None:
    vm = hung(ward)
    ward.simulator.control("POST", "clock", {"advance": 5000})
    handle = ward.do("reboot", vm)
    text = eventually(lambda: marked(ward, vm))
    entered = int(text.split(" ")[0])
    assert abs(entered - pool_time(ward)) < 60
    assert entered - time.time() > 4900
    handle.cancel()
    ward.wait(handle)
    assert marked(ward, vm) is None


def test_a_guest_that_does_not_react_fails_the_operation_when_the_request_says_so(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    text = ward.refused(ward.do("reboot", vm, soft_timeout_s=1), "GuestUnable", state=State.UNDONE)
    assert "1 s" in text
    assert "HARD" in text
    assert_not_rebooted(ward, vm, before)
    assert ward.rec(vm)["current_operations"] == {}, "the guest is not asked any more"


def test_a_guest_that_does_not_react_is_rebooted_hard_when_the_request_says_so(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    ward.done("reboot", vm, soft_timeout_s=1, on_timeout="hard")
    assert_rebooted_once(ward, vm, before)
    assert ward.simulator.calls()["VM.hard_reboot"] == 1


@pytest.mark.slow
def test_what_the_pool_took_before_the_guest_was_asked_is_not_the_guests_time(ward: Ward) -> None:
    vm = hung(ward)
    refusal = ["OTHER_OPERATION_IN_PROGRESS", "VM", vm.ref]
    ward.simulator.add_fault(match="Async.VM.clean_reboot", effect="failure", error=refusal)
    handle = ward.do("reboot", vm, soft_timeout_s=0.5, on_timeout="hard")
    eventually(lambda: any("try 4 failed" in line for line in ward.history(handle)))
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    assert "the guest to react" in ward.history(handle)


@pytest.mark.slow
def test_the_setting_limits_a_guests_time(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    handle = ward.do("reboot", vm, on_timeout="hard")
    ward.await_wait(handle, "the guest to react")
    assert ward.domid(vm) == before
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)


def test_a_guest_without_drivers_cannot_be_asked(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, agent=False, pv_drivers=False)
    before = ward.domid(vm)
    assert "PV drivers" in ward.refused(ward.do("reboot", vm), "GuestUnable")
    assert_not_rebooted(ward, vm, before)
    ward.done("reboot", vm, on_timeout="hard")
    assert_rebooted_once(ward, vm, before)


def test_xapi_giving_up_counts_as_a_guest_that_does_not_react(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    handle = ward.do("reboot", vm, soft_timeout_s=3000, on_timeout="hard")
    ward.await_wait(handle, "the guest to react")
    ward.simulator.control("POST", "clock", {"advance": 1300})
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)
    assert any("VM_SHUTDOWN_TIMEOUT" in line for line in ward.history(handle))


def test_a_guest_that_turns_out_halted_is_started(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, shutdown_s=600)
    handle = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    ward.call("VM.hard_shutdown", vm.ref)
    ward.succeeded(handle)
    assert ward.state(vm) == "Running"
    assert marked(ward, vm) is None


def test_somebody_elses_reboot_meanwhile_is_enough(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    handle = ward.do("reboot", vm, soft_timeout_s=3000, on_timeout="hard")
    ward.await_wait(handle, "the guest to react")
    ward.call("VM.hard_reboot", vm.ref)
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)


def test_a_cancelled_reboot_asks_no_more(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    handle = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    handle.cancel()
    assert ward.wait(handle).state == State.CANCELLED
    assert_not_rebooted(ward, vm, before)
    eventually(lambda: ward.rec(vm)["current_operations"] == {})


# -- whatever the state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SOFT", "HARD"])
def test_a_halted_vm_is_started(ward: Ward, kind: str) -> None:
    vm = ward.new_vm(running=False)
    ward.done("reboot", vm, reboot_type=kind)
    assert ward.state(vm) == "Running"


@pytest.mark.parametrize("fields", [{"reboot_type": "HARD"}, {"on_timeout": "hard"}], ids=str)
def test_a_paused_guest_cannot_be_asked_but_forced(ward: Ward, fields: dict[str, str]) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    ward.put(vm, "Paused")
    ward.done("reboot", vm, **fields)
    assert_rebooted_once(ward, vm, before)


def test_the_rescue_vm_of_an_instance_in_rescue_is_meant(ward: Ward) -> None:
    vm = ward.new_vm(running=False)
    ward.call("VM.add_to_blocked_operations", vm.ref, "start", "in rescue")
    rescue = ward.new_vm(name=f"{vm.name}-rescue", marked=False)
    with ward.simulator.session() as call:
        call("VM.add_to_other_config", rescue.ref, "vmops.instance", vm.instance)
        call("VM.add_to_other_config", rescue.ref, "vmops.role", "rescue")
    before = ward.domid(rescue)
    for name in ({"uuid": vm.instance}, {"name": vm.name}, {"vm_uuid": vm.uuid}):
        ward.succeeded(ward.client.reboot(instance=name, reboot_type="HARD"))
        before += 1
        assert_rebooted_once(ward, rescue, before - 1)
    ward.done("power_off", vm)
    assert ward.state(rescue) == "Halted"
    assert ward.state(vm) == "Halted"


# -- HARD --------------------------------------------------------------------------------------------------------------


def test_a_hard_reboot_costs_two_calls(ward: Ward) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    calls = ward.calls_of(lambda: ward.do("reboot", vm, reboot_type="HARD"))
    assert calls == {"VM.get_all_records_where": 1, "VM.hard_reboot": 1}
    assert_rebooted_once(ward, vm, before)


def test_a_hard_reboot_takes_away_the_mark_that_a_dead_operation_left(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.call("VM.add_to_other_config", vm.ref, REBOOTING, "1 OpaqueRef:gone 4711")
    before = ward.domid(vm)
    ward.done("reboot", vm, reboot_type="HARD")
    assert_rebooted_once(ward, vm, before)


def test_a_hard_reboot_waits_for_a_migration(ward: Ward) -> None:
    vm = ward.new_vm()
    with ward.simulator.session() as call:
        here = call("VM.get_resident_on", vm.ref)
        there = next(ref for ref in call("host.get_all") if ref != here)
        task_ref = call("Async.VM.pool_migrate", vm.ref, there, {"live": "true"})
        ward.done("reboot", vm, reboot_type="HARD")
        assert call.wait(task_ref)["status"] == "success"
        assert call("VM.get_resident_on", vm.ref) == there


# -- answers that get lost ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(("kind", "call"), [("HARD", "VM.hard_reboot"), ("SOFT", "Async.VM.clean_reboot")])
def test_a_lost_answer_is_no_second_reboot(ward: Ward, kind: str, call: str, moment: Moment) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    ward.simulator.add_fault(match=call, effect="reset", when=moment, nth=1)
    ward.done("reboot", vm, reboot_type=kind)
    assert_rebooted_once(ward, vm, before)


def test_a_soft_reboot_whose_answer_was_lost_is_adopted_while_it_lasts(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, shutdown_s=600)
    before = ward.domid(vm)
    ward.simulator.add_fault(match="Async.VM.clean_reboot", effect="reset", when="after", nth=1)
    handle = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    assert handle.id in (marked(ward, vm) or "")
    ward.simulator.control("POST", "clock", {"advance": 600})
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)
    assert ward.simulator.calls()["Async.VM.clean_reboot"] == 1


def test_a_hard_reboot_that_goes_on_behind_a_lost_answer_is_waited_for(ward: Ward) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    slow = ward.simulator.add_fault(match="VM.hard_reboot", effect="pause", when="before", nth=1)
    handle = ward.do("reboot", vm, reboot_type="HARD")
    ward.simulator.wait_for_hit(slow)
    ward.kill_worker()
    ward.simulator.clear_faults()
    ward.start_worker()
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)


@pytest.mark.parametrize("kind", ["SOFT", "HARD"])
def test_a_worker_killed_in_mid_reboot_reboots_once(ward: Ward, kind: str) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    call = "VM.hard_reboot" if kind == "HARD" else "Async.VM.clean_reboot"
    fault = ward.simulator.add_fault(match=call, effect="pause", when="after", nth=1)
    handle = ward.do("reboot", vm, reboot_type=kind)
    ward.simulator.wait_for_hit(fault)
    ward.kill_worker()
    ward.simulator.clear_faults()
    ward.start_worker()
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)


def test_a_restart_of_the_toolstack_forgets_the_call_and_not_the_reboot(ward: Ward) -> None:
    vm = ward.new_vm()
    ward.guest(vm, shutdown_s=600)
    before = ward.domid(vm)
    handle = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(handle, "the guest to react")
    ward.simulator.restart()
    eventually(lambda: ward.simulator.control("POST", "clock", {"advance": 600}) and handle.has_ended())
    ward.succeeded(handle)
    assert_rebooted_once(ward, vm, before)


def test_what_makes_a_hard_reboot_fail_takes_the_mark_away(ward: Ward) -> None:
    vm = hung(ward)
    before = ward.domid(vm)
    ward.simulator.add_fault(match="VM.hard_reboot", effect="failure", error=["VM_IS_PROTECTED", vm.ref])
    handle: Handle = ward.do("reboot", vm, soft_timeout_s=1, on_timeout="hard")
    ward.refused(handle, "VM_IS_PROTECTED", state=State.UNDONE)
    assert_not_rebooted(ward, vm, before)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"reboot_type": "soft"}, "reboot_type"),
        ({"on_timeout": "maybe"}, "on_timeout"),
        ({"soft_timeout_s": 0}, "soft_timeout_s"),
        ({"soft_timeout_s": 86400}, "soft_timeout_s"),
        ({"force": True}, "force"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(ward: Ward, fields: dict[str, object], named: str) -> None:
    vm = ward.new_vm()
    before = ward.domid(vm)
    assert named in ward.refused(ward.do("reboot", vm, **fields), "RequestError", state=State.FAILED)
    assert_not_rebooted(ward, vm, before)


@pytest.mark.parametrize("operation", ["power_on", "power_off", "reboot", "pause", "unpause", "suspend", "resume"])
def test_a_vm_that_is_not_there_is_refused(ward: Ward, operation: str) -> None:
    handle = getattr(ward.client, operation)(instance={"name": "nobody"})
    assert "nobody" in ward.refused(handle, "InstanceNotFound", state=State.FAILED)


def test_the_second_of_two_waits_for_the_first_or_is_refused(ward: Ward) -> None:
    vm = hung(ward)
    first = ward.do("reboot", vm, soft_timeout_s=3000)
    ward.await_wait(first, "the guest to react")
    assert first.id in ward.refused(ward.do("power_off", vm, on_conflict="fail"), "OperationConflict")
    second = ward.do("power_off", vm)
    ward.await_wait(second, "in use by operation")
    assert ward.state(vm) == "Running"
    first.cancel()
    ward.succeeded(second)
    assert ward.state(vm) == "Halted"
