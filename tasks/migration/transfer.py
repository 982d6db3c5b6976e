"""The two transfers: the bases while the VM runs, and when it is halted only what its guest has written since.

A disk that must become smaller goes through the worker's folder instead: its base too is fetched while the VM runs, and
looked at before that, so that what can never fit is refused while nothing has happened yet.
"""

from __future__ import annotations

from functools import partial

from tasks.migration.check import CLONE, COPY, SHRINK, STREAM
from tasks.migration.source import assert_halted
from tasks.migration.target import (
    Disk,
    Watch,
    begin_import,
    copy_into,
    end_copies,
    exported,
    local_disk,
    make_clone,
    new_target,
    still_there,
)
from tasks.parts.snapshots import await_room
from worker.disks import ext, peek, relay
from worker.disks.local import LocalDisk
from worker.operations.definition import step
from worker.operations.op import Op
from worker.resources import Pools
from worker.settings import Settings
from worker.xenapi.session import Session


@step(undo=end_copies, queue="transfers", weight=60)
def send_base(op: Op, pool: Session, pools: Pools, settings: Settings) -> None:
    """Bring each disk's snapshot over while the VM runs. One that has arrived whole is not sent again.

    What is cloned later must be able to be: a chain that is too long is known before the VM is halted.
    """
    there = pools(op.data["there"])
    disks = op.data["disks"]
    await_room(op, pool, settings, [disk for disk in disks if disk["transport"] == CLONE])
    for done, disk in enumerate(disks):
        if disk["transport"] == CLONE or disk.get("has_base") == disk["snapshot_ref"]:
            continue
        disk.pop("has_base", None)
        watch = Watch(op, done, len(disks))
        with still_there(op, disk):
            if disk["transport"] == STREAM:
                _stream_base(op, pool, there, disk, watch)
            elif disk["transport"] == COPY:
                _copy_base(op, pool, there, disk)
            else:
                _fetch_base(op, pool, disk, settings, watch)
        disk["has_base"] = disk["snapshot_ref"]
        op.remember(disks=disks)


def _stream_base(op: Op, pool: Session, there: Session, disk: Disk, watch: Watch) -> None:
    with exported(op, pool, disk, disk["snapshot_ref"]) as (export, head):
        vdi_ref = new_target(op, there, disk, max(disk["size"], head.footer.virtual_size))
        with begin_import(op, there, disk, vdi_ref, head.length) as target:
            relay.relay(export, head, target, watch)
    _count(disk, "base", head.length)


def _copy_base(op: Op, pool: Session, there: Session, disk: Disk) -> None:
    """Let the pool copy the base. What another snapshot has gone into is no base: a copy may leave out zeros."""
    if not disk.get("target") or disk.get("copied_from") != disk["snapshot_ref"]:
        new_target(op, there, disk, disk["size"])
        disk["copied_from"] = disk["snapshot_ref"]
        op.remember(disks=op.data["disks"])
    copy_into(op, pool, disk, disk["snapshot_ref"])


def _fetch_base(op: Op, pool: Session, disk: Disk, settings: Settings, watch: Watch) -> None:
    """Look at the disk's beginning, and fetch all of it only if its file system can become as small as it must."""
    with exported(op, pool, disk, disk["snapshot_ref"]) as (export, head):
        layout, begins = peek.look(export, head, disk["virtual_size"])
    room = layout.room(disk["size"])
    if room < layout.size:
        ext.assert_fits(ext.look(begins), room)
    disk["layout"] = [layout.kind, layout.start, layout.size]
    op.remember(disks=op.data["disks"])
    LocalDisk.sweep(settings.work_dir, op.live)
    local = local_disk(op, disk, settings)
    with exported(op, pool, disk, disk["snapshot_ref"]) as (export, head):
        _count(disk, "base", local.take_base(export, head, watch))


@step(queue="transfers", weight=30)
def send_difference(op: Op, pool: Session, pools: Pools, settings: Settings) -> None:
    """Bring over what the guest has written since the bases; the VM is halted."""
    there = pools(op.data["there"])
    disks = op.data["disks"]
    assert_halted(op, pool)
    for done, disk in enumerate(disks):
        if disk.get("sent"):
            continue
        watch = Watch(op, done, len(disks))
        with still_there(op, disk):
            if disk["transport"] == CLONE:
                make_clone(op, pool, disk)
            elif disk["transport"] == COPY:
                copy_into(op, pool, disk, disk["vdi_ref"], disk["snapshot_ref"])
            elif disk["transport"] == SHRINK:
                _send_small(op, pool, there, disk, settings, watch)
            else:
                _stream_difference(op, pool, there, disk, watch)
        disk["sent"] = True
        op.remember(disks=disks)


def _stream_difference(op: Op, pool: Session, there: Session, disk: Disk, watch: Watch) -> None:
    with (
        exported(op, pool, disk, disk["vdi_ref"], disk["snapshot_ref"]) as (export, head),
        begin_import(op, there, disk, disk["target"]["vdi_ref"], head.length) as target,
    ):
        relay.relay(export, head, target, watch)
    _count(disk, "difference", head.length)


def _send_small(op: Op, pool: Session, there: Session, disk: Disk, settings: Settings, watch: Watch) -> None:
    """Bring the fetched base up to date, make it smaller, send it; a worker without it fetches it first."""
    local = local_disk(op, disk, settings)
    if not local.is_small:
        if not local.has_base:
            with exported(op, pool, disk, disk["snapshot_ref"]) as (export, head):
                _count(disk, "base again", local.take_base(export, head, watch))
        with exported(op, pool, disk, disk["vdi_ref"], disk["snapshot_ref"]) as (export, head):
            _count(disk, "difference", local.take_difference(export, head, watch))
        local.shrink(disk["size"], op.check)
    vdi_ref = new_target(op, there, disk, disk["size"])
    _count(disk, "small", local.send(disk["size"], partial(begin_import, op, there, disk, vdi_ref), watch))
    local.discard()


def _count(disk: Disk, what: str, length: int) -> None:
    disk["bytes"] = {**disk.get("bytes", {}), what: length}
