"""The crash matrices of rescue and unrescue: the instance's disks are as they were, whatever happens when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.matrix import LOOKS, Accident, Matrix
from tests.support.rescuing import Patient, assert_as_before, assert_in_rescue, new_patient, rescue, unrescue
from tests.support.rig import Rig
from tests.support.spawning import Picture, put_image, refused, spawn, succeeded
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]

NETWORK = {"network": "xenbr0"}
LOCKS = range(1, 5)
RESCUE = [
    ("VM.get_all_records_where", 1),
    ("VBD.get_all_records_where", 1),
    ("VM.get_all_records_where", 2),
    ("host.compute_free_memory", 1),
    ("VM.add_to_other_config", 1),
    ("Async.VM.clean_shutdown", 1),
    ("task.destroy", 1),
    ("VM.hard_shutdown", 1),
    *(("VM.add_to_blocked_operations", nth) for nth in LOCKS),
    ("VM.get_record", 1),
    ("VDI.get_all_records_where", 1),
    ("VDI.add_to_other_config", 1),
    ("VDI.clone", 1),
    ("VDI.remove_from_other_config", 1),
    ("VDI.set_other_config", 1),
    ("VDI.set_name_label", 1),
    ("VDI.set_name_description", 1),
    ("VM.create", 1),
    *(("VBD.create", nth) for nth in range(1, 5)),
    ("VIF.create", 1),
    ("Async.VM.start", 1),
    ("task.destroy", 2),
    ("VM.get_record", 2),
    ("host.get_servertime", 1),
    ("VM.add_to_other_config", 2),
]
UNRESCUE = [
    ("VM.get_all_records_where", 1),
    ("VBD.get_all_records_where", 1),
    ("VM.hard_shutdown", 1),
    ("VM.destroy", 1),
    ("VDI.get_all_records_where", 1),
    ("Async.VDI.destroy", 1),
    ("task.destroy", 1),
    *(("VM.remove_from_blocked_operations", nth) for nth in LOCKS),
    ("VM.get_record", 1),
    ("Async.VM.start", 1),
    ("task.destroy", 2),
    ("VM.remove_from_other_config", 1),
    ("VM.remove_from_other_config", 2),
]
#: What a rescue that cannot start its VM does to take everything back.
UNDOING = [
    ("task.get_all_records_where", 1),
    ("VM.hard_shutdown", 2),
    ("task.get_all_records_where", 2),
    ("VM.get_all_records_where", 3),
    ("VM.destroy", 1),
    ("task.get_by_name_label", 1),
    ("task.get_all_records_where", 3),
    ("VDI.get_all_records_where", 2),
    ("VDI.get_all_records_where", 3),
    ("Async.VDI.destroy", 1),
    ("task.destroy", 1),
    ("VM.get_record", 2),
    *(("VM.remove_from_blocked_operations", nth) for nth in LOCKS),
    ("task.get_all_records_where", 4),
    ("VM.get_record", 3),
    ("Async.VM.start_on", 1),
    ("task.destroy", 2),
    ("VM.remove_from_other_config", 1),
]

_pictures: dict[Path, Picture] = {}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool whose guests write nothing, so that contents can be compared."""
    with Rig(tmp_path_factory.mktemp("rig"), simulator_options=("--guest-writes", "0")) as made:
        _pictures[made.folder] = put_image(made)
        succeeded(made, spawn(made, _pictures[made.folder].id))
        yield made


def submit(rig: Rig, patient: Patient) -> Handle:
    """Rescue the instance, asking its guest first."""
    return rescue(rig, patient, _pictures[rig.folder], networks=[NETWORK], clean_timeout_s=60)


def check_rescued(rig: Rig, patient: Patient, handle: Handle) -> None:
    """The instance is in rescue; and it comes out of it again."""
    succeeded(rig, handle)
    assert_in_rescue(rig, patient, handle, _pictures[rig.folder])
    succeeded(rig, unrescue(rig, patient))
    assert_as_before(rig, patient)
    forget(rig, patient)


def in_rescue(rig: Rig) -> Patient:
    """Make an instance in rescue."""
    patient = new_patient(rig)
    succeeded(rig, rescue(rig, patient, _pictures[rig.folder]))
    return patient


def check_unrescued(rig: Rig, patient: Patient, handle: Handle) -> None:
    """The instance is as it was, and so are its disks."""
    result = succeeded(rig, handle)
    assert result["power_state"] == "Running"
    assert [one["role"] for one in result["destroyed"]] == ["root"]
    assert result["kept"] == []
    assert_as_before(rig, patient)
    forget(rig, patient)


def submit_doomed(rig: Rig, patient: Patient) -> Handle:
    """Rescue the instance with a VM that the pool will not start."""
    rig.simulator.add_fault(match="Async.VM.start", effect="failure", error=["PERMISSION_DENIED", "not today"])
    return rescue(rig, patient, _pictures[rig.folder], networks=[NETWORK])


def check_undone(rig: Rig, patient: Patient, handle: Handle) -> None:
    """The operation has failed with its cause, and the instance is as it was."""
    assert "not today" in refused(rig, handle, "PERMISSION_DENIED", State.UNDONE)
    assert_as_before(rig, patient)
    rig.simulator.clear_faults()
    forget(rig, patient)


def forget(rig: Rig, patient: Patient) -> None:
    """Halt the VM: many of them would need more memory than the host has."""
    with rig.simulator.session() as call:
        call("VM.hard_shutdown", patient.vm_ref)


#: `make test` has the deaths that once cost somebody a disk.
rescuing = Matrix(RESCUE, new_patient, submit, check_rescued, telling={("VBD.create", 2)})
unrescuing = Matrix(UNRESCUE, in_rescue, unrescue, check_unrescued, telling={("VM.destroy", 1)})
undoing = Matrix(UNDOING, new_patient, submit_doomed, check_undone, telling={("VM.destroy", 1)})


def test_the_matrix_has_every_call_of_an_unrescue(rig: Rig) -> None:
    unrescuing.assert_is_complete(rig)


def test_the_matrix_has_every_call_of_a_rescue(rig: Rig) -> None:
    rescuing.assert_is_complete(rig)


@pytest.mark.matrix
def test_the_matrix_has_every_call_of_an_undo(rig: Rig) -> None:
    patient = new_patient(rig)
    rig.simulator.reset_stats()
    handle = submit_doomed(rig, patient)
    rig.wait(handle)
    made = Counter({name: calls for name, calls in rig.simulator.calls().items() if name not in LOOKS})
    check_undone(rig, patient, handle)
    late = {("task.destroy", 2), ("VM.get_record", 2), ("host.get_servertime", 1), ("VM.add_to_other_config", 2)}
    asked = {("Async.VM.clean_shutdown", 1), ("task.destroy", 1)}
    before = Counter(name for name, nth in RESCUE if (name, nth) not in late | asked)
    assert made - before == Counter(name for name, _ in UNDOING), made - before


@rescuing.at_every_call
def test_an_accident_to_a_rescue(rig: Rig, accident: Accident) -> None:
    rescuing.endure(rig, accident)


@unrescuing.at_every_call
def test_an_accident_to_an_unrescue(rig: Rig, accident: Accident) -> None:
    unrescuing.endure(rig, accident)


@undoing.at_every_call
def test_an_accident_to_a_rescue_that_is_taken_back(rig: Rig, accident: Accident) -> None:
    undoing.endure(rig, accident)
