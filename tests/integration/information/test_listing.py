"""list_instances, list_instances_detail and get_info."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.integration.information.support import Office
from worker.errors import InstanceAmbiguous, InstanceNotFound, RequestError


def test_all_vms_are_listed_halted_ones_too_and_nothing_else(office: Office) -> None:
    running, halted = office.new_vm("b"), office.new_vm("a", running=False)
    office.new_vm("c", is_ours=False)
    office.call("VM.snapshot", running.ref, "a snapshot")
    template = office.call("VM.clone", halted.ref, "a template")
    office.call("VM.set_is_a_template", template, True)
    assert office.client.list_instances() == ["a", "b", "c"]
    assert [one["name"] for one in office.client.list_instances_detail()] == ["a", "b", "c"]


def test_a_list_can_be_narrowed_to_states_and_to_a_host(office: Office) -> None:
    running, paused, _ = office.new_vm("r"), office.new_vm("p"), office.new_vm("h", running=False)
    office.call("VM.pause", paused.ref)
    assert office.client.list_instances(power_states=["Running", "Paused"]) == ["p", "r"]
    assert office.client.list_instances(power_states=["Halted"]) == ["h"]
    host = office.call("host.get_uuid", office.rec(running)["resident_on"])
    assert running.name in office.client.list_instances(host=host)
    assert "h" not in office.client.list_instances(host=host)
    with pytest.raises(RequestError, match="no host with uuid"):
        office.client.list_instances(host=str(uuid4()))


def test_details_tell_who_a_vm_is_and_where_it_runs(office: Office) -> None:
    vm = office.new_vm("web01")
    rec = office.rec(vm)
    (found,) = office.client.list_instances_detail()
    host = office.call("host.get_record", rec["resident_on"])
    assert found["host"] == {"uuid": host["uuid"], "name": host["name_label"]}
    assert (found["uuid"], found["vm_uuid"], found["name"], found["role"]) == (vm.instance, vm.uuid, "web01", None)
    office.call("VM.hard_shutdown", vm.ref)
    (found,) = office.client.list_instances_detail()
    assert (found["state"], found["host"]) == (4, None)


@pytest.mark.parametrize(
    ("action", "power_state", "state"),
    [("pause", "Paused", 3), ("suspend", "Suspended", 7), ("hard_shutdown", "Halted", 4), (None, "Running", 1)],
)
def test_info_tells_openstacks_codes_of_power_states(
    office: Office, action: str | None, power_state: str, state: int
) -> None:
    vm = office.new_vm()
    if action is not None:
        office.call(f"VM.{action}", vm.ref)
    info = office.client.get_info(instance={"uuid": vm.instance or ""})
    assert (info["power_state"], info["state"]) == (power_state, state)


def test_info_tells_the_configured_size(office: Office) -> None:
    vm = office.new_vm()
    rec = office.rec(vm)
    assert office.client.get_info(instance=vm.by_uuid) == {
        "uuid": vm.instance,
        "vm_uuid": vm.uuid,
        "name": vm.name,
        "role": None,
        "power_state": "Running",
        "state": 1,
        "max_mem": int(rec["memory_static_max"]) // 1024,
        "mem": int(rec["memory_dynamic_max"]) // 1024,
        "num_cpu": int(rec["VCPUs_max"]),
        "cpu_time": 0,
    }


def test_a_vm_that_nova_made_is_known_by_novas_uuid(office: Office) -> None:
    vm, instance = office.new_vm(is_ours=False), str(uuid4())
    office.call("VM.add_to_other_config", vm.ref, "nova_uuid", instance)
    assert office.client.get_info(instance={"uuid": instance})["vm_uuid"] == vm.uuid


def test_a_vm_that_is_not_there_and_a_name_that_two_bear_are_told(office: Office) -> None:
    office.new_vm("twin")
    office.new_vm("twin")
    with pytest.raises(InstanceNotFound, match="'nobody'"):
        office.client.get_info(instance={"name": "nobody"})
    with pytest.raises(InstanceAmbiguous, match="2 VMs"):
        office.client.get_info(instance={"name": "twin"})


@pytest.mark.parametrize(
    ("name", "request_", "match"),
    [
        ("get_info", {}, "instance"),
        ("get_info", {"instance": {}}, "name the VM"),
        ("get_info", {"instance": {"name": "a", "colour": "red"}}, "colour"),
        ("get_info", {"instance": {"uuid": "not-a-uuid"}}, "uuid"),
        ("list_instances", {"power_states": ["Asleep"]}, "power_states"),
        ("list_instances", {"power_states": []}, "power_states"),
        ("list_instances", {"host": 5}, "host"),
        ("get_all_bw_usage", {}, "start_time"),
        ("get_all_bw_usage", {"start_time": "yesterday"}, "start_time"),
        ("get_all_bw_usage", {"start_time": -1}, "start_time"),
        ("get_all_bw_usage", {"start_time": 10, "stop_time": 10}, "later than start_time"),
        ("get_vnc_console", {"instance": "web01"}, "instance"),
        ("get_diagnostics", {"instance": {"name": ""}}, "name"),
    ],
)
def test_a_bad_request_is_told_and_touches_nothing(
    office: Office, name: str, request_: dict[str, Any], match: str
) -> None:
    office.simulator.reset_stats()
    with pytest.raises(RequestError, match=match):
        office.client.query(name, request_)
    assert office.simulator.calls() == {}


@pytest.mark.parametrize("count", [1, 20])
def test_each_costs_one_call_whatever_the_number_of_vms(office: Office, count: int) -> None:
    vms = [office.new_vm(running=False) for _ in range(count)]
    one = {"VM.get_all_records_where": 1}
    assert office.cost_of(lambda: office.client.get_info(instance=vms[0].by_uuid)) == one
    assert office.cost_of(office.client.list_instances) == {"event.from": 1}
    assert office.cost_of(office.client.list_instances_detail) == {"event.from": 1}
