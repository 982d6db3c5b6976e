"""Disks as streams: `/export_raw_vdi` and `/import_raw_vdi` without HTTP (images.md 8.4, 10). One block in memory."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Self

from simulator.storage import content, vhd
from simulator.storage.model import ImportBroken
from simulator.storage.vhd import BITMAP_SIZE, BLOCK, SECTOR, UNUSED, Footer, Header, VhdFormatError
from simulator.storage.vhdfile import pack_table, runs, unpack_table

#: An importer of a table larger than this would be asked to hold more than any disk within XAPI's limit has.
_MAX_TABLE = 64 * 1024**2
_MAX_BLOCK = 64 * 1024**2
_ALL_SECTORS = b"\xff" * BITMAP_SIZE


class Readable(Protocol):
    """A stream that is read forward only; its `readinto` is used where it has one."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Base(NamedTuple):
    """What a differencing export is relative to."""

    name: str
    unique_id: bytes


class ExportStream(Iterator[memoryview]):
    """The chunks of an export, at most a block each; they are the caller's to keep.

    `length` is that of the whole stream. The collector keeps off the exported node until the stream has ended or is
    closed; leaving it early without `close` gives the node back when the stream is dropped.
    """

    def __init__(self, pieces: Iterator[memoryview], length: int, release: Callable[[], None]) -> None:
        self.length = length
        self._pieces = pieces
        self._release = weakref.finalize(self, release)
        self._release.atexit = False

    def __next__(self) -> memoryview:
        try:
            return next(self._pieces)
        except StopIteration:
            self._release()
            raise

    def close(self) -> None:
        """Read no further."""
        self._pieces = iter(())
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def raw_pieces(chain: content.Chain, virtual_size: int) -> Iterator[memoryview]:
    """Yield the whole disk, block by block; blocks that no file has come from one block of zeros."""
    zeros = memoryview(content.ZEROS)
    for block in range(vhd.blocks_of(virtual_size)):
        count = min(BLOCK, virtual_size - block * BLOCK)
        if content.is_allocated(chain, block):
            view = memoryview(bytearray(count))
            content.read_block(chain, block, 0, view)
            yield view
        else:
            yield zeros[:count]


def vhd_length(virtual_size: int, blocks: int) -> int:
    """Bytes of an export with this many blocks (8.3)."""
    table = vhd.round_up(4 * vhd.blocks_of(virtual_size))
    return vhd.EXPORT_TABLE_OFFSET + table + blocks * (BITMAP_SIZE + BLOCK) + vhd.FOOTER_SIZE


def vhd_pieces(
    chain: content.Chain, virtual_size: int, blocks: list[int], base: Base | None = None
) -> Iterator[memoryview]:
    """Yield the layout of 8.4 with these blocks, ascending and each with the chain's whole content.

    With a base the VHD is of type 4 and names it; otherwise of type 3.
    """
    kind = vhd.TYPE_DIFFERENCING if base else vhd.TYPE_DYNAMIC
    footer = Footer(virtual_size, kind, vhd.new_id(), creator=b"caml").pack()
    entries = vhd.blocks_of(virtual_size)
    header = Header(vhd.EXPORT_TABLE_OFFSET, entries)
    gap = bytes(SECTOR)
    if base:
        locators, sectors = vhd.locators_for(base.name, vhd.HEADER_OFFSET + vhd.HEADER_SIZE)
        header = Header(vhd.EXPORT_TABLE_OFFSET, entries, BLOCK, base.unique_id, base.name, locators[:1])
        gap = sectors[:SECTOR]
    table = array("I", [UNUSED]) * entries
    first = (vhd.EXPORT_TABLE_OFFSET + vhd.round_up(4 * entries)) // SECTOR
    for index, block in enumerate(blocks):
        table[block] = first + index * (BITMAP_SIZE + BLOCK) // SECTOR
    yield memoryview(footer + header.pack() + gap + pack_table(table))
    for block in blocks:
        piece = memoryview(bytearray(BITMAP_SIZE + BLOCK))
        piece[:BITMAP_SIZE] = _ALL_SECTORS
        content.read_block(chain, block, 0, piece[BITMAP_SIZE:])
        yield piece
    yield memoryview(footer)


class Forward:
    """A stream of known or unknown length that can only be read on; tells its progress in hundredths."""

    def __init__(self, stream: Readable, length: int, progress: Callable[[float], None]) -> None:
        self._stream = stream
        self._readinto: Callable[[memoryview], int | None] | None = getattr(stream, "readinto", None)
        self._progress = progress
        self._told = -1
        self.length = length
        self.position = 0

    def fill(self, view: memoryview) -> None:
        """Read exactly this much; raises ImportBroken when the stream or its announced length ends before."""
        if self.position + len(view) > self.length:
            raise ImportBroken(f"the stream's announced length of {self.length} bytes ends inside its structure")
        while view:
            count = self._some(view)
            if not count:
                raise ImportBroken(f"the stream ended after {self.position} of {self.length} bytes")
            view = view[count:]
            self.position += count
        hundredths = 100 * self.position // self.length if self.length else 100
        if hundredths != self._told:
            self._told = hundredths
            self._progress(hundredths / 100)

    def take(self, count: int) -> bytes:
        """Read exactly so many bytes."""
        buffer = bytearray(count)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def skip_to(self, offset: int, scratch: memoryview) -> None:
        """Read over what lies before an offset; raises ImportBroken when that is behind us."""
        if offset < self.position:
            raise ImportBroken(f"the structures of the VHD overlap at byte {offset}")
        while self.position < offset:
            self.fill(scratch[: min(len(scratch), offset - self.position)])

    def _some(self, view: memoryview) -> int:
        try:
            if self._readinto is not None:
                return self._readinto(view) or 0
            data = self._stream.read(len(view))
        except OSError as error:
            raise ImportBroken(f"the stream broke after {self.position} of {self.length} bytes: {error}") from error
        view[: len(data)] = data
        return len(data)


Sink = Callable[[int, memoryview], None]


def import_raw(stream: Forward, virtual_size: int, sink: Sink) -> None:
    """Write the stream to the beginning of the disk; raises ImportBroken when it is short, or longer than the disk."""
    buffer = memoryview(bytearray(BLOCK))
    while stream.position < stream.length:
        offset = stream.position
        view = buffer[: min(BLOCK, stream.length - offset)]
        if offset + len(view) > virtual_size:
            raise ImportBroken(f"the stream of {stream.length} bytes does not fit the disk of {virtual_size}")
        stream.fill(view)
        sink(offset, view)


def import_vhd(stream: Forward, virtual_size: int, sink: Sink) -> None:
    """Write the sectors that the VHD has, as XAPI does: nothing else is zeroed, the type is not judged (images.md 10).

    Raises ImportBroken for a malformed or short stream, a bad last footer, and a sector past the end of the disk; what
    was read until then is written.
    """
    try:
        footer = Footer.parse(stream.take(vhd.FOOTER_SIZE))
        if footer.disk_type not in {vhd.TYPE_DYNAMIC, vhd.TYPE_DIFFERENCING}:
            raise ImportBroken(f"a VHD of type {footer.disk_type} cannot be imported: it has no block table")
        scratch = memoryview(bytearray(BLOCK))
        stream.skip_to(footer.data_offset, scratch)
        header = Header.parse(stream.take(vhd.HEADER_SIZE))
        if header.block_size > _MAX_BLOCK or 4 * header.entries > _MAX_TABLE:
            raise ImportBroken("the VHD's block table or blocks are larger than any disk needs")
        stream.skip_to(header.table_offset, scratch)
        table = unpack_table(stream.take(4 * header.entries))
        blocks = sorted((entry, block) for block, entry in enumerate(table) if entry != UNUSED)
        bounds = (footer.current_size, virtual_size)
        buffer = scratch if header.block_size == BLOCK else memoryview(bytearray(header.block_size))
        for entry, block in blocks:
            stream.skip_to(entry * SECTOR, scratch)
            _import_block(stream, block, buffer, bounds, sink)
        stream.skip_to(stream.length // SECTOR * SECTOR - vhd.FOOTER_SIZE, scratch)
        Footer.parse(stream.take(vhd.FOOTER_SIZE))
        stream.skip_to(stream.length, scratch)
    except VhdFormatError as error:
        raise ImportBroken(str(error)) from error


def _import_block(stream: Forward, block: int, data: memoryview, bounds: tuple[int, int], sink: Sink) -> None:
    sectors = len(data) // SECTOR
    bitmap = stream.take(vhd.round_up(-(-sectors // 8)))
    stream.fill(data)
    current_size, virtual_size = bounds
    base = block * len(data)
    for start, count in runs(int.from_bytes(bitmap, "big"), 8 * len(bitmap)):
        offset, end = base + start * SECTOR, min(base + min(start + count, sectors) * SECTOR, current_size)
        if offset >= end:
            continue
        if end > virtual_size:
            raise ImportBroken(f"the VHD has data at byte {end - 1}, the disk ends at {virtual_size}")
        sink(offset, data[offset - base : end - base])
