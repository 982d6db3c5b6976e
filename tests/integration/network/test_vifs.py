"""create_vifs, plug_vifs and unplug_vifs do what their names say, again and again, and refuse what cannot be."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.integration.power.support import VM, Ward
from worker.operations.states import State

MAC, OTHER = "02:16:3e:00:00:01", "02:16:3e:00:00:02"
#: What each of the three begins with, beside looks.
FOUND = {"VM.get_all_records_where": 1}


def new_vm(ward: Ward, *, running: bool = True) -> VM:
    """A VM without interfaces; the simulator gives every VM one."""
    vm = ward.new_vm(running=running)
    for ref in ward.rec(vm)["VIFs"]:
        if running:
            ward.call("VIF.unplug", ref)
        ward.call("VIF.destroy", ref)
    ward.simulator.reset_stats()
    return vm


def network_of(ward: Ward) -> dict[str, Any]:
    """A network that every host is on."""
    found = ward.call("network.get_all_records").values()
    return next(rec for rec in found if rec["PIFs"] and not rec["name_label"].startswith("vlan"))


def vifs_of(ward: Ward, vm: VM) -> dict[str, dict[str, Any]]:
    """The VM's interfaces, by MAC."""
    return {rec["MAC"]: rec for rec in ward.call("VIF.get_all_records").values() if rec["VM"] == vm.ref}


def wish(ward: Ward, mac: str = MAC, **fields: Any) -> dict[str, Any]:
    return {"network": network_of(ward)["uuid"], "mac": mac, **fields}


def refused(ward: Ward, operation: str, vm: VM, **fields: Any) -> tuple[str, str]:
    """Submit what cannot be; return code and sentence of the refusal, which left the VM's interfaces alone."""
    before = vifs_of(ward, vm)
    record = ward.wait(ward.do(operation, vm, **fields))
    assert record.state in {State.FAILED, State.UNDONE}
    assert vifs_of(ward, vm) == before
    return record.error["code"], record.error["message"]


def test_an_interface_is_made_as_the_request_says_and_not_plugged(ward: Ward) -> None:
    vm, port = new_vm(ward), str(uuid4())
    one = wish(
        ward, rate_limit_kbps=4096, port_id=port, locking_mode="locked", ipv4_allowed=["10.0.0.7"], ipv6_allowed=["::7"]
    )
    result = ward.done("create_vifs", vm, networks=[one])
    (rec,) = vifs_of(ward, vm).values()
    assert (rec["MAC"], rec["device"], rec["currently_attached"]) == (MAC, "0", False)
    assert (rec["qos_algorithm_type"], rec["qos_algorithm_params"]) == ("ratelimit", {"kbps": "4096"})
    assert (rec["locking_mode"], rec["ipv4_allowed"], rec["ipv6_allowed"]) == ("locked", ["10.0.0.7"], ["::7"])
    assert rec["other_config"]["neutron-port-id"] == port
    said = {"mac": MAC, "vif_uuid": rec["uuid"], "device": "0", "is_new": True, "is_plugged": False}
    assert result == {"vm_uuid": vm.uuid, "vifs": [said]}


def test_an_interface_is_plugged_into_a_running_guest_once(ward: Ward) -> None:
    vm = new_vm(ward)
    networks = [wish(ward), wish(ward, OTHER)]
    calls = ward.calls_of(lambda: ward.do("plug_vifs", vm, networks=networks))
    assert calls == {**FOUND, "VIF.create": 2, "VIF.plug": 2, "VIF.get_all_records_where": 2}
    first = vifs_of(ward, vm)
    assert [rec["currently_attached"] for rec in first.values()] == [True, True]
    calls = ward.calls_of(lambda: ward.do("plug_vifs", vm, networks=networks))
    assert calls == {**FOUND, "VIF.get_all_records_where": 2}
    assert vifs_of(ward, vm) == first


def test_what_was_only_made_is_plugged_later(ward: Ward) -> None:
    vm = new_vm(ward)
    ward.done("create_vifs", vm, networks=[wish(ward)])
    result = ward.done("plug_vifs", vm, networks=[wish(ward)])
    assert [(one["is_new"], one["is_plugged"]) for one in result["vifs"]] == [(False, True)]


def test_a_halted_vm_gets_the_record_and_has_the_interface_from_its_next_start_on(ward: Ward) -> None:
    vm = new_vm(ward, running=False)
    result = ward.done("plug_vifs", vm, networks=[wish(ward)])
    assert [one["is_plugged"] for one in result["vifs"]] == [False]
    ward.done("power_on", vm)
    assert vifs_of(ward, vm)[MAC]["currently_attached"]


def test_a_guest_without_drivers_keeps_running_and_has_the_record(ward: Ward) -> None:
    vm = new_vm(ward)
    ward.guest(vm, agent=False, pv_drivers=False)
    ward.done("reboot", vm, reboot_type="HARD")
    handle = ward.do("plug_vifs", vm, networks=[wish(ward)])
    assert [one["is_plugged"] for one in ward.succeeded(handle)["vifs"]] == [False]
    history = [fields["text"] for _, fields in ward.client.journal.events(handle.id)]
    assert any("next start" in text for text in history)


def test_a_taken_position_is_left_and_a_mac_is_made_of_the_instance(ward: Ward) -> None:
    vm = new_vm(ward)
    ward.done("create_vifs", vm, networks=[wish(ward)])
    result = ward.done("plug_vifs", vm, networks=[{"network": network_of(ward)["bridge"]}])
    assert [one["device"] for one in result["vifs"]] == ["1"]
    again = ward.done("plug_vifs", vm, networks=[{"network": network_of(ward)["bridge"]}])
    assert [(one["mac"], one["is_new"]) for one in again["vifs"]] == [(result["vifs"][0]["mac"], False)]


def test_interfaces_are_unplugged_and_removed_and_missing_ones_are_no_error(ward: Ward) -> None:
    vm = new_vm(ward)
    ward.done("plug_vifs", vm, networks=[wish(ward), wish(ward, OTHER)])
    calls = ward.calls_of(lambda: ward.do("unplug_vifs", vm, macs=[MAC.upper(), "02:16:3e:00:00:09"]))
    assert calls == {**FOUND, "VIF.unplug": 1, "VIF.destroy": 1}
    assert list(vifs_of(ward, vm)) == [OTHER]
    assert ward.done("unplug_vifs", vm, macs=[MAC])["removed"] == []
    ward.done("power_off", vm)
    assert [one["mac"] for one in ward.done("unplug_vifs", vm, macs=[OTHER])["removed"]] == [OTHER]
    assert vifs_of(ward, vm) == {}


def test_a_vlan_network_is_made_on_every_host_and_found_again(ward: Ward) -> None:
    vm, name = new_vm(ward), f"vlan-{uuid4().hex[:6]}"
    one = {"network": name, "mac": MAC, "vlan": {"device": "eth0", "tag": 77}}
    ward.done("plug_vifs", vm, networks=[one])
    ward.done("plug_vifs", vm, networks=[one, {**one, "mac": OTHER}])
    (ref,) = ward.call("network.get_by_name_label", name)
    pifs = [rec for rec in ward.call("PIF.get_all_records").values() if rec["network"] == ref]
    assert len(pifs) == len(ward.call("host.get_all"))
    assert {rec["VLAN"] for rec in pifs} == {"77"}
    assert {rec["network"] for rec in vifs_of(ward, vm).values()} == {ref}
    code, text = refused(ward, "plug_vifs", vm, networks=[{**one, "vlan": {"device": "eth0", "tag": 78}}])
    assert (code, "77" in text) == ("NetworkMismatch", True)
    code, text = refused(ward, "plug_vifs", vm, networks=[{**one, "network": "twice", "mac": "02:16:3e:00:00:03"}])
    assert (code, name in text) == ("NetworkMismatch", True)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"network": "no such"}, "NetworkNotFound", "no such"),
        ({"network": "new", "vlan": {"device": "eth9", "tag": 5}}, "NetworkNotFound", "eth9"),
        ({"mac": "03:16:3e:00:00:01"}, "RequestError", "multicast"),
        ({"vlan": {"device": "eth0", "tag": 4095}}, "RequestError", "4094"),
    ],
)
def test_what_cannot_be_is_refused(ward: Ward, fields: dict[str, Any], code: str, said: str) -> None:
    answer, text = refused(ward, "plug_vifs", new_vm(ward), networks=[{**wish(ward), **fields}])
    assert (answer, said in text) == (code, True), text


def test_a_mac_on_another_network_and_an_eighth_interface_are_refused(ward: Ward) -> None:
    vm = new_vm(ward, running=False)
    networks = [wish(ward, f"02:16:3e:00:00:1{number}") for number in range(7)]
    ward.done("create_vifs", vm, networks=networks)
    code, text = refused(ward, "create_vifs", vm, networks=[wish(ward)])
    assert (code, "7 interfaces" in text) == ("RequestError", True)
    other = next(rec for rec in ward.call("network.get_all_records").values() if rec["bridge"] == "xenapi")
    code, text = refused(ward, "create_vifs", vm, networks=[{**networks[0], "network": other["uuid"]}])
    assert (code, "unplug it first" in text) == ("NetworkMismatch", True)


def test_a_paused_guest_and_one_without_drivers_keep_their_interfaces(ward: Ward) -> None:
    vm = new_vm(ward)
    ward.done("plug_vifs", vm, networks=[wish(ward)])
    ward.done("pause", vm)
    assert refused(ward, "unplug_vifs", vm, macs=[MAC])[0] == "WrongPowerState"
    ward.done("unpause", vm)
    ward.guest(vm, agent=False, pv_drivers=False)
    ward.done("reboot", vm, reboot_type="HARD")
    assert refused(ward, "unplug_vifs", vm, macs=[MAC])[0] == "GuestUnable"
