"""Files: locks that go with their holder, writes that are whole, names that are on disk."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self


class FileStream:
    """A file as a `worker.images.image.Stream`."""

    def __init__(self, path: Path, offset: int) -> None:
        self._file = path.open("rb", buffering=0)
        self.length = max(0, os.fstat(self._file.fileno()).st_size - offset)
        self._file.seek(offset)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of `buffer`; 0 at the end."""
        return self._file.readinto(buffer) or 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def write_all(file: int, chunk: bytes | memoryview) -> None:
    """Write all of `chunk`."""
    view = memoryview(chunk)
    while view:
        view = view[os.write(file, view) :]


def try_lock(file: int) -> bool:
    """Take the exclusive flock of an open file, unless somebody else has it; it goes when the file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def fsync_directory(path: Path) -> None:
    """Bring new and changed names to the disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
