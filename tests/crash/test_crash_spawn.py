"""The crash matrix of spawn: at every call, before and after it took effect, worker killed or wire cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.crash.matrix import LOOKS, Accident, Matrix, kill_and_go_on
from tests.support.rig import Rig
from tests.support.spawning import (
    Picture,
    assert_nothing_of,
    assert_spawned,
    assert_tidy,
    cached,
    cached_images,
    devices_of,
    put_image,
    refused,
    remove,
    spawn,
)
from worker.client import Handle
from worker.operations.states import State

pytestmark = [pytest.mark.crash, pytest.mark.slow]

NETWORK = {"network": "xenbr0"}
#: A spawn of an image that the storage repository has.
CLONING = [
    ("VM.get_all_records_where", 1),
    ("host.compute_free_memory", 1),
    ("VDI.get_all_records_where", 1),
    ("VDI.add_to_other_config", 1),
    ("VDI.clone", 1),
    ("VDI.remove_from_other_config", 1),
    ("VDI.set_other_config", 1),
    ("VDI.set_name_label", 1),
    ("VDI.resize", 1),
    ("VDI.set_name_description", 1),
    ("VM.create", 1),
    ("VBD.create", 1),
    ("VIF.create", 1),
    ("Async.VM.start", 1),
    ("task.destroy", 1),
]
#: What comes before that when it has to be fetched: the second look is that of whoever has the right to.
FETCHING = [
    ("VDI.get_all_records_where", 2),
    ("VDI.create", 1),
    ("task.create", 1),
    ("PUT /import_raw_vdi", 1),
    ("task.destroy", 2),
    ("VDI.get_record", 1),
    ("host.get_servertime", 1),
    ("VDI.set_other_config", 2),
    ("VDI.set_name_description", 2),
]
#: The facts of the pool, the start's end, and the result.
FIRST_LOOKS = [("event.from", 1), ("event.from", 2), ("event.from", 3)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool whose guests write nothing, so that contents can be compared."""
    with Rig(tmp_path_factory.mktemp("rig"), simulator_options=("--guest-writes", "0")) as made:
        yield made


def spawn_small(rig: Rig, picture: Picture) -> Handle:
    """Spawn with an interface and a disk that grows by a little."""
    return spawn(rig, picture.id, networks=[NETWORK], flavor={"root_gb": 1})


def assert_spawned_once(rig: Rig, picture: Picture, handle: Handle) -> None:
    """As after an undisturbed run: one VM of the right content with its devices, one cached image, nothing else."""
    vm_rec = assert_spawned(rig, handle, picture)
    assert len(devices_of(rig, vm_rec, "VIF")) == 1
    (image,) = cached_images(rig, picture.id)
    assert "vmops.cloned-by" not in image["other_config"]
    assert_tidy(rig)
    remove(rig, handle)


cloning = Matrix(CLONING, cached, spawn_small, assert_spawned_once, looks=FIRST_LOOKS)
fetching = Matrix(CLONING + FETCHING, put_image, spawn_small, assert_spawned_once)


def test_the_matrix_has_every_call_of_a_spawn_by_cloning(rig: Rig) -> None:
    cloning.assert_is_complete(rig)


def test_the_matrix_has_every_call_of_a_spawn_by_fetching(rig: Rig) -> None:
    fetching.assert_is_complete(rig)


@cloning.at_every_call
def test_an_accident_while_cloning(rig: Rig, accident: Accident) -> None:
    cloning.endure(rig, accident)


@pytest.mark.parametrize(
    "accident",
    [one.case() for one in fetching.accidents if (one.call, one.nth) in FETCHING],
)
def test_an_accident_while_fetching(rig: Rig, accident: Accident) -> None:
    fetching.endure(rig, accident)


@pytest.mark.parametrize("effect", ["cut", "pause"])
def test_an_accident_in_the_middle_of_an_import(rig: Rig, effect: str) -> None:
    picture = put_image(rig)
    fault = rig.simulator.add_fault(match="PUT /import_raw_vdi", nth=1, effect=effect, after_bytes=1 << 20)
    handle = spawn_small(rig, picture)
    rig.simulator.wait_for_hit(fault)
    if effect == "pause":
        kill_and_go_on(rig)
    assert_spawned_once(rig, picture, handle)


# -- while it is being undone ------------------------------------------------------------------------------------------

UNDOING = [
    ("task.get_all_records_where", 1),
    ("VM.hard_shutdown", 1),
    ("task.get_all_records_where", 2),
    ("VM.get_all_records_where", 2),
    ("VM.destroy", 1),
    ("task.get_by_name_label", 1),
    ("task.get_all_records_where", 3),
    ("VDI.get_all_records_where", 2),
    ("VDI.get_all_records_where", 3),
    ("Async.VDI.destroy", 1),
    ("task.destroy", 1),
]


def spawn_doomed(rig: Rig, picture: Picture) -> Handle:
    """Spawn a VM that the pool will not start."""
    rig.simulator.add_fault(match="Async.VM.start", effect="failure", error=["PERMISSION_DENIED", "not today"])
    return spawn_small(rig, picture)


def assert_undone(rig: Rig, picture: Picture, handle: Handle) -> None:
    """The operation has failed with its cause, and only the cached image is left."""
    assert "not today" in refused(rig, handle, "PERMISSION_DENIED", State.UNDONE)
    assert_nothing_of(rig, handle)
    (image,) = cached_images(rig, picture.id)
    assert "vmops.cloned-by" not in image["other_config"]
    rig.simulator.clear_faults()


undoing = Matrix(UNDOING, cached, spawn_doomed, assert_undone)


def test_the_matrix_has_every_call_of_an_undo(rig: Rig) -> None:
    picture = cached(rig)
    rig.simulator.reset_stats()
    handle = spawn_doomed(rig, picture)
    rig.wait(handle)
    made = Counter({name: calls for name, calls in rig.simulator.calls().items() if name not in LOOKS})
    assert_undone(rig, picture, handle)
    before = Counter(name for name, _ in CLONING) - Counter(["task.destroy"])
    assert made - before == Counter(name for name, _ in UNDOING), made - before


@undoing.at_every_call
def test_an_accident_while_undoing(rig: Rig, accident: Accident) -> None:
    undoing.endure(rig, accident)
