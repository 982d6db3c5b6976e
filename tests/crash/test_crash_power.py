"""The crash matrices of the power operations: the VM ends in its state, locked and marked as it shall be, once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.rig import MIB, Rig
from worker.client import Handle

pytestmark = [pytest.mark.crash, pytest.mark.slow]

FIND = ("VM.get_all_records_where", 1)
LOCK = {"resume", "resume_on"}
REBOOTING = "vmops.rebooting"

_numbers = count(1)


@dataclass(frozen=True)
class Patient:
    """A VM, and what it was before."""

    name: str
    ref: str
    uuid: str
    domid: int
    disk: str


def call(rig: Rig, method: str, *args: Any) -> Any:
    """Call the pool as somebody else does."""
    with rig.simulator.session() as session:
        return session(method, *args)


def patient(rig: Rig, state: str = "Running", **habits: Any) -> Patient:
    """Make a VM in a state, with a guest of these habits."""
    name = f"patient-{next(_numbers)}"
    made = rig.simulator.add_vm(name=name, disks=[{"size": 2 * MIB, "content": "random"}], running=state != "Halted")
    rig.simulator.control("POST", f"guests/{made['uuid']}", {"writes_per_s": 0, **habits})
    if state in {"Paused", "Suspended"}:
        call(rig, {"Paused": "VM.pause", "Suspended": "VM.suspend"}[state], made["ref"])
    domid = int(call(rig, "VM.get_domid", made["ref"]))
    disk = rig.simulator.disk(made["vdis"][0])["sha256"]
    return Patient(name, made["ref"], made["uuid"], domid, disk)


def suspended_by_vmops(rig: Rig) -> Patient:
    """Make a VM that vmops has suspended."""
    made = patient(rig)
    assert rig.wait(rig.client.suspend(instance={"name": made.name})).state == "succeeded"
    return made


def submit(operation: str, fields: dict[str, Any], rig: Rig, made: Patient) -> Handle:
    """Submit an operation on the VM."""
    handle: Handle = getattr(rig.client, operation)(instance={"name": made.name}, **fields)
    return handle


def check(state: str, locks: set[str], rig: Rig, made: Patient, handle: Handle) -> None:
    """The operation succeeded; the VM is in the state, has these locks and no mark; its disk is as it was."""
    record = rig.wait(handle)
    assert record.state == "succeeded", record.error
    assert record.result["power_state"] == state
    rec = call(rig, "VM.get_record", made.ref)
    assert (rec["power_state"], set(rec["blocked_operations"])) == (state, locks)
    assert REBOOTING not in rec["other_config"]
    (vdi,) = [vdi for vdi in _disks(rig, made) if vdi]
    assert rig.simulator.disk(vdi)["sha256"] == made.disk
    rig.assert_nothing_is_left()
    _forget(rig, made)


def _disks(rig: Rig, made: Patient) -> list[str]:
    with rig.simulator.session() as session:
        return [session("VDI.get_uuid", session("VBD.get_VDI", ref)) for ref in session("VM.get_VBDs", made.ref)]


def _forget(rig: Rig, made: Patient) -> None:
    """Halt the VM: many of them would need more memory than the host has."""
    if call(rig, "VM.get_power_state", made.ref) != "Halted":
        call(rig, "VM.hard_shutdown", made.ref)


def check_rebooted(rig: Rig, made: Patient, handle: Handle) -> None:
    """As `check`, and the VM is in the next domain that the pool made: it was rebooted once."""
    rec = call(rig, "VM.get_record", made.ref)
    assert int(rec["domid"]) == made.domid + 1
    check("Running", set(), rig, made, handle)


def check_refused(code: str, rig: Rig, made: Patient, handle: Handle) -> None:
    """The operation failed with its cause, and the VM is as it was: running in its domain, unlocked, unmarked."""
    record = rig.wait(handle)
    assert (record.state, (record.error or {}).get("code")) == ("undone", code)
    rec = call(rig, "VM.get_record", made.ref)
    assert (rec["power_state"], int(rec["domid"]), rec["blocked_operations"]) == ("Running", made.domid, {})
    assert REBOOTING not in rec["other_config"]
    rig.assert_nothing_is_left()
    _forget(rig, made)


def matrix(operation: str, before: str, after: str, calls: list[tuple[str, int]], **fields: Any) -> Matrix[Patient]:
    """Return the matrix of an operation that takes a VM from one state to another."""
    prepare = partial(patient, state=before)
    return Matrix(calls, prepare, partial(submit, operation, fields), partial(check, after, set()))


MATRICES: dict[str, Matrix[Patient]] = {
    "power_on": matrix("power_on", "Halted", "Running", [FIND, ("Async.VM.start", 1), ("task.destroy", 1)]),
    "power_off": matrix("power_off", "Running", "Halted", [FIND, ("VM.hard_shutdown", 1)]),
    "power_off_clean": matrix(
        "power_off",
        "Running",
        "Halted",
        [FIND, ("Async.VM.clean_shutdown", 1), ("task.destroy", 1), ("VM.hard_shutdown", 1)],
        clean_timeout_s=60,
    ),
    "pause": matrix("pause", "Running", "Paused", [FIND, ("VM.pause", 1)]),
    "unpause": matrix("unpause", "Paused", "Running", [FIND, ("VM.unpause", 1)]),
    "suspend": Matrix(
        [
            FIND,
            ("VM.add_to_blocked_operations", 1),
            ("VM.add_to_blocked_operations", 2),
            ("Async.VM.suspend", 1),
            ("task.destroy", 1),
        ],
        patient,
        partial(submit, "suspend", {}),
        partial(check, "Suspended", LOCK),
    ),
    "suspend_refused": Matrix(
        [
            FIND,
            ("VM.add_to_blocked_operations", 1),
            ("VM.add_to_blocked_operations", 2),
            ("Async.VM.suspend", 1),
            ("task.destroy", 1),
            ("VM.get_record", 1),
            ("VM.remove_from_blocked_operations", 1),
            ("VM.remove_from_blocked_operations", 2),
        ],
        partial(patient, agent=False, pv_drivers=False),
        partial(submit, "suspend", {}),
        partial(check_refused, "GuestUnable"),
    ),
    "resume": Matrix(
        [
            FIND,
            ("VM.remove_from_blocked_operations", 1),
            ("VM.remove_from_blocked_operations", 2),
            ("Async.VM.resume", 1),
            ("task.destroy", 1),
        ],
        suspended_by_vmops,
        partial(submit, "resume", {}),
        partial(check, "Running", set()),
    ),
    "reboot_hard": Matrix(
        [FIND, ("VM.hard_reboot", 1)],
        patient,
        partial(submit, "reboot", {"reboot_type": "HARD"}),
        check_rebooted,
    ),
    "reboot_soft": Matrix(
        [
            FIND,
            ("Async.VM.clean_reboot", 1),
            ("host.get_servertime", 1),
            ("VM.add_to_other_config", 1),
            ("task.destroy", 1),
            ("VM.get_record", 1),
            ("VM.remove_from_other_config", 1),
        ],
        patient,
        partial(submit, "reboot", {"soft_timeout_s": 60}),
        check_rebooted,
    ),
    "reboot_forced": Matrix(
        [
            FIND,
            ("Async.VM.clean_reboot", 1),
            ("host.get_servertime", 1),
            ("VM.add_to_other_config", 1),
            ("VM.get_record", 1),
            ("VM.get_record", 2),
            ("VM.hard_reboot", 1),
            ("VM.remove_from_other_config", 1),
            ("task.destroy", 1),
        ],
        partial(patient, ignores_clean_shutdown=True),
        partial(submit, "reboot", {"soft_timeout_s": 1, "on_timeout": "hard"}),
        check_rebooted,
    ),
    "reboot_refused": Matrix(
        [
            FIND,
            ("Async.VM.clean_reboot", 1),
            ("host.get_servertime", 1),
            ("VM.add_to_other_config", 1),
            ("VM.get_record", 1),
            ("task.cancel", 1),
            ("task.destroy", 1),
            ("VM.remove_from_other_config", 1),
        ],
        partial(patient, ignores_clean_shutdown=True),
        partial(submit, "reboot", {"soft_timeout_s": 1, "on_timeout": "fail"}),
        partial(check_refused, "GuestUnable"),
    ),
}
CASES = [accident.case(name) for name, one in MATRICES.items() for accident in one.accidents]


@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_has_every_call(rig: Rig, name: str) -> None:
    MATRICES[name].assert_is_complete(rig)


@pytest.mark.parametrize(("name", "accident"), CASES)
def test_an_accident_changes_nothing(rig: Rig, name: str, accident: Accident) -> None:
    MATRICES[name].endure(rig, accident)
