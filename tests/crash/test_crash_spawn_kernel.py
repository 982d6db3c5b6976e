"""The crash matrix of kernel and ramdisk files: a spawn that brings them to dom0, and a destroy that removes them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.crash.matrix import Accident, Matrix
from tests.support.dom0 import install
from tests.support.rig import Rig
from tests.support.spawning import (
    Picture,
    assert_nothing_of,
    assert_tidy,
    put_image,
    remove,
    spawn,
    store_of,
    succeeded,
    vm_of,
)
from worker.client import Handle
from worker.images.image import ImageMeta

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.matrix]

KERNEL = b"kernel" * 30_000
#: The check's look, the step's look, the file's state and its two parts; then the VM's record.
PUTTING = [*(("host.call_plugin", nth) for nth in (1, 2, 3, 4, 5)), ("VM.set_PV_kernel", 1), ("VM.set_PV_ramdisk", 1)]
REMOVING = [("VM.get_all_records_where", 2), ("host.call_plugin", 1)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A pool whose host has the pack of plugins."""
    folder = tmp_path_factory.mktemp("rig")
    with Rig(folder, simulator_options=("--guest-writes", "0", "--plugins", str(install(folder)))) as made:
        yield made


def put_pv_image(rig: Rig) -> Picture:
    """Put an image into the store that names a kernel of its own."""
    store = store_of(rig)
    kernel = store.create(ImageMeta("kernel", disk_format="aki", container_format="aki"))
    store.upload(kernel.id, iter([KERNEL]))
    return put_image(rig, properties={"kernel_id": kernel.id})


def files(rig: Rig) -> list[str]:
    """Return the files in dom0."""
    with rig.simulator.session() as call:
        (ref,) = call("host.get_all")
        answer = json.loads(call("host.call_plugin", ref, "vmops-kernel", "list", {"api": "1"}))
    return [one["path"] for one in answer["files"]]


def spawn_pv(rig: Rig, picture: Picture) -> Handle:
    """Spawn a VM that stays halted."""
    return spawn(rig, picture.id, start="no", cache_image=False)


def assert_boots_its_kernel(rig: Rig, picture: Picture, handle: Handle) -> None:
    """As after an undisturbed run: one file, which the VM names; it goes with the VM."""
    vm_rec = vm_of(rig, succeeded(rig, handle))
    assert files(rig) == [vm_rec["PV_kernel"]]
    assert_tidy(rig)
    succeeded(rig, rig.client.destroy(instance={"vm_uuid": vm_rec["uuid"]}))
    assert files(rig) == []
    remove(rig, handle)


def make_vm(rig: Rig) -> Handle:
    """Spawn a VM to be destroyed."""
    handle = spawn_pv(rig, put_pv_image(rig))
    succeeded(rig, handle)
    return handle


def destroy_vm(rig: Rig, made: Handle) -> Handle:
    """Destroy it."""
    return rig.client.destroy(instance={"vm_uuid": made.record().result["vm_uuid"]})


def assert_destroyed(rig: Rig, made: Handle, handle: Handle) -> None:
    """No file is left, and nothing else."""
    assert "kernel_files" not in succeeded(rig, handle)
    assert files(rig) == []
    assert_nothing_of(rig, made)


putting = Matrix(PUTTING, put_pv_image, spawn_pv, assert_boots_its_kernel)
removing = Matrix(REMOVING, make_vm, destroy_vm, assert_destroyed)


@putting.at_every_call
def test_an_accident_while_files_are_brought(rig: Rig, accident: Accident) -> None:
    putting.endure(rig, accident)


@removing.at_every_call
def test_an_accident_while_files_are_removed(rig: Rig, accident: Accident) -> None:
    removing.endure(rig, accident)
