"""The crash matrix of a disk that becomes smaller: what a dead worker has in its folder counts for what it is.

It has the calls that this disk's way adds; those of the other disk, of marking and of halting are in the moves' matrix.
"""

from __future__ import annotations

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.crash.migration.cases import Case, assert_small, migrate, shrinking
from tests.support.two_pools import TwoPools

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(120)]


def these(**numbers: tuple[int, ...]) -> list[tuple[str, int]]:
    """Return calls: each with which ones of its name."""
    names = {"exports": "GET /export_raw_vdi", "imports": "PUT /import_raw_vdi"}
    return [(names.get(key, key.replace("__", ".")), number) for key, which in numbers.items() for number in which]


#: It is exported three times: its beginning to look at, then as a whole, and what its guest has written since.
here: Matrix[Case] = Matrix(
    these(
        exports=(1, 2, 4),
        task__create=(1, 2, 4),
        task__set_status=(1,),
        task__get_by_name_label=(1, 2),
        task__destroy=(4, 5, 8),
    ),
    shrinking,
    migrate,
    assert_small,
    apart={
        "VM.get_all_records_where": 1,
        "VBD.get_all_records_where": 1,
        "host.get_servertime": 2,
        "VM.add_to_other_config": 3,
        "VM.set_name_label": 2,
        "VDI.get_all_records_where": 1,
        "VDI.add_to_other_config": 4,
        "Async.VDI.snapshot": 2,
        "VDI.remove_from_other_config": 2,
        "Async.SR.scan": 1,
        "VM.get_record": 5,
        "VM.add_to_blocked_operations": 2,
        "Async.VM.clean_shutdown": 1,
        "VM.remove_from_other_config": 1,
        "Async.VDI.destroy": 2,
        "GET /export_raw_vdi": 2,
        "task.create": 2,
        "task.get_by_name_label": 1,
        "task.destroy": 8,
    },
)
there: Matrix[Case] = Matrix(
    these(VDI__create=(2,), VDI__get_record=(2,), task__create=(2,), imports=(2,), task__destroy=(2,)),
    shrinking,
    migrate,
    assert_small,
    pool="far",
    apart={
        "VM.get_all_records_where": 1,
        "host.compute_free_memory": 1,
        "VDI.create": 1,
        "VDI.get_record": 1,
        "task.create": 2,
        "PUT /import_raw_vdi": 2,
        "task.get_by_name_label": 1,
        "task.destroy": 2,
    },
)


@here.at_every_call
def test_an_accident_in_the_pool_of_the_large_disk(rig: TwoPools, accident: Accident) -> None:
    here.endure(rig, accident)


@there.at_every_call
def test_an_accident_in_the_pool_of_the_small_disk(rig: TwoPools, accident: Accident) -> None:
    there.endure(rig, accident)


@pytest.mark.parametrize("name", ["here", "there"])
def test_the_matrix_has_every_call(rig: TwoPools, name: str) -> None:
    globals()[name].assert_is_complete(rig)
