"""A disk from one pool into another, or its difference from an earlier state: export in, import out, nothing kept.

The import is told its closing footer only when the export is proven whole: by its length, by that footer, and by the
source pool's own word. So what broke off on the way can never look like a disk over there.
"""

from __future__ import annotations

import time
from typing import Protocol

from worker.errors import TruncatedStream
from worker.images import vhd
from worker.images.image import BUFFER_BYTES
from worker.images.push import CHECK_BYTES, CHECK_S, Watch


class Source(Protocol):
    """An export."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""

    def confirm(self, *, verified: bool = False) -> None:
        """Return when the pool says that the export succeeded."""


class Target(Protocol):
    """An import."""

    def write(self, data: memoryview | bytes, /) -> None:
        """Take all of `data`."""

    def confirm(self) -> None:
        """Return when the pool says that the import succeeded."""


class Pacer:
    """Keeps a watch informed while bytes move: each second and each 16 MiB."""

    def __init__(self, watch: Watch, total: int) -> None:
        self._watch = watch
        self._total = total
        self._done = self._unchecked = 0
        self._at = time.monotonic()

    def moved(self, count: int) -> None:
        """Count bytes. Raises what the watch raises."""
        self._done += count
        self._unchecked += count
        now = time.monotonic()
        if self._unchecked >= CHECK_BYTES or now - self._at >= CHECK_S:
            self._unchecked, self._at = 0, now
            self._watch.check()
            self._watch.progress(self._done, self._total)


def open_head(source: Source, disk_type: int) -> vhd.Head:
    """Read the head of an export. Raises the pool's own reason when it ended early, else as `vhd.read_head`."""
    try:
        return vhd.read_head(source, disk_type)
    except TruncatedStream:
        source.confirm()
        raise


def relay(source: Source, head: vhd.Head, target: Target, watch: Watch) -> None:
    """Move what follows `head` in `source`, which `target` was opened for, and prove that it arrived.

    Raises TruncatedStream, XenAPIFailure, UnknownResult, and what `watch.check` raises.
    """
    pacer = Pacer(watch, head.length)
    target.write(head.footer.raw + head.rest)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    left = head.length - head.size - vhd.SECTOR
    while left:
        got = source.readinto(buffer[: min(left, BUFFER_BYTES)])
        if got == 0:
            source.confirm()  # the pool's own reason says more, when it has one
            raise TruncatedStream(f"The export broke off {left + vhd.SECTOR} bytes before its end.")
        target.write(buffer[:got])
        left -= got
        pacer.moved(got)
    close_stream(source, head)
    source.confirm(verified=True)
    target.write(head.footer.raw)
    target.confirm()


def close_stream(source: Source, head: vhd.Head) -> None:
    """Read the last footer and the end of the stream. Raises TruncatedStream when either is not what it must be."""
    try:
        tail = vhd.read_exactly(source, vhd.SECTOR, "second footer")
    except TruncatedStream:
        source.confirm()
        raise
    head.check_tail(tail)
    if source.readinto(memoryview(bytearray(1))):
        raise TruncatedStream("The export goes on behind its second footer.")
