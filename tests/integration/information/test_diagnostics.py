"""get_diagnostics: the newest figures, wherever a VM runs."""

from __future__ import annotations

import pytest

from tests.integration.information.support import Office
from worker.errors import InstanceNotFound


def test_the_figures_of_a_running_vm_are_those_that_xapi_names(office: Office) -> None:
    vm = office.new_vm()
    now = office.pass_time(60)
    figures = office.client.get_diagnostics(instance=vm.by_uuid)
    assert {"cpu0", "memory", "memory_target", "vif_0_rx", "vif_0_tx", "vbd_xvda_read", "vbd_xvda_write"} <= set(
        figures
    )
    assert figures["memory"] == float(office.rec(vm)["memory_target"])
    assert 0 <= (figures["cpu0"] or -1) <= 1
    assert now - 15 <= (figures.pop("last_update") or 0) <= now + 15
    assert (figures["vif_0_rx"] or 0) > 0


@pytest.mark.parametrize("number", [0, 1])
def test_every_host_is_asked_for_its_own_vms(office: Office, number: int) -> None:
    vm = office.new_vm(running=False)
    host_ref = sorted(office.call("host.get_all"))[number]
    office.call("VM.start_on", vm.ref, host_ref, False, False)
    office.pass_time(60)
    assert "cpu0" in office.client.get_diagnostics(instance=vm.by_uuid)


def test_a_halted_vm_has_its_last_figures_and_one_that_never_ran_has_none(office: Office) -> None:
    vm, never = office.new_vm(), office.new_vm(running=False)
    office.pass_time(60)
    office.call("VM.hard_shutdown", vm.ref)
    now = office.pass_time(600)
    figures = office.client.get_diagnostics(instance=vm.by_uuid)
    assert (figures["last_update"] or now) < now - 500
    assert office.client.get_diagnostics(instance=never.by_uuid) == {}


def test_what_is_not_known_yet_is_none(office: Office) -> None:
    vm = office.new_vm()
    figures = office.client.get_diagnostics(instance=vm.by_uuid)
    assert all(value is None or value >= 0 for value in figures.values())


def test_a_vm_that_is_not_there_is_told(office: Office) -> None:
    with pytest.raises(InstanceNotFound):
        office.client.get_diagnostics(instance={"name": "nobody"})


def test_it_costs_one_call_and_one_request(office: Office) -> None:
    vm = office.new_vm()
    office.pass_time(60)
    cost = office.cost_of(lambda: office.client.get_diagnostics(instance=vm.by_uuid))
    assert cost.pop("GET /vm_rrd") in {1, 2}  # a second time at the host that the first one names
    assert cost == {"VM.get_all_records_where": 1}
