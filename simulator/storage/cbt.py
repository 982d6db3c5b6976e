"""Changed block tracking: beside a disk `<uuid>.cbtlog` says which 64 KiB changed since the state before it.

The logs of a disk and its snapshots are a chain, oldest first: each names the next, and its bitmap holds what was
written after the one before. The files are mapped into memory, so that a mark survives the death of the process.
"""

from __future__ import annotations

import mmap
import struct
import threading
from pathlib import Path

from simulator.storage.model import StorageError

GRAIN = 64 * 1024
_MAGIC = b"cbtlog 1"
#: Magic, size of the disk in bytes, the log before and after this one.
_HEADER = struct.Struct(">8sQ64s64s")
_HEADER_SIZE = 512
_SUFFIX = ".cbtlog"


class _Log:
    """One open log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        magic, self.size, before, after = _HEADER.unpack_from(self._map)
        if magic != _MAGIC:
            self._map.close()
            raise StorageError(460, f"{path.name} is no log of changed blocks")
        self.before, self.after = before.rstrip(b"\0").decode(), after.rstrip(b"\0").decode()

    @property
    def bitmap(self) -> int:
        return int.from_bytes(self._map[_HEADER_SIZE:], "big")

    def point(self, *, before: str | None = None, after: str | None = None) -> None:
        self.before = self.before if before is None else before
        self.after = self.after if after is None else after
        _HEADER.pack_into(self._map, 0, _MAGIC, self.size, self.before.encode(), self.after.encode())

    def mark(self, offset: int, length: int) -> None:
        for grain in range(offset // GRAIN, -(-(offset + length) // GRAIN)):
            self._map[_HEADER_SIZE + grain // 8] |= 0x80 >> grain % 8

    def merge(self, bitmap: int, length: int) -> None:
        """Add the marks of a log whose bitmap has `length` bytes."""
        here = len(self._map) - _HEADER_SIZE
        merged = self.bitmap | bitmap << 8 * (here - length)
        self._map[_HEADER_SIZE:] = merged.to_bytes(here, "big")

    def close(self) -> None:
        self._map.close()


def _bytes_for(size: int) -> int:
    return -(-size // (8 * GRAIN))


def _create(path: Path, size: int, before: str) -> None:
    head = _HEADER.pack(_MAGIC, size, before.encode(), b"").ljust(_HEADER_SIZE, b"\0")
    draft = path.with_suffix(".cbtdraft")
    with draft.open("wb") as file:
        file.write(head)
        file.truncate(_HEADER_SIZE + max(1, _bytes_for(size)))
    draft.replace(path)


class ChangeLogs:
    """All logs of a repository; every method may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._logs = {path.stem: _Log(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))}

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._logs

    def start(self, uuid: str, size: int) -> None:
        """Begin to track a disk, unless it is tracked already."""
        with self._lock:
            if uuid not in self._logs:
                self._make(uuid, size, "")

    def _make(self, uuid: str, size: int, before: str) -> None:
        path = self._folder / f"{uuid}{_SUFFIX}"
        _create(path, size, before)
        self._logs[uuid] = _Log(path)

    def mark(self, uuid: str, offset: int, length: int) -> None:
        """Note a write to a disk that is tracked."""
        if uuid in self._logs and length:
            with self._lock:
                log = self._logs.get(uuid)
                if log is not None:
                    log.mark(offset, length)

    def split(self, leaf_uuid: str, snapshot_uuid: str) -> None:
        """Let a snapshot of a tracked disk take its log; the disk begins a new one."""
        with self._lock:
            log = self._logs.pop(leaf_uuid)
            log.point(after=leaf_uuid)
            if log.before in self._logs:
                self._logs[log.before].point(after=snapshot_uuid)
            path = self._folder / f"{snapshot_uuid}{_SUFFIX}"
            log.path = log.path.replace(path)
            self._logs[snapshot_uuid] = log
            self._make(leaf_uuid, log.size, snapshot_uuid)

    def resize(self, uuid: str, size: int) -> None:
        """Let a log grow with its disk; what is new counts as unchanged until it is written."""
        with self._lock:
            log = self._logs.pop(uuid, None)
            if log is None:
                return
            bitmap, length, before = log.bitmap, _bytes_for(log.size), log.before
            log.close()
            self._make(uuid, size, before)
            self._logs[uuid].merge(bitmap, length)

    def drop(self, uuid: str, *, breaks: bool = False) -> None:
        """Forget a log: its marks go to the one after it, or the chain ends there when `breaks`."""
        with self._lock:
            log = self._logs.pop(uuid, None)
            if log is None:
                return
            before, after = self._logs.get(log.before), self._logs.get(log.after)
            if after is not None and not breaks:
                after.merge(log.bitmap, _bytes_for(log.size))
            if after is not None:
                after.point(before="" if breaks else log.before)
            if before is not None:
                before.point(after="" if breaks else log.after)
            log.close()
            log.path.unlink()

    def changed(self, from_uuid: str, to_uuid: str) -> bytes:
        """Return the bitmap of what changed from one state to a later one; the first grain is the highest bit.

        Raises StorageError 460 when one is not tracked, or they are no states of one disk in this order.
        """
        with self._lock:
            for uuid in (from_uuid, to_uuid):
                if uuid not in self._logs:
                    raise StorageError(460, f"Failed to calculate changed blocks: {uuid} has no log")
            target = self._logs[to_uuid]
            length = _bytes_for(target.size)
            changed, at = 0, from_uuid
            while at != to_uuid:
                log = self._logs.get(self._logs[at].after)
                if log is None:
                    raise StorageError(460, "Failed to calculate changed blocks: source and target VDI are unrelated")
                changed |= log.bitmap << 8 * (length - _bytes_for(log.size))
                at = self._logs[at].after
            return changed.to_bytes(length, "big")

    def close(self) -> None:
        """Close all logs."""
        with self._lock:
            for log in self._logs.values():
                log.close()
            self._logs.clear()
