"""Second step of a build: the root disk, from the image that its storage repository keeps, or straight from the store.

A cached image is a disk called `vmops image <image id>` whose `name_description` says whether it is being filled or
complete. Whoever misses it fills it, once; the others wait. The root disk is a clone of it.

A clone copies `other_config`, so a cached image knows its own uuid (`vmops.cached-as`): a disk that bears another one is
a clone which a killed worker has not got to mark. Clones of one image are interchangeable, so the next one that needs a
clone takes it.
"""

from __future__ import annotations

from typing import Any

from tasks.parts.calls import carry_out, destroy, until_ended
from tasks.parts.instances import INSTANCE, OPERATION, ROLE, marks
from tasks.provision.request import BuildRequest
from worker.images.fetch import Download, opened
from worker.images.store import ImageStore
from worker.operations.definition import step
from worker.operations.op import Op
from worker.operations.wait import Until, Wait
from worker.settings import Settings
from worker.xenapi import transfer, vdi, xapi_task
from worker.xenapi.session import Session

CACHED_AS = "vmops.cached-as"
CACHED_IMAGE = "vmops.image"
FILLING, COMPLETE = "filling", "complete"
GIB = 1 << 30
_CLONE_CALL = "VDI.clone"
_CLONE_PATIENCE_S = 30.0
_FILL_CHECK_S = 30.0
_ROOT, _IMAGE, _CDROM = "root", "image", "cdrom"

Rec = dict[str, Any]


def label_of(image_id: str) -> str:
    """Return the name of a cached image's disk."""
    return f"vmops image {image_id}"


def discard_root_disk(op: Op, pool: Session) -> None:
    """Destroy the disks that this operation made, a cached image that it has not completed among them."""
    plan = op.data.get("plan")
    if plan is None or not op.data.get("root_intended"):
        return
    _await_clone_calls(op, pool)
    names = (label_of(plan["image"]["id"]), plan["name"])
    for vdi_ref, rec in vdi.named(pool, plan["sr_ref"], names).items():
        other_config = rec["other_config"]
        is_ours = other_config.get(OPERATION) == op.id
        if is_ours and not _is_complete_image(rec) and not _is_stray(rec):
            destroy(op, pool, vdi_ref)
    if op.data.get("clone_intended"):
        _destroy_strays(op, pool, plan)


@step(undo=discard_root_disk, queue="transfers", weight=60)
def make_root_disk(op: Op, pool: Session, images: ImageStore, settings: Settings) -> None:
    """Make the root disk: a clone of the cached image, which is fetched first when it is not there."""
    plan = op.data["plan"]
    request = op.request(BuildRequest)
    op.remember(root_intended=True)
    if plan["image"]["kind"] == "iso":
        role, cached = _CDROM, False
    else:
        role, cached = _ROOT, request.cache_image
    names = (label_of(plan["image"]["id"]), plan["name"])
    known = vdi.named(pool, plan["sr_ref"], names)
    disk = _found(op, known, role)
    if disk is None and cached:
        disk = _clone(op, pool, _cached(op, pool, images, settings, known))
    elif disk is None:
        disk = _fetch(op, pool, images, plan["name"], marks(op, plan["instance"], role))
    op.remember(root={"vdi_ref": disk[0], "size": int(disk[1]["virtual_size"]), "role": role})


def _found(op: Op, known: dict[str, Rec], role: str) -> tuple[str, Rec] | None:
    """Return the disk that an earlier run completed."""
    for vdi_ref, rec in known.items():
        other_config = rec["other_config"]
        if other_config.get(OPERATION) == op.id and other_config.get(ROLE) == role:
            if rec["name_description"] != FILLING:
                return vdi_ref, rec
    return None


# -- the cached image --------------------------------------------------------------------------------------------------


def _is_stray(rec: Rec) -> bool:
    return rec["other_config"].get(CACHED_AS, rec["uuid"]) != rec["uuid"]


def _is_complete_image(rec: Rec) -> bool:
    is_image = rec["other_config"].get(ROLE) == _IMAGE and not _is_stray(rec)
    return is_image and rec["name_description"] == COMPLETE


def _cached(op: Op, pool: Session, images: ImageStore, settings: Settings, known: dict[str, Rec]) -> tuple[str, Rec]:
    """Return the cached image, filled by us if nobody has or does. Raises Wait while somebody fills it."""
    for vdi_ref, rec in known.items():
        if _is_complete_image(rec):
            return vdi_ref, rec
    plan = op.data["plan"]
    image_id = plan["image"]["id"]
    filling = [ref for ref, rec in known.items() if rec["other_config"].get(ROLE) == _IMAGE and not _is_stray(rec)]
    try:
        with op.inside(f"image {plan['sr_uuid']} {image_id}"):
            return _fill(op, pool, images, plan)
    except Wait as wait:
        raise Wait(
            f"image {image_id} is being fetched into the storage repository by another operation",
            until=[Until("vdi", ref, "name_description", [FILLING]) for ref in filling],
            check_every_s=_FILL_CHECK_S if filling else wait.check_every_s,
            deadline_s=settings.image_fetch_deadline_s,
        ) from None


def _fill(op: Op, pool: Session, images: ImageStore, plan: dict[str, Any]) -> tuple[str, Rec]:
    image_id = plan["image"]["id"]
    for vdi_ref, rec in vdi.named(pool, plan["sr_ref"], (label_of(image_id),)).items():
        if _is_complete_image(rec):
            return vdi_ref, rec
        if rec["name_description"] == FILLING and not rec["VBDs"]:
            destroy(op, pool, vdi_ref)  # whoever filled it is dead: we are inside
    mark = {**marks(op, plan["instance"], _IMAGE), CACHED_IMAGE: image_id}
    del mark[INSTANCE]
    vdi_ref, rec = _fetch(op, pool, images, label_of(image_id), mark)
    vdi.set_other_config(pool, vdi_ref, {**mark, CACHED_AS: rec["uuid"]})
    vdi.set_name_description(pool, vdi_ref, COMPLETE)
    op.note(f"image {image_id} is now kept in the storage repository")
    return vdi_ref, vdi.get(pool, vdi_ref)


def _fetch(op: Op, pool: Session, images: ImageStore, name: str, mark: dict[str, str]) -> tuple[str, Rec]:
    """Fetch the image into a new disk. An unfinished one of an earlier run is destroyed first."""
    plan = op.data["plan"]
    for vdi_ref, rec in vdi.named(pool, plan["sr_ref"], (name,)).items():
        if rec["other_config"].get(OPERATION) == op.id and rec["name_description"] == FILLING:
            destroy(op, pool, vdi_ref)
    with opened(images, images.describe(plan["image"]["id"])) as download:
        vdi_ref = vdi.create(pool, plan["sr_ref"], name, download.virtual_size, mark, description=FILLING)
        with transfer.import_vdi(pool, vdi_ref, download.format, download.length) as target:
            download.pour(target, _Watch(op))
    if mark[ROLE] != _IMAGE:
        vdi.set_name_description(pool, vdi_ref, mark[ROLE])
    return vdi_ref, vdi.get(pool, vdi_ref)


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
