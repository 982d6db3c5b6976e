"""The crash matrices of a move to another pool, on both sides, and of its undo."""

from __future__ import annotations

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.crash.migration.cases import (
    assert_moved,
    assert_undone,
    calls,
    migrate,
    migrate_in_vain,
    running,
)
from tests.support.two_pools import TwoPools

pytestmark = [pytest.mark.crash, pytest.mark.slow]

MOVING_HERE = {
    "VM.get_all_records_where": 1,
    "VBD.get_all_records_where": 1,
    "host.get_servertime": 2,
    "VM.add_to_other_config": 3,
    "VM.set_name_label": 2,
    "VDI.get_all_records_where": 1,
    "VDI.add_to_other_config": 4,
    "Async.VDI.snapshot": 2,
    "task.destroy": 10,
    "VDI.remove_from_other_config": 2,
    "Async.SR.scan": 1,
    "task.create": 4,
    "GET /export_raw_vdi": 4,
    "VM.get_record": 5,
    "VM.add_to_blocked_operations": 2,
    "Async.VM.clean_shutdown": 1,
    "task.get_by_name_label": 2,
    "VM.remove_from_other_config": 1,
    "Async.VDI.destroy": 2,
}
MOVING_THERE = {
    "VM.get_all_records_where": 1,
    "host.compute_free_memory": 1,
    "VDI.create": 2,
    "VDI.get_record": 2,
    "task.create": 4,
    "PUT /import_raw_vdi": 4,
    "task.destroy": 4,
    "task.get_by_name_label": 2,
}
moving_here = Matrix(
    calls(MOVING_HERE),
    running,
    migrate,
    assert_moved,
    telling=(),
)
moving_there = Matrix(
    calls(MOVING_THERE), running, migrate, assert_moved, pool="far", telling={("PUT /import_raw_vdi", 1)}
)


@moving_here.at_every_call
def test_an_accident_in_the_pool_that_is_left(rig: TwoPools, accident: Accident) -> None:
    moving_here.endure(rig, accident)


@moving_there.at_every_call
def test_an_accident_in_the_pool_that_is_moved_to(rig: TwoPools, accident: Accident) -> None:
    moving_there.endure(rig, accident)


# -- taken back: the calls of the undo, behind those of a move that fails when it is about to be handed over

BEFORE_HERE = {
    **MOVING_HERE,
    "host.get_servertime": 1,
    "VM.add_to_other_config": 1,
    "VM.set_name_label": 1,
    "VDI.add_to_other_config": 3,
    "task.destroy": 8,
    "VM.get_record": 4,
    "VM.remove_from_other_config": 0,
    "Async.VDI.destroy": 0,
}
UNDOING_HERE = {
    "VM.get_record": 2,
    "VM.remove_from_blocked_operations": 2,
    "Async.VM.start_on": 1,
    "VDI.remove_from_other_config": 4,
    "VDI.get_all_records_where": 1,
    "Async.VDI.destroy": 2,
    "VM.set_name_label": 1,
    "VM.remove_from_other_config": 1,
    "task.get_by_name_label": 2,
    "task.destroy": 3,
}
UNDOING_THERE = {
    "task.get_all_records_where": 2,
    "task.get_by_name_label": 2,
    "VDI.get_all_records_where": 2,
    "Async.VDI.destroy": 2,
    "task.destroy": 2,
}
undoing_here = Matrix(
    calls(UNDOING_HERE, BEFORE_HERE),
    running,
    migrate_in_vain,
    assert_undone,
    apart=BEFORE_HERE,
    telling={("Async.VM.start_on", 1)},
)
undoing_there = Matrix(
    calls(UNDOING_THERE, MOVING_THERE),
    running,
    migrate_in_vain,
    assert_undone,
    pool="far",
    apart=MOVING_THERE,
    telling=(),
)


@undoing_here.at_every_call
def test_an_accident_in_the_pool_that_is_left_while_undoing(rig: TwoPools, accident: Accident) -> None:
    undoing_here.endure(rig, accident)


@undoing_there.at_every_call
def test_an_accident_in_the_pool_that_is_moved_to_while_undoing(rig: TwoPools, accident: Accident) -> None:
    undoing_there.endure(rig, accident)


@pytest.mark.matrix
@pytest.mark.parametrize("name", [f"{what}_{side}" for what in ("moving", "undoing") for side in ("here", "there")])
def test_the_matrix_has_every_call(rig: TwoPools, name: str) -> None:
    globals()[name].assert_is_complete(rig)
