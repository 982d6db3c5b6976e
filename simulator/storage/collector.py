"""The garbage collector: one unit of work at a time (xapi.md 9.3).

garbage  a hidden node without children is removed
inner    a hidden node with children that is its parent's only child is merged into the parent, which takes its children
leaf     a visible leaf that is its parent's only child is merged into the parent, which takes over its name

While a node is merged it still lies above its parent and hides what the merge writes there, so that readers, and a
process that opens the folder after a SIGKILL, see the same content at every moment.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

from simulator.storage.model import Collected, StorageError
from simulator.storage.tree import Disk, Link, Tree, no_space_as_44
from simulator.storage.vhd import BLOCK, FOOTER_SIZE
from simulator.storage.vhdfile import VhdFile

#: A leaf merge catches up with its guest's writes at most this often before it makes the guest wait.
_MAX_ROUNDS = 20
#: So few blocks are merged while the guest waits.
_FEW_BLOCKS = 4
_NO_SPACE = 44


class Rules(NamedTuple):
    """What the collector has to leave alone."""

    paused: Collection[str] = ()
    inhibit_leaf: Collection[str] = ()


class Unit(NamedTuple):
    """One unit of work."""

    kind: Literal["garbage", "inner", "leaf"]
    disk: Disk


class Collector:
    """Finds and does the work of one repository."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._turn = threading.Lock()
        self._buffer = memoryview(bytearray(BLOCK))

    def has_work(self, rules: Rules) -> bool:
        """Whether `once` would do something."""
        with self._tree.lock:
            return self._pick(rules, set()) is not None

    def once(self, rules: Rules) -> Collected | None:
        """Do one unit. None when there is none that the rules and the free space allow."""
        failed: set[Disk] = set()
        with self._turn:
            while True:
                with self._tree.lock:
                    unit = self._pick(rules, failed)
                if unit is None:
                    return None
                try:
                    with no_space_as_44():
                        done = self._do(unit)
                except StorageError as error:
                    if error.code != _NO_SPACE:
                        raise
                    failed.add(unit.disk)
                else:
                    if done is not None:
                        return done
                    # Something else happened to the node meanwhile, a snapshot perhaps: look again.

    def _do(self, unit: Unit) -> Collected | None:
        if unit.kind == "garbage":
            return self._remove(unit.disk)
        if unit.kind == "inner":
            return self._merge_inner(unit.disk)
        return self._merge_leaf(unit.disk)

    def _pick(self, rules: Rules, failed: set[Disk]) -> Unit | None:
        disks = [disk for disk in self._tree.disks.values() if disk not in failed and self._is_free(disk, rules)]
        for disk in disks:
            if disk.hidden and not disk.children:
                return Unit("garbage", disk)
        inner = [disk for disk in disks if disk.hidden and self._is_mergeable(disk, rules)]
        if inner:
            return Unit("inner", min(inner, key=self._order))
        for disk in disks:
            if not disk.hidden and disk.uuid not in rules.inhibit_leaf and self._is_mergeable(disk, rules):
                return Unit("leaf", disk)
        return None

    def _is_free(self, disk: Disk, rules: Rules) -> bool:
        return disk.uuid not in rules.paused and not self._tree.is_pinned(disk.uuid)

    def _is_mergeable(self, disk: Disk, rules: Rules) -> bool:
        file, parent = disk.link
        if parent is None or parent.children != {disk} or not self._is_free(parent, rules):
            return False
        if self._tree.space.capacity is None:
            return True
        into = parent.link.file
        new = sum(1 for block in _blocks(file) if not into.is_allocated(block))
        return into.growth_for(new) <= self._tree.space.free

    def _order(self, disk: Disk) -> tuple[int, int, str]:
        """Put the tallest tree first; in a tree the node next to the root, so that no data is moved twice."""
        root = disk
        while root.parent is not None:
            root = root.parent
        return -_height(root), self._tree.depth(disk), disk.uuid

    def _remove(self, disk: Disk) -> Collected | None:
        tree = self._tree
        with tree.lock:
            if tree.is_pinned(disk.uuid):
                return None
            file = disk.link.file
            file.handle.unlink()
            tree.drop(disk)
            tree.space.give(file.physical_size)
        return Collected("garbage", disk.uuid, None)

    def _merge_inner(self, disk: Disk) -> Collected:
        tree = self._tree
        file, parent = disk.link
        if parent is None:
            raise AssertionError("only a node with a parent is picked for a merge")
        into = parent.link.file
        _grow(into, max(file.virtual_size, into.virtual_size))
        for block in _blocks(file):
            self._merge_block(file, into, block)
        with tree.lock:
            children = sorted(disk.children, key=lambda child: child.uuid)
            nodes = {"node": disk.uuid, "into": parent.uuid}
            tree.journal.write("inner", nodes, [child.uuid for child in children])
            name = tree.paths.vhd(parent.uuid).name
            for child in children:
                child.link.file.relink(name, into.footer.unique_id)
                child.link = Link(child.link.file, parent)
                parent.children.add(child)
            file.handle.unlink()
            tree.journal.wipe()
            tree.drop(disk)
            tree.space.give(file.physical_size)
        return Collected("inner", disk.uuid, parent.uuid)

    def _merge_leaf(self, disk: Disk) -> Collected | None:
        """Merge while the guest writes on; only the last few blocks and the change of names make it wait."""
        with disk.lock:
            link = disk.link
            disk.touched = set(_blocks(link.file))
        try:
            for _ in range(_MAX_ROUNDS):
                with disk.lock:
                    todo, disk.touched = sorted(disk.touched or ()), set()
                for block in todo:
                    with disk.lock:
                        if not self._still_only_child(disk, link):
                            return None
                        self._merge_block(link.file, _below(link).link.file, block)
                if len(disk.touched) <= _FEW_BLOCKS:
                    break
            with self._tree.lock, disk.lock:
                if not self._still_only_child(disk, link) or self._tree.is_pinned(disk.uuid):
                    return None
                for block in sorted(disk.touched):
                    self._merge_block(link.file, _below(link).link.file, block)
                return self._take_over(disk, link)
        finally:
            with disk.lock:
                disk.touched = None

    def _still_only_child(self, disk: Disk, link: Link) -> bool:
        return disk.link is link and not disk.hidden and _below(link).children == {disk}

    def _take_over(self, disk: Disk, link: Link) -> Collected:
        """Give the merged parent's file the leaf's name (tree and disk locked)."""
        tree = self._tree
        parent = _below(link)
        into, grandparent = parent.link
        _grow(into, max(link.file.virtual_size, into.virtual_size))
        tree.journal.write("leaf", {"leaf": disk.uuid, "parent": parent.uuid})
        into.set_hidden(False)
        link.file.handle.keep()
        into.handle.rename(tree.paths.vhd(disk.uuid))
        tree.journal.wipe()
        tree.drop(parent)
        disk.link = parent.link
        if grandparent is not None:
            grandparent.children.add(disk)
        tree.space.give(link.file.end + FOOTER_SIZE)
        return Collected("leaf", disk.uuid, parent.uuid)

    def _merge_block(self, source: VhdFile, into: VhdFile, block: int) -> None:
        _grow(into, max(source.virtual_size, into.virtual_size))
        have = source.bits(block)
        source.read_runs(block, have, 0, self._buffer)
        into.write_runs(block, have, self._buffer)


def _grow(file: VhdFile, virtual_size: int) -> None:
    if file.virtual_size < virtual_size:
        file.grow(virtual_size)


def _below(link: Link) -> Disk:
    if link.parent is None:
        raise AssertionError("only a node with a parent is picked for a merge")
    return link.parent


def _blocks(file: VhdFile) -> Iterator[int]:
    return (block for block in range(len(file.bat)) if file.is_allocated(block)) if file.used_blocks else iter(())


def _height(disk: Disk) -> int:
    """How many nodes the longest way up from here has; no recursion, though no chain is longer than 30 by our hand."""
    height, level = 0, [disk]
    while level:
        height += 1
        level = [child for node in level for child in node.children]
    return height
