"""CONNECT /console, GET /console with a WebSocket upgrade, and GET /vncsnapshot (xapi.md 10.2)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from simulator.console.channel import Ended, PlainChannel
from simulator.console.jpeg import encode
from simulator.console.websocket import WebSocketChannel, accept_head, chosen_protocol, is_upgrade
from simulator.core.database import Row
from simulator.core.failures import internal_error
from simulator.faults import Fault
from simulator.handlers import Refused, authorise, failure_page, handler, serving_host
from simulator.model.types import escape
from simulator.wire.http import Connection, Request, page

if TYPE_CHECKING:
    from simulator.pool import Pool

_SERVED = frozenset({"rfb", "vt100"})
_NO_CONTENT = "content-length: 0\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n\r\n"
_CONNECTED = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nCache-Control: no-cache, no-store\r\n\r\n"


def _failed(text: str) -> Refused:
    return Refused(failure_page(internal_error(text)))


def _console_of(pool: Pool, request: Request) -> Row:
    """Return the console that `uuid` or `ref` names, or the picture of the VM that it names. Raises Refused(500)."""
    uuid, ref = request.query.get("uuid"), request.query.get("ref")
    db = pool.db
    with db:
        if uuid is not None:
            vm = db.tables["VM"].by_uuid.get(uuid)
            console = db.tables["console"].by_uuid.get(uuid)
        else:
            vm, console = db.find("VM", ref or ""), db.find("console", ref or "")
        if vm is not None:
            pictures = [one for one in db.linked(vm, "consoles", "console") if one["protocol"] == "rfb"]
            console = pictures[0] if pictures else None
    if console is None:
        raise _failed("Console.Failure")
    return console


def _running_here(pool: Pool, console: Row, connection: Connection) -> Row:
    """Return a console's VM. Raises Refused(500) unless it runs on the serving host."""
    vm = pool.db.find("VM", console["VM"])
    here = serving_host(pool, connection)
    if vm is None or vm["power_state"] != "Running" or vm["resident_on"] != here.ref:
        raise _failed("Console.Failure")
    return vm


def _found(pool: Pool, request: Request, connection: Connection) -> tuple[Row, Row]:
    """Return console and VM. Raises Refused: 401, 500, and 404 for a protocol that nobody serves."""
    authorise(pool, request)
    console = _console_of(pool, request)
    vm = _running_here(pool, console, connection)
    if console["protocol"] not in _SERVED:
        raise Refused(page(404, "not found", "The console has no port."))
    return console, vm


def _user(pool: Pool, request: Request) -> str:
    session = pool.db.find("session", request.parameter("session_id") or "")
    return str(session["auth_user_name"]) if session is not None else pool.settings.user


def _limit_page(users: list[str]) -> bytes:
    is_one = len(users) == 1
    who = escape(", ".join(users))
    text = f"{'User' if is_one else 'Users'} '{who}' {'is' if is_one else 'are'} connected to this console already."
    body = f"<html><body><h1>Connection Limit Exceeded</h1><p>{text}</p></body></html>".encode()
    head = f"HTTP/1.1 503 Connection Limit Exceeded\r\ncontent-length: {len(body)}\r\ncontent-type:text/html\r\n"
    return head.encode() + b"connection:close\r\ncache-control:no-cache, no-store\r\n\r\n" + body


@handler("CONNECT", "/console")
def connect(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Turn the connection into a console's stream; it is closed when the domain ends."""
    del fault
    console, vm = _found(pool, request, connection)
    with pool.consoles.viewing(vm, console, _user(pool, request)) as viewer:
        if viewer is None:
            raise Refused(_limit_page(pool.consoles.users(vm)))
        connection.send(_CONNECTED)
        pool.consoles.serve(viewer, console, vm, PlainChannel(connection))
    return False


@handler("GET", "/console")
def websocket(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Serve a console in WebSocket messages: 501 without an upgrade, 503 while the number of viewers is limited."""
    del fault
    console, vm = _found(pool, request, connection)
    if pool.consoles.is_limited:
        raise Refused(f"HTTP/1.1 503 Service Unavailable\r\n{_NO_CONTENT}".encode())
    if not is_upgrade(request):
        raise Refused(f"HTTP/1.1 501 Method Not Implemented\r\n{_NO_CONTENT}".encode())
    with pool.consoles.viewing(vm, console, _user(pool, request)) as viewer:
        if viewer is None:
            raise Refused(f"HTTP/1.1 503 Service Unavailable\r\n{_NO_CONTENT}".encode())
        connection.send(accept_head(request))
        channel = WebSocketChannel(connection, chosen_protocol(request))
        pool.consoles.serve(viewer, console, vm, channel)
        with contextlib.suppress(OSError, Ended):
            channel.close()
    return False


@handler("GET", "/vncsnapshot")
def vncsnapshot(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool:
    """Answer a picture of a VM's console as JPEG. Raises Refused(404) when there is nothing to take one of."""
    del fault
    authorise(pool, request)
    try:
        console = _console_of(pool, request)
        vm = _running_here(pool, console, connection)
    except Refused:
        raise Refused(page(404, "not found", "No console of that name is shown by this host.")) from None
    picture = encode(pool.consoles.snapshot(vm))
    keep = request.keeps_alive
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-length: {len(picture)}\r\ncontent-type:image/jpeg\r\n"
        f"connection:{'keep-alive' if keep else 'close'}\r\ncache-control:no-cache, no-store\r\n\r\n"
    )
    connection.send(head.encode() + picture)
    return keep
