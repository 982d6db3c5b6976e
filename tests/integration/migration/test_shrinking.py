"""Resizes to a smaller flavor: a real file system becomes smaller on the way, or nothing happens at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.filled import assert_sound, filled_disk
from tests.support.large_disks import LARGE, download, vm_with
from tests.support.partitioned import START, Kind, table
from tests.support.rig import MIB
from tests.support.two_pools import FLAVOR, GIB, TwoPools
from worker.operations.states import State


@pytest.mark.parametrize(
    ("kind", "fs", "dest"),
    [
        ("gpt", "ext4", "far"),
        ("mbr", "ext3", "lab"),
        ("none", "ext2", "far"),
        pytest.param("mbr", "ext4", "lab", marks=pytest.mark.matrix),
    ],
)
def test_the_root_disk_is_smaller_and_sound_and_mounts(
    rig: TwoPools, tmp_path: Path, kind: Kind, fs: str, dest: str, record_property: Callable[[str, object], None]
) -> None:
    held = filled_disk(tmp_path / "disk", kind, fs, LARGE, GIB)
    made = vm_with(rig, tmp_path / "disk", "down")
    data = rig.digests("lab", made["vdis"][1:])
    result = rig.done(rig.migrate(made, dest))
    root = result["disks"][0]
    assert root["transport"] == "shrink"
    assert root["bytes"]["difference"] < root["bytes"]["base"] < 128 * MIB
    done = rig.done(rig.finish(result, power_on=False))  # a disk that runs cannot be read
    download(rig.at(dest), tmp_path / "small", done["disks"][0])
    record_property("read by", assert_sound(tmp_path / "small", kind, fs, held, GIB))
    assert rig.digests(dest, done["disks"][1:]) == data
    vm = rig.vm(dest, uuid=done["vm_uuid"])
    assert vm is not None
    assert rig.disks(dest, vm["ref"])["0"]["virtual_size"] == str(GIB)
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": done["vm_uuid"]}, pool=dest))
    rig.assert_as_before(made, "down")


def test_another_file_system_is_refused_before_the_disk_is_fetched(rig: TwoPools, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(LARGE)
        for at, piece in {**table("mbr", LARGE, LARGE - 2 * START), START: b"XFSB"}.items():
            file.seek(at)
            file.write(piece)
    made = vm_with(rig, path, "xfs")
    text = rig.failed(rig.migrate(made), "ResizeRefused", State.UNDONE)
    assert "XFS" in text
    assert "GET /export_raw_vdi" in rig.simulator.calls()
    assert "Async.VM.clean_shutdown" not in rig.simulator.calls()
    assert "PUT /import_raw_vdi" not in rig.far.calls()
    rig.assert_as_before(made, "xfs")


@pytest.mark.matrix
def test_a_disk_that_may_stay_as_it_is_does(rig: TwoPools) -> None:
    made = rig.simulator.add_vm(name="kept", disks=[{"size": LARGE, "content": "zero"}], running=True)
    result = rig.done(rig.migrate(made, "far", auto_disk_config=False))
    assert result["disks"][0]["transport"] == "stream"
    done = rig.done(rig.finish(result, instance_type={**FLAVOR, "root_gb": 1}))
    vm = rig.vm("far", uuid=done["vm_uuid"])
    assert vm is not None
    assert rig.disks("far", vm["ref"])["0"]["virtual_size"] == str(LARGE)
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
