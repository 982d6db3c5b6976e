"""poll_rebooting_instances: hung SOFT reboots become HARD ones, once, and nothing else does."""

from __future__ import annotations

from tests.integration.pollers.support import REBOOT_TIMEOUT_S, Clinic
from worker.operations.states import State

MARK = "vmops.rebooting"


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
    ((vm, _),) = clinic.hung()
    clinic.pass_time(REBOOT_TIMEOUT_S)
    fault = clinic.simulator.add_fault(match="VM.hard_reboot", effect="pause")
    (first,) = clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"]
    assert clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"] == []
    clinic.simulator.wait_for_hit(fault)
    assert clinic.client.poll_rebooting_instances(timeout=REBOOT_TIMEOUT_S)["submitted"] == []
    clinic.simulator.clear_faults()
    clinic.ended([first])
    assert len(clinic.operations_on(vm, "reboot")) == 2
