"""Second step of a build: the root disk, of an image; or for an ISO a blank one, and the ISO as a disk for the CD.

What a run has finished bears the operation's mark and the disk's role, and the next run finds it by these. The disk
comes from the image that its storage repository keeps (`tasks.provision.cache`), or straight from the store. At the end
each disk bears its own ref too: a clone gets it with its marks, a disk that was created by `claim_disk`.
"""

from __future__ import annotations

from typing import Any

from tasks.parts.calls import destroy
from tasks.parts.instances import OPERATION, ROLE, claim_disk, is_copy, marks
from tasks.parts.lost import intend
from tasks.provision import cache
from tasks.provision.check import GIB, check_size
from tasks.provision.fetching import (
    CREATE,
    FILLING,
    Rec,
    Records,
    discard_unfinished,
    end_earlier_fetch,
    fetch,
)
from tasks.provision.request import BuildRequest
from worker.images.store import ImageStore
from worker.operations.definition import step
from worker.operations.op import Op
from worker.settings import Settings
from worker.xenapi import vdi
from worker.xenapi.session import Session

ROOT, CDROM = "root", "cdrom"
_ROOT_DEVICE = "0"


def discard_root_disk(op: Op, pool: Session) -> None:
    """Destroy the disks that this operation made, a cached image that it has not completed among them."""
    if not op.data.get("root_intended"):
        return
    end_earlier_fetch(op, pool)
    cache.discard_lost_clone(op, pool)
    for vdi_ref, rec in vdi.named(pool, op.data["plan"]["sr_ref"], _names(op)).items():
        is_ours = rec["other_config"].get(OPERATION) == op.id and not is_copy(vdi_ref, rec)
        if is_ours and not cache.is_complete(rec) and not cache.is_clone(rec):
            destroy(op, pool, vdi_ref)


@step(undo=discard_root_disk, queue="transfers", weight=60)
def make_root_disk(op: Op, pool: Session, images: ImageStore, settings: Settings) -> None:
    """Make the root disk, as large as the flavor's; fetch the image first when nobody has yet."""
    plan = op.data["plan"]
    is_cached = op.request(BuildRequest).cache_image and plan["image"]["kind"] != "iso"
    is_again = op.data.get("root_intended", False)
    op.remember(root_intended=True)
    known: Records = {}
    if is_again:
        end_earlier_fetch(op, pool)
    if is_again or is_cached:
        known = vdi.named(pool, plan["sr_ref"], _names(op))
        discard_unfinished(op, pool, known)
    if plan["image"]["kind"] == "iso":
        root = _found(op, known, ROOT) or _blank(op, pool)
        cdrom = _found(op, known, CDROM) or fetch(op, pool, images, _cdrom_name(op), _marks(op, CDROM))
        disks = [_finished(op, pool, root, ROOT), _finished(op, pool, cdrom, CDROM)]
    else:
        found = _found(op, known, ROOT)
        if found is None and is_cached:
            image = cache.find_or_fill(op, pool, images, settings, known)
            check_size(op.request(BuildRequest), int(image[1]["virtual_size"]))
            found = cache.clone(op, pool, image, _marks(op, ROOT))
        elif found is None:
            found = fetch(op, pool, images, plan["name"], _marks(op, ROOT))
        disks = [_finished(op, pool, found, ROOT)]
    op.remember(disks=disks)


def _names(op: Op) -> tuple[str, ...]:
    """Return the names that disks of this step may bear."""
    plan = op.data["plan"]
    return cache.label_of(plan["image"]["id"]), plan["name"], _cdrom_name(op)


def _cdrom_name(op: Op) -> str:
    return f"{op.data['plan']['name']}-cdrom"


def _cdrom_device(op: Op) -> str:
    """Return the CD's position: in a rescue VM 1 is for the disk that is to be repaired. Boot firmware sees 0 to 3."""
    return "3" if op.data["plan"]["role"] == "rescue" else "1"


def _marks(op: Op, role: str) -> dict[str, str]:
    return marks(op, op.data["plan"]["instance"], role)


def _found(op: Op, known: Records, role: str) -> tuple[str, Rec] | None:
    """Return the disk that an earlier run made and filled."""
    for vdi_ref, rec in known.items():
        other_config = rec["other_config"]
        is_ours = other_config.get(OPERATION) == op.id and other_config.get(ROLE) == role
        if is_ours and rec["name_description"] != FILLING and not is_copy(vdi_ref, rec):
            return vdi_ref, rec
    return None


def _blank(op: Op, pool: Session) -> tuple[str, Rec]:
    plan = op.data["plan"]
    size = op.request(BuildRequest).flavor.root_gb * GIB
    mark = _marks(op, ROOT)
    intend(op, CREATE)
    vdi_ref = vdi.create(pool, plan["sr_ref"], plan["name"], size, mark, ROOT)
    return vdi_ref, {"name_label": plan["name"], "name_description": ROOT, "virtual_size": size, "other_config": mark}


def _finished(op: Op, pool: Session, disk: tuple[str, Rec], role: str) -> dict[str, Any]:
    """Claim and name a disk, enlarge a root disk up to the flavor; return what the next steps need to know of it."""
    vdi_ref, rec = disk
    claim_disk(pool, vdi_ref, rec)
    is_root = role == ROOT
    name = op.data["plan"]["name"] if is_root else _cdrom_name(op)
    if rec["name_label"] != name:
        vdi.set_name_label(pool, vdi_ref, name)
    size = int(rec["virtual_size"])
    wanted = op.request(BuildRequest).flavor.root_gb * GIB if is_root else 0
    if size < wanted:
        vdi.resize(pool, vdi_ref, wanted)
        size = wanted
    if rec["name_description"] != role:
        vdi.set_name_description(pool, vdi_ref, role)
    return {
        "role": role,
        "userdevice": _ROOT_DEVICE if is_root else _cdrom_device(op),
        "vdi_ref": vdi_ref,
        "vdi_uuid": rec.get("uuid") if rec["name_label"] == name else None,
        "size": size,
        "mode": "RW" if is_root else "RO",
        "type": "Disk" if is_root else "CD",
        "bootable": True,
        "foreign": False,
    }
