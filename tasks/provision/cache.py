"""The images that a storage repository keeps: each is fetched once, however many VMs are made of it, and then cloned.

A cached image is a disk called `vmops image <image id>` whose `name_description` says whether it is being filled or
complete. Whoever misses it fills it; the others wait. A clone copies `other_config`, so a complete image knows its own
uuid (`vmops.cached-as`): a disk that bears another one's is a clone. While an operation clones the image, the image
bears the operation's id (`vmops.cloned-by`), and so does the clone until it has marks of its own: a stray is one whose
worker was killed before that, and only its operation takes it. A clone without that id is somebody's, made by hand; so
is one with it, when the journal knows another one from the call's answer.

An image says when it was last cloned, to the day (`vmops.used-at`): `poll_orphans` destroys what nobody needs any more.
"""

from __future__ import annotations

from contextlib import ExitStack

from tasks.parts.calls import destroy
from tasks.parts.instances import DISK, OPERATION, ROLE
from tasks.parts.lost import await_lost, intend, redone_from, was_intended
from tasks.provision.fetching import FILLING, Rec, Records, discard_abandoned, fetch
from worker.images.store import ImageStore
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.settings import Settings
from worker.xenapi import host, vdi
from worker.xenapi.session import Session

IMAGE = "image"
CACHED_IMAGE, CACHED_AS, CACHED_AT = "vmops.image", "vmops.cached-as", "vmops.cached-at"
#: When it was last cloned; noted anew after a day.
USED_AT = "vmops.used-at"
_USE_NOTED_AFTER_S = 86400
#: On an image while it is being cloned, and on a stray: the operation.
CLONED_BY = "vmops.cloned-by"
CHECKSUM = "vmops.image-checksum"
COMPLETE = "complete"
_CLONE = "VDI.clone"
_CLONE_PATIENCE_S = 30.0
_FILL_CHECK_S = 30.0


def label_of(image_id: str) -> str:
    """Return the name of a cached image's disk."""
    return f"vmops image {image_id}"


def is_clone(rec: Rec) -> bool:
    """Tell whether a disk is a clone of a cached image that has no marks of its own yet, or was made by somebody."""
    return bool(rec["other_config"].get(CACHED_AS, rec["uuid"]) != rec["uuid"])


def is_complete(rec: Rec) -> bool:
    """Tell whether a disk is a cached image that can be cloned."""
    other_config = rec["other_config"]
    return bool(other_config.get(CACHED_AS) == rec["uuid"] and rec["name_description"] == COMPLETE)


def last_use(rec: Rec) -> int:
    """Return when a cached image was last needed, by the pool's clock and to the day; 0 when it does not say."""
    times = [rec["other_config"].get(key, "") for key in (CACHED_AT, USED_AT)]
    return max((int(one) for one in times if one.isdecimal()), default=0)


def clone_place(image_uuid: str) -> str:
    """Return where an operation is that clones a cached image, or destroys it or its strays (`Op.inside`)."""
    return f"clone {image_uuid}"


def fill_place(sr_uuid: str, image_id: str) -> str:
    """Return where an operation is that fills a cached image, or destroys what its dead fillers have left."""
    return f"image {sr_uuid} {image_id}"


def is_filling(rec: Rec) -> bool:
    """Tell whether a disk is a cached image that is not complete."""
    return rec["other_config"].get(ROLE) == IMAGE and not is_clone(rec) and rec["name_description"] == FILLING


def find_or_fill(op: Op, pool: Session, images: ImageStore, settings: Settings, known: Records) -> tuple[str, Rec]:
    """Return the cached image, filled by us if nobody has or does. Raises Wait while somebody fills it."""
    for vdi_ref, rec in known.items():
        if is_complete(rec):
            return vdi_ref, rec
    plan = op.data["plan"]
    image_id = plan["image"]["id"]
    with ExitStack() as stack:
        try:
            stack.enter_context(op.inside(fill_place(plan["sr_uuid"], image_id)))
        except Wait as wait:
            filling = [vdi_ref for vdi_ref, rec in known.items() if is_filling(rec)]
            raise Wait(
                f"image {image_id} is being fetched into the storage repository by another operation",
                until=[Until("vdi", vdi_ref, "name_description", [FILLING]) for vdi_ref in filling],
                check_every_s=_FILL_CHECK_S if filling else wait.check_every_s,
                deadline_s=settings.image_fetch_deadline_s,
            ) from None
        return _fill(op, pool, images)


def _fill(op: Op, pool: Session, images: ImageStore) -> tuple[str, Rec]:
    plan = op.data["plan"]
    image_id = plan["image"]["id"]
    known = vdi.named(pool, plan["sr_ref"], (label_of(image_id),))
    for vdi_ref, rec in known.items():
        if is_complete(rec):
            return vdi_ref, rec
    abandoned = {vdi_ref: rec for vdi_ref, rec in known.items() if is_filling(rec)}
    left = discard_abandoned(op, pool, abandoned)  # whoever filled them is dead: we are inside
    mark = {OPERATION: op.id, ROLE: IMAGE, CACHED_IMAGE: image_id}
    vdi_ref, rec = fetch(op, pool, images, label_of(image_id), mark)
    checksum = images.describe(image_id).hash_value
    mark |= {CACHED_AS: rec["uuid"], CACHED_AT: str(host.servertime(pool, plan["master"]))}
    mark |= {CHECKSUM: checksum} if checksum else {}
    vdi.set_other_config(pool, vdi_ref, mark)
    vdi.set_name_description(pool, vdi_ref, COMPLETE)
    discard_abandoned(op, pool, left)
    op.note(f"image {image_id} is now kept in the storage repository")
    return vdi_ref, {**rec, "other_config": mark, "name_description": COMPLETE}


def clone(op: Op, pool: Session, image: tuple[str, Rec], mark: dict[str, str]) -> tuple[str, Rec]:
    """Return a clone of a cached image with `mark` and its own ref as its other_config; names are still the image's.

    Raises Wait, and Redo when the image has gone.
    """
    image_ref, image_rec = image
    is_again = was_intended(op, _CLONE)
    await_lost(op, pool, _CLONE)
    op.remember(cloned_from=image_rec["uuid"])
    with redone_from("make_root_disk"):
        with op.inside(clone_place(image_rec["uuid"]), patience_s=_CLONE_PATIENCE_S):
            stray = _stray(op, _named(op, pool)) if is_again else None
            if stray is None:
                op.remember(clone=None)
                intend(op, _CLONE)
                _announce(op, pool, image)
                stray = vdi.clone(pool, image_ref), image_rec
                op.remember(clone=stray[0])
            vdi.remove_from_other_config(pool, image_ref, CLONED_BY)
        vdi_ref, rec = stray
        made = {**mark, DISK: vdi_ref}
        vdi.set_other_config(pool, vdi_ref, made)
    return vdi_ref, {**rec, "other_config": made}


def _announce(op: Op, pool: Session, image: tuple[str, Rec]) -> None:
    """Say on a cached image who clones it now; once a day also that it is in use, which takes another call."""
    image_ref, rec = image
    if (op.record.started_at or 0) / 1000 - last_use(rec) < _USE_NOTED_AFTER_S:
        vdi.add_to_other_config(pool, image_ref, CLONED_BY, op.id)
        return
    now = host.servertime(pool, op.data["plan"]["master"])
    vdi.set_other_config(pool, image_ref, {**rec["other_config"], USED_AT: str(now), CLONED_BY: op.id})


def discard_lost_clone(op: Op, pool: Session) -> None:
    """Destroy what a clone of unknown outcome may have made, and take the mark off the image. Raises Wait."""
    image_uuid = op.data.get("cloned_from")
    if image_uuid is None or not was_intended(op, _CLONE):
        return
    await_lost(op, pool, _CLONE)
    with op.inside(clone_place(image_uuid), patience_s=_CLONE_PATIENCE_S):
        known = _named(op, pool)
        for vdi_ref, rec in known.items():
            if rec["uuid"] == image_uuid and rec["other_config"].get(CLONED_BY) == op.id:
                vdi.remove_from_other_config(pool, vdi_ref, CLONED_BY)
        stray = _stray(op, known)
        if stray is not None:
            destroy(op, pool, stray[0])


def _named(op: Op, pool: Session) -> Records:
    """Return the image's disk and its clones that still have its name."""
    plan = op.data["plan"]
    return vdi.named(pool, plan["sr_ref"], (label_of(plan["image"]["id"]),))


def _stray(op: Op, known: Records) -> tuple[str, Rec] | None:
    """Return this operation's clone that it has not marked. One that a VM has, and a snapshot, are somebody else's.

    A copy that somebody made at the same moment bears the id too. Only an answer tells them apart: when none has come,
    nobody knows which of two is whose.
    """
    found = {
        ref: rec
        for ref, rec in known.items()
        if is_clone(rec) and rec["other_config"][CACHED_AS] == op.data["cloned_from"]
        if rec["other_config"].get(CLONED_BY) == op.id
        if not rec["VBDs"] and not rec["is_a_snapshot"]
    }
    answer = op.data.get("clone")
    ref = answer or (next(iter(found)) if len(found) == 1 else None)
    return (ref, found[ref]) if ref in found else None
