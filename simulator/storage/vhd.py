"""The VHD format: footer, header, geometry, locators; packing and parsing only, no input or output (images.md 8).

All numbers are big-endian, a sector is 512 bytes, a block is 2 MiB in every file written here. A file is

    footer (copy) | header | block table | room for a batmap | parent locators | blocks ... | footer

and a block is one sector of bitmap (bit set: the sector lives here) followed by its data.
"""

from __future__ import annotations

import struct
import uuid as uuid_module
from dataclasses import dataclass

SECTOR = 512
BLOCK = 2 * 1024 * 1024
BLOCK_SECTORS = BLOCK // SECTOR
FOOTER_SIZE = 512
HEADER_SIZE = 1024
HEADER_OFFSET = 512
#: The block table of a file written here starts right behind the header, that of an export one sector later (8.4).
TABLE_OFFSET = 1536
EXPORT_TABLE_OFFSET = 2048
#: The bitmap of a 2 MiB block.
BITMAP_SIZE = BLOCK_SECTORS // 8
UNUSED = 0xFFFFFFFF
#: XAPI's limit for a VHD (xapi.md 6.3).
MAX_VIRTUAL_SIZE = 2040 * 1024**3

TYPE_FIXED, TYPE_DYNAMIC, TYPE_DIFFERENCING = 2, 3, 4

FOOTER_COOKIE = b"conectix"
_HEADER_COOKIE = b"cxsparse"
# The reserved bit that is always set.
_FEATURES = 2
_FORMAT_VERSION = 0x00010000
_NO_OFFSET = (1 << 64) - 1
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sBB")
_FOOTER_CHECKSUM_AT = 64
_HEADER = struct.Struct(">8sQQIIII16sII512s")
_HEADER_CHECKSUM_AT = 36
_LOCATOR = struct.Struct(">4sIIIQ")
_LOCATORS_AT = 576
_MAX_LOCATORS = 8
_MAX_HEADS = 16
_MAX_CHS = 65535 * _MAX_HEADS * 255


class VhdFormatError(ValueError):
    """The bytes are not the VHD structure that was expected; the text says why."""


def checksum(raw: bytes | bytearray, field_at: int) -> int:
    """Ones' complement of the sum of all bytes but the four of the field itself (8.1)."""
    total = sum(raw) - sum(raw[field_at : field_at + 4])
    return ~total & 0xFFFFFFFF


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track of a disk (8.5); their product never exceeds the disk."""
    sectors = min(sectors, _MAX_CHS)
    if sectors > 65535 * _MAX_HEADS * 63:
        per_track, heads = 255, _MAX_HEADS
        return sectors // per_track // heads, heads, per_track
    per_track = 17
    tracks = sectors // per_track
    heads = max(4, -(-tracks // 1024))
    if tracks >= heads * 1024 or heads > _MAX_HEADS:
        per_track, heads = 31, _MAX_HEADS
        tracks = sectors // per_track
    if tracks >= heads * 1024:
        per_track, heads = 63, _MAX_HEADS
        tracks = sectors // per_track
    return tracks // heads, heads, per_track


def blocks_of(virtual_size: int) -> int:
    """Count the table entries that a disk of this size needs."""
    return -(-virtual_size // BLOCK)


def round_up(value: int, unit: int = SECTOR) -> int:
    """Return the smallest multiple of unit that is not below value."""
    return -(-value // unit) * unit


def metadata_size(entries: int, *, differencing: bool) -> int:
    """Bytes before the first block of a file written here.

    The room behind the table is what vhd-util's batmap takes and the locators are its three, so that physical sizes
    are those seen on a real pool (3584 and 5120 for empty small disks). The batmap itself is optional and not written.
    """
    table = round_up(4 * entries)
    batmap = SECTOR + round_up(-(-entries // 8))
    locators = 3 * SECTOR if differencing else 0
    return TABLE_OFFSET + table + batmap + locators


@dataclass(frozen=True, slots=True)
class Footer:
    """The footer's fields that mean something here (8.1)."""

    current_size: int
    disk_type: int
    unique_id: bytes
    hidden: bool = False
    creator: bytes = b"tap\0"
    # Below 0x00010002, so that vhd-util does not look for the batmap that a `tap` file of a later version must have.
    creator_version: int = 1
    data_offset: int = HEADER_OFFSET

    def pack(self) -> bytes:
        """512 bytes with a right checksum; time stamp 0, for a later one than the reader's clock is refused."""
        cylinders, heads, per_track = geometry(self.current_size // SECTOR)
        raw = bytearray(FOOTER_SIZE)
        what = (FOOTER_COOKIE, _FEATURES, _FORMAT_VERSION, self.data_offset)
        made = (0, self.creator, self.creator_version, b"\0" * 4)
        size = (self.current_size, self.current_size, cylinders, heads, per_track)
        _FOOTER.pack_into(raw, 0, *what, *made, *size, self.disk_type, 0, self.unique_id, 0, int(self.hidden))
        struct.pack_into(">I", raw, _FOOTER_CHECKSUM_AT, checksum(raw, _FOOTER_CHECKSUM_AT))
        return bytes(raw)

    @classmethod
    def parse(cls, raw: bytes | bytearray | memoryview) -> Footer:
        """Read 512 bytes; raises VhdFormatError for a wrong cookie, version or checksum, as XAPI's reader does."""
        raw = bytes(raw)
        if len(raw) != FOOTER_SIZE:
            raise VhdFormatError(f"a VHD footer has 512 bytes, here are {len(raw)}")
        fields = _FOOTER.unpack_from(raw)
        cookie, _features, version, data_offset, _time, creator, creator_version = fields[:7]
        current_size, disk_type, found, unique_id, _saved, hidden = fields[9], *fields[13:]
        if cookie != FOOTER_COOKIE:
            raise VhdFormatError("no VHD footer: it does not begin with conectix")
        if version != _FORMAT_VERSION:
            raise VhdFormatError(f"unknown VHD format version {version:#x}")
        if found != checksum(raw, _FOOTER_CHECKSUM_AT):
            raise VhdFormatError("the checksum of the VHD footer is wrong")
        return cls(current_size, disk_type, unique_id, bool(hidden), creator, creator_version, data_offset)


@dataclass(frozen=True, slots=True)
class Locator:
    """Where one spelling of the parent's name lies in the file (8.7)."""

    code: bytes
    length: int
    offset: int
    space: int = SECTOR


@dataclass(frozen=True, slots=True)
class Header:
    """The dynamic header's fields (8.2)."""

    table_offset: int
    entries: int
    block_size: int = BLOCK
    parent_id: bytes = bytes(16)
    parent_name: str = ""
    locators: tuple[Locator, ...] = ()

    def pack(self) -> bytes:
        """1024 bytes with a right checksum."""
        name = self.parent_name.encode("utf-16-be")
        raw = bytearray(HEADER_SIZE)
        table = (self.table_offset, _FORMAT_VERSION, self.entries, self.block_size)
        _HEADER.pack_into(raw, 0, _HEADER_COOKIE, _NO_OFFSET, *table, 0, self.parent_id, 0, 0, name)
        for index, locator in enumerate(self.locators):
            at = _LOCATORS_AT + index * _LOCATOR.size
            _LOCATOR.pack_into(raw, at, locator.code, locator.space, locator.length, 0, locator.offset)
        struct.pack_into(">I", raw, _HEADER_CHECKSUM_AT, checksum(raw, _HEADER_CHECKSUM_AT))
        return bytes(raw)

    @classmethod
    def parse(cls, raw: bytes | bytearray | memoryview) -> Header:
        """Read 1024 bytes; raises VhdFormatError for a wrong cookie, version, checksum or block size."""
        raw = bytes(raw)
        if len(raw) != HEADER_SIZE:
            raise VhdFormatError(f"a VHD header has 1024 bytes, here are {len(raw)}")
        fields = _HEADER.unpack_from(raw)
        cookie, _data, table_offset, version, entries, block_size, found, parent_id, _time, _reserved, name = fields
        if cookie != _HEADER_COOKIE:
            raise VhdFormatError("no VHD header: it does not begin with cxsparse")
        if version != _FORMAT_VERSION:
            raise VhdFormatError(f"unknown VHD header version {version:#x}")
        if found != checksum(raw, _HEADER_CHECKSUM_AT):
            raise VhdFormatError("the checksum of the VHD header is wrong")
        if block_size < SECTOR or block_size & (block_size - 1):
            raise VhdFormatError(f"a VHD block of {block_size} bytes is not a power of two of sectors")
        locators = []
        for index in range(_MAX_LOCATORS):
            code, space, length, _zero, offset = _LOCATOR.unpack_from(raw, _LOCATORS_AT + index * _LOCATOR.size)
            if code != b"\0" * 4:
                locators.append(Locator(code, length, offset, space))
        text = name.decode("utf-16-be", errors="replace").split("\0", 1)[0]
        return cls(table_offset, entries, block_size, parent_id, text, tuple(locators))


def locators_for(parent_name: str, offset: int) -> tuple[tuple[Locator, ...], bytes]:
    """Make the three locators vhd-util writes for a parent in the same folder, and their sectors for `offset` (8.7)."""
    windows = f".\\{parent_name}".encode("utf-16-le")
    spellings = ((b"MacX", f"file://./{parent_name}".encode()), (b"W2ku", windows), (b"W2ru", windows))
    locators = tuple(Locator(code, len(text), offset + index * SECTOR) for index, (code, text) in enumerate(spellings))
    return locators, b"".join(text.ljust(SECTOR, b"\0") for _, text in spellings)


def new_id() -> bytes:
    """Make a random unique id for a footer."""
    return uuid_module.uuid4().bytes
