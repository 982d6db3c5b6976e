"""Reading VHDs: what is accepted, what is refused, where the end must be, what comes out as raw."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import vhd_files
from worker.errors import ImageFormatRefused, TruncatedStream
from worker.images import vhd

MIB = 1 << 20
SIZE = 9 * MIB  # five blocks, the last one half used


class Trickle:
    """A source that gives little at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        self._file, self._most = io.BytesIO(data), most

    def readinto(self, buffer: memoryview, /) -> int:
        return self._file.readinto(buffer[: self._most])


def read_head(data: bytes) -> vhd.Head:
    return vhd.read_head(io.BytesIO(data))


def with_sum(raw: bytes, at: int) -> bytes:
    """`raw` with a right checksum at `at`."""
    zeroed = raw[:at] + bytes(4) + raw[at + 4 :]
    return raw[:at] + struct.pack(">I", vhd_files.checksum(zeroed)) + raw[at + 4 :]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (16 * MIB, (481, 4, 17)),
        (5 * MIB + 512, (150, 4, 17)),
        (1900 << 30, (65535, 16, 255)),
    ],
)
def test_the_generator_of_test_vhds_computes_known_geometries(size: int, expected: tuple[int, int, int]) -> None:
    assert vhd_files.geometry(size) == expected


@given(st.binary(min_size=512, max_size=512))
def test_noise_is_no_footer(noise: bytes) -> None:
    with pytest.raises(ImageFormatRefused):
        vhd.Footer.parse(noise)


@pytest.mark.parametrize("most", [1, 100, 512, 10**9])
def test_a_head_is_read_however_it_arrives(most: int) -> None:
    data = vhd_files.vhd(SIZE, vhd_files.some_blocks(1, 0, 3))
    head = vhd.read_head(Trickle(data[:4096], most))
    assert head.footer.virtual_size == SIZE
    assert head.length == len(data)
    assert head.size == 2048 + 512
    assert head.footer.raw + head.rest == data[: head.size]
    assert [number for _, number in head.used_blocks()] == [0, 3]


@pytest.mark.parametrize(
    ("disk", "used", "length"),
    [
        (1 << 30, 37, 77_618_176),  # images.md 8.3
        (1 << 30, 0, 2048 + 2048 + 512),
        (4 << 30, 2048, 2048 + 8192 + 2048 * (512 + 2 * MIB) + 512),
    ],
)
def test_the_length_follows_from_the_table(disk: int, used: int, length: int) -> None:
    head = read_head(vhd_files.head(disk, list(range(used))))
    assert head.length == length


def test_the_largest_disk_is_measured_without_its_data() -> None:
    disk = 2040 << 30
    head = read_head(vhd_files.head(disk, [0, disk // vhd_files.BLOCK - 1]))
    assert head.length == 2048 + 4 * (disk // vhd_files.BLOCK) + 2 * (512 + 2 * MIB) + 512


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 513, 1535, 1536, 2047, 2048, 2559])
def test_a_head_that_ends_early_is_truncated(cut: int) -> None:
    with pytest.raises(TruncatedStream, match=r"broke off in its (footer|header|table)"):
        read_head(vhd_files.head(SIZE, [0])[:cut])


def _changed(at: int, new: bytes, checksum_at: int | None = None) -> bytes:
    """A head with other bytes at `at`, and with the checksum of footer or header made right again."""
    head = vhd_files.head(SIZE, [0, 1])
    head = head[:at] + new + head[at + len(new) :]
    if checksum_at == 64:
        return with_sum(head[:512], 64) + head[512:]
    if checksum_at == 36:
        return head[:512] + with_sum(head[512:1536], 36) + head[1536:]
    return head


REFUSED = {
    "no cookie": (_changed(0, b"x"), "does not begin with a VHD footer"),
    "an HTTP error instead of data": (b"HTTP/1.1 500 Internal Error\r\n".ljust(4096), "does not begin with"),
    "a footer whose checksum is wrong": (_changed(100, b"x"), "checksum of its footer"),
    "a header whose checksum is wrong": (_changed(600, b"x"), "header"),
    "a header elsewhere": (_changed(16, struct.pack(">Q", 1024), 64), "header is not where it must be"),
    "a differencing VHD": (vhd_files.head(SIZE, [0], kind=4), r"type 4 \(differencing\)"),
    "a fixed VHD": (vhd_files.footer(SIZE, kind=2), r"type 2 \(fixed\)"),
    "an unknown type": (_changed(60, struct.pack(">I", 9), 64), r"type 9 \(unknown\)"),
    "an odd size": (_changed(48, struct.pack(">Q", SIZE + 1), 64), "claims a disk"),
    "no size": (_changed(48, struct.pack(">Q", 0), 64), "claims a disk"),
    "a size above XAPI's limit": (_changed(48, struct.pack(">Q", (2040 << 30) + 512), 64), "claims a disk"),
    "huge blocks": (_changed(512 + 32, struct.pack(">I", 4 * MIB), 36), "has blocks of"),
    "odd blocks": (_changed(512 + 32, struct.pack(">I", 5000), 36), "has blocks of"),
    "no blocks": (_changed(512 + 32, struct.pack(">I", 0), 36), "has blocks of"),
    "a table too short for the disk": (_changed(512 + 28, struct.pack(">I", 4), 36), "its disk needs 5"),
    "a table that fills the memory": (_changed(512 + 28, struct.pack(">I", 1 << 31), 36), "entries"),
    "a table far away": (_changed(512 + 16, struct.pack(">Q", 1 << 40), 36), "where no export puts it"),
    "a table inside the header": (_changed(512 + 16, struct.pack(">Q", 512), 36), "where no export puts it"),
    "a block inside the head": (_changed(2048, struct.pack(">I", 1)), "overlap"),
    "two blocks in one place": (_changed(2048 + 4, vhd_files.head(SIZE, [0, 1])[2048:2052]), "overlap"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_head_is_refused_for(data: bytes, reason: str) -> None:
    with pytest.raises(ImageFormatRefused, match=reason):
        read_head(data)


def test_patching_the_creator_keeps_the_footer_valid_and_changes_nothing_else() -> None:
    before = vhd_files.footer(SIZE)
    after = vhd.Footer.parse(before).patched()
    footer = vhd.Footer.parse(after)
    assert footer.creator == b"tap\0"
    assert footer.virtual_size == SIZE
    changed = {at for at in range(512) if before[at] != after[at]}
    assert changed <= {*range(28, 32), *range(64, 68)}
    assert after == vhd_files.footer(SIZE, creator=b"tap\0")


def test_the_tail_must_repeat_the_first_footer() -> None:
    head = read_head(vhd_files.head(SIZE, [0]))
    head.check_tail(vhd_files.footer(SIZE))
    for tail in (bytes(512), vhd_files.footer(SIZE, creator=b"tap\0"), vhd_files.footer(SIZE)[:-1]):
        with pytest.raises(TruncatedStream, match="do not repeat its footer"):
            head.check_tail(tail)


@pytest.mark.parametrize("numbers", [(), (0,), (4,), (1, 3), (3, 1, 4, 0), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("size", [SIZE, SIZE - 512, 10 * MIB])
def test_a_disk_is_expanded_as_it_was(tmp_path: Path, numbers: tuple[int, ...], size: int) -> None:
    blocks = vhd_files.some_blocks(7, *numbers)
    path, target = tmp_path / "disk.vhd", tmp_path / "disk.raw"
    path.write_bytes(vhd_files.vhd(size, blocks))
    expected = vhd_files.raw(size, blocks)
    assert vhd.vhd_to_raw(path, target) == size
    assert target.read_bytes() == expected
    assert vhd.raw_digest(path) == hashlib.sha256(expected).hexdigest()


def test_a_disk_that_the_export_rounded_up_is_cut_to_its_own_size(tmp_path: Path) -> None:
    blocks = vhd_files.some_blocks(7, 0, 4)
    path, target = tmp_path / "disk.vhd", tmp_path / "disk.raw"
    path.write_bytes(vhd_files.vhd(10 * MIB, blocks))
    assert vhd.vhd_to_raw(path, target, size=SIZE) == SIZE
    assert target.read_bytes() == vhd_files.raw(SIZE, blocks)
    assert vhd.raw_digest(path, "sha512", size=SIZE) == hashlib.sha512(vhd_files.raw(SIZE, blocks)).hexdigest()
    with pytest.raises(ValueError, match="cannot be cut"):
        vhd.raw_digest(path, size=11 * MIB)


def test_a_sector_whose_bit_is_clear_is_zero_whatever_the_file_holds(tmp_path: Path) -> None:
    data = bytearray(vhd_files.vhd(2 * MIB, vhd_files.some_blocks(3, 0)))
    bitmap_at = read_head(bytes(data)).size
    data[bitmap_at] = 0b0111_1110  # the first and the eighth sector; the highest bit is the first sector
    path, target = tmp_path / "disk.vhd", tmp_path / "disk.raw"
    path.write_bytes(data)
    expected = bytearray(vhd_files.some_blocks(3, 0)[0])
    expected[:512] = expected[7 * 512 : 8 * 512] = bytes(512)
    vhd.vhd_to_raw(path, target)
    assert target.read_bytes() == expected
    assert vhd.raw_digest(path) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("left", [4096, 2560 + 512 + MIB, -513, -512, -1])
def test_a_file_that_ends_early_is_not_expanded(tmp_path: Path, left: int) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(vhd_files.vhd(SIZE, vhd_files.some_blocks(1, 0, 3))[:left])
    with pytest.raises(TruncatedStream):
        vhd.raw_digest(path)
    with pytest.raises(TruncatedStream):
        vhd.vhd_to_raw(path, tmp_path / "disk.raw")


def test_a_file_that_goes_on_behind_its_end_is_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    path.write_bytes(vhd_files.vhd(SIZE, {}) + b"x")
    with pytest.raises(TruncatedStream, match="goes on"):
        vhd.raw_digest(path)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_qemu_img_reads_a_patched_vhd_as_we_do(tmp_path: Path) -> None:
    size = 16 * MIB  # with the creator of an export, qemu-img would cut the end off (images.md 8.6)
    blocks = vhd_files.some_blocks(5, 0, 2, 7)
    data = vhd_files.vhd(size, blocks)
    patched = vhd.Footer.parse(data[:512]).patched()
    path, target = tmp_path / "disk.vhd", tmp_path / "disk.raw"
    path.write_bytes(patched + data[512:-512] + patched)
    subprocess.run(
        ["qemu-img", "convert", "-f", "vpc", "-O", "raw", str(path), str(target)], check=True, capture_output=True
    )
    assert hashlib.sha256(target.read_bytes()).hexdigest() == vhd.raw_digest(path)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_a_vhd_made_by_qemu_img_is_read_as_it_was_meant(tmp_path: Path) -> None:
    plain, path = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    plain.write_bytes(vhd_files.raw(8 * MIB, vhd_files.some_blocks(9, 1, 2)))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"]
    subprocess.run([*command, str(plain), str(path)], check=True, capture_output=True)
    assert vhd.raw_digest(path) == hashlib.sha256(plain.read_bytes()).hexdigest()
