"""What a build lets the guest's agent do, and what it makes of agents that do not."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.integration.guest.support import GuestWard
from tests.integration.power.support import VM
from tests.support.spawning import put_image, request_for

PASSWORD = "c0rrect-Horse"
NETWORK = {"network": "xenbr0", "mac": "00:16:3e:aa:bb:cc", "info": {"label": "public"}}
UPDATE = {"version": "9.9.9", "url": "http://192.0.2.5/agent-9.9.9.tgz", "md5sum": "0" * 32}
FILES = [{"path": "/etc/motd", "contents": "Hello\n"}, {"path": "/etc/issue", "contents": "vmops\n"}]


def built(guests: GuestWard, operation: str = "spawn", **fields: Any) -> tuple[VM, dict[str, Any]]:
    """Build a VM and return it, and the operation's result."""
    properties = fields.pop("properties", {})
    picture = put_image(guests, properties=properties)
    instance = str(uuid4())
    name = f"built-{instance[:8]}"
    request = {**request_for(picture.id), "instance": {"uuid": instance, "name": name}, **fields}
    result = guests.succeeded(guests.client.submit(operation, request), 60)
    with guests.simulator.session() as call:
        ref = call("VM.get_by_uuid", result["vm_uuid"])
    return VM(name, result["vm_uuid"], ref, [], instance), result


def test_a_build_sets_up_its_guest(guests: GuestWard) -> None:
    vm, result = built(
        guests, admin_password=PASSWORD, files=FILES, networks=[NETWORK], agent={"use": True, "update": UPDATE}
    )
    inside = guests.inside(vm)
    assert result["guest"] == {
        "agent_version": "1.39.1",
        "done": ["network", "file /etc/motd", "file /etc/issue", "password", "update"],
        "faults": [],
    }
    assert inside["passwords"] == {"root": PASSWORD}
    assert {path: file["content"] for path, file in inside["files"].items()} == {
        "/etc/motd": "Hello\n",
        "/etc/issue": "vmops\n",
    }
    assert (inside["hostname"], inside["version"]) == (vm.name, "9.9.9")
    assert inside["networks"]["00163EAABBCC"]["label"] == "public"
    assert "vm-data/hostname" not in guests.data(vm), "at the next boot it would overrule the guest's owner"


def test_a_rescue_sets_up_its_vm(guests: GuestWard) -> None:
    _, result = built(guests, "spawn_rescue", admin_password=PASSWORD)
    assert result["guest"]["done"] == ["password"]


def test_nothing_is_asked_where_nothing_is_wished_for(guests: GuestWard) -> None:
    vm, result = built(guests)
    assert "guest" not in result
    assert guests.asked(vm) == {}
    assert "Async.host.call_plugin" not in guests.simulator.calls()


def test_only_what_is_wished_for_is_asked(guests: GuestWard) -> None:
    vm, result = built(guests, files=FILES[:1])
    assert result["guest"]["done"] == ["file /etc/motd"]
    assert guests.asked(vm) == {"version": 1, "features": 1, "injectfile": 1}


def test_an_images_word_is_enough(guests: GuestWard) -> None:
    properties = {"xenapi_use_agent": "true", "xenapi_skip_agent_inject_files_at_boot": "true"}
    vm, result = built(guests, properties=properties, files=FILES)
    assert result["guest"]["done"] == ["network"]
    assert guests.inside(vm)["files"] == {}


def test_trouble_with_the_agent_is_a_fault_and_the_build_stands(guests: GuestWard) -> None:
    """It refuses the network, and lacks what files need."""
    picture = put_image(guests)
    instance = str(uuid4())
    fields = {"admin_password": PASSWORD, "files": FILES[:1], "agent": {"reset_network": True}, "start": "running"}
    request = {**request_for(picture.id), "instance": {"uuid": instance, "name": f"built-{instance[:8]}"}, **fields}
    refusal = '{"returncode": "1", "message": "no"}'
    start = guests.simulator.add_fault(match="Async.VM.start", effect="pause", when="before")
    handle = guests.client.submit("spawn", request)
    guests.simulator.wait_for_hit(start)
    (vm_ref,) = guests.call("VM.get_by_name_label", f"built-{instance[:8]}")
    habits = {"agent_lacks": ["injectfile"], **guests.accident("answer", "resetnetwork", answer=refusal)}
    guests.simulator.control("POST", f"guests/{guests.call('VM.get_uuid', vm_ref)}", habits)
    guests.simulator.clear_faults()
    result = guests.succeeded(handle, 60)
    assert result["power_state"] == "Running"
    assert result["guest"]["done"] == ["password"]
    assert [(fault["what"], fault["code"]) for fault in result["guest"]["faults"]] == [
        ("network", "AgentError"),
        ("file /etc/motd", "AgentNotImplemented"),
    ]


def test_a_host_without_the_plugins_fails_no_build(guests: GuestWard) -> None:
    with guests.no_plugin("vmops-agent"):
        _, result = built(guests, admin_password=PASSWORD)
    assert result["power_state"] == "Running"
    (fault,) = result["guest"]["faults"]
    assert (fault["what"], fault["code"], result["guest"]["agent_version"]) == ("agent", "PluginMissing", None)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"admin_password": PASSWORD, "agent": {"use": False}}, "admin_password cannot be served"),
        ({"files": FILES, "properties": {"xenapi_use_agent": "false"}}, "files cannot be served"),
        ({"agent": {"reset_network": True}, "start": "paused"}, "agent.reset_network cannot be served"),
    ],
)
def test_what_no_agent_would_do_is_refused_first(guests: GuestWard, fields: dict[str, Any], wrong: str) -> None:
    picture = put_image(guests, properties=fields.pop("properties", {}))
    request = {**request_for(picture.id), **fields}
    assert wrong in guests.refused(guests.client.submit("spawn", request), "RequestError")
    assert guests.simulator.calls() == {}
