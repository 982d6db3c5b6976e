"""Changed block tracking of disks: VDI.enable_cbt and its kin."""

from __future__ import annotations

import base64

from simulator.api import device_rules
from simulator.api.registry import Context, call
from simulator.api.vdi import on_sr, on_vdi, storage
from simulator.core.database import Row
from simulator.core.failures import Failure

_TRACKED_TYPES = frozenset({"user", "system"})
METADATA = "cbt_metadata"


def _assert_trackable(vdi: Row) -> None:
    if vdi["is_a_snapshot"]:
        raise Failure("OPERATION_NOT_ALLOWED", f"VDI is a snapshot: {vdi.ref}")
    if vdi["type"] not in _TRACKED_TYPES:
        raise Failure("VDI_INCOMPATIBLE_TYPE", vdi.ref, vdi["type"])
    if vdi["on_boot"] == "reset":
        raise Failure("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION")


@call("VDI.enable_cbt", "&VDI")
def enable_cbt(ctx: Context, vdi: Row) -> None:
    """Begin to track which blocks change. Raises OPERATION_NOT_ALLOWED, VDI_INCOMPATIBLE_TYPE."""
    sr = ctx.db.row("SR", vdi["SR"])
    with on_sr(ctx, sr, "vdi_enable_cbt"), on_vdi(ctx, vdi, "enable_cbt"):
        _assert_trackable(vdi)
        with storage():
            ctx.pool.repository(sr).logs.start(vdi["uuid"], vdi["virtual_size"])
        with ctx.db as db:
            db.put(vdi, cbt_enabled=True)


@call("VDI.disable_cbt", "&VDI")
def disable_cbt(ctx: Context, vdi: Row) -> None:
    """Track no longer: what changed between the snapshots before and later ones cannot be told any more."""
    sr = ctx.db.row("SR", vdi["SR"])
    with on_sr(ctx, sr, "vdi_disable_cbt"), on_vdi(ctx, vdi, "disable_cbt"):
        _assert_trackable(vdi)
        ctx.pool.repository(sr).logs.drop(vdi["uuid"], breaks=True)
        with ctx.db as db:
            db.put(vdi, cbt_enabled=False)


@call("VDI.data_destroy", "&VDI")
def data_destroy(ctx: Context, vdi: Row) -> None:
    """Remove a snapshot's data and keep what it says of changes; its type becomes cbt_metadata.

    Raises OPERATION_NOT_ALLOWED for what is no snapshot, VDI_NO_CBT_METADATA, VDI_IN_USE while a VBD names it.
    """
    sr = ctx.db.row("SR", vdi["SR"])
    with on_sr(ctx, sr, "vdi_data_destroy"), on_vdi(ctx, vdi, "data_destroy"):
        if not vdi["is_a_snapshot"]:
            raise Failure("OPERATION_NOT_ALLOWED", f"VDI is not a snapshot: {vdi.ref}")
        if vdi["type"] == METADATA:
            return
        if not vdi["cbt_enabled"]:
            raise Failure("VDI_NO_CBT_METADATA", vdi.ref)
        if vdi["VBDs"]:
            raise Failure("VDI_IN_USE", vdi.ref, "data_destroy")
        with storage():
            ctx.pool.repository(sr).delete(vdi["uuid"])
        with ctx.db as db:
            sm_config = {key: value for key, value in vdi["sm_config"].items() if key != "vhd-parent"}
            db.put(vdi, type=METADATA, physical_utilisation=0, sm_config=sm_config)
            device_rules.refresh_vdi(db, vdi)
    ctx.pool.collector(sr).kick()


@call("VDI.list_changed_blocks", "&VDI", "&VDI", returns="string")
def list_changed_blocks(ctx: Context, vdi_from: Row, vdi_to: Row) -> str:
    """Return the bitmap of the 64 KiB blocks that changed between two states of a disk, in base64.

    Raises VDI_IN_USE for a disk in use, SR_BACKEND_FAILURE_460 for disks that are not tracked, or not related.
    """
    sr = ctx.db.row("SR", vdi_from["SR"])
    with on_sr(ctx, sr, "vdi_list_changed_blocks"):
        with ctx.db as db:
            for vdi in (vdi_from, vdi_to):
                device_rules.assert_vdi(db, vdi, "list_changed_blocks")
        with storage():
            bitmap = ctx.pool.repository(sr).logs.changed(vdi_from["uuid"], vdi_to["uuid"])
        return base64.b64encode(bitmap).decode()


@call("VDI.get_nbd_info", "&VDI", returns="record:vdi_nbd_server_info*", has_async=False)
def get_nbd_info(ctx: Context, vdi: Row) -> list[dict[str, str]]:
    """Return nothing: no network of a simulated pool has the purpose nbd. Raises VDI_INCOMPATIBLE_TYPE."""
    del ctx
    if vdi["type"] == METADATA:
        raise Failure("VDI_INCOMPATIBLE_TYPE", vdi.ref, METADATA)
    return []
