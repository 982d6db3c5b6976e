"""The files against qemu-img, which shares no code with us."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.storage import VhdRepository
from tests.unit.simulator.storage_support import (
    BLOCK,
    MIB,
    collect_all,
    exported,
    needs_qemu_img,
    pattern,
    qemu_raw,
    raw,
)

pytestmark = needs_qemu_img

#: One block, several, an end inside a block, an end inside a cylinder.
SIZES = [512, 2 * MIB, 5 * MIB + 512, 16 * MIB]
SIZE_OF_TWO_TABLE_SECTORS = 258 * MIB + 1024


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[VhdRepository]:
    with VhdRepository(tmp_path / "sr") as repo:
        yield repo


def _scattered(repo: VhdRepository, uuid: str, size: int, seed: int) -> None:
    """Whole blocks, parts of blocks, single sectors, the first and the last byte."""
    for number, (offset, length) in enumerate(
        [(0, 1), (size - 1, 1), (size // 2, 700), (size // 3, 3 * BLOCK), (size - 5000, 4096)]
    ):
        start = max(0, min(offset, size - 1))
        repo.write(uuid, start, pattern(seed * 10 + number, min(length, size - start)))


@pytest.mark.parametrize("size", [*SIZES, SIZE_OF_TWO_TABLE_SECTORS])
def test_single_files_are_read_identical(repo: VhdRepository, size: int) -> None:
    repo.create("disk", size)
    _scattered(repo, "disk", size, 1)
    path = repo.path / "disk.vhd"
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(path)]))
    assert info["format"] == "vpc"
    assert info["virtual-size"] == size
    assert qemu_raw(path) == raw(repo, "disk")


@pytest.mark.parametrize("size", SIZES)
def test_exports_of_chains_are_read_identical(repo: VhdRepository, tmp_path: Path, size: int) -> None:
    repo.create("disk", size)
    for level in range(3):
        _scattered(repo, "disk", size, level)
        repo.write("disk", 512 * level % size, pattern(level, 512))
        repo.snapshot("disk", f"snap{level}", f"base{level}")
    for uuid in ("disk", "snap0", "base1"):
        path = tmp_path / f"{uuid}.vhd"
        path.write_bytes(exported(repo, uuid))
        # An export's creator makes qemu-img take the size from the geometry unless told otherwise (images.md 8.6).
        assert qemu_raw(path, force_size=True) == raw(repo, uuid)
        repo.create(f"again-{uuid}", size)
        repo.import_vhd(f"again-{uuid}", io.BytesIO(path.read_bytes()), path.stat().st_size)
        assert qemu_raw(repo.path / f"again-{uuid}.vhd") == raw(repo, uuid)


def test_differencing_files_are_accepted_and_hold_what_was_written(repo: VhdRepository) -> None:
    """qemu-img reads a child as if it stood alone: what the leaf itself has, zeros elsewhere."""
    repo.create("disk", 5 * MIB + 512)
    repo.write("disk", 0, pattern(1, 5 * MIB))
    repo.snapshot("disk", "snap", "base")
    repo.write("disk", 0, pattern(2, BLOCK))
    repo.write("disk", 5 * MIB, pattern(3, 512))
    assert qemu_raw(repo.path / "base.vhd") == raw(repo, "snap")
    alone = qemu_raw(repo.path / "disk.vhd")
    assert alone[:BLOCK] == pattern(2, BLOCK)
    assert alone[BLOCK : 2 * BLOCK] == bytes(BLOCK)
    assert alone[-512:] == pattern(3, 512)


def test_a_collected_chain_is_one_plain_file(repo: VhdRepository) -> None:
    repo.create("disk", 9 * MIB)
    for level in range(3):
        _scattered(repo, "disk", 9 * MIB, level)
        repo.snapshot("disk", f"snap{level}", f"base{level}")
        repo.delete(f"snap{level}")
    _scattered(repo, "disk", 9 * MIB, 9)
    content = raw(repo, "disk")
    collect_all(repo)
    assert qemu_raw(repo.path / "disk.vhd") == content


def test_a_grown_disk_is_read_identical(repo: VhdRepository) -> None:
    repo.create("disk", 5 * MIB)
    repo.write("disk", 0, pattern(1, 5 * MIB))
    for size in (6 * MIB, SIZE_OF_TWO_TABLE_SECTORS):
        repo.resize("disk", size)
        repo.write("disk", size - 100_000, pattern(2, 100_000))
        assert qemu_raw(repo.path / "disk.vhd") == raw(repo, "disk")


@pytest.mark.parametrize("size", [4 * MIB, 5 * MIB + 512])
def test_files_made_by_qemu_img_are_opened_and_imported(tmp_path: Path, size: int) -> None:
    source, made = tmp_path / "source.raw", tmp_path / "sr" / "made.vhd"
    made.parent.mkdir()
    source.write_bytes((pattern(1, 3 * MIB) + bytes(size - 4 * MIB) + pattern(2, MIB))[:size])
    options = ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, str(source), str(made)], check=True)
    data = made.read_bytes()
    with VhdRepository(tmp_path / "sr") as repo:
        assert raw(repo, "made") == source.read_bytes()
        repo.create("imported", size)
        repo.import_vhd("imported", io.BytesIO(data), len(data))
        assert raw(repo, "imported") == source.read_bytes()
        repo.write("made", size - MIB, pattern(3, MIB))
        repo.snapshot("made", "snap", "base")
        repo.write("made", 0, pattern(4, MIB))
        repo.delete("snap")
        content = raw(repo, "made")
        collect_all(repo)
        assert qemu_raw(made) == content
