"""spawn: the VM is made as the conventions of operations.md 5.4 and the request say."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from tests.support.rig import MIB, Rig
from tests.support.spawning import (
    Picture,
    assert_spawned,
    devices_of,
    history,
    made_by,
    put_image,
    records,
    request_for,
    spawn,
    succeeded,
    vm_of,
)

_kept: dict[str, Picture] = {}


@pytest.fixture
def picture(rig: Rig) -> Picture:
    """An image that the storage repository has after its first use."""
    key = str(rig.folder)
    if key not in _kept:
        _kept[key] = put_image(rig)
    return _kept[key]


def made(rig: Rig, picture: Picture, **fields: Any) -> dict[str, Any]:
    """Spawn a VM that stays halted; return its record."""
    return vm_of(rig, succeeded(rig, spawn(rig, picture.id, **{"start": "no", **fields})))


def test_a_linux_vm_has_the_records_of_its_flavor(rig: Rig, picture: Picture) -> None:
    request = request_for(picture.id, flavor={"memory_mb": 96, "vcpus": 2, "vcpu_weight": 10}, os_type="linux")
    handle = rig.client.spawn(pool="lab", start="no", **request)
    vm_rec = vm_of(rig, succeeded(rig, handle))
    memory = str(96 * MIB)
    assert [vm_rec[f"memory_{name}"] for name in ("static_max", "dynamic_max", "dynamic_min")] == [memory] * 3
    assert (vm_rec["VCPUs_max"], vm_rec["VCPUs_at_startup"]) == ("2", "2")
    assert vm_rec["VCPUs_params"] == {"weight": "10", "cap": "0"}
    assert (vm_rec["HVM_boot_policy"], vm_rec["HVM_boot_params"]) == ("BIOS order", {"order": "dc"})
    assert vm_rec["PV_bootloader"] == ""
    assert vm_rec["domain_type"] == "hvm"
    platform = vm_rec["platform"]
    assert platform["viridian"] == "false"
    assert (platform["nx"], platform["acpi"], platform["apic"], platform["pae"]) == ("true", "true", "true", "true")
    assert "device_id" not in platform
    ends = ("actions_after_shutdown", "actions_after_reboot", "actions_after_crash")
    assert [vm_rec[end] for end in ends] == ["destroy", "restart", "destroy"]
    uuid = request["instance"]["uuid"]
    marks = {"vmops.instance": uuid, "nova_uuid": uuid, "vmops.operation": handle.id}
    assert marks.items() <= vm_rec["other_config"].items()
    assert "vmops.role" not in vm_rec["other_config"]
    assert vm_rec["power_state"] == "Halted"


def test_a_windows_vm_sees_hyper_v_and_its_device(rig: Rig) -> None:
    picture = put_image(rig, properties={"os_type": "windows", "hw_device_id": "2"})
    vm_rec = made(rig, picture, instance={"name": f"a-long-windows-{uuid4().hex[:4]}"})
    assert vm_rec["platform"]["viridian"] == "true"
    assert vm_rec["platform"]["device_id"] == "0002"
    assert vm_rec["xenstore_data"]["vm-data/hostname"] == "a-long-windows-"


@pytest.mark.parametrize("where", ["request", "image"])
def test_a_pv_vm_boots_by_its_boot_loader(rig: Rig, picture: Picture, where: str) -> None:
    if where == "request":
        vm_rec = made(rig, picture, vm_mode="pv")
    else:
        vm_rec = made(rig, put_image(rig, properties={"vm_mode": "xen"}))
    assert (vm_rec["HVM_boot_policy"], vm_rec["PV_bootloader"], vm_rec["domain_type"]) == ("", "pygrub", "pv")
    assert vm_rec["platform"]["nx"] == "false"


@pytest.mark.parametrize(
    ("flavor", "expected"),
    [({}, {}), ({"vcpu_cap": 50}, {"cap": "50"}), ({"vcpu_weight": 5, "vcpu_cap": 50}, {"weight": "5", "cap": "50"})],
    ids=["neither", "cap", "both"],
)
def test_weight_and_cap_are_in_the_record(
    rig: Rig, picture: Picture, flavor: dict[str, int], expected: dict[str, str]
) -> None:
    assert made(rig, picture, flavor=flavor)["VCPUs_params"] == expected


def test_the_guest_finds_its_name_networks_and_metadata(rig: Rig) -> None:
    picture = put_image(rig, properties={"auto_disk_config": "True"})
    info = {"label": "public", "ips": [{"ip": "10.0.0.5", "netmask": "255.255.255.0", "enabled": "1"}]}
    networks = [{"network": "xenbr0", "mac": "00:16:3E:aa:bb:cc", "info": info}, {"network": "xenbr0"}]
    vm_rec = made(
        rig,
        picture,
        networks=networks,
        hostname="web.example",
        metadata={"a/b.c": 'say "hi"'},
        agent={"provider": "rackspace"},
    )
    data = vm_rec["xenstore_data"]
    assert json.loads(data.pop("vm-data/networking/00163EAABBCC")) == {**info, "mac": "00:16:3e:aa:bb:cc"}
    assert data == {
        "vm-data/hostname": "web.example",
        "vm-data/allowvssprovider": "false",
        "vm-data/auto-disk-config": "True",
        "vm-data/provider_data/provider": "rackspace",
        "vm-data/user-metadata/a_b_c": '"say \\"hi\\""',
    }


def test_a_host_name_is_made_of_the_vms_name(rig: Rig, picture: Picture) -> None:
    unique = uuid4().hex[:6]
    vm_rec = made(rig, picture, instance={"name": f"Übung {unique} (neu)"})
    assert vm_rec["name_label"] == f"Übung {unique} (neu)"
    assert vm_rec["xenstore_data"]["vm-data/hostname"] == f"bung-{unique}-neu"


def test_interfaces_are_made_in_their_order_with_all_that_was_asked_for(rig: Rig, picture: Picture) -> None:
    port = str(uuid4())
    (network,) = [rec for rec in records(rig, "network").values() if rec["bridge"] == "xenbr0"]
    networks = [
        {"network": network["uuid"], "mac": "00:16:3e:00:00:01", "rate_limit_kbps": 640, "port_id": port},
        {"network": network["name_label"], "locking_mode": "locked", "ipv4_allowed": ["10.0.0.5"]},
        {"network": "xenbr0"},
    ]
    handle = spawn(rig, picture.id, networks=networks)
    vm_rec = assert_spawned(rig, handle, picture)
    first, second, third = devices_of(rig, vm_rec, "VIF")
    assert [vif["device"] for vif in (first, second, third)] == ["0", "1", "2"]
    assert (first["MAC"], first["qos_algorithm_type"]) == ("00:16:3e:00:00:01", "ratelimit")
    assert first["qos_algorithm_params"] == {"kbps": "640"}
    assert first["other_config"] == {"vmops.operation": handle.id, "neutron-port-id": port}
    assert (second["locking_mode"], second["ipv4_allowed"]) == ("locked", ["10.0.0.5"])
    assert third["locking_mode"] == "network_default"
    assert len({vif["MAC"] for vif in (first, second, third)}) == 3
    assert all(int(vif["MAC"][:2], 16) & 3 == 2 for vif in (second, third)), "locally administered"


def test_a_vm_starts_on_the_host_that_was_asked_for(rig: Rig, picture: Picture) -> None:
    for host in records(rig, "host").values():
        result = succeeded(rig, spawn(rig, picture.id, host=host["uuid"]))
        assert result["host"] == host["uuid"]
    assert "Async.VM.start" not in rig.simulator.calls()


def test_a_vm_starts_elsewhere_when_that_host_cannot(rig: Rig, picture: Picture) -> None:
    (host, *_) = records(rig, "host").values()
    error = ["HOST_NOT_ENOUGH_FREE_MEMORY", "100", "10"]
    rig.simulator.add_fault(match="Async.VM.start_on", effect="failure", error=error)
    handle = spawn(rig, picture.id, host=host["uuid"])
    assert_spawned(rig, handle, picture)
    assert any("any other may" in text for text in history(rig, handle))


def test_a_disabled_host_is_passed_over(rig: Rig, picture: Picture) -> None:
    (ref, host), *_ = records(rig, "host").items()
    with rig.simulator.session() as call:
        call("host.disable", ref)
        try:
            result = succeeded(rig, spawn(rig, picture.id, host=host["uuid"]))
        finally:
            call("host.enable", ref)
    assert result["host"] != host["uuid"]
    assert "Async.VM.start_on" not in rig.simulator.calls()


@pytest.mark.parametrize(("start", "state"), [("running", "Running"), ("paused", "Paused"), ("no", "Halted")])
def test_a_vm_is_left_in_the_state_that_was_asked_for(rig: Rig, picture: Picture, start: str, state: str) -> None:
    handle = spawn(rig, picture.id, start=start)
    assert_spawned(rig, handle, picture, state=state)
    assert (succeeded(rig, handle)["host"] is None) == (start == "no")


def test_a_rescue_vm_stands_beside_the_instances_own(rig: Rig, picture: Picture) -> None:
    request = request_for(picture.id, networks=[{"network": "xenbr0"}])
    own = assert_spawned(rig, rig.client.spawn(pool="lab", **request), picture)
    handle = rig.client.spawn_rescue(pool="lab", **request)
    rescue = assert_spawned(rig, handle, picture)
    name = request["instance"]["name"]
    assert rescue["name_label"] == f"{name}-rescue"
    assert rescue["other_config"]["vmops.role"] == "rescue"
    assert rescue["other_config"]["vmops.instance"] == request["instance"]["uuid"]
    assert rescue["xenstore_data"]["vm-data/hostname"] == f"RESCUE-{name}"
    (its,), (own_vif,) = devices_of(rig, rescue, "VIF"), devices_of(rig, own, "VIF")
    assert its["MAC"] == own_vif["MAC"], "the network's rules for the instance hold for it"
    assert len(made_by(handle, records(rig, "VDI"))) == 1


def test_the_cached_image_says_what_it_is(rig: Rig) -> None:
    picture = put_image(rig)
    handle = spawn(rig, picture.id)
    assert_spawned(rig, handle, picture)
    (image,) = [rec for rec in records(rig, "VDI").values() if rec["name_label"] == f"vmops image {picture.id}"]
    other_config = image["other_config"]
    assert other_config["vmops.role"] == "image"
    assert other_config["vmops.image"] == picture.id
    assert other_config["vmops.cached-as"] == image["uuid"]
    assert other_config["vmops.cached-at"].isdecimal()
    assert len(other_config["vmops.image-checksum"]) == 128
    assert "vmops.instance" not in other_config
