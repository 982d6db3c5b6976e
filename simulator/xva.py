"""GET /export, PUT /import, GET /export_metadata, PUT /import_metadata: VMs as streams (xapi.md 10.2, 10.4).

As for disks, the 200 goes out before the work: success or failure is only in the task. An import that fails leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from simulator import xva_objects, xva_tar
from simulator.api.registry import Context
from simulator.api.vdi import backend_failure, storage
from simulator.api.vm_power import on_vm
from simulator.core.database import Row, is_null
from simulator.core.failures import Failure
from simulator.faults import Fault
from simulator.handlers import (
    Refused,
    adopt_task,
    authorise,
    end_task,
    ensure_served_by,
    failure_page,
    handler,
    hosts_with_sr,
    named,
)
from simulator.storage import StorageError
from simulator.transfers import Body, Cut, Transfer
from simulator.wire.http import Connection, ConnectionReset, Request, page
from simulator.xva_import import Importer, Wish

if TYPE_CHECKING:
    from simulator.pool import Pool

#: The largest `ova.xml` that is read: thousands of VMs.
_LARGEST_DOCUMENT = 64 << 20
#: The announced length of a body without one.
_ENDLESS = 1 << 62
#: What may follow a tar's end, and is read so that the sender sees no reset.
_LARGEST_TAIL = 1 << 20
_COMPRESSIONS = {"true": "gzip", "gzip": "gzip", "zstd": "zstd", "false": ""}


# -- out


def _said_true(request: Request, name: str, default: str = "false") -> bool:
    return (request.parameter(name) or default).lower() == "true"


def _compression(request: Request) -> str:
    """Return the wished compression. Raises LICENCE_RESTRICTION for zstd, INVALID_VALUE."""
    wish = request.parameter("use_compression") or "false"
    if wish not in _COMPRESSIONS:
        raise Failure("INVALID_VALUE", "use_compression", wish)
    if wish == "zstd":
        raise Failure("LICENCE_RESTRICTION", "Zstd_export")
    return _COMPRESSIONS[wish]


def with_snapshots(pool: Pool, vm: Row) -> list[Row]:
    """Return a VM with its snapshots, oldest first."""
    snapshots = pool.db.linked(vm, "snapshots", "VM")
    return [vm, *sorted(snapshots, key=lambda one: (one["snapshot_time"], one.created))]


def _hosts_that_see(pool: Pool, vm: Row) -> list[str]:
    """Return the hosts that reach every disk of a VM."""
    db = pool.db
    with db:
        vdis = [db.find("VDI", vbd["VDI"]) for vbd in db.linked(vm, "VBDs", "VBD")]
        srs = [db.find("SR", ref) for ref in {disk["SR"] for disk in vdis if disk is not None}]
        sets = [set(hosts_with_sr(pool, sr)) for sr in srs if sr is not None]
        return [host.ref for host in db.rows("host") if all(host.ref in one for one in sets)]


def _head(task: Row, *lines: str) -> bytes:
    extra = "".join(f"{line}\r\n" for line in lines)
    return (
        "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n"
        f"task-id:{task.ref}\r\ncontent-type:application/octet-stream\r\n{extra}\r\n"
    ).encode()


@handler("GET", "/export")
@handler("GET", "/export/")
def _export(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    authorise(pool, request)
    vm = named(pool, "VM", request.parameter("ref") or request.parameter("uuid"))
    seers = _hosts_that_see(pool, vm)
    if seers:
        ensure_served_by(pool, request, connection, seers)
    task, is_clients = adopt_task(pool, request, "VM.export")
    ctx = Context(pool, "VM.export", None, task)
    transfer = Transfer("export", vm, task, is_clients, time.monotonic(), fault)
    try:
        packed = _compression(request)
        with on_vm(ctx, vm, "export"), pool.transfers.registered(transfer):
            head = _head(task, 'content-disposition: attachment; filename="export.xva"')
            connection.send(head.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
            exporter = _Exporter(ctx, connection, transfer, packed)
            exporter.run(vm, keeps_power_state=_said_true(request, "preserve_power_state"))
    except Cut:
        raise ConnectionReset from None
    except OSError:
        end_task(pool, task, is_clients, Failure("VDI_IO_ERROR", "Device I/O errors"))
    except Failure as failure:
        end_task(pool, task, is_clients, failure)
        if transfer.moved == 0:
            raise Refused(failure_page(failure)) from None
    else:
        end_task(pool, task, is_clients, None, "<value></value>")
    return False


class _Exporter:
    """Writes one VM to a connection."""

    def __init__(self, ctx: Context, connection: Connection, transfer: Transfer, packed: str) -> None:
        self._ctx = ctx
        self._connection = connection
        self._transfer = transfer
        self._gzip = xva_tar.Gzip(self._send) if packed else None
        self._done, self._total, self._shown = 0, 1, 0.0

    def run(self, vm: Row, *, keeps_power_state: bool) -> None:
        """Write everything. Raises OSError, Failure, Cut."""
        pool = self._ctx.pool
        manifest = xva_objects.describe(pool, with_snapshots(pool, vm), keeps_power_state=keeps_power_state)
        self._total = sum(disk["virtual_size"] for _name, disk in manifest.disks) or 1
        writer = xva_tar.Writer(self._gzip or self._send)
        writer.add("ova.xml", xva_objects.write(pool, manifest))
        for name, disk in manifest.disks:
            with pool.transfers.attached(self._ctx, disk, "RO"), storage():
                self._disk(writer, name, disk)
        writer.end()
        if self._gzip is not None:
            self._gzip.end()

    def _disk(self, writer: xva_tar.Writer, name: str, disk: Row) -> None:
        with self._ctx.pool.repository_of(disk).export(disk["uuid"], "raw") as stream:
            writer.add_disk(name, self._watched(stream), disk["virtual_size"])

    def _watched(self, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        """Yield the pieces; report progress, and stop when the task was cancelled."""
        for piece in pieces:
            self._ctx.pool.tasks.check_cancelled(self._ctx.task)
            yield piece
            self._done += len(piece)
            fraction = int(100 * self._done / self._total) / 100
            if fraction > self._shown:
                self._shown = fraction
                self._ctx.progress(fraction)

    def _send(self, data: bytes | memoryview) -> None:
        transfers = self._ctx.pool.transfers
        for part in transfers.slices(data):
            self._connection.send(part)
            transfers.moved(self._transfer, len(part))


# -- in


@handler("PUT", "/import")
@handler("PUT", "/import/")
def _import(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    authorise(pool, request)
    task, is_clients = adopt_task(pool, request, "VM.import")
    try:
        sr = _wished_sr(pool, request)
    except Failure as failure:
        end_task(pool, task, is_clients, failure)
        raise Refused(failure_page(failure)) from None
    ensure_served_by(pool, request, connection, hosts_with_sr(pool, sr) or [pool.master_ref])
    if sr["content_type"] == "iso":
        end_task(pool, task, is_clients, Failure("SR_OPERATION_NOT_SUPPORTED", sr.ref))
        raise Refused(page(400, "bad request", "VMs cannot be imported into a repository of ISO images."))
    wish = Wish(sr=sr, restore=_said_true(request, "restore"), force=_said_true(request, "force"))
    transfer = Transfer("import", sr, task, is_clients, time.monotonic(), fault)
    return _receive(pool, request, connection, transfer, wish)


def _wished_sr(pool: Pool, request: Request) -> Row:
    wish = request.parameter("sr_id") or request.parameter("sr_uuid")
    if wish:
        return named(pool, "SR", wish)
    found = pool.db.find("SR", pool.pool_row["default_SR"])
    if found is None:
        raise Failure("DEFAULT_SR_NOT_FOUND", str(pool.pool_row["default_SR"]))
    return found


def _receive(pool: Pool, request: Request, connection: Connection, transfer: Transfer, wish: Wish) -> bool:
    """Answer, read the body, end the task; the connection ends with it."""
    task, is_clients = transfer.task, transfer.own_task
    if request.headers.get("transfer-encoding"):
        end_task(pool, task, is_clients, Failure("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"))
        raise Refused(page(403, "forbidden", "Chunked encoding cannot be handled."))
    ctx = Context(pool, "VM.import", None, task)
    length = request.length
    try:
        with pool.transfers.registered(transfer):
            connection.send(_head(task))
            body = Body(connection, _ENDLESS if length is None else length, transfer, pool)
            refs = receive(ctx, body, wish, is_dry_run=_said_true(request, "dry_run"))
            _read_tail(body)
    except Cut:
        raise ConnectionReset from None
    except OSError:
        end_task(pool, task, is_clients, xva_tar.premature_end())
    except StorageError as error:
        end_task(pool, task, is_clients, backend_failure(error.code, error.text))
    except Failure as failure:
        end_task(pool, task, is_clients, failure)
    else:
        values = "".join(f"<value>{ref}</value>" for ref in refs)
        end_task(pool, task, is_clients, None, f"<value><array><data>{values}</data></array></value>")
    return False


def _read_tail(body: Body) -> None:
    left = _LARGEST_TAIL
    while left > 0 and (data := body.read(min(left, 1 << 16))):
        left -= len(data)


def receive(ctx: Context, source: xva_tar.Source, wish: Wish, *, is_dry_run: bool = False) -> list[str]:
    """Import what a stream holds; return the VMs that are no snapshots.

    Raises Failure (IMPORT_ERROR and its kin), StorageError, OSError, Cut; nothing is left behind then.
    """
    reader = xva_tar.Reader(xva_tar.opened(source), lambda: ctx.pool.tasks.check_cancelled(ctx.task))
    first = reader.next()
    if first is None or first[0] != "ova.xml":
        raise Failure("IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", first[0] if first else "")
    importer = Importer(ctx, xva_objects.read(reader.content(first[1], _LARGEST_DOCUMENT)), wish)
    if is_dry_run:
        importer.check()
        return []
    importer.create()
    if ctx.task is not None:
        with ctx.db as db:
            db.put(ctx.task, other_config=ctx.task["other_config"] | {"object_creation": "complete"})
    try:
        _fill(ctx, reader, importer)
        refs = [vm.ref for vm in importer.vms if not vm["is_a_snapshot"]] or [vm.ref for vm in importer.vms]
        importer.finish()
    except (Failure, StorageError, OSError, Cut):
        importer.undo()
        raise
    return refs


def _fill(ctx: Context, reader: xva_tar.Reader, importer: Importer) -> None:
    """Write the blocks of all disks. Raises IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND when a disk's last is missing."""
    with contextlib.ExitStack() as attached:
        for disk in importer.disks.values():
            attached.enter_context(ctx.pool.transfers.attached(ctx, disk, "RW"))
        lasts = _write_blocks(ctx, reader, importer)
    for name, disk in importer.disks.items():
        if lasts.get(name, -1) < importer.size_of(name) // xva_tar.BLOCK - 1:
            raise Failure("IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND", disk["uuid"])


def _write_blocks(ctx: Context, reader: xva_tar.Reader, importer: Importer) -> dict[str, int]:
    """Write blocks until the tar ends; return the last one of each disk."""
    lasts: dict[str, int] = {}
    path, block = "", b""
    done, total = 0, sum(importer.size_of(name) for name in importer.disks) or 1
    while (member := reader.next()) is not None:
        name, size = member
        data = reader.content(size, xva_tar.BLOCK)
        if xva_tar.is_checksum(name):
            if name.rpartition(".")[0] != path:
                raise Failure("IMPORT_ERROR_UNEXPECTED_FILE", f"{path}.checksum", name)
            xva_tar.assert_checksum(name, block, data)
            continue
        folder, _, number = name.rpartition("/")
        if not importer.knows(folder) or not number.isdigit():
            raise Failure("IMPORT_ERROR_UNEXPECTED_FILE", "a block of a disk", name)
        path, block = name, data
        disk = importer.disks.get(folder)
        if disk is not None:
            ctx.pool.repository_of(disk).write(disk["uuid"], int(number) * xva_tar.BLOCK, data)
            done += xva_tar.BLOCK * (int(number) - lasts.get(folder, -1))
            lasts[folder] = int(number)
            ctx.progress(min(1.0, int(100 * done / total) / 100))
    return lasts


# -- records only


@handler("GET", "/export_metadata")
def _export_metadata(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    del fault
    authorise(pool, request)
    if _said_true(request, "all"):
        vms = [vm for vm in pool.db.rows("VM") if not (vm["is_control_domain"] or vm["is_default_template"])]
        vms = [vm for vm in vms if not vm["is_a_snapshot"] or is_null(vm["snapshot_of"])]
    else:
        vms = [named(pool, "VM", request.parameter("ref") or request.parameter("uuid"))]
    task, is_clients = adopt_task(pool, request, "VM.export_metadata")
    if _said_true(request, "export_snapshots", "true"):
        vms = [one for vm in vms for one in with_snapshots(pool, vm)]
    document = metadata(pool, xva_objects.describe(pool, vms, keeps_power_state=True))
    head = _head(task, f"content-length: {len(document)}", 'content-disposition: attachment; filename="export.xva"')
    connection.send(head)
    connection.send(document)
    end_task(pool, task, is_clients, None, "<value></value>")
    return False


def metadata(pool: Pool, manifest: xva_objects.Manifest) -> bytes:
    """Return the tar that holds `ova.xml` alone."""
    parts: list[bytes] = []
    writer = xva_tar.Writer(lambda data: parts.append(bytes(data)))
    writer.add("ova.xml", xva_objects.write(pool, manifest))
    writer.end()
    return b"".join(parts)


@handler("PUT", "/import_metadata")
def _import_metadata(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    authorise(pool, request)
    task, is_clients = adopt_task(pool, request, "VM.import_metadata")
    found = {key.removeprefix("vdi:"): value for key, value in request.query.items() if key.startswith("vdi:")}
    wish = Wish(
        restore=_said_true(request, "restore"),
        force=_said_true(request, "force"),
        live=_said_true(request, "live"),
        found=found,
    )
    transfer = Transfer("import_metadata", pool.pool_row, task, is_clients, time.monotonic(), fault)
    return _receive(pool, request, connection, transfer, wish)
