"""Partition tables, as far as making a disk smaller needs them: which file system ends the disk, and a shorter table.

Known are MBR (four primary entries), GPT, and a file system on the bare disk. Only the partition that lies last can
give way; what lies before it stays where it is, byte for byte. Sectors have 512 bytes, as XAPI's disks have.
"""

from __future__ import annotations

import struct
from binascii import crc32
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from worker.errors import ResizeRefused

SECTOR = 512
#: What is read of a disk to know its table: boot sector, GPT header and its usual 128 entries.
TABLE_BYTES = 34 * SECTOR

_ENTRIES_AT, _ENTRY_BYTES = 446, 16
#: boot flag, first CHS, type, last CHS, first sector, number of sectors
_ENTRY = struct.Struct("<B3sB3sII")
_BEYOND_CHS = b"\xfe\xff\xff"
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE = 0xEE
_LVM, _LVM_GUID = 0x8E, bytes.fromhex("79d3d6e607f5c244a23c238f2a3df928")
#: signature, revision, header bytes, own checksum, reserved, own sector, other's sector, first and last usable sector,
#: disk's id, sector of the entries, number of entries, bytes of one, checksum of all
_GPT = struct.Struct("<8sIII4xQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_GPT_CHECKSUM_AT, _LAST_SECTOR_AT = 16, 40
_MOST_ENTRIES, _FIRST_ENTRIES_AT = 128, 2
_LARGEST_MBR = 0xFFFFFFFF
#: File systems of 4 KiB blocks leave no rest.
_ALIGN = 4096


@dataclass(frozen=True, slots=True)
class Layout:
    """A disk's table, and where its last partition lies."""

    kind: Literal["none", "mbr", "gpt"]
    disk_size: int
    start: int
    """First byte of the last partition; the whole disk is one when there is no table."""
    size: int
    """Bytes of the last partition."""
    entry: int = 0
    """Its number in the table."""
    table: bytes = b""
    """The disk's first bytes, up to `TABLE_BYTES`."""

    def room(self, disk_size: int) -> int:
        """Return how large the last partition can be on a disk of `disk_size` bytes. Raises ResizeRefused."""
        tail = self._backup_bytes() if self.kind == "gpt" else 0
        room = (disk_size - tail - self.start) // _ALIGN * _ALIGN
        if room <= 0:
            raise ResizeRefused(
                f"The last partition begins at byte {self.start}: it has no room on a disk of {disk_size} bytes."
            )
        return min(room, self.size)

    def shortened(self, disk_size: int) -> tuple[bytes, bytes]:
        """Return the first and the last bytes of a disk of `disk_size` bytes on which the last partition is cut.

        The first replace as many at the disk's beginning; the second, GPT's copy, end the disk.
        """
        room = self.room(disk_size)
        if self.kind == "none":
            return b"", b""
        if self.kind == "mbr":
            return self._mbr(self.entry, room // SECTOR), b""
        return self._gpt(disk_size // SECTOR, room // SECTOR)

    def _mbr(self, number: int, sectors: int) -> bytes:
        raw = bytearray(self.table[:SECTOR])
        at = _ENTRIES_AT + number * _ENTRY_BYTES
        flag, first_chs, kind, last_chs, first, _ = _ENTRY.unpack_from(raw, at)
        if self.kind == "mbr" and last_chs != _BEYOND_CHS:
            last_chs = _chs(first + sectors - 1)
        _ENTRY.pack_into(raw, at, flag, first_chs, kind, last_chs, first, sectors)
        return bytes(raw)

    def _backup_bytes(self) -> int:
        """Return what GPT's copy takes at the disk's end: the entries, and the header behind them."""
        count, each = _GPT.unpack_from(self.table, SECTOR)[10:12]
        return int(-(-count * each // SECTOR) + 1) * SECTOR

    def _gpt(self, sectors: int, room: int) -> tuple[bytes, bytes]:
        entries_at, count, each = _GPT.unpack_from(self.table, SECTOR)[9:12]
        entries = bytearray(self.table[entries_at * SECTOR :][: count * each])
        struct.pack_into("<Q", entries, self.entry * each + _LAST_SECTOR_AT, self.start // SECTOR + room - 1)
        backup_sectors = self._backup_bytes() // SECTOR
        raw = bytearray(self.table)
        raw[:SECTOR] = self._mbr(self.entry_of_protective(), min(sectors - 1, _LARGEST_MBR))
        raw[SECTOR : 2 * SECTOR] = self._gpt_header(1, sectors - 1, entries_at, entries)
        raw[entries_at * SECTOR : entries_at * SECTOR + len(entries)] = entries
        backup = self._gpt_header(sectors - 1, 1, sectors - backup_sectors, entries)
        return bytes(raw), bytes(entries).ljust((backup_sectors - 1) * SECTOR, b"\0") + backup

    def _gpt_header(self, own: int, other: int, entries_at: int, entries: bytearray) -> bytes:
        """Return the header in sector `own`, whose twin is in sector `other`."""
        head = _GPT.unpack_from(self.table, SECTOR)
        signature, revision, header_bytes, _, _, _, first, _, disk_id, _, count, each, _ = head
        last_usable = max(own, other) - self._backup_bytes() // SECTOR
        fields = (own, other, first, last_usable, disk_id, entries_at, count, each, crc32(entries))
        raw = bytearray(_GPT.pack(signature, revision, header_bytes, 0, *fields))
        raw += self.table[SECTOR + len(raw) : SECTOR + header_bytes]
        struct.pack_into("<I", raw, _GPT_CHECKSUM_AT, crc32(raw))
        return bytes(raw).ljust(SECTOR, b"\0")

    def entry_of_protective(self) -> int:
        """Return which MBR entry stands for the GPT."""
        return next(number for number, one in enumerate(_mbr_entries(self.table)) if one[2] == _PROTECTIVE)


def read_layout(head: bytes, disk_size: int) -> Layout:
    """Return the layout of the disk that begins with `head` (`TABLE_BYTES`). Raises ResizeRefused."""
    entries = _mbr_entries(head) if head[510:512] == b"\x55\xaa" else []
    used = [(number, one) for number, one in enumerate(entries) if one[2] and one[5]]
    if not used:
        return Layout("none", disk_size, 0, disk_size)
    if any(one[2] == _PROTECTIVE for _, one in used):
        return _read_gpt(head, disk_size)
    if any(one[2] in _EXTENDED for _, one in used):
        raise ResizeRefused("The disk has an extended partition: only disks with primary ones can be made smaller.")
    number, last = max(used, key=lambda one: one[1][4])
    _refuse_overlap([(one[4], one[4] + one[5]) for _, one in used])
    if last[2] == _LVM:
        raise _refused_lvm()
    return Layout("mbr", disk_size, last[4] * SECTOR, last[5] * SECTOR, number, head[:SECTOR])


def _read_gpt(head: bytes, disk_size: int) -> Layout:
    fields = _GPT.unpack_from(head, SECTOR)
    header_bytes, checksum, entries_at, count, each = fields[2], fields[3], *fields[9:12]
    raw = bytearray(head[SECTOR : SECTOR + min(header_bytes, SECTOR)])
    raw[_GPT_CHECKSUM_AT : _GPT_CHECKSUM_AT + 4] = bytes(4)
    end = entries_at * SECTOR + count * each
    if fields[0] != b"EFI PART" or crc32(raw) != checksum or each < _ENTRY_BYTES * 8 or not 0 < count <= _MOST_ENTRIES:
        raise ResizeRefused("The disk's GPT is damaged or of an unknown kind: repair it in the guest first.")
    if entries_at < _FIRST_ENTRIES_AT or end > len(head):
        raise ResizeRefused("The disk's GPT has its entries where no common tool puts them: it is left alone.")
    if crc32(head[entries_at * SECTOR : end]) != fields[12]:
        raise ResizeRefused("The entries of the disk's GPT do not match their checksum: repair it in the guest first.")
    used = []
    for number in range(count):
        kind, _, first, last = _GPT_ENTRY.unpack_from(head, entries_at * SECTOR + number * each)
        if any(kind):
            used.append((first, last + 1, number, kind))
    if not used:
        raise ResizeRefused("The disk's GPT has no partition: there is no file system to make smaller.")
    _refuse_overlap([(first, end) for first, end, _, _ in used])
    first, behind, number, kind = max(used)
    if kind == _LVM_GUID:
        raise _refused_lvm()
    return Layout("gpt", disk_size, first * SECTOR, (behind - first) * SECTOR, number, head[:TABLE_BYTES])


def _mbr_entries(head: bytes) -> list[tuple[int, bytes, int, bytes, int, int]]:
    return [_ENTRY.unpack_from(head, _ENTRIES_AT + number * _ENTRY_BYTES) for number in range(4)]


def _refuse_overlap(spans: list[tuple[int, int]]) -> None:
    ordered = sorted(spans)
    if any(end > start for (_, end), (start, _) in pairwise(ordered)):
        raise ResizeRefused("The partitions of the disk overlap: the table is damaged, and left alone.")


def _refused_lvm() -> ResizeRefused:
    return ResizeRefused("The disk ends with an LVM volume: only ext2, ext3 and ext4 can be made smaller.")


def _chs(sector: int) -> bytes:
    """Return a sector's address as old BIOSes count it: 255 heads, 63 sectors a track."""
    cylinder, rest = divmod(sector, 255 * 63)
    if cylinder > 1023:  # noqa: PLR2004 - ten bits
        return _BEYOND_CHS
    head, sector = divmod(rest, 63)
    return bytes((head, (cylinder >> 8) << 6 | (sector + 1), cylinder & 0xFF))
