"""The crash matrices of resize and move, on both sides: at every call, before and after it took effect.

However often the worker dies and whatever answer gets lost: the move is made once, or the VM is as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.rig import Rig
from tests.support.two_pools import TwoPools
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]

_numbers = count(1)


def calls(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return every call: (name, which one of that name)."""
    return [(name, number) for name, times in counts.items() for number in range(1, times + 1)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoPools]:
    """Two pools and a worker that is killed again and again."""
    options = ("--guest-writes", "0", "--boot-time", "20ms", "--shutdown-time", "20ms")
    with TwoPools(tmp_path_factory.mktemp("rig"), simulator_options=options, store="directory") as made:
        yield made


@pytest.fixture(autouse=True)
def _far(rig: TwoPools) -> Iterator[None]:
    yield
    rig.far.clear_faults()
    rig.remove_vms()
    rig.assert_tidy()


@dataclass
class Case:
    """A VM on its way."""

    made: dict[str, Any]
    name: str
    contents: list[str] = field(default_factory=list)
    moved: dict[str, Any] = field(default_factory=dict)
    finished: dict[str, Any] = field(default_factory=dict)


def of(rig: Rig) -> TwoPools:
    return cast("TwoPools", rig)


def running(rig: Rig) -> Case:
    name = f"crash-{next(_numbers)}"
    made = of(rig).add(name, 4, 2)
    return Case(made, name, of(rig).digests("lab", made["vdis"]))


def moved(rig: Rig) -> Case:
    case = running(rig)
    case.moved = of(rig).done(of(rig).migrate(case.made))
    return case


def finished(rig: Rig) -> Case:
    case = moved(rig)
    case.finished = of(rig).done(of(rig).finish(case.moved, resize_instance=False))
    return case


# -- migrate_disk_and_power_off


def migrate(rig: Rig, case: Case) -> Handle:
    return of(rig).migrate(case.made)


def assert_moved(rig: Rig, case: Case, handle: Handle) -> None:
    """The disks are over there, once; the VM is halted, and can be taken back."""
    two = of(rig)
    result = two.done(handle)
    there = [disk["vdi_uuid"] for disk in result["disks"]]
    assert two.digests("far", there) == case.contents
    with two.far.session() as call:
        assert sorted(rec["uuid"] for rec in call("VDI.get_all_records").values() if rec["managed"]) == sorted(there)
    left = two.vm("lab", uuid=case.made["uuid"])
    assert left is not None
    assert (left["name_label"], left["power_state"]) == (f"{case.name}-orig", "Halted")
    two.done(two.client.finish_revert_migration(instance={"vm_uuid": case.made["uuid"]}, pool="lab"))
    two.assert_as_before(case.made, case.name)


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


# -- migrate_disk_and_power_off taken back


def migrate_in_vain(rig: Rig, case: Case) -> Handle:
    """Move a VM that fails at the very end, when it is halted and its disks are over there."""
    refusal = ["PERMISSION_DENIED", "not today"]
    of(rig).simulator.add_fault(match="VDI.add_to_other_config", nth=3, effect="failure", error=refusal)
    return of(rig).migrate(case.made)


def assert_undone(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM is as before, and the cause is told."""
    of(rig).failed(handle, "PERMISSION_DENIED", State.UNDONE)
    rig.simulator.clear_faults()
    of(rig).assert_as_before(case.made, case.name)


#: The calls of the undo, counted from the submission.
UNDOING_HERE = [
    ("VM.get_record", 6),
    *(("VM.remove_from_blocked_operations", number) for number in (1, 2)),
    ("Async.VM.start_on", 1),
    *(("VDI.remove_from_other_config", number) for number in (3, 4, 5, 6)),
    ("VDI.get_all_records_where", 2),
    *(("Async.VDI.destroy", number) for number in (1, 2)),
    ("VM.set_name_label", 2),
    ("VM.remove_from_other_config", 1),
]
UNDOING_THERE = [
    *(("task.get_all_records_where", number) for number in (1, 2)),
    *(("VDI.get_all_records_where", number) for number in (1, 2)),
    *(("Async.VDI.destroy", number) for number in (1, 2)),
]
undoing_here = Matrix(UNDOING_HERE, running, migrate_in_vain, assert_undone, telling={("Async.VM.start_on", 1)})
undoing_there = Matrix(UNDOING_THERE, running, migrate_in_vain, assert_undone, pool="far", telling=())


@undoing_here.at_every_call
def test_an_accident_in_the_pool_that_is_left_while_undoing(rig: TwoPools, accident: Accident) -> None:
    undoing_here.endure(rig, accident)


@undoing_there.at_every_call
def test_an_accident_in_the_pool_that_is_moved_to_while_undoing(rig: TwoPools, accident: Accident) -> None:
    undoing_there.endure(rig, accident)


# -- the matrices themselves


@pytest.mark.matrix
@pytest.mark.parametrize(
    "name",
    [f"{what}_{side}" for what in ("moving", "finishing", "confirming", "reverting") for side in ("here", "there")],
)
def test_the_matrix_has_every_call(rig: TwoPools, name: str) -> None:
    globals()[name].assert_is_complete(rig)


# -- finish_migration


def finish(rig: Rig, case: Case) -> Handle:
    return of(rig).finish(case.moved, resize_instance=False)


def assert_finished(rig: Rig, case: Case, handle: Handle) -> None:
    """One VM runs over there with the disks; it can be reverted."""
    two = of(rig)
    result = two.done(handle)
    with two.far.session() as call:
        vms = [rec for rec in call("VM.get_all_records").values() if not rec["is_control_domain"]]
    assert [(rec["uuid"], rec["name_label"], rec["power_state"]) for rec in vms] == [
        (result["vm_uuid"], case.name, "Running")
    ]
    assert len(vms[0]["VIFs"]) == 1
    disks = two.disks("far", two.vm("far", uuid=result["vm_uuid"])["ref"])  # type: ignore[index]  # it is there
    assert two.digests("far", [disks[position]["uuid"] for position in ("0", "1")]) == case.contents
    two.done(two.client.finish_revert_migration(instance={"vm_uuid": result["vm_uuid"]}, pool="far"))
    two.assert_as_before(case.made, case.name)


FINISHING_HERE = {
    "VM.get_all_records_where": 2,
    "host.get_servertime": 2,
    "VM.add_to_other_config": 4,
    "VM.remove_from_other_config": 2,
    "VIF.get_all_records_where": 1,
    "VM.get_record": 1,
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


# -- confirm_migration


def confirm(rig: Rig, case: Case) -> Handle:
    return rig.client.confirm_migration(instance={"vm_uuid": case.finished["vm_uuid"]}, pool="far")


def assert_confirmed(rig: Rig, case: Case, handle: Handle) -> None:
    """What was left is gone with its disks, and the VM runs on with its own."""
    two = of(rig)
    assert two.done(handle)["confirmed"] is True
    assert two.vm("lab", uuid=case.made["uuid"]) is None
    with two.simulator.session() as call:
        assert [rec["uuid"] for rec in call("VDI.get_all_records").values() if rec["uuid"] in case.made["vdis"]] == []
    vm = two.vm("far", uuid=case.finished["vm_uuid"])
    assert vm is not None
    assert vm["power_state"] == "Running"
    assert "vmops.migration" not in vm["other_config"]
    assert two.digests("far", case.finished["disks"]) == case.contents


CONFIRMING_HERE = {
    "VM.get_all_records_where": 2,
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


# -- finish_revert_migration


def revert(rig: Rig, case: Case) -> Handle:
    return rig.client.finish_revert_migration(instance={"vm_uuid": case.finished["vm_uuid"]}, pool="far")


def assert_reverted(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM is as before."""
    of(rig).done(handle)
    of(rig).assert_as_before(case.made, case.name)
    assert of(rig).digests("lab", case.made["vdis"]) == case.contents


REVERTING_HERE = {
    "VM.get_all_records_where": 2,
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
    "VM.get_all_records_where": 4,
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


# -- live_migrate


def move_live(rig: Rig, case: Case) -> Handle:
    return rig.client.live_migrate(instance={"vm_uuid": case.made["uuid"]}, dest={"pool": "far"}, pool="lab")


def assert_moved_live(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM runs in the other pool, with its disks, and nowhere else."""
    result = of(rig).done(handle)
    assert (result["vm_uuid"], result["power_state"]) == (case.made["uuid"], "Running")
    assert of(rig).digests("far", result["disks"]) == case.contents
    assert of(rig).vm("lab", uuid=case.made["uuid"]) is None


LIVE = [("VM.add_to_other_config", 1), ("VM.assert_can_migrate", 1), ("Async.VM.migrate_send", 1)]
moving_live = Matrix(LIVE, running, move_live, assert_moved_live, telling=())


@moving_live.at_every_call
def test_an_accident_while_a_vm_moves_as_it_runs(rig: TwoPools, accident: Accident) -> None:
    moving_live.endure(rig, accident)
