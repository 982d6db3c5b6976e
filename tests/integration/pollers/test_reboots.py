"""poll_rebooting_instances: hung SOFT reboots become HARD ones, once, and nothing else does."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from tests.integration.cli_support import Vmops
from tests.integration.pollers.support import REBOOT_TIMEOUT_S, Clinic
from tests.integration.power.support import VM
from tests.support.worker import eventually
from worker.operations.states import State

MARK = "vmops.rebooting"


def abandoned(clinic: Clinic) -> VM:
    """Make a VM whose guest was asked to reboot too long ago, by an operation that nobody knows."""
    vm = clinic.new_vm()
    clinic.mark(vm, MARK, f"{clinic.now() - REBOOT_TIMEOUT_S} OpaqueRef:gone {uuid4()}")
    return vm


def test_a_hung_reboot_becomes_a_hard_one(clinic: Clinic) -> None:
    ((vm, soft),) = clinic.hung()
    before = clinic.domid(vm)
    assert clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"] == []
    clinic.pass_time(REBOOT_TIMEOUT_S)
    report = clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)
    assert (report["vms"], report["in_state"], report["overdue"], report["problems"]) == (1, 1, 1, [])
    (hard,) = clinic.ended(report["submitted"])
    assert (hard.state, hard.request["reboot_type"]) == (State.SUCCEEDED, "HARD")
    assert clinic.wait(soft).state == State.CANCELLED
    assert clinic.domid(vm) == before + 1
    assert MARK not in clinic.rec(vm)["other_config"]
    assert clinic.simulator.calls()["VM.hard_reboot"] == 1


def test_a_second_tick_submits_nothing_new(clinic: Clinic) -> None:
    vm = abandoned(clinic)
    fault = clinic.simulator.add_fault(match="VM.hard_reboot", effect="pause")
    (first,) = clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"]
    assert clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"] == []
    clinic.simulator.wait_for_hit(fault)
    assert clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"] == []
    clinic.simulator.clear_faults()
    clinic.ended([first])
    assert len(clinic.operations_on(vm, "reboot")) == 1


@pytest.mark.matrix
@pytest.mark.crash
def test_a_tick_whose_worker_is_killed_is_made_up_for(clinic: Clinic) -> None:
    ((vm, _),) = clinic.hung()
    clinic.pass_time(REBOOT_TIMEOUT_S)
    fault = clinic.simulator.add_fault(match="host.get_servertime", effect="pause")
    clinic.client.app.send_task(
        "vmops.poll_rebooting_instances",
        kwargs={"timeout": REBOOT_TIMEOUT_S},
        queue="vmops.control",
        ignore_result=True,
    )
    clinic.simulator.wait_for_hit(fault)
    clinic.kill_worker()
    clinic.simulator.clear_faults()
    clinic.start_worker()
    eventually(lambda: clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S).get("note") is None, 40)
    eventually(lambda: len(clinic.operations_on(vm, "reboot")) == 2)
    hard = clinic.operations_on(vm, "reboot")[1]
    assert clinic.wait(clinic.client.handle(hard.id)).state == State.SUCCEEDED
    assert clinic.simulator.calls()["VM.hard_reboot"] == 1


def test_a_mark_that_a_dead_operation_left_is_taken_away_and_nothing_is_rebooted(clinic: Clinic) -> None:
    vm = clinic.new_vm()
    before = clinic.domid(vm)
    clinic.mark(vm, MARK, f"{clinic.now() - REBOOT_TIMEOUT_S} OpaqueRef:gone {uuid4()} {before + 1000}")
    (hard,) = clinic.ended(clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"])
    assert (hard.state, hard.result["power_state"]) == (State.SUCCEEDED, "Running")
    assert clinic.domid(vm) == before
    assert MARK not in clinic.rec(vm)["other_config"]


def test_a_halted_vm_with_a_dead_mark_is_not_started(clinic: Clinic) -> None:
    vm = clinic.new_vm(running=False)
    clinic.mark(vm, MARK, f"{clinic.now() - REBOOT_TIMEOUT_S} OpaqueRef:gone {uuid4()}")
    (hard,) = clinic.ended(clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"])
    assert (hard.state, hard.result["power_state"]) == (State.SUCCEEDED, "Halted")
    assert clinic.state(vm) == "Halted"
    assert MARK not in clinic.rec(vm)["other_config"]


def test_a_guest_that_reboots_after_all_is_not_rebooted_again(clinic: Clinic) -> None:
    ((vm, soft),) = clinic.hung()
    before = clinic.domid(vm)
    clinic.pass_time(REBOOT_TIMEOUT_S)
    fault = clinic.simulator.add_fault(match="task.cancel", effect="pause")
    (submitted,) = clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"]
    clinic.simulator.wait_for_hit(fault)
    clinic.call("VM.hard_reboot", vm.ref)
    after = clinic.domid(vm)
    clinic.simulator.clear_faults()
    assert clinic.wait(clinic.client.handle(submitted["id"])).state == State.SUCCEEDED
    assert clinic.wait(soft).state == State.CANCELLED
    assert before != after == clinic.domid(vm)


def test_it_is_said_on_the_command_line_what_was_done(clinic: Clinic) -> None:
    abandoned(clinic)
    shell = Vmops(clinic.deployment.env)
    report = json.loads(shell("submit", "poll_rebooting_instances", f"timeout={REBOOT_TIMEOUT_S}").out)
    clinic.ended(report["submitted"])
    swept = shell("submit", "poll_orphans", "clean=true", "grace_s=0", "--wait")
    assert swept.status == 0
    assert '"destroyed"' in swept.out
