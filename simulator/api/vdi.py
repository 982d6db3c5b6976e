"""VDI.* (xapi.md 6.3, 8.3, 9.1, 14.1): an operation marks the repository and the disk, then works on the files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from simulator import disks
from simulator.api import device_rules
from simulator.api.registry import Context, call
from simulator.core.database import Row, is_null
from simulator.core.failures import Failure
from simulator.model.types import NULL
from simulator.model.words import words
from simulator.storage import StorageError

GRAIN = 2 << 20
LARGEST = 2040 << 30
_COPIED = words(
    """
    name_label name_description type sharable other_config xenstore_data on_boot allow_caching
    """
)
_COPY_CHUNK = 2 << 20


def rounded(size: int) -> int:
    """Return a size as VHD repositories round it (xapi.md 6.3). Raises SR_BACKEND_FAILURE_79."""
    if size < 0 or size > LARGEST:
        raise backend_failure(79, f"VDI Invalid size [opterr=VDI size must be between 1 MB and {LARGEST >> 20} MB]")
    return max(1, -(-size // GRAIN)) * GRAIN


def backend_failure(code: int, text: str) -> Failure:
    """Return the failure of a storage backend."""
    return Failure(f"SR_BACKEND_FAILURE_{code}", "", text, "")


@contextlib.contextmanager
def storage() -> Iterator[None]:
    """Turn errors of the files into XenAPI's."""
    try:
        yield
    except StorageError as error:
        raise backend_failure(error.code, error.text) from None


@contextlib.contextmanager
def on_sr(ctx: Context, sr: Row, operation: str) -> Iterator[None]:
    """Hold a repository for one operation; everything else on it waits (xapi.md 8.4)."""
    with ctx.pool.operations.on(
        ctx,
        sr,
        operation,
        lambda: device_rules.assert_sr(ctx.db, sr, operation),
        lambda: device_rules.refresh_sr(ctx.db, sr),
    ):
        yield


@contextlib.contextmanager
def on_vdi(ctx: Context, vdi: Row, operation: str) -> Iterator[None]:
    """Hold a disk for one operation."""
    with ctx.pool.operations.on(
        ctx,
        vdi,
        operation,
        lambda: device_rules.assert_vdi(ctx.db, vdi, operation),
        lambda: device_rules.refresh_vdi(ctx.db, vdi),
    ):
        yield


def new_record(ctx: Context, sr: Row, uuid: str, **fields: Any) -> Row:
    """Make the record of a file that was just made."""
    return disks.new_record(ctx.pool, sr, uuid, fields)


class Pieces:
    """The pieces of an export as a stream to read; looks at each whether it may go on."""

    def __init__(self, pieces: Iterator[memoryview], check: Callable[[], None]) -> None:
        self._pieces = pieces
        self._check = check
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        if not self._rest:
            self._check()
            self._rest = next(self._pieces, memoryview(b""))
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)


@call("VDI.create", "record:VDI", returns="@VDI")
def create(ctx: Context, record: dict[str, Any]) -> str:
    """Make an empty disk. Raises SR_NO_PBDS, SR_BACKEND_FAILURE_44 and _79."""
    sr = ctx.db.row("SR", record["SR"])
    repository = ctx.pool.repository(sr)
    size = rounded(record["virtual_size"])
    uuid = ctx.pool.ids.uuid()
    with on_sr(ctx, sr, "vdi_create"):
        with storage():
            repository.create(uuid, size)
        return new_record(ctx, sr, uuid, **record | {"virtual_size": size}).ref


@call("VDI.introduce", "string", "string", "string", "&SR", "vdi_type", "bool", "bool", "string->string", "string",
      "string->string", "string->string", "bool?", "int?", "int?", "@pool?", "bool?", "datetime?", "@VDI?",
      returns="@VDI")  # fmt: skip
def introduce(ctx: Context, uuid: str, label: str, description: str, sr: Row, kind: str, *rest: Any) -> str:
    """Make a record for a file that lies in the repository already. Raises SR_BACKEND_FAILURE_46."""
    sharable, read_only, other_config, location, xenstore_data, sm_config = rest[:6]
    del location, sm_config
    with on_sr(ctx, sr, "vdi_introduce"):
        with storage():
            node = ctx.pool.repository(sr).node(uuid)
        return new_record(
            ctx, sr, uuid, name_label=label, name_description=description, type=kind, sharable=sharable,
            read_only=read_only, other_config=other_config, xenstore_data=xenstore_data, virtual_size=node.virtual_size,
        ).ref  # fmt: skip


@call("VDI.destroy", "&VDI")
def destroy(ctx: Context, vdi: Row) -> None:
    """Remove a disk, its VBDs and every pointer to it; its file stays hidden until the collector comes."""
    sr = ctx.db.row("SR", vdi["SR"])
    with on_sr(ctx, sr, "vdi_destroy"), on_vdi(ctx, vdi, "destroy"):
        _delete_files(ctx, vdi)
        with ctx.db as db:
            disks.drop_record(db, vdi)
    ctx.pool.collector(sr).kick()


def _delete_files(ctx: Context, vdi: Row) -> None:
    """Hide a disk's file, if it still has one, and drop its log of changes."""
    repository = ctx.pool.repository_of(vdi)
    if vdi["type"] != "cbt_metadata":
        with storage():
            repository.delete(vdi["uuid"])
    repository.logs.drop(vdi["uuid"])


@call("VDI.forget", "&VDI")
def forget(ctx: Context, vdi: Row) -> None:
    """Remove the record only; SR.scan finds the file again."""
    sr = ctx.db.row("SR", vdi["SR"])
    with on_sr(ctx, sr, "scan"), on_vdi(ctx, vdi, "forget"), ctx.db:
        disks.drop_record(ctx.db, vdi)


#: Digests of a disk's snapshots that are remembered, also when the snapshots are gone.
_DIGESTS_KEPT = 50


def branch(ctx: Context, vdi: Row, operation: str, **fields: Any) -> Row:
    """Snapshot or clone a disk: a hidden base copy takes its data, unless nothing was written since the last one.

    The guest's writes stand still meanwhile, and the content of that instant is hashed, if the disk is small enough.
    Returns the new disk's record; the caller holds the marks.
    """
    pool, sr = ctx.pool, ctx.db.row("SR", vdi["SR"])
    repository = pool.repository(sr)
    new_uuid, base_uuid = pool.ids.uuid(), pool.ids.uuid()
    with pool.guests.writes.paused(vdi["uuid"]), storage():
        digest = repository.sha256(vdi["uuid"]) if vdi["virtual_size"] <= pool.settings.digest_limit else None
        work = repository.snapshot if operation == "snapshot" else repository.clone
        has_base = work(vdi["uuid"], new_uuid, base_uuid)
        if operation == "snapshot" and vdi["cbt_enabled"]:
            repository.logs.split(vdi["uuid"], new_uuid)
    values = {name: vdi[name] for name in _COPIED} | {"snapshot_time": pool.clock.stamp(), "metadata_of_pool": NULL}
    if operation == "snapshot":
        values |= {"is_a_snapshot": True, "snapshot_of": vdi.ref, "cbt_enabled": vdi["cbt_enabled"]}
    with ctx.db as db:
        if has_base:
            hidden = {"name_label": "base copy", "managed": False, "read_only": True, "metadata_of_pool": NULL}
            # The collector may have merged it into its own parent already.
            with contextlib.suppress(StorageError):
                disks.new_record(pool, sr, base_uuid, hidden | {"type": vdi["type"]})
        row = disks.new_record(pool, sr, new_uuid, values | fields)
        if digest is not None:
            db.note(f"digest/{new_uuid}", digest)
            # Outlives the snapshot, for whoever compares what became of it with what the disk was.
            taken = {**db.notes.get(f"digests/{vdi['uuid']}", {}), new_uuid: digest}
            db.note(f"digests/{vdi['uuid']}", dict(list(taken.items())[-_DIGESTS_KEPT:]))
        disks.apply_node(db, vdi, repository.node(vdi["uuid"]))
        return row


@call("VDI.snapshot", "&VDI", "string->string?", returns="@VDI")
def snapshot(ctx: Context, vdi: Row, driver_params: dict[str, str] | None) -> str:
    """Take a snapshot of a disk, attached or not. Raises SR_BACKEND_FAILURE_109 when the chain is too long."""
    del driver_params
    with on_sr(ctx, ctx.db.row("SR", vdi["SR"]), "vdi_snapshot"), on_vdi(ctx, vdi, "snapshot"):
        ctx.pool.clock.wait(ctx.pool.snapshot_s)
        return branch(ctx, vdi, "snapshot").ref


@call("VDI.clone", "&VDI", "string->string?", returns="@VDI")
def clone(ctx: Context, vdi: Row, driver_params: dict[str, str] | None) -> str:
    """Make a writable disk on the same data."""
    del driver_params
    with on_sr(ctx, ctx.db.row("SR", vdi["SR"]), "vdi_clone"), on_vdi(ctx, vdi, "clone"):
        return branch(ctx, vdi, "clone").ref


@call("VDI.copy", "&VDI", "@SR?", "@VDI?", "@VDI?", returns="@VDI")
def copy(ctx: Context, vdi: Row, sr_ref: str | None, base_ref: str | None, into_ref: str | None) -> str:
    """Copy the content into a new disk, or into an existing one; only what differs from a base when one is given.

    Raises VDI_TOO_SMALL and VDI_READONLY.
    """
    base = None if is_null(base_ref or "") else ctx.db.row("VDI", base_ref or "")
    sr = ctx.db.row("SR", vdi["SR"] if is_null(sr_ref or "") else sr_ref or "")
    target = _copy_target(ctx, vdi, sr) if is_null(into_ref or "") else ctx.db.row("VDI", into_ref or "")
    if target["virtual_size"] < vdi["virtual_size"]:
        raise Failure("VDI_TOO_SMALL", target.ref, str(target["virtual_size"]))
    if target["read_only"]:
        raise Failure("VDI_READONLY", target.ref)
    try:
        with on_vdi(ctx, vdi, "copy"):
            copy_content(ctx, vdi, target, base)
    except Failure:
        if is_null(into_ref or ""):
            discard(ctx, target)
        raise
    return target.ref


def _copy_target(ctx: Context, vdi: Row, sr: Row) -> Row:
    """Make the empty disk that a copy goes into."""
    uuid = ctx.pool.ids.uuid()
    with on_sr(ctx, sr, "vdi_create"):
        with storage():
            ctx.pool.repository(sr).create(uuid, vdi["virtual_size"])
        return new_record(ctx, sr, uuid, **{name: vdi[name] for name in _COPIED})


def discard(ctx: Context, vdi: Row) -> None:
    """Take back a disk that was just made."""
    with on_sr(ctx, ctx.db.row("SR", vdi["SR"]), "vdi_destroy"):
        _delete_files(ctx, vdi)
        with ctx.db:
            disks.drop_record(ctx.db, vdi)


def _copy_difference(ctx: Context, source: Row, target: Row, base: Row) -> None:
    repository = ctx.pool.repository_of(source)
    with storage(), repository.export(source["uuid"], "vhd", base["uuid"]) as stream:
        pieces = Pieces(stream, lambda: ctx.pool.tasks.check_cancelled(ctx.task))
        ctx.pool.repository_of(target).import_vhd(target["uuid"], pieces, stream.length, ctx.progress)


def copy_content(ctx: Context, source: Row, target: Row, base: Row | None = None) -> None:
    """Copy all data, or what differs from a base in the same repository; stops when the task is cancelled."""
    if base is not None and base["SR"] == source["SR"]:
        _copy_difference(ctx, source, target, base)
        disks.refresh(ctx.pool, target)
        return
    reader, writer = ctx.pool.repository_of(source), ctx.pool.repository_of(target)
    size, started = source["virtual_size"], time.monotonic()
    with storage():
        for offset in range(0, size, _COPY_CHUNK):
            ctx.pool.transfers.keep_to_limit(started, offset)
            ctx.pool.tasks.check_cancelled(ctx.task)
            data = reader.read(source["uuid"], offset, min(_COPY_CHUNK, size - offset))
            if data.count(0) != len(data):
                writer.write(target["uuid"], offset, data)
            if offset % (64 * _COPY_CHUNK) == 0:
                ctx.progress(offset / size)
    disks.refresh(ctx.pool, target)


@call("VDI.resize", "&VDI", "int")
def resize(ctx: Context, vdi: Row, size: int) -> None:
    """Make a disk larger. Raises VDI_IN_USE while attached, SR_BACKEND_FAILURE_79 for a smaller size."""
    sr = ctx.db.row("SR", vdi["SR"])
    size = rounded(size)
    with on_sr(ctx, sr, "vdi_resize"), on_vdi(ctx, vdi, "resize"):
        if size < vdi["virtual_size"]:
            raise backend_failure(79, "VDI Invalid size [opterr=shrinking not allowed]")
        with storage():
            ctx.pool.repository(sr).resize(vdi["uuid"], size)
        disks.refresh(ctx.pool, vdi)


@call("VDI.update", "&VDI")
def update(ctx: Context, vdi: Row) -> None:
    """Refresh the record from the files."""
    with on_vdi(ctx, vdi, "update"), storage():
        disks.refresh(ctx.pool, vdi)


@call("VDI.set_name_label", "&VDI", "string")
def set_name_label(ctx: Context, vdi: Row, value: str) -> None:
    """Rename a disk."""
    with ctx.db as db:
        db.put(vdi, name_label=value)


@call("VDI.set_name_description", "&VDI", "string")
def set_name_description(ctx: Context, vdi: Row, value: str) -> None:
    """Describe a disk."""
    with ctx.db as db:
        db.put(vdi, name_description=value)


@call("VDI.set_sharable", "&VDI", "bool", has_async=False)
def set_sharable(ctx: Context, vdi: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Let several VMs write to the disk."""
    with ctx.db as db:
        db.put(vdi, sharable=value)
        device_rules.refresh_vdi(db, vdi)


@call("VDI.set_read_only", "&VDI", "bool", has_async=False)
def set_read_only(ctx: Context, vdi: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Forbid writing."""
    with ctx.db as db:
        db.put(vdi, read_only=value)


@call("VDI.set_on_boot", "&VDI", "on_boot")
def set_on_boot(ctx: Context, vdi: Row, value: str) -> None:
    """Choose what a boot does to the content."""
    with on_vdi(ctx, vdi, "set_on_boot"), ctx.db as db:
        db.put(vdi, on_boot=value)


@call("VDI.set_allow_caching", "&VDI", "bool")
def set_allow_caching(ctx: Context, vdi: Row, value: bool) -> None:  # noqa: FBT001 - the call's signature
    """Allow a local cache."""
    with ctx.db as db:
        db.put(vdi, allow_caching=value)
