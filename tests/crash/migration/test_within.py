"""The crash matrices of a resize or move within a pool: disks that are cloned, and disks that XAPI copies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.crash.migration.cases import (
    Case,
    assert_moved,
    assert_undone,
    calls,
    changing_storage,
    migrate,
    migrate_in_vain,
    of,
    staying,
)
from tests.support.rig import MIB, Rig
from tests.support.two_pools import TwoPools
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]

#: Of every way: the VM is looked at, marked, halted, and handed over.
_BEGINNING = {
    "VM.get_all_records_where": 2,
    "VBD.get_all_records_where": 1,
    "host.compute_free_memory": 1,
    "host.get_servertime": 1,
    "VM.add_to_other_config": 1,
    "VM.set_name_label": 1,
}
_HALTING = {**_BEGINNING, "VM.get_record": 4, "VM.add_to_blocked_operations": 2, "Async.VM.clean_shutdown": 1}
_HANDED_OVER = {
    **_HALTING,
    "VM.get_record": 5,
    "host.get_servertime": 2,
    "VM.add_to_other_config": 3,
    "VM.set_name_label": 2,
    "VM.remove_from_other_config": 1,
    "VDI.add_to_other_config": 4,
}
_GIVEN_BACK = {
    "VM.set_name_label": 1,
    "VM.remove_from_other_config": 1,
}
_STARTED_AGAIN = {
    **_GIVEN_BACK,
    "VM.get_record": 2,
    "VM.remove_from_blocked_operations": 2,
    "Async.VM.start_on": 1,
    "VDI.remove_from_other_config": 4,
    "task.get_all_records_where": 2,
}


# -- clones

_CLONES = {
    "VDI.get_all_records_where": 1,
    "VDI.clone": 2,
    "VDI.set_other_config": 2,
    "VDI.remove_from_other_config": 2,
    "VDI.get_record": 2,
    "task.destroy": 1,
}
BEFORE_UNDOING_CLONES = {**_HALTING, **_CLONES, "VDI.add_to_other_config": 3}
cloning = Matrix(calls({**_HANDED_OVER, **_CLONES}), staying, migrate, assert_moved, telling=())
undoing_clones = Matrix(
    calls(
        {**_STARTED_AGAIN, "VDI.get_all_records_where": 2, "Async.VDI.destroy": 2, "task.destroy": 3},
        BEFORE_UNDOING_CLONES,
    ),
    staying,
    migrate_in_vain,
    assert_undone,
    apart=BEFORE_UNDOING_CLONES,
    telling=(),
)


@cloning.at_every_call
def test_an_accident_while_disks_are_cloned(rig: TwoPools, accident: Accident) -> None:
    cloning.endure(rig, accident)


@undoing_clones.at_every_call
def test_an_accident_while_clones_are_taken_back(rig: TwoPools, accident: Accident) -> None:
    undoing_clones.endure(rig, accident)


# -- copies

_SNAPSHOTS = {
    "VDI.get_all_records_where": 1,
    "VDI.add_to_other_config": 2,
    "Async.VDI.snapshot": 2,
    "VDI.remove_from_other_config": 2,
    "Async.SR.scan": 1,
}
_COPIES = {**_SNAPSHOTS, "VDI.create": 2, "VDI.get_record": 2, "Async.VDI.copy": 4, "task.destroy": 8}
BEFORE_UNDOING_COPIES = {**_COPIES, **_HALTING, "VDI.add_to_other_config": 3}
copying = Matrix(
    calls({**_COPIES, **_HANDED_OVER, "Async.VDI.destroy": 2, "task.destroy": 10}),
    changing_storage,
    migrate,
    assert_moved,
    telling={("Async.VDI.copy", 1), ("Async.VDI.copy", 4)},
)
undoing_copies = Matrix(
    calls(
        {**_STARTED_AGAIN, "VDI.get_all_records_where": 3, "Async.VDI.destroy": 4, "task.destroy": 5},
        BEFORE_UNDOING_COPIES,
    ),
    changing_storage,
    migrate_in_vain,
    assert_undone,
    apart=BEFORE_UNDOING_COPIES,
    telling=(),
)


@copying.at_every_call
def test_an_accident_while_disks_are_copied(rig: TwoPools, accident: Accident) -> None:
    copying.endure(rig, accident)


@undoing_copies.at_every_call
def test_an_accident_while_copies_are_taken_back(rig: TwoPools, accident: Accident) -> None:
    undoing_copies.endure(rig, accident)


# -- a copy that is called off


def large(rig: Rig) -> Case:
    """Make a VM whose first disk takes long to copy."""
    disks = [{"size": 256 * MIB, "content": "zero"}, {"size": 2 * MIB, "content": "random"}]
    case = changing_storage(rig)
    of(rig).remove_vms()
    made = of(rig).add(case.name, disks=disks)
    rig.simulator.storage(bytes_per_s=8 * MIB)
    return replace(case, made=made, contents=[])


def call_off(rig: Rig, case: Case) -> Handle:
    """Cancel while XAPI copies the first disk."""
    copying = rig.simulator.add_fault(match="Async.VDI.copy", nth=1, effect="delay", when="after", delay_s=0)
    handle = migrate(rig, case)
    rig.simulator.wait_for_hit(copying)
    handle.cancel()
    return handle


def assert_called_off(rig: Rig, case: Case, handle: Handle) -> None:
    """The copy has ended long before its time, and the VM has run on."""
    assert rig.client.handle(handle.id).record().state == State.CANCELLED
    of(rig).assert_as_before(case.made, case.name)


BEFORE_CALLING_OFF = {
    **_SNAPSHOTS,
    **_BEGINNING,
    "VM.get_record": 1,
    "VDI.create": 1,
    "VDI.get_record": 1,
    "Async.VDI.copy": 1,
    "task.destroy": 3,
}
calling_off = Matrix(
    calls(
        {
            **_GIVEN_BACK,
            "task.cancel": 1,
            "VM.get_record": 1,
            "VDI.get_all_records_where": 2,
            "Async.VDI.destroy": 3,
            "VDI.remove_from_other_config": 2,
            "task.get_all_records_where": 1,
            "task.destroy": 4,
        },
        BEFORE_CALLING_OFF,
    ),
    large,
    call_off,
    assert_called_off,
    apart=BEFORE_CALLING_OFF,
    telling={("task.cancel", 1)},
)


@calling_off.at_every_call
def test_an_accident_while_a_copy_is_called_off(rig: TwoPools, accident: Accident) -> None:
    calling_off.endure(rig, accident)


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["cloning", "undoing_clones", "copying", "undoing_copies", "calling_off"])
def test_the_matrix_has_every_call(rig: TwoPools, name: str) -> None:
    globals()[name].assert_is_complete(rig)
