"""What guests are told without an agent: their networks and their name."""

from __future__ import annotations

import json
from typing import Any

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


@pytest.mark.parametrize(
    ("operation", "fields", "wrong"),
    [
        ("inject_network_info", {"network_info": []}, "network_info: List should have at least 1 item"),
        ("inject_network_info", {"network_info": [{"label": "x"}]}, "network_info.0.mac: Field required"),
        ("inject_network_info", {"network_info": [{"label": "x", "mac": MAC}] * 2}, "two interfaces have the same mac"),
        ("inject_network_info", {"network_info": [{"mac": MAC}]}, "network_info.0.label: Field required"),
        (
            "inject_network_info",
            {"network_info": [{"label": "x", "mac": MAC, "ip6s": [{"ip": "::7", "netmask": 64}]}]},
            "ip6s need gateway_v6",
        ),
        ("inject_hostname", {"hostname": "-web"}, "hostname: String should match pattern"),
        ("inject_hostname", {"hostname": "web 1"}, "hostname: String should match pattern"),
        ("inject_file", {"path": "etc/motd", "contents": ""}, "path: a path in the guest is absolute"),
        ("inject_file", {"path": "/etc/motd"}, "give one of contents, contents_base64 and secret_contents"),
        ("inject_file", {"path": "/f", "contents": "", "contents_base64": ""}, "give one of"),
        ("inject_file", {"path": "/f", "contents_base64": "%"}, "base64"),
        ("inject_file", {"path": "/f", "contents": "x" * 2992}, "its messages have 4029"),
        ("agent_update", {"url": "http://a,b", "md5sum": "0" * 32}, "url must begin with"),
        ("agent_update", {"url": "http://a", "md5sum": "0"}, "md5sum must be 32 hex digits"),
        ("agent_update", {"url": "http://a", "md5sum": "0" * 32, "version": "new"}, "version: String should match"),
        ("get_agent_version", {"timeout_s": 0}, "timeout_s: Input should be greater than or equal to 1"),
        ("set_admin_password", {}, "new_pass: Field required"),
        ("set_admin_password", {"new_pass": 5}, "new_pass"),
        ("reset_network", {"nic": 1}, "nic: Extra inputs are not permitted"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_touched(
    guests: GuestWard, operation: str, fields: dict[str, Any], wrong: str
) -> None:
    handle = guests.client.submit(operation, {"instance": {"name": "nobody"}, **fields})
    assert wrong in guests.refused(handle, "RequestError")
    assert guests.simulator.calls() == {}
