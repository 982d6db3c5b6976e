"""A disk that the worker keeps for a while as sparse files, to make it smaller.

    <folder>/<name>.head    what lies before the last partition
    <folder>/<name>.part    the last partition, where e2fsprogs find it at the beginning

An export is written into them, then what the disk has become since, then the partition is shrunk, and the smaller disk
goes out as a VHD. Neither step takes memory that grows with the disk. What is there is told by a third file, so that a
worker that was killed leaves nothing that would be taken for more than it is:

    <name>.base      the base has arrived whole and is untouched
    <name>.small     the disk is as small as it shall be

Both say which base it is: another worker may have begun anew with another one meanwhile.
"""

from __future__ import annotations

import errno
import os
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

from worker.disks import ext
from worker.disks.partitions import TABLE_BYTES, Layout, read_layout
from worker.disks.relay import Pacer, Source, Target, close_stream
from worker.disks.vhd_out import Outline
from worker.errors import PermanentError, ResizeRefused, TruncatedStream
from worker.images import vhd
from worker.images.push import Watch

#: Our files, by the operation's id; the folder may hold other people's.
_OURS = re.compile(r"(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-\w+\.(?:head|part|base|small)")


class LocalDisk:
    """One disk's files."""

    def __init__(self, folder: Path, name: str, layout: Layout, base: str) -> None:
        """Take the files called `name` in `folder`.

        `layout` is the disk's as it was looked at; `base` tells its base from any other.
        """
        self._layout = layout
        self._base = base
        self._files = {kind: folder / f"{name}.{kind}" for kind in ("head", "part", "base", "small")}

    @property
    def has_base(self) -> bool:
        """Tell whether the base is here, whole and untouched."""
        return self._says("base")

    @property
    def is_small(self) -> bool:
        """Tell whether the disk is here as it shall be."""
        return self._says("small")

    def _says(self, kind: str) -> bool:
        try:
            return self._files[kind].read_text() == self._base
        except FileNotFoundError:
            return False

    def _say(self, kind: str) -> None:
        """Set a mark, behind the content that it speaks of: also for a machine that loses its power."""
        for content in ("head", "part"):
            with self._files[content].open("rb") as file:
                os.fsync(file.fileno())
        self._files[kind].write_text(self._base)

    def discard(self) -> None:
        """Remove the files."""
        for path in self._files.values():
            path.unlink(missing_ok=True)

    @staticmethod
    def sweep(folder: Path, is_live: Callable[[str], bool]) -> None:
        """Remove what operations left here that ended elsewhere; names begin with the operation's id."""
        for path in folder.glob("*-*.*"):
            found = _OURS.fullmatch(path.name)
            if found and not is_live(found["id"]):
                path.unlink(missing_ok=True)

    def take_base(self, source: Source, head: vhd.Head, watch: Watch) -> int:
        """Write what follows the head of a full export into new files; return the export's bytes.

        Raises as `worker.disks.relay.relay`, and PermanentError for a folder that is somebody else's.
        """
        self.discard()
        folder = self._files["head"].parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid not in {0, os.geteuid()}:
            raise PermanentError(
                f"{folder} belongs to another user, who could read the disk: see the setting work_dir."
            )
        for kind, size in (("head", self._layout.start), ("part", self._layout.size)):
            self._files[kind].touch(mode=0o600)
            os.truncate(self._files[kind], size)
        length = self._pour(source, head, watch)
        self._say("base")
        return length

    def take_difference(self, source: Source, head: vhd.Head, watch: Watch) -> int:
        """Write what the disk has become since the base; return its bytes. The base is gone from now on."""
        self._files["base"].unlink()
        return self._pour(source, head, watch)

    def shrink(self, disk_size: int, check: Callable[[], None]) -> None:
        """Make the disk `disk_size` bytes large, its last file system first. Raises ResizeRefused."""
        layout = self._layout
        if layout.kind != "none":
            with self._files["head"].open("rb") as file:
                now = read_layout(file.read(TABLE_BYTES).ljust(TABLE_BYTES, b"\0"), layout.disk_size)
            if (now.start, now.size, now.kind) != (layout.start, layout.size, layout.kind):
                raise ResizeRefused("The guest has changed its partitions since the resize began: submit it again.")
            layout = now
        room = layout.room(disk_size)
        if room < layout.size:
            with _room_for(self._files["part"]):
                ext.shrink(self._files["part"], room, check)
        os.truncate(self._files["part"], room)
        first, _ = layout.shortened(disk_size)
        if first:
            with self._files["head"].open("r+b") as file:
                file.write(first)
        self._say("small")

    def send(self, disk_size: int, begin: Callable[[int], AbstractContextManager[Target]], watch: Watch) -> int:
        """Send the small disk as a VHD into what `begin`, given its length, opens; return the length."""
        outline = Outline(disk_size, self._used_blocks(disk_size))
        pacer = Pacer(watch, outline.length)
        with Reader(self._parts(disk_size)) as reader, begin(outline.length) as target:
            target.write(outline.head)
            buffer = memoryview(bytearray(vhd.BLOCK_BYTES))
            for number in outline.blocks:
                reader.read(number * vhd.BLOCK_BYTES, buffer)
                target.write(outline.bitmap)
                target.write(buffer)
                pacer.moved(len(outline.bitmap) + len(buffer))
            target.write(outline.footer)
            target.confirm()
        return outline.length

    def _parts(self, disk_size: int) -> list[tuple[int, Path | bytes]]:
        """Return what the small disk is made of, by where it begins; between them are zeros."""
        with self._files["head"].open("rb") as file:
            table = file.read(TABLE_BYTES).ljust(TABLE_BYTES, b"\0")
        parts: list[tuple[int, Path | bytes]] = [(0, self._files["head"]), (self._layout.start, self._files["part"])]
        if self._layout.kind == "gpt":
            _, last = read_layout(table, disk_size).shortened(disk_size)
            parts.append((disk_size - len(last), last))
        return parts

    def _used_blocks(self, disk_size: int) -> array[int]:
        """Return the numbers of the blocks that hold something."""
        used = bytearray(-(-disk_size // vhd.BLOCK_BYTES))
        for start, part in self._parts(disk_size):
            extents = [(0, len(part))] if isinstance(part, bytes) else list(_extents(part))
            for begin, end in extents:
                first, last = (start + begin) // vhd.BLOCK_BYTES, (start + end - 1) // vhd.BLOCK_BYTES
                used[first : last + 1] = b"\1" * (last + 1 - first)
        return array("I", (number for number, is_used in enumerate(used) if is_used))

    def _pour(self, source: Source, head: vhd.Head, watch: Watch) -> int:
        pacer = Pacer(watch, head.length)
        with (
            _room_for(self._files["part"]),
            self._files["head"].open("r+b") as first,
            self._files["part"].open("r+b") as rest,
        ):
            for offset, data in _told(source, vhd.runs(source, head)):
                self._write(first.fileno(), rest.fileno(), offset, data)
                pacer.moved(len(data))
            close_stream(source, head)
        source.confirm(verified=True)
        return head.length

    def _write(self, head: int, part: int, offset: int, data: memoryview) -> None:
        """Write a piece of the disk where it belongs; what follows the last partition is made anew."""
        start, end = self._layout.start, self._layout.start + self._layout.size
        before = data[: max(0, start - offset)]
        inside = data[len(before) : max(len(before), end - offset)]
        if before:
            _write_all(head, before, offset)
        if inside:
            _write_all(part, inside, offset + len(before) - start)


class Reader:
    """Reads a disk that is made of several files."""

    def __init__(self, parts: list[tuple[int, Path | bytes]]) -> None:
        """Open the parts: (first byte on the disk, file or bytes)."""
        self._parts: list[tuple[int, int | bytes]] = []
        try:
            for start, part in parts:
                self._parts.append((start, part if isinstance(part, bytes) else os.open(part, os.O_RDONLY)))
        except OSError:
            self.__exit__()
            raise

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the disk from `offset` on; zeros where there is nothing."""
        buffer[:] = bytes(len(buffer))
        for start, part in self._parts:
            skip = max(0, start - offset)
            if skip >= len(buffer):
                continue
            view, at = buffer[skip:], offset + skip - start
            if isinstance(part, bytes):
                piece = part[at : at + len(view)]
                view[: len(piece)] = piece
                continue
            while view and (got := os.preadv(part, [view], at)):
                view, at = view[got:], at + got

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for _, part in self._parts:
            if isinstance(part, int):
                os.close(part)


def _told(source: Source, runs: Iterator[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
    """Pass on what is read; after an early end raise the pool's own reason, when it has one."""
    try:
        yield from runs
    except TruncatedStream:
        source.confirm()
        raise


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        wrote = os.pwrite(file, data, offset)
        data, offset = data[wrote:], offset + wrote


def _extents(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of what a sparse file holds."""
    file = os.open(path, os.O_RDONLY)
    try:
        end = 0
        while True:
            try:
                begin = os.lseek(file, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            end = os.lseek(file, begin, os.SEEK_HOLE)
            yield begin, end
    finally:
        os.close(file)


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Say so when the folder is full: no later try would find it otherwise."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        raise PermanentError(
            f"{path.parent} has no room for the disk ({error.strerror}): see the setting work_dir."
        ) from error
