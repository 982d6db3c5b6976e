"""One VHD file: its block table, its bitmaps, its blocks; reading and writing without knowing of any chain.

What is written in which order is what makes the file survive a SIGKILL between any two system calls (not a power
failure: nothing is synced). A block becomes visible through its table entry, which is written last; the first footer
is the truth, the last one is mended when the file is opened.
"""

from __future__ import annotations

import os
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from simulator.storage import vhd
from simulator.storage.handles import Handle, HandleCache
from simulator.storage.model import StorageError
from simulator.storage.vhd import BITMAP_SIZE, BLOCK, BLOCK_SECTORS, SECTOR, UNUSED, Footer, Header, VhdFormatError

#: All sectors of a block: bit 4095, the most significant, is sector 0.
FULL = (1 << BLOCK_SECTORS) - 1
#: Data starts at a page boundary, so that its bitmap lies one sector before it (as tapdisk lays blocks out).
_PAGE = 4096
_BLOCK_PHASE = _PAGE - BITMAP_SIZE
#: More runs than this are read at once and taken apart in memory.
_FEW_RUNS = 4

ReadBuffer = bytes | bytearray | memoryview


class Space:
    """The bytes that a repository's files take, and may take."""

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self.used = 0

    def take(self, count: int) -> None:
        """Add to what is used; raises StorageError 44 and takes nothing when that is more than there is."""
        with self._lock:
            if count > 0 and self.capacity is not None and self.used + count > self.capacity:
                raise StorageError(44, f"There is insufficient space: {count} bytes wanted, {self.free} left")
            self.used += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        with self._lock:
            self.used -= count

    @property
    def free(self) -> int:
        """Bytes left; a very large number without a capacity."""
        return sys.maxsize if self.capacity is None else self.capacity - self.used


def mask(first: int, count: int) -> int:
    """Return the bits of `count` sectors from sector `first` of a block on."""
    return ((1 << count) - 1) << (BLOCK_SECTORS - first - count)


def runs(bits: int, width: int = BLOCK_SECTORS) -> Iterator[tuple[int, int]]:
    """Yield the runs of set bits as (first sector, count), ascending; one step costs a run, not a sector.

    `width` is the number of bits of the bitmap that `bits` was made from.
    """
    while bits:
        top = bits.bit_length()
        rest = ~bits & ((1 << top) - 1)
        end = rest.bit_length()
        yield width - top, top - end
        bits &= (1 << end) - 1


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill the view from the file; raises EOFError when the file ends before."""
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            raise EOFError(f"the file ends at {offset}, {len(view)} bytes early")
        view = view[count:]
        offset += count


def write_at(fd: int, buffers: Sequence[ReadBuffer], offset: int) -> None:
    """Write all the buffers, one behind the other."""
    views = [memoryview(buffer) for buffer in buffers]
    while views:
        count = os.pwritev(fd, views, offset)
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]


class VhdFile:
    """An open VHD. One thread at a time may change it, any number may read meanwhile.

    Readers take no lock: a bitmap is replaced whole, and a table entry is set after what it points to.
    """

    def __init__(self, handle: Handle, space: Space, footer: Footer, header: Header, table: array[int]) -> None:
        self.handle = handle
        self.footer = footer
        self.header = header
        self.bat = table
        self.end = 0  # where the last footer lies
        self.used_blocks = 0
        self._space = space
        # Bitmaps that were looked at, never dropped: whoever loads one may not overwrite a newer one.
        self._bits: dict[int, int] = {}

    @property
    def virtual_size(self) -> int:
        """The disk's size as its guest sees it."""
        return self.footer.current_size

    @property
    def physical_size(self) -> int:
        """The file's length."""
        return self.end + vhd.FOOTER_SIZE

    @property
    def hidden(self) -> bool:
        """XenServer's mark of a node that no VDI stands for."""
        return self.footer.hidden

    def is_allocated(self, block: int) -> bool:
        """Whether this file itself has the block."""
        return block < len(self.bat) and self.bat[block] != UNUSED

    def bits(self, block: int) -> int:
        """Which sectors of an allocated block live here."""
        bits = self._bits.get(block)
        if bits is None:
            with self.handle.use() as fd:
                raw = os.pread(fd, BITMAP_SIZE, self.bat[block] * SECTOR)
            bits = self._bits.setdefault(block, int.from_bytes(raw, "big"))
        return bits

    def read(self, block: int, first: int, view: memoryview) -> None:
        """Fill the view from sector `first` of an allocated block on, whatever its bitmap says."""
        with self.handle.use() as fd:
            read_into(fd, view, self.bat[block] * SECTOR + BITMAP_SIZE + first * SECTOR)

    def read_runs(self, block: int, have: int, first: int, view: memoryview) -> None:
        """Fill those sectors of the view that `have` names; the view begins at sector `first`."""
        with self.handle.use() as fd:
            data_at = self.bat[block] * SECTOR + BITMAP_SIZE
            if (have ^ have << 1).bit_count() // 2 <= _FEW_RUNS:
                for start, count in runs(have):
                    at = (start - first) * SECTOR
                    read_into(fd, view[at : at + count * SECTOR], data_at + start * SECTOR)
                return
            base = BLOCK_SECTORS - have.bit_length()
            last = BLOCK_SECTORS - (have & -have).bit_length() + 1
            span = memoryview(bytearray((last - base) * SECTOR))
            read_into(fd, span, data_at + base * SECTOR)
            for start, count in runs(have):
                at, source = (start - first) * SECTOR, (start - base) * SECTOR
                view[at : at + count * SECTOR] = span[source : source + count * SECTOR]

    def write(self, block: int, first: int, data: memoryview) -> None:
        """Write whole sectors inside one block; allocates it when it is new here. Raises StorageError 44."""
        new = mask(first, len(data) // SECTOR)
        if not self.is_allocated(block):
            self._allocate(block, first, data, new)
            return
        bits = self.bits(block)
        with self.handle.use() as fd:
            bitmap_at = self.bat[block] * SECTOR
            write_at(fd, [data], bitmap_at + BITMAP_SIZE + first * SECTOR)
            if bits | new != bits:
                write_at(fd, [(bits | new).to_bytes(BITMAP_SIZE, "big")], bitmap_at)
                self._bits[block] = bits | new

    def write_runs(self, block: int, have: int, data: memoryview) -> None:
        """Write those sectors of a whole block's data that `have` names, as one change of the bitmap."""
        if have == FULL:
            self.write(block, 0, data)
            return
        if not self.is_allocated(block):
            start, count = next(runs(have))
            self.write(block, start, data[start * SECTOR : (start + count) * SECTOR])
            have &= ~mask(start, count)
        bits = self.bits(block)
        with self.handle.use() as fd:
            bitmap_at = self.bat[block] * SECTOR
            for start, count in runs(have):
                at = start * SECTOR
                write_at(fd, [data[at : at + count * SECTOR]], bitmap_at + BITMAP_SIZE + at)
            write_at(fd, [(bits | have).to_bytes(BITMAP_SIZE, "big")], bitmap_at)
            self._bits[block] = bits | have

    def growth_for(self, blocks: int) -> int:
        """Return an upper bound of the bytes that this many new blocks add to the file."""
        return blocks * (BLOCK + _PAGE) + _PAGE if blocks else 0

    def set_hidden(self, hidden: bool) -> None:  # noqa: FBT001 - the flag's new value is all there is to say
        """Mark the node hidden or visible."""
        self._set_footer(replace(self.footer, hidden=hidden))

    def relink(self, parent_name: str, parent_id: bytes) -> None:
        """Make another file of the folder the parent. The locators' sectors stay where they are."""
        offset = min(locator.offset for locator in self.header.locators)
        locators, sectors = vhd.locators_for(parent_name, offset)
        header = replace(self.header, parent_id=parent_id, parent_name=parent_name, locators=locators)
        with self.handle.use() as fd:
            write_at(fd, [sectors], offset)
            write_at(fd, [header.pack()], self.footer.data_offset)
        self.header = header

    def grow(self, virtual_size: int) -> None:
        """Enlarge the disk; a table that has no room moves to the end of the file. Raises StorageError 44."""
        entries = max(vhd.blocks_of(virtual_size), len(self.bat))
        table = array("I", self.bat)
        table.extend([UNUSED] * (entries - len(table)))
        header = replace(self.header, entries=entries)
        room = vhd.round_up(4 * entries)
        if room > vhd.round_up(4 * len(self.bat)):
            header = replace(header, table_offset=self.end)
            self._space.take(room)
        else:
            room = 0
        with self.handle.use() as fd:
            try:
                if room:
                    write_at(fd, [self.footer.pack()], self.end + room)
                write_at(fd, [pack_table(table)], header.table_offset)
            except OSError:
                self._shrink_back(fd, room)
                raise
            write_at(fd, [header.pack()], self.footer.data_offset)
        self.header = header
        self.bat = table
        self.end += room
        self._set_footer(replace(self.footer, current_size=virtual_size))

    def _set_footer(self, footer: Footer) -> None:
        raw = footer.pack()
        with self.handle.use() as fd:
            write_at(fd, [raw], 0)
            write_at(fd, [raw], self.end)
        self.footer = footer

    def _shrink_back(self, fd: int, taken: int) -> None:
        """Undo an enlargement that the file system below has refused half-way."""
        self._space.give(taken)
        # Never shorter than with its last footer, whose place needs no new space then.
        os.ftruncate(fd, self.physical_size)
        write_at(fd, [self.footer.pack()], self.end)

    def _allocate(self, block: int, first: int, data: memoryview, bits: int) -> None:
        at = self.end + (_BLOCK_PHASE - self.end) % _PAGE
        end = at + BITMAP_SIZE + BLOCK
        self._space.take(end - self.end)
        with self.handle.use() as fd:
            try:
                # The old last footer is about to be overwritten, so the new one comes first.
                write_at(fd, [self.footer.pack()], end)
                bitmap = bits.to_bytes(BITMAP_SIZE, "big")
                if bits == FULL:
                    write_at(fd, [bitmap, data], at)
                else:
                    write_at(fd, [data], at + BITMAP_SIZE + first * SECTOR)
                    write_at(fd, [bitmap], at)
                write_at(fd, [(at // SECTOR).to_bytes(4, "big")], self.header.table_offset + 4 * block)
            except OSError:
                self._shrink_back(fd, end - self.end)
                raise
        self.end = end
        self.used_blocks += 1
        self._bits[block] = bits
        self.bat[block] = at // SECTOR


def pack_table(table: array[int]) -> bytes:
    """Pack the block table as it stands in a file, padded to a sector with unused entries."""
    packed = array("I", table)
    packed.extend([UNUSED] * (-len(packed) % (SECTOR // 4)))
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


def unpack_table(raw: ReadBuffer) -> array[int]:
    """Read the entries of a packed table."""
    table = array("I")
    table.frombytes(raw)
    if sys.byteorder == "little":
        table.byteswap()
    return table


def create(
    path: Path, cache: HandleCache, space: Space, virtual_size: int, parent: tuple[str, VhdFile] | None
) -> VhdFile:
    """Write an empty disk; differencing when there is a parent, given with the file name that it has, or gets soon.

    Raises StorageError 44 and leaves nothing.
    """
    entries = vhd.blocks_of(virtual_size)
    end = vhd.metadata_size(entries, differencing=parent is not None)
    space.take(end + vhd.FOOTER_SIZE)
    footer = Footer(virtual_size, vhd.TYPE_DIFFERENCING if parent else vhd.TYPE_DYNAMIC, vhd.new_id())
    header = Header(vhd.TABLE_OFFSET, entries)
    table = array("I", [UNUSED]) * entries
    sectors, locators_at = b"", end
    if parent:
        name, file = parent
        locators_at = end - 3 * SECTOR
        locators, sectors = vhd.locators_for(name, locators_at)
        header = replace(header, parent_id=file.footer.unique_id, parent_name=name, locators=locators)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_at(fd, [footer.pack(), header.pack(), pack_table(table)], 0)
            write_at(fd, [sectors, footer.pack()], locators_at)
        finally:
            os.close(fd)
    except OSError:
        space.give(end + vhd.FOOTER_SIZE)
        path.unlink(missing_ok=True)
        raise
    file = VhdFile(Handle(path, cache), space, footer, header, table)
    file.end = end
    return file


def load(path: Path, cache: HandleCache, space: Space) -> VhdFile:
    """Open a file and mend what a killed process left at its end; its space is not counted.

    Raises VhdFormatError for anything that is not a VHD of this repository's kind.
    """
    handle = Handle(path, cache)
    with handle.use() as fd:
        size = os.fstat(fd).st_size
        footer = Footer.parse(os.pread(fd, vhd.FOOTER_SIZE, 0))
        if footer.disk_type not in {vhd.TYPE_DYNAMIC, vhd.TYPE_DIFFERENCING}:
            raise VhdFormatError(f"a VHD of type {footer.disk_type} is neither dynamic nor differencing")
        header = Header.parse(os.pread(fd, vhd.HEADER_SIZE, footer.data_offset))
        if header.block_size != BLOCK:
            raise VhdFormatError(f"blocks of {header.block_size} bytes; this repository has blocks of 2 MiB")
        if header.entries < vhd.blocks_of(footer.current_size):
            raise VhdFormatError("the block table is too short for the disk")
        if header.table_offset + 4 * header.entries > size:
            raise VhdFormatError("the block table reaches past the end of the file")
        table = unpack_table(os.pread(fd, 4 * header.entries, header.table_offset))
        file = VhdFile(handle, space, footer, header, table)
        highest = -1
        free = table.count(UNUSED)
        file.used_blocks = len(table) - free
        if file.used_blocks:
            highest = max(entry for entry in table if entry != UNUSED) if free else max(table)
            if highest * SECTOR + BITMAP_SIZE + BLOCK > size:
                raise VhdFormatError("the block table points past the end of the file")
        file.end = _mend_tail(fd, file, size, highest)
    return file


def _mend_tail(fd: int, file: VhdFile, size: int, highest: int) -> int:
    """Where the last footer is, after making it equal to the first; cuts off a block that never became visible."""
    header = file.header
    least = max(
        header.table_offset + vhd.round_up(4 * header.entries),
        *(locator.offset + SECTOR for locator in header.locators),
        highest * SECTOR + BITMAP_SIZE + BLOCK if highest >= 0 else 0,
    )
    if header.table_offset == vhd.TABLE_OFFSET:
        differencing = file.footer.disk_type == vhd.TYPE_DIFFERENCING
        least = max(least, vhd.metadata_size(header.entries, differencing=differencing))
    head = os.pread(fd, vhd.FOOTER_SIZE, 0)
    tail_at = size - vhd.FOOTER_SIZE
    if size % SECTOR == 0 and least <= tail_at < least + BLOCK:
        tail = os.pread(fd, vhd.FOOTER_SIZE, tail_at)
        if tail.startswith(vhd.FOOTER_COOKIE):
            if tail != head:
                write_at(fd, [head], tail_at)
            return tail_at
    os.ftruncate(fd, least)
    write_at(fd, [head], least)
    return least
