"""The crash matrices of moves of running VMs: to another pool, host and storage repository, and of a refused one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.crash.migration.cases import Case, calls, changing_storage, of, running
from tests.support.rig import Rig
from tests.support.two_pools import TwoPools
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]


def to_another_pool(rig: Rig) -> Case:
    return replace(running(rig), dest={"pool": "far"})


def to_another_host(rig: Rig) -> Case:
    return replace(running(rig), dest={})


def to_another_sr(rig: Rig) -> Case:
    case = changing_storage(rig)
    return replace(case, dest={"sr": of(rig).other_sr_uuid})


def move(rig: Rig, case: Case) -> Handle:
    return rig.client.live_migrate(instance={"vm_uuid": case.made["uuid"]}, dest=case.dest, pool="lab")


def assert_moved(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM runs where it shall, with its disks, without a mark, and nowhere else."""
    two = of(rig)
    result = two.done(handle)
    pool = "far" if case.dest == {"pool": "far"} else "lab"
    assert (result["vm_uuid"], result["pool"], result["power_state"]) == (case.made["uuid"], pool, "Running")
    assert two.digests(pool, result["disks"]) == case.contents
    assert (result["disks"] == case.made["vdis"]) is (case.dest == {})
    vm = two.vm(pool, uuid=case.made["uuid"])
    assert vm is not None
    assert not [key for key in vm["other_config"] if key.startswith("vmops.")]
    with two.at(pool).session() as call:
        assert call("host.get_uuid", vm["resident_on"]) == result["host"]
    if pool == "far":
        assert two.vm("lab", uuid=case.made["uuid"]) is None


def move_in_vain(rig: Rig, case: Case) -> Handle:
    """Move a VM that the pool refuses to let go."""
    refusal = ["SR_DOES_NOT_SUPPORT_MIGRATION", "OpaqueRef:one"]
    rig.simulator.add_fault(match="VM.assert_can_migrate", effect="failure", error=refusal)
    return move(rig, case)


def assert_stayed(rig: Rig, case: Case, handle: Handle) -> None:
    """The VM runs where it ran."""
    of(rig).failed(handle, "SR_DOES_NOT_SUPPORT_MIGRATION", State.UNDONE)
    rig.simulator.clear_faults()
    of(rig).assert_as_before(case.made, case.name)


_LOOKING = {"VM.get_all_records_where": 1, "VM.get_record": 2, "VBD.get_all_records_where": 1}
#: What the pools say to each other.
_AMONG_POOLS = {
    "SM.get_all_records": 2,
    "SR.get_record": 4,
    "host.compute_free_memory": 2,
    "host.get_record": 2,
    "network.get_uuid": 2,
    "task.create": 7,
    "task.destroy": 7,
    "VDI.create": 2,
    "PUT /import_metadata": 3,
    "PUT /import_raw_vdi": 4,
    "PUT /services/xenops/memory": 1,
}
ASKING_HERE = {**_LOOKING, "VIF.get_all_records_where": 1, "VM.add_to_other_config": 1, "VM.assert_can_migrate": 1}
ASKING_THERE = {"host.compute_free_memory": 2, "VM.get_all_records_where": 1, "host.migrate_receive": 1}
LEAVING = {**ASKING_HERE, "Async.VM.migrate_send": 1, "task.destroy": 1}
ARRIVING = {
    **ASKING_THERE,
    "VM.get_all_records_where": 2,
    "VM.remove_from_other_config": 1,
    "VBD.get_all_records_where": 1,
}
WITHIN = {
    "VM.get_all_records_where": 2,
    "VM.get_record": 2,
    "VBD.get_all_records_where": 2,
    "host.compute_free_memory": 1,
    "task.destroy": 1,
}
WITH_DISKS = {
    **WITHIN,
    "VM.add_to_other_config": 1,
    "host.migrate_receive": 1,
    "VM.assert_can_migrate": 1,
    "Async.VM.migrate_send": 1,
    "VM.remove_from_other_config": 1,
}
TAKING_BACK_HERE = {
    "VM.get_record": 1,
    "VM.get_all_records_where": 1,
    "VM.remove_from_other_config": 1,
    "VBD.get_all_records_where": 1,
}

moving = partial(Matrix, submit=move, check=assert_moved, telling=())
staying: Any = partial(Matrix, prepare=to_another_pool, submit=move_in_vain, check=assert_stayed, telling=())
MATRICES: dict[str, Matrix[Case]] = {
    "leaving": moving(calls(LEAVING), to_another_pool),
    "arriving": moving(calls(ARRIVING), to_another_pool, pool="far", apart=_AMONG_POOLS),
    "to another host": moving(calls({**WITHIN, "Async.VM.pool_migrate": 1}), to_another_host),
    "to another storage repository": moving(calls(WITH_DISKS), to_another_sr),
    "refused here": staying(calls(TAKING_BACK_HERE, ASKING_HERE), apart=ASKING_HERE),
    "refused there": staying(calls({"VM.get_all_records_where": 1}, ASKING_THERE), pool="far", apart=ASKING_THERE),
}


@pytest.mark.parametrize(
    ("name", "accident"),
    [accident.case(name, telling=()) for name, matrix in MATRICES.items() for accident in matrix.accidents],
)
def test_an_accident_while_a_vm_moves_as_it_runs(rig: TwoPools, name: str, accident: Accident) -> None:
    MATRICES[name].endure(rig, accident)


@pytest.mark.matrix
@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_has_every_call(rig: TwoPools, name: str) -> None:
    MATRICES[name].assert_is_complete(rig)
