"""The nodes of a repository and how they hang together.

Locks, in the order in which they are taken: the collector's turn, the tree (`Tree.lock`, for every change of shape), a
disk (`Disk.lock`, for every write to it and every change of its link). Reading takes none: `Disk.link` is replaced
whole, and whatever chain a reader meets, before or after a merge, has the same content.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from simulator.storage import journal as journal_module
from simulator.storage import vhdfile
from simulator.storage.handles import HandleCache
from simulator.storage.journal import Journal, Paths
from simulator.storage.model import Node, StorageError
from simulator.storage.vhd import TYPE_DIFFERENCING, VhdFormatError
from simulator.storage.vhdfile import Space, VhdFile


class Link(NamedTuple):
    """A disk's own file and the disk below it."""

    file: VhdFile
    parent: Disk | None


class Disk:
    """One node."""

    def __init__(self, uuid: str, link: Link) -> None:
        self.uuid = uuid
        self.link = link
        self.lock = threading.Lock()
        self.children: set[Disk] = set()
        self.gone = False
        #: Blocks written while a leaf merge goes on, or None.
        self.touched: set[int] | None = None

    @property
    def hidden(self) -> bool:
        """Whether no VDI stands for it."""
        return self.link.file.hidden

    @property
    def parent(self) -> Disk | None:
        """The disk below, if any."""
        return self.link.parent

    def chain(self) -> list[VhdFile]:
        """Its files, its own first."""
        files = []
        link: Link | None = self.link
        while link is not None:
            files.append(link.file)
            link = link.parent.link if link.parent else None
        return files

    def node(self) -> Node:
        """Return what callers see of it."""
        file, parent = self.link
        return Node(self.uuid, parent.uuid if parent else None, file.hidden, file.virtual_size, file.physical_size)


class Tree:
    """All disks of a folder."""

    def __init__(self, folder: Path, capacity: int | None) -> None:
        self.paths = Paths(folder)
        self.cache = HandleCache()
        self.space = Space(capacity)
        self.journal = Journal(folder)
        self.lock = threading.RLock()
        self.disks: dict[str, Disk] = {}
        # Nodes that a stream reads: neither removed nor changed by the collector.
        self._pins: Counter[str] = Counter()
        self._unpinned: deque[list[str]] = deque()
        journal_module.recover(self.paths, self.journal, self._load)
        self._load_all()

    def get(self, uuid: str) -> Disk:
        """Return the disk of that name; raises StorageError 46."""
        disk = self.disks.get(uuid)
        if disk is None:
            raise StorageError(46, f"The VDI is not available: {uuid} is not in this repository")
        return disk

    def add(self, uuid: str, link: Link) -> Disk:
        """Enter a disk (with the lock held)."""
        disk = Disk(uuid, link)
        self.disks[uuid] = disk
        if link.parent:
            link.parent.children.add(disk)
        return disk

    def drop(self, disk: Disk) -> None:
        """Forget a disk (with the lock held)."""
        disk.gone = True
        del self.disks[disk.uuid]
        if disk.parent:
            disk.parent.children.discard(disk)

    def depth(self, disk: Disk) -> int:
        """How many files its chain has."""
        count = 1
        while disk.parent is not None:
            disk = disk.parent
            count += 1
        return count

    def pin(self, uuids: list[str]) -> Callable[[], None]:
        """Keep the collector off these nodes (with the lock held); returns what undoes it, to be called once."""
        self._pins.update(uuids)
        # Undone by a finalizer perhaps, anywhere and with any lock held: so it takes none.
        return lambda: self._unpinned.append(uuids)

    def is_pinned(self, uuid: str) -> bool:
        """Whether a stream reads the node (with the lock held)."""
        while self._unpinned:
            self._pins -= Counter(self._unpinned.popleft())
        return uuid in self._pins

    def _load(self, path: Path) -> VhdFile:
        try:
            return vhdfile.load(path, self.cache, self.space)
        except VhdFormatError as error:
            raise StorageError(40, f"The SR scan failed: {path.name}: {error}") from error

    def _load_all(self) -> None:
        files = {path.stem: self._load(path) for path in self.paths.folder.glob("*.vhd")}
        self.space.used = sum(file.physical_size for file in files.values())
        for uuid, file in files.items():
            self.disks[uuid] = Disk(uuid, Link(file, None))
        for uuid, file in files.items():
            if file.footer.disk_type == TYPE_DIFFERENCING:
                self._attach(self.disks[uuid], file)

    def _attach(self, disk: Disk, file: VhdFile) -> None:
        name = file.header.parent_name.replace("\\", "/").rsplit("/", 1)[-1]
        parent = self.disks.get(name.removesuffix(".vhd"))
        if parent is None:
            raise StorageError(40, f"The SR scan failed: {disk.uuid} needs its parent {name}, which is not there")
        if parent.link.file.footer.unique_id != file.header.parent_id:
            raise StorageError(40, f"The SR scan failed: {name} is not the parent that {disk.uuid} was made on")
        disk.link = Link(file, parent)
        parent.children.add(disk)


@contextmanager
def no_space_as_44() -> Iterator[None]:
    """Make a full file system below what a full repository is to the caller."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageError(44, "There is insufficient space: the file system below is full") from error
        raise
