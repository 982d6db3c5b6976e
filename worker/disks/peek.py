"""A look at a disk's beginning, out of an export that is not read to its end."""

from __future__ import annotations

from worker.disks.ext import LOOK_BYTES
from worker.disks.partitions import TABLE_BYTES, Layout, read_layout
from worker.disks.relay import Source
from worker.images import vhd


def look(source: Source, head: vhd.Head, disk_size: int) -> tuple[Layout, bytes]:
    """Return the disk's layout and the first bytes of the file system on its last partition.

    Reads no further than that lies. Raises ResizeRefused, TruncatedStream.
    """
    first, part = bytearray(TABLE_BYTES), bytearray(LOOK_BYTES)
    layout: Layout | None = None
    for offset, data in vhd.runs(source, head):
        if layout is None and offset >= TABLE_BYTES:
            layout = read_layout(bytes(first), disk_size)
        if layout is not None and offset >= layout.start + LOOK_BYTES:
            break
        _keep(first, 0, offset, data)
        if layout is None and offset + len(data) >= TABLE_BYTES:
            layout = read_layout(bytes(first), disk_size)
        if layout is not None:
            _keep(part, layout.start, offset, data)
            if offset + len(data) >= layout.start + LOOK_BYTES:
                break
    return layout or read_layout(bytes(first), disk_size), bytes(part)


def _keep(kept: bytearray, start: int, offset: int, data: memoryview) -> None:
    """Copy what `data`, the disk's bytes from `offset` on, has of the bytes from `start` on."""
    begin, end = max(start, offset), min(start + len(kept), offset + len(data))
    if begin < end:
        kept[begin - start : end - start] = data[begin - offset : end - offset]
