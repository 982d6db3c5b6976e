"""VHDs for tests, written from images.md 8 by other code than the one that reads them."""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Mapping

BLOCK = 2 << 20
SECTOR = 512
TABLE_AT = 2048


def checksum(raw: bytes) -> int:
    return ~sum(raw) & 0xFFFFFFFF


def geometry(size: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors of a disk (images.md 8.5)."""
    sectors = min(size // SECTOR, 65535 * 16 * 255)
    if sectors > 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track = 17
    tracks = sectors // per_track
    heads = max(4, -(-tracks // 1024))
    if heads > 16 or tracks >= heads * 1024:
        per_track, heads = 31, 16
        tracks = sectors // per_track
    if tracks >= heads * 1024:
        per_track, heads = 63, 16
        tracks = sectors // per_track
    return tracks // heads, heads, per_track


def footer(size: int, kind: int = 3, creator: bytes = b"caml") -> bytes:
    cylinders, heads, per_track = geometry(size)
    at = 0xFFFFFFFFFFFFFFFF if kind == 2 else SECTOR
    raw = struct.pack(
        ">8sIIQI4sIIQQHBBII16sBB426x",
        *(b"conectix", 2, 0x10000, at, 0, creator, 1, 0, size, size),
        *(cylinders, heads, per_track, kind, 0, uuid.UUID(int=size).bytes, 0, 0),
    )
    return raw[:64] + struct.pack(">I", checksum(raw)) + raw[68:]


def header(entries: int, block: int = BLOCK, table_at: int = TABLE_AT) -> bytes:
    raw = struct.pack(">8sQQIIII988x", b"cxsparse", 0xFFFFFFFFFFFFFFFF, table_at, 0x10000, entries, block, 0)
    return raw[:36] + struct.pack(">I", checksum(raw)) + raw[40:]


def table(entries: int, used: list[int], first: int) -> bytes:
    """Table for blocks that follow each other in the order of `used`."""
    sectors = dict.fromkeys(range(entries), 0xFFFFFFFF)
    sectors |= {number: (first + place * (SECTOR + BLOCK)) // SECTOR for place, number in enumerate(used)}
    raw = struct.pack(f">{entries}I", *sectors.values())
    return raw + b"\0" * (-len(raw) % SECTOR)


def head(size: int, used: list[int], kind: int = 3) -> bytes:
    """Everything before the first block, as XAPI lays it out."""
    entries = -(-size // BLOCK)
    first = TABLE_AT + -(-entries * 4 // SECTOR) * SECTOR
    front = footer(size, kind) + header(entries)
    return front + bytes(TABLE_AT - len(front)) + table(entries, used, first)


def vhd(size: int, blocks: Mapping[int, bytes], kind: int = 3) -> bytes:
    """A VHD as XAPI exports it: `blocks` by their number, each at most 2 MiB, in the order given."""
    body = b"".join(b"\xff" * SECTOR + data.ljust(BLOCK, b"\0") for data in blocks.values())
    return head(size, list(blocks), kind) + body + footer(size, kind)


def raw(size: int, blocks: Mapping[int, bytes]) -> bytes:
    """The disk in `vhd(size, blocks)`."""
    disk = bytearray(-(-size // BLOCK) * BLOCK)
    for number, data in blocks.items():
        disk[number * BLOCK : number * BLOCK + len(data)] = data
    return bytes(disk[:size])


def some_blocks(seed: int, *numbers: int) -> dict[int, bytes]:
    """Blocks of noise."""
    noise = random.Random(seed)
    return {number: noise.randbytes(BLOCK) for number in numbers}
