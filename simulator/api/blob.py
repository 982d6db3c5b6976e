"""blob.*, the create_new_blob of five classes, and GET and PUT /blob (xapi.md 10.2)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.faults import Fault
from simulator.handlers import Refused, authorise, handler
from simulator.wire.http import Connection, Request, internal_error_page, page

if TYPE_CHECKING:
    from simulator.pool import Pool

#: The classes whose objects can own blobs.
OWNERS = ("VM", "SR", "host", "pool", "network")
_CHUNK = 1 << 16
_NO_CONTENT_TYPE = "application/octet-stream"


def _path(pool: Pool, blob_uuid: str) -> Path:
    return pool.settings.state_dir / "blobs" / blob_uuid


# -- calls


@call("blob.create", "string", "bool", returns="@blob", has_async=False)
def blob_create(ctx: Context, mime_type: str, public: bool | None) -> str:  # noqa: FBT001 - the call's signature
    """Make an empty blob."""
    values = {"uuid": ctx.pool.ids.uuid(), "mime_type": mime_type or _NO_CONTENT_TYPE, "public": bool(public)}
    with ctx.db as db:
        return db.create("blob", ctx.pool.ids.ref(), values).ref


@call("blob.destroy", "&blob", has_async=False)
def blob_destroy(ctx: Context, blob: Row) -> None:
    """Remove a blob with its content, and take it from its owners."""
    drop_blob(ctx.pool, blob)


def drop_blob(pool: Pool, blob: Row) -> None:
    """Remove a blob with its content, and take it from its owners."""
    with pool.db as db:
        for cls in OWNERS:
            for owner in db.rows(cls):
                kept = {name: ref for name, ref in owner["blobs"].items() if ref != blob.ref}
                if kept != owner["blobs"]:
                    db.put(owner, blobs=kept)
        db.delete(blob)
    _path(pool, blob["uuid"]).unlink(missing_ok=True)


def _create_new_blob(ctx: Context, owner: Row, name: str, mime_type: str, *public: bool | None) -> str:
    """Make a blob that belongs to an object; one of the same name loses its owner."""
    with ctx.db as db:
        ref: str = blob_create(ctx, mime_type, public[0])
        db.put(owner, blobs=owner["blobs"] | {name: ref})
        return ref


for _cls in OWNERS:
    call(f"{_cls}.create_new_blob", f"&{_cls}", "string", "string", "bool?", returns="@blob")(_create_new_blob)


# -- content


def _asked_for(pool: Pool, request: Request) -> Row:
    """Return the blob that a request names. Raises Refused: 400 without a name, 404 for one that nobody has."""
    ref, uuid = request.parameter("ref"), request.parameter("uuid")
    if ref is None and uuid is None:
        raise Refused(page(400, "bad request", "The HTTP request was malformed. Please correct and retry."))
    table = pool.db.tables["blob"]
    found = table.rows.get(ref) if ref is not None else table.by_uuid.get(uuid or "")
    if found is None:
        raise Refused(page(404, "not found", "Unknown reference"))
    return found


@handler("GET", "/blob")
def get_blob(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Send a blob's content; a public one to anybody. 404 for one without content."""
    del fault
    blob = _asked_for(pool, request)
    if not blob["public"]:
        authorise(pool, request)
    try:
        file = _path(pool, blob["uuid"]).open("rb")
    except FileNotFoundError:
        raise Refused(page(404, "not found", "The requested resource was not found")) from None
    with file:
        size = file.seek(0, 2)
        file.seek(0)
        connection.send(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: no-cache, no-store\r\n"
            f"content-length: {size}\r\ncontent-type: {blob['mime_type']}\r\n\r\n".encode()
        )
        for chunk in iter(partial(file.read, _CHUNK), b""):
            connection.send(chunk)
    return False


@handler("PUT", "/blob")
def put_blob(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Take a blob's content; the 200 goes out before it comes. The record then has its size and time."""
    del fault
    blob = _asked_for(pool, request)
    authorise(pool, request)
    left = request.length
    if left is None:
        raise Refused(internal_error_page("Need content length"))
    path = _path(pool, blob["uuid"])
    path.parent.mkdir(parents=True, exist_ok=True)
    connection.send(
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: no-cache, no-store\r\n"
        b"Access-Control-Allow-Origin: *\r\n\r\n"
    )
    size = 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("wb") as file:
        while left and (got := _received(connection, buffer[: min(left, _CHUNK)])):
            file.write(buffer[:got])
            left, size = left - got, size + got
    with pool.db as db:
        db.put(blob, size=size, last_updated=pool.clock.stamp())
    return False


def _received(connection: Connection, buffer: memoryview) -> int:
    """Return how much came; 0 when the sender has gone."""
    try:
        return connection.readinto(buffer)
    except OSError:
        return 0
