"""GET /export_raw_vdi and PUT /import_raw_vdi (xapi.md 10.1, 10.3; transcripts 186 to 190).

The 200 goes out before the work: success or failure is only in the task. Meanwhile the disk hangs on dom0 by a VBD.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from simulator import disks
from simulator.api import device_rules, domains
from simulator.api.registry import Context
from simulator.api.vdi import backend_failure, new_record, on_sr, rounded
from simulator.core.database import Row
from simulator.core.failures import Failure, internal_error
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
from simulator.model.types import NULL
from simulator.storage import ImportBroken, StorageError
from simulator.wire.http import Connection, ConnectionReset, Request, page

if TYPE_CHECKING:
    from simulator.pool import Pool

_FORMATS = {"raw": "application/octet-stream", "vhd": "application/vhd"}
#: A stream looks this often whether its task was cancelled (xapi.md 11.2).
CANCEL_LOOK_S = 10.0
#: How long an import waits for another one into the same disk that has received nothing yet.
PROBE_S = 5.0
_LOOK_S = 0.01
_PROGRESS_STEP = 0.01
_SMALLEST_SLICE = 512


@dataclass(slots=True)
class Transfer:
    """One running transfer: of a disk, or of a VM."""

    kind: str
    row: Row
    task: Row
    own_task: bool
    started: float
    fault: Fault | None
    moved: int = 0

    def describe(self) -> dict[str, Any]:
        """Return what the control plane shows."""
        return {"kind": self.kind, self.row.cls.lower(): self.row["uuid"], "task": self.task.ref, "bytes": self.moved}


class Body:
    """The body of a PUT as a stream: never more than its announced length."""

    def __init__(self, connection: Connection, length: int, transfer: Transfer, pool: Pool) -> None:
        self._connection = connection
        self._left = length
        self._transfer = transfer
        self._pool = pool

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; 0 at the end."""
        view = memoryview(buffer).cast("B")
        size = min(len(view), self._left)
        if size == 0:
            return 0
        try:
            got = self._connection.readinto(view[:size])
        except OSError:
            got = 0
        self._left -= got
        self._pool.transfers.moved(self._transfer, got)
        return got

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; empty at the end."""
        buffer = bytearray(min(size, self._left))
        got = self.readinto(buffer)
        return bytes(buffer[:got])


class Transfers:
    """All running transfers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._by_id: dict[int, Transfer] = {}
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self.bytes_per_s: float | None = None
        """Speed limit of each transfer, and of each copy within the pool; None for none."""

    def running(self) -> list[dict[str, Any]]:
        """Return what is under way."""
        with self._lock:
            return [one.describe() for one in self._by_id.values()]

    def vbd_refs(self) -> set[str]:
        """Return dom0's VBDs that transfers hold."""
        with self._lock:
            return set(self._held)

    def moved(self, transfer: Transfer, size: int) -> None:
        """Count bytes, let a fault act at its byte, keep to the speed limit. Raises Cut."""
        transfer.moved += size
        fault = transfer.fault
        if fault is not None and fault.after_bytes is not None and transfer.moved >= fault.after_bytes:
            transfer.fault = None
            if fault.effect in ("cut", "reset", "hang"):
                self._cut(transfer, fault)
                raise Cut
            self._pool.faults.hold(fault)
        self.keep_to_limit(transfer.started, transfer.moved)

    def keep_to_limit(self, started: float, moved: int) -> None:
        """Wait as long as what has moved so many bytes since `started` is ahead of the speed limit."""
        if self.bytes_per_s:
            time.sleep(max(0.0, moved / self.bytes_per_s - (time.monotonic() - started)))

    @contextlib.contextmanager
    def registered(self, transfer: Transfer) -> Iterator[None]:
        """List a transfer while the block runs."""
        with self._lock:
            self._by_id[id(transfer)] = transfer
        try:
            yield
        finally:
            with self._lock:
                del self._by_id[id(transfer)]

    def _end(self, transfer: Transfer, failure: Failure | None, result: str = "") -> None:
        end_task(self._pool, transfer.task, transfer.own_task, failure, result)

    @contextlib.contextmanager
    def attached(self, ctx: Context, vdi: Row, mode: str) -> Iterator[None]:
        """Hang a disk on dom0 while the block runs. Raises what keeps it from being attached."""
        db, pool = ctx.db, self._pool
        with db:
            host = db.row("host", ctx.host_ref)
            taken = {vbd["userdevice"] for vbd in db.linked(db.row("VM", host["control_domain"]), "VBDs", "VBD")}
            free = next(str(number) for number in range(len(taken) + 1) if str(number) not in taken)
            values = {
                "uuid": pool.ids.uuid(),
                "VM": host["control_domain"],
                "VDI": vdi.ref,
                "userdevice": free,
                "mode": mode,
                "type": "Disk",
                "unpluggable": True,
                "metrics": NULL,
            }
            vbd = db.create("VBD", pool.ids.ref(), values)
            with self._lock:
                self._held.add(vbd.ref)
        try:
            with (
                pool.operations.on(
                    ctx,
                    vbd,
                    "attach",
                    lambda: device_rules.assert_attachable(db, vbd),
                    lambda: device_rules.refresh_device(db, vbd),
                ),
                db,
            ):
                domains.attach_vbd(ctx, vbd, host)
            yield
        finally:
            with self._lock:
                self._held.discard(vbd.ref)
            with db:
                domains.detach_vbd(ctx, vbd)
                db.delete(vbd)
                device_rules.refresh_vdi(db, vdi)

    # -- export

    def export(self, request: Request, connection: Connection, fault: Fault | None) -> None:
        """Answer GET /export_raw_vdi; the connection ends with it. Raises Refused, ConnectionReset."""
        authorise(self._pool, request)
        vdi = named(self._pool, "VDI", request.parameter("vdi"))
        self._assert_seen(request, connection, vdi["SR"])
        form = request.parameter("format") or "raw"
        base_wish = request.parameter("base")
        base = named(self._pool, "VDI", base_wish) if base_wish else None
        task, own_task = adopt_task(self._pool, request, "Exporting raw VDI")
        transfer = Transfer("export", vdi, task, own_task, time.monotonic(), fault)
        if form not in _FORMATS:
            self._end(transfer, internal_error(f"Unknown format {form}"))
            raise Refused(page(404, "not found", "Unknown format").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        fmt: Literal["vhd", "raw"] = "vhd" if form == "vhd" else "raw"
        ctx = Context(self._pool, "VDI.export", None, task, connection.host_ref)
        try:
            with self.registered(transfer), self.attached(ctx, vdi, "RO"):
                connection.send(_export_head(task, vdi, fmt))
                self._stream(ctx, transfer, connection, (fmt, base["uuid"] if base is not None else None))
        except Cut:
            raise ConnectionReset from None
        except OSError:
            self._end(transfer, Failure("VDI_IO_ERROR", "Device I/O errors"))
        except StorageError as error:
            self._end(transfer, backend_failure(error.code, error.text))
        except Failure as failure:
            self._end(transfer, failure)
            if transfer.moved == 0:
                raise Refused(failure_page(failure)) from None
        else:
            self._end(transfer, None)

    def _stream(
        self, ctx: Context, transfer: Transfer, connection: Connection, what: tuple[Literal["vhd", "raw"], str | None]
    ) -> None:
        vdi = transfer.row
        stream = self._pool.repository_of(vdi).export(vdi["uuid"], what[0], what[1])
        shown, looked = 0.0, self._pool.clock.now()
        fault = transfer.fault
        limit = fault.after_bytes if fault is not None else None
        try:
            self.moved(transfer, 0)
            for chunk in stream:
                for part in _split_at(chunk, transfer.moved, limit):
                    for data in self.slices(part):
                        connection.send(data)
                        self.moved(transfer, len(data))
                fraction = transfer.moved / stream.length if stream.length else 0.0
                if fraction - shown >= _PROGRESS_STEP:
                    shown = int(fraction * 100) / 100
                    ctx.progress(min(shown, 1.0))
                if self._pool.clock.now() - looked > CANCEL_LOOK_S:
                    looked = self._pool.clock.now()
                    self._pool.tasks.check_cancelled(transfer.task)
        finally:
            stream.close()

    def slices(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """Yield the data in tenths of a second, so that a slow stream notices when its reader has gone."""
        size = max(_SMALLEST_SLICE, int(self.bytes_per_s / 10)) if self.bytes_per_s else max(1, len(data))
        for begin in range(0, len(data), size):
            yield data[begin : begin + size]

    def _cut(self, transfer: Transfer, fault: Fault) -> None:
        if fault.effect == "hang":
            self._pool.faults.hold(fault)
        if fault.task == "success":
            self._end(transfer, None)
        elif fault.task == "failure":
            self._end(transfer, Failure("VDI_IO_ERROR", "Device I/O errors"))

    # -- import

    def import_(self, request: Request, connection: Connection, fault: Fault | None) -> None:
        """Answer PUT /import_raw_vdi; the connection ends with it. Raises Refused, ConnectionReset."""
        authorise(self._pool, request)
        form = request.parameter("format") or "raw"
        self._assert_seen(request, connection, self._wished_sr_ref(request))
        task, own_task = adopt_task(self._pool, request, "Importing raw VDI")
        transfer = Transfer("import", _NOTHING, task, own_task, time.monotonic(), fault)
        refusal = _import_refusal(request, form)
        if refusal is not None:
            self._end(transfer, internal_error(refusal))
            raise Refused(page(404, "not found", refusal))
        ctx = Context(self._pool, "VDI.import", None, task, connection.host_ref)
        length = request.length or 0
        try:
            transfer.row = self._target(ctx, request, length)
            self._let_probes_end(transfer.row)
            with self.registered(transfer), self.attached(ctx, transfer.row, "RW"):
                connection.send(_import_head(task))
                self._receive(ctx, transfer, form, Body(connection, length, transfer, self._pool), length)
        except Cut:
            raise ConnectionReset from None
        except (ImportBroken, OSError):
            self._end(transfer, Failure("VDI_IO_ERROR", "Device I/O errors"))
        except StorageError as error:
            self._end(transfer, backend_failure(error.code, error.text))
        except Failure as failure:
            self._end(transfer, failure)
            if transfer.moved == 0:
                raise Refused(failure_page(failure)) from None
        else:
            self._end(transfer, None, f"<value>{transfer.row.ref}</value>")

    def _let_probes_end(self, vdi: Row) -> None:
        """Wait a moment for imports into a disk that have received nothing yet.

        Xen Orchestra probes for a redirection with the same PUT without a body, and sends the real one at once (xapi.md
        10.3). A real dom0 takes longer to plug a disk than that, and plugs one after the other.
        """
        deadline = time.monotonic() + PROBE_S
        while time.monotonic() < deadline:
            with self._lock:
                probes = [one for one in self._by_id.values() if one.kind == "import" and one.row is vdi]
                if all(one.moved for one in probes):
                    return
            time.sleep(_LOOK_S)

    def _assert_seen(self, request: Request, connection: Connection, sr_ref: str) -> None:
        """Raise Refused(302) when the repository is plugged, but not at the host that was asked (xapi.md 10.1)."""
        sr = self._pool.db.find("SR", sr_ref)
        hosts = hosts_with_sr(self._pool, sr) if sr is not None else []
        if hosts:
            ensure_served_by(self._pool, request, connection, hosts)

    def _wished_sr_ref(self, request: Request) -> str:
        """Return the repository that an import would write to; one that does not exist is found out later."""
        db = self._pool.db
        wish = request.parameter("vdi")
        if wish is not None:
            vdi = db.find("VDI", wish) or db.tables["VDI"].by_uuid.get(wish)
            return str(vdi["SR"]) if vdi is not None else NULL
        wish = request.parameter("sr_id") or request.parameter("sr_uuid") or ""
        sr = db.find("SR", wish) or db.tables["SR"].by_uuid.get(wish)
        return sr.ref if sr is not None else NULL

    def _target(self, ctx: Context, request: Request, length: int) -> Row:
        wish = request.parameter("vdi")
        if wish is not None:
            return named(self._pool, "VDI", wish)
        sr = named(self._pool, "SR", request.parameter("sr_id") or request.parameter("sr_uuid"))
        uuid, size = self._pool.ids.uuid(), rounded(length)
        with on_sr(ctx, sr, "vdi_create"):
            self._pool.repository(sr).create(uuid, size)
            return new_record(ctx, sr, uuid, name_label="Imported VDI")

    def _receive(self, ctx: Context, transfer: Transfer, form: str, body: Body, length: int) -> None:
        repository = self._pool.repository_of(transfer.row)
        uuid = transfer.row["uuid"]
        if form == "vhd":
            repository.import_vhd(uuid, body, length, ctx.progress)
        else:
            repository.import_raw(uuid, body, length, ctx.progress)
        disks.refresh(self._pool, transfer.row)
        with ctx.db as db:
            db.note(f"digest/{uuid}", None)


class Cut(Exception):
    """A `cut` fault has reached its byte."""


_NOTHING: Any = None


def _split_at(chunk: memoryview, position: int, limit: int | None) -> list[memoryview]:
    """Return a chunk in one part, or in two when a fault's byte lies inside it."""
    here = 0 if limit is None else limit - position
    return [chunk[:here], chunk[here:]] if 0 < here < len(chunk) else [chunk]


def _import_refusal(request: Request, form: str) -> str | None:
    encoding = request.headers.get("transfer-encoding")
    if encoding is not None:
        return f"Cannot handle encoding: {encoding}"
    if form not in _FORMATS:
        return f"Unknown format {form}"
    if "chunked" in request.query:
        return "Cannot handle chunked VHD" if form == "vhd" else "Cannot handle chunked raw"
    return None


def _export_head(task: Row, vdi: Row, form: str) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n"
        f"task-id:{task.ref}\r\ncontent-type:{_FORMATS[form]}\r\n"
        f'content-disposition: attachment; filename="{vdi["uuid"]}.{form}"\r\n\r\n'
    ).encode()


def _import_head(task: Row) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n"
        f"task-id:{task.ref}\r\ncontent-type:application/octet-stream\r\n\r\n"
    ).encode()


@handler("GET", "/export_raw_vdi")
def _export_raw_vdi(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    pool.transfers.export(request, connection, fault)
    return False


@handler("PUT", "/import_raw_vdi")
def _import_raw_vdi(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    pool.transfers.import_(request, connection, fault)
    return False
