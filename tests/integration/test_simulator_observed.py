"""The life of one VM, call by call, as it was observed on a real XAPI 23.14 (observed/calls.json)."""

from __future__ import annotations

import ast
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.simulator import Client, SimulatorProcess, vm_record

NULL = "OpaqueRef:NULL"
NOWHERE = "OpaqueRef:00000000-0000-0000-0000-000000000000"
HUGE = str(1 << 50)
QOS: dict[str, Any] = {"qos_algorithm_type": "", "qos_algorithm_params": {}}
VBD = {"bootable": True, "mode": "RW", "type": "Disk", "empty": False, "other_config": {}, "VM": "<vm>", "VDI": "<vdi>"}
CD = VBD | {"mode": "RO", "type": "CD", "empty": True, "VDI": NULL, "bootable": False}
VIF = {"network": "<network>", "VM": "<vm>", "MTU": "1500", "other_config": {}, **QOS}
STATE, BIG = "VM_BAD_POWER_STATE", {f"memory_{name}": HUGE for name in ("static_max", "dynamic_max", "dynamic_min")}
ANY_START = (False, False)

#: name in calls.json, call, arguments, outcome: `OK`, `OK name` (the result is remembered), or the error. `<name>` is
#: what was remembered; a name that begins with `-` is a step that the observer made without writing it down.
LIFE: list[tuple[str, str, tuple[Any, ...], str | list[str]]] = [
    ("bad-ref-VM", "VM.get_record", (NOWHERE,), ["HANDLE_INVALID", "VM", NOWHERE]),
    ("bad-ref-start", "VM.start", (NOWHERE, *ANY_START), ["HANDLE_INVALID", "VM", NOWHERE]),
    ("VM.create", "VM.create", (vm_record(name_label="wire-vm", VCPUs_max="2"),), "OK vm"),
    ("VDI.create", "VDI.create", ({"SR": "<sr>", "virtual_size": "20971520", "type": "user", "sharable": False,
                                   "read_only": False, "other_config": {}},), "OK vdi"),
    ("VBD.create", "VBD.create", (VBD | QOS | {"userdevice": "0"},), "OK vbd"),
    ("VBD.create-device-exists", "VBD.create", (VBD | QOS | {"userdevice": "0"},), ["DEVICE_ALREADY_EXISTS", "0"]),
    ("VBD.create-device-invalid", "VBD.create", (VBD | QOS | {"userdevice": "99999"},), "OK second"),
    ("-", "VBD.destroy", ("<second>",), "OK"),
    ("VBD.create-device-name", "VBD.create", (VBD | QOS | {"userdevice": "zz"},), ["INVALID_DEVICE", "zz"]),
    ("-", "VBD.create", (CD | QOS | {"userdevice": "autodetect"},), "OK cd"),
    ("VBD.plug-halted", "VBD.plug", ("<vbd>",), [STATE, "<vm>", "running", "halted"]),
    ("network.create", "network.create", ({"name_label": "n", "other_config": {}},), "OK network"),
    ("VIF.create", "VIF.create", (VIF | {"device": "0", "MAC": ""},), "OK vif"),
    ("VIF.create-dup", "VIF.create", (VIF | {"device": "0", "MAC": ""},), ["DEVICE_ALREADY_EXISTS", "0"]),
    ("VIF.create-bad-mac", "VIF.create", (VIF | {"device": "1", "MAC": "zz"},), ["MAC_INVALID", "zz"]),
    ("VM.suspend-halted", "VM.suspend", ("<vm>",), [STATE, "<vm>", "running", "halted"]),
    ("VM.clean_shutdown-halted", "VM.clean_shutdown", ("<vm>",), [STATE, "<vm>", "running", "halted"]),
    ("VM.hard_shutdown-halted", "VM.hard_shutdown", ("<vm>",), [STATE, "<vm>", "paused, suspended, running", "halted"]),
    ("VM.resume-halted", "VM.resume", ("<vm>", *ANY_START), [STATE, "<vm>", "suspended", "halted"]),
    ("VM.start", "VM.start", ("<vm>", *ANY_START), "OK"),
    ("VM.start-already-running", "VM.start", ("<vm>", *ANY_START), [STATE, "<vm>", "halted", "running"]),
    ("VM.destroy-running", "VM.destroy", ("<vm>",), [STATE, "<vm>", "halted, suspended", "running"]),
    ("VM.clean_reboot-no-pv-drivers", "VM.clean_reboot", ("<vm>",), ["VM_LACKS_FEATURE", "<vm>"]),
    ("VM.clean_shutdown-no-pv-drivers", "VM.clean_shutdown", ("<vm>",), ["VM_LACKS_FEATURE", "<vm>"]),
    ("VM.suspend-no-pv-drivers", "VM.suspend", ("<vm>",), ["VM_LACKS_FEATURE", "<vm>"]),
    ("VDI.destroy-in-use", "VDI.destroy", ("<vdi>",), ["VDI_IN_USE", "<vdi>", "destroy"]),
    ("VBD.destroy-attached", "VBD.destroy", ("<vbd>",),
     ["OPERATION_NOT_ALLOWED", "VBD '<uuid>' still attached to '<uuid>'"]),
    ("VBD.unplug-no-pv", "VBD.unplug", ("<vbd>",), ["VM_MISSING_PV_DRIVERS", "<vm>"]),
    ("VBD.plug-already", "VBD.plug", ("<vbd>",), ["DEVICE_ALREADY_ATTACHED", "<vbd>"]),
    ("VDI.resize-attached", "VDI.resize", ("<vdi>", "41943040"), ["VDI_IN_USE", "<vdi>", "resize"]),
    ("VM.hard_shutdown", "VM.hard_shutdown", ("<vm>",), "OK"),
    ("VM.start-paused", "VM.start", ("<vm>", True, False), "OK"),
    ("VM.unpause", "VM.unpause", ("<vm>",), "OK"),
    ("-agent", "", (), "OK"),
    ("VM.pause", "VM.pause", ("<vm>",), "OK"),
    ("VM.pause-paused", "VM.pause", ("<vm>",), [STATE, "<vm>", "running", "paused"]),
    ("VM.start-paused-vm", "VM.start", ("<vm>", *ANY_START), [STATE, "<vm>", "halted", "paused"]),
    ("VM.unpause2", "VM.unpause", ("<vm>",), "OK"),
    ("VM.unpause-running", "VM.unpause", ("<vm>",), [STATE, "<vm>", "paused", "running"]),
    ("VM.clean_reboot", "VM.clean_reboot", ("<vm>",), "OK"),
    ("VM.hard_reboot", "VM.hard_reboot", ("<vm>",), "OK"),
    ("-agent", "", (), "OK"),
    ("-", "pool.set_suspend_image_SR", ("<pool>", NULL), "OK"),
    ("VM.suspend-no-suspend-SR", "VM.suspend", ("<vm>",), ["VM_NO_SUSPEND_SR", "<vm>"]),
    ("-", "pool.set_suspend_image_SR", ("<pool>", "<sr>"), "OK"),
    ("VM.suspend", "VM.suspend", ("<vm>",), "OK"),
    ("VM.start-suspended", "VM.start", ("<vm>", *ANY_START), [STATE, "<vm>", "halted", "suspended"]),
    ("VM.resume", "VM.resume", ("<vm>", *ANY_START), "OK"),
    ("-agent", "", (), "OK"),
    ("VM.clean_shutdown", "VM.clean_shutdown", ("<vm>",), "OK"),
    ("VM.snapshot-halted", "VM.snapshot", ("<vm>", "wire-snap"), "OK snap"),
    ("VM.start-snapshot", "VM.start", ("<snap>", *ANY_START), ["VM_IS_SNAPSHOT", "<snap>", "start"]),
    ("VM.snapshot-of-snapshot", "VM.snapshot", ("<snap>", "x"), ["VM_IS_SNAPSHOT", "<snap>", "snapshot"]),
    ("VM.revert", "VM.revert", ("<snap>",), "OK"),
    ("-", "VM.start", ("<vm>", *ANY_START), "OK"),
    ("-agent", "", (), "OK"),
    ("VM.snapshot-running", "VM.snapshot", ("<vm>", "run-snap"), "OK run"),
    ("VM.checkpoint-running", "VM.checkpoint", ("<vm>", "cp-run"), "OK checkpoint"),
    ("VM.revert-while-running", "VM.revert", ("<snap>",), "OK"),
    ("VM.destroy-snapshot", "VM.destroy", ("<run>",), "OK"),
    ("VM.clone", "VM.clone", ("<vm>", "wire-clone"), "OK clone"),
    ("VM.copy", "VM.copy", ("<vm>", "wire-copy", NULL), "OK"),
    ("VM.set_is_a_template", "VM.set_is_a_template", ("<clone>", True), "OK"),
    ("VM.start-template", "VM.start", ("<clone>", *ANY_START), ["VM_IS_TEMPLATE", "<clone>", "start"]),
    ("VM.provision-template", "VM.provision", ("<clone>",), "OK"),
    ("VM.checkpoint-halted", "VM.checkpoint", ("<vm>", "x"), [STATE, "<vm>", "paused, suspended, running", "halted"]),
    ("VM.add_to_blocked_operations", "VM.add_to_blocked_operations", ("<vm>", "start", "LOCKED"), "OK"),
    ("VM.start-blocked", "VM.start", ("<vm>", *ANY_START), ["OPERATION_BLOCKED", "<vm>", "LOCKED"]),
    ("-", "VM.remove_from_blocked_operations", ("<vm>", "start"), "OK"),
    ("VM.assert_can_boot_here", "VM.assert_can_boot_here", ("<vm>", "<host>"), "OK"),
    ("VM.get_possible_hosts", "VM.get_possible_hosts", ("<vm>",), "OK"),
    ("VM.set_memory_limits-bad", "VM.set_memory_limits", ("<vm>", HUGE, "1048576", HUGE, HUGE),
     ["MEMORY_CONSTRAINT_VIOLATION_ORDER"]),
    ("-", "VM.create", (vm_record(**BIG),), "OK big"),
    ("VM.start-too-big", "VM.start", ("<big>", *ANY_START), ["NO_HOSTS_AVAILABLE"]),
    ("VM.start_on-too-big", "VM.start_on", ("<big>", "<host>", *ANY_START),
     ["HOST_NOT_ENOUGH_FREE_MEMORY", "<number>", "<number>"]),
    ("-", "host.disable", ("<host>",), "OK"),
    ("VM.start-host-disabled", "VM.start", ("<vm>", *ANY_START), ["NO_HOSTS_AVAILABLE"]),
    ("VM.start_on-host-disabled", "VM.start_on", ("<vm>", "<host>", *ANY_START), ["HOST_DISABLED", "<host>"]),
    ("-", "host.enable", ("<host>",), "OK"),
    ("VM.set_VCPUs_max", "VM.set_VCPUs_max", ("<vm>", "4"), "OK"),
    ("VM.set_VCPUs_at_startup-too-many", "VM.set_VCPUs_at_startup", ("<vm>", "9"),
     ["INVALID_VALUE", "VCPU values must satisfy: 0 < VCPUs_at_startup ≤ VCPUs_max", "9"]),
]  # fmt: skip

#: Observed errors that are compared elsewhere: the part of the file, and the test that has it.
ELSEWHERE = {
    r"session\.|session-|call-after-logout|logout-twice|unknown-|too-|wrong-|set-readonly|VM.create-missing|bad-uuid|"
    r"bad-ref-(null|empty|VDI)|VM.get_all_records_where|add_to_|event\.": "test_simulator_wire.py",
    r"host\.call_plugin": "the tests of plugins",
    r"task\.": "test_simulator_toolstack.py",
}
_REF = re.compile(r"OpaqueRef:[0-9a-f-]{36}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
OPTIONS = ("--boot-time", "10ms", "--shutdown-time", "10ms", "--guest-writes", "0")


def filled(value: Any, known: dict[str, str]) -> Any:
    """Return an argument with what was remembered in place of `<name>`."""
    if isinstance(value, dict):
        return {key: filled(one, known) for key, one in value.items()}
    return known.get(value, value) if isinstance(value, str) else value


def let_agent_report(simulator: SimulatorProcess, xen: Client, vm_ref: str) -> None:
    simulator.control("POST", f"guests/{xen('VM.get_uuid', vm_ref)}", {"agent": True})
    deadline = time.monotonic() + 30
    while "suspend" not in xen("VM.get_allowed_operations", vm_ref):
        assert time.monotonic() < deadline, "the agent does not report"
        time.sleep(0.01)


def plain(details: list[str]) -> list[str]:
    """Return an error with uuids and figures that differ between two pools replaced."""
    shown = [one if _REF.fullmatch(one) else _UUID.sub("<uuid>", one) for one in details]
    if shown[0] == "HOST_NOT_ENOUGH_FREE_MEMORY":
        assert int(shown[1]) > int(shown[2])
        shown[1:] = ["<number>", "<number>"]
    return shown


def test_every_call_of_a_vms_life_ends_as_it_did_on_a_real_xapi(simulator: SimulatorProcess) -> None:
    with simulator.session() as xen:
        pool = xen("pool.get_all")[0]
        known = {"<pool>": pool, "<sr>": xen("pool.get_default_SR", pool), "<host>": xen("host.get_all")[0]}
        for name, method, arguments, outcome in LIFE:
            if name == "-agent":
                let_agent_report(simulator, xen, known["<vm>"])
                continue
            given = [filled(one, known) for one in arguments]
            if not isinstance(outcome, str):
                assert plain(xen.error(method, *given)) == [filled(one, known) for one in outcome], name
                continue
            result = xen(method, *given)
            if remembered := outcome.removeprefix("OK").strip():
                known[f"<{remembered}>"] = result
            if name == "VM.create":
                simulator.control("POST", f"guests/{xen('VM.get_uuid', result)}", {"agent": False})


def test_the_life_is_the_observed_one_and_no_observed_error_is_left_out() -> None:
    """Where the reference folder is present."""
    folder = os.environ.get("VMOPS_REFERENCE")
    if not folder:
        pytest.skip("VMOPS_REFERENCE does not name the reference folder")
    calls = json.loads((Path(folder) / "observed" / "calls.json").read_text(encoding="utf-8"))
    observed = {name: ast.literal_eval(result) if kind == "ERR" else "OK" for name, kind, result, _s in calls}
    ours = {name: outcome for name, _method, _arguments, outcome in LIFE if not name.startswith("-")}
    for name, outcome in ours.items():
        seen = observed[name]
        if isinstance(outcome, str):
            assert seen == "OK", name
        else:
            expected = [re.sub(r"<(?!uuid|number)\w+>", "<ref>", one) for one in outcome]
            expected = [_REF.sub("<ref>", one) for one in expected]
            assert isinstance(seen, list), name
            assert [_REF.sub("<ref>", one) for one in plain(seen)] == expected, name
    left_out = {name for name, seen in observed.items() if seen != "OK" and name not in ours}
    assert {name for name in left_out if not any(re.match(part, name) for part in ELSEWHERE)} == set()
