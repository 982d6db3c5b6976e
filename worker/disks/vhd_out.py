"""Writing VHDs, as XAPI's import takes them (images.md 8): whole blocks, in ascending order."""

from __future__ import annotations

import struct
import sys
from array import array
from uuid import uuid4

from worker.images.vhd import BLOCK_BYTES, DYNAMIC, SECTOR

_TABLE_AT = 2048
_UNUSED = 0xFFFFFFFF
#: cookie, features, version, header's place, time, creator, its version, its system, first and current size
_FOOTER = struct.Struct(">8sIIQI4sIIQQHBBII16s")
_FOOTER_SUM_AT, _HEADER_SUM_AT = 64, 36
_HEADER = struct.Struct(">8sQQIIII")
#: Readers that trust the geometry of other creators cut off the end of the disk (images.md 8.6).
_CREATOR = b"tap\0"
_LARGEST = 65535 * 16 * 255


class Outline:
    """A dynamic VHD but for the blocks' data: head, then for each block of `blocks` bitmap and data, then footer."""

    def __init__(self, virtual_size: int, blocks: array[int]) -> None:
        """Describe a disk of `virtual_size` bytes of which the blocks with these numbers, ascending, are used."""
        self.blocks = blocks
        self.bitmap = b"\xff" * (BLOCK_BYTES // SECTOR // 8)
        self.footer = _footer(virtual_size)
        entries = -(-virtual_size // BLOCK_BYTES)
        table_bytes = -(-entries * 4 // SECTOR) * SECTOR
        span = len(self.bitmap) + BLOCK_BYTES
        first = _TABLE_AT + table_bytes
        table = array("I", [_UNUSED]) * (table_bytes // 4)
        for place, number in enumerate(blocks):
            table[number] = (first + place * span) // SECTOR
        if sys.byteorder == "little":
            table.byteswap()
        self.head = (self.footer + _header(entries)).ljust(_TABLE_AT, b"\0") + table.tobytes()
        self.length = first + len(blocks) * span + SECTOR


def _footer(size: int) -> bytes:
    fields = (b"conectix", 2, 0x10000, SECTOR, 0, _CREATOR, 0x10003, 0, size, size, *_geometry(size), DYNAMIC, 0)
    return _summed(_FOOTER.pack(*fields, uuid4().bytes).ljust(SECTOR, b"\0"), _FOOTER_SUM_AT)


def _header(entries: int) -> bytes:
    raw = _HEADER.pack(b"cxsparse", 0xFFFFFFFFFFFFFFFF, _TABLE_AT, 0x10000, entries, BLOCK_BYTES, 0)
    return _summed(raw.ljust(1024, b"\0"), _HEADER_SUM_AT)


def _summed(raw: bytes, at: int) -> bytes:
    return raw[:at] + struct.pack(">I", ~sum(raw) & 0xFFFFFFFF) + raw[at + 4 :]


def _geometry(size: int) -> tuple[int, int, int]:
    """Return cylinders, heads, sectors a track (images.md 8.5)."""
    sectors = min(size // SECTOR, _LARGEST)
    if sectors > 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track, heads = 17, max(4, -(-sectors // 17 // 1024))
    if heads > 16 or sectors // per_track >= heads * 1024:  # noqa: PLR2004 - the format's own numbers
        per_track, heads = 31, 16
    if sectors // per_track >= heads * 1024:
        per_track, heads = 63, 16
    return sectors // per_track // heads, heads, per_track
