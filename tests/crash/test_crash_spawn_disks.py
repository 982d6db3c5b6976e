"""The crash matrix of the disks that a spawn makes beside the root: swap, an ephemeral one, a config drive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.iso import files_of, label_of
from tests.support.rig import Rig
from tests.support.spawning import (
    Picture,
    assert_nothing_of,
    assert_tidy,
    cached,
    cached_images,
    devices_of,
    disk_file,
    made_by,
    records,
    refused,
    remove,
    spawn,
    succeeded,
    vm_of,
)
from tests.support.tools import run_tool
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]

#: Role -> position.
DISKS = {"root": "0", "swap": "2", "configdrive": "3", "ephemeral": "4"}
#: A disk: made, filled, and given its own mark. The first mark of all is that on the image that is cloned.
EACH = ("VDI.create", "task.create", "PUT /import_raw_vdi", "task.destroy", "VDI.add_to_other_config")
MAKING = [(call, nth) for nth in (1, 2, 3) for call in EACH] + [("VDI.add_to_other_config", 4)]
CLONING = [
    "VM.get_all_records_where",
    "host.compute_free_memory",
    "VDI.get_all_records_where",
    "VDI.clone",
    "VDI.remove_from_other_config",
    "VDI.set_other_config",
    "VDI.set_name_label",
    "VDI.set_name_description",
    "VM.create",
]
ATTACHING = [("VBD.create", nth) for nth in (1, 2, 3, 4)]
#: After the first calls of these kinds much is left; the later ones, and other moments, are in `make test-matrix`.
TELLING = {("VDI.create", 2), ("PUT /import_raw_vdi", 1), ("VDI.add_to_other_config", 3), ("VBD.create", 3)}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool whose guests write nothing, so that contents can be compared."""
    with Rig(tmp_path_factory.mktemp("rig"), simulator_options=("--guest-writes", "0")) as made:
        yield made


def spawn_with_disks(rig: Rig, picture: Picture) -> Handle:
    """Spawn a VM with every kind of disk, and leave it halted: then its disks can be read."""
    flavor = {"swap_mb": 2, "ephemeral_gb": 1}
    return spawn(rig, picture.id, flavor=flavor, config_drive={"user_data": "#!/bin/sh\n"}, start="no")


def assert_has_disks(rig: Rig, picture: Picture, handle: Handle) -> None:
    """As after an undisturbed run: each disk once, at its place, whole, and nothing else."""
    result = succeeded(rig, handle)
    vdis = records(rig, "VDI")
    attached = {vbd["userdevice"]: vbd["VDI"] for vbd in devices_of(rig, vm_of(rig, result))}
    made = [ref for ref, rec in vdis.items() if rec["other_config"].get("vmops.operation") == handle.id]
    made = [ref for ref in made if vdis[ref]["other_config"]["vmops.role"] != "image"]
    assert {vdis[ref]["other_config"]["vmops.role"]: place for place, ref in attached.items()} == DISKS
    assert sorted(made) == sorted(attached.values())
    assert all(vdis[ref]["other_config"]["vmops.disk"] == ref for ref in made)
    uuids = {role: vdis[attached[place]]["uuid"] for role, place in DISKS.items()}
    root = vdis[attached["0"]]
    assert rig.simulator.disk(uuids["root"])["sha256"] == picture.digest(int(root["virtual_size"]))
    assert disk_file(rig, uuids["swap"], rig.folder).read_bytes()[(1 << 20) + 4086 :][:10] == b"SWAPSPACE2"
    run_tool("e2fsck", "-fn", f"{disk_file(rig, uuids['ephemeral'], rig.folder)}?offset={1 << 20}")
    drive = disk_file(rig, uuids["configdrive"], rig.folder).read_bytes()
    assert label_of(drive) == "config-2"
    assert files_of(drive)["openstack/latest/user_data"] == b"#!/bin/sh\n"
    assert len(cached_images(rig, picture.id)) == 1
    assert_tidy(rig)
    remove(rig, handle)


making = Matrix([(call, 1) for call in CLONING] + MAKING + ATTACHING, cached, spawn_with_disks, assert_has_disks)


def case_of(accident: Accident) -> object:
    """Return the accident as a test case."""
    is_default = (accident.kind, accident.moment) == ("killed", "after") and (accident.call, accident.nth) in TELLING
    return pytest.param(accident, id=str(accident), marks=() if is_default else pytest.mark.matrix)


def test_the_matrix_has_every_call_of_a_spawn_with_disks(rig: Rig) -> None:
    making.assert_is_complete(rig)


@pytest.mark.parametrize("accident", [case_of(one) for one in making.accidents if (one.call, one.nth) in MAKING])
def test_an_accident_while_disks_are_made(rig: Rig, accident: Accident) -> None:
    making.endure(rig, accident)


@pytest.mark.parametrize("accident", [case_of(one) for one in making.accidents if (one.call, one.nth) in ATTACHING])
def test_an_accident_while_disks_are_attached(rig: Rig, accident: Accident) -> None:
    making.endure(rig, accident)


# -- while it is being undone ------------------------------------------------------------------------------------------


def spawn_doomed(rig: Rig, picture: Picture) -> Handle:
    """Spawn a VM whose record the pool refuses."""
    rig.simulator.add_fault(match="VM.create", effect="failure", error=["PERMISSION_DENIED", "not today"])
    return spawn_with_disks(rig, picture)


def assert_undone(rig: Rig, picture: Picture, handle: Handle) -> None:
    """The operation has failed with its cause, and only the cached image is left."""
    assert "not today" in refused(rig, handle, "PERMISSION_DENIED", State.UNDONE)
    assert_nothing_of(rig, handle)
    assert [rec["name_label"] for rec in made_by(handle, records(rig, "VDI"))] == []
    rig.simulator.clear_faults()


DESTROYING = [("Async.VDI.destroy", nth) for nth in (1, 2, 3, 4)]
undoing = Matrix(DESTROYING, cached, spawn_doomed, assert_undone)


@pytest.mark.parametrize(
    "accident",
    [
        pytest.param(
            one, id=str(one), marks=() if str(one) == "killed after Async.VDI.destroy 2" else pytest.mark.matrix
        )
        for one in undoing.accidents
    ],
)
def test_an_accident_while_disks_are_destroyed(rig: Rig, accident: Accident) -> None:
    undoing.endure(rig, accident)
