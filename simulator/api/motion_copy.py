"""Disks of a VM on their way to other repositories: chain after chain, then what a guest wrote meanwhile.

For each disk the snapshots go first, the oldest in full, each later one as what it differs from the one before, and
each becomes a snapshot of the new disk: the new chain is built as the old one was (xapi.md 14.4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from simulator import disks
from simulator.api import vdi
from simulator.api.registry import Context
from simulator.core.database import Row, is_null
from simulator.core.failures import Failure
from simulator.storage import ImportBroken

#: The part of a migration's progress that the disks make up.
DISKS_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Chain:
    """One disk, its snapshots (oldest first), and the repository they go to."""

    leaf: Row
    snapshots: list[Row]
    sr_ref: str


class Target(Protocol):
    """Where disks go: another repository here, or another pool."""

    def create(self, disk: Row, sr_ref: str) -> str:
        """Make an empty disk as large as the given one; return its reference."""

    def resize(self, ref: str, size: int) -> None:
        """Enlarge a disk."""

    def send(self, ref: str, disk: Row, base: Row | None) -> None:
        """Write a disk's content, or what it differs from `base` in."""

    def snapshot(self, ref: str) -> str:
        """Snapshot a disk; return the snapshot's reference."""

    def destroy(self, ref: str) -> None:
        """Remove a disk."""


class Local:
    """Repositories of this pool."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def create(self, disk: Row, sr_ref: str) -> str:
        """Make an empty disk with the given one's properties."""
        ctx, uuid = self._ctx, self._ctx.pool.ids.uuid()
        sr = ctx.db.row("SR", sr_ref)
        with vdi.on_sr(ctx, sr, "vdi_create"):
            with vdi.storage():
                ctx.pool.repository(sr).create(uuid, disk["virtual_size"])
            return vdi.new_record(ctx, sr, uuid, **properties(disk)).ref

    def resize(self, ref: str, size: int) -> None:
        """Enlarge a disk."""
        row = self._ctx.db.row("VDI", ref)
        with vdi.on_sr(self._ctx, self._ctx.db.row("SR", row["SR"]), "vdi_resize"), vdi.storage():
            self._ctx.pool.repository_of(row).resize(row["uuid"], size)
            disks.refresh(self._ctx.pool, row)

    def send(self, ref: str, disk: Row, base: Row | None) -> None:
        """Write a disk's content, or what it differs from `base` in."""
        pool, row = self._ctx.pool, self._ctx.db.row("VDI", ref)
        below = base["uuid"] if base is not None else None
        with vdi.storage(), pool.repository_of(disk).export(disk["uuid"], "vhd", below) as stream:
            pieces = vdi.Pieces(stream, lambda: pool.tasks.check_cancelled(self._ctx.task))
            try:
                pool.repository_of(row).import_vhd(row["uuid"], pieces, stream.length)
            except ImportBroken:
                raise Failure("MIRROR_FAILED", disk.ref) from None
        disks.refresh(pool, row)

    def snapshot(self, ref: str) -> str:
        """Snapshot a disk."""
        row = self._ctx.db.row("VDI", ref)
        with vdi.on_sr(self._ctx, self._ctx.db.row("SR", row["SR"]), "vdi_snapshot"):
            return vdi.branch(self._ctx, row, "snapshot").ref

    def destroy(self, ref: str) -> None:
        """Remove a disk."""
        vdi.discard(self._ctx, self._ctx.db.row("VDI", ref))


def properties(disk: Row) -> dict[str, object]:
    """Return what a moved disk keeps of its record."""
    names = ("name_label", "name_description", "type", "sharable", "read_only", "other_config", "xenstore_data",
             "on_boot", "allow_caching", "tags", "is_a_snapshot", "snapshot_time")  # fmt: skip
    return {name: disk[name] for name in names}


@dataclass(slots=True)
class Mover:
    """The disks of one migration. `undo` takes everything back that was made, here and there."""

    ctx: Context
    target: Target
    made: dict[str, str] = field(default_factory=dict)
    """New disk by old one."""
    _order: list[str] = field(default_factory=list)
    _mirrors: list[tuple[str, Row, Row]] = field(default_factory=list)
    """New disk, old one, and the state of the old one that was sent."""
    _frozen: list[Row] = field(default_factory=list)

    def copy(self, chains: list[Chain], *, live: bool) -> None:
        """Send all disks; of one that is written meanwhile, the state of an instant. Raises Failure."""
        total = sum(len(chain.snapshots) + 1 for chain in chains) or 1
        for chain in chains:
            frozen = self._freeze(chain.leaf) if live else None
            new_ref, base = "", None
            for number, disk in enumerate([*chain.snapshots, frozen or chain.leaf]):
                if base is not None and disk["virtual_size"] < base["virtual_size"]:
                    # A disk reverted to a state before it grew: nothing shrinks, so it begins anew.
                    self._drop(new_ref)
                    new_ref, base = "", None
                if not new_ref:
                    new_ref = self._create(disk, chain.sr_ref)
                elif base is not None and disk["virtual_size"] > base["virtual_size"]:
                    self.target.resize(new_ref, disk["virtual_size"])
                with self._mirrored(disk):
                    self.target.send(new_ref, disk, base)
                base = disk
                if number < len(chain.snapshots):
                    self.made[disk.ref] = self._remember(self.target.snapshot(new_ref))
                self.ctx.progress(DISKS_SHARE * (len(self.made) + 1) / (total + 1))
            self.made[chain.leaf.ref] = new_ref
            if frozen is not None:
                self._mirrors.append((new_ref, chain.leaf, frozen))

    def _create(self, disk: Row, sr_ref: str) -> str:
        return self._remember(self.target.create(disk, sr_ref))

    def _drop(self, ref: str) -> None:
        self.target.destroy(ref)
        self._order.remove(ref)

    def _remember(self, ref: str) -> str:
        self._order.append(ref)
        return ref

    @contextlib.contextmanager
    def _mirrored(self, disk: Row) -> Iterator[None]:
        with vdi.on_vdi(self.ctx, disk, "mirror"):
            yield

    def _freeze(self, leaf: Row) -> Row:
        """Return a snapshot that holds the disk's content of now."""
        ctx = self.ctx
        with vdi.on_sr(ctx, ctx.db.row("SR", leaf["SR"]), "vdi_snapshot"), vdi.on_vdi(ctx, leaf, "snapshot"):
            frozen = vdi.branch(
                ctx, leaf, "snapshot", name_label="Temporary snapshot", name_description="Storage motion"
            )
        self._frozen.append(frozen)
        return frozen

    def finish(self) -> None:
        """Send what was written since; the guest stands still."""
        for new_ref, leaf, frozen in self._mirrors:
            with self._mirrored(leaf):
                self.target.send(new_ref, leaf, frozen)

    def drop_frozen(self) -> None:
        """Remove the snapshots that a live migration made for itself."""
        for frozen in self._frozen:
            vdi.discard(self.ctx, frozen)
            self.ctx.pool.collector(self.ctx.db.row("SR", frozen["SR"])).kick()
        self._frozen.clear()

    def undo(self) -> None:
        """Take everything back; a destination that is gone keeps what it has."""
        for ref in reversed(self._order):
            with contextlib.suppress(Failure):
                self.target.destroy(ref)
        self._order.clear()
        self.drop_frozen()


def chains_of(ctx: Context, vm: Row, vdi_map: dict[str, str], *, snapshots_too: bool) -> list[Chain]:
    """Return the VM's disks with their snapshots and where they go. Raises VDI_NOT_IN_MAP."""
    db = ctx.db
    with db:
        leaves = [db.row("VDI", vbd["VDI"]) for vbd in db.linked(vm, "VBDs", "VBD")
                  if vbd["type"] == "Disk" and not vbd["empty"] and not is_null(vbd["VDI"])]  # fmt: skip
        for leaf in leaves:
            if leaf.ref not in vdi_map:
                raise Failure("VDI_NOT_IN_MAP", leaf.ref)
        taken = _snapshot_disks(ctx, vm) if snapshots_too else []
        chains = [Chain(leaf, [one for one in taken if _is_below(one, leaf)], vdi_map[leaf.ref]) for leaf in leaves]
        with_leaf = {one.ref for chain in chains for one in chain.snapshots} | {leaf.ref for leaf in leaves}
        others = [one for one in [*taken, *_images(ctx, vm, snapshots_too=snapshots_too)] if one.ref not in with_leaf]
        for other in others:
            sr_ref = vdi_map.get(other.ref) or next(iter(vdi_map.values()), "")
            if not sr_ref:
                raise Failure("VDI_NOT_IN_MAP", other.ref)
            chains.append(Chain(other, [], sr_ref))
        return chains


def _is_below(snapshot: Row, leaf: Row) -> bool:
    return bool(snapshot["snapshot_of"] == leaf.ref and snapshot["SR"] == leaf["SR"])


def _snapshot_disks(ctx: Context, vm: Row) -> list[Row]:
    db = ctx.db
    found: dict[str, Row] = {}
    for snapshot in db.linked(vm, "snapshots", "VM"):
        for vbd in db.linked(snapshot, "VBDs", "VBD"):
            disk = db.find("VDI", vbd["VDI"])
            if disk is not None and vbd["type"] == "Disk":
                found[disk.ref] = disk
    return sorted(found.values(), key=lambda disk: (disk["snapshot_time"], disk.created))


def _images(ctx: Context, vm: Row, *, snapshots_too: bool) -> list[Row]:
    """Return the memory images of a VM and of its checkpoints."""
    vms = [vm, *(ctx.db.linked(vm, "snapshots", "VM") if snapshots_too else [])]
    images = [ctx.db.find("VDI", one["suspend_VDI"]) for one in vms]
    return [image for image in images if image is not None]
