"""A second reader of VHD files: slow, simple, from the format's description alone, sharing no code with the first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Vhd:
    kind: int
    size: int
    hidden: bool
    unique_id: bytes
    parent_id: bytes
    parent_name: str
    locators: dict[str, str]
    table_offset: int
    block_size: int
    table: list[int]
    creator: bytes


def _number(raw: bytes, at: int, length: int) -> int:
    return int.from_bytes(raw[at : at + length], "big")


def _check_sum(raw: bytes, at: int) -> None:
    naive = 0
    for index, byte in enumerate(raw):
        if not at <= index < at + 4:
            naive += byte
    assert _number(raw, at, 4) == 0xFFFFFFFF - naive, "checksum"


def parse(data: bytes) -> Vhd:
    """Read the structures, asserting everything that vhd-util's check would."""
    footer = data[:512]
    assert footer[:8] == b"conectix"
    assert data[-512:] == footer, "the two footers differ"
    assert _number(footer, 8, 4) == 2
    assert _number(footer, 12, 4) == 0x10000
    assert _number(footer, 24, 4) == 0, "a time stamp may not be in the future of any reader"
    assert _number(footer, 40, 8) == _number(footer, 48, 8)
    _check_sum(footer, 64)
    header_at = _number(footer, 16, 8)
    header = data[header_at : header_at + 1024]
    assert header[:8] == b"cxsparse"
    assert _number(header, 8, 8) == 2**64 - 1
    assert _number(header, 24, 4) == 0x10000
    _check_sum(header, 36)
    size, entries, block_size = _number(footer, 48, 8), _number(header, 28, 4), _number(header, 32, 4)
    cylinders, heads, sectors = _number(footer, 56, 2), footer[58], footer[59]
    assert cylinders * heads * sectors * 512 <= size, "geometry too large"
    assert entries * block_size >= size
    table_offset = _number(header, 16, 8)
    table = [_number(data, table_offset + 4 * index, 4) for index in range(entries)]
    starts = sorted(entry * 512 for entry in table if entry != 0xFFFFFFFF)
    for start, following in zip(starts, [*starts, len(data) - 512][1:], strict=True):
        assert start + 512 + block_size <= following, "blocks overlap each other or the footer"
        assert start >= table_offset + 4 * entries or start + 512 + block_size <= table_offset
    locators = {}
    for index in range(8):
        at = 576 + 24 * index
        code = header[at : at + 4]
        if code != bytes(4):
            assert _number(header, at + 4, 4) in {1, 512}
            length, offset = _number(header, at + 8, 4), _number(header, at + 16, 8)
            encoding = "utf-8" if code == b"MacX" else "utf-16-le"
            locators[code.decode()] = data[offset : offset + length].decode(encoding)
    name = header[64:576].decode("utf-16-be").rstrip("\0")
    return Vhd(
        _number(footer, 60, 4), size, footer[85] == 1, footer[68:84], header[40:56], name, locators, table_offset,
        block_size, table, footer[28:32],
    )  # fmt: skip


def overlay(data: bytes, content: bytearray) -> None:
    """Write the sectors that the file has over what its parent has; a dynamic file must have zeros under clear bits."""
    vhd = parse(data)
    assert len(content) <= vhd.size
    content.extend(bytes(vhd.size - len(content)))
    for block, entry in enumerate(vhd.table):
        if entry == 0xFFFFFFFF:
            continue
        bitmap, at = data[entry * 512 : entry * 512 + 512], entry * 512 + 512
        start = block * vhd.block_size
        if bitmap == b"\xff" * 512:
            content[start : start + vhd.block_size] = data[at : at + vhd.block_size][: vhd.size - start]
            continue
        for sector in range(vhd.block_size // 512):
            here = start + sector * 512
            have = data[at + sector * 512 : at + sector * 512 + 512]
            if bitmap[sector // 8] & 0x80 >> sector % 8:
                content[here : here + 512] = have[: max(0, vhd.size - here)]
            elif vhd.kind == 3:
                assert have == bytes(512), "data under a clear bit"
    del content[vhd.size :]


def chain_content(folder: Path, uuid: str) -> bytes:
    """The content of a disk by its files alone, found through the parents' names and checked by their ids."""
    files = [(folder / f"{uuid}.vhd").read_bytes()]
    while (vhd := parse(files[-1])).kind == 4:
        assert vhd.locators == {
            "MacX": f"file://./{vhd.parent_name}",
            "W2ku": f".\\{vhd.parent_name}",
            "W2ru": f".\\{vhd.parent_name}",
        }
        files.append((folder / vhd.parent_name).read_bytes())
        assert parse(files[-1]).unique_id == vhd.parent_id
    content = bytearray()
    for data in reversed(files):
        overlay(data, content)
    return bytes(content)
