"""The parameter record and the live record: what their documentation promises (operations.md 5.5)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.guest.support import GuestWard
from tests.integration.power.support import VM
from tests.support.worker import eventually

KEY = "vm-data/user-metadata/tier"
ODD = {"text": 'Grüße, "Welt" \\ C:\\temp\n= x', "list": [1, None, True, 1.5], "empty": ""}


def read(guests: GuestWard, vm: VM, **fields: Any) -> Any:
    """Return the answer of read_from_param_xenstore."""
    return guests.client.read_from_param_xenstore(instance={"vm_uuid": vm.uuid}, **fields)


def look(guests: GuestWard, vm: VM, path: str) -> Any:
    """Return the answer of read_from_xenstore."""
    return guests.client.read_from_xenstore(instance={"vm_uuid": vm.uuid}, path=path)


def listing(guests: GuestWard, vm: VM, path: str) -> Any:
    """Return the answer of list_from_xenstore."""
    return guests.client.list_from_xenstore(instance={"vm_uuid": vm.uuid}, path=path)


def in_state(guests: GuestWard, state: str) -> VM:
    """Make a VM in a power state."""
    vm = guests.new_guest(None, running=state != "Halted")
    if state == "Paused":
        guests.call("VM.pause", vm.ref)
    return vm


# -- the parameter record


@pytest.mark.parametrize("state", ["Running", "Paused", "Halted"])
def test_every_value_comes_back_as_it_was(guests: GuestWard, state: str) -> None:
    vm = in_state(guests, state)
    guests.done("add_to_param_xenstore", vm, key=KEY, val=ODD)
    guests.done("write_to_param_xenstore", vm, mapping={"vm-data/a": "x", "vm-data/b": [2]})
    assert read(guests, vm, keys=[KEY, "vm-data/a", "vm-data/b", "vm-data/c"]) == {
        KEY: ODD,
        "vm-data/a": "x",
        "vm-data/b": [2],
        "vm-data/c": None,
    }
    assert read(guests, vm, keys="vm-data/a") == {"vm-data/a": "x"}


@pytest.mark.parametrize("state", ["Running", "Paused"])
def test_a_guest_sees_at_once_what_was_changed_in_the_record(guests: GuestWard, state: str) -> None:
    vm = in_state(guests, state)
    guests.done("write_to_param_xenstore", vm, mapping={KEY: "gold", "vm-data/a": 1})
    assert (guests.live(vm, KEY), guests.live(vm, "vm-data/a")) == ('"gold"', "1")
    guests.done("remove_from_param_xenstore", vm, key_or_keys=[KEY, "vm-data/never-there"])
    assert (guests.live(vm, KEY), guests.live(vm, "vm-data/a")) == (None, "1")
    guests.done("clear_param_xenstore", vm)
    assert guests.live(vm, "vm-data/a") is None
    assert {key for key in guests.data(vm) if key.startswith("vm-data/")} == set()


def test_what_a_guest_wrote_stays_when_the_record_is_changed(guests: GuestWard) -> None:
    vm = in_state(guests, "Running")
    guests.in_guest(vm, "xenstore-write", "vm-data/from-guest", "plain words")
    eventually(lambda: "vm-data/from-guest" in guests.data(vm))
    guests.done("add_to_param_xenstore", vm, key=KEY, val=1)
    assert guests.live(vm, "vm-data/from-guest") == "plain words"
    assert read(guests, vm, keys="vm-data/from-guest") == {"vm-data/from-guest": "plain words"}


def test_changes_of_one_record_at_the_same_time_all_stay(guests: GuestWard) -> None:
    vm = in_state(guests, "Running")
    keys = [f"vm-data/many/{number}" for number in range(8)]
    for handle in [guests.do("add_to_param_xenstore", vm, key=key, val=key) for key in keys]:
        guests.succeeded(handle)
    assert read(guests, vm, keys=keys) == {key: key for key in keys}


def test_a_prefix_reads_all_that_begins_with_it(guests: GuestWard) -> None:
    vm = in_state(guests, "Halted")
    entries = {
        "vm-data/networking/00163E000001": '{"label": "x"}',
        "vm-data/hostname": "web01",
        "vm-data/networks": "1",
    }
    guests.call("VM.set_xenstore_data", vm.ref, entries)
    found = guests.client.read_partial_from_param_xenstore(instance={"vm_uuid": vm.uuid}, key_prefix="vm-data/network")
    assert found == {"vm-data/networking/00163E000001": {"label": "x"}, "vm-data/networks": 1}
    assert read(guests, vm) == {**found, "vm-data/hostname": "web01"}


def test_a_change_is_three_calls_and_none_is_two(guests: GuestWard) -> None:
    vm = in_state(guests, "Running")
    look_up = {"VM.get_all_records_where": 1, "VM.get_record": 1}
    for extra in ({"VM.set_xenstore_data": 1}, {}):
        made = guests.calls_of(lambda: guests.do("add_to_param_xenstore", vm, key=KEY, val="gold"))
        assert made == {**look_up, **extra}


# -- the live record


@pytest.mark.parametrize("folder", ["vm-data/live", "data/live"])
def test_the_live_record_is_written_read_listed_and_cleared(guests: GuestWard, folder: str) -> None:
    vm = in_state(guests, "Running")
    assert look(guests, vm, folder) is None
    assert listing(guests, vm, folder) is None
    guests.done("write_to_xenstore", vm, path=f"{folder}/a", value=ODD)
    guests.done("write_to_xenstore", vm, path=f"{folder}/a/b", value="x = y")
    assert look(guests, vm, f"{folder}/a") == ODD
    assert listing(guests, vm, folder) == {"a": ODD, "a/b": "x = y"}
    assert guests.live(vm, f"{folder}/a/b") == '"x = y"'
    guests.done("clear_xenstore", vm, path=f"{folder}/a")
    assert look(guests, vm, f"{folder}/a/b") is None
    guests.done("clear_xenstore", vm, path=f"{folder}/a")


@pytest.mark.parametrize("folder", ["vm-data/map", "data/map"])
def test_what_was_added_is_removed_by_its_key(guests: GuestWard, folder: str) -> None:
    vm = in_state(guests, "Running")
    for key in ("one", "two", "three.4"):
        guests.done("add_to_xenstore", vm, path=folder, key=key, value=key)
    assert look(guests, vm, folder) == {"one": "one", "two": "two", "three.4": "three.4"}
    guests.done("write_to_xenstore", vm, path=f"{folder}/node", value=1)
    guests.done("remove_from_xenstore", vm, path=folder, key_or_keys=["one", "three.4", "node", "never-there"])
    assert look(guests, vm, folder) == {"two": "two"}
    assert look(guests, vm, f"{folder}/node") is None


@pytest.mark.parametrize("folder", ["vm-data/plain", "data/plain"])
def test_nothing_is_added_to_what_is_no_map(guests: GuestWard, folder: str) -> None:
    vm = in_state(guests, "Running")
    guests.done("write_to_xenstore", vm, path=folder, value="text")
    handle = guests.do("add_to_xenstore", vm, path=folder, key="a", value=1)
    assert f"{folder} holds no map" in guests.refused(handle, "RequestError")
    assert look(guests, vm, folder) == "text"


def test_the_record_follows_what_is_written_live(guests: GuestWard) -> None:
    vm = in_state(guests, "Running")
    guests.done("write_to_xenstore", vm, path="vm-data/live", value="x")
    assert guests.data(vm)["vm-data/live"] == '"x"'


def test_a_halted_vm_has_no_live_record(guests: GuestWard) -> None:
    vm = in_state(guests, "Halted")
    text = guests.refused(guests.do("write_to_xenstore", vm, path="vm-data/a", value=1), "WrongPowerState")
    assert "is halted and has no live record: start it, or use its parameter record" in text
    with pytest.raises(Exception, match="has no live record"):
        look(guests, vm, "data/a")


def test_a_guest_that_reboots_meanwhile_is_written_to_in_its_new_domain(guests: GuestWard) -> None:
    """Between the look at the VM and the plugin's call the domain changes: the plugin refuses, the step looks again."""
    vm = in_state(guests, "Running")
    fault = guests.simulator.add_fault(match="host.call_plugin", nth=1, effect="pause", when="before")
    handle = guests.do("write_to_xenstore", vm, path="data/a", value="new")
    guests.simulator.wait_for_hit(fault)
    guests.call("VM.hard_reboot", vm.ref)
    guests.simulator.clear_faults()
    guests.succeeded(handle)
    assert guests.live(vm, "data/a") == '"new"'


def test_without_the_plugins_what_xapi_does_by_itself_works(guests: GuestWard) -> None:
    vm = in_state(guests, "Running")
    with guests.no_plugin("vmops-xenstore"):
        guests.done("write_to_xenstore", vm, path="vm-data/a", value=1)
        assert look(guests, vm, "vm-data/a") == 1
        text = guests.refused(guests.do("write_to_xenstore", vm, path="data/a", value=1), "PluginMissing")
    assert "has no plugin vmops-xenstore. Run `vmops doctor`" in text


# -- what XenStore does not take


def test_what_xenstore_does_not_take_is_refused_before_anything_is_touched(guests: GuestWard) -> None:
    handle = guests.client.add_to_param_xenstore(instance={"name": "nobody"}, key="vm-data/a.b", val=1)
    assert "'a.b' cannot be part of a XenStore path" in guests.refused(handle, "RequestError")
    assert guests.simulator.calls() == {}


def test_a_map_that_grows_too_large_is_refused_as_a_whole(guests: GuestWard) -> None:
    vm = in_state(guests, "Running")
    guests.done("add_to_xenstore", vm, path="vm-data/map", key="a", value="x" * 1500)
    handle = guests.do("add_to_xenstore", vm, path="vm-data/map", key="b", value="x" * 1500)
    assert "XenStore 2048 there" in guests.refused(handle, "TooLarge")
    assert set(look(guests, vm, "vm-data/map")) == {"a"}
