"""An image's way from the store into a new disk of the pool, as one unit: an unfinished disk is thrown away.

A disk that is being filled says so in its `name_description`. What a killed worker has left is found by that and by the
mark of its operation, or by whoever has the right to fill it now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.parts.calls import destroy
from tasks.parts.instances import OPERATION
from tasks.parts.lost import await_lost, intend
from tasks.provision.check import check_size
from tasks.provision.request import BuildRequest
from worker.errors import ImageDamaged, ImageFormatRefused, XenAPIFailure
from worker.images.fetch import opened
from worker.images.store import ImageStore
from worker.operations.op import Op
from worker.xenapi import transfer, vdi, xapi_task
from worker.xenapi.session import Session

FILLING = "filling"
CREATE = "VDI.create"
_DAMAGED_TRIES = 3

Rec = dict[str, Any]
Records = Mapping[str, Rec]
"""Disks: ref -> record."""


def fetch(op: Op, pool: Session, images: ImageStore, name: str, mark: Mapping[str, str]) -> tuple[str, Rec]:
    """Fetch the plan's image into a new disk, which is still `filling` by its description; return its ref and record.

    Raises ImageTooLarge, ImageFormatRefused (an image that was damaged each time, too), TruncatedStream, ImageDamaged,
    and what the store and the pool raise.
    """
    try:
        return _fetch(op, pool, images, name, mark)
    except ImageDamaged as error:
        times = op.data.get("times_damaged", 0) + 1
        op.remember(times_damaged=times)
        if times < _DAMAGED_TRIES:
            raise
        raise ImageFormatRefused(f"{error} So it was {times} times: upload it anew.") from error


def _fetch(op: Op, pool: Session, images: ImageStore, name: str, mark: Mapping[str, str]) -> tuple[str, Rec]:
    plan = op.data["plan"]
    with opened(images, images.describe(plan["image"]["id"])) as download:
        if plan["image"]["kind"] != "iso":
            check_size(op.request(BuildRequest), download.virtual_size)
        intend(op, CREATE)
        vdi_ref = vdi.create(pool, plan["sr_ref"], name, download.virtual_size, mark, FILLING)
        with import_into(op, pool, vdi_ref, download.format, download.length) as target:
            download.pour(target, _Watch(op))
    return vdi_ref, vdi.get(pool, vdi_ref)


def import_into(op: Op, pool: Session, vdi_ref: str, fmt: transfer.Format, length: int) -> transfer.Import:
    """Begin to fill a disk, by a task that `end_earlier_fetch` finds. Raises as `transfer.import_vdi`."""
    task_ref = xapi_task.create(pool, _label(op))
    return transfer.import_vdi(pool, vdi_ref, fmt, length, task_ref=task_ref)


def end_earlier_fetch(op: Op, pool: Session) -> None:
    """Let an earlier run's creation of a disk end, and remove the task of its transfer. Raises Wait."""
    for task_ref in xapi_task.named(pool, _label(op)):
        xapi_task.discard(pool, task_ref)
    await_lost(op, pool, CREATE)


def discard_unfinished(op: Op, pool: Session, known: Records) -> None:
    """Destroy those of the disks that this operation has not filled to the end."""
    for vdi_ref, rec in known.items():
        if rec["other_config"].get(OPERATION) == op.id and rec["name_description"] == FILLING:
            destroy(op, pool, vdi_ref)


def discard_abandoned(op: Op, pool: Session, abandoned: Records) -> Records:
    """Destroy disks whose fillers are dead; return those to which the pool still writes."""
    left = {}
    for vdi_ref, rec in abandoned.items():
        try:
            destroy(op, pool, vdi_ref)
        except XenAPIFailure as error:
            if error.code != "VDI_IN_USE":
                raise
            left[vdi_ref] = rec
    return left


def _label(op: Op) -> str:
    return f"vmops import {op.id}"


class _Watch:
    """Tells the operation how far a fetch is, and the fetch whether to go on."""

    def __init__(self, op: Op) -> None:
        self._op = op

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report bytes as a fraction."""
        self._op.progress(done_bytes / total_bytes if total_bytes else 0.0)

    def check(self) -> None:
        """Raise Cancelled or LeaseLost when the fetch must stop."""
        self._op.check()
