"""Third step of a build: the disks beside the root: swap, ephemeral disks, the config drive.

Their content is made in the worker and streamed into the pool as VHDs that hold no empty block. A disk is finished when
it bears its own ref (`claim_disk`); a later run throws away what an earlier one has not finished.
"""

from __future__ import annotations

from tempfile import TemporaryFile
from typing import Any, BinaryIO

from tasks.parts.calls import destroy
from tasks.parts.instances import DISK, OPERATION, ROLE, claim_disk, is_copy, marks
from tasks.parts.lost import intend
from tasks.provision.drive import write_drive
from tasks.provision.fetching import CREATE, end_earlier_fetch, import_into
from tasks.provision.root import CDROM, ROOT
from worker.disks.filesystems import write_ext4, write_swap
from worker.disks.sparse import SparseVhd
from worker.operations.definition import step
from worker.operations.op import Op
from worker.xenapi import vdi
from worker.xenapi.session import Session

_WITH_THE_ROOT = {ROOT, CDROM}

Wish = dict[str, Any]
"""A disk of the plan: role, name, userdevice, content, size, label (see `tasks.provision.wishes`)."""


def discard_other_disks(op: Op, pool: Session) -> None:
    """Destroy the disks that this operation made beside the root."""
    if not op.data.get("others_begun"):
        return
    end_earlier_fetch(op, pool)
    for vdi_ref in _ours(op, pool):
        destroy(op, pool, vdi_ref)


@step(undo=discard_other_disks, queue="transfers", weight=15)
def make_other_disks(op: Op, pool: Session) -> None:
    """Make each disk of the plan that is not there yet."""
    wishes: list[Wish] = op.data["plan"]["disks"]
    if not wishes:
        return
    made: dict[tuple[str, str], str] = {}
    if op.data.get("others_begun"):
        end_earlier_fetch(op, pool)
        for vdi_ref, rec in _ours(op, pool).items():
            if rec["other_config"].get(DISK) == vdi_ref:
                made[rec["other_config"][ROLE], rec["name_label"]] = vdi_ref
            else:
                destroy(op, pool, vdi_ref)
    op.remember(others_begun=True)
    disks = [disk for disk in op.data["disks"] if disk["role"] in _WITH_THE_ROOT]
    for wish in wishes:
        vdi_ref = made.get((wish["role"], wish["name"])) or _make(op, pool, wish)
        disks.append(_disk(wish, vdi_ref))
    op.remember(disks=disks)


def _ours(op: Op, pool: Session) -> dict[str, dict[str, Any]]:
    """Return the disks that this operation has made, finished or not. Their clones are somebody else's."""
    plan = op.data["plan"]
    roles = {wish["role"] for wish in plan["disks"]}
    known = vdi.named(pool, plan["sr_ref"], sorted({wish["name"] for wish in plan["disks"]}))
    return {
        ref: rec
        for ref, rec in known.items()
        if rec["other_config"].get(OPERATION) == op.id and rec["other_config"].get(ROLE) in roles
        if not is_copy(ref, rec)
    }


def _make(op: Op, pool: Session, wish: Wish) -> str:
    """Make a disk with its content; return its ref."""
    plan = op.data["plan"]
    mark = marks(op, plan["instance"], wish["role"])
    with TemporaryFile(prefix="vmops-") as file:
        size = _write(op, wish, file)
        intend(op, CREATE)
        vdi_ref = vdi.create(pool, plan["sr_ref"], wish["name"], size, mark, wish["role"])
        if wish["content"] != "none":
            content = SparseVhd(file, size)
            with import_into(op, pool, vdi_ref, "vhd", content.length) as target:
                target.on_idle = op.check
                for piece in content.pieces():
                    target.write(piece)
                    op.check()
                target.confirm()
    claim_disk(pool, vdi_ref, {"other_config": mark})
    return vdi_ref


def _write(op: Op, wish: Wish, file: BinaryIO) -> int:
    """Write a disk's content; return the disk's size."""
    size: int = wish["size"]
    match wish["content"]:
        case "swap":
            write_swap(file, size, wish["label"])
        case "ext4":
            write_ext4(file, size, wish["label"])
        case "drive":
            size = write_drive(op, file)
    return size


def _disk(wish: Wish, vdi_ref: str) -> dict[str, Any]:
    """Return what the next steps need to know of a disk."""
    return {
        "role": wish["role"],
        "userdevice": wish["userdevice"],
        "vdi_ref": vdi_ref,
        "vdi_uuid": None,
        "size": wish["size"],
        "mode": "RO" if wish["content"] == "drive" else "RW",
        "type": "Disk",
        "bootable": False,
        "foreign": False,
    }
