"""The crash matrices of what ends a resize or move, on both sides: finishing, confirming, reverting."""

from __future__ import annotations

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.crash.migration.cases import (
    assert_confirmed,
    assert_finished,
    assert_reverted,
    calls,
    confirm,
    finish,
    finished,
    moved,
    revert,
)
from tests.support.two_pools import TwoPools

pytestmark = [pytest.mark.crash, pytest.mark.slow]

FINISHING_HERE = {
    "VM.get_all_records_where": 2,
    "host.get_servertime": 2,
    "VM.add_to_other_config": 4,
    "VM.remove_from_other_config": 2,
    "VIF.get_all_records_where": 1,
    "VM.get_record": 1,
    "VBD.get_all_records_where": 1,
}
FINISHING_THERE = {
    "VM.get_all_records_where": 1,
    "host.compute_free_memory": 1,
    "VM.create": 1,
    "VBD.create": 2,
    "VIF.create": 1,
    "VM.get_record": 2,
    "Async.VM.start": 1,
    "task.destroy": 1,
    "VDI.set_other_config": 2,
    "VDI.set_name_label": 2,
    "host.get_servertime": 1,
    "VM.add_to_other_config": 1,
}
finishing_here = Matrix(calls(FINISHING_HERE), moved, finish, assert_finished, telling=())
finishing_there = Matrix(calls(FINISHING_THERE), moved, finish, assert_finished, pool="far", telling={("VM.create", 1)})


@finishing_here.at_every_call
def test_an_accident_in_the_pool_that_is_left_while_finishing(rig: TwoPools, accident: Accident) -> None:
    finishing_here.endure(rig, accident)


@finishing_there.at_every_call
def test_an_accident_in_the_pool_that_is_moved_to_while_finishing(rig: TwoPools, accident: Accident) -> None:
    finishing_there.endure(rig, accident)


CONFIRMING_HERE = {
    "VM.get_all_records_where": 3,
    "host.get_servertime": 1,
    "VM.add_to_other_config": 2,
    "VM.remove_from_other_config": 1,
    "VM.destroy": 1,
    "Async.VDI.destroy": 2,
    "task.destroy": 2,
}
CONFIRMING_THERE = {
    "VM.get_all_records_where": 4,
    "host.get_servertime": 1,
    "VM.add_to_other_config": 2,
    "VM.remove_from_other_config": 2,
}
confirming_here = Matrix(calls(CONFIRMING_HERE), finished, confirm, assert_confirmed, telling=())
confirming_there = Matrix(calls(CONFIRMING_THERE), finished, confirm, assert_confirmed, pool="far", telling=())


@confirming_here.at_every_call
def test_an_accident_in_the_pool_that_is_left_while_confirming(rig: TwoPools, accident: Accident) -> None:
    confirming_here.endure(rig, accident)


@confirming_there.at_every_call
def test_an_accident_in_the_pool_that_is_moved_to_while_confirming(rig: TwoPools, accident: Accident) -> None:
    confirming_there.endure(rig, accident)


REVERTING_HERE = {
    "VM.get_all_records_where": 4,
    "host.get_servertime": 2,
    "VM.add_to_other_config": 4,
    "VM.remove_from_other_config": 3,
    "VM.set_name_label": 1,
    "VM.remove_from_blocked_operations": 2,
    "Async.VM.start": 1,
    "task.destroy": 1,
    "VBD.get_all_records_where": 1,
    "VDI.remove_from_other_config": 2,
    "VM.get_record": 1,
}
REVERTING_THERE = {
    "VM.get_all_records_where": 5,
    "host.get_servertime": 1,
    "VM.add_to_other_config": 2,
    "VM.remove_from_other_config": 1,
    "VM.hard_shutdown": 1,
    "VM.destroy": 1,
    "Async.VDI.destroy": 2,
    "task.destroy": 2,
}
reverting_here = Matrix(calls(REVERTING_HERE), finished, revert, assert_reverted, telling=())
reverting_there = Matrix(calls(REVERTING_THERE), finished, revert, assert_reverted, pool="far", telling=())


@reverting_here.at_every_call
def test_an_accident_in_the_pool_that_is_left_while_reverting(rig: TwoPools, accident: Accident) -> None:
    reverting_here.endure(rig, accident)


@reverting_there.at_every_call
def test_an_accident_in_the_pool_that_is_moved_to_while_reverting(rig: TwoPools, accident: Accident) -> None:
    reverting_there.endure(rig, accident)


@pytest.mark.matrix
@pytest.mark.parametrize(
    "name", [f"{what}_{side}" for what in ("finishing", "confirming", "reverting") for side in ("here", "there")]
)
def test_the_matrix_has_every_call(rig: TwoPools, name: str) -> None:
    globals()[name].assert_is_complete(rig)
