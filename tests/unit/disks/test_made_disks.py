"""Disks whose content the worker makes: what other programs read of them, and how little of it is sent."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.tools import run_tool
from worker.disks import filesystems
from worker.disks.filesystems import PARTITION_AT, write_ext4, write_swap
from worker.disks.sparse import SparseVhd
from worker.errors import ToolMissing
from worker.images.vhd import BLOCK_BYTES, vhd_to_raw

MIB, GIB = 1 << 20, 1 << 30
#: One block with its bitmap.
SPAN = 512 + BLOCK_BYTES


def packed(file: BinaryIO, size: int, path: Path) -> Path:
    """Write the VHD of a sparse file."""
    made = SparseVhd(file, size)
    with path.open("wb") as target:
        for piece in made.pieces():
            target.write(piece)
    assert path.stat().st_size == made.length
    return path


@pytest.mark.parametrize("size", [2 * MIB, 64 * MIB, 64 * MIB + 512])
def test_swap_is_a_partition_with_a_signature_over_all_of_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    with path.open("w+b") as file:
        write_swap(file, size, "swap")
    raw = path.read_bytes()
    assert len(raw) == size
    assert (raw[450], raw[510:512]) == (0x82, b"\x55\xaa")
    assert int.from_bytes(raw[454:458], "little") == 2048
    assert int.from_bytes(raw[458:462], "little") == (size - PARTITION_AT) // 512
    page = raw[PARTITION_AT : PARTITION_AT + 4096]
    assert page[4086:] == b"SWAPSPACE2"
    assert int.from_bytes(page[1028:1032], "little") == (size - PARTITION_AT) // 4096 - 1
    found = run_tool("blkid", "-p", "-O", str(PARTITION_AT), str(path))
    assert 'TYPE="swap"' in found
    assert 'LABEL="swap"' in found
    assert 'PTTYPE="dos"' in run_tool("blkid", "-p", str(path))


@pytest.mark.parametrize("size", [1 * GIB, 2000 * GIB], ids=["1 GiB", "2000 GiB"])
def test_ext4_is_whole_and_hardly_anything_of_it_is_sent(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    with path.open("w+b") as file:
        write_ext4(file, size, "ephemeral0")
        assert SparseVhd(file, size).length < 64 * SPAN
    assert path.stat().st_size == size
    assert path.stat().st_blocks * 512 < 64 * MIB
    assert 'PTTYPE="dos"' in run_tool("blkid", "-p", str(path))
    features = run_tool("dumpe2fs", "-h", f"{path}?offset={PARTITION_AT}")
    assert "ephemeral0" in features
    assert not {"64bit", "metadata_csum", "orphan_file"} & set(features.split()), "older guests could not mount it"
    if size < 2 * GIB:
        run_tool("e2fsck", "-fn", f"{path}?offset={PARTITION_AT}")


def test_a_worker_without_mke2fs_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "TOOLS_PATH", str(tmp_path))
    with (tmp_path / "disk").open("w+b") as file, pytest.raises(ToolMissing, match="install e2fsprogs, or set default"):
        write_ext4(file, GIB, "ephemeral0")


@pytest.mark.parametrize(
    "places",
    [(), (0,), (511,), (5 * MIB + 3, 5 * MIB + 9), (0, 2 * MIB - 1, 2 * MIB, 9 * MIB, 10 * MIB + 511)],
    ids=["empty", "first", "small", "one block", "several"],
)
@pytest.mark.parametrize("size", [10 * MIB + 512, 12 * MIB])
def test_a_sparse_file_comes_back_as_it_was(tmp_path: Path, places: tuple[int, ...], size: int) -> None:
    with (tmp_path / "disk").open("w+b") as file:
        file.truncate(size)
        for place in places:
            file.seek(place)
            file.write(b"x")
        path = packed(file, size, tmp_path / "vhd")
    assert vhd_to_raw(path, tmp_path / "raw", size) == size
    assert (tmp_path / "raw").read_bytes() == (tmp_path / "disk").read_bytes()
    page = os.sysconf("SC_PAGESIZE")
    touched = {at // BLOCK_BYTES for place in places for at in (place // page * page, place)}
    assert path.stat().st_size <= 2048 + 512 + len(touched) * SPAN + 512


def test_a_file_that_is_shorter_than_the_disk_ends_in_zeros(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("w+b") as file:
        file.write(b"abc")
        path = packed(file, 4 * MIB, tmp_path / "vhd")
    vhd_to_raw(path, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == b"abc".ljust(4 * MIB, b"\0")


@pytest.mark.parametrize("size", [0, 513])
def test_a_disk_has_whole_sectors(tmp_path: Path, size: int) -> None:
    with (tmp_path / "disk").open("w+b") as file, pytest.raises(ValueError, match="whole sectors"):
        SparseVhd(file, size)
