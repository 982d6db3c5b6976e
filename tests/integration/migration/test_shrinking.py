"""Resizes to a smaller flavor: a real file system becomes smaller on the way, or nothing happens at all."""

from __future__ import annotations

import os
import random
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.partitioned import Stream, Watch, mbr_span, tool
from tests.support.rig import MIB
from tests.support.simulator import SimulatorProcess
from tests.support.two_pools import FLAVOR, GIB, TwoPools
from tests.support.worker import eventually
from worker.disks import relay
from worker.disks.local import LocalDisk
from worker.disks.partitions import TABLE_BYTES, read_layout
from worker.disks.vhd_out import Outline
from worker.images import vhd
from worker.operations.states import State

LARGE = GIB + 256 * MIB
NOISE = random.Random(3).randbytes(2 * MIB)


def disk_file(folder: Path, *, magic: bytes = b"") -> Path:
    """Return a sparse file with a disk: MBR, one partition, ext4 with files in it."""
    source, path = folder / "files", folder / "disk"
    source.mkdir()
    (source / "noise").write_bytes(NOISE)
    with path.open("wb") as file:
        file.truncate(LARGE)
        entry = bytes([0x80, 0, 2, 0, 0x83, 0xFE, 0xFF, 0xFF])
        entry += (MIB // 512).to_bytes(4, "little") + ((LARGE - MIB) // 512).to_bytes(4, "little")
        file.seek(446)
        file.write(entry)
        file.seek(510)
        file.write(b"\x55\xaa")
        if magic:
            file.seek(MIB)
            file.write(magic)
    if not magic:
        kib = (LARGE - MIB) // 1024
        tool(
            "mke2fs", "-q", "-t", "ext4", "-J", "size=4", "-d", str(source), "-E", f"offset={MIB}", str(path), f"{kib}k"
        )
    return path


def upload(pool: SimulatorProcess, path: Path, vdi_uuid: str) -> None:
    """Fill an empty disk of a halted VM."""
    used, blocks = array("I"), []
    with path.open("rb") as file:
        file.seek(0)
        with suppress(OSError):  # ENXIO: no more data
            while (number := file.seek(file.tell(), os.SEEK_DATA) // vhd.BLOCK_BYTES) >= 0:
                file.seek(number * vhd.BLOCK_BYTES)
                used.append(number)
                blocks.append(file.read(vhd.BLOCK_BYTES))
    outline = Outline(LARGE, used)
    body = outline.head + b"".join(outline.bitmap + one for one in blocks) + outline.footer
    with pool.session() as call:
        connection = pool.connect()
        connection.request("PUT", f"/import_raw_vdi?session_id={call.ref}&vdi={vdi_uuid}&format=vhd", body)
        assert connection.getresponse().status == 200
        connection.close()
        ref = call("VDI.get_by_uuid", vdi_uuid)
        eventually(lambda: len(call("VDI.get_VBDs", ref)) == 1)


def download(pool: SimulatorProcess, folder: Path, vdi_uuid: str, size: int) -> tuple[bytes, Path]:
    """Return a disk's first bytes and its partition as a file."""
    with pool.session() as call:
        connection = pool.connect()
        connection.request("GET", f"/export_raw_vdi?session_id={call.ref}&vdi={vdi_uuid}&format=vhd")
        data = connection.getresponse().read()
        connection.close()
    first = Stream(data)
    head = relay.open_head(first, vhd.DYNAMIC)
    begin = bytearray(TABLE_BYTES)
    for offset, piece in vhd.runs(first, head):
        begin[:] = piece[:TABLE_BYTES] if offset == 0 else begin
        break
    source = Stream(data)
    local = LocalDisk(folder, "back", read_layout(bytes(begin), size), "base")
    local.take_base(source, relay.open_head(source, vhd.DYNAMIC), Watch())
    return bytes(begin), folder / "back.part"


def vm_with(rig: TwoPools, path: Path, name: str) -> dict[str, Any]:
    disks = [{"size": LARGE, "content": "zero"}, {"size": 2 * MIB, "content": "random"}]
    made = rig.simulator.add_vm(name=name, disks=disks)
    upload(rig.simulator, path, made["vdis"][0])
    with rig.simulator.session() as call:
        call("VM.start", made["ref"], False, False)
    return made


@pytest.mark.parametrize("dest", ["far", pytest.param("lab", marks=pytest.mark.matrix)])
def test_the_root_disk_is_smaller_and_sound(rig: TwoPools, tmp_path: Path, dest: str) -> None:
    made = vm_with(rig, disk_file(tmp_path), "down")
    data = rig.digests("lab", made["vdis"][1:])
    result = rig.done(rig.migrate(made, dest))
    root = result["disks"][0]
    assert root["transport"] == "shrink"
    assert root["bytes"]["difference"] < root["bytes"]["base"] < 128 * MIB
    done = rig.done(rig.finish(result, power_on=False))  # a disk that runs cannot be read
    begin, part = download(rig.at(dest), tmp_path, done["disks"][0], GIB)
    start, size = mbr_span(begin)
    assert start + size == GIB
    tool("e2fsck", "-fn", str(part))
    out = tmp_path / "noise"
    tool("debugfs", "-R", f"dump noise {out}", str(part))
    assert out.read_bytes() == NOISE
    assert rig.digests(dest, done["disks"][1:]) == data
    vm = rig.vm(dest, uuid=done["vm_uuid"])
    assert vm is not None
    assert rig.disks(dest, vm["ref"])["0"]["virtual_size"] == str(GIB)
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": done["vm_uuid"]}, pool=dest))
    rig.assert_as_before(made, "down")


def test_another_file_system_is_refused_before_the_disk_is_fetched(rig: TwoPools, tmp_path: Path) -> None:
    made = vm_with(rig, disk_file(tmp_path, magic=b"XFSB"), "xfs")
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
