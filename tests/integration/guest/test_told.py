"""What guests are told without an agent: their networks and their name."""

from __future__ import annotations

import json

import pytest

from tests.integration.guest.support import GuestWard

MAC = "00:16:3E:12:34:56"
KEY = "vm-data/networking/00163E123456"


def test_networks_are_written_in_the_spelling_that_agents_read(guests: GuestWard) -> None:
    vm = guests.new_guest(None)
    old = {"vm-data/networking/00163e123456": "{}", "vm-data/networking/00163E999999": '{"label": "other"}'}
    guests.call("VM.set_xenstore_data", vm.ref, old)
    mapping = {"mac": MAC, "label": "public", "rxtx_cap": 0, "dns": ["192.0.2.53"]}
    for _ in range(2):
        guests.done("inject_network_info", vm, network_info=[[{"bridge": "xenbr0"}, mapping]])
    expected = {"label": "public", "mac": MAC.lower(), "dns": ["192.0.2.53"]}
    assert json.loads(guests.data(vm)[KEY]) == expected
    assert json.loads(guests.live(vm, KEY) or "") == expected
    assert "vm-data/networking/00163e123456" not in guests.data(vm), "Nova's spelling is gone"
    assert "vm-data/networking/00163E999999" in guests.data(vm), "another interface's stays"


@pytest.mark.parametrize("running", [True, False])
def test_a_host_name_is_plain_text(guests: GuestWard, *, running: bool) -> None:
    vm = guests.new_guest(None, running=running)
    guests.done("inject_hostname", vm, hostname="web01.example.org")
    result = guests.done("inject_hostname", vm, hostname="web02.example.org")
    assert result == {"vm_uuid": vm.uuid, "hostname": "web02.example.org"}
    assert guests.data(vm)["vm-data/hostname"] == "web02.example.org"


def test_windows_is_told_fifteen_characters_of_its_name(guests: GuestWard) -> None:
    vm = guests.new_guest(None)
    result = guests.done("inject_hostname", vm, hostname="a-long-host-name-indeed", os_type="windows")
    assert result["hostname"] == guests.data(vm)["vm-data/hostname"] == "a-long-host-nam"
