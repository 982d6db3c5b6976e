"""snapshot: take the disks of a VM as they are at one instant, wait until the storage has coalesced, push the images.

    find_disks -> take_snapshot -> wait_for_coalesce -> push_to_glance -> discard_snapshot

Left behind when it fails: nothing. `forget_snapshot` and `withdraw_images` undo what their steps may have done; an image that
the caller made stays as it was (queued). Once every image is active there is no way back: only the clean-up is left.

Rules: operations.md 6. A snapshot is known by `other_config["vmops.snapshot-operation"]`: the key is put on the VM's disk
before the call, because VDI.snapshot copies other_config and takes no mark of its own, and removed from it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID, uuid5

from pydantic import Field, StringConstraints, model_validator

from worker.errors import DiskNotFound, ImageConflict, ImageNotFound, StorageUnsupported, XenAPIFailure
from worker.images.image import ImageMeta, ImageState
from worker.images.push import PushPlan, already_pushed, push
from worker.images.store import ImageStore, ensure
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.request import InstanceRequest, Secret
from worker.operations.wait import Redo, Until, Wait
from worker.retry import Kind, kind_of
from worker.settings import Settings
from worker.xenapi import sr, transfer, vbd, vdi, vm, xapi_task
from worker.xenapi.session import Session

MARK = "vmops.snapshot-operation"
#: Chain length at which the storage manager refuses another snapshot (xapi.md 9.1).
CHAIN_LIMIT = 30
#: A snapshot call usually ends within this time; longer ones are waited for without a worker.
_SNAPSHOT_SHORT_S = 5.0
_SNAPSHOT_DEADLINE_S = 2 * 3600.0  # XAPI's own limit for waiting on a lock (xapi.md 4.2)
_TASK_CHECK_S = 60.0

PropertyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,255}$")]
PropertyValue = Annotated[str, StringConstraints(max_length=65535)]


class SnapshotRequest(InstanceRequest):
    """What a snapshot needs."""

    example: ClassVar[dict[str, Any]] = {"instance": {"name": "web01"}, "name": "web01 before the upgrade"}

    image_id: UUID | None = Field(
        default=None, description="Queued image that takes the root disk; default: vmops makes the image."
    )
    name: str | None = Field(
        default=None, min_length=1, max_length=255, description="Name of the images that vmops makes."
    )
    disks: Literal["root", "all"] = Field(default="root", description="The root disk, or every disk (one image each).")
    format: Literal["vhd", "raw", "bundle"] = Field(default="vhd", description="vhd (bare), raw, or tar.gz with 0.vhd.")
    coalesce: Literal["wait", "skip"] = Field(
        default="wait", description="Wait until the storage has coalesced, or not."
    )
    coalesce_budget_s: float | None = Field(
        default=None, gt=0, le=7 * 86400, description="Longest wait for that, seconds; default: the setting."
    )
    compression_level: int | None = Field(default=None, ge=1, le=9, description="Of a bundle.")
    properties: dict[PropertyName, PropertyValue] = Field(
        default={}, max_length=100, description="Image properties to add."
    )
    image_token: Secret | None = Field(default=None, description="Token for the image store, sealed.")

    @model_validator(mode="after")
    def _fits_together(self) -> SnapshotRequest:
        if self.compression_level is not None and self.format != "bundle":
            raise ValueError("compression_level goes with format=bundle")
        reserved = [name for name in self.properties if name.startswith(("os_glance_", "vmops_"))]
        if reserved:
            raise ValueError(f"properties may not begin with os_glance_ or vmops_: {', '.join(sorted(reserved))}")
        return self


# -- find_disks --------------------------------------------------------------------------------------------------------


@step
def find_disks(op: Op, pool: Session, images: ImageStore) -> None:
    """Find the VM and its disks, take the VM's lease, refuse what cannot work. Changes nothing."""
    request = op.request(SnapshotRequest)
    found = vm.find(pool, **request.instance.model_dump(mode="json"))
    op.hold(f"vm:{found.rec['uuid']}", queue=request.on_conflict == "wait")
    disks = _wanted(vbd.disks_of(pool, found.ref), request.disks, found.rec["name_label"])
    plans = []
    for position, disk in enumerate(disks):
        vdi_rec = vdi.get(pool, disk.vdi_ref)
        _check_can_snapshot(vdi_rec, found.rec["name_label"], disk.userdevice)
        given = request.image_id if position == 0 else None
        image_id = str(given or uuid5(UUID(op.id) if _is_uuid(op.id) else UUID(int=0), f"{op.id}/{disk.userdevice}"))
        _check_image(images, image_id, op.id, given=given is not None)
        plans.append(
            {
                "userdevice": disk.userdevice,
                "vdi_ref": disk.vdi_ref,
                "vdi_uuid": vdi_rec["uuid"],
                "sr_ref": vdi_rec["SR"],
                "virtual_size": int(vdi_rec["virtual_size"]),
                "image_id": image_id,
                "image_is_ours": given is None,
            }
        )
    op.remember(vm=_facts(found.rec), disks=plans)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _wanted(disks: list[vbd.Disk], which: str, vm_name: str) -> list[vbd.Disk]:
    """Return the root disk first, then (for `all`) the others."""
    root = next((one for one in disks if one.userdevice == "0"), None) or next(
        (one for one in disks if one.bootable), None
    )
    if root is None:
        raise DiskNotFound(
            f"VM {vm_name!r} has no root disk (userdevice 0, or a bootable one): there is nothing to snapshot."
        )
    return [root, *(one for one in disks if one is not root)] if which == "all" else [root]


def _check_can_snapshot(vdi_rec: dict[str, Any], vm_name: str, userdevice: str) -> None:
    what = f"Disk {userdevice} of VM {vm_name!r} (VDI {vdi_rec['uuid']})"
    if vdi_rec["sharable"]:
        raise StorageUnsupported(f"{what} is shared between VMs; XenServer cannot snapshot it.")
    if "snapshot" not in vdi_rec["allowed_operations"] and not vdi_rec["current_operations"]:
        raise StorageUnsupported(f"{what} lies on a storage repository that cannot take snapshots.")


def _check_image(images: ImageStore, image_id: str, operation_id: str, *, given: bool) -> None:
    try:
        image = images.describe(image_id)
    except ImageNotFound:
        if given:
            raise
        return
    if image.state is not ImageState.QUEUED and image.properties.get("vmops_operation") != operation_id:
        raise ImageConflict(f"Image {image_id} is {image.state}; a snapshot needs a queued image: make a new one.")


def _facts(vm_rec: dict[str, Any]) -> dict[str, str]:
    other_config = vm_rec["other_config"]
    return {
        "uuid": vm_rec["uuid"],
        "name": vm_rec["name_label"],
        "instance_uuid": other_config.get("vmops.instance") or other_config.get("nova_uuid") or vm_rec["uuid"],
        "vm_mode": "hvm" if vm_rec["HVM_boot_policy"] else "xen",
    }


# -- take_snapshot -----------------------------------------------------------------------------------------------------


def forget_snapshot(op: Op, pool: Session) -> None:
    """Destroy this operation's snapshots, also one whose call was still on its way; take the mark off the VM's disks."""
    disks = [disk for disk in op.data.get("disks", []) if disk.get("intended")]
    if any(not disk.get("snapshot_ref") for disk in disks):
        _await_snapshot_calls(pool)
    for disk in disks:
        if disk.get("snapshot_task"):
            xapi_task.finish(pool, disk["snapshot_task"])
    for sr_ref, in_sr in _by_sr(disks):
        records = vdi.in_sr(pool, sr_ref)
        for vdi_ref, rec in records.items():
            if rec["is_a_snapshot"] and rec["other_config"].get(MARK) == op.id:
                vdi.destroy_if_present(pool, vdi_ref)
        for disk in in_sr:
            if disk["vdi_ref"] in records:
                _unmark(pool, disk)


@step(undo=forget_snapshot)
def take_snapshot(op: Op, pool: Session, settings: Settings) -> None:
    """Snapshot each disk once: a second run finds the first one's by its mark."""
    disks = op.data["disks"]
    for sr_ref, in_sr in _by_sr(disks):
        records = vdi.in_sr(pool, sr_ref)
        chain = vdi.Chain(records)
        for disk in in_sr:
            if not disk.get("snapshot_ref"):
                _sweep(op, pool, disk, records)
                disk["snapshot_ref"] = _adopt(op, disk, records) or _take(op, pool, settings, disk, chain)
                op.remember(disks=disks)
            _unmark(pool, disk)
        # The collector starts only after a scan, and parents are true only after one (operations.md 6.1, xapi.md 9.3).
        sr.scan(pool, sr_ref)


def _by_sr(disks: list[dict[str, Any]]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    for sr_ref in dict.fromkeys(disk["sr_ref"] for disk in disks):
        yield sr_ref, [disk for disk in disks if disk["sr_ref"] == sr_ref]


def _sweep(op: Op, pool: Session, disk: dict[str, Any], records: dict[str, dict[str, Any]]) -> None:
    """Destroy the disk's snapshots that operations left behind which are dead by now."""
    for vdi_ref, rec in records.items():
        owner = (
            rec["other_config"].get(MARK) if rec["is_a_snapshot"] and rec["snapshot_of"] == disk["vdi_ref"] else None
        )
        if owner and owner != op.id and not op.live(owner):
            vdi.destroy_if_present(pool, vdi_ref)
            op.note(f"destroyed snapshot {rec['uuid']}, left behind by operation {owner}")


def _adopt(op: Op, disk: dict[str, Any], records: dict[str, dict[str, Any]]) -> str | None:
    for vdi_ref, rec in records.items():
        if rec["snapshot_of"] == disk["vdi_ref"] and rec["is_a_snapshot"] and rec["other_config"].get(MARK) == op.id:
            return vdi_ref
    return None


def _take(op: Op, pool: Session, settings: Settings, disk: dict[str, Any], chain: vdi.Chain) -> str:
    disks = op.data["disks"]
    if disk.get("snapshot_task"):
        found = _outcome(pool, disk, disk["snapshot_task"])
        if found:
            return found
    elif disk.get("intended"):
        # The call went out, and what became of it is not known: let every snapshot call of the pool end, then look again.
        _await_snapshot_calls(pool)
        records = vdi.in_sr(pool, disk["sr_ref"])
        found = _adopt(op, disk, records)
        if found:
            return found
    disk["ancestors"] = chain.ancestors(disk["vdi_uuid"])
    _check_chain(op, pool, settings, disk)
    if chain.rec_of(disk["vdi_uuid"])["other_config"].get(MARK) != op.id:
        vdi.add_to_other_config(pool, disk["vdi_ref"], MARK, op.id)
    disk["intended"] = True
    disk["snapshot_task"] = None
    op.remember(disks=disks)
    disk["snapshot_task"] = vdi.start_snapshot(pool, disk["vdi_ref"])
    op.remember(disks=disks)
    taken = _outcome(pool, disk, disk["snapshot_task"])
    if taken is None:
        raise Redo("take_snapshot", "the pool forgot the snapshot call: XAPI was restarted")
    return taken


def _outcome(pool: Session, disk: dict[str, Any], task_ref: str) -> str | None:
    """Return what the snapshot call made; None when XAPI has forgotten the call."""
    outcome = xapi_task.wait(pool, task_ref, _SNAPSHOT_SHORT_S)
    if outcome.status == "pending":
        raise Wait(
            "the pool is taking the snapshot",
            until=[Until("task", task_ref, "status", ["pending"])],
            check_every_s=_TASK_CHECK_S,
            deadline_s=_SNAPSHOT_DEADLINE_S,
        )
    if outcome.status == "vanished":
        disk["snapshot_task"] = None
        return None
    xapi_task.finish(pool, task_ref)
    if outcome.status == "success":
        return outcome.result
    disk["snapshot_task"] = None
    raise outcome.error or XenAPIFailure(["TASK_CANCELLED", task_ref], "VDI.snapshot")


def _await_snapshot_calls(pool: Session) -> None:
    """Wait until no snapshot call that may be ours is on its way in the pool."""
    pending = xapi_task.pending(pool, "Async.VDI.snapshot")
    if pending:
        raise Wait(
            "a snapshot call of unknown outcome ends",
            until=[Until("task", task_ref, "status", ["pending"]) for task_ref in pending],
            check_every_s=_TASK_CHECK_S,
            deadline_s=_SNAPSHOT_DEADLINE_S,
        )


def _check_chain(op: Op, pool: Session, settings: Settings, disk: dict[str, Any]) -> None:
    if len(disk["ancestors"]) + 1 < CHAIN_LIMIT:
        return
    what = f"The chain of VDI {disk['vdi_uuid']} has reached the storage manager's limit of {CHAIN_LIMIT}"
    if not sr.can_coalesce(sr.get(pool, disk["sr_ref"])):
        raise StorageUnsupported(f"{what}, and coalescing is switched off on its storage repository: switch it on.")
    sr.scan(pool, disk["sr_ref"])
    raise Wait(
        f"{what}: it must coalesce first",
        until=[Until("vdi", disk["vdi_ref"], "sm_config/vhd-parent", disk["ancestors"][:1])],
        check_every_s=settings.coalesce_check_s,
        deadline_s=op.request(SnapshotRequest).coalesce_budget_s or settings.coalesce_budget_s,
    )


def _unmark(pool: Session, disk: dict[str, Any]) -> None:
    """Take the mark off the VM's disk, if the disk is still there."""
    try:
        vdi.remove_from_other_config(pool, disk["vdi_ref"], MARK)
    except XenAPIFailure as error:
        if kind_of(error) is not Kind.GONE:
            raise


# -- wait_for_coalesce -------------------------------------------------------------------------------------------------


@step
def wait_for_coalesce(op: Op, pool: Session, settings: Settings) -> None:
    """One look; give the slot back until each disk hangs on its old chain again, or never will (operations.md 6.3)."""
    request = op.request(SnapshotRequest)
    budget_s = request.coalesce_budget_s or settings.coalesce_budget_s
    if request.coalesce == "skip":
        return
    until: list[Until] = []
    for sr_ref, in_sr in _by_sr([disk for disk in op.data["disks"] if disk.get("ancestors")]):
        if not _collector_works(op, pool, sr_ref):
            continue
        chain = vdi.Chain(vdi.in_sr(pool, sr_ref))
        until += [one for disk in in_sr for one in _uncoalesced(disk, chain)]
    if not until:
        return
    if op.waited_s >= budget_s:
        op.note(f"the storage did not coalesce within {budget_s:.0f} s: the longer chain is exported")
        return
    raise Wait(
        "the storage is coalescing",
        until=until,
        check_every_s=max(1.0, min(settings.coalesce_check_s, budget_s - op.waited_s)),
        deadline_s=budget_s + 2 * settings.coalesce_check_s,
    )


def _collector_works(op: Op, pool: Session, sr_ref: str) -> bool:
    """Tell whether the storage repository's collector is switched on; asked once in an operation."""
    known = op.data.get("collectors", {})
    if sr_ref not in known:
        known[sr_ref] = sr.can_coalesce(sr.get(pool, sr_ref))
        op.remember(collectors=known)
        if not known[sr_ref]:
            op.note("coalescing is switched off on the storage repository: not waited for")
    return bool(known[sr_ref])


def _vanished(disk: dict[str, Any]) -> str:
    return f"the snapshot of disk {disk['userdevice']} has vanished from the pool: XAPI lost its last minutes"


def _uncoalesced(disk: dict[str, Any], chain: vdi.Chain) -> list[Until]:
    """Return what to watch for a disk whose new link has not been merged yet, nothing when it has or never will be."""
    if not chain.has_ref(disk["snapshot_ref"]):
        raise Redo("take_snapshot", _vanished(disk))
    if disk["vdi_uuid"] not in chain:
        return []
    parent_uuid = chain.parent_of(disk["vdi_uuid"])
    former = disk["ancestors"]
    if parent_uuid is None or parent_uuid in former:
        return []
    siblings = [child for child in chain.children(former[0]) if child != parent_uuid]
    if siblings or "gc_no_space" in chain.rec_of(disk["vdi_uuid"])["sm_config"]:
        return []
    return [Until("vdi", disk["vdi_ref"], "sm_config/vhd-parent", [parent_uuid])]


# -- push_to_glance ----------------------------------------------------------------------------------------------------


def withdraw_images(op: Op, pool: Session, images: ImageStore) -> None:
    """Delete the images that this operation made, end its exports. A caller's image stays, queued."""
    for disk in op.data.get("disks", []):
        _end_exports(op, pool, disk)
        if disk["image_is_ours"] and disk.get("push_intended"):
            images.delete(disk["image_id"])


@step(undo=withdraw_images, queue="transfers", weight=90)
def push_to_glance(op: Op, pool: Session, images: ImageStore, settings: Settings) -> None:
    """Export each snapshot from the pool straight into its image; the root disk last, as it may be the caller's image."""
    request = op.request(SnapshotRequest)
    disks = op.data["disks"]
    for done, disk in enumerate(reversed(disks)):
        if disk.get("pushed"):
            continue
        if disk.get("push_intended"):
            _end_exports(op, pool, disk)
        disk["push_intended"] = True
        op.remember(disks=disks)
        if disk["image_is_ours"]:
            ensure(images, _new_image(op, request, disk), "vmops_operation")
        disk["pushed"] = _push_disk(op, pool, images, disk, _Watch(op, settings, done, len(disks)))
        op.remember(disks=disks)
    op.set_result(images=[disk["pushed"] for disk in disks])


def _push_disk(op: Op, pool: Session, images: ImageStore, disk: dict[str, Any], watch: _Watch) -> dict[str, Any]:
    request = op.request(SnapshotRequest)
    plan = PushPlan(
        format=request.format,
        properties=_properties(op, request),
        virtual_size=disk["virtual_size"],
        compression_level=request.compression_level,
        wedged_after_s=watch.settings.image_wedged_after_s,
    )
    pushed = already_pushed(images, disk["image_id"], plan, watch)
    if pushed is None:
        source_format: Literal["raw", "vhd"] = "raw" if request.format == "raw" else "vhd"
        task_ref = xapi_task.create(pool, _export_label(op, disk))
        try:
            with transfer.export_vdi(pool, disk["snapshot_ref"], source_format, task_ref=task_ref) as export:
                export.on_idle = op.check
                pushed = push(images, disk["image_id"], export, plan, watch)
        except XenAPIFailure as error:
            if kind_of(error) is not Kind.GONE:
                raise
            disk["snapshot_ref"] = None
            op.remember(disks=op.data["disks"])
            raise Redo("take_snapshot", _vanished(disk)) from error
    return {"userdevice": disk["userdevice"], "format": request.format, **asdict(pushed)}


class _Watch:
    """Tells the operation how far a push is, and the push whether to go on."""

    def __init__(self, op: Op, settings: Settings, done: int, total: int) -> None:
        self.settings = settings
        self._op = op
        self._done = done
        self._total = total

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Report bytes of this disk as a fraction of all disks."""
        fraction = done_bytes / total_bytes if total_bytes else 0.0
        self._op.progress((self._done + min(fraction, 1.0)) / self._total)

    def check(self) -> None:
        """Raise Cancelled or LeaseLost when the push must stop."""
        self._op.check()


def _export_label(op: Op, disk: dict[str, Any]) -> str:
    return f"vmops export {op.id} disk {disk['userdevice']}"


def _end_exports(op: Op, pool: Session, disk: dict[str, Any]) -> None:
    """Destroy the pool's tasks of exports that died with their worker."""
    for task_ref in xapi_task.named(pool, _export_label(op, disk)):
        xapi_task.finish(pool, task_ref)


def _new_image(op: Op, request: SnapshotRequest, disk: dict[str, Any]) -> ImageMeta:
    name = request.name or f"{op.data['vm']['name']} snapshot"
    if request.disks == "all":
        name = f"{name} (disk {disk['userdevice']})"
    return ImageMeta(image_id=disk["image_id"], name=name, properties={"vmops_operation": op.id})


def _properties(op: Op, request: SnapshotRequest) -> dict[str, str]:
    """Return the image properties of images.md 13; the caller's win over ours, but for the mark."""
    facts = op.data["vm"]
    return {
        "image_type": "snapshot",
        "instance_uuid": facts["instance_uuid"],
        "vm_mode": facts["vm_mode"],
        **request.properties,
        "vmops_operation": op.id,
    }


# -- discard_snapshot --------------------------------------------------------------------------------------------------


@step
def discard_snapshot(op: Op, pool: Session) -> None:
    """Destroy the snapshots; one that is gone already is no error."""
    for disk in op.data["disks"]:
        vdi.destroy_if_present(pool, disk["snapshot_ref"])


snapshot = operation(
    "snapshot",
    SnapshotRequest,
    find_disks,
    take_snapshot,
    wait_for_coalesce,
    push_to_glance,
    discard_snapshot,
    point_of_no_return=push_to_glance,
)
