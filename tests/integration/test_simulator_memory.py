"""Memory and VCPUs of VMs that run, and disks copied by their difference."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.simulator import Client, SimulatorProcess, vm_record

MIB = 1 << 20
OPTIONS = ("--boot-time", "10ms", "--guest-writes", "0")


@pytest.fixture
def vm(xen: Client) -> Iterator[str]:
    """A running VM of 128 to 256 MiB with one of four VCPUs, whose guest has reported."""
    limits = {"memory_static_max": str(256 * MIB), "memory_dynamic_max": str(256 * MIB)}
    ref: str = xen("VM.create", vm_record(**limits, memory_dynamic_min=str(128 * MIB), VCPUs_max="4"))
    xen("VM.start", ref, False, False)
    deadline = time.monotonic() + 30
    while "changing_VCPUs_live" not in xen("VM.get_allowed_operations", ref):
        assert time.monotonic() < deadline, "the guest does not report"
        time.sleep(0.01)
    yield ref
    xen("VM.hard_shutdown", ref)
    xen("VM.destroy", ref)


def metrics(xen: Client, vm: str) -> dict[str, object]:
    record: dict[str, object] = xen("VM_metrics.get_record", xen("VM.get_metrics", vm))
    return record


def free(xen: Client) -> int:
    return int(xen("host.compute_free_memory", xen("host.get_all")[0]))


def test_a_running_vm_takes_and_gives_back_memory(xen: Client, vm: str) -> None:
    before = free(xen)
    xen("VM.set_memory_dynamic_range", vm, str(192 * MIB), str(256 * MIB))
    assert before - free(xen) == 64 * MIB
    assert xen("VM.get_memory_target", vm) == metrics(xen, vm)["memory_actual"] == str(192 * MIB)
    xen("VM.set_memory_target_live", vm, str(160 * MIB))
    xen("VM.wait_memory_target_live", vm)
    record = xen("VM.get_record", vm)
    assert record["memory_dynamic_min"] == record["memory_dynamic_max"] == str(160 * MIB)
    assert before - free(xen) == 32 * MIB
    error = xen.error("VM.set_memory_target_live", vm, str(512 * MIB))
    assert error == ["MEMORY_CONSTRAINT_VIOLATION_ORDER"]
    assert xen.error("VM.set_memory_static_range", vm, str(MIB), str(512 * MIB))[0] == "VM_BAD_POWER_STATE"


def test_memory_that_the_host_lacks_is_refused_to_a_running_vm(xen: Client) -> None:
    much = str(1 << 45)
    ref = xen("VM.create", vm_record(memory_static_max=much, memory_dynamic_max=much))
    xen("VM.start", ref, False, False)
    error = xen.error("VM.set_memory_dynamic_range", ref, much, much)
    assert error == ["HOST_NOT_ENOUGH_FREE_MEMORY", str(int(much) - 256 * MIB), str(free(xen))]
    xen("VM.hard_shutdown", ref)
    xen("VM.destroy", ref)


def test_vcpus_are_plugged_live_up_to_the_most(xen: Client, vm: str) -> None:
    xen("VM.set_VCPUs_number_live", vm, "3")
    assert xen("VM.get_VCPUs_at_startup", vm) == metrics(xen, vm)["VCPUs_number"] == "3"
    assert metrics(xen, vm)["VCPUs_utilisation"] == {"0": 0.0, "1": 0.0, "2": 0.0}
    assert xen.error("VM.set_VCPUs_number_live", vm, "5")[0] == "INVALID_VALUE"
    unknown = ["NOT_IMPLEMENTED", "VM.add_to_VCPUs_params_live"]
    assert xen.error("VM.add_to_VCPUs_params_live", vm, "weight", "512") == unknown


def test_shadow_memory_counts(xen: Client, vm: str) -> None:
    before, overhead = free(xen), int(xen("VM.get_memory_overhead", vm))
    xen("VM.set_shadow_multiplier_live", vm, 2.0)
    more = int(xen("VM.get_memory_overhead", vm)) - overhead
    assert more > 0
    assert before - free(xen) == more
    assert xen("VM.compute_memory_overhead", vm) == xen("VM.get_memory_overhead", vm)
    assert xen.error("VM.set_shadow_multiplier_live", vm, 0.5) == ["INVALID_VALUE", "multiplier", "0.5"]


def test_the_most_memory_that_fits_leaves_room_for_the_overhead(xen: Client, vm: str) -> None:
    total = 1024 * MIB
    exact = int(xen("VM.maximise_memory", vm, str(total), False))
    assert exact == total - int(xen("VM.compute_memory_overhead", vm))
    assert int(xen("VM.maximise_memory", vm, str(total), True)) < exact
    assert xen("VM.maximise_memory", vm, "0", False) == "0"


def test_a_vm_with_more_vcpus_than_the_host_has_is_refused(xen: Client) -> None:
    host = xen("host.get_all")[0]
    count = xen("host.get_cpu_info", host)["cpu_count"]
    ref = xen("VM.create", vm_record(VCPUs_max="999"))
    assert xen.error("VM.start_on", ref, host, False, False) == ["HOST_NOT_ENOUGH_PCPUS", "999", count]
    xen("VM.destroy", ref)


def test_a_copy_by_difference_brings_only_what_differs(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="differs", disks=[{"size": 8 * MIB, "content": "random"}])
    vdi = xen("VDI.get_by_uuid", made["vdis"][0])
    base = xen("VDI.snapshot", vdi, {})
    into = xen("VDI.copy", base, "OpaqueRef:NULL", "OpaqueRef:NULL", "OpaqueRef:NULL")
    assert digest(simulator, xen, into) == digest(simulator, xen, base)
    xen("VM.start", made["ref"], False, False)
    simulator.control("POST", f"guests/{made['uuid']}", {"writes_per_s": 50})
    deadline = time.monotonic() + 30
    while digest(simulator, xen, vdi) == digest(simulator, xen, base):
        assert time.monotonic() < deadline, "the guest does not write"
        time.sleep(0.05)
    xen("VM.hard_shutdown", made["ref"])
    later = xen("VDI.snapshot", vdi, {})
    assert xen("VDI.copy", later, "OpaqueRef:NULL", base, into) == into
    assert digest(simulator, xen, into) == digest(simulator, xen, later)
    small = xen("VDI.create", {"SR": xen("VDI.get_SR", vdi), "virtual_size": str(2 * MIB), "type": "user",
                               "sharable": False, "read_only": False, "other_config": {}})  # fmt: skip
    error = xen.error("VDI.copy", later, "OpaqueRef:NULL", "OpaqueRef:NULL", small)
    assert error == ["VDI_TOO_SMALL", small, str(2 * MIB)]


def digest(simulator: SimulatorProcess, xen: Client, vdi: str) -> str:
    text: str = simulator.disk(xen("VDI.get_uuid", vdi))["sha256"]
    return text


def test_a_snapshot_outlives_its_vm_and_brings_it_back(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="phoenix", disks=[{"size": 4 * MIB, "content": "random"}])
    ref, expected = made["ref"], simulator.disk(made["vdis"][0])["sha256"]
    xen("VM.set_tags", ref, ["it's \\ (quoted)"])
    xen("VM.add_to_platform", ref, "key", "a 'b' \\ c)")
    snapshot = xen("VM.snapshot", ref, "ashes")
    old = xen("VM.get_record", ref)
    xen("VM.destroy", ref)
    xen("VM.revert", snapshot)
    new = xen("VM.get_by_uuid", old["uuid"])
    record = xen("VM.get_record", new)
    kept = ("name_label", "platform", "memory_static_max", "other_config", "VCPUs_max", "HVM_boot_params")
    assert {name: record[name] for name in kept} == {name: old[name] for name in kept}
    assert (record["is_a_template"], record["is_a_snapshot"], record["snapshots"]) == (False, False, [snapshot])
    assert digest(simulator, xen, xen.root_disk(new)) == expected
    assert len(record["VIFs"]) == len(old["VIFs"])
    xen("VM.start", new, False, False)
