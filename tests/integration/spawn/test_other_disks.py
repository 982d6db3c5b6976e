"""spawn: the disks beside the root are there, at their places, with a content that other programs can read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.iso import files_of, label_of
from tests.support.rig import MIB, Rig
from tests.support.spawning import (
    GIB,
    assert_nothing_of,
    devices_of,
    disk_file,
    put_image,
    records,
    refused,
    remove,
    request_for,
    spawn,
    succeeded,
    vm_of,
)
from tests.support.tools import run_tool
from worker.client import Handle
from worker.operations.states import State

LOOKS = {"event.from", "task.get_record"}
PARTITION_AT = MIB


def disks_of(rig: Rig, vm_rec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the VM's disks: position -> VBD with its disk's record as `disk`."""
    vdis = records(rig, "VDI")
    return {vbd["userdevice"]: {**vbd, "disk": vdis[vbd["VDI"]]} for vbd in devices_of(rig, vm_rec)}


def drive_of(rig: Rig, handle: Handle, folder: Path) -> tuple[str, dict[str, bytes]]:
    """Return label and files of the config drive that a spawn has made, which is then removed."""
    disk = disks_of(rig, vm_of(rig, succeeded(rig, handle)))["3"]["disk"]
    image = disk_file(rig, disk["uuid"], folder).read_bytes()
    remove(rig, handle)
    return label_of(image), files_of(image)


def test_a_spawn_with_everything_has_each_disk_at_its_place_for_a_stated_number_of_calls(
    rig: Rig, tmp_path: Path
) -> None:
    picture = put_image(rig)
    succeeded(rig, spawn(rig, picture.id))
    rig.simulator.reset_stats()
    flavor = {"root_gb": 1, "swap_mb": 64, "ephemeral_gb": 3}
    handle = spawn(rig, picture.id, flavor=flavor, config_drive={}, networks=[{"network": "xenbr0"}])
    result = succeeded(rig, handle)
    calls = Counter({name: count for name, count in rig.simulator.calls().items() if name not in LOOKS})
    # Over a spawn without them (14): for each of three disks create, task, import, its end, mark, VBD; and a VIF.
    assert calls.total() == 14 + 3 * 6 + 1, calls
    disks = disks_of(rig, vm_of(rig, result))
    name = result["name"]
    expected = {
        "0": (name, "root", GIB, "RW", True),
        "2": (f"{name}-swap", "swap", 64 * MIB, "RW", False),
        "3": ("config-2", "configdrive", None, "RO", False),
        "4": (f"{name}-ephemeral (1)", "ephemeral", 3 * GIB, "RW", False),
    }
    assert disks.keys() == expected.keys()
    for place, (label, role, size, mode, bootable) in expected.items():
        vbd, disk = disks[place], disks[place]["disk"]
        assert (disk["name_label"], disk["other_config"]["vmops.role"]) == (label, role)
        assert disk["other_config"]["vmops.disk"] == vbd["VDI"]
        assert disk["other_config"]["vmops.operation"] == handle.id
        assert size is None or int(disk["virtual_size"]) == size
        assert (vbd["mode"], vbd["bootable"], vbd["type"]) == (mode, bootable, "Disk")
    assert {one["role"]: one["vdi_uuid"] for one in result["disks"]} == {
        role: disks[place]["disk"]["uuid"] for place, (_, role, *_) in expected.items()
    }
    with rig.simulator.session() as call:
        call("VM.hard_shutdown", call.find_vm(name))  # XAPI does not export what a guest writes to
    assert_swap(disk_file(rig, disks["2"]["disk"]["uuid"], tmp_path))
    assert_ext4(disk_file(rig, disks["4"]["disk"]["uuid"], tmp_path))
    remove(rig, handle)


def assert_swap(path: Path) -> None:
    """The disk has one partition with swap space, as blkid and the format's facts say."""
    with path.open("rb") as file:
        table = file.read(512)
        file.seek(PARTITION_AT)
        page = file.read(4096)
    assert (table[510:], table[450]) == (b"\x55\xaa", 0x82)
    assert page[-10:] == b"SWAPSPACE2"
    assert int.from_bytes(page[1028:1032], "little") == (path.stat().st_size - PARTITION_AT) // 4096 - 1
    assert 'TYPE="swap"' in run_tool("blkid", "-p", "-O", str(PARTITION_AT), str(path))
    assert 'PTTYPE="dos"' in run_tool("blkid", "-p", str(path))


def assert_ext4(path: Path) -> None:
    """The disk has one partition with an ext4 file system, which e2fsck finds whole."""
    with path.open("rb") as file:
        assert file.read(512)[450] == 0x83
    found = run_tool("blkid", "-p", "-O", str(PARTITION_AT), str(path))
    assert 'TYPE="ext4"' in found
    assert 'LABEL="ephemeral0"' in found
    assert "ephemeral0" in run_tool("e2fsck", "-fn", f"{path}?offset={PARTITION_AT}")


def test_a_config_drive_carries_what_the_guest_needs(rig: Rig, tmp_path: Path) -> None:
    picture = put_image(rig)
    info = {"ips": [{"ip": "10.0.0.5", "netmask": "255.255.255.0"}], "gateway": "10.0.0.1", "dns": ["10.0.0.2"]}
    request = request_for(
        picture.id,
        hostname="web.example",
        metadata={"tier": "front"},
        networks=[{"network": "xenbr0", "mac": "00:16:3e:00:00:09", "info": info}],
        config_drive={"user_data": "#!/bin/sh\necho 'grün'\n", "ssh_keys": ["ssh-ed25519 AAAA me"]},
    )
    label, files = drive_of(rig, rig.client.spawn(pool="lab", start="no", **request), tmp_path)
    assert label == "config-2"
    meta = json.loads(files["openstack/latest/meta_data.json"])
    assert meta["uuid"] == request["instance"]["uuid"]
    assert (meta["name"], meta["hostname"]) == (request["instance"]["name"], "web.example")
    assert meta["meta"] == {"tier": "front"}
    assert list(meta["public_keys"].values()) == ["ssh-ed25519 AAAA me"]
    assert "admin_pass" not in meta
    assert files["openstack/latest/user_data"].decode() == "#!/bin/sh\necho 'grün'\n"
    network = json.loads(files["openstack/latest/network_data.json"])
    assert network["links"][0]["ethernet_mac_address"] == "00:16:3e:00:00:09"
    assert network["networks"][0]["ip_address"] == "10.0.0.5"
    assert network["services"] == [{"type": "dns", "address": "10.0.0.2"}]


def test_a_nocloud_drive_carries_the_same_in_cloud_inits_own_form(rig: Rig, tmp_path: Path) -> None:
    picture = put_image(rig)
    drive = {"form": "nocloud", "user_data": "#cloud-config\n{}\n", "ssh_keys": ["ssh-ed25519 AAAA me"]}
    request = request_for(picture.id, networks=[{"network": "xenbr0"}], config_drive=drive)
    label, files = drive_of(rig, rig.client.spawn(pool="lab", start="no", **request), tmp_path)
    assert label == "cidata"
    assert files.keys() == {"meta-data", "user-data", "network-config"}
    meta = json.loads(files["meta-data"])
    assert meta["instance-id"] == request["instance"]["uuid"]
    assert meta["local-hostname"] == request["instance"]["name"]
    assert meta["public-keys"] == ["ssh-ed25519 AAAA me"]
    network = json.loads(files["network-config"])
    assert network["config"][0]["subnets"] == [{"type": "dhcp4"}]
    assert files["user-data"] == b"#cloud-config\n{}\n"


@pytest.mark.parametrize(
    ("form", "name", "written"),
    [
        ("configdrive", "openstack/latest/meta_data.json", '"admin_pass": "s3cret!"'),
        ("nocloud", "vendor-data", '"password": "s3cret!"'),
    ],
)
def test_the_password_is_on_the_drive_and_nowhere_else(
    rig: Rig, tmp_path: Path, form: str, name: str, written: str
) -> None:
    picture = put_image(rig)
    drive = {"form": form, "admin_password": True}
    handle = spawn(rig, picture.id, start="no", config_drive=drive, admin_password="s3cret!")
    _, files = drive_of(rig, handle, tmp_path)
    assert written in files[name].decode()
    journal = rig.client.journal.redis
    kept = [journal.dump(key) for key in journal.scan_iter(f"*{handle.id}*")]
    assert kept
    assert not any(b"s3cret!" in value for value in kept if value)
    assert "s3cret!" not in rig.deployment.log()


def test_a_windows_guest_gets_a_blank_ephemeral_disk(rig: Rig) -> None:
    picture = put_image(rig, properties={"os_type": "windows"})
    handle = spawn(rig, picture.id, flavor={"ephemeral_gb": 1}, start="no")
    disk = disks_of(rig, vm_of(rig, succeeded(rig, handle)))["4"]["disk"]
    assert int(disk["virtual_size"]) == GIB
    assert rig.simulator.calls()["PUT /import_raw_vdi"] == 1, "the image's only"
    remove(rig, handle)


def test_a_rescue_vm_gets_a_config_drive_but_no_disks_of_its_own(rig: Rig) -> None:
    picture = put_image(rig)
    request = request_for(picture.id, flavor={"swap_mb": 64, "ephemeral_gb": 1}, config_drive={})
    handle = rig.client.spawn_rescue(pool="lab", **request)
    result = succeeded(rig, handle)
    assert {one["role"]: one["userdevice"] for one in result["disks"]} == {"root": "0", "configdrive": "3"}
    remove(rig, handle)


def test_a_spawn_that_fails_late_leaves_none_of_its_disks(rig: Rig) -> None:
    picture = put_image(rig)
    rig.simulator.add_fault(match="Async.VM.start", effect="failure", error=["PERMISSION_DENIED", "not today"])
    wishes = {"flavor": {"swap_mb": 2, "ephemeral_gb": 1}, "config_drive": {}}
    handle = spawn(rig, picture.id, **wishes)
    refused(rig, handle, "PERMISSION_DENIED", State.UNDONE)
    assert_nothing_of(rig, handle)


def test_the_clone_that_somebody_made_of_a_config_drive_survives(rig: Rig) -> None:
    """Config drives all bear one name, and a clone bears its disk's marks."""
    picture = put_image(rig)
    rig.simulator.add_fault(match="Async.VM.start", effect="failure", error=["PERMISSION_DENIED", "not today"])
    fault = rig.simulator.add_fault(match="VM.create", effect="pause", nth=1)
    handle = spawn(rig, picture.id, config_drive={})
    rig.simulator.wait_for_hit(fault)
    with rig.simulator.session() as call:
        (drive_ref,) = [ref for ref, rec in records(rig, "VDI").items() if is_drive_of(handle, rec)]
        clone_ref = call("VDI.clone", drive_ref, {})
        rig.simulator.clear_faults(fault)
        refused(rig, handle, "PERMISSION_DENIED", State.UNDONE)
        assert [ref for ref in (drive_ref, clone_ref) if ref in call("VDI.get_all")] == [clone_ref]
        call("VDI.destroy", clone_ref)
    assert_nothing_of(rig, handle)


def is_drive_of(handle: Handle, vdi_rec: dict[str, Any]) -> bool:
    """Tell whether a disk is the operation's config drive."""
    marks = vdi_rec["other_config"]
    return marks.get("vmops.operation") == handle.id and marks.get("vmops.role") == "configdrive"
