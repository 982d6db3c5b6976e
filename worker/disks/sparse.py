"""A sparse file as the dynamic VHD that XAPI imports: only blocks with content, in constant memory (images.md 8)."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator
from typing import BinaryIO

from worker.disks.vhd_out import Outline
from worker.images.vhd import BLOCK_BYTES, SECTOR


class SparseVhd:
    """The file's first `size` bytes as a VHD: its length beforehand, then its pieces."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        """Look where the file has content. Nothing may be written to it from now on."""
        if size % SECTOR or not size:
            raise ValueError(f"a disk has whole sectors, not {size} bytes")
        file.flush()
        self._fd = file.fileno()
        self._size = size
        self._outline = Outline(size, _blocks_with_content(self._fd, size))
        self.length = self._outline.length
        """Bytes of the whole VHD."""

    def pieces(self) -> Iterator[memoryview]:
        """Yield the VHD from its begin to its end; a piece is valid until the next one is asked for."""
        outline = self._outline
        yield memoryview(outline.head)
        buffer = memoryview(bytearray(outline.bitmap) + bytearray(BLOCK_BYTES))
        for number in outline.blocks:
            self._read(number * BLOCK_BYTES, buffer[len(outline.bitmap) :])
            yield buffer
        yield memoryview(outline.footer)

    def _read(self, at: int, data: memoryview) -> None:
        """Fill `data` with what the file has at `at`, and zeros behind the disk's or the file's end."""
        done, wanted = 0, min(BLOCK_BYTES, self._size - at)
        while done < wanted:
            got = os.preadv(self._fd, [data[done:wanted]], at + done)
            if not got:
                break
            done += got
        data[done:] = bytes(len(data) - done)


def _blocks_with_content(fd: int, size: int) -> array[int]:
    """Return the numbers of the blocks in which the file has data, in ascending order."""
    found: array[int] = array("I")
    at = 0
    while at < size:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # nothing but a hole up to the end
        at = os.lseek(fd, begin, os.SEEK_HOLE)
        first = max(begin // BLOCK_BYTES, found[-1] + 1 if found else 0)
        found.extend(range(first, (min(at, size) - 1) // BLOCK_BYTES + 1))
    return found
