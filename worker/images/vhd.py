"""VHD files as XAPI exports them: read the head, know the length, check the tail, expand to raw.

Layout (images.md 8): footer · header · block table · blocks (bitmap, data) · the same footer again. All integers are
big-endian, a sector has 512 bytes. A full export is dynamic (type 3); a differencing file (type 4) holds only part of a
disk, and Glance would take it without a word, so it is refused unless somebody asks for it.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from worker.errors import ImageFormatRefused, TruncatedStream

SECTOR = 512
BLOCK_BYTES = 2 << 20
DYNAMIC, DIFFERENCING = 3, 4

_HEADER_BYTES = 1024
_UNUSED = 0xFFFFFFFF
_TYPE_NAMES = {2: "fixed", 3: "dynamic", 4: "differencing"}
#: XAPI's own limit; it also bounds the memory for the table (4 MiB).
_MAX_VIRTUAL_BYTES = 2040 << 30
#: XAPI puts the table at 2048, vhd-util at 1536; anything far beyond is not an export.
_MAX_TABLE_OFFSET = 1 << 20

# offset of: cookie, data offset, creator, current size, type, checksum
_FOOTER = struct.Struct(">8s8xQ4x4s8x8xQ4xII")
# cookie, table offset, table entries, block size, checksum
_HEADER = struct.Struct(">8s8xQ4xIII")
_CREATOR_AT, _FOOTER_SUM_AT, _HEADER_SUM_AT = 28, 64, 36
#: Readers that trust the geometry of other creators cut off the end of the disk (images.md 8.6).
_CREATOR = b"tap\0"


class Source(Protocol):
    """Bytes that arrive once, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""


@dataclass(frozen=True, slots=True)
class Footer:
    """The fields of a footer that matter to a reader."""

    raw: bytes
    creator: bytes
    virtual_size: int
    disk_type: int
    header_at: int

    @classmethod
    def parse(cls, raw: bytes) -> Footer:
        """Read 512 bytes. Raises ImageFormatRefused when they are not a footer."""
        cookie, header_at, creator, virtual_size, disk_type, checksum = _FOOTER.unpack_from(raw)
        if cookie != b"conectix":
            raise ImageFormatRefused("This is not a VHD: it does not begin with a VHD footer.")
        if checksum != _checksum(raw, _FOOTER_SUM_AT):
            raise ImageFormatRefused("The VHD is damaged: the checksum of its footer is wrong.")
        return cls(raw, creator, virtual_size, disk_type, header_at)

    def patched(self) -> bytes:
        """Return the footer under the creator whose disk size every reader takes as it stands."""
        raw = bytearray(self.raw)
        raw[_CREATOR_AT : _CREATOR_AT + 4] = _CREATOR
        raw[_FOOTER_SUM_AT : _FOOTER_SUM_AT + 4] = struct.pack(">I", _checksum(raw, _FOOTER_SUM_AT))
        return bytes(raw)


@dataclass(frozen=True, slots=True)
class Head:
    """Everything in front of the first block, and what follows from it."""

    footer: Footer
    rest: bytes
    """The bytes between the first footer and the first block: header, gaps, table."""
    block_bytes: int
    table: array[int]
    """For each block of the disk: the sector of its bitmap, or all ones when the block is unused."""
    length: int
    """Bytes of the whole file, the second footer included."""

    @property
    def size(self) -> int:
        """Bytes of the head itself."""
        return SECTOR + len(self.rest)

    @property
    def block_span(self) -> int:
        """Bytes that a used block takes in the file: bitmap and data."""
        return _span(self.block_bytes)

    def used_blocks(self) -> list[tuple[int, int]]:
        """Return (offset in the file, number of the block) of every used block, in the file's order."""
        return sorted((sector * SECTOR, number) for number, sector in enumerate(self.table) if sector != _UNUSED)

    def check_tail(self, raw: bytes | memoryview) -> None:
        """Raise TruncatedStream unless `raw`, the last 512 bytes, repeats the first footer.

        The only mark of a complete export: XAPI answers 200 before it reads the disk (images.md 10).
        """
        if raw != self.footer.raw:
            raise TruncatedStream("The VHD broke off: its last 512 bytes do not repeat its footer.")


def read_head(source: Source, disk_type: int = DYNAMIC) -> Head:
    """Read and check footer, header and table; the next byte of `source` is then the first after the table.

    `disk_type` is what it must be: `DIFFERENCING` for an export with a base.

    Raises TruncatedStream (early end) or ImageFormatRefused (damaged, of another type, larger than XAPI allows).
    """
    first = read_exactly(source, SECTOR, "footer")
    footer = Footer.parse(first)
    if footer.disk_type != disk_type:
        kind = _TYPE_NAMES.get(footer.disk_type, "unknown")
        why = "only a dynamic one (type 3) holds a whole disk" if disk_type == DYNAMIC else "a difference was asked for"
        raise ImageFormatRefused(f"The VHD is of type {footer.disk_type} ({kind}); {why}.")
    if footer.virtual_size % SECTOR or not 0 < footer.virtual_size <= _MAX_VIRTUAL_BYTES:
        raise ImageFormatRefused(f"The VHD claims a disk of {footer.virtual_size} bytes; up to 2040 GiB are possible.")
    header = read_exactly(source, _HEADER_BYTES, "header")
    cookie, table_at, entries, block_bytes, checksum = _HEADER.unpack_from(header)
    if footer.header_at != SECTOR or cookie != b"cxsparse" or checksum != _checksum(header, _HEADER_SUM_AT):
        raise ImageFormatRefused("The VHD is damaged: its header is not where it must be, or has a wrong checksum.")
    if block_bytes % (8 * SECTOR) or not 8 * SECTOR <= block_bytes <= BLOCK_BYTES:
        raise ImageFormatRefused(f"The VHD has blocks of {block_bytes} bytes; XAPI's have {BLOCK_BYTES}.")
    needed = -(-footer.virtual_size // block_bytes)
    if not needed <= entries <= -(-_MAX_VIRTUAL_BYTES // block_bytes) + 1:
        raise ImageFormatRefused(f"The VHD's table has {entries} entries, its disk needs {needed}.")
    head_bytes = SECTOR + _HEADER_BYTES
    if table_at % SECTOR or not head_bytes <= table_at <= _MAX_TABLE_OFFSET:
        raise ImageFormatRefused(f"The VHD's table is at byte {table_at}, where no export puts it.")
    table_bytes = -(-entries * 4 // SECTOR) * SECTOR
    rest = header + read_exactly(source, table_at - head_bytes + table_bytes, "table")
    table = array("I", rest[table_at - SECTOR : table_at - SECTOR + 4 * entries])
    if sys.byteorder == "little":
        table.byteswap()
    length = _file_length(table, table_at + table_bytes, block_bytes)
    return Head(footer, rest, block_bytes, table, length)


def read_exactly(source: Source, count: int, part: str) -> bytes:
    """Read `count` bytes, those of the VHD's `part`. Raises TruncatedStream."""
    buffer = bytearray(count)
    fill(source, memoryview(buffer), part)
    return bytes(buffer)


def fill(source: Source, view: memoryview, part: str) -> None:
    """Fill `view` with the VHD's `part`. Raises TruncatedStream."""
    done = 0
    while done < len(view):
        got = source.readinto(view[done:])
        if got == 0:
            raise TruncatedStream(f"The VHD broke off in its {part}.")
        done += got


def blocks(source: Source) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset on the disk, data) of every used block, in the order of arrival, from a whole VHD.

    The data is valid until the next one is asked for; what is not yielded is zero. The last block may reach past the
    end of the disk. Raises as `read_head`, and TruncatedStream when the end is missing: use nothing before that.
    """
    head = read_head(source)
    position = head.size
    bitmap_bytes = head.block_span - head.block_bytes
    buffer = memoryview(bytearray(head.block_span))
    for offset, number in head.used_blocks():
        skip(source, offset - position, buffer)
        fill(source, buffer, f"block {number}")
        data = buffer[bitmap_bytes:]
        _clear_unset(buffer[:bitmap_bytes], data)
        yield number * head.block_bytes, data
        position = offset + head.block_span
    skip(source, head.length - SECTOR - position, buffer)
    head.check_tail(read_exactly(source, SECTOR, "second footer"))
    if source.readinto(buffer[:1]):
        raise TruncatedStream("The VHD goes on behind its second footer.")


def runs(source: Source, head: Head) -> Iterator[tuple[int, memoryview]]:
    """Yield (offset on the disk, data) of every run of sectors that live in the VHD whose head was just read.

    Unlike `blocks` it says nothing of the others: in a differencing VHD those are the parent's. Ends before the second
    footer. The data is valid until the next one is asked for. Raises TruncatedStream.
    """
    position = head.size
    bitmap_bytes = head.block_span - head.block_bytes
    buffer = memoryview(bytearray(head.block_span))
    for offset, number in head.used_blocks():
        skip(source, offset - position, buffer)
        fill(source, buffer, f"block {number}")
        bitmap, data = bytes(buffer[:bitmap_bytes]), buffer[bitmap_bytes:]
        for begin, end in _set_runs(bitmap, len(data) // SECTOR):
            yield number * head.block_bytes + begin * SECTOR, data[begin * SECTOR : end * SECTOR]
        position = offset + head.block_span
    skip(source, head.length - SECTOR - position, buffer)


def _set_runs(bitmap: bytes, sectors: int) -> Iterator[tuple[int, int]]:
    """Yield (first, behind the last) of each run of sectors whose bit is set."""
    if bitmap == b"\xff" * len(bitmap):
        yield 0, sectors
        return
    begin = None
    for sector in range(sectors + 1):
        is_set = sector < sectors and bitmap[sector >> 3] & 0x80 >> (sector & 7)
        if is_set and begin is None:
            begin = sector
        elif not is_set and begin is not None:
            yield begin, sector
            begin = None


def vhd_to_raw(path: Path, target: Path, size: int | None = None) -> int:
    """Write the disk in the VHD file `path` to the sparse file `target`; return its size.

    `size` cuts the disk: an export rounds it up to whole blocks (images.md 8.4).
    """
    with path.open("rb") as file, target.open("wb") as raw:
        virtual_size = _cut(read_head(file).footer.virtual_size, size)
        raw.truncate(virtual_size)
        file.seek(0)
        for offset, data in blocks(file):
            raw.seek(offset)
            raw.write(data[: max(0, virtual_size - offset)])
    return virtual_size


def raw_digest(path: Path, algorithm: str = "sha256", size: int | None = None) -> str:
    """Return the hash of the disk in the VHD file `path`, cut to `size`, as if it had been expanded to a raw file."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        for _ in blocks(file):  # the whole file must be sound before any of it counts
            pass
        file.seek(0)
        head = read_head(file)
        left = _cut(head.footer.virtual_size, size)
        bitmap_bytes = head.block_span - head.block_bytes
        buffer = memoryview(bytearray(head.block_span))
        zeros = memoryview(bytes(head.block_bytes))
        for sector in head.table:
            wanted = min(left, head.block_bytes)
            if sector == _UNUSED:
                digest.update(zeros[:wanted])
            else:
                file.seek(sector * SECTOR)
                fill(file, buffer, "blocks")
                _clear_unset(buffer[:bitmap_bytes], buffer[bitmap_bytes:])
                digest.update(buffer[bitmap_bytes : bitmap_bytes + wanted])
            left -= wanted
    return digest.hexdigest()


def _cut(virtual_size: int, size: int | None) -> int:
    if size is not None and not 0 <= size <= virtual_size:
        raise ValueError(f"a disk of {virtual_size} bytes cannot be cut to {size}")
    return virtual_size if size is None else size


def _checksum(raw: bytes | bytearray, at: int) -> int:
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF


def _span(block_bytes: int) -> int:
    """Return the bytes of a block with its bitmap: one bit a sector, in whole sectors."""
    return -(-block_bytes // SECTOR // 8 // SECTOR) * SECTOR + block_bytes


def _file_length(table: array[int], table_end: int, block_bytes: int) -> int:
    """Return the length of the file: the end of the last block, and a footer. Refuses entries that overlap."""
    span = _span(block_bytes) // SECTOR
    end = table_end // SECTOR
    used: Sequence[int] = array("I", (sector for sector in table if sector != _UNUSED))
    if any(one > other for one, other in pairwise(used)):
        used = sorted(used)
    for sector in used:
        if sector < end:
            raise ImageFormatRefused("The VHD is damaged: blocks of its table overlap.")
        end = sector + span
    return end * SECTOR + SECTOR


def skip(source: Source, count: int, buffer: memoryview) -> None:
    """Read `count` bytes and forget them. Raises TruncatedStream."""
    while count > 0:
        part = buffer[: min(count, len(buffer))]
        fill(source, part, "gap between blocks")
        count -= len(part)


def _clear_unset(bitmap: memoryview, data: memoryview) -> None:
    """Zero the sectors whose bit is clear: on a dynamic disk they are zero whatever the file holds."""
    full = b"\xff" * len(bitmap)
    if bitmap == full:
        return
    zeros = bytes(SECTOR)
    for sector in range(len(data) // SECTOR):
        if not bitmap[sector >> 3] & 0x80 >> (sector & 7):
            data[sector * SECTOR : (sector + 1) * SECTOR] = zeros
