"""Disks with a real file system on them, and partition tables written by other code than the one that shortens them."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from mmap import mmap
from typing import Literal
from uuid import UUID, uuid4

from tests.support.vhd_files import BLOCK, vhd

SECTOR = 512
MIB = 1 << 20
START = MIB
Kind = Literal["none", "mbr", "gpt"]
LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
LVM = UUID("e6d6d379-f507-44c2-a23c-238f2a3df928")


def disk(kind: Kind, size: int, last: bytes, *, mbr_type: int = 0x83, guid: UUID = LINUX) -> bytes:
    """Return a disk of `size` bytes whose last partition holds `last`; a small one lies before it."""
    made = bytearray(size)
    start = 0 if kind == "none" else START
    for at, piece in {**table(kind, size, len(last), mbr_type=mbr_type, guid=guid), start: last}.items():
        made[at : at + len(piece)] = piece
    return bytes(made)


def table(kind: Kind, size: int, last: int, *, mbr_type: int = 0x83, guid: UUID = LINUX) -> dict[int, bytes]:
    """Return what a disk of `size` bytes has beside its last partition of `last` bytes, by where it lies."""
    if kind == "none":
        return {}
    partitions = [(64, 1023, b"\x11" * 16), (START // SECTOR, (START + last) // SECTOR - 1, guid.bytes_le)]
    if kind == "mbr":
        pieces: dict[int, bytes] = {}
        entries = b"".join(_entry(mbr_type, first, end - first + 1) for first, end, _ in partitions)
    else:
        pieces = _gpt(size // SECTOR - 1, partitions)
        entries = _entry(0xEE, 1, size // SECTOR - 1)
    first = b"boot code".ljust(446, b"\x90") + entries.ljust(64, b"\0") + b"\x55\xaa"
    return {0: first, START // 2: b"bios boot", **pieces}


def _entry(kind: int, first: int, sectors: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", kind, b"\xfe\xff\xff", first, sectors)


def _gpt(last: int, partitions: list[tuple[int, int, bytes]]) -> dict[int, bytes]:
    """Return both copies of a GPT on a disk whose last sector is `last`."""
    entries = b"".join(
        kind + uuid4().bytes + struct.pack("<QQQ72s", first, end, 0, b"") for first, end, kind in partitions
    )
    entries = entries.ljust(128 * 128, b"\0")
    own_id = uuid4().bytes

    def header(own: int, other: int, at: int) -> bytes:
        fields = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, last - 33, own_id, at, 128, 128, zlib.crc32(entries)),
        )
        return fields[:16] + struct.pack("<I", zlib.crc32(fields)) + fields[20:]

    return {
        SECTOR: header(1, last, 2),
        2 * SECTOR: entries,
        (last - 32) * SECTOR: entries,
        last * SECTOR: header(last, 1, last - 32),
    }


def span_of(raw: bytes | mmap, kind: Kind) -> tuple[int, int]:
    """Check a disk's table as strictly as firmware does; return the last partition's first byte and size."""
    if kind == "none":
        assert raw[510:512] != b"\x55\xaa"
        return 0, len(raw)
    assert raw[510:512] == b"\x55\xaa"
    spans = _gpt_spans(raw) if kind == "gpt" else _mbr_spans(raw)
    assert all(end < first for (_, end), (first, _) in pairwise(sorted(spans))), "partitions overlap"
    first, end = max(spans)
    return first * SECTOR, (end - first + 1) * SECTOR


def _gpt_spans(raw: bytes | mmap) -> list[tuple[int, int]]:
    last = len(raw) // SECTOR - 1
    protective = [raw[446 + 16 * number : 462 + 16 * number] for number in range(4)]
    assert protective == [_entry(0xEE, 1, last), *[bytes(16)] * 3], "the protective entry does not cover the disk"
    found = []
    for own, other in ((1, last), (last, 1)):
        head = raw[own * SECTOR : own * SECTOR + 92]
        fields = struct.unpack("<8sIIIIQQQQ16sQIII", head)
        assert fields[:3] == (b"EFI PART", 0x10000, 92)
        assert fields[3] == zlib.crc32(head[:16] + bytes(4) + head[20:]), "header checksum"
        assert (fields[5], fields[6]) == (own, other)
        assert (fields[7], fields[8]) == (34, last - 33)
        assert fields[10] == (2 if own == 1 else last - 32)
        entries = raw[fields[10] * SECTOR : fields[10] * SECTOR + 128 * 128]
        assert fields[13] == zlib.crc32(entries), "checksum of the entries"
        found.append((fields[9], fields[11:13], entries))
    assert found[0] == found[1]
    entries = found[0][2]
    spans = [struct.unpack_from("<QQ", entries, at + 32) for at in range(0, 128 * 128, 128) if any(entries[at:][:16])]
    assert all(34 <= first <= end <= last - 33 for first, end in spans)
    return spans


def _mbr_spans(raw: bytes | mmap) -> list[tuple[int, int]]:
    entries = [struct.unpack_from("<B3sB3sII", raw, 446 + 16 * number) for number in range(4)]
    spans = [(first, first + sectors - 1) for _, _, kind, _, first, sectors in entries if kind]
    assert all(0 < first <= end < len(raw) // SECTOR for first, end in spans)
    return spans


def export(raw: bytes, base: bytes | None = None) -> bytes:
    """Return the disk as XAPI exports it, or its difference from `base`."""
    former = bytes(len(raw)) if base is None else base
    blocks = {
        number: raw[number * BLOCK : (number + 1) * BLOCK]
        for number in range(-(-len(raw) // BLOCK))
        if raw[number * BLOCK : (number + 1) * BLOCK] != former[number * BLOCK : (number + 1) * BLOCK]
    }
    return vhd(len(raw), blocks, 3 if base is None else 4)


class Stream:
    """Bytes as an export gives them, and as an import takes them."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.at = 0
        self.is_confirmed = False

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of the buffer, in odd pieces."""
        piece = self.data[self.at : self.at + min(len(buffer), 70_001)]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)

    def write(self, data: memoryview | bytes, /) -> None:
        """Take the data."""
        self.data += data

    def confirm(self, *, verified: bool = False) -> None:
        """Agree."""
        del verified
        self.is_confirmed = True


class Watch:
    """Follows what moves."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int | None]] = []

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Note it."""
        self.seen.append((done_bytes, total_bytes))

    def check(self) -> None:
        """Go on."""
