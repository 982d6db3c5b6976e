"""Security groups reach the hosts that need them, before VMs start, and go with them; a failing host hinders none."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.integration.power.support import VM
from tests.support.fenced import CALL, HTTP, SSH, Fenced
from tests.support.spawning import put_image, request_for
from tests.support.worker import eventually
from worker.operations.states import State


def test_a_refresh_calls_each_host_that_has_a_member_once_and_no_other(ward: Fenced) -> None:
    one, two = ward.member(0, "web"), ward.member(1, "web")
    said = ward.allow("web", HTTP)
    assert len(said["hosts"]) == 2
    assert [set(ward.objects(host)) for host in range(3)] == [
        {"rules:web", ward.vif(one)},
        {"rules:web", ward.vif(two)},
        set(),
    ]
    assert ward.objects(0)["rules:web"] == [["i", 4, 6, 80, 80, None]]
    ward.simulator.reset_stats()
    assert len(ward.allow("web", HTTP, SSH)["hosts"]) == 2
    assert ward.plugin_calls() == 2
    assert ward.allow("web", SSH, HTTP)["hosts"] == []  # the same rules in another order
    assert ward.plugin_calls() == 2
    assert ward.allow("db", HTTP)["hosts"] == []  # nobody is in it
    assert ward.plugin_calls() == 2


@pytest.mark.matrix
def test_members_are_marked_and_known_where_rules_mean_them(ward: Fenced) -> None:
    web, db = ward.member(0, address="10.0.0.1"), ward.member(1, "db", address="10.0.0.2")
    ward.allow("web", HTTP)
    ward.allow("db", {**SSH, "remote_group_id": "web"})
    assert ward.objects(1)["members:web"] == {"v4": [], "v6": []}
    members = [{"instance": web.instance}, {"addresses": ["10.9.9.9", "fd00::9"]}]
    said = ward.succeeded(ward.client.refresh_security_group_members(security_group_id="web", members=members))
    assert (said["joined"], said["left"]) == ([web.uuid], [])
    assert ward.objects(1)["members:web"] == {"v4": ["10.0.0.1", "10.9.9.9"], "v6": ["fd00::9"]}
    assert ward.objects(0)[ward.vif(web)]["groups"] == ["web"]
    assert ward.objects(1)[ward.vif(db)]["groups"] == ["db"]
    said = ward.succeeded(ward.client.refresh_security_group_members(security_group_id="web", members=[]))
    assert (said["joined"], said["left"]) == ([], [web.uuid])
    assert ward.objects(0) == {}
    assert ward.flows(0) == {}
    assert ward.objects(1)["members:web"] == {"v4": [], "v6": []}


@pytest.mark.matrix
def test_what_comes_late_changes_nothing(ward: Fenced) -> None:
    ward.member(0, "web")
    refresh = ward.client.refresh_security_group_rules
    assert ward.succeeded(refresh(security_group_id="web", rules=[HTTP], version=7))["version"] == 7
    assert ward.succeeded(refresh(security_group_id="web", rules=[SSH], version=6))["version"] == 7
    assert ward.objects(0)["rules:web"] == [["i", 4, 6, 80, 80, None]]
    assert ward.succeeded(refresh(security_group_id="web"))["hosts"] == []


def test_hosts_take_what_is_said_after_a_wipe_of_the_store(ward: Fenced) -> None:
    vm = ward.member(0, "web", "db")
    ward.allow("db", SSH)
    ward.allow("web", HTTP)
    redis, prefix = ward.client.journal.redis, ward.client.journal.prefix
    redis.delete(*redis.scan_iter(match=f"{prefix}:firewall:*"))
    ward.allow("web", SSH)
    objects = ward.objects(0)
    assert (objects["rules:web"], objects["rules:db"]) == ([["i", 4, 6, 22, 22, None]],) * 2
    assert objects[ward.vif(vm)]["groups"] == ["db", "web"]


@pytest.mark.matrix
def test_the_provider_denies_on_every_host_with_a_filtered_vm(ward: Fenced) -> None:
    ward.member(0, "web")
    ward.allow("web", HTTP)
    said = ward.succeeded(ward.client.refresh_provider_fw_rules(rules=[{**SSH, "cidr": "192.0.2.0/24"}]))
    assert len(said["hosts"]) == 1
    assert ward.objects(0)["provider"] == [["i", 4, 6, 22, 22, "192.0.2.0/24"]]
    assert ward.objects(1) == {}


def test_one_host_of_three_fails_the_others_are_right_and_it_alone_is_tried_again(ward: Fenced) -> None:
    for host in range(3):
        ward.member(host, "web")
    ward.allow("web", HTTP)
    ward.simulator.reset_stats()
    ward.simulator.add_fault(match=CALL, nth=2, count=1, effect="failure", error=["HOST_OFFLINE", ward.hosts()[1]])
    handle = ward.client.refresh_security_group_rules(security_group_id="web", rules=[SSH])
    ward.succeeded(handle)
    assert ward.plugin_calls() == 4
    assert [ward.objects(host)["rules:web"] for host in range(3)] == [[["i", 4, 6, 22, 22, None]]] * 3


@pytest.mark.matrix
def test_a_host_that_can_never_do_it_fails_the_refresh_and_the_others_are_right(ward: Fenced) -> None:
    for host in range(3):
        ward.member(host, "web")
    with ward.without_switch(1):
        record = ward.wait(ward.client.refresh_security_group_rules(security_group_id="web", rules=[HTTP]))
        assert (record.state, record.error["code"]) == (State.FAILED, "FirewallUnsupported")
        assert "Open vSwitch" in record.error["message"]
        assert [bool(ward.objects(host)) for host in range(3)] == [True, False, True]
        assert list(ward.client.poll_firewall()["failures"].values()) != []
    assert ward.client.poll_firewall()["failures"] == {}
    assert bool(ward.objects(1))


def spawned(ward: Fenced, **fields: Any) -> dict[str, Any]:
    """Return a request for a VM in group web with an address."""
    network = next(rec for rec in ward.call("network.get_all_records").values() if rec["PIFs"])
    wish = {"network": network["uuid"], "info": {"ips": [{"ip": "10.0.0.7", "netmask": "255.255.255.0"}]}}
    image = put_image(ward)
    return {**request_for(image.id, networks=[wish], security_groups=["web"], pool="lab"), **fields}


def test_a_new_vm_is_filtered_wherever_it_may_start_and_is_not_started_before(ward: Fenced) -> None:
    ward.allow("web", HTTP)
    fault = ward.simulator.add_fault(match="Async.VM.start*", effect="pause", when="before")
    handle = ward.client.spawn(**spawned(ward))
    ward.simulator.wait_for_hit(fault)
    before = [ward.objects(host) for host in range(3)]
    assert all(len(one) == 2 and "rules:web" in one for one in before)
    assert all(ward.flows(host) for host in range(3))
    ward.simulator.clear_faults()
    vm_uuid = ward.succeeded(handle)["vm_uuid"]
    (vif,) = {key for key in before[0] if key.startswith("vif:")}
    assert before[0][vif]["addresses"] == ["10.0.0.7"]
    rec = next(rec for rec in ward.call("VM.get_all_records").values() if rec["uuid"] == vm_uuid)
    assert "vmops.group.web" in rec["other_config"]
    ward.client.poll_firewall()
    there = [vif in ward.objects(host) for host in range(3)]
    assert there == [ref == rec["resident_on"] for ref in ward.hosts()]
    ward.succeeded(ward.client.destroy(instance={"vm_uuid": vm_uuid}))
    assert [ward.objects(host) for host in range(3)] == [{}, {}, {}]
    assert [ward.flows(host) for host in range(3)] == [{}, {}, {}]


@pytest.mark.matrix
def test_a_host_that_cannot_filter_a_new_vm_does_not_get_it(ward: Fenced) -> None:
    ward.allow("web", HTTP)
    with ward.without_switch(0), ward.without_switch(1):
        result = ward.succeeded(ward.client.spawn(**spawned(ward)))
        host = ward.call("host.get_by_uuid", result["host"])
        assert host == ward.hosts()[2]


@pytest.mark.matrix
def test_a_vm_that_no_host_can_filter_is_not_made(ward: Fenced) -> None:
    ward.allow("web", HTTP)
    with ward.without_switch(0), ward.without_switch(1), ward.without_switch(2):
        record = ward.wait(ward.client.spawn(**spawned(ward)), 60)
    assert (record.state, record.error["code"]) == (State.UNDONE, "FirewallUnsupported")
    assert [rec for rec in ward.call("VM.get_all_records").values() if not rec["is_control_domain"]] == []


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"security_groups": ["nobody-knows"]}, "SecurityGroupUnknown", "nobody-knows"),
        ({"networks": [{"network": "xenbr0"}]}, "RequestError", "addresses"),
        ({"security_groups": ["no spaces"]}, "RequestError", "security_groups"),
    ],
)
def test_a_vm_whose_groups_cannot_be_is_refused(ward: Fenced, change: dict[str, Any], code: str, said: str) -> None:
    record = ward.wait(ward.client.spawn(**spawned(ward, **change)))
    assert (record.state, record.error["code"], said in record.error["message"]) == (State.FAILED, code, True)


def test_rules_follow_a_migrated_vm_come_back_when_lost_and_wait_everywhere_for_a_halted_one(ward: Fenced) -> None:
    vm = ward.member(0, "web")
    ward.allow("web", HTTP)
    vif, hosts = ward.vif(vm), ward.hosts()
    eventually(lambda: "pool_migrate" in ward.call("VM.get_allowed_operations", vm.ref))
    ward.call("VM.pool_migrate", vm.ref, hosts[1], {"live": "true"})
    ward.client.poll_firewall()
    assert [vif in ward.objects(host) for host in range(3)] == [False, True, False]
    flows = ward.flows(1)
    ward.lose_flows(1)
    ward.client.poll_firewall()
    assert ward.flows(1) == flows
    ward.call("VM.hard_shutdown", vm.ref)
    ward.client.poll_firewall()
    assert [vif in ward.objects(host) for host in range(3)] == [True, True, True]
    ward.simulator.reset_stats()
    assert ward.client.poll_firewall() == {"hosts": [], "failures": {}}


def looks_after(ward: Fenced, changed: VM) -> int:
    """Change a VM in no way that matters, poll, and return how often the pool was looked at."""
    ward.call("VM.add_to_other_config", changed.ref, f"people-{uuid4().hex}", "theirs")
    ward.groups().keep("quiet", ward.groups().changes(), for_s=60)
    ward.simulator.reset_stats()
    ward.client.poll_firewall()
    return ward.simulator.calls()["event.from"] - 1


def test_news_of_a_filtered_vm_are_looked_at_at_once_and_others_later(ward: Fenced) -> None:
    vm, stranger = ward.member(0, "web"), ward.new_vm()
    ward.allow("web", HTTP)

    ward.client.poll_firewall()
    assert looks_after(ward, stranger) == 0
    eventually(lambda: looks_after(ward, vm) == 1)
    eventually(lambda: looks_after(ward, stranger) == 0)
    ward.groups().drop("looked")
    eventually(lambda: looks_after(ward, stranger) == 1)


@pytest.mark.matrix
def test_a_pool_that_does_not_answer_is_left_alone_for_a_while(ward: Fenced) -> None:
    ward.allow("web", HTTP)
    ward.simulator.add_fault(match="event.from", effect="reset", when="before")
    failures = ward.client.poll_firewall()["failures"]
    assert "does not answer event.from" in failures["lab"]
    ward.simulator.clear_faults()
    ward.simulator.reset_stats()
    assert ward.client.poll_firewall()["failures"] == failures
    assert "event.from" not in ward.simulator.calls()
    ward.groups().drop("away")
    assert ward.client.poll_firewall()["failures"] == {}


@pytest.mark.matrix
def test_an_interface_of_a_filtered_vm_is_filtered_before_it_is_plugged(ward: Fenced) -> None:
    vm = ward.member(0, "web")
    ward.allow("web", HTTP)
    network = next(rec for rec in ward.call("network.get_all_records").values() if rec["PIFs"])
    one = {"network": network["uuid"], "mac": "02:16:3e:00:00:01"}
    record = ward.wait(ward.do("plug_vifs", vm, networks=[one]))
    assert "addresses" in record.error["message"]
    fault = ward.simulator.add_fault(match="VIF.plug", effect="pause", when="before")
    handle = ward.do("plug_vifs", vm, networks=[{**one, "ipv4_allowed": ["10.0.0.8"]}])
    ward.simulator.wait_for_hit(fault)
    assert "10.0.0.8" in str(ward.objects(0))
    ward.simulator.clear_faults()
    ward.succeeded(handle)


@pytest.mark.matrix
def test_an_unfiltered_instance_is_in_no_group_and_on_no_host(ward: Fenced) -> None:
    vm, twin = ward.member(0, "web", "db"), ward.member(1, "ssh")
    ward.call("VM.remove_from_other_config", twin.ref, "vmops.instance")
    ward.call("VM.add_to_other_config", twin.ref, "vmops.instance", vm.instance)
    ward.allow("web", HTTP)
    said = ward.done("unfilter_instance", vm)
    assert said["left"] == ["db", "ssh", "web"]
    assert ward.objects(1) == {}
    assert ward.objects(0) == {}
    assert ward.flows(0) == {}
    assert ward.done("unfilter_instance", vm)["left"] == []


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"protocol": "tcp", "port_range_min": 90, "port_range_max": 80}, "below"),
        ({"port_range_min": 80, "port_range_max": 80}, "protocol"),
        ({"remote_ip": "10.0.0.0/8"}, "remote_ip"),
    ],
)
def test_rules_that_cannot_be_are_refused_and_touch_nothing(ward: Fenced, rule: dict[str, Any], said: str) -> None:
    record = ward.wait(ward.client.refresh_security_group_rules(security_group_id=f"g-{uuid4().hex}", rules=[rule]))
    assert (record.state, record.error["code"]) == (State.FAILED, "RequestError")
    assert said in record.error["message"]
    assert ward.plugin_calls() == 0


@pytest.mark.matrix
def test_a_halted_vm_is_started_only_where_its_rules_are(ward: Fenced) -> None:
    ward.allow("web", HTTP)
    vm = ward.member(0, "web", running=False)
    with ward.without_switch(0), ward.without_switch(1):
        ward.done("power_on", vm)
        assert ward.call("VM.get_resident_on", vm.ref) == ward.hosts()[2]
    assert ward.vif(vm) in ward.objects(2)


def test_rules_are_at_the_destination_before_a_vm_is_moved_there_and_polls_leave_them(ward: Fenced) -> None:
    vm = ward.member(0, "web")
    ward.allow("web", HTTP)
    fault = ward.simulator.add_fault(match="Async.VM.pool_migrate", effect="pause", when="before")
    host = ward.call("host.get_uuid", ward.hosts()[1])
    handle = ward.do("live_migrate", vm, dest={"host": host})
    ward.simulator.wait_for_hit(fault)
    assert ward.vif(vm) in ward.objects(1)
    ward.call("VM.add_to_other_config", vm.ref, "people", "theirs")  # the poll has something to look at
    ward.client.poll_firewall()
    assert ward.vif(vm) in ward.objects(1)
    ward.simulator.clear_faults()
    ward.succeeded(handle)
    ward.client.poll_firewall()
    assert [ward.vif(vm) in ward.objects(host) for host in range(3)] == [False, True, False]
