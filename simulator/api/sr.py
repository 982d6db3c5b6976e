"""SR.*, PBD.* and the file side of storage repositories (xapi.md 8.4)."""

from __future__ import annotations

from typing import Any

from simulator import disks
from simulator.api import device_rules
from simulator.api.registry import Context, call
from simulator.api.vdi import on_sr, storage
from simulator.core.database import Row
from simulator.core.failures import Failure

#: Types that a client may create: each becomes a folder of VHD files here.
FILE_TYPES = frozenset({"ext", "file", "nfs", "lvm"})


@call("SR.scan", "&SR")
def scan(ctx: Context, sr: Row) -> None:
    """Bring the records in line with the files, and wake the collector."""
    with on_sr(ctx, sr, "scan"):
        ctx.pool.clock.wait(ctx.pool.scan_s)
        with storage():
            disks.scan(ctx.pool, sr, introduces=True)
        ctx.pool.collector(sr).kick()


@call("SR.update", "&SR")
def update(ctx: Context, sr: Row) -> None:
    """Refresh the sizes."""
    with on_sr(ctx, sr, "update"), storage():
        disks.scan(ctx.pool, sr, introduces=False)


@call("SR.set_name_label", "&SR", "string")
def set_name_label(ctx: Context, sr: Row, value: str) -> None:
    """Rename a repository."""
    with ctx.db as db:
        db.put(sr, name_label=value)


@call("SR.set_name_description", "&SR", "string")
def set_name_description(ctx: Context, sr: Row, value: str) -> None:
    """Describe a repository."""
    with ctx.db as db:
        db.put(sr, name_description=value)


@call("SR.get_supported_types", returns="string*", has_async=False)
def get_supported_types(ctx: Context) -> list[str]:
    """Return the types of the SM records."""
    return [sm["type"] for sm in ctx.db.rows("SM")]


@call("SR.create", "&host", "string->string", "int", "string", "string", "string", "string", "bool", "string->string",
      returns="@SR")  # fmt: skip
def create(ctx: Context, host: Row, device_config: dict[str, str], size: int, label: str, *rest: Any) -> str:
    """Make a repository and plug it: into one host, or into all when it is shared."""
    description, kind, content_type, shared, sm_config = rest
    if kind not in FILE_TYPES:
        raise Failure("SR_UNKNOWN_DRIVER", kind)
    with ctx.db as db:
        sr = make_sr(ctx.pool, label, kind, shared=shared, description=description)
        db.put(sr, content_type=content_type, sm_config=sm_config, physical_size=size)
        for one in db.rows("host") if shared else [host]:
            make_pbd(ctx.pool, one, sr, device_config)
    ctx.pool.open_repository(sr)
    return sr.ref


def make_sr(pool: Any, label: str, kind: str, *, shared: bool, description: str = "", uuid: str = "") -> Row:
    """Make a repository's record."""
    values = {
        "uuid": uuid or pool.ids.uuid(),
        "name_label": label,
        "name_description": description,
        "type": kind,
        "content_type": "user",
        "shared": shared,
        "physical_size": pool.settings.sr_capacity,
    }
    row: Row = pool.db.create("SR", pool.ids.ref(), values)
    device_rules.refresh_sr(pool.db, row)
    return row


def make_pbd(pool: Any, host: Row, sr: Row, device_config: dict[str, str]) -> Row:
    """Make a plugged PBD."""
    values = {
        "uuid": pool.ids.uuid(),
        "host": host.ref,
        "SR": sr.ref,
        "device_config": device_config,
        "currently_attached": True,
    }
    row: Row = pool.db.create("PBD", pool.ids.ref(), values)
    return row


@call("SR.introduce", "string", "string", "string", "string", "string", "bool", "string->string?", returns="@SR")
def introduce(ctx: Context, uuid: str, label: str, description: str, kind: str, *rest: Any) -> str:
    """Make a repository's record; it is usable once a PBD is plugged."""
    content_type, shared, sm_config = rest
    with ctx.db as db:
        sr = make_sr(ctx.pool, label, kind, shared=shared, description=description, uuid=uuid)
        db.put(sr, content_type=content_type, sm_config=sm_config or {})
        return sr.ref


@call("SR.forget", "&SR")
def forget(ctx: Context, sr: Row) -> None:
    """Drop the records of a repository that no host has plugged. Raises SR_HAS_PBD."""
    with ctx.db as db:
        if any(pbd["currently_attached"] for pbd in db.linked(sr, "PBDs", "PBD")):
            raise Failure("SR_HAS_PBD", sr.ref)
        for vdi in db.linked(sr, "VDIs", "VDI"):
            disks.drop_record(db, vdi)
        for row in [*db.linked(sr, "PBDs", "PBD"), sr]:
            db.delete(row)
    ctx.pool.match_repositories()


@call("SR.destroy", "&SR")
def destroy(ctx: Context, sr: Row) -> None:
    """Drop an empty, unplugged repository. Raises SR_HAS_PBD and SR_NOT_EMPTY."""
    with ctx.db as db:
        if any(vdi["managed"] for vdi in db.linked(sr, "VDIs", "VDI")):
            raise Failure("SR_NOT_EMPTY")
        forget(ctx, sr)
        db.note(f"found/{sr['uuid']}", None)


@call("PBD.create", "record:PBD", returns="@PBD")
def pbd_create(ctx: Context, record: dict[str, Any]) -> str:
    """Make an unplugged PBD."""
    with ctx.db as db:
        host, sr = db.row("host", record["host"]), db.row("SR", record["SR"])
        pbd = make_pbd(ctx.pool, host, sr, record["device_config"])
        db.put(pbd, currently_attached=False, other_config=record.get("other_config", {}))
        return pbd.ref


@call("PBD.destroy", "&PBD")
def pbd_destroy(ctx: Context, pbd: Row) -> None:
    """Remove an unplugged PBD."""
    with ctx.db as db:
        if pbd["currently_attached"]:
            raise Failure("OPERATION_NOT_ALLOWED", "PBD is currently attached")
        db.delete(pbd)


@call("PBD.plug", "&PBD")
def pbd_plug(ctx: Context, pbd: Row) -> None:
    """Attach the repository to the host."""
    sr = ctx.db.row("SR", pbd["SR"])
    with on_sr(ctx, sr, "plug"):
        if not ctx.pool.has_repository(sr) and sr["type"] in FILE_TYPES:
            ctx.pool.open_repository(sr)
        with ctx.db as db:
            db.put(pbd, currently_attached=True)


@call("PBD.unplug", "&PBD")
def pbd_unplug(ctx: Context, pbd: Row) -> None:
    """Detach the repository from the host. Raises VDI_IN_USE while one of its disks is attached there."""
    sr = ctx.db.row("SR", pbd["SR"])
    with on_sr(ctx, sr, "unplug"), ctx.db as db:
        for vdi in db.linked(sr, "VDIs", "VDI"):
            if device_rules.attached_vbds(db, vdi):
                raise Failure("VDI_IN_USE", vdi.ref, "destroy")
        db.put(pbd, currently_attached=False)


@call("PBD.set_device_config", "&PBD", "string->string")
def pbd_set_device_config(ctx: Context, pbd: Row, value: dict[str, str]) -> None:
    """Change how the host reaches the repository."""
    with ctx.db as db:
        db.put(pbd, device_config=value)
