"""One file SR: a folder of `<uuid>.vhd` that survives the death of its process between any two system calls."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, Self

from simulator.storage import content, streams, vhd, vhdfile
from simulator.storage.cbt import ChangeLogs
from simulator.storage.collector import Collector, Rules
from simulator.storage.model import Collected, Node, StorageError
from simulator.storage.streams import Base, ExportStream, Forward, Readable
from simulator.storage.tree import Disk, Link, Tree, no_space_as_44
from simulator.storage.vhd import BLOCK, SECTOR
from simulator.storage.vhdfile import ReadBuffer, VhdFile

#: A leaf with so many files below and including it cannot be snapshotted (xapi.md 9.1).
MAX_DEPTH = 30

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


def _ignore(_fraction: float) -> None:
    """Tell nobody about the progress."""


class VhdRepository:
    """The disks of one SR. All methods may be called from any thread; one process at a time may hold the folder.

    Every method that takes a uuid raises StorageError 46 when no disk bears it.
    """

    def __init__(self, path: Path, capacity: int | None = None) -> None:
        """Open the folder, made when it is missing; finishes or undoes what a killed process had begun.

        Raises StorageError 16 when another process holds it, 40 when a file in it cannot be read.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        lock_fd = _lock(path / ".lock")
        # Also when nobody calls `close`, and when opening fails.
        self._unlock = weakref.finalize(self, os.close, lock_fd)
        try:
            self._tree = Tree(path, capacity)
            self.logs = ChangeLogs(path)
        except BaseException:
            self._unlock()
            raise
        self._collector = Collector(self._tree)

    def close(self) -> None:
        """Close every file and give the folder back; the repository cannot be used any more."""
        self.logs.close()
        self._tree.cache.close()
        self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    # The tree

    def create(self, uuid: str, virtual_size: int) -> None:
        """Make an empty disk of a multiple of 512 bytes. Raises StorageError 44, 78 (name taken or bad), 79 (size)."""
        _check_size(virtual_size)
        tree = self._tree
        with tree.lock, no_space_as_44():
            self._check_new(uuid)
            file = vhdfile.create(tree.paths.draft(uuid), tree.cache, tree.space, virtual_size, None)
            file.handle.rename(tree.paths.vhd(uuid))
            tree.add(uuid, Link(file, None))

    def snapshot(self, leaf_uuid: str, snapshot_uuid: str, base_uuid: str) -> bool:
        """Freeze the leaf's content in a new disk (xapi.md 9.1).

        The leaf's file becomes the hidden base copy, leaf and snapshot become empty differencing disks on it: True.
        A leaf that has a parent and was not written since shares that parent with its snapshot, no base is made: False.
        Raises StorageError 44, 78, 82 (hidden), 109 (chain too long), and leaves nothing changed.
        """
        return self._branch(leaf_uuid, snapshot_uuid, base_uuid, 82)

    def clone(self, leaf_uuid: str, clone_uuid: str, base_uuid: str) -> bool:
        """As `snapshot`, on disk there is no difference; a hidden leaf is StorageError 81."""
        return self._branch(leaf_uuid, clone_uuid, base_uuid, 81)

    def delete(self, uuid: str) -> None:
        """Hide a leaf; the collector removes it. Raises StorageError 80 for a node that is hidden already."""
        with self._tree.lock:
            disk = self._tree.get(uuid)
            with disk.lock:
                if disk.hidden or disk.children:
                    raise StorageError(80, f"Failed to delete VDI {uuid}: it is hidden")
                disk.link.file.set_hidden(True)

    def resize(self, uuid: str, virtual_size: int) -> None:
        """Enlarge a leaf. Raises StorageError 44, 79 (smaller, or a bad size), 110 (hidden)."""
        _check_size(virtual_size)
        with self._tree.lock, no_space_as_44():
            disk = self._tree.get(uuid)
            with disk.lock:
                file = disk.link.file
                if file.hidden:
                    raise StorageError(110, f"Failed to resize VDI {uuid}: it is hidden")
                if virtual_size < file.virtual_size:
                    raise StorageError(79, f"VDI Invalid size: shrinking not allowed, {uuid} has {file.virtual_size}")
                if virtual_size > file.virtual_size:
                    file.grow(virtual_size)
                    self.logs.resize(uuid, virtual_size)

    def nodes(self) -> dict[str, Node]:
        """Every file of the folder."""
        with self._tree.lock:
            return {uuid: disk.node() for uuid, disk in self._tree.disks.items()}

    def node(self, uuid: str) -> Node:
        """One file of the folder."""
        return self._tree.get(uuid).node()

    def depth(self, uuid: str) -> int:
        """How many files its chain has; 1 for a disk without parent."""
        with self._tree.lock:
            return self._tree.depth(self._tree.get(uuid))

    def children(self, uuid: str) -> list[str]:
        """List the nodes directly above, hidden ones too."""
        with self._tree.lock:
            return sorted(child.uuid for child in self._tree.get(uuid).children)

    def used_bytes(self) -> int:
        """Add up the length of all files (they are sparse: the file system below may need less)."""
        return self._tree.space.used

    # Content

    def read(self, uuid: str, offset: int, length: int) -> bytes:
        """Bytes of the disk as a guest sees it. Raises StorageError 65 out of its bounds."""
        disk = self._tree.get(uuid)
        _check_bounds(disk, offset, length)
        start = offset // SECTOR * SECTOR
        buffer = bytearray(vhd.round_up(offset + length) - start)
        content.read(disk.chain(), start, memoryview(buffer))
        return bytes(memoryview(buffer)[offset - start : offset - start + length])

    def write(self, uuid: str, offset: int, data: ReadBuffer) -> None:
        """Write to a leaf. Raises StorageError 44, 46 (hidden), 65 (out of bounds)."""
        self._write(self._tree.get(uuid), offset, memoryview(data).cast("B"))

    def sha256(self, uuid: str) -> str:
        """Digest the whole virtual disk."""
        digest = hashlib.sha256()
        with self.export(uuid, "raw") as stream:
            for piece in stream:
                digest.update(piece)
        return digest.hexdigest()

    # Streams

    def export(self, uuid: str, fmt: Literal["vhd", "raw"], base: str | None = None) -> ExportStream:
        """Stream the disk, its chain merged; the bytes are those of this moment unless the disk itself is written.

        With a base: a differencing VHD with the blocks that either has and their common ancestors have not.
        Raises StorageError 65 for a base with raw.
        """
        if base is not None and fmt != "vhd":
            raise StorageError(65, "Only a VHD can be exported as the difference from a base")
        with self._tree.lock:
            disk = self._tree.get(uuid)
            chain = disk.chain()
            below = self._tree.get(base) if base is not None else None
            release = self._tree.pin([uuid] if base is None else [uuid, base])
        size = chain[0].virtual_size
        if fmt == "raw":
            return ExportStream(streams.raw_pieces(chain, size), size, release)
        files: list[VhdFile] = chain
        origin = None
        if below is not None:
            lower = below.chain()
            files = [file for file in (*chain, *lower) if file not in lower or file not in chain]
            origin = Base(self._tree.paths.vhd(below.uuid).name, lower[0].footer.unique_id)
        blocks = content.used_blocks(files, vhd.blocks_of(size))
        pieces = streams.vhd_pieces(chain, size, blocks, origin)
        return ExportStream(pieces, streams.vhd_length(size, len(blocks)), release)

    def import_vhd(self, uuid: str, stream: Readable, length: int, progress: Callable[[float], None] = _ignore) -> None:
        """Write a VHD of exactly `length` bytes into the disk; raises ImportBroken, StorageError 44 or 46."""
        disk = self._tree.get(uuid)
        streams.import_vhd(Forward(stream, length, progress), disk.link.file.virtual_size, self._sink(disk))

    def import_raw(
        self, uuid: str, stream: Readable, length: int | None, progress: Callable[[float], None] = _ignore
    ) -> None:
        """Write `length` bytes, or as many as the disk has; raises ImportBroken, StorageError 44 or 46."""
        disk = self._tree.get(uuid)
        size = disk.link.file.virtual_size
        streams.import_raw(Forward(stream, size if length is None else length, progress), size, self._sink(disk))

    # The collector

    def collect_once(self, *, paused: Collection[str] = (), inhibit_leaf: Collection[str] = ()) -> Collected | None:
        """Do one unit of the collector's work (xapi.md 9.3), or None when there is none.

        Nodes in `paused` are neither removed nor merged nor merged into; leaves in `inhibit_leaf` keep their parent.
        Nodes being exported, and merges for which the space is missing, are left for later.
        """
        return self._collector.once(Rules(paused, inhibit_leaf))

    def has_work(self, *, paused: Collection[str] = (), inhibit_leaf: Collection[str] = ()) -> bool:
        """Whether `collect_once` with the same arguments would do something."""
        return self._collector.has_work(Rules(paused, inhibit_leaf))

    # Inside

    def _branch(self, leaf_uuid: str, new_uuid: str, base_uuid: str, hidden_code: int) -> bool:
        tree = self._tree
        with tree.lock, no_space_as_44():
            leaf = tree.get(leaf_uuid)
            self._check_new(new_uuid)
            self._check_new(base_uuid)
            if leaf.hidden:
                raise StorageError(hidden_code, f"Failed to snapshot VDI {leaf_uuid}: hidden VDI")
            if tree.depth(leaf) >= MAX_DEPTH:
                raise StorageError(109, f"The snapshot chain is too long: {leaf_uuid} has {tree.depth(leaf)} files")
            with leaf.lock:
                file, parent = leaf.link
                if parent is not None and not file.used_blocks:
                    below = (tree.paths.vhd(parent.uuid).name, parent.link.file)
                    new = self._draft(new_uuid, file.virtual_size, below)
                    new.handle.rename(tree.paths.vhd(new_uuid))
                    tree.add(new_uuid, Link(new, parent))
                    return False
                self._split(leaf, new_uuid, base_uuid)
                return True

    def _split(self, leaf: Disk, new_uuid: str, base_uuid: str) -> None:
        """Put leaf and snapshot on the leaf's file as their hidden base (tree and leaf locked)."""
        tree = self._tree
        file, parent = leaf.link
        below = (tree.paths.vhd(base_uuid).name, file)
        nodes = {"leaf": leaf.uuid, "snapshot": new_uuid, "base": base_uuid}
        drafts: list[VhdFile] = []
        try:
            for uuid in (leaf.uuid, new_uuid):
                drafts.append(self._draft(uuid, file.virtual_size, below))  # noqa: PERF401 - those made are unmade below
            tree.journal.write("snapshot", nodes)
        except (StorageError, OSError):
            for draft in drafts:
                draft.handle.unlink()
                tree.space.give(draft.physical_size)
            raise
        top, new = drafts
        file.set_hidden(True)
        file.handle.rename(tree.paths.vhd(base_uuid))
        top.handle.rename(tree.paths.vhd(leaf.uuid))
        new.handle.rename(tree.paths.vhd(new_uuid))
        tree.journal.wipe()
        base = tree.add(base_uuid, Link(file, parent))
        if parent is not None:
            parent.children.discard(leaf)
        leaf.link = Link(top, base)
        base.children.add(leaf)
        tree.add(new_uuid, Link(new, base))

    def _draft(self, uuid: str, virtual_size: int, parent: tuple[str, VhdFile]) -> VhdFile:
        tree = self._tree
        return vhdfile.create(tree.paths.draft(uuid), tree.cache, tree.space, virtual_size, parent)

    def _check_new(self, uuid: str) -> None:
        if not _NAME.fullmatch(uuid):
            raise StorageError(78, f"VDI Creation failed: {uuid!r} is no name for a file")
        if uuid in self._tree.disks:
            raise StorageError(78, f"VDI Creation failed: {uuid} exists")

    def _sink(self, disk: Disk) -> streams.Sink:
        return lambda offset, view: self._write(disk, offset, view)

    def _write(self, disk: Disk, offset: int, data: memoryview) -> None:
        with disk.lock, no_space_as_44():
            if disk.gone or disk.hidden:
                raise StorageError(46, f"The VDI is not available: {disk.uuid} is hidden and cannot be written")
            _check_bounds(disk, offset, len(data))
            self.logs.mark(disk.uuid, offset, len(data))
            chain = disk.chain()
            if offset % SECTOR or len(data) % SECTOR:
                offset, data = _whole_sectors(chain, offset, data)
            while data:
                block, inside = divmod(offset, BLOCK)
                part = data[: BLOCK - inside]
                # Zeros where nothing ever was need no block.
                if content.is_allocated(chain, block) or not content.is_zero(part):
                    chain[0].write(block, inside // SECTOR, part)
                    if disk.touched is not None:
                        disk.touched.add(block)
                data = data[len(part) :]
                offset += len(part)


def _whole_sectors(chain: content.Chain, offset: int, data: memoryview) -> tuple[int, memoryview]:
    """Widen a write to sector boundaries, with what the disk has there."""
    start = offset // SECTOR * SECTOR
    buffer = memoryview(bytearray(vhd.round_up(offset + len(data)) - start))
    content.read(chain, start, buffer[:SECTOR])
    content.read(chain, start + len(buffer) - SECTOR, buffer[-SECTOR:])
    buffer[offset - start : offset - start + len(data)] = data
    return start, buffer


def _check_bounds(disk: Disk, offset: int, length: int) -> None:
    size = disk.link.file.virtual_size
    if offset < 0 or length < 0 or offset + length > size:
        raise StorageError(65, f"{length} bytes at {offset} are out of the {size} bytes of {disk.uuid}")


def _check_size(virtual_size: int) -> None:
    if virtual_size <= 0 or virtual_size % SECTOR or virtual_size > vhd.MAX_VIRTUAL_SIZE:
        raise StorageError(79, f"VDI Invalid size: {virtual_size} bytes; whole sectors up to 2040 GiB are possible")


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        # A record lock belongs to the process: it ends with it, and the process itself may open the folder again.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StorageError(16, f"The SR is in use: another process has opened {path.parent}") from error
    return fd
