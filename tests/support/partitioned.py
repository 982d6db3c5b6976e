"""Disks with a real file system on them, and partition tables written by other code than the one that shortens them."""

from __future__ import annotations

import struct
import subprocess
import zlib
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

from tests.support.vhd_files import BLOCK, vhd

SECTOR = 512
MIB = 1 << 20
START = MIB
Kind = Literal["none", "mbr", "gpt"]
LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
LVM = UUID("e6d6d379-f507-44c2-a23c-238f2a3df928")


def tool(*command: str) -> str:
    """Run one of e2fsprogs; return what it said."""
    ended = subprocess.run(
        [f"/usr/sbin/{command[0]}", *command[1:]], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return ended.stdout


def file_system(folder: Path, size: int, kind: str = "ext4", files: dict[str, bytes] | None = None) -> bytes:
    """Return a file system with these files in it."""
    source = folder / f"source-{uuid4().hex}"
    source.mkdir()
    for name, data in (files or {}).items():
        (source / name).write_bytes(data)
    image = folder / f"{uuid4().hex}.fs"
    tool("mke2fs", "-q", "-t", kind, "-b", "4096", "-d", str(source), str(image), f"{size // 1024}k")
    return image.read_bytes()


def disk(kind: Kind, size: int, last: bytes, *, mbr_type: int = 0x83, guid: UUID = LINUX) -> bytes:
    """Return a disk of `size` bytes whose last partition holds `last`; a small one lies before it."""
    if kind == "none":
        return last.ljust(size, b"\0")
    made = bytearray(size)
    made[:440] = b"boot code".ljust(440, b"\x90")
    made[START // 2 : START // 2 + 9] = b"bios boot"
    made[START : START + len(last)] = last
    partitions = [(64, 1023, b"\x11" * 16), (START // SECTOR, (START + len(last)) // SECTOR - 1, guid.bytes_le)]
    if kind == "mbr":
        entries = b"".join(_entry(mbr_type, first, end - first + 1) for first, end, _ in partitions)
        made[446 : 446 + len(entries)] = entries
    else:
        made[446:462] = _entry(0xEE, 1, size // SECTOR - 1)
        _write_gpt(made, partitions)
    made[510:512] = b"\x55\xaa"
    return bytes(made)


def _entry(kind: int, first: int, sectors: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", kind, b"\xfe\xff\xff", first, sectors)


def _write_gpt(made: bytearray, partitions: list[tuple[int, int, bytes]]) -> None:
    entries = b"".join(
        kind + uuid4().bytes + struct.pack("<QQQ72s", first, end, 0, b"") for first, end, kind in partitions
    )
    entries = entries.ljust(128 * 128, b"\0")
    last = len(made) // SECTOR - 1
    own_id = uuid4().bytes

    def header(own: int, other: int, at: int) -> bytes:
        fields = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, 0, 0, own, other, 34, last - 33, own_id, at, 128, 128, zlib.crc32(entries)),
        )
        return fields[:16] + struct.pack("<I", zlib.crc32(fields)) + fields[20:]

    made[512 : 512 + 92] = header(1, last, 2)
    made[1024 : 1024 + len(entries)] = entries
    made[(last - 32) * SECTOR : last * SECTOR] = entries
    made[last * SECTOR : last * SECTOR + 92] = header(last, 1, last - 32)


def assert_sound_gpt(raw: bytes) -> tuple[int, int]:
    """Check both copies as firmware does; return the last partition's first byte and size."""
    last = len(raw) // SECTOR - 1
    assert struct.unpack_from("<I", raw, 446 + 12)[0] == last, "the protective entry does not cover the disk"
    found = []
    for own, other in ((1, last), (last, 1)):
        head = raw[own * SECTOR : own * SECTOR + 92]
        fields = struct.unpack("<8sIIIIQQQQ16sQIII", head)
        assert fields[0] == b"EFI PART"
        assert fields[3] == zlib.crc32(head[:16] + bytes(4) + head[20:]), "header checksum"
        assert (fields[5], fields[6]) == (own, other)
        assert fields[8] == last - 33
        entries = raw[fields[10] * SECTOR : fields[10] * SECTOR + 128 * 128]
        assert fields[13] == zlib.crc32(entries), "checksum of the entries"
        found.append(entries)
    assert found[0] == found[1]
    spans = [
        struct.unpack_from("<QQ", found[0], at + 32) for at in range(0, 128 * 128, 128) if any(found[0][at : at + 16])
    ]
    assert all(34 <= first <= end <= last - 33 for first, end in spans)
    first, end = max(spans)
    return first * SECTOR, (end - first + 1) * SECTOR


def mbr_span(raw: bytes) -> tuple[int, int]:
    """Return the last partition's first byte and size."""
    spans = [struct.unpack_from("<II", raw, 446 + 16 * number + 8) for number in range(4)]
    first, sectors = max(spans)
    return first * SECTOR, sectors * SECTOR


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
