"""Disks of the simulator: real VHD chains behind XenAPI's records, the collector, locks, devices."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from typing import Any

import pytest

from tests.support.simulator import Client, ControlRefused, SimulatorProcess, XenFailure, vm_record
from tests.support.worker import eventually

NULL = "OpaqueRef:NULL"
MIB = 1 << 20
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")
OPTIONS = ("--guest-writes", "0", "--boot-time", "10ms", "--quiet-period", "3600")


def vdi_record(xen: Client, **fields: Any) -> dict[str, Any]:
    return {
        "name_label": "disk",
        "name_description": "",
        "SR": xen("SR.get_all")[0],
        "virtual_size": str(4 * MIB),
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
        **fields,
    }


def vbd_record(vm_ref: str, vdi_ref: str, **fields: Any) -> dict[str, Any]:
    return {
        "VM": vm_ref,
        "VDI": vdi_ref,
        "userdevice": "autodetect",
        "bootable": False,
        "mode": "RW",
        "type": "Disk",
        "empty": False,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
        **fields,
    }


def write(simulator: SimulatorProcess, xen: Client, vdi_ref: str, data: bytes) -> None:
    """Replace a detached disk's first bytes."""
    connection = simulator.connect()
    connection.request("PUT", f"/import_raw_vdi?session_id={xen.ref}&vdi={vdi_ref}&format=raw", data)
    assert connection.getresponse().status == 200
    connection.close()
    eventually(lambda: not any(xen("VDI.get_VBDs", vdi_ref)) or not simulator.leaks().get("transfers"))


def parent(xen: Client, vdi_ref: str) -> str | None:
    found: str | None = xen("VDI.get_sm_config", vdi_ref).get("vhd-parent")
    return found


def test_a_new_disk_is_rounded_up_and_lies_in_a_file(simulator: SimulatorProcess, xen: Client) -> None:
    vdi_ref = xen("VDI.create", vdi_record(xen, virtual_size=str(3 * MIB + 1), other_config={"k": "v"}))
    record = xen("VDI.get_record", vdi_ref)
    assert record["virtual_size"] == str(4 * MIB)
    assert record["location"] == record["uuid"]
    assert UUID.match(record["uuid"])
    assert record["other_config"] == {"k": "v"}
    assert (record["managed"], record["read_only"], record["snapshot_of"]) == (True, False, NULL)
    assert set(record["allowed_operations"]) == {
        "generate_config",
        "forget",
        "destroy",
        "snapshot",
        "resize",
        "copy",
        "clone",
    }
    (storage,) = simulator.control("GET", "storage").values()
    info = subprocess.run(
        ["qemu-img", "info", "-f", "vpc", f"{storage['path']}/{record['uuid']}.vhd"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "virtual size: 4 MiB" in info.stdout


@pytest.mark.parametrize(("size", "code"), [(str(3 << 40), "SR_BACKEND_FAILURE_79"), ("-1", "SR_BACKEND_FAILURE_79")])
def test_an_impossible_size_is_a_failure_of_the_backend(xen: Client, size: str, code: str) -> None:
    error = xen.error("VDI.create", vdi_record(xen, virtual_size=size))
    assert error[0] == code
    assert error[1] == error[3] == ""


def test_a_snapshot_copies_the_record_field_by_field(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="origin", disks=[{"size": 4 * MIB, "content": "random"}], running=True)
    leaf_ref = xen.root_disk(made["ref"])
    xen("VDI.add_to_other_config", leaf_ref, "mine", "yes")
    xen("VDI.add_tags", leaf_ref, "tag")
    before = xen("VDI.get_record", leaf_ref)
    task = xen.wait(xen("Async.VDI.snapshot", leaf_ref, {}))
    assert task["status"] == "success"
    snapshot_ref = re.fullmatch(r"<value>(.*)</value>", task["result"])
    assert snapshot_ref
    snapshot = xen("VDI.get_record", snapshot_ref[1])
    after = xen("VDI.get_record", leaf_ref)
    base_uuid = snapshot["sm_config"]["vhd-parent"]
    changed = {name for name in before if before[name] != snapshot[name]}
    assert changed == {
        "uuid", "location", "VBDs", "allowed_operations", "is_a_snapshot", "snapshot_of", "snapshot_time", "tags",
        "metadata_of_pool", "physical_utilisation", "sm_config",
    }  # fmt: skip
    assert snapshot["is_a_snapshot"]
    assert snapshot["snapshot_of"] == leaf_ref
    assert snapshot["tags"] == []
    assert snapshot["snapshot_time"] != "19700101T00:00:00Z"
    assert snapshot["metadata_of_pool"] == NULL
    assert after["sm_config"]["vhd-parent"] == base_uuid
    assert any(key.startswith("host_OpaqueRef:") and value == "RW" for key, value in after["sm_config"].items())
    assert after["snapshots"] == [snapshot_ref[1]]
    base = xen("VDI.get_record", xen("VDI.get_by_uuid", base_uuid))
    assert (base["name_label"], base["managed"], base["read_only"]) == ("base copy", False, True)
    assert base["VBDs"] == []
    disk = simulator.disk(snapshot["uuid"])
    assert disk["sha256"] == disk["sha256_at_snapshot"]
    assert disk["chain"] == [snapshot["uuid"], base_uuid]


def test_a_leaf_that_was_not_written_shares_its_parent_with_the_next_snapshot(
    simulator: SimulatorProcess, xen: Client
) -> None:
    made = simulator.add_vm(name="idle", disks=[{"size": 4 * MIB, "content": "random"}])
    leaf_ref = xen.root_disk(made["ref"])
    first, second = (xen("VDI.snapshot", leaf_ref, {}) for _ in range(2))
    assert parent(xen, first) == parent(xen, second) == parent(xen, leaf_ref)


def test_the_collector_waits_and_merges_down_as_far_as_it_can(simulator: SimulatorProcess, xen: Client) -> None:
    sr_ref = xen("SR.get_all")[0]
    vdi_ref = xen("VDI.create", vdi_record(xen))
    simulator.control("POST", "storage", {"coalesce_now": True, "wait_s": 10})
    snapshots = []
    for number in range(2):
        write(simulator, xen, vdi_ref, bytes([number + 1]) * 4096)
        snapshots.append(xen("VDI.snapshot", vdi_ref, {}))
    lower, upper = (parent(xen, one) for one in snapshots)
    assert parent(xen, vdi_ref) == upper != lower
    write(simulator, xen, vdi_ref, b"3" * 4096)
    digest = simulator.disk(xen("VDI.get_uuid", vdi_ref))["sha256"]
    token = xen("event.inject", "SR", sr_ref)
    for snapshot in snapshots:
        xen("VDI.destroy", snapshot)
    (task_ref,) = [ref for ref in xen("task.get_by_name_label", "Garbage Collection") if pending(xen, ref)]
    task = xen("task.get_record", task_ref)
    assert task["name_description"] == f"Garbage collection for SR {xen('SR.get_uuid', sr_ref)}"
    assert task["other_config"] == {"applies_to": sr_ref}
    assert task["allowed_operations"] == []
    for _ in range(3):
        xen("SR.scan", sr_ref)
    running = [ref for ref in xen("task.get_by_name_label", "Garbage Collection") if pending(xen, ref)]
    assert running == [task_ref]
    assert parent(xen, vdi_ref) == upper
    gone = [xen("VDI.get_by_uuid", uuid) for uuid in (lower, upper)]
    simulator.control("POST", "clock", {"advance": 3601})
    assert xen.wait(task_ref)["status"] == "success"
    assert parent(xen, vdi_ref) is None
    events = xen("event.from", ["vdi"], token, 0.0)["events"]
    assert set(gone) <= {event["ref"] for event in events if event["operation"] == "del"}
    assert simulator.disk(xen("VDI.get_uuid", vdi_ref))["sha256"] == digest


def pending(xen: Client, task_ref: str) -> bool:
    return bool(xen("task.get_status", task_ref) == "pending")


def test_a_snapshot_does_not_wake_the_collector(simulator: SimulatorProcess, xen: Client) -> None:
    simulator.control("POST", "storage", {"coalesce_now": True, "wait_s": 10})
    runs = [storage["runs"] for storage in simulator.control("GET", "storage").values()]
    vdi_ref = xen("VDI.create", vdi_record(xen))
    write(simulator, xen, vdi_ref, b"1" * 4096)
    xen("VDI.snapshot", vdi_ref, {})
    xen("VDI.clone", vdi_ref, {})
    assert [storage["runs"] for storage in simulator.control("GET", "storage").values()] == runs


def test_a_collector_that_is_switched_off_does_nothing(simulator: SimulatorProcess, xen: Client) -> None:
    simulator.control("POST", "storage", {"coalesce_now": True, "wait_s": 10})
    sr_ref = xen("SR.get_all")[0]
    xen("SR.add_to_other_config", sr_ref, "gc", "false")
    try:
        xen("VDI.destroy", xen("VDI.create", vdi_record(xen)))
        xen("SR.scan", sr_ref)
        assert not [ref for ref in xen("task.get_by_name_label", "Garbage Collection") if pending(xen, ref)]
    finally:
        xen("SR.remove_from_other_config", sr_ref, "gc")
    xen("SR.scan", sr_ref)
    assert [ref for ref in xen("task.get_by_name_label", "Garbage Collection") if pending(xen, ref)]


def test_a_chain_has_a_limit(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="long", disks=[{"size": 4 * MIB, "chain_depth": 30}])
    vdi_ref = xen.root_disk(made["ref"])
    assert simulator.disk(made["vdis"][0])["depth"] == 30
    error = xen.error("VDI.snapshot", vdi_ref, {})
    assert error[:2] == ["SR_BACKEND_FAILURE_109", ""]
    task = xen.wait(xen("Async.VDI.snapshot", vdi_ref, {}))
    assert task["error_info"][0] == "SR_BACKEND_FAILURE_109"


def test_operations_on_one_repository_wait_for_each_other_inside_the_pool(
    simulator: SimulatorProcess, xen: Client
) -> None:
    disks = [xen("VDI.create", vdi_record(xen)) for _ in range(4)]
    most: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        with simulator.session() as client:
            while not stop.is_set():
                most.append(len(client("SR.get_current_operations", client("SR.get_all")[0])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    tasks = [xen("Async.VDI.snapshot", disk, {}) for disk in disks for _ in range(3)]
    assert [xen.wait(task)["status"] for task in tasks] == ["success"] * 12
    stop.set()
    watcher.join()
    assert max(most) <= 1


def test_a_call_may_wait_seconds_inside_the_pool_and_still_succeed(simulator: SimulatorProcess, xen: Client) -> None:
    simulator.control("POST", "storage", {"lock_retry_s": [0.4, 0.5], "lock_wakes_early": False})
    try:
        made = simulator.add_vm(name="busy", disks=[{"size": 64 * MIB, "content": "random"}])
        vdi_ref = xen.root_disk(made["ref"])
        eventually(lambda: some_wait(xen, vdi_ref))
    finally:
        simulator.control("POST", "storage", {"lock_retry_s": [1, 20], "lock_wakes_early": True})


def some_wait(xen: Client, vdi_ref: str) -> bool:
    """Take snapshots at once, which all succeed; False when each had ended before the next one came."""
    begun = time.monotonic()
    tasks = [xen("Async.VDI.snapshot", vdi_ref, {}) for _ in range(3)]
    assert [xen.wait(task)["status"] for task in tasks] == ["success"] * 3
    return time.monotonic() - begun > 0.4


def test_a_disk_in_use_is_neither_destroyed_nor_resized(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="user", disks=[{"size": 4 * MIB}], running=True)
    vdi_ref = xen.root_disk(made["ref"])
    assert xen.error("VDI.destroy", vdi_ref) == ["VDI_IN_USE", vdi_ref, "destroy"]
    assert xen.error("VDI.resize", vdi_ref, str(8 * MIB)) == ["VDI_IN_USE", vdi_ref, "resize"]
    assert set(xen("VDI.get_allowed_operations", vdi_ref)) == {"snapshot", "clone"}
    xen("VM.hard_shutdown", made["ref"])
    assert not any(key.startswith("host_") for key in xen("VDI.get_sm_config", vdi_ref))
    xen("VDI.resize", vdi_ref, str(8 * MIB))
    assert xen("VDI.get_virtual_size", vdi_ref) == str(8 * MIB)
    assert xen.error("VDI.resize", vdi_ref, str(4 * MIB))[0] == "SR_BACKEND_FAILURE_79"
    vbd_refs = xen("VDI.get_VBDs", vdi_ref)
    xen("VDI.destroy", vdi_ref)
    assert xen("VM.get_VBDs", made["ref"]) == []
    assert xen.error("VBD.get_uuid", vbd_refs[0])[0] == "HANDLE_INVALID"


def test_a_base_copy_is_not_for_use(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="based", disks=[{"size": 4 * MIB, "content": "random"}])
    vdi_ref = xen.root_disk(made["ref"])
    xen("VDI.snapshot", vdi_ref, {})
    base_ref = xen("VDI.get_by_uuid", parent(xen, vdi_ref))
    for method in ("VDI.destroy", "VDI.snapshot"):
        assert xen.error(method, base_ref, *([{}] if method == "VDI.snapshot" else [])) == ["VDI_NOT_MANAGED", base_ref]


def test_a_copy_has_the_content_and_its_own_chain(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="copied", disks=[{"size": 4 * MIB, "content": "random", "chain_depth": 3}])
    copy_ref = xen("VDI.copy", xen.root_disk(made["ref"]), xen("SR.get_all")[0])
    copy_uuid = xen("VDI.get_uuid", copy_ref)
    assert simulator.disk(copy_uuid)["sha256"] == simulator.disk(made["vdis"][0])["sha256"]
    assert simulator.disk(copy_uuid)["chain"] == [copy_uuid]
    small = xen("VDI.create", vdi_record(xen, virtual_size=str(2 * MIB)))
    error = xen.error("VDI.copy", copy_ref, NULL, NULL, small)
    assert error == ["VDI_TOO_SMALL", small, str(2 * MIB)]


def test_a_full_repository_says_so(xen: Client) -> None:
    with SimulatorProcess("--sr-capacity", "8M", "--guest-writes", "0") as small, small.session() as client:
        made = small.add_vm(name="vm", disks=[{"size": 4 * MIB, "content": "random"}])
        vdi_ref = client.root_disk(made["ref"])
        error = client.error("VDI.copy", vdi_ref, NULL)
        assert error[0] == "SR_BACKEND_FAILURE_44"
        assert len(client("VDI.get_all_records")) == 1


def test_a_scan_finds_files_without_record_and_drops_records_without_file(
    simulator: SimulatorProcess, xen: Client
) -> None:
    sr_ref = xen("SR.get_all")[0]
    vdi_ref = xen("VDI.create", vdi_record(xen, name_label="forgotten"))
    uuid = xen("VDI.get_uuid", vdi_ref)
    xen("VDI.forget", vdi_ref)
    assert xen.error("VDI.get_by_uuid", uuid) == ["UUID_INVALID", "VDI", uuid]
    xen("SR.scan", sr_ref)
    found = xen("VDI.get_record", xen("VDI.get_by_uuid", uuid))
    assert (found["name_label"], found["managed"]) == ("", True)
    (lost,) = [one for one in simulator.leaks()["vdis"] if one["uuid"] == uuid]
    assert lost["found_by_scan"]


@pytest.mark.slow
def test_records_and_files_agree_after_a_storm_of_snapshots_and_merges() -> None:
    options = ("--vms", "2", "--guest-writes", "200", "--quiet-period", "0")
    with SimulatorProcess(*options) as storm, storm.session() as watcher:
        sr_ref = watcher("SR.get_all")[0]
        problems: list[object] = []

        def work(name: str) -> None:
            try:
                with storm.session() as client:
                    vdi = client.root_disk(client.find_vm(name))
                    for _ in range(12):
                        snapshot = client("VDI.snapshot", vdi, {})
                        disk = storm.disk(client("VDI.get_uuid", snapshot))
                        assert disk["sha256"] == disk["sha256_at_snapshot"]
                        client("SR.scan", sr_ref)
                        client("VDI.destroy", snapshot)
            except (XenFailure, OSError, AssertionError, ControlRefused) as problem:
                problems.append(problem)

        threads = [threading.Thread(target=work, args=(name,)) for name in ("demo-01", "demo-02")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert problems == []
        for _ in range(3):
            storm.coalesce()
        records = watcher("VDI.get_all_records")
        assert len(records) == 2
        for record in records.values():
            assert "vhd-parent" not in record["sm_config"]
            assert storm.disk(record["uuid"])["depth"] == 1
        assert storm.leaks() == {}


def test_positions_are_free_taken_or_no_positions(xen: Client) -> None:
    vm_ref = xen("VM.create", vm_record())
    vdi_ref = xen("VDI.create", vdi_record(xen))
    assert xen("VM.get_allowed_VBD_devices", vm_ref) == [str(number) for number in range(255)]
    first = xen("VBD.create", vbd_record(vm_ref, vdi_ref, userdevice="0"))
    assert xen.error("VBD.create", vbd_record(vm_ref, vdi_ref, userdevice="0")) == ["DEVICE_ALREADY_EXISTS", "0"]
    assert xen.error("VBD.create", vbd_record(vm_ref, vdi_ref, userdevice="xvda")) == ["DEVICE_ALREADY_EXISTS", "xvda"]
    assert xen.error("VBD.create", vbd_record(vm_ref, vdi_ref, userdevice="zz")) == ["INVALID_DEVICE", "zz"]
    xen("VBD.create", vbd_record(vm_ref, vdi_ref, userdevice="99999"))
    drive = vbd_record(vm_ref, NULL, type="CD", mode="RO", empty=True)
    record = xen("VBD.get_record", xen("VBD.create", drive))
    assert (record["userdevice"], record["empty"], record["VDI"]) == ("1", True, NULL)
    assert set(record["allowed_operations"]) == {"attach", "insert"}
    assert xen.error("VBD.create", drive | {"mode": "RW"}) == ["VBD_CDS_MUST_BE_READONLY"]
    assert xen("VBD.get_device", first) == ""


def test_a_second_writer_of_a_disk_is_refused_at_the_start(xen: Client) -> None:
    vm_ref = xen("VM.create", vm_record())
    vdi_ref = xen("VDI.create", vdi_record(xen))
    for _ in range(2):
        xen("VBD.create", vbd_record(vm_ref, vdi_ref))
    assert xen.error("VM.start", vm_ref, False, False) == ["VDI_IN_USE", vdi_ref]
    assert xen("VM.get_power_state", vm_ref) == "Halted"


def test_disks_come_and_go_on_a_running_vm_with_drivers_only(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="hot", disks=[{"size": 4 * MIB}], running=True)
    vbd_ref = xen("VBD.create", vbd_record(made["ref"], xen("VDI.create", vdi_record(xen))))
    vm_uuid = xen("VM.get_record", made["ref"])["uuid"]
    assert xen.error("VBD.unplug", vbd_ref) == ["DEVICE_ALREADY_DETACHED", vbd_ref]
    xen("VBD.plug", vbd_ref)
    assert xen.error("VBD.plug", vbd_ref) == ["DEVICE_ALREADY_ATTACHED", vbd_ref]
    assert xen("VBD.get_device", vbd_ref) == "xvdb"
    uuid = xen("VBD.get_uuid", vbd_ref)
    text = f"VBD '{uuid}' still attached to '{vm_uuid}'"
    assert xen.error("VBD.destroy", vbd_ref) == ["OPERATION_NOT_ALLOWED", text]
    simulator.control("POST", f"guests/{vm_uuid}", {"agent": False})
    assert xen.error("VBD.unplug", vbd_ref) == ["VM_MISSING_PV_DRIVERS", made["ref"]]
    simulator.control("POST", f"guests/{vm_uuid}", {"agent": True})
    xen("VBD.unplug", vbd_ref)
    xen("VBD.destroy", vbd_ref)
    xen("VM.hard_shutdown", made["ref"])
    root = xen("VM.get_VBDs", made["ref"])[0]
    assert xen.error("VBD.plug", root) == ["VM_BAD_POWER_STATE", made["ref"], "running", "halted"]


def test_interfaces_get_an_address_or_a_refusal(xen: Client) -> None:
    vm_ref, network = xen("VM.create", vm_record()), xen("network.get_all")[0]
    record = {
        "device": "0", "network": network, "VM": vm_ref, "MAC": "", "MTU": "1500", "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {},
    }  # fmt: skip
    vif = xen("VIF.get_record", xen("VIF.create", record))
    assert vif["MAC_autogenerated"]
    assert re.fullmatch(r"[0-9a-f][26ae](:[0-9a-f]{2}){5}", vif["MAC"])
    assert xen.error("VIF.create", record) == ["DEVICE_ALREADY_EXISTS", "0"]
    assert xen.error("VIF.create", record | {"device": "1", "MAC": "zz"}) == ["MAC_INVALID", "zz"]
    assert xen.error("network.destroy", network)[0] in ("NETWORK_CONTAINS_VIF", "NETWORK_CONTAINS_PIF")


def test_a_thousand_disks_in_one_repository_are_made_and_listed_quickly(
    simulator: SimulatorProcess, xen: Client
) -> None:
    begun_s = simulator.cpu_s()
    simulator.control("POST", "vdis", {"count": 1000})
    sr_ref = xen("SR.get_all")[0]
    records = xen("VDI.get_all_records_where", f'field "SR" = "{sr_ref}"')
    assert len(records) >= 1000
    assert simulator.cpu_s() - begun_s < 20, "by the processor's time, whatever else the machine does"
