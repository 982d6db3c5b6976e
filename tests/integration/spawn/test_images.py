"""spawn: from an image to a running VM whose disk is the image's."""

from __future__ import annotations

import pytest

from tests.support.rig import Rig
from tests.support.spawning import (
    GIB,
    Kind,
    assert_spawned,
    assert_tidy,
    cached_images,
    devices_of,
    put_image,
    records,
    spawn,
    succeeded,
    vm_of,
)


@pytest.mark.parametrize("kind", ["vhd", "raw", "bundle"])
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "private"])
def test_a_vm_of_an_image_runs_on_the_images_content(rig: Rig, kind: Kind, *, is_cached: bool) -> None:
    picture = put_image(rig, kind)
    handle = spawn(rig, picture.id, cache_image=is_cached)
    assert_spawned(rig, handle, picture)
    assert len(cached_images(rig, picture.id)) == is_cached
    assert rig.glance.calls()["download"] == 1


def test_the_second_vm_of_an_image_is_a_clone(rig: Rig) -> None:
    picture = put_image(rig)
    assert_spawned(rig, spawn(rig, picture.id), picture)
    second = spawn(rig, picture.id)
    assert_spawned(rig, second, picture)
    assert rig.glance.calls()["download"] == 1
    assert rig.simulator.calls()["VDI.clone"] == 2
    assert rig.simulator.calls()["VDI.create"] == 1


def test_a_root_disk_grows_to_the_flavors_size(rig: Rig) -> None:
    picture = put_image(rig)
    handle = spawn(rig, picture.id, flavor={"root_gb": 1})
    assert_spawned(rig, handle, picture)
    result = succeeded(rig, handle)
    assert result["root_disk"]["size"] == GIB


def test_an_iso_gets_a_blank_disk_and_the_cd_drive(rig: Rig) -> None:
    picture = put_image(rig, "iso")
    handle = spawn(rig, picture.id, flavor={"root_gb": 1})
    vm_rec = vm_of(rig, succeeded(rig, handle))
    disk, drive = devices_of(rig, vm_rec)
    assert (disk["userdevice"], disk["type"], disk["mode"]) == ("0", "Disk", "RW")
    assert (drive["userdevice"], drive["type"], drive["mode"]) == ("1", "CD", "RO")
    vdis = records(rig, "VDI")
    assert int(vdis[disk["VDI"]]["virtual_size"]) == GIB
    assert vdis[drive["VDI"]]["other_config"]["vmops.role"] == "cdrom"
    assert rig.simulator.disk(vdis[drive["VDI"]]["uuid"])["sha256"] == picture.digest()
    assert vm_rec["HVM_boot_params"] == {"order": "dc"}
    assert cached_images(rig, picture.id) == []
    assert_tidy(rig)
