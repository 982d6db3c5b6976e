"""get_all_bw_usage: bytes between two moments, of the right interfaces, whatever happened meanwhile."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from tests.integration.information.support import VM, Office


def of(answer: dict[str, Any], vm: VM, device: str = "0") -> dict[str, Any]:
    """Return the line of one interface."""
    (line,) = [one for one in answer["usage"] if one["vm_uuid"] == vm.uuid and one["device"] == device]
    return dict(line)


def test_bytes_are_told_by_interface_with_whose_they_are(office: Office) -> None:
    vm = office.new_vm("web01")
    begin = office.pass_time(60)
    office.pass_time(300)
    answer = office.client.get_all_bw_usage(start_time=begin)
    line = of(answer, vm)
    _, vif = office.vif(vm)
    assert (line["uuid"], line["name"], line["mac"]) == (vm.instance, "web01", vif["MAC"].lower())
    assert line["bw_in"] > 0
    assert line["bw_out"] > 0
    assert answer["start_time"] == begin
    assert begin + 200 <= answer["stop_time"] <= begin + 360
    assert answer["missing"] == []


def test_the_sum_is_the_area_below_the_rate(office: Office) -> None:
    vm = office.new_vm()
    begin = office.pass_time(120)
    office.pass_time(120)
    answer = office.client.get_all_bw_usage(start_time=begin, stop_time=begin + 100)
    rates = [rate for moment, rate in office.rates(vm, "vif_0_rx", begin) if moment <= begin + 100]
    assert of(answer, vm)["bw_in"] == pytest.approx(100 * sum(rates) / len(rates), rel=0.1)
    assert answer["stop_time"] == begin + 100


def test_adjoining_spans_add_up(office: Office) -> None:
    vm = office.new_vm()
    begin = office.pass_time(120)
    office.pass_time(150)
    whole = of(office.client.get_all_bw_usage(start_time=begin, stop_time=begin + 140), vm)
    first = office.client.get_all_bw_usage(start_time=begin, stop_time=begin + 63)
    second = office.client.get_all_bw_usage(start_time=first["stop_time"], stop_time=begin + 140)
    for way in ("bw_in", "bw_out"):
        assert of(first, vm)[way] + of(second, vm)[way] == pytest.approx(whole[way], abs=2)


def test_the_end_of_one_answer_begins_the_next_without_a_gap(office: Office) -> None:
    vm = office.new_vm()
    begin = office.pass_time(60)
    office.pass_time(47)
    first = office.client.get_all_bw_usage(start_time=begin)
    office.pass_time(53)
    second = office.client.get_all_bw_usage(start_time=first["stop_time"])
    whole = office.client.get_all_bw_usage(start_time=begin, stop_time=second["stop_time"])
    parts = of(first, vm)["bw_in"] + of(second, vm)["bw_in"]
    assert first["stop_time"] < second["stop_time"]
    assert parts == pytest.approx(of(whole, vm)["bw_in"], rel=0.02, abs=200)


def test_a_reboot_in_the_span_neither_jumps_nor_takes_away(office: Office) -> None:
    vm = office.new_vm()
    begin = office.pass_time(60)
    office.pass_time(100)
    before = of(office.client.get_all_bw_usage(start_time=begin), vm)
    office.call("VM.hard_reboot", vm.ref)
    office.pass_time(100)
    after = of(office.client.get_all_bw_usage(start_time=begin), vm)
    for way in ("bw_in", "bw_out"):
        assert before[way] <= after[way] + 1 < 10 * (before[way] + 1)


def test_vms_on_every_host_are_counted(office: Office) -> None:
    hosts = office.call("host.get_all")
    vms = [office.new_vm(running=False) for _ in hosts]
    for vm, host_ref in zip(vms, hosts, strict=True):
        office.call("VM.start_on", vm.ref, host_ref, False, False)
    begin = office.pass_time(60)
    office.pass_time(60)
    answer = office.client.get_all_bw_usage(start_time=begin)
    assert {one["vm_uuid"] for one in answer["usage"]} == {vm.uuid for vm in vms}
    assert all(one["bw_in"] > 0 for one in answer["usage"])


def test_foreign_vms_are_left_out_unless_they_are_asked_for(office: Office) -> None:
    ours, foreign = office.new_vm(), office.new_vm(is_ours=False)
    begin = office.pass_time(60)
    office.pass_time(60)
    assert {one["vm_uuid"] for one in office.client.get_all_bw_usage(start_time=begin)["usage"]} == {ours.uuid}
    answer = office.client.get_all_bw_usage(start_time=begin, foreign=True)
    assert {one["vm_uuid"] for one in answer["usage"]} == {ours.uuid, foreign.uuid}
    assert of(answer, foreign)["uuid"] is None


def test_a_vm_destroyed_meanwhile_and_a_removed_interface_disturb_nobody(office: Office) -> None:
    stays, gone, bare = office.new_vm(), office.new_vm(), office.new_vm()
    begin = office.pass_time(60)
    office.pass_time(60)
    office.call("VM.hard_shutdown", gone.ref)
    office.call("VM.destroy", gone.ref)
    vif_ref, _ = office.vif(bare)
    office.call("VIF.unplug", vif_ref)
    office.call("VIF.destroy", vif_ref)
    answer = office.client.get_all_bw_usage(start_time=begin)
    assert of(answer, stays)["bw_in"] > 0
    assert gone.uuid not in {one["vm_uuid"] for one in answer["usage"]}
    assert all(one["mac"] is None for one in answer["usage"] if one["vm_uuid"] == bare.uuid)


def test_a_vm_that_moves_keeps_what_it_transferred(office: Office) -> None:
    vm = office.new_vm()
    begin = office.pass_time(60)
    office.pass_time(100)
    before = of(office.client.get_all_bw_usage(start_time=begin), vm)
    here = office.rec(vm)["resident_on"]
    (there,) = [ref for ref in office.call("host.get_all") if ref != here]
    office.call("VM.pool_migrate", vm.ref, there, {})
    office.pass_time(30)
    after = of(office.client.get_all_bw_usage(start_time=begin), vm)
    assert after["bw_in"] >= before["bw_in"]


def test_an_empty_pool_has_no_usage_and_no_end(office: Office) -> None:
    answer = office.client.get_all_bw_usage(start_time=1000)
    assert answer == {"start_time": 1000, "stop_time": 1000, "usage": [], "missing": []}


def test_a_start_long_ago_makes_up_nothing(office: Office) -> None:
    vm = office.new_vm()
    office.pass_time(300)
    recent = of(office.client.get_all_bw_usage(start_time=time.time() - 3600), vm)["bw_in"]
    ancient = of(office.client.get_all_bw_usage(start_time=0), vm)["bw_in"]
    assert ancient <= 1000 * (recent + 1)


def test_it_costs_one_call_and_a_request_for_each_host_with_vms(office: Office) -> None:
    for number, host_ref in enumerate(office.call("host.get_all"), start=1):
        vm = office.new_vm(running=False)
        office.call("VM.start_on", vm.ref, host_ref, False, False)
        ask = partial(office.client.get_all_bw_usage, start_time=office.pass_time(60))
        assert office.cost_of(ask) == {"event.from": 1, "GET /rrd_updates": number}
