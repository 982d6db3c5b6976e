"""VMs of the simulator: the power-state table seen on a real XAPI 23.14, guests, copies of VMs."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulator import Client, SimulatorProcess, XenFailure, vm_record
from tests.support.worker import eventually

NULL = "OpaqueRef:NULL"
KINDS = ("template", "snapshot", "halted", "running", "running+agent", "paused", "suspended")
STATES = {"template": "halted", "snapshot": "halted", "running+agent": "running"}

#: operation: (states that VM_BAD_POWER_STATE names, outcome for each kind). Outcomes: `-` VM_BAD_POWER_STATE, `T`
#: VM_IS_TEMPLATE, `S` VM_IS_SNAPSHOT, `L` VM_LACKS_FEATURE, `D` DOMAIN_EXISTS, `R` VM_REVERT_FAILED, `P` no template,
#: `F` a function that the plugin lacks,
#: anything else is the power state afterwards (observed/vm-operation-matrix.json).
TABLE = {
    "start": ("halted", "T S Running - - - -"),
    "start_on": ("halted", "T S Running - - - -"),
    "pause": ("running", "- - - Paused Paused - -"),
    "unpause": ("paused", "- - - - - Running -"),
    "clean_reboot": ("running", "- - - L Running - -"),
    "hard_reboot": ("paused, running", "- - - Running Running Running -"),
    "suspend": ("running", "- - - L Suspended - -"),
    "resume": ("suspended", "- - - - - - Running"),
    "resume_on": ("suspended", "- - - - - - Running"),
    "clean_shutdown": ("running", "- - - L Halted - -"),
    "shutdown": ("paused, suspended, running", "- - - Halted Halted Halted Halted"),
    "hard_shutdown": ("paused, suspended, running", "- - - Halted Halted Halted Halted"),
    "power_state_reset": ("", "Halted Halted Halted D D Halted Halted"),
    "snapshot": ("", "T S Halted Running Running Paused Suspended"),
    "checkpoint": ("paused, suspended, running", "- - - L Running Paused Suspended"),
    "revert": ("", "R Halted R R R R R"),
    "clone": ("halted", "Halted Halted Halted - - - -"),
    "copy": ("halted", "Halted Halted Halted - - - -"),
    "destroy": ("halted, suspended", "gone gone gone - - - gone"),
    "provision": ("halted", "Halted S P - - - -"),
    "set_is_a_template": ("halted", "T S Halted - - - -"),
    "set_VCPUs_max": ("halted", "Halted S Halted - - - -"),
    "set_VCPUs_at_startup": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "set_VCPUs_number_live": ("running", "- - - L Running - -"),
    "set_memory_limits": ("halted", "Halted S Halted - - - -"),
    "set_memory_dynamic_range": ("halted, running", "Halted S Halted Running Running - -"),
    "set_memory_static_range": ("halted", "Halted S Halted - - - -"),
    "set_memory_static_max": ("halted", "Halted S Halted - - - -"),
    "set_HVM_boot_policy": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "set_domain_type": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "get_boot_record": ("paused, suspended, running", "- - - Running Running Paused Suspended"),
    "add_to_xenstore_data": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "set_name_label": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "set_affinity": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "add_to_other_config": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "assert_can_boot_here": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "VBD.create": ("", "Halted Halted Halted Running Running Paused Suspended"),
    "pool_migrate": ("running", "- - - L Running - -"),
    "call_plugin": ("running", "- - - F F - -"),
}
#: What VM_IS_TEMPLATE and VM_IS_SNAPSHOT call the operation where it has another name.
PRINTED = {
    "set_is_a_template": "make_into_template",
    "set_VCPUs_max": "(unknown operation)",
    "set_memory_limits": "(unknown operation)",
    "set_memory_dynamic_range": "changing_dynamic_range",
    "set_memory_static_range": "changing_static_range",
    "set_memory_static_max": "changing_static_range",
}
MIB = str(256 << 20)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "start": (False, False),
    "start_on": ("<HOST>", False, False),
    "resume": (False, False),
    "resume_on": ("<HOST>", False, False),
    "snapshot": ("s",),
    "checkpoint": ("c",),
    "clone": ("c",),
    "copy": ("c", NULL),
    "set_is_a_template": (True,),
    "set_VCPUs_max": ("4",),
    "set_VCPUs_at_startup": ("2",),
    "set_VCPUs_number_live": ("2",),
    "set_memory_limits": (MIB, MIB, MIB, MIB),
    "set_memory_dynamic_range": (MIB, MIB),
    "set_memory_static_range": (MIB, MIB),
    "set_memory_static_max": (MIB,),
    "set_HVM_boot_policy": ("BIOS order",),
    "set_domain_type": ("hvm",),
    "add_to_xenstore_data": ("vm-data/a", "1"),
    "set_name_label": ("renamed",),
    "set_affinity": (NULL,),
    "add_to_other_config": ("key", "value"),
    "assert_can_boot_here": ("<HOST>",),
    "pool_migrate": ("<HOST>", {"live": "true"}),
    "call_plugin": ("guest-agent-operation", "x", {}),
}
_CHANGING = "changing_NVRAM changing_dynamic_range changing_shadow_memory changing_static_range "
ALLOWED = {
    "template": _CHANGING + "clone copy destroy export migrate_send provision",
    "snapshot": "clone copy destroy export revert",
    "halted": _CHANGING
    + "clone copy create_vtpm destroy export make_into_template migrate_send snapshot start start_on",
    "running": "changing_dynamic_range hard_reboot hard_shutdown pause snapshot",
    "running+agent": "changing_VCPUs_live changing_dynamic_range checkpoint clean_reboot clean_shutdown hard_reboot "
    "hard_shutdown migrate_send pause pool_migrate snapshot suspend",
    "paused": "checkpoint hard_reboot hard_shutdown snapshot unpause",
    "suspended": "checkpoint destroy export hard_shutdown migrate_send resume resume_on snapshot",
}


OPTIONS = ("--boot-time", "10ms", "--shutdown-time", "50ms", "--guest-writes", "0")


class Park:
    """VMs in each state; one that an operation changed is replaced."""

    def __init__(self, simulator: SimulatorProcess) -> None:
        self._simulator = simulator
        self._free: dict[str, list[str]] = {}

    def take(self, xen: Client, kind: str) -> str:
        free = self._free.setdefault(kind, [])
        return free.pop() if free else self._make(xen, kind)

    def put_back(self, kind: str, vm_ref: str) -> None:
        self._free[kind].append(vm_ref)

    def _make(self, xen: Client, kind: str) -> str:
        ref: str = xen("VM.create", vm_record(name_label=kind, VCPUs_max="2"))
        if kind == "template":
            xen("VM.set_is_a_template", ref, True)
        if kind == "snapshot":
            snapshot: str = xen("VM.snapshot", ref, "snap")
            return snapshot
        if kind == "running":
            self._simulator.control("POST", f"guests/{xen('VM.get_uuid', ref)}", {"agent": False})
        if kind in ("running", "running+agent", "paused", "suspended"):
            xen("VM.start", ref, False, False)
        if kind in ("running+agent", "paused", "suspended"):
            eventually(lambda: "clean_shutdown" in xen("VM.get_allowed_operations", ref))
        if kind == "paused":
            xen("VM.pause", ref)
        if kind == "suspended":
            xen("VM.suspend", ref)
        return ref


@pytest.fixture(scope="module")
def park(simulator: SimulatorProcess) -> Park:
    return Park(simulator)


_NO_FUNCTION = 'The requested fn "x" could not be found in plugin "guest-agent-operation".'


def expectation(operation: str, kind: str, vm_ref: str, outcome: str) -> list[str] | str:
    """Return the error that was seen, or the power state afterwards."""
    printed = PRINTED.get(operation, operation)
    state = STATES.get(kind, kind)
    errors = {
        "-": ["VM_BAD_POWER_STATE", vm_ref, TABLE[operation][0], state],
        "T": ["VM_IS_TEMPLATE", vm_ref, printed],
        "S": ["VM_IS_SNAPSHOT", vm_ref, printed],
        "L": ["VM_LACKS_FEATURE", vm_ref],
        "D": ["DOMAIN_EXISTS", vm_ref],
        "R": ["VM_REVERT_FAILED", vm_ref, NULL],
        "P": ["PROVISION_ONLY_ALLOWED_ON_TEMPLATE"],
        "F": ["XENAPI_PLUGIN_FAILURE", "failed to find fn", *[_NO_FUNCTION] * 2],
    }
    return errors.get(outcome, outcome)


def carry_out(xen: Client, operation: str, vm_ref: str) -> None:
    """Call one operation of the table. Raises XenFailure."""
    if operation == "VBD.create":
        drive = {"VM": vm_ref, "VDI": NULL, "userdevice": "autodetect", "bootable": False, "mode": "RO", "type": "CD"}
        rest = {"empty": True, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}}
        xen("VBD.create", drive | rest)
        return
    host = xen("host.get_all")[0]
    arguments = [host if one == "<HOST>" else one for one in ARGUMENTS.get(operation, ())]
    xen(f"VM.{operation}", vm_ref, *arguments)


def outcome_of(xen: Client, operation: str, vm_ref: str) -> list[str] | str:
    """Carry out one operation; return its error, or the power state afterwards."""
    try:
        carry_out(xen, operation, vm_ref)
    except XenFailure as failure:
        return failure.details
    if vm_ref not in xen("VM.get_all"):
        return "gone"
    state: str = xen("VM.get_power_state", vm_ref)
    return state


@pytest.mark.parametrize("operation", TABLE)
def test_an_operation_does_in_each_state_what_it_did_on_a_real_xapi(xen: Client, park: Park, operation: str) -> None:
    for kind, outcome in zip(KINDS, TABLE[operation][1].split(), strict=True):
        vm_ref = park.take(xen, kind)
        expected = expectation(operation, kind, vm_ref, outcome)
        assert outcome_of(xen, operation, vm_ref) == expected, kind
        if isinstance(expected, list):
            assert xen("VM.get_power_state", vm_ref).lower() == STATES.get(kind, kind)
            park.put_back(kind, vm_ref)


#: What differs from the observed table, and why.
DIFFERENT = {
    ("pool_migrate", "running+agent"): "the observed hypervisor was a simulation that cannot migrate: NOT_IMPLEMENTED",
}


def test_the_table_is_the_observed_one() -> None:
    """Where the reference folder is present: every operation, state, error and parameter."""
    folder = os.environ.get("VMOPS_REFERENCE")
    if not folder:
        pytest.skip("VMOPS_REFERENCE does not name the reference folder")
    seen = json.loads((Path(folder) / "observed" / "vm-operation-matrix.json").read_text(encoding="utf-8"))
    assert {re.sub(r"\(.*", "", name) for name in seen["matrix"]} == set(TABLE)
    differences = set()
    for name, cells in seen["matrix"].items():
        operation = re.sub(r"\(.*", "", name)
        for kind, outcome in zip(KINDS, TABLE[operation][1].split(), strict=True):
            cell = cells[kind]
            observed = cell["error"] if not cell["ok"] else cell["after"].partition("/")[0].strip("()")
            if expectation(operation, kind, "<VM>", outcome) != observed:
                differences.add((operation, kind))
    assert differences == set(DIFFERENT)
    for kind, state in seen["states"].items():
        assert set(state["allowed_operations"]) == set(ALLOWED[kind].split())


@pytest.mark.parametrize("kind", KINDS)
def test_allowed_operations_are_those_of_a_real_xapi(xen: Client, park: Park, kind: str) -> None:
    vm_ref = park.take(xen, kind)
    assert set(xen("VM.get_allowed_operations", vm_ref)) == set(ALLOWED[kind].split())
    park.put_back(kind, vm_ref)


def test_after_every_reboot_the_clean_operations_are_refused_until_the_guest_reports(
    simulator: SimulatorProcess, xen: Client, park: Park
) -> None:
    vm_ref = park.take(xen, "running+agent")
    simulator.control("POST", f"guests/{xen('VM.get_uuid', vm_ref)}", {"boot_s": 60})
    before = xen("VM.get_record", vm_ref)
    xen("VM.clean_reboot", vm_ref)
    after = xen("VM.get_record", vm_ref)
    assert after["guest_metrics"] != before["guest_metrics"]
    assert int(after["domid"]) > int(before["domid"])
    assert xen.error("VM.clean_reboot", vm_ref) == ["VM_LACKS_FEATURE", vm_ref]
    assert xen.error("VM.clean_shutdown", vm_ref) == ["VM_LACKS_FEATURE", vm_ref]
    simulator.control("POST", "clock", {"advance": 61})
    eventually(lambda: "clean_reboot" in xen("VM.get_allowed_operations", vm_ref))
    metrics = xen("VM_guest_metrics.get_record", after["guest_metrics"])
    assert metrics["PV_drivers_version"]["major"] == "8"
    xen("VM.clean_shutdown", vm_ref)


def test_a_guest_that_ignores_a_clean_shutdown_lets_it_time_out(
    simulator: SimulatorProcess, xen: Client, park: Park
) -> None:
    vm_ref = park.take(xen, "running+agent")
    simulator.control("POST", f"guests/{xen('VM.get_uuid', vm_ref)}", {"ignores_clean_shutdown": True})
    task = xen("Async.VM.clean_shutdown", vm_ref)
    eventually(lambda: xen("VM.get_current_operations", vm_ref) != {}, every_s=0.01)
    simulator.control("POST", "clock", {"advance": 1201})
    assert xen.wait(task)["error_info"] == ["VM_SHUTDOWN_TIMEOUT", vm_ref, "1200."]
    assert xen("VM.get_power_state", vm_ref) == "Running"


def test_a_hard_shutdown_cancels_a_clean_one_under_way(simulator: SimulatorProcess, xen: Client, park: Park) -> None:
    vm_ref = park.take(xen, "running+agent")
    simulator.control("POST", f"guests/{xen('VM.get_uuid', vm_ref)}", {"ignores_clean_shutdown": True})
    task = xen("Async.VM.clean_shutdown", vm_ref)
    eventually(lambda: xen("VM.get_current_operations", vm_ref) != {}, every_s=0.01)
    assert xen("VM.get_current_operations", vm_ref) == {task: "clean_shutdown"}
    assert set(xen("VM.get_allowed_operations", vm_ref)) == {"hard_reboot", "hard_shutdown"}
    xen("VM.hard_shutdown", vm_ref)
    assert xen.wait(task)["status"] == "cancelled"
    assert xen("VM.get_power_state", vm_ref) == "Halted"


def test_a_cancelled_clean_shutdown_is_cancelled_and_the_vm_halted_all_the_same(
    simulator: SimulatorProcess, xen: Client, park: Park
) -> None:
    vm_ref = park.take(xen, "running+agent")
    simulator.control("POST", f"guests/{xen('VM.get_uuid', vm_ref)}", {"shutdown_s": 0.3})
    task = xen("Async.VM.clean_shutdown", vm_ref)
    xen("task.cancel", task)
    record = xen.wait(task)
    assert (record["status"], record["progress"]) == ("cancelled", 1.0)
    assert xen("VM.get_power_state", vm_ref) == "Halted"


def test_three_starts_at_once_start_the_vm_once(simulator: SimulatorProcess, xen: Client, park: Park) -> None:
    vm_ref = park.take(xen, "halted")
    outcomes: list[list[str]] = []

    def start() -> None:
        with simulator.session() as client:
            try:
                client("VM.start", vm_ref, False, False)
                outcomes.append([])
            except XenFailure as failure:
                outcomes.append(failure.details)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    refused = ["VM_BAD_POWER_STATE", vm_ref, "halted", "running"]
    assert sorted(outcomes) == [[], refused, refused]


def test_a_synchronous_call_has_a_task_that_others_see(simulator: SimulatorProcess, xen: Client, park: Park) -> None:
    vm_ref = park.take(xen, "running+agent")
    simulator.control("POST", f"guests/{xen('VM.get_uuid', vm_ref)}", {"shutdown_s": 0.5})

    def reboot() -> None:
        with simulator.session() as client:
            client("VM.clean_reboot", vm_ref)

    thread = threading.Thread(target=reboot)
    thread.start()
    eventually(lambda: xen("VM.get_current_operations", vm_ref) != {}, every_s=0.01)
    (task,) = xen("VM.get_current_operations", vm_ref)
    record = xen("task.get_record", task)
    assert (record["name_label"], record["status"]) == ("VM.clean_reboot", "pending")
    assert record["allowed_operations"] == ["cancel"]
    thread.join(10)
    assert xen.error("task.get_record", task) == ["HANDLE_INVALID", "task", task]


def test_blocked_operations_are_refused_with_the_administrators_text(xen: Client, park: Park) -> None:
    vm_ref = park.take(xen, "halted")
    xen("VM.add_to_blocked_operations", vm_ref, "start", "LOCKED")
    assert xen.error("VM.start", vm_ref, False, False) == ["OPERATION_BLOCKED", vm_ref, "LOCKED"]
    assert "start" not in xen("VM.get_allowed_operations", vm_ref)
    xen("VM.remove_from_blocked_operations", vm_ref, "start")
    xen("VM.start", vm_ref, False, False)


def test_a_vm_that_fits_nowhere_is_refused_in_two_ways(xen: Client) -> None:
    host = xen("host.get_all")[0]
    huge = str(1 << 50)
    vm_ref = xen("VM.create", vm_record(memory_static_max=huge, memory_dynamic_max=huge, memory_dynamic_min=huge))
    assert xen.error("VM.start", vm_ref, False, False) == ["NO_HOSTS_AVAILABLE"]
    error = xen.error("VM.start_on", vm_ref, host, False, False)
    assert error[0] == "HOST_NOT_ENOUGH_FREE_MEMORY"
    assert int(error[1]) > int(error[2])
    assert xen("VM.get_possible_hosts", vm_ref) == []


def test_a_disabled_host_takes_no_vm(xen: Client) -> None:
    host = xen("host.get_all")[0]
    vm_ref = xen("VM.create", vm_record())
    xen("host.disable", host)
    try:
        assert xen.error("VM.start", vm_ref, False, False) == ["NO_HOSTS_AVAILABLE"]
        assert xen.error("VM.start_on", vm_ref, host, False, False) == ["HOST_DISABLED", host]
    finally:
        xen("host.enable", host)
    xen("VM.start", vm_ref, False, False)


def test_memory_and_vcpus_are_checked_in_xapis_words(xen: Client) -> None:
    vm_ref = xen("VM.create", vm_record())
    text = "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max"
    assert xen.error("VM.set_VCPUs_at_startup", vm_ref, "9") == ["INVALID_VALUE", text, "9"]
    limits = (MIB, str(1 << 20), MIB, MIB)
    assert xen.error("VM.set_memory_limits", vm_ref, *limits) == ["MEMORY_CONSTRAINT_VIOLATION_ORDER"]


def test_a_suspend_without_a_place_for_the_memory_is_refused(xen: Client, park: Park) -> None:
    vm_ref = park.take(xen, "running+agent")
    pool = xen("pool.get_all")[0]
    sr = xen("pool.get_suspend_image_SR", pool)
    xen("pool.set_suspend_image_SR", pool, NULL)
    try:
        assert xen.error("VM.suspend", vm_ref) == ["VM_NO_SUSPEND_SR", vm_ref]
    finally:
        xen("pool.set_suspend_image_SR", pool, sr)
    xen("VM.suspend", vm_ref)
    assert xen("VDI.get_type", xen("VM.get_suspend_VDI", vm_ref)) == "suspend"


def test_a_clone_has_its_own_seed_address_and_disks(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="origin", disks=[{"size": 4 << 20, "content": "random"}])
    origin = xen("VM.get_record", made["ref"])
    clone = xen("VM.get_record", xen("VM.clone", made["ref"], "copy"))
    assert clone["name_label"] == "copy"
    assert clone["other_config"]["mac_seed"] != origin["other_config"]["mac_seed"]
    addresses = [xen("VIF.get_MAC", record["VIFs"][0]) for record in (origin, clone)]
    assert addresses[0] != addresses[1]
    disk = xen("VBD.get_VDI", clone["VBDs"][0])
    digests = [simulator.disk(uuid)["sha256"] for uuid in (made["vdis"][0], xen("VDI.get_uuid", disk))]
    assert digests[0] == digests[1]
    xen("VM.destroy", xen("VM.get_by_uuid", clone["uuid"]))
    assert xen("VDI.get_VBDs", disk) == []


def test_a_revert_brings_disks_and_record_back(simulator: SimulatorProcess, xen: Client) -> None:
    made = simulator.add_vm(name="back", disks=[{"size": 4 << 20, "content": "random"}], running=True)
    vm_ref, old_disk = made["ref"], xen.root_disk(made["ref"])
    snapshot = xen("VM.snapshot", vm_ref, "before")
    digest = simulator.disk(made["vdis"][0])["sha256"]
    xen("VM.set_name_label", vm_ref, "changed")
    xen("VM.revert", snapshot)
    record = xen("VM.get_record", vm_ref)
    assert (record["name_label"], record["power_state"], record["parent"]) == ("back", "Halted", snapshot)
    assert xen.error("VDI.get_uuid", old_disk) == ["HANDLE_INVALID", "VDI", old_disk]
    new_disk = xen.root_disk(vm_ref)
    assert simulator.disk(xen("VDI.get_uuid", new_disk))["sha256"] == digest
    snapshot_disk = xen.root_disk(snapshot)
    assert xen("VDI.get_snapshot_of", snapshot_disk) == new_disk
